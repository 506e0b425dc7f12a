"""Convolutions: a small plain network; masked ones, and a PixelCNN of a chosen radius, no blind spot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: which pixels of the kernel are kept: see :class:`MaskedConv2d`
_ORDERS = ("raster", "rows")


class ConvNet(nn.Module):
    """Three convolutions, 3 x 3, 1 x 1 and 3 x 3, with an activation between: an image's conditioner.

    Shapes: ``(..., in, H, W) -> (..., out, H, W)`` for any batch dimensions. The last layer starts with
    ``last_scale`` times PyTorch's usual law: 0 makes the network's first output zero. Ledger F10; the network
    of Glow's coupling layers (Kingma & Dhariwal 2018), narrower.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        last_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = ((in_channels, hidden, 3), (hidden, hidden, 1), (hidden, out_channels, 3))
        self.layers = nn.ModuleList(conv2d(*size, generator=generator) for size in sizes)
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.mul_(last_scale)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in, H, W) -> (..., out, H, W)``."""
        h = x.flatten(0, -4) if x.dim() > 4 else x
        for layer in self.layers[:-1]:
            h = nn.functional.silu(layer(h))
        h = self.layers[-1](h)
        return h.unflatten(0, x.shape[:-3]) if x.dim() > 4 else h


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    generator: torch.Generator | None = None,
) -> nn.Conv2d:
    """A ``torch.nn.Conv2d`` that keeps the picture's size (over ``stride``), drawn from ``generator``.

    Weights and bias follow PyTorch's own law, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """
    device = torch.get_default_device() if generator is None else generator.device
    layer = nn.utils.skip_init(
        nn.Conv2d, in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2,
        device=device, dtype=torch.get_default_dtype(),
    )  # fmt: skip
    bound = (in_channels * kernel_size**2) ** -0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


class MaskedConv2d(nn.Module):
    """Convolution that sees only the past of each pixel; the picture keeps its size.

    ``mask_type="A"`` leaves the pixel itself out (first layer), ``"B"`` lets it in (later layers).
    ``order="raster"`` is the usual mask: rows above, and what is left in the same row.
    ``order="rows"`` makes rows the unit of time: type A sees only rows above, type B its whole own row too;
    stacked, such layers see a full rectangle above the pixel and so have no blind spot.

    Shapes: ``(B, in, H, W) -> (B, out, H, W)``. ``kernel_size`` is odd, or an odd ``(height, width)``.
    Raises ``ValueError`` for another mask type, order or an even kernel.
    van den Oord et al. 2016, "Pixel recurrent neural networks".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        mask_type: str,
        order: str = "raster",
        generator: torch.Generator | None = None,
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if mask_type not in ("A", "B") or order not in _ORDERS or height % 2 == 0 or width % 2 == 0:
            raise ValueError(
                "MaskedConv2d needs mask_type 'A' or 'B', order 'raster' or 'rows' and an odd kernel, got "
                f"mask_type={mask_type!r}, order={order!r}, kernel_size={kernel_size}"
            )
        super().__init__()
        device = None if generator is None else generator.device
        bound = (in_channels * height * width) ** -0.5  # PyTorch's own law: U(-bound, bound)
        weight = torch.empty(out_channels, in_channels, height, width, device=device)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound, generator=generator))
        bias = torch.empty(out_channels, device=device)
        self.bias = nn.Parameter(bias.uniform_(-bound, bound, generator=generator))
        mask = torch.zeros(height, width, device=device)
        mask[: height // 2] = 1.0  # the rows above
        if order == "raster":
            mask[height // 2, : width // 2 + (mask_type == "B")] = 1.0
        elif mask_type == "B":
            mask[height // 2] = 1.0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W) -> (B, out, H, W)``."""
        padding = (self.mask.shape[0] // 2, self.mask.shape[1] // 2)
        return nn.functional.conv2d(x, self.weight * self.mask, self.bias, padding=padding)


class PixelCNN(nn.Module):
    """Autoregressive network over pixels that reads exactly the earlier pixels within ``receptive_field``.

    Two stacks of ``receptive_field`` layers: the *vertical* one (3 x 3, whole rows) sees the rectangle above
    a pixel, the *horizontal* one (1 x 3) what is left of it in its row and, at every layer, the vertical
    stack; each layer adds one pixel of radius, so that the receptive field is the window of
    ``causal_window_mask(side, receptive_field)``, without a blind spot. Channels are not ordered: use it for
    one channel, or predict all channels of a pixel at once.

    Shapes: ``x (B, in, H, W) -> (B, out, H, W)``; ``context (B, context)``, one vector a picture, is
    broadcast over the pixels, ``(B, context, H, W)`` is a map. All pixels share one law of their neighbours:
    a position is known through the border alone. Raises ``ValueError`` for a radius below 1.
    van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders". Ledger C6.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        receptive_field: int,
        context: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if receptive_field < 1:
            raise ValueError(
                f"receptive_field must be at least 1, got {receptive_field}: for a decoder without pixels "
                "use WindowDecoderNet(window=0) or an MLP"
            )
        self.context_size = context
        self.vertical, self.horizontal = nn.ModuleList(), nn.ModuleList()
        self.down, self.conditions = nn.ModuleList(), nn.ModuleList()
        pixelwise = {"kernel_size": 1, "mask_type": "B", "generator": generator}
        for depth in range(receptive_field):
            kind, channels = ("A", in_channels) if depth == 0 else ("B", hidden)
            masked = {"mask_type": kind, "generator": generator}
            self.vertical.append(MaskedConv2d(channels, hidden, 3, order="rows", **masked))
            self.horizontal.append(MaskedConv2d(channels, hidden, (1, 3), **masked))
            self.down.append(MaskedConv2d(hidden, hidden, **pixelwise))
            if context:
                self.conditions.append(MaskedConv2d(context, 2 * hidden, **pixelwise))
        self.readout = MaskedConv2d(hidden, out_channels, **pixelwise)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``(B, in, H, W) -> (B, out, H, W)``; ``ValueError`` if a context is missing or not wanted."""
        if (context is None) != (self.context_size == 0):
            raise ValueError(
                f"this PixelCNN was built with context={self.context_size}: call it with "
                f"{'(x)' if self.context_size == 0 else '(x, context)'}"
            )
        if context is not None and context.dim() == 2:
            context = context[:, :, None, None]  # (B, c, 1, 1)
        above, left = x, x
        for depth, (vertical, horizontal, down) in enumerate(
            zip(self.vertical, self.horizontal, self.down, strict=True)
        ):
            above_in, left_in = vertical(above), horizontal(left)  # (B, hidden, H, W)
            if context is not None:
                to_above, to_left = self.conditions[depth](context).chunk(2, dim=1)
                above_in, left_in = above_in + to_above, left_in + to_left
            above = nn.functional.silu(above_in)
            left = nn.functional.silu(left_in + down(above))
        return self.readout(left)


class PixelCNNAdapter(nn.Module):
    """A one-channel :class:`PixelCNN` as an ``AutoregressiveDecoder``'s net: flat pictures, any batch shape.

    Shapes: ``x (..., side^2)`` in raster order and ``z (..., d)``, whose batch dimensions broadcast, give
    logits ``(..., side^2, outputs)``; z is the PixelCNN's context, broadcast over the pixels.
    """

    def __init__(self, pixel_cnn: PixelCNN, side: int) -> None:
        super().__init__()
        self.pixel_cnn = pixel_cnn
        self.side = side
        self.num_inputs = side * side

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits ``(..., side^2, outputs)`` of every pixel given the earlier ones and z."""
        if x.shape[-1] != self.num_inputs:
            raise ValueError(
                f"x must be flat pictures of {self.side} x {self.side} = {self.num_inputs} pixels, got shape "
                f"{tuple(x.shape)}: use x.flatten(-2)"
            )
        batch = torch.broadcast_shapes(x.shape[:-1], z.shape[:-1])
        pictures = x.expand(*batch, -1).reshape(-1, 1, self.side, self.side)  # (N, 1, H, W)
        context = z.expand(*batch, -1).reshape(-1, z.shape[-1])  # (N, d)
        logits = self.pixel_cnn(pictures, context)  # (N, outputs, H, W)
        return logits.flatten(2).mT.reshape(*batch, self.num_inputs, -1)
