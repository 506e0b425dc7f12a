"""Lecture 04's exercise about learned noise within the bins: the variational bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.discrete_data.models import (
    BOUNDS,
    Bumps,
    Density,
    Even,
    Noise,
    draw_bumps,
    draw_levels,
    draw_noise,
    draw_sizes,
    log_mean,
    log_normal,
    normal_terms,
)
from dgm_course.check.engine import exercise
from dgm_course.gaussian import LOG_2PI

# ---- variational_dequantization_bound: log_prob, noise, (B, m), (S, B, m) -> (B,)

Answer = Callable[[Density, Noise, Tensor, Tensor], Tensor]


@exercise("the bound by learned noise for each y, in nats", library=BOUNDS)
def variational_dequantization_bound(
    log_prob: Density, noise: Noise, y: Tensor, epsilon: Tensor
) -> Tensor:
    u, log_det = noise(epsilon, y)
    return (log_prob(y + u) - log_normal(epsilon) + log_det).mean(0)


@variational_dequantization_bound.magnitude
def _(log_prob: Bumps, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    u, log_det = noise(epsilon, y)
    return (log_prob.size(y + u) + 1 + normal_terms(epsilon).abs().sum(-1) + log_det.abs()).amax(0)


@variational_dequantization_bound.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    for _ in range(draw.count):
        dtype, (samples, rows, dims) = draw.dtype(), draw_sizes(draw)
        density, noise = draw_bumps(draw, dims), draw_noise(draw, dims)
        y, epsilon = draw_levels(draw, rows, density), draw.normal(samples, rows, dims)
        yield case(log_prob=density, noise=noise, y=y.to(dtype), epsilon=epsilon.to(dtype))
    yield case("Where g makes uniform noise, this is the bound by uniform noise.",
               log_prob=Bumps(given([[1.5, 2.5], [5.5, 4.5]]), given([[0.25, 0.2], [0.2, 0.25]])),
               noise=Even(), y=given([[1.0, 2.0], [5.0, 4.0], [1.0, 2.0]]),
               epsilon=given([[[0.5, -0.3], [0.1, 0.4], [-0.4, 0.2]],
                              [[-0.6, 0.4], [0.5, 0.7], [0.3, -0.5]]]))


def _with(combine: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """log p(y + u), log N(epsilon) and the log-determinant (each (S, B)) of each draw, otherwise combined."""

    def answer(log_prob: Density, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
        u, log_det = noise(epsilon, y)
        return combine(log_prob(y + u), log_normal(epsilon), log_det)

    return answer


def _each(combine: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """The same, averaged over the draws."""
    return _with(lambda p, n, d: combine(p, n, d).mean(0))


def _at(points: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """The right q, and the density p at other points, made of y, u and epsilon."""

    def answer(log_prob: Density, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
        u, log_det = noise(epsilon, y)
        return (log_prob(points(y, u, epsilon)) - log_normal(epsilon) + log_det).mean(0)

    return answer


def _less(log_q: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """The right p, and another log q(u|y), made of u, epsilon and the log-determinant."""

    def answer(log_prob: Density, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
        u, log_det = noise(epsilon, y)
        return (log_prob(y + u) - log_q(u, epsilon, log_det)).mean(0)

    return answer


def _log_logistic(epsilon: Tensor) -> Tensor:
    return (logsigmoid(epsilon) + logsigmoid(-epsilon)).sum(-1)


def _swapped(log_prob: Density, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    u, log_det = noise(y, epsilon)
    return (log_prob(y + u) - log_normal(epsilon) + log_det).mean(0)


variational_dequantization_bound.misconceptions(
    no_log_q=(_each(lambda p, n, d: p),
              "The density of the noise is left out: a q that shrinks onto the best point of the bin would "
              "look best."),
    no_base=(_each(lambda p, n, d: p + d),
             "Of the noise's density only the change of volume is there. Epsilon was drawn, too: with which "
             "density?"),
    no_base_wrong_sign=(_each(lambda p, n, d: p - d),
                        "Epsilon's own density is left out, and the log-determinant has the wrong sign."),
    no_log_det=(_each(lambda p, n, d: p - n),
                "The density of epsilon was taken for that of u. Between the two, g changes the volume."),
    log_det_sign=(_each(lambda p, n, d: p - n - d),
                  "The log-determinant has the wrong sign. Where g stretches, is u's density higher or lower "
                  "than epsilon's?"),
    log_q_added=(_each(lambda p, n, d: p + n - d),
                 "The density of the noise was added. A point that q draws often has to count for less."),
    base_sign=(_each(lambda p, n, d: p + n + d),
               "The density of epsilon has the wrong sign: it is a part of q, which is divided by."),
    own_gaussian=(_less(lambda u, e, d: log_normal(u) - d),
                  "The normal density was taken at u. It is epsilon that is normal."),
    logistic_base=(_less(lambda u, e, d: _log_logistic(e) - d),
                   "The density of epsilon is that of a logistic distribution, as in the lecture's own "
                   "noise. Here epsilon is normal."),
    own_gaussian_alone=(_less(lambda u, e, d: log_normal(u)),
                        "u was taken to be normal itself. It is what g makes of normal noise."),
    determinant=(_each(lambda p, n, d: p - n + d.exp()),
                 "The determinant was used in place of its logarithm."),
    determinant_alone=(_each(lambda p, n, d: p + d.exp()),
                       "Epsilon's density is left out, and the determinant has no logarithm."),
    log_of_log_det=(_each(lambda p, n, d: p - n + d.log()),
                    "A logarithm was taken of what is one already, and may be negative."),
    log_det_twice=(_each(lambda p, n, d: p - n + 2 * d), "The log-determinant was counted twice."),
    log_det_summed=(_each(lambda p, n, d: p - n + d.sum()),
                    "The log-determinants were summed over draws and batch. Each draw has one of its own."),
    log_q_alone=(_each(lambda p, n, d: n - d),
                 "This is the noise's log-density alone. How likely is the data point that it makes?"),
    epsilon_added=(_at(lambda y, u, e: y + e),
                   "Epsilon was added to the level. It may be any number: what stays in the bin is what g "
                   "makes of it."),
    no_noise=(_at(lambda y, u, e: y.expand_as(e)),
              "The density was taken at the level. It has to be taken where the noise moves it."),
    noise_alone=(_at(lambda y, u, e: u), "The density was taken at the noise. Where is the level?"),
    subtracted=(_at(lambda y, u, e: y - u),
                "The noise was subtracted: that lands in the bin of the level below."),
    half_noise=(_at(lambda y, u, e: y + u / 2),
                "The noise was halved: it fills half of the bin only, and its density is another."),
    centred=(_at(lambda y, u, e: y + u - 0.5),
             "The noise was centred: the bins of dequantization start at their levels."),
    averaged_noise=(_at(lambda y, u, e: (y + u.mean(0)).expand_as(e)),
                    "The noise was averaged before the density was taken. What has to be averaged?"),
    arguments_exchanged=(_swapped,
                         "The noise was called with its arguments exchanged: first what was drawn, then what "
                         "it depends on."),
    pair_added=(lambda p, g, y, e: (p(y + g(e, y)) - log_normal(e)).mean(0),
                "The noise gives two things: u, and a log-determinant. Take them apart first."),
    no_constant=(_less(lambda u, e, d: -0.5 * e.square().sum(-1) - d),
                 "The normal's constant is missing, the one with 2 pi: a density has to integrate to 1."),
    constant_once=(_less(lambda u, e, d: -0.5 * (e.square().sum(-1) + LOG_2PI) - d),
                   "The normal's constant was counted once. Each dimension brings its own."),
    constant_not_halved=(_less(lambda u, e, d: (normal_terms(e) - 0.5 * LOG_2PI).sum(-1) - d),
                         "The normal's constant is twice as large as it should be: is a half, or a root, "
                         "lost?"),
    square_not_halved=(_less(lambda u, e, d: (normal_terms(e) - 0.5 * e**2).sum(-1) - d),
                       "The square counts twice as much as it should in a Gaussian."),
    dimension_mean=(_less(lambda u, e, d: normal_terms(e).mean(-1) - d),
                    "The dimensions of epsilon were averaged. What do independent ones give together?"),
    base_summed=(_less(lambda u, e, d: normal_terms(e).sum() - d),
                 "Epsilon's log-density was summed over draws and batch, too. Each draw has one of its own."),
    per_dimension=(_less(lambda u, e, d: normal_terms(e) - d),
                   "Epsilon's log-density still has one number for each dimension, and met a log-determinant "
                   "that has not."),
    per_dimension_kept=(lambda p, g, y, e: (p(y + g(e, y)[0])[..., None] - normal_terms(e)
                                            + g(e, y)[1][..., None]).mean(0),
                        "There is still one number for each dimension. What do independent ones give "
                        "together?"),
    log_of_mean=(_with(lambda p, n, d: log_mean(p - n + d)),
                 "The weights were averaged inside of the logarithm. That is the importance-weighted bound: "
                 "here the logarithms are averaged."),
    log_of_sum=(_with(lambda p, n, d: (p - n + d).logsumexp(0)),
                "The weights were added up inside of the logarithm. Here the logarithms are averaged."),
    over_batch=(_with(lambda p, n, d: (p - n + d).mean(1)),
                "The average runs over the batch. It has to run over the draws of each y."),
    sum_of_draws=(_with(lambda p, n, d: (p - n + d).sum(0)),
                  "The draws were added up. An average estimates the bound."),
    one_draw=(_with(lambda p, n, d: (p - n + d)[0]),
              "Only the first draw was used. Average over all of them."),
    every_draw=(_with(lambda p, n, d: p - n + d),
                "There is still one number for each draw. Average over them."),
    everything=(_with(lambda p, n, d: (p - n + d).mean()),
                "Everything was averaged, the batch too. Keep one bound for each y."),
    axis_kept=(_with(lambda p, n, d: (p - n + d).mean(0, keepdim=True)),
               "The axis of the draws is still there, with one entry. Let it be dropped."),
    as_loss=(_each(lambda p, n, d: n - d - p),
             "This is a loss, to be made small. The bound has the other sign."),
    bits=(_each(lambda p, n, d: (p - n + d) / math.log(2)), "These are bits. Nats are asked for."),
)  # fmt: skip
