"""Coupling layers: one part of the event decides how the other is moved. NICE adds, RealNVP also scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgm_course.flows.base import Pair, Transform
from dgm_course.numerics import sum_except_batch


def soft_clamp(raw: Tensor, limit: float = 3.0) -> Tensor:
    """``limit * tanh(raw / limit)``: the identity near 0, never beyond +-limit. Keeps log-scales tame."""
    return limit * torch.tanh(raw / limit)


class _Coupling(Transform):
    """What both coupling layers share: the two parts of an event, and the call of the conditioner.

    Where the mask does not depend on the pixel (a vector's ``(d,)``, an image's ``(C, 1, 1)``) the parts are
    cut out along the channels. Otherwise (a checkerboard) both parts have the event's shape, with zeros in
    place of the other part's entries.
    """

    def __init__(self, mask: Tensor, conditioner: nn.Module) -> None:
        super().__init__()
        mask = torch.as_tensor(mask, dtype=torch.bool)
        if mask.dim() not in (1, 3) or bool(mask.all()) or not bool(mask.any()):
            raise ValueError(
                "a coupling mask has the shape (d,), (C, 1, 1) or (1 or C, H, W), with True where the event "
                f"passes through and False elsewhere, both at least once; got shape {tuple(mask.shape)}, "
                f"{int(mask.sum())} of {mask.numel()} True: see dgm_course.flows.masks"
            )
        self.event_dims = mask.dim()
        self.by_channel = mask.dim() == 1 or mask.shape[1:] == (1, 1)
        self.register_buffer("mask", mask.clone())
        if self.by_channel:
            self.register_buffer("kept", mask.flatten().nonzero().flatten())
            self.register_buffer("moved", (~mask).flatten().nonzero().flatten())
            self.register_buffer("order", torch.cat([self.kept, self.moved]).argsort())
        self.conditioner = conditioner

    def _parts(
        self, value: Tensor, context: Tensor | None, num_outputs: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The part to move, the conditioner's outputs (``num_outputs`` for each entry), the kept part."""
        axis = -self.event_dims
        self.batch_shape_of(value)
        fits = all(m in (1, v) for m, v in zip(self.mask.shape, value.shape[axis:], strict=True))
        if not fits or (self.by_channel and value.shape[axis] != self.mask.shape[0]):
            raise ValueError(
                f"the mask of shape {tuple(self.mask.shape)} does not fit events of shape "
                f"{tuple(value.shape[axis:])}: build the layer for the size of the event"
            )
        if self.by_channel:
            moved, kept = value.index_select(axis, self.moved), value.index_select(axis, self.kept)
        else:
            moved, kept = value * ~self.mask, value * self.mask
        given = kept
        if context is not None:
            batch = torch.broadcast_shapes(kept.shape[:axis], context.shape[:axis])
            event = context.shape[axis:-2] + kept.shape[-2:] if self.event_dims == 3 else context.shape[axis:]
            parts = kept.expand(*batch, *kept.shape[axis:]), context.expand(*batch, *event)
            given = torch.cat(parts, dim=axis)
        out = self.conditioner(given)
        wanted = num_outputs * moved.shape[axis]
        if out.shape[axis:] != (wanted, *moved.shape[moved.dim() + axis + 1 :]):
            raise ValueError(
                f"the conditioner must return {num_outputs} number(s) for each of the {moved.shape[axis]} "
                f"channels that are moved, {wanted} in all, got shape {tuple(out.shape)} for the input "
                f"{tuple(given.shape)}: change its last layer"
            )
        return moved, out, kept

    def _joined(self, moved: Tensor, kept: Tensor) -> Tensor:
        if not self.by_channel:
            return kept + moved * ~self.mask
        axis = -self.event_dims
        kept = kept.expand(*moved.shape[:axis], *kept.shape[axis:])  # where stacked networks add one
        return torch.cat([kept, moved], dim=axis).index_select(axis, self.order)


class AdditiveCoupling(_Coupling):
    """NICE: ``x_a = z_a``, ``x_b = z_b + t(z_a)``; one network pass either way, log-determinant 0.

    ``mask`` marks part a (see :mod:`dgm_course.flows.masks`). ``conditioner`` maps part a, with the context
    behind it along the channels if there is one, to one number for each entry of part b: ``(..., |a|)`` to
    ``(..., |b|)`` for vectors, ``(..., |a|, H, W)`` to ``(..., |b|, H, W)`` for channels of images; for a
    checkerboard, ``(..., C, H, W)`` with zeros in part b to ``(..., C, H, W)``.

    Ledger F3; Dinh et al. 2015, "NICE". Raises ``ValueError`` for a mask or a conditioner that do not fit.
    """

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """Add the shift."""
        moved, shift, kept = self._parts(z, context, 1)
        x = self._joined(moved + shift, kept)
        return x, x.new_zeros(self.batch_shape_of(x))

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """Subtract it."""
        moved, shift, kept = self._parts(x, context, 1)
        z = self._joined(moved - shift, kept)
        return z, z.new_zeros(self.batch_shape_of(z))


class AffineCoupling(_Coupling):
    """RealNVP: ``x_a = z_a``, ``x_b = exp(s(z_a)) z_b + t(z_a)``; one network pass either way.

    ``log|det J_g| = sum s``, whose Jacobian is block triangular. ``mask`` marks part a; ``conditioner`` maps
    part a as in :class:`AdditiveCoupling` to *two* numbers for each entry of part b, first all shifts t, then
    all raw log-scales: ``(..., 2 |b|)`` or ``(..., 2 |b|, H, W)`` (checkerboard: ``(..., 2 C, H, W)``).
    ``log_scale`` turns raw into s; by default :func:`soft_clamp`, so that ``|s| < 3``.

    A coupling layer is an autoregressive flow with two blocks. Ledger F3; Dinh et al. 2017. Raises
    ``ValueError`` for a mask or a conditioner that do not fit.
    """

    def __init__(
        self,
        mask: Tensor,
        conditioner: nn.Module,
        *,
        log_scale: Callable[[Tensor], Tensor] = soft_clamp,
    ) -> None:
        super().__init__(mask, conditioner)
        self.log_scale = log_scale

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """Scale, then shift."""
        moved, shift, log_scale, kept = self._moves(z, context)
        x = self._joined(moved * log_scale.exp() + shift, kept)
        return x, self._summed(log_scale)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """Shift back, then scale back."""
        moved, shift, log_scale, kept = self._moves(x, context)
        z = self._joined((moved - shift) * torch.exp(-log_scale), kept)
        return z, -self._summed(log_scale)

    def _moves(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        moved, out, kept = self._parts(value, context, 2)
        shift, raw = out.chunk(2, dim=-self.event_dims)
        log_scale = self.log_scale(raw)
        return moved, shift, log_scale if self.by_channel else log_scale * ~self.mask, kept

    def _summed(self, log_scale: Tensor) -> Tensor:
        return sum_except_batch(log_scale, log_scale.dim() - self.event_dims)
