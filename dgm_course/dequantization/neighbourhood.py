"""What a pixel's neighbours say about its noise: features of 3 x 3 neighbourhoods, and their use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgm_course.flows import Transform, soft_clamp
from dgm_course.flows.base import Pair
from dgm_course.nets import MLP, members_of
from dgm_course.numerics import sum_except_batch


class Neighbourhood(nn.Module):
    """A shift and a raw log-scale for every entry of a picture, from its 3 x 3 neighbourhood in all channels.

    ``y (..., C H W)``, scaled to (-1, 1), gives ``(..., 2 C H W)``: all shifts, then all raw log-scales. One
    small network serves all places; it sees the differences to the entry itself, in levels (through asinh,
    so that one level counts at any depth), the entry's own value and its channel. At the border the picture
    is repeated. Starts at zeros. With ``members=E`` as in :mod:`dgm_course.nets`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_levels: int,
        *,
        hidden: int = 32,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3:
            raise ValueError(f"image_shape must be (C, H, W), got {tuple(image_shape)}: add the channels")
        self.image_shape, self.num_levels = tuple(image_shape), num_levels
        channels = self.image_shape[0]
        self.net = MLP([10 * channels + 1, hidden, 2], members=members, generator=generator)
        for parameter in self.net.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def features(self, y: Tensor) -> Tensor:
        """``(..., C H W) -> (..., C H W, 10 C + 1)``."""
        channels, height, width = self.image_shape
        if y.shape[-1] != channels * height * width:
            raise ValueError(
                f"y must be flat pictures of shape {self.image_shape}, got {tuple(y.shape)}: use y.flatten(1)"
            )
        pictures = y.reshape(-1, channels, height, width)
        wide = nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
        around = nn.functional.unfold(wide, 3).unflatten(1, (1, 9 * channels))  # (N, 1, 9 C, H W)
        centre = pictures.flatten(2).unsqueeze(2)  # (N, C, 1, H W)
        steps = torch.asinh(0.5 * self.num_levels * (around - centre))  # (N, C, 9 C, H W)
        which = torch.eye(channels, dtype=y.dtype, device=y.device).unsqueeze(-1)  # (C, C, 1)
        found = torch.cat([steps, centre, which.expand(len(pictures), -1, -1, height * width)], dim=2)
        return found.mT.reshape(*y.shape, found.shape[2])

    def forward(self, y: Tensor) -> Tensor:
        """``(..., C H W) -> (..., 2 C H W)``, with E in front if stacked."""
        found = self.features(y)
        if members_of(self.net) is not None and y.dim() == 2:
            found = found.unsqueeze(0)  # rows that all members share
        return torch.cat(self.net(found).unbind(-1), dim=-1)


class ContextAffine(Transform):
    """``x = shift + exp(s) z``, entry by entry, with shift and raw s given by the context ``(..., 2 m)``."""

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """Scale, then shift."""
        shift, log_scale = self._parameters_of(context)
        x = shift + log_scale.exp() * z
        return x, self._summed(log_scale, x)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """Shift back, then scale back."""
        shift, log_scale = self._parameters_of(context)
        z = (x - shift) * torch.exp(-log_scale)
        return z, -self._summed(log_scale, z)

    def _parameters_of(self, context: Tensor | None) -> Pair:
        if context is None or context.shape[-1] % 2:
            raise ValueError("ContextAffine needs a context (..., 2 m): a shift and a log-scale an entry")
        shift, raw = context.chunk(2, dim=-1)
        return shift, soft_clamp(raw)

    def _summed(self, log_scale: Tensor, like: Tensor) -> Tensor:
        return sum_except_batch(log_scale.expand(like.shape), like.dim() - 1)
