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
#: ``exp(-y)`` is 1 - y to full accuracy where log y is below the first, and 0 where it is above the second.
_LINEAR, _GONE = -38.0, 6.7
#: pairs (node, u) evaluated at once
_BLOCK = 2**19


def exact_iwae_bound(
    log_joint: Tensor, log_q: Tensor, weights: Tensor, num_samples: int | Sequence[int] | Tensor
) -> Tensor:
    """L_K in nats for each K in ``num_samples``, without Monte Carlo error. Ledger I2, I3.

    ``L_K - log p(x) = int (exp(-K u) - phi(u)^K) d log u``. Shapes: ``log_joint = log p(x, z)`` and
    ``log_q = log q(z|x)`` at the nodes ``(N,)``, quadrature ``weights (N,)``, result in the shape of
    ``num_samples``. The nodes have to cover both q and the posterior. In float64 about ten digits of L_K
    (hand in a joint with log p(x) = 0 to have them of the gap), as far as the quadrature over z has them;
    ``-inf`` where q has mass but the joint has none. Differentiable in both densities. Milliseconds, unless
    the log-weights range over thousands of nats. Raises ``ValueError`` if shapes differ, a K is below 1 or
    infinite, or the nodes miss mass of q or of the joint.
    """
    log_px, log_ratio, mass = _prepare(log_joint, log_q, weights)
    counts = torch.as_tensor(num_samples, dtype=log_joint.dtype, device=log_joint.device)
    if not counts.numel() or not bool(((counts >= 1) & (counts < math.inf)).all()):
        raise ValueError(
            f"num_samples must be at least 1 and finite, got {num_samples}: it is the K of the bound"
        )
    if _weight_may_vanish(log_ratio, mass):
        return torch.full_like(counts, -math.inf)  # with a positive probability all K weights are zero
    low, high = -_TAIL - math.log(float(counts.max())), _highest(log_ratio, mass)
    log_u, log_phi = _laplace(log_ratio, mass, low, high)  # (U,), (U,)
    k = counts.unsqueeze(-1)  # (..., 1)
    integrand = torch.exp(-k * log_u.exp()) - torch.exp(k * log_phi)  # (..., U)
    return log_px + _SPACING * integrand.sum(-1)


def implicit_posterior_log_prob(
    log_joint: Tensor, log_q: Tensor, weights: Tensor, num_samples: int
) -> Tensor:
    """Log-density of the expected importance-weighted posterior q_EW at the nodes: ``(N,)``. Ledger I4.

    Draw ``z_1, ..., z_K ~ q`` and keep one of them, chosen by its normalised weight: its law is

    ``q_EW(z) = E_{z_2..z_K} [ p(x, z) / (1/K (w(z) + sum_{k>=2} w_k)) ]``,

    q itself at K = 1, the posterior as K grows; ``L_K <= ELBO(q_EW) <= log p(x)``. Exact:
    ``q_EW = K q w/p(x) int_0^inf exp(-u w/p(x)) phi(u)^(K-1) du``. Shapes as in :func:`exact_iwae_bound`.
    Cremer, Morris and Duvenaud 2017, "Reinterpreting importance-weighted autoencoders". No gradient flows
    through it. Raises ``ValueError`` as :func:`exact_iwae_bound` does, and where q has mass but the joint has
    none.
    """
    log_px, log_ratio, mass = _prepare(log_joint.detach(), log_q.detach(), weights)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: it is the K of the bound")
    if num_samples == 1:
        return log_q.detach().clone()
    if _weight_may_vanish(log_ratio, mass):
        raise ValueError(
            "q has mass where p(x, z) is zero, so all K weights may be zero and none can be chosen: cut q "
            "off there, or give the joint a floor"
        )
    seen = torch.isfinite(log_ratio.detach())  # the integral sits near u = 1 / w, or lower
    largest = max(float(log_ratio.detach()[seen].max()), math.log(num_samples))
    log_u, log_phi = _laplace(log_ratio, mass, -_TAIL - largest, _highest(log_ratio, mass))  # (U,), (U,)
    log_terms = log_u + (num_samples - 1) * log_phi  # of phi^(K-1) u d log u, without exp(-u w)
    parts = []
    for block in log_ratio.split(max(1, _BLOCK // len(log_u))):
        exponent = log_terms - torch.exp(block.unsqueeze(-1) + log_u)  # (n, U)
        parts.append(torch.logsumexp(exponent, -1))
    log_density = log_joint.detach() - log_px + torch.cat(parts) + math.log(num_samples * _SPACING)
    return log_density.masked_fill(log_q == -math.inf, -math.inf)


def importance_weighted_log_prob(log_joint: Tensor, log_q: Tensor, other_log_w: Tensor) -> Tensor:
    """Logarithm of the importance-weighted posterior q_IW(z | z_2..z_K), which is not normalised. Ledger I4.

    ``p(x, z) / (1/K (w(z) + sum_{k>=2} w_k))`` with ``w = p(x, z) / q(z|x)``: q itself where K = 1. Its mean
    over ``z_2..z_K ~ q`` is q_EW, a density (:func:`implicit_posterior_log_prob`), and the mean of its ELBO
    is L_K. Shapes: ``log_joint`` and ``log_q`` at z ``(...)``, ``other_log_w (K - 1, ...)`` of the other
    samples, broadcast together; the result is ``(...)``. Cremer et al. 2017. Raises ``ValueError`` if
    ``other_log_w`` has no dimension for the samples.
    """
    if other_log_w.dim() == 0:
        raise ValueError(
            "other_log_w must be (K - 1, ...), got a single number: give the samples a dimension of their "
            "own, as other_log_w[None]"
        )
    log_w = log_joint - log_q
    log_total = torch.logaddexp(log_w, torch.logsumexp(other_log_w, 0))
    return log_joint - log_total + math.log(len(other_log_w) + 1)


def _prepare(log_joint: Tensor, log_q: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log p(x)``, ``log w / p(x) (N,)`` and q's mass at each node ``(N,)``."""
    if not log_joint.shape == log_q.shape == weights.shape or log_joint.dim() != 1:
        raise ValueError(
            "log_joint, log_q and weights must have one shape (N,), got "
            f"{tuple(log_joint.shape)}, {tuple(log_q.shape)} and {tuple(weights.shape)}: evaluate both "
            "densities of one x at the nodes of one quadrature"
        )
    mass = weights * log_q.exp()
    total = mass.sum()
    if not abs(float(total.detach()) - 1.0) < 1e-6:
        raise ValueError(
            f"the nodes hold a mass of {float(total.detach()):.9g} of q, and 1 is needed: widen the range of "
            "the quadrature or take more nodes"
        )
    log_px = torch.logsumexp(log_joint + weights.log(), 0)
    if not bool(log_px.isfinite()):
        raise ValueError(
            f"log p(x) comes out as {float(log_px.detach())}: log_joint must be a number, or -inf, at every "
            "node, and finite at some"
        )
    nowhere = log_joint == -math.inf  # also where q vanishes as well
    log_ratio = (log_joint - log_q.masked_fill(nowhere, 0.0)) - log_px
    return log_px, log_ratio, mass / total


def _weight_may_vanish(log_ratio: Tensor, mass: Tensor) -> bool:
    return bool(mass[log_ratio == -math.inf].sum() >= math.exp(-_TAIL))


def _highest(log_ratio: Tensor, mass: Tensor) -> float:
    """A log u above which phi < exp(-39): w is smaller than 39 / u only where q has less mass than that."""
    order = torch.argsort(log_ratio.detach())
    negligible = mass.detach()[order].cumsum(0) < math.exp(-_TAIL)
    smallest = float(log_ratio.detach()[order][~negligible][0])
    return max(-smallest, 0.0) + math.log(_TAIL)


def _laplace(log_ratio: Tensor, mass: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """A grid ``log_u (U,)`` from ``low`` to ``high``, and ``log phi`` on it ``(U,)``.

    For each block of u only the nodes near ``u w = 1`` are evaluated; smaller weights are added up in the
    linear approximation, larger ones are gone.
    """
    order = torch.argsort(log_ratio.detach())
    log_ratio, mass = log_ratio[order], mass[order]  # ascending
    zero = mass.new_zeros(1)
    below = torch.cat([zero, mass.cumsum(0)])  # (N + 1,) q's mass of the n smallest weights
    above = torch.cat([zero, mass.flip(0).cumsum(0)]).flip(0)  # (N + 1,) and of all others
    first = torch.cat([zero, (mass * log_ratio.exp()).nan_to_num(0.0).cumsum(0)])  # and their part of p(x)
    count = math.ceil((high - low) / _SPACING) + 1
    steps = torch.arange(count, dtype=log_ratio.dtype, device=log_ratio.device)
    log_u = low + _SPACING * steps
    edges = log_ratio.detach()
    parts = []
    for block in log_u.split(max(1, min(32, _BLOCK // len(log_ratio)))):
        start = int(torch.searchsorted(edges, _LINEAR - block[-1]))
        stop = int(torch.searchsorted(edges, _GONE - block[0]))
        exponent = -torch.exp(block.unsqueeze(-1) + log_ratio[start:stop])  # (u, n): -u w / p(x)
        linear = torch.zeros_like(block)  # (u,) what the small weights lose
        if first[start] > 0:
            linear = torch.exp(block + first[start].log())
        lost = linear - torch.expm1(exponent) @ mass[start:stop] + above[stop]  # 1 - phi
        left = below[start] - linear + torch.exp(exponent) @ mass[start:stop]  # phi
        # each to full relative accuracy where it is the smaller one
        parts.append(torch.where(lost < 0.5, torch.log1p(-lost.clamp(max=0.5)), left.clamp(min=0.0).log()))
    return log_u, torch.cat(parts)
