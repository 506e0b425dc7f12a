"""Which component a point came from: the posterior over the components of a mixture. Ledger S2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_course.gaussian import gaussian_log_prob


def mixture_responsibilities(
    x: Tensor, means: Tensor, log_vars: Tensor | float, log_weights: Tensor | None = None
) -> Tensor:
    """``q(j|x) = w_j N_j(x) / sum_i w_i N_i(x)``: ``x ([E,] ..., d) -> ([E,] ..., n)``, rows sum to one.

    Dense by nature: the result has points times components entries, and the work d times as many.
    Arguments as in :func:`dgm_course.mixtures.mixture_log_prob`. Ledger S2.
    """
    n, stacked = means.shape[-2], means.dim() == 3
    log_vars = torch.as_tensor(log_vars, dtype=means.dtype, device=means.device).expand(means.shape)
    log_w = means.new_full(means.shape[:-1], -math.log(n)) if log_weights is None else log_weights
    if stacked:
        middle = [1] * (x.dim() - 2)
        means, log_vars = (p.reshape(len(p), *middle, *p.shape[1:]) for p in (means, log_vars))
        log_w = log_w.reshape(len(log_w), *middle, n)
    return torch.softmax(gaussian_log_prob(x.unsqueeze(-2), means, log_vars) + log_w, -1)
