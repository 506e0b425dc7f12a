"""Lecture 04's exercise about a logistic on levels with two ends: log-probabilities, also far out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.discrete_data.models import MASSES
from dgm_course.check.engine import exercise

# ---- log_prob_with_edges: (n,), (n,), (n,), L -> (n,)

Answer = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@exercise("the log-probability of each level, in nats, with open bins at both ends",
          library=MASSES)
def log_prob_with_edges(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    return _chosen(y, mean, log_scale.exp(), num_levels)


def _edges(
    y: Tensor, mean: Tensor, scale: Tensor, below: float = 0.5, above: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The upper and the lower edge of the bin, in scales from the mean."""
    return (y + above - mean) / scale, (y - below - mean) / scale


def _inner(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    """``log [F(a) - F(b)]`` of edges that are ``width`` apart, without a difference."""
    return -softplus(-a) - softplus(b) + torch.log(-torch.expm1(-width))


def _chosen(
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    num_levels: int,
    *,
    inner: Callable[..., Tensor] = _inner,
    low: Callable[..., Tensor] = lambda a, b, inner: -softplus(-a),
    high: Callable[..., Tensor] = lambda a, b, inner: -softplus(b),
    below: float = 0.5,
    above: float = 0.5,
) -> Tensor:
    """One formula for the inner bins and one for each end."""
    a, b = _edges(y, mean, scale, below, above)
    inside = inner(a, b, (above + below) / scale)
    value = torch.where(y == 0, low(a, b, inside), inside)
    return torch.where(y == num_levels - 1, high(a, b, inside), value)


@log_prob_with_edges.magnitude
def _(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    return (1 + y + mean.abs()) * torch.exp(-log_scale) + log_scale.abs()


@log_prob_with_edges.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    for index in range(draw.count):
        dtype, levels, count = draw.dtype(), draw.integer(3, 8), draw.integer(1, 3)
        y = draw.uniform(2, low=1.0, high=levels - 1.0).floor()
        if index % 5 == 4:
            mean = y + torch.tensor([1.0, -1.0]) * draw.uniform(2, low=300.0, high=1000.0)
            log_scale = draw.uniform(2, low=-3.0, high=-1.5)
        else:
            y = torch.cat([torch.tensor([0.0, levels - 1.0]), y[:count]])
            mean = y + draw.uniform(len(y), low=-1.2, high=1.2)
            log_scale = draw.uniform(len(y), low=-1.2, high=1.0)
        yield case(y=y.to(dtype), mean=mean.to(dtype), log_scale=log_scale.to(dtype), num_levels=levels)
    for dtype in (torch.float32, torch.float64):
        yield case(y=given(3, 3, dtype=dtype), mean=given(1000, -1000, dtype=dtype),
                   log_scale=given(-3, -3, dtype=dtype), num_levels=8)
    yield case(y=given(5, 6), mean=given(1.5, 2.5), log_scale=given(-2, -2), num_levels=8)
    yield case(y=given(2, 1), mean=given(3, 2), log_scale=given(-4, -4), num_levels=4)
    yield case(y=given(0, 1, 2, 3), mean=given(0.8, 0.8, 0.8, 0.8), log_scale=given(-1, -1, -1, -1),
               num_levels=4)
    yield case("With the mean far outside, the end level next to it has all of the mass.",
               y=given(0, 7), mean=given(-1000, 1000), log_scale=given(-1, -1), num_levels=8)
    yield case("With two levels, each has all of the mass on its side of one half.",
               y=given(0, 1), mean=given(0.3, 0.3), log_scale=given(-0.5, -0.5), num_levels=2)
    yield case("In the open end, the log-probability falls by 1 with each scale that the mean is away.",
               y=given(0, 7), mean=given(1000, -1000), log_scale=given(-3, -3), num_levels=8)


@log_prob_with_edges.holds("Over all levels the probabilities sum to 1.")
def _(log_prob: np.ndarray, y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> bool:
    alike = len(set(mean.tolist())) == len(set(log_scale.tolist())) == 1
    if y.tolist() != list(range(num_levels)) or not alike:
        return True
    return abs(float(np.exp(np.minimum(log_prob, 1.0)).sum()) - 1) < 1e-3


def _mass(y: Tensor, mean: Tensor, scale: Tensor, num_levels: int) -> Tensor:
    """The probability as a difference of two values of F, the outermost 0 and 1."""
    a, b = _edges(y, mean, scale)
    upper = torch.where(y == num_levels - 1, 1.0, torch.sigmoid(a))
    return upper - torch.where(y == 0, 0.0, torch.sigmoid(b))


def _between(a: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(a) - torch.sigmoid(b)


def _one_tail(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    return logsigmoid(a) + torch.log1p(-torch.exp(logsigmoid(b) - logsigmoid(a)))


def _one_tail_exactly(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    return logsigmoid(a) + torch.log(-torch.expm1(logsigmoid(b) - logsigmoid(a)))


def _density(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    return logsigmoid((a + b) / 2) + logsigmoid(-(a + b) / 2) + width.log()


def _density_in_tails(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    mass = _between(a, b)
    return torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), _density(a, b, width))


def _as_inside(a: Tensor, b: Tensor, inner: Tensor) -> Tensor:
    return inner


def _with(**changes: object) -> Answer:
    """The right answer but for one of its formulas."""
    return lambda y, m, s, n: _chosen(y, m, s.exp(), n, **changes)  # type: ignore[arg-type]


_NO_EDGES = {"low": _as_inside, "high": _as_inside}


def _renormalised(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    scale = log_scale.exp()
    whole = _inner((num_levels - 0.5 - mean) / scale, (-0.5 - mean) / scale, num_levels / scale)
    return _with(**_NO_EDGES)(y, mean, log_scale, num_levels) - whole


log_prob_with_edges.misconceptions(
    no_edges=(_with(**_NO_EDGES),
              "Every bin is closed, the outermost ones too: the mass beyond both ends belongs to no level."),
    low_closed=(_with(low=_as_inside),
                "The bin of level 0 is closed below: the mass further down belongs to no level."),
    high_closed=(_with(high=_as_inside),
                 "The bin of the last level is closed above. Levels are counted from 0: which one is the "
                 "last?"),
    edges_exchanged=(_with(low=lambda a, b, inner: -softplus(b), high=lambda a, b, inner: -softplus(-a)),
                     "The two ends have changed places: in which direction is level 0 open?"),
    low_everywhere=(lambda y, m, s, n: logsigmoid(_edges(y, m, s.exp())[0]),
                    "All bins are open below. Only that of level 0 is."),
    high_everywhere=(lambda y, m, s, n: logsigmoid(-_edges(y, m, s.exp())[1]),
                     "All bins are open above. Only that of the last level is."),
    ends_certain=(_with(low=lambda a, b, inner: 0 * a, high=lambda a, b, inner: 0 * a),
                  "The two ends have probability 1. Of an open bin only one edge is at infinity."),
    one_edge_inside=(_with(inner=lambda a, b, width: -softplus(-a) - softplus(b)),
                     "For an inner bin a term is missing: being below one edge and above the other are not "
                     "independent."),
    renormalised=(_renormalised,
                  "The mass beyond the ends was spread over all levels. It belongs to the two outermost "
                  "ones."),
    in_doubles=(lambda y, m, s, n: _mass(y.double(), m.double(), s.double().exp(), n).log().to(y.dtype),
                "Double precision only moves the limit: some dozens of scales away differences are 0 there, "
                "too. (And so is a sigmoid, before its logarithm is taken.)"),
    underflow=(lambda y, m, s, n: _mass(y, m, s.exp(), n).log(),
               "Far from the mean both values of F are equal in floats, and the logarithm of their "
               "difference is minus infinity. Can the difference be written as a product?"),
    underflow_no_edges=(lambda y, m, s, n: _between(*_edges(y, m, s.exp())).log(),
                        "This is the logarithm of the warm-up's answer. The two ends are still missing, and "
                        "far from the mean the difference is 0 in floats."),
    width_kept=(_with(low=lambda a, b, inner: inner - logsigmoid(-b),
                      high=lambda a, b, inner: inner - logsigmoid(a)),
                "At the two ends one term too many is left. An open bin has a single edge, and no width."),
    width_unlogged=(_with(inner=lambda a, b, width: logsigmoid(a) + logsigmoid(-b) - width),
                    "For an inner bin the term of the width is off: something is missing between the width "
                    "in scales and the logarithm."),
    one_tail=(_with(inner=_one_tail),
              "Below the mean this is safe. Above it both values of F are 1 in floats: what does the "
              "symmetry of the logistic offer?"),
    one_tail_exactly=(_with(inner=_one_tail_exactly),
                      "Below the mean and near it this is safe. Far above it even the logarithms of both "
                      "values of F are 0 in floats: what does the symmetry of the logistic offer?"),
    high_by_difference=(_with(high=lambda a, b, inner: torch.log(1 - torch.sigmoid(b))),
                        "The last level's probability was taken as a difference from 1, which is 0 in floats "
                        "where the mean is far below."),
    floor_inside=(_with(inner=lambda a, b, width: _between(a, b).clamp(min=1e-12).log()),
                  "The ends are right, but an inner bin's mass has a floor: far out its logarithm is finite, "
                  "and wrong."),
    floor=(lambda y, m, s, n: _mass(y, m, s.exp(), n).clamp(min=1e-12).log(),
           "A floor keeps the logarithm finite, but not right: below it all levels have the same "
           "probability, and no gradient."),
    floor_no_edges=(lambda y, m, s, n: _between(*_edges(y, m, s.exp())).clamp(min=1e-12).log(),
                    "This is the logarithm of the warm-up's answer, with a floor. The two ends are missing, "
                    "and below the floor all levels have the same probability."),
    small_added_inside=(_with(inner=lambda a, b, width: (_between(a, b) + 1e-12).log()),
                        "The ends are right, but a small number was added to an inner bin's mass. Far out "
                        "nothing else is left."),
    small_added=(lambda y, m, s, n: (_mass(y, m, s.exp(), n) + 1e-12).log(),
                 "A small number was added before the logarithm: far from the mean nothing else is left."),
    less_small_added=(lambda y, m, s, n: (_mass(y, m, s.exp(), n) + 1e-8).log(),
                      "A small number was added before the logarithm, and many bins have less mass than "
                      "that."),
    density=(_with(inner=_density),
             "An inner bin's mass was taken to be its width times the density in its middle. For a narrow "
             "logistic that is far off."),
    density_everywhere=(_with(inner=_density, **_NO_EDGES),
                        "This is the log-density at each level. A bin's mass is the area under it, and the "
                        "outermost bins are open."),
    density_in_tails=(_with(inner=_density_in_tails),
                      "Where the mass is small it was replaced by the density in the middle of the bin. That "
                      "is finite, but nats off where the scale is smaller than a bin."),
    probability=(lambda y, m, s, n: _chosen(y, m, s.exp(), n).exp(),
                 "This is the probability. Its logarithm is asked for, and far out it cannot be taken "
                 "afterwards."),
    scale=(lambda y, m, s, n: _chosen(y, m, s, n),
           "log_scale was used as the scale. It is its logarithm, and may be negative."),
    scale_underflow=(lambda y, m, s, n: _mass(y, m, s, n).log(),
                     "log_scale was used as the scale, or its logarithm taken once more. And a difference of "
                     "two values of F is 0 in floats, far from the mean."),
    log_variance=(lambda y, m, s, n: _chosen(y, m, torch.exp(s / 2), n),
                  "log_scale was read as the logarithm of a variance. It is the scale's."),
    multiplied=(lambda y, m, s, n: _chosen(y, m, torch.exp(-s), n),
                "The scale multiplies. A larger scale has to spread the mass."),
    bin_above=(_with(below=0.0, above=1.0),
               "The bins start at their levels, as those of dequantization do. Here a level lies in the "
               "middle of its bin."),
    bin_below=(_with(below=1.0, above=0.0),
               "The bins end at their levels. Here a level lies in the middle of its bin."),
    half_width=(_with(below=0.25, above=0.25),
                "The bins are only half as wide as the levels are apart: some mass belongs to no level."),
    bits=(lambda y, m, s, n: _chosen(y, m, s.exp(), n) / math.log(2),
          "These are bits: a logarithm of base 2. Nats are asked for."),
    negative=(lambda y, m, s, n: -_chosen(y, m, s.exp(), n),
              "Only the sign is wrong: this is a loss, to be made small."),
    total=(lambda y, m, s, n: _chosen(y, m, s.exp(), n).sum(),
           "The entries were summed. Keep one number for each."),
    average=(lambda y, m, s, n: _chosen(y, m, s.exp(), n).mean(),
             "The entries were averaged. Keep one number for each."),
)  # fmt: skip
