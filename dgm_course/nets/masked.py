"""Masks of autoregressive networks, and two networks made of them: MADE and the digits' window decoder.

Autoregressive means: output j depends on inputs i < j only, so that ``prod_j p(x_j | output_j)`` is a
distribution over x. A *window* limits the past further, which is how a decoder is weakened (Ledger C6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dgm_course.nets.linear import Activation, Linear, LocalLinear, Stackable, add_features

#: one window for all members, or one for each; None is the full past
Window = int | None | Sequence[int | None]


def causal_mask(num_inputs: int, window: int | None = None) -> Tensor:
    """Boolean ``(m, m)``: entry ``[i, j]`` says whether output j may read input i, ``j - window <= i < j``.

    ``window=None`` allows the full past ``i < j``, ``window=0`` nothing. Ledger C6.
    Raises ``ValueError`` for a negative window or no inputs.

    >>> causal_mask(3, 1).int()
    tensor([[0, 1, 0],
            [0, 0, 1],
            [0, 0, 0]], dtype=torch.int32)
    """
    _check_window(num_inputs, window)
    position = torch.arange(num_inputs)
    distance = position - position[:, None]  # (i, j): j - i
    return (distance >= 1) & (distance <= (num_inputs if window is None else window))


def causal_window_mask(side: int, window: int | None = None) -> Tensor:
    """Boolean ``(m, m)``, ``m = side ** 2``: which pixels i the pixel j of a square image may read.

    Those earlier in raster order (row by row) and within Chebyshev distance ``window``: at most that many
    rows up and columns left or right. ``window=None`` allows every earlier pixel, ``window=0`` none.
    Raises ``ValueError`` for a negative window or an empty image. Ledger C6.
    """
    _check_window(side, window)
    position = torch.arange(side * side)
    row, column = position // side, position % side
    distance = torch.maximum((row - row[:, None]).abs(), (column - column[:, None]).abs())
    return causal_mask(side * side) & (distance <= (side if window is None else window))


class MaskedMLP(Stackable):
    """MADE with a receptive field: output j depends on inputs ``j - window <= i < j`` only, and on a context.

    Every hidden unit carries a position j and reads what output j may read. A unit may feed another unit, or
    an output, only if its own window is contained in the other's; with the full window that is the usual
    rule of degrees. The context (z, say) is not masked and enters the first hidden layer.

    Shapes: ``x (..., m)`` and ``context (..., c)`` give ``(..., m, outputs_per_input)``; their batch
    dimensions broadcast. Stacked (``members=E``), inputs are shared or start with E, as in :class:`Linear`,
    and ``window`` may be a sequence of E windows, one for each member.

    Germain et al. 2015, "MADE". Ledger C6, F6. Raises ``ValueError`` if a hidden layer has fewer units than
    there are inputs: some output would then lose part of its past.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: int | Sequence[int],
        outputs_per_input: int = 1,
        *,
        window: Window = None,
        context: int = 0,
        members: int | None = None,
        activation: Activation = nn.functional.silu,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(members)
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        if not widths or min(widths) < num_inputs:
            raise ValueError(
                f"every hidden layer needs at least num_inputs={num_inputs} units, got hidden={hidden}: "
                "widen it, so that each output has a unit that reads its whole window"
            )
        self.activation = activation
        self.num_inputs = num_inputs
        self.outputs_per_input = outputs_per_input
        reads = _stack_masks(lambda w: causal_mask(num_inputs, w), window, members)  # ([E,] m, m)
        feeds = _contains(reads)  # ([E,] m, m): a unit at j may feed one at k
        outputs = torch.arange(num_inputs).repeat_interleave(outputs_per_input)
        positions = [torch.arange(width) % num_inputs for width in widths]
        self.input = Linear(
            num_inputs, widths[0], members=members, mask=reads[..., positions[0]], generator=generator
        )
        self.context = (
            Linear(context, widths[0], members=members, bias=False, generator=generator) if context else None
        )
        self.layers = nn.ModuleList(
            Linear(len(a), len(b), members=members, mask=feeds[..., a, :][..., b], generator=generator)
            for a, b in zip(positions, [*positions[1:], outputs], strict=True)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Outputs ``(..., m, outputs_per_input)``; ``ValueError`` if a context is missing or not wanted."""
        h = self.input(x)  # (..., H)
        if (context is None) != (self.context is None):
            built = "without context" if self.context is None else f"with context={self.context.in_features}"
            raise ValueError(f"this network was built {built}: call it with (x) or (x, context) to match")
        if self.context is not None:
            h = add_features(h, self.context(context), self.members)  # (..., H)
        for layer in self.layers:
            h = layer(self.activation(h))
        return h.unflatten(-1, (self.num_inputs, self.outputs_per_input))


class WindowDecoderNet(Stackable):
    """Logits of every pixel from the earlier pixels in a window and from z: a PixelVAE decoder in small.

    ``logits_j = w_j . silu(A_j x_window(j) + [B silu(C z)]_j)``: pixel j has ``features`` hidden units, which
    read the window of :func:`causal_window_mask` (one masked dense product) and a two-layer function of z
    with ``latent_hidden`` units. A narrow ``latent_hidden`` is a weak path from z: that is what lets the
    posterior collapse when the window is full.

    Shapes: ``x (..., side^2)`` and ``z (..., latent_dim)`` give ``(..., side^2, outputs_per_pixel)``; stacked
    (``members=E``) as in :class:`MaskedMLP`, ``window`` may then be a sequence of E windows.

    Gulrajani et al. 2017, "PixelVAE"; Chen et al. 2017, "Variational lossy autoencoder". Ledger C6.
    """

    def __init__(
        self,
        side: int,
        latent_dim: int,
        *,
        window: Window = None,
        features: int = 8,
        latent_hidden: int = 32,
        outputs_per_pixel: int = 1,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(members)
        self.num_inputs = side * side
        self.features = features
        width = self.num_inputs * features
        reads = _stack_masks(lambda w: causal_window_mask(side, w), window, members)  # ([E,] m, m)
        reads = reads.repeat_interleave(features, dim=-1)  # ([E,] m, m * features)
        self.pixels = Linear(self.num_inputs, width, members=members, mask=reads, generator=generator)
        self.latent_in = Linear(latent_dim, latent_hidden, members=members, generator=generator)
        self.latent_out = Linear(latent_hidden, width, members=members, generator=generator)
        self.readout = LocalLinear(
            self.num_inputs, features, outputs_per_pixel, members=members, generator=generator
        )

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits ``(..., side^2, outputs_per_pixel)`` of every pixel given the earlier ones and z."""
        from_z = self.latent_out(nn.functional.silu(self.latent_in(z)))  # (..., m * features)
        h = nn.functional.silu(add_features(self.pixels(x), from_z, self.members))
        return self.readout(h.unflatten(-1, (self.num_inputs, self.features)))


def _check_window(size: int, window: int | None) -> None:
    if size < 1 or (window is not None and window < 0):
        raise ValueError(
            f"a causal mask needs at least one input and a window >= 0, got {size} and {window}: "
            "use window=None for the full past and 0 for none"
        )


def _stack_masks(make: Callable[[int | None], Tensor], window: Window, members: int | None) -> Tensor:
    """One mask (m, m), or one a member (E, m, m) if ``window`` is a sequence."""
    if window is None or isinstance(window, int):
        return make(window)
    if members is None or len(window) != members:
        raise ValueError(
            f"a sequence of windows needs one for each member, got {len(window)} windows and "
            f"members={members}: pass members=len(window)"
        )
    return torch.stack([make(one) for one in window])


def _contains(reads: Tensor) -> Tensor:
    """``[..., j, k]``: everything that output j may read, output k may read too."""
    missing = reads.float().mT @ (~reads).float()  # (..., j, k): what j reads and k does not
    return missing == 0
