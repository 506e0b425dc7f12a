"""Lecture 04's exercise about many draws of noise at once: the importance-weighted bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.discrete_data.models import (
    BOUNDS,
    Bumps,
    Density,
    Flat,
    draw_bumps,
    draw_levels,
    draw_sizes,
    log_mean,
)
from dgm_course.check.engine import exercise

# ---- importance_weighted_dequantization: log_prob, (B, m), (K, B, m), (K, B) -> (B,)

Answer = Callable[[Density, Tensor, Tensor, Tensor], Tensor]


@exercise("the importance-weighted bound of all draws for each y, in nats", library=BOUNDS)
def importance_weighted_dequantization(log_prob: Density, y: Tensor, u: Tensor, log_q: Tensor) -> Tensor:
    return log_mean(log_prob(y + u) - log_q)


@importance_weighted_dequantization.magnitude
def _(log_prob: Bumps | Flat, y: Tensor, u: Tensor, log_q: Tensor) -> Tensor:
    return (log_prob.size(y + u) + log_q.abs()).amax(0)


@importance_weighted_dequantization.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    for _ in range(draw.count):
        dtype, (samples, rows, dims) = draw.dtype(), draw_sizes(draw)
        density = draw_bumps(draw, dims)
        y, u = draw_levels(draw, rows, density), draw.uniform(samples, rows, dims, low=0.0, high=1.0)
        log_q = draw.choose([0.0, 0.8, -0.8]) + draw.normal(samples, rows)
        yield case(log_prob=density, y=y.to(dtype), u=u.to(dtype), log_q=log_q.to(dtype))
    y = given([[1.0, 2.0], [5.0, 4.0], [4.0, 3.0]])
    u = given([[[0.2, 0.9], [0.5, 0.1], [0.7, 0.6]], [[0.8, 0.3], [0.4, 0.6], [0.1, 0.9]]])
    log_q = given([[0.5, -0.7, 1.1], [-0.3, 0.9, -1.6]])
    mean, scale = given([[1.0, 2.0], [5.0, 4.0]]), given([[0.5, 0.7], [0.7, 0.4]])
    for dtype in (torch.float64, torch.float32):
        for far in (given([[7.0, 0.0], [0.0, 7.0]]), given([[1.0, 1.0], [7.0, 0.0]])):
            yield case(log_prob=Bumps(mean, scale / 20), y=far.to(dtype), u=u[:, :2].to(dtype),
                       log_q=log_q[:, :2].to(dtype))
    yield case(log_prob=Bumps(mean, 0.3 * scale), y=given([[3.0, 7.0], [6.0, 0.0]]).float(),
               u=u[:, :2].float(), log_q=log_q[:, :2].float())
    y, u, log_q = y.float(), u.float(), log_q.float()
    yield case("With a single draw, the bound is that draw's log-weight.",
               log_prob=Bumps(mean, scale), y=y, u=u[:1], log_q=log_q[:1])
    yield case("Where p is flat and q is uniform, every draw has the same weight, and the bound is exact.",
               log_prob=Flat(), y=y, u=u, log_q=0 * log_q)


def _log_w(log_prob: Density, y: Tensor, u: Tensor, log_q: Tensor) -> np.ndarray:
    return (log_prob(y + u) - log_q).double().numpy()


@importance_weighted_dequantization.holds("The bound is not above the largest log-weight.")
def _(bound: np.ndarray, log_prob: Density, y: Tensor, u: Tensor, log_q: Tensor) -> bool:
    largest = _log_w(log_prob, y, u, log_q).max(0)
    return bool((bound <= largest + 1e-4 * (1 + abs(largest))).all())


@importance_weighted_dequantization.holds("The bound is not below the average log-weight.")
def _(bound: np.ndarray, log_prob: Density, y: Tensor, u: Tensor, log_q: Tensor) -> bool:
    average = _log_w(log_prob, y, u, log_q).mean(0)
    return bool((bound >= average - 1e-4 * (1 + abs(average))).all())


def _of(combine: Callable[[Tensor], Tensor]) -> Answer:
    """The right log-weights (K, B), put together in another way."""
    return lambda p, y, u, q: combine(p(y + u) - q)


def _parts(combine: Callable[[Tensor, Tensor], Tensor]) -> Answer:
    """log p(y + u) and log q (each (K, B)), put together in another way."""
    return lambda p, y, u, q: combine(p(y + u), q)


def _at(points: Callable[[Tensor, Tensor], Tensor]) -> Answer:
    """The bound with the density p at other points."""
    return lambda p, y, u, q: log_mean(p(points(y, u)) - q)


def _shifted(log_w: Tensor, shift: Tensor) -> Tensor:
    return shift + torch.log(torch.exp(log_w - shift).mean(0))


importance_weighted_dequantization.misconceptions(
    mean_of_logs=(_of(lambda w: w.mean(0)),
                  "The logarithms were averaged: that is the variational bound. Here the weights are "
                  "averaged first."),
    no_division=(_of(lambda w: w.logsumexp(0)),
                 "The weights were added up. Their average is needed: the number of draws is missing."),
    k_added=(_of(lambda w: w.logsumexp(0) + math.log(len(w))),
             "The number of draws has the wrong sign: an average is smaller than a sum."),
    k_not_logged=(_of(lambda w: w.logsumexp(0) - len(w)),
                  "The number of draws was subtracted as it is. What becomes of a division in logarithms?"),
    log_divided=(_of(lambda w: w.logsumexp(0) / len(w)),
                 "The logarithm was divided by the number of draws. Divide what is inside it."),
    batch_counted=(_of(lambda w: w.logsumexp(0) - math.log(w.shape[1])),
                   "The y's were counted. How many draws has each of them?"),
    log_of_int=(_of(lambda w: w.logsumexp(0) - torch.log(len(w))),
                "The number of draws is a plain number, no tensor: Python has a logarithm for those."),
    no_log_q=(_parts(lambda p, q: log_mean(p)),
              "The density of the noise is left out: where q draws often, each draw has to count for less."),
    no_log_q_no_k=(_parts(lambda p, q: p.logsumexp(0)),
                   "The densities were added up: neither the noise's density nor the number of draws is "
                   "there."),
    log_q_added=(_parts(lambda p, q: log_mean(p + q)),
                 "The density of the noise has the wrong sign: should a point that q draws often count more, "
                 "or less?"),
    q_not_logged=(_parts(lambda p, q: log_mean(p - q.exp())),
                  "An exponential was taken of the noise's log-density before it was subtracted."),
    logs_divided=(_parts(lambda p, q: log_mean(p / q)),
                  "One logarithm was divided by another. It is the densities that are divided."),
    ratio_of_means=(_parts(lambda p, q: log_mean(p) - log_mean(q)),
                    "The two densities were averaged one by one. Each draw has a weight of its own: divide "
                    "before the average."),
    log_q_averaged=(_parts(lambda p, q: log_mean(p) - q.mean(0)),
                    "The noise's log-density was averaged outside of the logarithm. It belongs to each "
                    "draw's weight."),
    averaged_by_q=(_parts(lambda p, q: (q.softmax(0).log() + p).logsumexp(0)),
                   "The densities were averaged with the noise's density as weights. The draws come from q "
                   "already: it has to be divided by."),
    averaged_by_inverse_q=(_parts(lambda p, q: (torch.log_softmax(-q, 0) + p).logsumexp(0)),
                           "The weights were made to sum to 1. q is a density whose constant is known: a "
                           "plain average is asked for."),
    by_exp=(_of(lambda w: w.exp().mean(0).log()),
            "Densities may be too small for a float: the logarithm of their average becomes minus infinity. "
            "Is there a way that never leaves the logarithms?"),
    in_doubles=(_of(lambda w: w.double().exp().mean(0).log().to(w.dtype)),
                "Double precision only moves the limit: a density of many pixels underflows there, too."),
    small_added=(_of(lambda w: (w.exp() + 1e-12).mean(0).log()),
                 "A small number was added before the logarithm. Where the density is small nothing else is "
                 "left."),
    max_pair=(_of(lambda w: _shifted(w, w.max(0))),
              "Along an axis this function gives two things: the largest entries, and where they are. Take "
              "the first."),
    global_max=(_of(lambda w: _shifted(w, w.max())),
                "One shift was used for all y's, so that some y's weights all underflow. Shift each y by "
                "itself."),
    shift_lost=(_of(lambda w: _shifted(w, w.amax(0)) - w.amax(0)),
                "What was subtracted to keep the exponentials in range has to come back in the end."),
    largest=(_of(lambda w: w.amax(0)), "This is the largest log-weight alone. All draws are averaged."),
    one_draw=(_of(lambda w: w[0]), "Only the first draw was used. Average the weights of all."),
    self_weighted=(_of(lambda w: (w.softmax(0) * w).sum(0)),
                   "The log-weights were averaged by their own shares. That is how the gradient weighs the "
                   "draws, not the bound."),
    log_missing=(_of(lambda w: w.exp().mean(0)),
                 "This is an estimate of the probability. Its logarithm is asked for."),
    over_batch=(_of(lambda w: log_mean(w, 1)),
                "The average runs over the batch. It has to run over the draws of each y."),
    everything=(_of(lambda w: log_mean(w.flatten())),
                "The weights of all y's were averaged together. Keep one bound for each y."),
    batch_mean=(_of(lambda w: log_mean(w).mean()), "The batch was averaged. Keep one bound for each y."),
    every_draw=(_of(lambda w: w), "There is still one number for each draw. Average the weights of each y."),
    axis_kept=(_of(lambda w: log_mean(w)[None]),
               "The axis of the draws is still there, with one entry. Let it be dropped."),
    no_noise=(_at(lambda y, u: y.expand_as(u)),
              "The density was taken at the level. It has to be taken where the noise moves it."),
    noise_alone=(_at(lambda y, u: u), "The density was taken at the noise. Where is the level?"),
    half_noise=(_at(lambda y, u: y + u / 2),
                "The noise was halved: it fills half of the bin only, and its density is another."),
    centred=(_at(lambda y, u: y + u - 0.5),
             "The noise was centred: the bins of dequantization start at their levels."),
    subtracted=(_at(lambda y, u: y - u),
                "The noise was subtracted: that lands in the bin of the level below."),
    averaged_noise=(_at(lambda y, u: (y + u.mean(0)).expand_as(u)),
                    "The noise was averaged before the density was taken. Every draw has a density of its "
                    "own."),
    eight_bits_a_dim=(lambda p, y, u, q: log_mean(p(y + u) - q) - y.shape[-1] * math.log(256),
                      "Eight bits were taken off for each dimension. The levels are 1 apart here: nothing "
                      "was scaled."),
    as_loss=(_of(lambda w: -log_mean(w)), "This is a loss, to be made small. The bound has the other sign."),
    bits=(_of(lambda w: log_mean(w) / math.log(2)), "These are bits. Nats are asked for."),
)  # fmt: skip
