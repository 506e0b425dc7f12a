"""The importance-weighted bound without sampling: exact for any K, from the law of a single weight.

Let S be the average of K independent weights ``w / p(x)``, z ~ q, and ``phi(u) = E_q exp(-u w / p(x))`` their
Laplace transform. Two classical integrals,

``log S = int_0^inf (exp(-t) - exp(-t S)) / t dt`` and ``1 / S = int_0^inf exp(-t S) dt``,

turn an expectation over K samples into powers of ``phi``: one quadrature over z and one over ``log u``,
whatever K is. z may have one or two dimensions: all that is needed are the two densities at the nodes of a
quadrature, as in :mod:`dgm_course.divergences`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Spacing of the trapezoidal rule in log u. The integrands are analytic where |Im log u| < pi/2, so that the
#: error is of the order exp(-pi^2 / spacing): 1e-21.
_SPACING = 0.2
#: Tails left out, in the logarithm: exp(-39) is 1e-17.
_TAIL = 39.0
#: pairs (node, u) evaluated at once
_BLOCK = 2**19


def exact_iwae_bound(
    log_joint: Tensor, log_q: Tensor, weights: Tensor, num_samples: int | Sequence[int] | Tensor
) -> Tensor:
    """L_K in nats for each K in ``num_samples``, without Monte Carlo error. Ledger I2, I3.

    ``L_K - log p(x) = int (exp(-K u) - phi(u)^K) d log u``. Shapes: ``log_joint = log p(x, z)`` and
    ``log_q = log q(z|x)`` at the nodes ``(N,)``, quadrature ``weights (N,)``, result in the shape of
    ``num_samples``. The nodes have to cover both q and the posterior. About ten digits in float64, whatever
    the size of the gap; ``-inf`` where q has mass but the joint has none. Raises ``ValueError`` if shapes
    differ, a K is below 1, or the nodes miss mass of q.
    """
    log_px, log_ratio, mass = _prepare(log_joint, log_q, weights)
    counts = torch.as_tensor(num_samples, dtype=log_joint.dtype, device=log_joint.device)
    if not bool((counts >= 1).all()):
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: it is the K of the bound")
    if _weight_may_vanish(log_ratio, mass):
        return torch.full_like(counts, -math.inf)  # with a positive probability all K weights are zero
    log_u, log_phi = _laplace(log_ratio, mass, float(counts.max()))  # (U,), (U,)
    k = counts.unsqueeze(-1)  # (..., 1)
    integrand = torch.exp(-k * log_u.exp()) - torch.exp(k * log_phi)  # (..., U)
    return log_px + _SPACING * integrand.sum(-1)


def implicit_posterior(log_joint: Tensor, log_q: Tensor, weights: Tensor, num_samples: int) -> Tensor:
    """Log-density of the expected importance-weighted posterior q_EW at the nodes: ``(N,)``. Ledger I4.

    Draw ``z_1, ..., z_K ~ q`` and keep one of them, chosen by its normalised weight: its law is

    ``q_EW(z) = E_{z_2..z_K} [ p(x, z) / (1/K (w(z) + sum_{k>=2} w_k)) ]``,

    q itself at K = 1, the posterior as K grows; ``L_K <= ELBO(q_EW) <= log p(x)``. Exact:
    ``q_EW = K q w/p(x) int_0^inf exp(-u w/p(x)) phi(u)^(K-1) du``. Shapes as in :func:`exact_iwae_bound`.
    Cremer, Morris and Duvenaud 2017, "Reinterpreting importance-weighted autoencoders".
    Raises ``ValueError`` as :func:`exact_iwae_bound` does, and where q has mass but the joint has none.
    """
    _, log_ratio, mass = _prepare(log_joint, log_q, weights)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: it is the K of the bound")
    if num_samples == 1:
        return log_q.clone()
    if _weight_may_vanish(log_ratio, mass):
        raise ValueError(
            "q has mass where p(x, z) is zero, so all K weights may be zero and none can be chosen: cut q "
            "off there, or give the joint a floor"
        )
    log_u, log_phi = _laplace(log_ratio, mass, float(num_samples))  # (U,), (U,)
    log_terms = log_u + (num_samples - 1) * log_phi  # of phi^(K-1) u d log u, without exp(-u w)
    parts = []
    for block in log_ratio.split(max(1, _BLOCK // len(log_u))):
        exponent = log_terms - torch.exp(block.unsqueeze(-1) + log_u)  # (n, U)
        parts.append(torch.logsumexp(exponent, -1))
    return log_q + log_ratio + torch.cat(parts) + math.log(num_samples * _SPACING)


def _prepare(log_joint: Tensor, log_q: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log p(x)``, ``log w / p(x) (N,)`` and q's mass at each node ``(N,)``."""
    if not log_joint.shape == log_q.shape == weights.shape or log_joint.dim() != 1:
        raise ValueError(
            "log_joint, log_q and weights must have one shape (N,), got "
            f"{tuple(log_joint.shape)}, {tuple(log_q.shape)} and {tuple(weights.shape)}: evaluate both "
            "densities of one x at the nodes of one quadrature"
        )
    mass = weights * log_q.exp()
    total = float(mass.sum())
    if not abs(total - 1.0) < 1e-6:
        raise ValueError(
            f"the nodes hold a mass of {total:.6g} of q, and 1 is needed: widen the range of the quadrature "
            "or take more nodes"
        )
    log_px = torch.logsumexp(log_joint + weights.log(), 0)
    nowhere = log_joint == -math.inf  # also where q vanishes as well
    log_ratio = (log_joint - log_q.masked_fill(nowhere, 0.0)) - log_px
    return log_px, log_ratio, mass / total


def _weight_may_vanish(log_ratio: Tensor, mass: Tensor) -> bool:
    return bool(mass[log_ratio == -math.inf].sum() >= math.exp(-_TAIL))


def _laplace(log_ratio: Tensor, mass: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """A grid ``log_u (U,)`` that serves every K up to ``largest``, and ``log phi`` on it ``(U,)``."""
    # Below the grid K u < exp(-39) for every K; above it phi < exp(-39): w is smaller than 39 / u only on
    # nodes that hold less than that of q's mass.
    order = torch.argsort(log_ratio)
    negligible = mass[order].cumsum(0) < math.exp(-_TAIL)
    smallest = float(log_ratio[order][~negligible][0])
    low, high = -_TAIL - math.log(largest), max(-smallest, 0.0) + math.log(_TAIL)
    count = math.ceil((high - low) / _SPACING) + 1
    steps = torch.arange(count, dtype=log_ratio.dtype, device=log_ratio.device)
    log_u = low + _SPACING * steps
    parts = []
    for block in log_u.split(max(1, _BLOCK // len(log_ratio))):
        exponent = -torch.exp(block.unsqueeze(-1) + log_ratio)  # (u, N): -u w / p(x)
        lost, left = -torch.expm1(exponent) @ mass, torch.exp(exponent) @ mass  # 1 - phi and phi, (u,)
        # each to full relative accuracy where it is the smaller one
        parts.append(torch.where(lost < 0.5, torch.log1p(-lost.clamp(max=0.5)), left.log()))
    return log_u, torch.cat(parts)
