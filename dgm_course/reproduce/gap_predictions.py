"""What a density tells beforehand of the gap that uniform noise leaves, ``KL(U || p(u|y))``. Ledger D8."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LogProb = Callable[[Tensor], Tensor]


def score(log_prob: LogProb, x: Tensor) -> Tensor:
    """``d log p(x) / dx``, of the shape of x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(log_prob(x).sum(), x)[0]


def score_prediction(scores: Tensor) -> Tensor:
    """``|g|^2 / 24`` with g the score at y + u: ``(..., m) -> (...)``, to be averaged over u.

    What ``KL(U || p(u|y))`` tends to, in nats, for a density that is smooth on the scale of a bin: a
    dimension of conditional scale s has ``E g^2 = 1 / s^2`` if it is Gaussian, hence the ledger's
    ``1 / (24 s^2)``. Where s is below a bin it is far too large, as g then changes within the bin: see
    `slope_prediction`. Ledger D8.
    """
    return scores.square().sum(-1) / 24


def slope_prediction(scores: Tensor) -> Tensor:
    """``|E_u g|^2 / 24``, nats: ``(..., n, B, m) -> (..., B)``, unbiased from n >= 2 noises.

    To second order the gap of a log p that is straight across the bin, with the mean slope ``E_u g``. For a
    smooth density the same as `score_prediction`. Ledger D8.
    """
    n = scores.shape[-3]
    pairs = scores.sum(-3).square() - scores.square().sum(-3)  # products of two different noises
    return pairs.sum(-1) / (24 * n * (n - 1))


def variance_prediction(log_prob: Tensor) -> Tensor:
    """``Var_u[log p(y + u)] / 2``, nats: ``(..., n, B) -> (..., B)``, unbiased from n >= 2 noises.

    The second cumulant of the gap ``log E_u exp(log p) - E_u log p``: slopes, curvature and what the noises
    of different dimensions do together. Ledger D4, D8.
    """
    return 0.5 * log_prob.var(-2)
