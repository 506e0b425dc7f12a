"""i-RevNet, a classifier that is a bijection up to its last projection, and a plain residual network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgm_course.nets import Linear, conv2d, squeeze, unsqueeze
from dgm_course.reversible.block import ReversibleBlock
from dgm_course.reversible.sequence import ReversibleSequence


class IRevNet(nn.Module):
    """A classifier whose features are as many numbers as the picture, and give it back.

    Every stage squeezes (:func:`squeeze`: half the height and width, four times the channels) and applies
    ``blocks[stage]`` reversible blocks to the two halves of the channels; a branch is convolution, SiLU,
    convolution (3 x 3, ``hidden`` channels between). The features are the last stage's entries; the one map
    that loses information is the affine projection from them to the logits.

    ``image_shape = (C, H, W)`` with H and W divisible by ``2 ** len(blocks)``; D = C H W. The blocks'
    activations are recomputed in the backward pass (:class:`ReversibleSequence`). Initial law: torch's own,
    drawn from ``generator``. Raises ``ValueError`` for sizes that do not fit.
    Jacobsen et al. 2018, "i-RevNet: deep invertible networks". Ledger F9.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        blocks: Sequence[int] = (2, 2),
        hidden: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = _checked_shape(image_shape, blocks)
        self.num_features = math.prod(self.image_shape)
        _check_counts(num_classes=num_classes, hidden=hidden)
        channels = self.image_shape[0]
        self.stages = nn.ModuleList()
        for count in blocks:
            half, channels = 2 * channels, 4 * channels
            branches = [_branch(half, hidden, generator) for _ in range(2 * count)]
            pairs = zip(branches[::2], branches[1::2], strict=True)
            self.stages.append(ReversibleSequence(ReversibleBlock(f, g) for f, g in pairs))
        self.projection = Linear(self.num_features, num_classes, generator=generator)

    def features(self, x: Tensor) -> Tensor:
        """The bijection: ``x (B, C, H, W) -> (B, D)`` with D = C H W."""
        _check_pictures(x, self.image_shape)
        for stage in self.stages:
            x = stage(squeeze(x))  # (B, 4 C, H/2, W/2)
        return x.flatten(1)

    def inverse(self, features: Tensor) -> Tensor:
        """The pictures that have these features: ``(B, D) -> (B, C, H, W)``.

        Exact to the rounding of the features times what the inverse map expands, which training increases:
        features of ``x.double()`` are exact enough for any x, whatever the parameters' dtype.
        """
        if features.dim() != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"features must be (B, {self.num_features}), one number for each of the picture's, got "
                f"{tuple(features.shape)}: hand in what features(x) returned"
            )
        channels, height, width = self.image_shape
        scale = 2 ** len(self.stages)
        x = features.unflatten(1, (channels * scale**2, height // scale, width // scale))
        for stage in reversed(self.stages):
            x = unsqueeze(stage.inverse(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits: ``x (B, C, H, W) -> (B, num_classes)``."""
        return self.projection(self.features(x))


class ResidualNet(nn.Module):
    """The plain residual classifier beside it: ``x + F(x)``, resolution halved by averaging, not invertible.

    A 3 x 3 convolution to ``channels``, then in every stage a 2 x 2 average pooling and ``blocks[stage]``
    residual blocks; the branches are i-RevNet's, with ``hidden`` channels between, and the affine projection
    reads the last stage's entries. Same shapes, arguments and errors as :class:`IRevNet`; for 8 x 8 digits
    the defaults give both as many parameters (23 986 and 23 994).
    He et al. 2016, "Deep residual learning for image recognition". Ledger F9.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        *,
        blocks: Sequence[int] = (2, 2),
        channels: int = 16,
        hidden: int = 20,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = _checked_shape(image_shape, blocks)
        _check_counts(num_classes=num_classes, hidden=hidden, channels=channels)
        self.stem = conv2d(self.image_shape[0], channels, 3, generator=generator)
        self.stages = nn.ModuleList(
            nn.ModuleList(_branch(channels, hidden, generator) for _ in range(count)) for count in blocks
        )
        scale = 2 ** len(blocks)
        pixels = (self.image_shape[1] // scale) * (self.image_shape[2] // scale)
        self.projection = Linear(channels * pixels, num_classes, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: ``x (B, C, H, W) -> (B, num_classes)``."""
        _check_pictures(x, self.image_shape)
        x = self.stem(x)  # (B, channels, H, W)
        for stage in self.stages:
            x = nn.functional.avg_pool2d(x, 2)
            for branch in stage:
                x = x + branch(x)
        return self.projection(x.flatten(1))


def _branch(channels: int, hidden: int, generator: torch.Generator | None) -> nn.Sequential:
    """Convolution, SiLU, convolution: ``(B, channels, H, W)`` to the same shape."""
    return nn.Sequential(
        conv2d(channels, hidden, 3, generator=generator),
        nn.SiLU(),
        conv2d(hidden, channels, 3, generator=generator),
    )


def _checked_shape(image_shape: Sequence[int], blocks: Sequence[int]) -> tuple[int, int, int]:
    shape = tuple(image_shape)
    if not blocks or min(blocks) < 1:
        raise ValueError(f"blocks needs one count >= 1 for each stage, got {tuple(blocks)}: use (2, 2)")
    scale = 2 ** len(blocks)
    if len(shape) != 3 or min(shape) < 1 or shape[1] % scale or shape[2] % scale:
        raise ValueError(
            f"image_shape must be (C, H, W), H and W even and halved {len(blocks)} times (divisible by "
            f"{scale}), got {shape}: use fewer stages, or pad the pictures"
        )
    return shape


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}: give a positive integer")


def _check_pictures(x: Tensor, image_shape: tuple[int, int, int]) -> None:
    if x.dim() != 4 or tuple(x.shape[1:]) != image_shape:
        raise ValueError(
            f"the input must be pictures (B, {', '.join(map(str, image_shape))}), got shape "
            f"{tuple(x.shape)}: use x.unflatten(-1, {image_shape}) for flat ones"
        )
