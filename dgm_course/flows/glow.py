"""Glow: squeeze, steps of flow, split; a normalizing flow for images of any even size and channel count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_course.flows.actnorm import ActNorm
from dgm_course.flows.base import Compose, Flow, Pair, Transform
from dgm_course.flows.conv1x1 import InvertibleConv1x1
from dgm_course.flows.coupling import AffineCoupling
from dgm_course.flows.masks import channel_mask
from dgm_course.nets import ConvNet, squeeze, unsqueeze


class Squeezed(Transform):
    """A transform of ``(4C, H/2, W/2)`` images applied to ``(C, H, W)`` images.

    Both ends are images of the full size: 2 x 2 blocks of pixels become channels, the transform acts, and
    channels become blocks again. The log-determinant is the transform's. A context ``(..., c, H, W)`` is
    squeezed along. Raises ``ValueError`` for an odd height or width. Ledger F10.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.event_dims = 3

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """Squeeze, ``transform.forward``, unsqueeze."""
        context = None if context is None else squeeze(context)
        x, log_det = self.transform(squeeze(z), context)
        return unsqueeze(x), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """Squeeze, ``transform.inverse``, unsqueeze."""
        context = None if context is None else squeeze(context)
        z, log_det = self.transform.inverse(squeeze(x), context)
        return unsqueeze(z), log_det


class OnFirstChannels(Transform):
    """A transform of the first ``num_channels`` channels of an image; the other channels stay as they are.

    This is Glow's *split*: channels that are left alone from here on are latents of this scale. Ledger F10.
    """

    def __init__(self, transform: Transform, num_channels: int) -> None:
        super().__init__()
        self.transform, self.num_channels = transform, num_channels
        self.event_dims = 3

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``transform.forward`` on the first channels."""
        first, log_det = self.transform(z[..., : self.num_channels, :, :], context)
        return torch.cat([first, z[..., self.num_channels :, :, :]], dim=-3), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``transform.inverse`` on the first channels."""
        first, log_det = self.transform.inverse(x[..., : self.num_channels, :, :], context)
        return torch.cat([first, x[..., self.num_channels :, :, :]], dim=-3), log_det


def glow_transform(
    image_shape: Sequence[int],
    *,
    num_scales: int | None = None,
    steps_per_scale: int = 8,
    hidden: int = 48,
    lu: bool = True,
    context_channels: int = 0,
    generator: torch.Generator | None = None,
) -> Transform:
    """The multi-scale bijection of Glow between images ``(C, H, W)`` and latents of the same shape.

    Each scale squeezes, takes ``steps_per_scale`` steps (from data to latents: actnorm, invertible 1x1
    convolution, affine coupling with a small convolutional network), and splits: the second half of the
    channels becomes Gaussian with mean and scale predicted from the first half, which goes on to the next
    scale. The last scale does not split. Before training call ``initialise(transform, batch)``.

    ``image_shape``: any C, and H and W divisible by ``2 ** num_scales``; by default two scales, or one where
    only that divides. With ``context_channels`` the couplings read a context ``(..., c, H, W)`` as well.
    Ledger F7, F10; Kingma & Dhariwal 2018. Raises ``ValueError`` for another shape.
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (C, H, W), got {tuple(image_shape)}: add the channels")
    channels, height, width = image_shape
    if num_scales is None:
        num_scales = 1 if height % 4 or width % 4 else 2
    if num_scales < 1 or height % 2**num_scales or width % 2**num_scales:
        raise ValueError(
            f"num_scales must be at least 1 and 2^num_scales divide height and width, got {num_scales} for "
            f"{height} x {width}: use fewer scales, or pad the images"
        )
    squeezed, context = 4 * channels, 4 * context_channels

    def coupling(first: bool) -> AffineCoupling:
        mask = channel_mask(squeezed, first=first)
        kept = int(mask.sum())
        net = ConvNet(kept + context, hidden, 2 * (squeezed - kept), last_scale=0.0, generator=generator)
        return AffineCoupling(mask, net)

    parts: list[Transform] = []
    if num_scales > 1:
        half = squeezed // 2
        rest = glow_transform(
            (half, height // 2, width // 2), num_scales=num_scales - 1, steps_per_scale=steps_per_scale,
            hidden=hidden, lu=lu, context_channels=context, generator=generator,
        )  # fmt: skip
        parts += [OnFirstChannels(rest, half), coupling(first=True)]
    for step in range(steps_per_scale):
        parts += [
            coupling(first=step % 2 == 0),
            InvertibleConv1x1(squeezed, lu=lu, generator=generator),
            ActNorm(squeezed, event_dims=3),
        ]
    return Squeezed(Compose(parts))


class Glow(Flow):
    """Glow as a distribution of images ``(C, H, W)`` over a standard normal: ``log_prob``, ``sample``.

    Arguments as :func:`glow_transform`, and ``pixels``: a transform that is applied last when sampling, such
    as a ``FixedAffine`` to the scale of the pixels. ``encode`` and ``decode`` go between images and latents.
    Ledger F7, F10; Kingma & Dhariwal 2018, "Glow".
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        num_scales: int | None = None,
        steps_per_scale: int = 8,
        hidden: int = 48,
        lu: bool = True,
        context_channels: int = 0,
        pixels: Transform | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        body = glow_transform(
            image_shape, num_scales=num_scales, steps_per_scale=steps_per_scale, hidden=hidden, lu=lu,
            context_channels=context_channels, generator=generator,
        )  # fmt: skip
        super().__init__(body if pixels is None else Compose([body, pixels]), tuple(image_shape))

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents of images: ``(..., C, H, W)``, standard normal if the model is right."""
        return self.transform.inverse(x, context)[0]

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Images of latents: ``(..., C, H, W)``."""
        return self.transform(z, context)[0]
