"""Samples of the discretized mixture: a component, a logistic value, and the level of its bin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_course.logistic_mixture.checks import check_components, check_num_levels, check_rgb
from dgm_course.logistic_mixture.inputs import in_common_dtype


@torch.no_grad()
def discretized_logistic_mixture_sample(
    logits: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    *,
    num_levels: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A level for each pixel: parameters ``(..., K)`` give ``(...)``, in float32 or a wider dtype of theirs.

    Draws a component, then a logistic value, and rounds it to the nearest level within 0, ..., L - 1: the
    law is exactly that of ``discretized_logistic_mixture_log_prob``. Ledger D3. Raises ``ValueError`` for
    parameters with different K.
    """
    check_num_levels(num_levels)
    check_components(logits, mean, log_scale)
    logits, mean, log_scale = in_common_dtype(logits, mean, log_scale)
    shape = torch.broadcast_shapes(logits.shape, mean.shape, log_scale.shape)
    logits, mean, log_scale = (tensor.expand(shape) for tensor in (logits, mean, log_scale))
    chosen = _component(logits, generator)  # (..., 1)
    return _level(mean.gather(-1, chosen), log_scale.gather(-1, chosen), num_levels, generator).squeeze(-1)


@torch.no_grad()
def rgb_logistic_mixture_sample(
    logits: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    coefficients: Tensor,
    *,
    num_levels: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A colour pixel ``(..., 3)`` for parameters as in ``rgb_logistic_mixture_log_prob``; exactly its law.

    One component for the three channels; each channel's mean follows from the *levels* drawn for the earlier
    ones. Ledger D3. Raises ``ValueError`` for parameters that do not fit.
    """
    check_num_levels(num_levels)
    check_rgb(logits, mean, log_scale, coefficients)
    logits, mean, log_scale, coefficients = in_common_dtype(logits, mean, log_scale, coefficients)
    shapes = (tensor.shape for tensor in (logits.unsqueeze(-2), mean, log_scale, coefficients))
    shape = torch.broadcast_shapes(*shapes)
    lead, num_components = shape[:-2], shape[-1]
    chosen = _component(logits.expand(*lead, num_components), generator)  # (..., 1)
    index = chosen.unsqueeze(-2).expand(*lead, 3, 1)
    mean, log_scale, coefficients = (
        tensor.expand(shape).gather(-1, index).squeeze(-1) for tensor in (mean, log_scale, coefficients)
    )  # (..., 3)
    a, b, d = coefficients.unbind(-1)
    centre = 0.5 * (num_levels - 1)
    scales = log_scale.unbind(-1)
    red = _level(mean[..., 0], scales[0], num_levels, generator)
    green = _level(mean[..., 1] + a * (red - centre), scales[1], num_levels, generator)
    shift = b * (red - centre) + d * (green - centre)
    blue = _level(mean[..., 2] + shift, scales[2], num_levels, generator)
    return torch.stack([red, green, blue], dim=-1)


def uniform_noise(shape: Sequence[int], *, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on the open interval (0, 1), in the dtype of ``like`` (the default dtype for integers).

    ``torch.rand`` gives multiples of eps/2, 0 among them: that one becomes eps/4, as far from 0 as it may be,
    and not the least number of the dtype, of which ``logit`` would make an outlier (-87 in float32, not -17).
    """
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    noise = torch.rand(shape, dtype=dtype, device=like.device, generator=generator)
    limits = torch.finfo(dtype)
    return noise.clamp_(limits.eps / 4, 1.0 - limits.eps / 2)


def _component(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """The index of a component for each pixel: ``(..., K) -> (..., 1)``."""
    flat = torch.softmax(logits, dim=-1).reshape(-1, logits.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).reshape(*logits.shape[:-1], 1)


def _level(mean: Tensor, log_scale: Tensor, num_levels: int, generator: torch.Generator | None) -> Tensor:
    """A logistic value, rounded to a level."""
    value = mean + log_scale.exp() * torch.logit(uniform_noise(mean.shape, like=mean, generator=generator))
    return value.round().clamp(0, num_levels - 1)
