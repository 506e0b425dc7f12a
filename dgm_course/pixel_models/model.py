"""A picture's probability as a product over its pixels: PixelCNN or MADE, with any head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgm_course.nets import MaskedMLP, PixelCNN, Stackable, members_of
from dgm_course.pixel_models.heads import Head


class PixelModel(Stackable):
    """``log P(y) = sum_j log P(y_j | earlier pixels)`` of flat pictures ``y (..., C H W)`` of levels.

    ``network`` maps pictures scaled to [-1, 1], ``(..., C H W)``, to the head's numbers for every pixel in
    raster order, ``(..., pixels, outputs)``, those of a pixel depending on earlier ones only. ``by_pixel``
    says what a pixel is: all C channels of a place (PixelCNN), or a single entry (MADE; its head has one
    channel). Build one with :meth:`pixel_cnn` or :meth:`made`. Ledger D3.
    """

    def __init__(self, network: nn.Module, head: Head, image_shape: Sequence[int], *, by_pixel: bool) -> None:
        super().__init__()
        _check_image_shape(image_shape)
        wanted = image_shape[0] if by_pixel else 1
        if head.channels != wanted:
            raise ValueError(
                f"the head must have {wanted} channel(s) for pictures of shape {tuple(image_shape)}"
                f"{'' if by_pixel else ' taken entry by entry'}, got {head.channels}: build it with "
                f"channels={wanted}"
            )
        self.network, self.head, self.image_shape = network, head, tuple(image_shape)
        self.by_pixel = by_pixel
        self.members = members_of(network)

    @classmethod
    def pixel_cnn(
        cls,
        image_shape: Sequence[int],
        head: Head,
        *,
        hidden: int = 32,
        receptive_field: int = 4,
        positions: int = 8,
        generator: torch.Generator | None = None,
    ) -> PixelModel:
        """A PixelCNN whose pixels see all channels of the earlier pixels within ``receptive_field``.

        ``positions`` learned numbers a pixel tell it where it is (0: only the border tells). van den Oord et
        al. 2016, "Conditional image generation with PixelCNN decoders".
        """
        _check_image_shape(image_shape)
        network = _PixelCNNNetwork(image_shape, head.outputs, hidden, receptive_field, positions, generator)
        return cls(network, head, image_shape, by_pixel=True)

    @classmethod
    def made(
        cls,
        image_shape: Sequence[int],
        head: Head,
        *,
        hidden: int | Sequence[int] = 256,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> PixelModel:
        """A masked network over the flat picture, every entry in turn, channel after channel.

        ``members=E`` stacks E models: results start with E. Germain et al. 2015, "MADE".
        """
        _check_image_shape(image_shape)
        num_inputs = torch.Size(image_shape).numel()
        network = MaskedMLP(num_inputs, hidden, head.outputs, members=members, generator=generator)
        return cls(network, head, image_shape, by_pixel=False)

    @property
    def num_dims(self) -> int:
        """Entries of a picture, C H W."""
        return torch.Size(self.image_shape).numel()

    def raw(self, y: Tensor) -> Tensor:
        """The network's numbers for every pixel: ``(..., C H W) -> (..., pixels, outputs)``."""
        if y.shape[-1] != self.num_dims:
            raise ValueError(
                f"y must be flat pictures (..., {self.num_dims}), got shape {tuple(y.shape)}: use "
                "y.flatten(1)"
            )
        dtype = next(self.parameters()).dtype
        raw = self.network(y.to(dtype) * (2.0 / (self.head.num_levels - 1)) - 1.0)
        wanted = (self.num_dims // self.head.channels, self.head.outputs)
        if raw.dim() <= y.dim() or raw.shape[-2:] != wanted:
            raise ValueError(
                f"the network must give (pixels, outputs) = {wanted} for a picture, got {tuple(raw.shape)} "
                f"for {tuple(y.shape)}: set its number of outputs to head.outputs"
            )
        return raw

    def pixel_log_probs(self, y: Tensor) -> Tensor:
        """``log P(y_j | earlier)`` pixel by pixel, in nats: ``(..., C H W) -> (..., pixels)``."""
        raw = self.raw(y)
        return self.head.log_prob(self._pixels(y), raw)

    def log_prob(self, y: Tensor) -> Tensor:
        """``log P(y)`` in nats, one pass of the network: ``(..., C H W) -> (...)``, E in front if stacked.

        Raises ``ValueError`` for a y that is no level or has another size.
        """
        return self.pixel_log_probs(y).sum(-1)

    @torch.no_grad()
    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Pictures ``([E,] num, C H W)``, pixel after pixel: a pass of the network for each.

        Raises ``ValueError`` unless ``num >= 1``.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}: it is the number of pictures")
        stack = () if self.members is None else (self.members,)
        reference = next(self.parameters())
        y = torch.zeros(*stack, num, self.num_dims, dtype=reference.dtype, device=reference.device)
        pixels = self._pixels(y)  # a view: what is written there is in y
        for index in range(pixels.shape[-2]):
            pixels[..., index, :] = self.head.sample(self.raw(y)[..., index, :], generator)
        return y

    def _pixels(self, y: Tensor) -> Tensor:
        """``(..., C H W)`` as ``(..., pixels, channels of the head)``, a view."""
        if not self.by_pixel:
            return y.unsqueeze(-1)
        return y.unflatten(-1, (self.image_shape[0], -1)).mT


class _PixelCNNNetwork(nn.Module):
    """A PixelCNN on flat pictures ``(..., C H W)``, with a learned map of numbers for each place."""

    def __init__(
        self,
        image_shape: Sequence[int],
        outputs: int,
        hidden: int,
        receptive_field: int,
        positions: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = tuple(image_shape)
        self.pixel_cnn = PixelCNN(
            channels, hidden, outputs, receptive_field=receptive_field, context=positions, generator=generator
        )
        device = None if generator is None else generator.device
        start = torch.randn(1, positions, height, width, generator=generator, device=device)
        self.positions = nn.Parameter(start) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C H W) -> (..., H W, outputs)``."""
        pictures = x.reshape(-1, *self.image_shape)  # (N, C, H, W)
        raw = self.pixel_cnn(pictures) if self.positions is None else self.pixel_cnn(pictures, self.positions)
        outputs, height, width = raw.shape[1:]
        return raw.flatten(2).mT.reshape(*x.shape[:-1], height * width, outputs)


def _check_image_shape(image_shape: Sequence[int]) -> None:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"image_shape must be (C, H, W), got {tuple(image_shape)}: one grey channel is (1, H, W)"
        )
