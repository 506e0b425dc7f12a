"""Divergences between two densities by quadrature: the oracle of many rows of the ledger.

Both densities are given as logarithms at the nodes of a quadrature (last dimension), for instance those of
:func:`dgm_course.numerics.gauss_legendre`; ``weights`` are the quadrature's, or ones for a sum over a finite
set. All other dimensions broadcast. A density may be zero (``-inf``). The densities must be normalised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_divergence(log_p: Tensor, log_q: Tensor, weights: Tensor) -> Tensor:
    """KL(p || q) = ``integral of p (log p - log q)``, in nats.

    Infinite if q vanishes where p does not; nodes where p vanishes count nothing. Ledger V6.
    Shapes: ``log_p`` and ``log_q`` ``(..., N)``, ``weights`` ``(N,)``, result ``(...)``.
    Raises ``ValueError`` if the numbers of nodes differ.
    """
    _check_nodes(log_p, log_q, weights)
    return (weights * _p_log_ratio(log_p, log_q)).sum(-1)


def js_divergence(log_p: Tensor, log_q: Tensor, weights: Tensor) -> Tensor:
    """JSD(p, q) = ``1/2 KL(p || m) + 1/2 KL(q || m)`` with ``m = (p + q) / 2``, in nats, between 0 and log 2.

    Shapes: ``log_p`` and ``log_q`` ``(..., N)``, ``weights`` ``(N,)``, result ``(...)``.
    Raises ``ValueError`` if the numbers of nodes differ.
    """
    _check_nodes(log_p, log_q, weights)
    log_p, log_q = torch.broadcast_tensors(log_p, log_q)
    nowhere = (log_p == -math.inf) & (log_q == -math.inf)  # logaddexp has no gradient there
    log_m = torch.logaddexp(log_p.masked_fill(nowhere, 0.0), log_q.masked_fill(nowhere, 0.0)) - math.log(2.0)
    return 0.5 * (weights * (_p_log_ratio(log_p, log_m) + _p_log_ratio(log_q, log_m))).sum(-1)


def chi2_divergence(log_p: Tensor, log_q: Tensor, weights: Tensor) -> Tensor:
    """chi2(p || q) = ``integral of (p - q)^2 / q = E_q[(p / q)^2] - 1``.

    Infinite if q vanishes where p does not.
    Shapes: ``log_p`` and ``log_q`` ``(..., N)``, ``weights`` ``(N,)``, result ``(...)``.
    Raises ``ValueError`` if the numbers of nodes differ.
    """
    _check_nodes(log_p, log_q, weights)
    log_p, log_q = torch.broadcast_tensors(log_p, log_q)
    nowhere = (log_p == -math.inf) & (log_q == -math.inf)
    safe_p, safe_q = log_p.masked_fill(nowhere, 0.0), log_q.masked_fill(nowhere, 0.0)
    # (p - q)^2 / q = max(q, p^2 / q) (1 - exp(-|log p - log q|))^2: nothing overflows before the answer does
    larger = torch.exp(torch.maximum(safe_q, 2.0 * safe_p - safe_q))
    terms = larger * torch.expm1(-(safe_p - safe_q).abs()) ** 2
    return (weights * terms.masked_fill(nowhere, 0.0)).sum(-1)


def _p_log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``p (log p - log q)``, zero where p is, with finite gradients there."""
    p = torch.exp(log_p)
    empty = p == 0
    log_ratio = log_p.masked_fill(empty, 0.0) - torch.where(empty, 0.0, log_q)
    return p * log_ratio


def _check_nodes(log_p: Tensor, log_q: Tensor, weights: Tensor) -> None:
    counts = {t.shape[-1] if t.dim() else 0 for t in (log_p, log_q, weights)}
    if len(counts) != 1:
        raise ValueError(
            "log_p, log_q and weights need the same number of nodes in their last dimension, got shapes "
            f"{tuple(log_p.shape)}, {tuple(log_q.shape)} and {tuple(weights.shape)}: "
            "evaluate both densities at the nodes of one quadrature"
        )
