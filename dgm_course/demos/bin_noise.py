"""What noise within a bin leaves of log P(y), exactly: the numbers behind ``dequantization_noise``.

A fixed mixture of logistics gives a model of the levels 0 to 7, and the noise of level y is
``u = sigmoid(a + b logit(U))``, U uniform. All integrals run over ``t = logit u``, a logistic variable under
the noise. Ledger D4, D5, D6.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from dgm_course.bounds import exact_iwae_bound
from dgm_course.logistic_mixture import (
    discretized_logistic_mixture_log_prob,
    logistic_log_prob,
    logistic_mixture_log_prob,
)

NUM_LEVELS = 8
#: the model: weights, means and scales of its components, in levels
WEIGHTS, MEANS = (0.3, 0.22, 0.13, 0.13, 0.22), (1.3, 4.0, 6.2, 6.75, 3.9)
SCALES = (0.08, 0.12, 0.05, 0.05, 1.4)
COUNTS = (1, 2, 4, 8, 16, 32, 64)
BETWEEN = 4  # points of a curve from one K to the next


class Level(NamedTuple):
    """What belongs to a level, whatever the noise of the sliders."""

    log_prob: float  # log P(y), nats
    log_joint: Tensor  # (N,) log-density of p(u|y), of t = logit u, at the nodes
    uniform: Tensor  # (C,) log P(y) - L_K with uniform noise, nats
    best: Tensor  # (C,) and with the best of this family at K = 1
    best_shift: float
    best_scale: float


@cache
def model() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and log-scales of the model ``(5,)``."""
    weights, means, scales = (torch.tensor(row, dtype=torch.float64) for row in (WEIGHTS, MEANS, SCALES))
    return weights.log(), means, scales.log()


@cache
def nodes() -> tuple[Tensor, Tensor]:
    """Nodes ``(N,)`` in t = logit u and their weights: 0.06 apart in the middle, ever wider up to 125.

    A wide noise has much of its mass next to the ends of the bin, at large t.
    """
    step, width = 0.02, 3.0
    reach = math.ceil(math.asinh(125.0 / width) / step)
    at = step * torch.arange(-reach, reach + 1, dtype=torch.float64)
    return width * torch.sinh(at), step * width * torch.cosh(at)


@cache
def counts() -> Tensor:
    """K along the curves, ``(C,)``."""
    steps = BETWEEN * (len(COUNTS) - 1)
    return 2.0 ** (torch.arange(steps + 1, dtype=torch.float64) / BETWEEN)


def level_log_prob(level: int) -> float:
    """``log P(y)``, P(y) the model's mass in ``[y, y + 1)``, from the distribution function; nats. Ledger D4.

    The bins of a discretized mixture are centred on the levels; shifted by half a bin, and with a level
    added at either end so that all bins are closed, they are those of dequantization.
    """
    logits, mean, log_scale = model()
    y = torch.tensor(level + 1)
    return float(
        discretized_logistic_mixture_log_prob(y, logits, mean + 0.5, log_scale, num_levels=NUM_LEVELS + 2)
    )


def noise_log_prob(u: Tensor, shift: float, scale: float) -> Tensor:
    """``log q(u)`` of ``u = sigmoid(a + b logit(U))``, U uniform: zero for a = 0, b = 1. Ledger D5."""
    return logistic_log_prob(torch.logit(u), shift, math.log(scale)) - u.log() - torch.log1p(-u)


def gaps(log_joint: Tensor, shift: float, scale: float) -> Tensor:
    """``log P(y) - L_K`` along K: ``(C,)``, nats, exact; ``KL(q || p(u|y))`` at K = 1. Ledger D5, D6."""
    t, weights = nodes()
    return -exact_iwae_bound(log_joint, logistic_log_prob(t, shift, math.log(scale)), weights, counts())


def best_noise(log_joint: Tensor) -> tuple[float, float]:
    """The a and b with the least ``KL(q || p(u|y))``: a grid that closes in on its lowest point."""
    t, weights = nodes()
    centre, reach = torch.zeros(2, dtype=torch.float64), torch.tensor([3.0, 2.0], dtype=torch.float64)
    grid = torch.linspace(-1, 1, 11, dtype=torch.float64)
    grid = torch.cartesian_prod(grid, grid)  # (G, 2)
    while reach[0] > 1e-6:
        tried = centre + reach * grid
        log_q = logistic_log_prob(t, tried[:, :1], tried[:, 1:])  # (G, N)
        centre = tried[(weights * log_q.exp() * (log_q - log_joint)).sum(-1).argmin()]
        reach = 0.4 * reach
    shift, log_scale = centre.tolist()
    return shift, math.exp(log_scale)


@cache
def levels() -> list[Level]:
    """Every level's bounds with uniform and with the best noise, once in a session."""
    t, rows = nodes()[0], []
    for y in range(NUM_LEVELS):
        log_prob = level_log_prob(y)
        log_joint = logistic_mixture_log_prob(y + torch.sigmoid(t), *model())
        log_joint = log_joint + logistic_log_prob(t, 0.0, 0.0) - log_prob
        best = best_noise(log_joint)
        rows.append(Level(log_prob, log_joint, gaps(log_joint, 0.0, 1.0), gaps(log_joint, *best), *best))
    return rows
