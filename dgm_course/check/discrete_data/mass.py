"""Lecture 04's warm-up: the probability of a level is the mass of its bin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.discrete_data.models import MASSES
from dgm_course.check.engine import exercise

# ---- discretized_logistic_prob: (n,), (n,) or (), (n,) or () -> (n,)


@exercise("the probability of each level: the logistic's mass in the bin around it",
          library=("log_prob_with_edges", *MASSES))
def discretized_logistic_prob(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return _mass(y, mean, scale)


def _mass(
    y: Tensor,
    mean: Tensor,
    scale: Tensor,
    below: float = 0.5,
    above: float = 0.5,
    cdf: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> Tensor:
    """F at ``above`` over y, less F at ``below`` under it."""
    return cdf((y + above - mean) / scale) - cdf((y - below - mean) / scale)


@discretized_logistic_prob.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    for _ in range(draw.count):
        dtype, count = draw.dtype(), draw.integer(2, 6)
        y = draw.uniform(count, low=1.0, high=13.0).floor()
        mean, scale = y + 1.5 * draw.normal(count), draw.uniform(count, low=0.15, high=1.5)
        yield case(y=y.to(dtype), mean=mean.to(dtype), scale=scale.to(dtype))
    yield case(y=given(1, 2, 3), mean=given(1.4, 1.4, 2.4), scale=given(0.5, 1.2, 0.4))
    yield case(y=torch.arange(1.0, 8.0, dtype=torch.float64), mean=torch.tensor(3.8, dtype=torch.float64),
               scale=torch.tensor(0.9, dtype=torch.float64))
    yield case("With a tiny scale, the bin around the mean has all of the mass.",
               y=torch.full((4,), 2.0), mean=torch.tensor([1.7, 2.3, 2.7, 1.3]), scale=torch.full((4,), 0.01))


def _below(y: Tensor, mean: Tensor, scale: Tensor, edge: float) -> Tensor:
    return torch.sigmoid((y + edge - mean) / scale)


def _density(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    z = (y - mean) / scale
    return torch.sigmoid(z) * torch.sigmoid(-z)


discretized_logistic_prob.misconceptions(
    bin_above=(lambda y, m, s: _mass(y, m, s, 0.0, 1.0),
               "The bins start at their levels, as those of dequantization do. Here a level lies in the "
               "middle of its bin."),
    bin_below=(lambda y, m, s: _mass(y, m, s, 1.0, 0.0),
               "The bins end at their levels. Here a level lies in the middle of its bin."),
    half_width=(lambda y, m, s: _mass(y, m, s, 0.25, 0.25),
                "The bins are only half as wide as the levels are apart: some mass belongs to no level."),
    upper_half=(lambda y, m, s: _mass(y, m, s, 0.0),
                "This is the upper half of the bin. The lower half belongs to the level, too."),
    lower_half=(lambda y, m, s: _mass(y, m, s, above=0.0),
                "This is the lower half of the bin. The upper half belongs to the level, too."),
    two_bins=(lambda y, m, s: _mass(y, m, s, 1.0, 1.0),
              "The bins are twice as wide as the levels are apart: they overlap."),
    density=(lambda y, m, s: _density(y, m, s) / s,
             "This is the density at the level, which can be above 1. A probability is the area under it, "
             "over the whole bin."),
    density_without_scale=(_density,
                           "This is the slope of the sigmoid at the level. A probability is a difference of "
                           "two values of F."),
    negative=(lambda y, m, s: -_mass(y, m, s),
              "Only the sign is wrong. F grows: does it here, and which of its two values is larger?"),
    gaussian=(lambda y, m, s: _mass(y, m, s, cdf=torch.special.ndtr),
              "This is a Gaussian's mass. The logistic has another F."),
    tanh=(lambda y, m, s: _mass(y, m, s, cdf=torch.tanh),
          "A hyperbolic tangent runs from -1 to 1. F is a probability: from where to where does it run?"),
    logarithm=(lambda y, m, s: _mass(y, m, s).log(),
               "This is the logarithm already. Here the probability itself is asked for."),
    variance=(lambda y, m, s: _mass(y, m, s.sqrt()),
              "A root was taken of the scale, as if it were a variance. It divides as it is."),
    squared=(lambda y, m, s: _mass(y, m, s**2),
             "The scale was squared. It divides as it is."),
    standard_deviation=(lambda y, m, s: _mass(y, m, s * math.sqrt(3) / math.pi),
                        "The scale was read as a standard deviation, and converted. It divides as it is."),
    log_scale=(lambda y, m, s: _mass(y, m, s.exp()),
               "The scale was read as a logarithm. Here it is the scale itself."),
    multiplied=(lambda y, m, s: _mass(y, m, 1 / s),
                "The scale multiplies. A larger scale has to spread the mass, not to concentrate it."),
    no_scale=(lambda y, m, s: _mass(y, m, torch.ones_like(s)), "The scale is not used."),
    half_after_division=(lambda y, m, s: _mass(y / s, m / s, torch.ones_like(s)),
                         "Half a bin was added after the division by the scale. The edges are at half a "
                         "level from y, in the units of y."),
    brackets=(lambda y, m, s: _mass(y, m / s, torch.ones_like(s)),
              "Only the mean was divided by the scale. Are brackets missing?"),
    mean_added=(lambda y, m, s: _mass(y, -m, s),
                "The mean was added. How far is an edge from the mean?"),
    mean_left_out=(lambda y, m, s: _mass(y, 0 * m, s), "The mean is not used."),
    up_to_edge=(lambda y, m, s: _below(y, m, s, 0.5),
                "This is all of the mass below the upper edge. What lies below the lower edge belongs to "
                "other levels."),
    up_to_level=(lambda y, m, s: _below(y, m, s, 0.0),
                 "This is F at the level. A bin has two edges, and its mass is a difference."),
    from_edge=(lambda y, m, s: 1 - _below(y, m, s, -0.5),
               "This is all of the mass above the lower edge. What lies above the upper edge belongs to "
               "other levels."),
    added=(lambda y, m, s: _below(y, m, s, 0.5) + _below(y, m, s, -0.5),
           "The two values of F were added up. What lies below both edges is then counted twice."),
    complement=(lambda y, m, s: 1 - _mass(y, m, s), "This is the mass outside of the bin."),
    product=(lambda y, m, s: _below(y, m, s, 0.5) * (1 - _below(y, m, s, -0.5)),
             "Below the one edge and above the other are not independent: their probabilities must not be "
             "multiplied."),
    normalised=(lambda y, m, s: _mass(y, m, s) / _mass(y, m, s).sum(),
                "The probabilities were made to sum to 1 over the levels that were passed in. Each is a mass "
                "by itself."),
    total=(lambda y, m, s: _mass(y, m, s).sum(), "The levels were summed. Keep one number for each."),
    average=(lambda y, m, s: _mass(y, m, s).mean(), "The levels were averaged. Keep one number for each."),
)  # fmt: skip
