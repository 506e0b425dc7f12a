"""The log-density of a mixture of diagonal Gaussians. Ledger S1, S4, S5."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_course.gaussian import gaussian_log_prob


def mixture_log_prob(
    x: Tensor,
    means: Tensor,
    log_vars: Tensor | float,
    log_weights: Tensor | None = None,
    *,
    exclude: Tensor | None = None,
) -> Tensor:
    """``log sum_j w_j N(x; means_j, diag exp(log_vars_j))`` in nats: ``x (..., d) -> (...)``.

    ``means (n, d)``; ``log_vars`` broadcasts to it; ``log_weights (n,)`` are taken as they are (normalise them
    with ``log_softmax``), and default to ``-log n``. ``exclude (...)``, of x's batch shape, holds for each
    point the index of one component that is left out, or -1: the weights of the others are divided by
    ``1 - w_j``, so that a leave-one-out density is a density. A stack of E mixtures has ``means (E, n, d)``,
    ``log_weights (E, n)`` and ``x (E, ..., d)``. Gradients flow to all of them.
    """
    stacked = means.dim() == 3
    log_vars = torch.as_tensor(log_vars, dtype=means.dtype, device=means.device)
    lead = x.dim() - 2 if stacked else 0
    n = means.shape[-2]

    def spread(p: Tensor) -> Tensor:
        if not stacked or p.dim() < 2:
            return p
        return p.reshape(p.shape[0], *[1] * lead, *p.shape[1:])

    log_vars = spread(log_vars.expand(means.shape))
    terms = gaussian_log_prob(x.unsqueeze(-2), spread(means), log_vars)  # (..., n)
    log_w = terms.new_full((n,), -math.log(n)) if log_weights is None else log_weights
    log_w = spread(log_w)
    terms = terms + log_w
    if exclude is None:
        return torch.logsumexp(terms, -1)
    out = torch.nn.functional.one_hot(exclude + 1, n + 1)[..., 1:].bool()
    rest = torch.where(out, 0.0, log_w.exp().expand(terms.shape)).sum(-1)
    return torch.logsumexp(torch.where(out, -math.inf, terms), -1) - rest.log()
