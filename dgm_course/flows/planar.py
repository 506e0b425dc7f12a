"""Planar flow: a bump along one direction, with a log-determinant in O(d)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.flows.base import Pair, Transform
from dgm_course.flows.roots import LOG_E_MINUS_1, log_abs_slope, tanh_root

Number = Tensor | float


def planar(z: Tensor, u: Tensor, w: Tensor, b: Number) -> Pair:
    """``x = z + u tanh(w.z + b)`` and ``log|1 + u.psi(z)|``, ``psi(z) = tanh'(w.z + b) w``, in nats.

    Shapes: ``z (..., d)``, ``u`` and ``w`` broadcast to it, ``b`` to ``(...)``. A bijection iff
    ``w.u >= -1``; the log-determinant is finite everywhere iff ``w.u > -1`` (:func:`constrained_u` sees to
    it). Here u is taken as it is given. Ledger F4; Rezende & Mohamed 2015.
    """
    return _planar(z, u, w, b, 1.0 + (w * u).sum(-1))


def planar_inverse(x: Tensor, u: Tensor, w: Tensor, b: Number) -> Pair:
    """The z with ``planar(z, u, w, b) = x``, and ``log|det J_f(x)|``: ``(..., d)``, ``(...)``.

    No closed form: ``a = w.z`` is the root of a monotone equation in one dimension, found by bisection, which
    is safe for every ``w.u >= -1``. Raises ``ValueError`` beyond: the map then is not injective. Ledger F4.
    """
    products = w * u
    room = 1.0 + products.sum(-1)
    rounding = 8 * torch.finfo(room.dtype).eps * (1.0 + products.abs().sum(-1))
    if bool((room < -rounding).any()):
        raise ValueError(
            f"a planar flow is a bijection iff w.u >= -1, got w.u = {room.min().item() - 1.0:.4g}: pass "
            "constrained_u(u, w) for u"
        )
    return _planar_inverse(x, u, w, b, room.clamp_min(0.0))


def constrained_u(u: Tensor, w: Tensor) -> Tensor:
    """u moved along w so that ``w.u = -1 + softplus(w.u + log(e - 1)) > -1``; zero stays zero.

    Shapes ``(..., d)``. Ledger F4; Rezende & Mohamed 2015, appendix A.1 (there without the shift).
    """
    return _constrained(u, w)[0]


def _constrained(u: Tensor, w: Tensor) -> Pair:
    """The constrained u, and its ``1 + w.u``: known exactly, where adding up products would round it off."""
    along = (w * u).sum(-1, keepdim=True)
    room = nn.functional.softplus(along + LOG_E_MINUS_1)
    square = w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    return u + (room - 1.0 - along) * w / square, room.squeeze(-1)


def _planar(z: Tensor, u: Tensor, w: Tensor, b: Number, room: Tensor) -> Pair:
    bend = torch.tanh((w * z).sum(-1) + b)  # (...)
    return z + u * bend.unsqueeze(-1), log_abs_slope(bend, room)


def _planar_inverse(x: Tensor, u: Tensor, w: Tensor, b: Number, room: Tensor) -> Pair:
    b = torch.as_tensor(b, dtype=x.dtype, device=x.device)
    along = tanh_root((w * x).sum(-1), room - 1.0, b)  # (...): w.z
    bend = torch.tanh(along + b)
    return x - u * bend.unsqueeze(-1), -log_abs_slope(bend, room)


class PlanarFlow(Transform):
    """Planar transform with trained ``u, w (d,)`` and ``b ()``; a bijection by construction. Ledger F4.

    ``forward`` is :func:`planar` with :func:`constrained_u`; ``inverse`` is numeric, see
    :func:`planar_inverse`. Initially close to the identity. Raises ``ValueError`` for ``num_dims`` below 1.
    """

    def __init__(self, num_dims: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if num_dims < 1:
            raise ValueError(f"num_dims must be at least 1, got {num_dims}: pass the size of an event")
        device = None if generator is None else generator.device
        noise = torch.randn(2, num_dims, generator=generator, device=device)
        self.u = nn.Parameter(0.1 * noise[0])
        self.w = nn.Parameter(noise[1] / num_dims**0.5)
        self.b = nn.Parameter(torch.zeros((), device=device))

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``z + u tanh(w.z + b)``."""
        self.batch_shape_of(z)
        u, room = _constrained(self.u, self.w)
        return _planar(z, u, self.w, self.b, room)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """By bisection along w."""
        self.batch_shape_of(x)
        u, room = _constrained(self.u, self.w)
        return _planar_inverse(x, u, self.w, self.b, room)
