"""The planar flow along w, before and beyond the edge where it stops being a bijection. Ledger F4.

``t = w.z + b`` goes to ``t + push tanh t`` with ``push = w.u``, u parallel to w; z is standard normal. For a
push below -1 the determinant is negative between two folds, and up to three t share one value.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from dgm_course.flows import planar_inverse
from dgm_course.numerics import gauss_legendre

_FAR = 9.0  # standard deviations: nothing of a normal lies beyond


def fold_at(push: float) -> float:
    """The t > 0 where the determinant ``1 + push (1 - tanh(t)^2)`` is zero; 0 for a bijection. Ledger F4."""
    return math.acosh(math.sqrt(-push)) if push < -1.0 else 0.0


def preimages(y: Tensor, push: float) -> Tensor:
    """All t with ``t + push tanh t = y`` for a push below -1, by bisection: ``(...) -> (3, ...)``.

    First the one below ``-fold_at(push)``, then the one between the folds, then the one above; NaN where one
    does not exist. Raises ``ValueError`` for a push of -1 or more, where :func:`planar_inverse` serves.
    """
    if push >= -1.0:
        raise ValueError(f"the map folds for w.u < -1 only, got w.u = {push:g}: use planar_inverse")
    fold = torch.full_like(y, fold_at(push))
    edge = fold + push * torch.tanh(fold)  # the value at the upper fold, negative
    low = torch.stack([torch.minimum(y + push, -fold), -fold, fold])
    high = torch.stack([-fold, fold, torch.maximum(y - push, fold)])
    rising = y.new_tensor([1.0, -1.0, 1.0]).reshape(3, *[1] * y.dim())
    for _ in range(50):
        middle = 0.5 * (low + high)
        above = rising * (middle + push * torch.tanh(middle) - y) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    exists = torch.stack([y <= -edge, y.abs() <= -edge, y >= edge])
    return (0.5 * (low + high)).masked_fill(~exists, math.nan)


def distribution(distance: Tensor, u: Tensor, w: Tensor, push: float, shift: float) -> Tensor:
    """P(w.x / |w| <= distance) for a standard normal z: ``(R,) -> (R,)``.

    For a bijection the probability of what lies below the one preimage, by :func:`planar_inverse`. Of three
    preimages, the part of z that lands below is what is below the first, and from the second to the third.
    """
    steepness = w.norm()
    along = w / steepness
    if push >= -1.0:
        z, _ = planar_inverse(distance.unsqueeze(-1) * along, u, w, shift)
        return torch.special.ndtr((z * along).sum(-1))
    t = preimages(steepness * distance + shift, push)  # (3, R)
    below = torch.special.ndtr((t - shift) / steepness).nan_to_num(0.0)
    return below[0] - below[1] + below[2]


def fold_masses(steepness: float, push: float, shift: float) -> tuple[float, float]:
    """Probabilities that z is the preimage of its x farthest along w, and that its determinant is negative.

    The first is what ``p_0(z) / |det J|`` at that one preimage integrates to over x. (1, 0) for a bijection.
    """
    fold = fold_at(push)
    if fold == 0.0:
        return 1.0, 0.0
    edge = torch.tensor(fold + push * math.tanh(fold), dtype=torch.float64)
    twin = float(preimages(edge, push)[0])  # has the upper fold's image; what lies below it is alone
    farthest = _below((twin - shift) / steepness) + _below((shift - fold) / steepness)
    return farthest, _below((fold - shift) / steepness) - _below((-fold - shift) / steepness)


def _below(value: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * math.erfc(-value / math.sqrt(2.0))


def mean_log_det(steepness: float, push: float, shift: float) -> float:
    """E log|det J|: an integral over w.z / |w|, cut where the logarithm has a pole.

    On each piece the substitution ``v -> 3 v^2 - 2 v^3`` makes the ends harmless for the Gauss nodes.
    """
    v, weights = _unit_rule()
    fold = fold_at(push)
    cuts = [min(max((t - shift) / steepness, -_FAR), _FAR) for t in (-fold, fold)]
    ends = torch.tensor([-_FAR, *cuts, _FAR], dtype=torch.float64)
    width = ends.diff().unsqueeze(-1)  # (3, 1)
    at = ends[:-1, None] + width * (3 * v**2 - 2 * v**3)  # (3, M)
    size = (1.0 + push - push * torch.tanh(steepness * at + shift).square()).abs()
    normal = torch.exp(-0.5 * at.square()) / math.sqrt(2 * math.pi)
    terms = normal * size.clamp_min(torch.finfo(size.dtype).tiny).log() * 6 * v * (1 - v)
    return float((width * weights * terms).sum())


@cache
def _unit_rule() -> tuple[Tensor, Tensor]:
    nodes, weights = gauss_legendre(0.0, 1.0, 300)
    return nodes.squeeze(-1), weights
