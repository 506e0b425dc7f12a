"""Which part of an event a coupling layer leaves alone: masks for vectors and images. True passes through."""

from __future__ import annotations

import torch
from torch import Tensor


def half_mask(num_dims: int, *, first: bool = True) -> Tensor:
    """Boolean ``(d,)``: the first ``(d + 1) // 2`` dimensions, with ``first=False`` the others. Ledger F3."""
    _need_two(num_dims)
    mask = torch.arange(num_dims) < (num_dims + 1) // 2
    return mask if first else ~mask


def alternating_mask(num_dims: int, *, first: bool = True) -> Tensor:
    """Boolean ``(d,)``: every other dimension, beginning with the first, or with the second. Ledger F3."""
    _need_two(num_dims)
    mask = torch.arange(num_dims) % 2 == 0
    return mask if first else ~mask


def channel_mask(num_channels: int, *, first: bool = True) -> Tensor:
    """Boolean ``(C, 1, 1)``: the first ``(C + 1) // 2`` channels of an image, or the others. Ledger F3."""
    return half_mask(num_channels, first=first)[:, None, None]


def checkerboard_mask(height: int, width: int, *, first: bool = True) -> Tensor:
    """Boolean ``(1, H, W)``: pixels with even row + column, or the others. Ledger F3; Dinh et al. 2017."""
    _need_two(height * width)
    mask = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0
    return (mask if first else ~mask).unsqueeze(0)


def _need_two(size: int) -> None:
    if size < 2:
        raise ValueError(
            f"a coupling layer needs at least two entries, one to read and one to change, got {size}: "
            "squeeze an image first, or use another transform"
        )
