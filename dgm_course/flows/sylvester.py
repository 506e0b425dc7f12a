"""Sylvester flow: k planar bumps at once, with a log-determinant in O(k) after Sylvester's identity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.flows.base import Pair, Transform
from dgm_course.flows.roots import log_abs_slope, tanh_root


def sylvester(z: Tensor, q: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> Pair:
    """``x = z + Q R tanh(R~ Q^T z + b)`` and ``sum_i log|1 + R_ii R~_ii tanh'(.)_i|``, in nats.

    Shapes: ``z (..., d)``, ``q (d, k)`` with orthonormal columns, ``r, r_tilde (k, k)`` upper triangular,
    ``b (k,)``: one set for all of the batch. By Sylvester's identity ``det(I_m + V W^T) = det(I_k + W^T V)``
    the determinant is k x k, and of a triangular matrix. A bijection if ``R_ii R~_ii > -1`` for all i. Ledger
    F4; van den Berg et al. 2018.
    """
    bend = torch.tanh(z @ q @ r_tilde.mT + b)  # (..., k)
    return z + bend @ r.mT @ q.mT, _log_det(bend, r, r_tilde)


def sylvester_inverse(x: Tensor, q: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> Pair:
    """The z with ``sylvester(z, ...) = x``, and ``log|det J_f(x)|``. Ledger F4.

    No closed form, but safe: ``s = Q^T z`` solves ``s + R tanh(R~ s + b) = Q^T x``, which is triangular, so
    it is k monotone equations in one dimension, the last first, each by bisection. Raises ``ValueError`` if
    ``R_ii R~_ii < -1``: the map then need not be injective.
    """
    slope = torch.diagonal(r) * torch.diagonal(r_tilde)  # (k,)
    if bool((slope < -1.0).any()):
        raise ValueError(
            f"a Sylvester flow is a bijection if R_ii R~_ii > -1, got {slope.min().item():.4g}: bound the "
            "two diagonals, as SylvesterFlow does by tanh"
        )
    target = x @ q  # (..., k)
    num_steps = target.shape[-1]
    bends: list[Tensor] = []  # of the components k - 1, k - 2, ...
    sources: list[Tensor] = []
    for i in reversed(range(num_steps)):
        y, shift = target[..., i], b[i].expand(target.shape[:-1])
        for offset, (bend, source) in enumerate(zip(bends, sources, strict=True)):
            j = num_steps - 1 - offset
            y = y - r[i, j] * bend
            shift = shift + r_tilde[i, j] * source
        along = tanh_root(r_tilde[i, i] * y, slope[i], shift)  # R~_ii s_i
        bends.append(torch.tanh(along + shift))
        sources.append(y - r[i, i] * bends[-1])
    bend = torch.stack(bends[::-1], dim=-1)  # (..., k)
    return x - bend @ r.mT @ q.mT, -_log_det(bend, r, r_tilde)


def _log_det(bend: Tensor, r: Tensor, r_tilde: Tensor) -> Tensor:
    room = 1.0 + torch.diagonal(r) * torch.diagonal(r_tilde)
    return log_abs_slope(bend, room).sum(-1)


class SylvesterFlow(Transform):
    """Sylvester flow with k trained bumps in an orthonormal frame Q; a bijection by construction.

    Q comes from a QR decomposition of a free ``(d, k)`` matrix, the diagonals of R and R~ from 0.999 tanh, so
    that their products lie inside (-1, 1). ``inverse`` is numeric, see :func:`sylvester_inverse`. Ledger F4.
    Raises ``ValueError`` unless ``1 <= num_bumps <= num_dims``.
    """

    def __init__(self, num_dims: int, num_bumps: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 1 <= num_bumps <= num_dims:
            raise ValueError(
                f"num_bumps must lie between 1 and num_dims = {num_dims}, got {num_bumps}: more columns "
                "cannot be orthonormal"
            )
        device = None if generator is None else generator.device

        def draw(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(shape, generator=generator, device=device))

        self.frame = draw(num_dims, num_bumps, scale=1.0)
        self.r_above = draw(num_bumps, num_bumps, scale=0.1)
        self.r_tilde_above = draw(num_bumps, num_bumps, scale=0.1)
        self.raw_diagonal = draw(num_bumps, scale=0.1)
        self.raw_diagonal_tilde = nn.Parameter(torch.ones(num_bumps, device=device))
        self.b = nn.Parameter(torch.zeros(num_bumps, device=device))

    def factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Q ``(d, k)``, R ``(k, k)``, R~ ``(k, k)`` and b ``(k,)``."""
        q = torch.linalg.qr(self.frame).Q
        r = self.r_above.triu(1) + torch.diag(0.999 * torch.tanh(self.raw_diagonal))
        r_tilde = self.r_tilde_above.triu(1) + torch.diag(0.999 * torch.tanh(self.raw_diagonal_tilde))
        return q, r, r_tilde, self.b

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``z + Q R tanh(R~ Q^T z + b)``."""
        self.batch_shape_of(z)
        return sylvester(z, *self.factors())

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """By k bisections."""
        self.batch_shape_of(x)
        return sylvester_inverse(x, *self.factors())
