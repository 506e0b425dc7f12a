"""What the functions of levels ask of their arguments: here, in pixel models and in dequantization."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.logistic_mixture.inputs import out_of_inference_mode


def check_num_levels(num_levels: int) -> None:
    """``ValueError`` unless there are at least two levels."""
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}: a pixel needs two values")


def check_levels(y: Tensor, num_levels: int) -> None:
    """``ValueError`` unless y holds the whole numbers 0, ..., num_levels - 1."""
    check_num_levels(num_levels)
    if y.numel() == 0:
        return
    if not (_is_whole(y) and float(y.min()) >= 0 and float(y.max()) <= num_levels - 1):
        raise _refusal(y, f"the levels 0, ..., {num_levels - 1}")


def check_whole(y: Tensor) -> None:
    """``ValueError`` unless y holds whole numbers, of whatever sign and size."""
    if y.numel() and not (_is_whole(y) and bool(y.isfinite().all())):
        raise _refusal(y, "levels")


def _is_whole(y: Tensor) -> bool:
    return not y.is_floating_point() or torch.equal(y, y.round())


def _refusal(y: Tensor, wanted: str) -> ValueError:
    return ValueError(
        f"y must hold {wanted}, got values from {float(y.min()):g} to {float(y.max()):g}: pass whole "
        "numbers, neither scaled nor with noise added"
    )


def as_constant_levels(y: Tensor, num_levels: int) -> Tensor:
    """y, which autograd may keep; ``ValueError`` if it waits for a gradient, which it does not get.

    Else as :func:`check_levels`.
    """
    if y.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "y holds levels, for which there is no gradient, but it requires one: pass y.detach(), or, to "
            "move levels continuously, write a mixture with discretized_logistic_log_prob"
        )
    check_levels(y, num_levels)
    return out_of_inference_mode(y)


def check_colour(y: Tensor) -> None:
    """``ValueError`` unless y is ``(..., 3)``."""
    if y.dim() == 0 or y.shape[-1] != 3:
        raise ValueError(
            f"y must hold three channels in its last dimension, got {tuple(y.shape)}: for one channel use "
            "the function without rgb, and move the channels of pictures (B, 3, H, W) last"
        )


def check_device(y: Tensor, *parameters: Tensor) -> None:
    """``ValueError`` unless all are on y's device."""
    others = {str(tensor.device) for tensor in parameters} - {str(y.device)}
    if others:
        names = ", ".join(sorted(others))
        raise ValueError(f"y is on {y.device}, parameters are on {names}: move one to the other's device")


def check_components(logits: Tensor, mean: Tensor, log_scale: Tensor) -> None:
    """``ValueError`` unless the last dimension of all three is the same K >= 1."""
    sizes = {tensor.shape[-1] if tensor.dim() else 0 for tensor in (logits, mean, log_scale)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "logits, mean and log_scale need the same number K >= 1 of components in their last dimension, "
            f"got the shapes {tuple(logits.shape)}, {tuple(mean.shape)} and {tuple(log_scale.shape)}"
        )


def check_rgb(logits: Tensor, mean: Tensor, log_scale: Tensor, coefficients: Tensor) -> None:
    """``ValueError`` unless the others are ``(..., 3, K)`` beside logits ``(..., K)``."""
    check_components(logits, mean, log_scale)
    wanted = (3, logits.shape[-1])
    shapes = [tuple(tensor.shape[-2:]) for tensor in (mean, log_scale, coefficients)]
    if any(shape != wanted for shape in shapes):
        raise ValueError(
            f"mean, log_scale and coefficients must end in (3, K) = {wanted} for a colour pixel, got "
            f"{shapes}: for one channel use discretized_logistic_mixture_log_prob"
        )
