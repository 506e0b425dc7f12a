"""Invertible space-to-depth: a picture of half the height and width and four times the channels."""

from __future__ import annotations

from torch import Tensor


def squeeze(x: Tensor) -> Tensor:
    """Move every 2 x 2 window of pixels into channels: ``(..., C, H, W) -> (..., 4 C, H/2, W/2)``.

    Channel ``4 c + 2 i + j`` of the result holds the pixels of channel c in rows ``i, i + 2, ...`` and
    columns ``j, j + 2, ...``. A permutation of the numbers: its log-determinant is 0. Dinh et al. 2017,
    "Density estimation using Real NVP"; Jacobsen et al. 2018, "i-RevNet". Ledger F9, F10. Raises
    ``ValueError`` unless H and W are even.
    """
    if x.dim() < 3 or x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(
            f"squeeze needs pictures (..., C, H, W) of even height and width, got shape {tuple(x.shape)}: "
            "pad or crop them by one pixel"
        )
    *batch, channels, height, width = x.shape
    windows = x.reshape(*batch, channels, height // 2, 2, width // 2, 2)  # (..., C, H/2, i, W/2, j)
    windows = windows.movedim((-3, -1), (-4, -3))  # (..., C, i, j, H/2, W/2)
    return windows.reshape(*batch, 4 * channels, height // 2, width // 2)


def unsqueeze(y: Tensor) -> Tensor:
    """The inverse of :func:`squeeze`: ``(..., 4 C, H, W) -> (..., C, 2 H, 2 W)``.

    Raises ``ValueError`` unless the number of channels is a multiple of 4.
    """
    if y.dim() < 3 or y.shape[-3] % 4:
        raise ValueError(
            f"unsqueeze needs (..., 4 C, H, W), a multiple of four channels, got shape {tuple(y.shape)}: "
            "hand in what squeeze returned"
        )
    *batch, channels, height, width = y.shape
    windows = y.reshape(*batch, channels // 4, 2, 2, height, width)  # (..., C, i, j, H, W)
    windows = windows.movedim((-4, -3), (-3, -1))  # (..., C, H, i, W, j)
    return windows.reshape(*batch, channels // 4, 2 * height, 2 * width)
