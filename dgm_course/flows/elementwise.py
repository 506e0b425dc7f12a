"""Fixed maps of a flow: permutations of the dimensions, a given scale and shift, the logistic function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from dgm_course.flows.base import Pair, Transform
from dgm_course.numerics import sum_except_batch


class Permutation(Transform):
    """Reorder the dimensions, or an image's channels: ``x_i = z_order[i]``; its log-determinant is 0.

    ``event_dims`` is 1 for vectors ``(..., d)`` and 3 for images ``(..., C, H, W)``. Between two coupling or
    autoregressive layers it lets other dimensions be the ones that are read. Ledger F3, F7.
    Raises ``ValueError`` unless ``order`` holds each of 0, ..., d - 1 once.
    """

    def __init__(self, order: Sequence[int] | Tensor, *, event_dims: int = 1) -> None:
        super().__init__()
        order = torch.as_tensor(order, dtype=torch.long)
        if order.dim() != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(
                f"order must hold each of 0, ..., d - 1 once, got {order.tolist()}: use torch.randperm(d)"
            )
        self.event_dims = event_dims
        self.register_buffer("order", order.clone())
        self.register_buffer("inverse_order", order.argsort())

    @classmethod
    def reverse(cls, num_dims: int, *, event_dims: int = 1) -> Permutation:
        """The permutation that turns the order round."""
        return cls(range(num_dims - 1, -1, -1), event_dims=event_dims)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``x_i = z_order[i]``."""
        return self._reordered(z, self.order)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """Back to the old order."""
        return self._reordered(x, self.inverse_order)

    def _reordered(self, value: Tensor, order: Tensor) -> Pair:
        batch = self.batch_shape_of(value)
        if value.shape[-self.event_dims] != len(order):
            raise ValueError(
                f"this permutation is of {len(order)} dimensions, got shape {tuple(value.shape)}: build it "
                "for the size of the event"
            )
        return value.index_select(value.dim() - self.event_dims, order), value.new_zeros(batch)


class FixedAffine(Transform):
    """``x = shift + scale * z`` with given numbers or tensors of the event's shape, not trained.

    The usual last step towards real data: with ``FixedAffine(mean, sd)`` the flow sees them standardised.
    Raises ``ValueError`` for a scale that is zero or not finite. Ledger F1, D7.
    """

    def __init__(self, shift: Tensor | float, scale: Tensor | float, *, event_dims: int = 1) -> None:
        super().__init__()
        self.event_dims = event_dims
        shift, scale = torch.as_tensor(shift), torch.as_tensor(scale)
        if not bool((scale != 0).all() and scale.isfinite().all() and shift.isfinite().all()):
            raise ValueError(
                "shift and scale must be finite and no scale zero: such a map is not invertible; give "
                "dimensions that are constant in the data the scale 1"
            )
        self.register_buffer("shift", shift.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``shift + scale * z``."""
        return self.shift.to(z.dtype) + self.scale.to(z.dtype) * z, self._log_det(z)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``(x - shift) / scale``."""
        return (x - self.shift.to(x.dtype)) / self.scale.to(x.dtype), -self._log_det(x)

    def _log_det(self, value: Tensor) -> Tensor:
        batch = self.batch_shape_of(value)
        event = value.shape[len(batch) :]
        if torch.broadcast_shapes(self.shift.shape, self.scale.shape, event) != event:
            raise ValueError(
                f"shift {tuple(self.shift.shape)} and scale {tuple(self.scale.shape)} do not fit events of "
                f"shape {tuple(event)}: give numbers, or one value for each entry of an event"
            )
        return self.scale.to(value).abs().log().expand(event).sum().expand(batch).clone()


class Sigmoid(Transform):
    """``x = sigmoid(z)`` in (0, 1), dimension by dimension; log-determinant ``sum log sigmoid'(z)``.

    For data in the unit cube, as dequantization noise is. x stays inside the dtype's open interval:
    ``forward`` never gives 0 or 1, and ``inverse`` takes them for their neighbours. It raises ``ValueError``
    for an x outside [0, 1], where there is no density. Ledger D5.
    """

    codomain = constraints.unit_interval

    def __init__(self, *, event_dims: int = 1) -> None:
        super().__init__()
        self.event_dims = event_dims

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``sigmoid(z)``; ``log sigmoid'(z) = -softplus(z) - softplus(-z)``."""
        self.batch_shape_of(z)
        return _inside(torch.sigmoid(z)), self._log_slope(z)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``log x - log(1 - x)``."""
        self.batch_shape_of(x)
        if bool(((x < 0) | (x > 1)).any()):
            raise ValueError(
                f"a sigmoid's values lie between 0 and 1, got {x.min().item():.4g} to {x.max().item():.4g}: "
                "scale the data first"
            )
        inside = _inside(x)
        z = inside.log() - torch.log1p(-inside)
        return z, -self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        slopes = nn.functional.logsigmoid(z) + nn.functional.logsigmoid(-z)
        return sum_except_batch(slopes, z.dim() - self.event_dims)


def _inside(x: Tensor) -> Tensor:
    """The open interval (0, 1) of this dtype."""
    limits = torch.finfo(x.dtype)
    return x.clamp(limits.tiny, 1.0 - limits.eps / 2)
