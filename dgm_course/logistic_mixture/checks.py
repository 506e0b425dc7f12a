"""What every function of the discretized mixture asks of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def check_num_levels(num_levels: int) -> None:
    """``ValueError`` unless there are at least two levels."""
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}: a pixel needs two values")


def check_levels(y: Tensor, num_levels: int) -> None:
    """``ValueError`` unless y holds the whole numbers 0, ..., num_levels - 1."""
    check_num_levels(num_levels)
    if y.numel() == 0:
        return
    low, high = float(y.min()), float(y.max())
    whole = not y.is_floating_point() or torch.equal(y, y.round())
    if not (low >= 0 and high <= num_levels - 1 and whole):
        raise ValueError(
            f"y must hold the levels 0, ..., {num_levels - 1}, got values from {low:g} to {high:g}: pass "
            "whole numbers, neither scaled nor with noise added"
        )


def check_constant_levels(y: Tensor, num_levels: int) -> None:
    """As :func:`check_levels`; and ``ValueError`` if y is waiting for a gradient, which it does not get."""
    if y.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "y holds levels, for which there is no gradient, but it requires one: pass y.detach(), or, to "
            "move levels continuously, write the mixture with discretized_logistic_log_prob"
        )
    check_levels(y, num_levels)


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
