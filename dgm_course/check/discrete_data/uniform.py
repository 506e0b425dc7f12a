"""Lecture 04's exercise about uniform noise within the bins, and the bound that it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.discrete_data.models import (
    BOUNDS,
    LEVELS,
    Bumps,
    Density,
    Flat,
    draw_bumps,
    draw_levels,
    draw_sizes,
    log_mean,
)
from dgm_course.check.engine import exercise

# ---- uniform_dequantization_bound: log_prob, (B, m), (S, B, m) -> (B,)


@exercise("the bound by uniform noise for each y, in nats", library=BOUNDS)
def uniform_dequantization_bound(log_prob: Density, y: Tensor, u: Tensor) -> Tensor:
    return log_prob(y + u).mean(0)


@uniform_dequantization_bound.magnitude
def _(log_prob: Bumps | Flat, y: Tensor, u: Tensor) -> Tensor:
    return log_prob.size(y + u).amax(0)


@uniform_dequantization_bound.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    for _ in range(draw.count):
        dtype, (samples, rows, dims) = draw.dtype(), draw_sizes(draw)
        density = draw_bumps(draw, dims)
        y, u = draw_levels(draw, rows, density), draw.uniform(samples, rows, dims, low=0.0, high=1.0)
        yield case(log_prob=density, y=y.to(dtype), u=u.to(dtype))
    y = given([[1.0, 2.0], [5.0, 4.0], [4.0, 3.0]])
    u = given([[[0.2, 0.9], [0.5, 0.1], [0.7, 0.6]], [[0.8, 0.3], [0.4, 0.6], [0.0, 0.9]]])
    yield case("Where the density is flat, its height is the bound, whatever the noise.",
               log_prob=Flat(), y=y, u=u)
    yield case("With a single draw, the bound is the log-density at that one point of the bin.",
               log_prob=Bumps(given([[1.0, 2.0], [5.0, 4.0]]), given([[0.9, 1.2], [1.5, 0.8]])),
               y=y, u=u[:1])


def _at(points: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Density, Tensor, Tensor], Tensor]:
    """The average log-density at other points."""
    return lambda p, y, u: p(points(y, u)).mean(0)


def _with(combine: Callable[[Tensor], Tensor]) -> Callable[[Density, Tensor, Tensor], Tensor]:
    """The right points' log-densities (S, B), put together in another way."""
    return lambda p, y, u: combine(p(y + u))


uniform_dequantization_bound.misconceptions(
    log_of_mean=(_with(log_mean),
                 "The densities were averaged, and the logarithm taken last. That is the tighter bound of "
                 "many draws, and needs them all at once: here the logarithms are averaged."),
    log_of_sum=(_with(lambda v: v.logsumexp(0)),
                "The densities were added up inside of the logarithm. Here the logarithms are averaged."),
    half_noise=(_at(lambda y, u: y + u / 2),
                "The noise fills only half of each bin: a model that keeps to those halves looks twice as "
                "probable as it is, and no bound of the log-probability is left."),
    half_noise_centred=(_at(lambda y, u: y + (u - 0.5) / 2),
                        "The noise was centred and fills only half of each bin. How far is it from one level "
                        "to the next?"),
    centred=(_at(lambda y, u: y + u - 0.5),
             "The noise was centred: the bins of dequantization start at their levels."),
    twice=(_at(lambda y, u: y + 2 * u), "The noise reaches into the next level's bin."),
    both_sides=(_at(lambda y, u: y + 2 * u - 1),
                "The noise reaches into the bins on both sides. A bin starts at its level and ends at the "
                "next."),
    no_noise=(lambda p, y, u: p(y),
              "The noise is not used: this is the density at the level, which a model can make as large as "
              "it likes."),
    noise_alone=(_at(lambda y, u: u), "The density was taken at the noise. Where is the level?"),
    subtracted=(_at(lambda y, u: y - u),
                "The noise was subtracted: that lands in the bin of the level below."),
    downwards=(_at(lambda y, u: y + u - 1),
               "These points lie in the bin of the level below. The bins of dequantization start at their "
               "levels."),
    multiplied=(_at(lambda y, u: y * u), "The noise multiplies. It has to move the level within its bin."),
    averaged_noise=(lambda p, y, u: p(y + u.mean(0)),
                    "The noise was averaged before the density was taken, which leaves the middle of the "
                    "bin. What has to be averaged?"),
    one_draw=(_with(lambda v: v[0]), "Only the first draw was used. Average over all of them."),
    separately=(lambda p, y, u: (p(y) + p(u)).mean(0),
                "The density was taken at the level and at the noise. It has to be taken at their sum."),
    scaled=(_at(lambda y, u: (y + u) / LEVELS),
            "The data were scaled. The density here is one of the levels as they are."),
    eight_bits=(_with(lambda v: v.mean(0) - math.log(256)),
                "The logarithm of 256 was taken off. The levels are 1 apart here: nothing was scaled."),
    eight_bits_a_dim=(lambda p, y, u: p(y + u).mean(0) - y.shape[-1] * math.log(256),
                      "Eight bits were taken off for each dimension. The levels are 1 apart here: nothing "
                      "was scaled."),
    byte_scale=(_at(lambda y, u: (y + u) / 256),
                "The data were divided by 256. The density here is one of the levels as they are."),
    byte_scale_corrected=(lambda p, y, u: p((y + u) / 256).mean(0) - y.shape[-1] * math.log(256),
                          "The data were divided by 256, and that was accounted for. But the density here is "
                          "one of the levels as they are."),
    byte_noise=(_at(lambda y, u: y + u / 256),
                "The noise was divided by 256. The levels are 1 apart here, and the bins as wide."),
    sum_of_draws=(_with(lambda v: v.sum(0)), "The draws were added up. An average estimates the bound."),
    over_batch=(_with(lambda v: v.mean(1)),
                "The average runs over the batch. It has to run over the draws of each y."),
    everything=(_with(lambda v: v.mean()),
                "Everything was averaged, the batch too. Keep one bound for each y."),
    every_draw=(_with(lambda v: v), "There is still one number for each draw. Average over them."),
    axis_kept=(_with(lambda v: v.mean(0, keepdim=True)),
               "The axis of the draws is still there, with one entry. Let it be dropped."),
    largest=(_with(lambda v: v.amax(0)), "This is the best draw alone. Average over all of them."),
    smallest=(_with(lambda v: v.amin(0)), "This is the worst draw alone. Average over all of them."),
    density=(_with(lambda v: v.mean(0).exp()), "An exponential was taken in the end. Nats are asked for."),
    mean_density=(_with(lambda v: v.exp().mean(0)),
                  "This is an estimate of the probability. The average of the logarithms is asked for."),
    as_loss=(_with(lambda v: -v.mean(0)), "This is a loss, to be made small. The bound has the other sign."),
    bits=(_with(lambda v: v.mean(0) / math.log(2)), "These are bits. Nats are asked for."),
    per_dimension=(lambda p, y, u: p(y + u).mean(0) / y.shape[-1],
                   "The number of dimensions was divided by. Keep the nats of the whole y."),
)  # fmt: skip
