"""Radial flow: expansion or contraction around a point, with a log-determinant in O(d)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.flows.base import Pair, Transform
from dgm_course.flows.roots import LOG_E_MINUS_1

Number = Tensor | float


def radial(z: Tensor, z0: Tensor, alpha: Number, beta: Number) -> Pair:
    """``x = z + beta h (z - z0)``, ``h = 1/(alpha + r)``, ``r = |z - z0|``, and its log-determinant in nats,
    ``(d - 1) log(1 + beta h) + log(1 + beta alpha h^2)``.

    Shapes: ``z (..., d)``, ``z0`` broadcasts to it, ``alpha > 0`` and ``beta`` to ``(...)``. A bijection iff
    ``beta >= -alpha``; the log-determinant is finite everywhere iff ``beta > -alpha``; beyond it is nan where
    the map folds. Ledger F4; Rezende & Mohamed 2015.
    """
    return _radial(z, z0, alpha, alpha + beta)


def radial_inverse(x: Tensor, z0: Tensor, alpha: Number, beta: Number) -> Pair:
    """The z with ``radial(z, z0, alpha, beta) = x``, and ``log|det J_f(x)|``. Ledger F4.

    Closed form: with ``y = |x - z0|`` the radius r of z solves ``r^2 + (alpha + beta - y) r = alpha y``.
    Raises ``ValueError`` for ``beta < -alpha``: the map then is not injective.
    """
    alpha, beta = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (alpha, beta))
    if bool((alpha <= 0).any() or (beta < -alpha).any()):
        raise ValueError(
            "a radial flow is a bijection iff alpha > 0 and beta >= -alpha, got "
            f"alpha >= {alpha.min().item():.4g} and beta + alpha >= {(beta + alpha).min().item():.4g}: take "
            "beta = -alpha + softplus(.), as RadialFlow does"
        )
    return _radial_inverse(x, z0, alpha, alpha + beta)


def _radial(z: Tensor, z0: Tensor, alpha: Number, room: Number) -> Pair:
    """With ``room = alpha + beta``, of which no digit is lost: ``1 + beta h = (r + room) / (r + alpha)``."""
    offset = z - z0
    r = torch.linalg.vector_norm(offset, dim=-1)  # (...)
    return z0 + ((r + room) / (r + alpha)).unsqueeze(-1) * offset, _log_det(r, alpha, room, z.shape[-1])


def _radial_inverse(x: Tensor, z0: Tensor, alpha: Tensor, room: Tensor) -> Pair:
    tiny = torch.finfo(x.dtype).tiny
    offset = x - z0
    y = torch.linalg.vector_norm(offset, dim=-1)  # (...)
    q = y - room
    root = torch.hypot(q, 2.0 * torch.sqrt(alpha * y.clamp_min(tiny)))
    safe = torch.where(q > 0, torch.ones_like(q), root - q)  # neither branch divides by zero
    r = torch.where(q > 0, 0.5 * (q + root), 2.0 * alpha * y / safe)
    back = (r + alpha) / (r + room).clamp_min(tiny)  # r + room is zero at z0 itself if beta = -alpha
    return z0 + back.unsqueeze(-1) * offset, -_log_det(r, alpha, room, x.shape[-1])


def _log_det(r: Tensor, alpha: Number, room: Number, num_dims: int) -> Tensor:
    before = torch.log(r + alpha)
    along = torch.log(alpha * room + r * (2.0 * alpha + r)) - 2.0 * before
    return along if num_dims == 1 else (num_dims - 1) * (torch.log(r + room) - before) + along


class RadialFlow(Transform):
    """Radial transform with trained ``z0 (d,)``, ``alpha > 0``, ``beta > -alpha``; always a bijection.

    ``alpha = exp(log_alpha)``, ``beta = -alpha + softplus(raw_beta)``; both directions in closed form. Starts
    as the identity. Ledger F4. Raises ``ValueError`` for ``num_dims`` below 1.
    """

    def __init__(self, num_dims: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if num_dims < 1:
            raise ValueError(f"num_dims must be at least 1, got {num_dims}: pass the size of an event")
        device = None if generator is None else generator.device
        self.z0 = nn.Parameter(torch.randn(num_dims, generator=generator, device=device))
        self.log_alpha = nn.Parameter(torch.zeros((), device=device))
        self.raw_beta = nn.Parameter(torch.full((), LOG_E_MINUS_1, device=device))

    @property
    def alpha(self) -> Tensor:
        """Scale of the neighbourhood, positive."""
        return self.log_alpha.exp()

    @property
    def beta(self) -> Tensor:
        """Strength: positive pushes away from z0, negative (down to -alpha) pulls towards it."""
        return self._room - self.alpha

    @property
    def _room(self) -> Tensor:
        return nn.functional.softplus(self.raw_beta)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``z + beta h (z - z0)``."""
        self.batch_shape_of(z)
        return _radial(z, self.z0, self.alpha, self._room)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """In closed form."""
        self.batch_shape_of(x)
        return _radial_inverse(x, self.z0, self.alpha, self._room)
