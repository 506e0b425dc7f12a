"""Arguments of a mixture: refused with a reason, or brought to one shape, (E, m, d) points of (E, n, d)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


class Mixture(NamedTuple):
    """E mixtures (one without a stack) and their points, in one dtype."""

    x: Tensor  # (E, m, d)
    means: Tensor  # (E, n, d)
    log_vars: Tensor  # (E, n, d)
    log_w: Tensor  # (E, n)


def as_mixture(x: Tensor, means: Tensor, log_vars: Tensor | float, log_weights: Tensor | None) -> Mixture:
    """The arguments of :func:`dgm_course.mixtures.mixture_log_prob`, checked; ``ValueError`` if they are off.

    The default of ``log_weights`` is ``-log n``. Different floating dtypes are promoted, as in arithmetic.
    """
    log_vars, log_w = as_components(means, log_vars, log_weights)
    _check_points(x, means)
    values = x, means, log_vars, log_w
    dtype = functools.reduce(torch.promote_types, (v.dtype for v in values))
    if dtype not in FLOATS:
        raise ValueError(f"x and the mixture must be float32 or float64, got {dtype}: convert them first")
    x, means, log_vars, log_w = (v.to(dtype) for v in values)
    if means.dim() == 3:
        return Mixture(x.reshape(len(x), x.shape[1:-1].numel(), x.shape[-1]), means, log_vars, log_w)
    x = x.reshape(1, x.shape[:-1].numel(), x.shape[-1])
    return Mixture(x, means.unsqueeze(0), log_vars.unsqueeze(0), log_w.unsqueeze(0))


def as_components(
    means: Tensor, log_vars: Tensor | float, log_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``log_vars`` in the shape of ``means``, log-weights ``([E,] n)``; ``ValueError`` if they do not fit."""
    if not means.is_floating_point():
        raise ValueError(f"means must be floating-point numbers, got {means.dtype}: convert them first")
    if means.dim() not in (2, 3) or 0 in means.shape[-2:]:
        raise ValueError(
            f"means must be (n, d), or (E, n, d) for a stack, with n and d at least 1, got "
            f"{tuple(means.shape)}: one row for each component"
        )
    log_vars = _as_log_vars(log_vars, means)
    shape = means.shape[:-1]
    if log_weights is None:
        return log_vars, means.new_full(shape, -math.log(shape[-1]))
    if log_weights.shape not in (shape, shape[-1:]):
        raise ValueError(
            f"log_weights must hold one number for each component, shape {tuple(shape)} for means "
            f"{tuple(means.shape)}, got {tuple(log_weights.shape)}: reshape them"
        )
    return log_vars, log_weights.expand(shape)


def as_exclude(exclude: Tensor, x: Tensor, num_components: int) -> Tensor:
    """One component or -1 for each point, int64; ``ValueError`` if shape, dtype or range are off."""
    if exclude.shape != x.shape[:-1]:
        raise ValueError(
            f"exclude must hold one index for each point, shape {tuple(x.shape[:-1])}, got "
            f"{tuple(exclude.shape)}: expand it to the batch shape of x"
        )
    if exclude.is_floating_point() or exclude.is_complex() or exclude.dtype == torch.bool:
        raise ValueError(f"exclude must hold integers, got {exclude.dtype}: give components' indices, or -1")
    if exclude.numel():
        low, high = (bound.item() for bound in exclude.aminmax())
        if low < -1 or high >= num_components:
            raise ValueError(
                f"exclude must lie between -1 (nothing is left out) and n - 1 = {num_components - 1}, got "
                f"values from {low} to {high}: give indices of components"
            )
    return exclude.long()


def _as_log_vars(log_vars: Tensor | float, means: Tensor) -> Tensor:
    """Expanded to the shape of ``means``; ``ValueError`` if they do not broadcast to it."""
    if not isinstance(log_vars, Tensor):
        log_vars = torch.as_tensor(log_vars, dtype=means.dtype, device=means.device)
    try:
        return log_vars.expand(means.shape)
    except RuntimeError:
        raise ValueError(
            f"log_vars must broadcast to means {tuple(means.shape)}, got {tuple(log_vars.shape)}: give a "
            "number, or one for each dimension, or one for each component and dimension"
        ) from None


def _check_points(x: Tensor, means: Tensor) -> None:
    stack = len(means) if means.dim() == 3 else None
    least = 1 if stack is None else 2
    if x.dim() < least or x.shape[-1] != means.shape[-1] or (stack is not None and len(x) != stack):
        wanted = f"(..., {means.shape[-1]})" if stack is None else f"({stack}, ..., {means.shape[-1]})"
        raise ValueError(
            f"x must be {wanted} for means {tuple(means.shape)}, got {tuple(x.shape)}: the last dimension "
            "holds one point" + ("" if stack is None else ", the first the members of the stack")
        )
