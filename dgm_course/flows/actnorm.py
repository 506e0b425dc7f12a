"""Actnorm: a scale and a shift for each channel, set once from data and trained from there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.flows.base import Flow, Pair, Transform


class ActNorm(Transform):
    """``x = exp(log_scale) z + shift``, one pair a dimension ``(d,)`` or a channel ``(C,)`` of an image.

    Log-determinant ``sum log_scale``, times H W for images ``(..., C, H, W)`` (``event_dims=3``). Until
    :func:`initialise` it is the identity. Note the direction: Glow's table writes the map x -> z, whose scale
    is ``exp(-log_scale)``. Ledger F7; Kingma & Dhariwal 2018.
    """

    def __init__(self, num_channels: int, *, event_dims: int = 1) -> None:
        super().__init__()
        self.event_dims = event_dims
        self.shift = nn.Parameter(torch.zeros(num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))
        self.fitting = False  # whether ``inverse`` first fits itself to its input

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``exp(log_scale) z + shift``."""
        shift, log_scale = self._by_channel(z)
        return z * log_scale.exp() + shift, self._log_det(z)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``(x - shift) exp(-log_scale)``."""
        if self.fitting:
            self.fit_to(x)
        shift, log_scale = self._by_channel(x)
        return (x - shift) * torch.exp(-log_scale), -self._log_det(x)

    def fit_to(self, x: Tensor) -> None:
        """Set shift and scale so that ``inverse(x)`` has mean 0 and variance 1 in every channel.

        Mean and variance (with 1/n) run over all batch dimensions and pixels. Raises ``ValueError`` for a
        channel that is constant in ``x``: it has no scale.
        """
        self._by_channel(x)
        others = [dim for dim in range(x.dim()) if dim != x.dim() - self.event_dims]
        variance, mean = torch.var_mean(x.detach(), dim=others, correction=0)
        if not bool((variance > 0).all()):
            constant = (~(variance > 0)).nonzero().flatten().tolist()
            raise ValueError(
                f"actnorm needs channels that vary, but channel(s) {constant} are constant (or not a "
                "number) in the batch: pass a larger batch, or dequantize the data first"
            )
        with torch.no_grad():
            self.shift.copy_(mean)
            self.log_scale.copy_(0.5 * variance.log())
        self.fitting = False

    def _by_channel(self, value: Tensor) -> Pair:
        self.batch_shape_of(value)
        if value.shape[-self.event_dims] != len(self.shift):
            raise ValueError(
                f"this actnorm has {len(self.shift)} channels, got shape {tuple(value.shape)}: the channels "
                f"are dimension {-self.event_dims}"
            )
        ones = (1,) * (self.event_dims - 1)
        return self.shift.reshape(-1, *ones), self.log_scale.reshape(-1, *ones)

    def _log_det(self, value: Tensor) -> Tensor:
        batch = self.batch_shape_of(value)
        pixels = value.shape[len(batch) + 1 :].numel()
        return (pixels * self.log_scale.sum()).expand(batch).clone()


def initialise(transform: Transform | Flow, x: Tensor, context: Tensor | None = None) -> None:
    """Set every :class:`ActNorm` inside ``transform`` from a batch of data, in the order of ``inverse``.

    One pass of ``transform.inverse`` (of a flow: of its transform), in which each actnorm is fitted to what
    reaches it. Call it once, before training, with a batch of some hundred samples. Ledger F7. Raises
    ``ValueError`` if data do not meet some actnorm in its own direction ``inverse`` (it stands inside an
    ``Inverse``).
    """
    bijection = transform if isinstance(transform, Transform) else transform.transform
    norms = [module for module in bijection.modules() if isinstance(module, ActNorm)]
    for norm in norms:
        norm.fitting = True
    try:
        with torch.no_grad():
            bijection.inverse(x, context)
        missed = sum(norm.fitting for norm in norms)
        if missed:
            raise ValueError(
                f"{missed} of {len(norms)} actnorms met no data in the direction x -> z and could not be "
                "fitted: take them out of Inverse(...)"
            )
    finally:
        for norm in norms:
            norm.fitting = False
