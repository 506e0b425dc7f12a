"""Invertible 1x1 convolution: one c x c matrix applied at every pixel, dense or by its LU factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.flows.base import Pair, Transform


class InvertibleConv1x1(Transform):
    """``z = W x`` at every pixel (f is the product, g the solve), log-determinant ``h w log|det W|`` of f.

    ``lu=True`` holds ``W = P L (U + diag(s))``: P a fixed permutation, L unit lower, U strictly upper
    triangular, ``s = sign * exp(log_s)`` with fixed signs. Then ``log|det W| = sum log_s`` costs O(c), W is
    invertible by construction, and g takes two triangular solves. ``lu=False`` holds W itself: its
    determinant costs O(c^3), and nothing but probability zero keeps it invertible (g raises torch's
    ``LinAlgError`` on a singular W). Either starts as the same random rotation for the same generator; it
    need not stay one.

    Shapes ``(..., C, H, W)``, or with ``event_dims=1`` vectors ``(..., d)``. Ledger F7; Kingma & Dhariwal
    2018, "Glow".
    """

    def __init__(
        self,
        num_channels: int,
        *,
        lu: bool = True,
        event_dims: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.event_dims, self.lu = event_dims, lu
        device = None if generator is None else generator.device
        noise = torch.randn(num_channels, num_channels, generator=generator, device=device)
        rotation = torch.linalg.qr(noise).Q
        if not lu:
            self.dense = nn.Parameter(rotation)
            return
        permutation, lower, upper = torch.linalg.lu(rotation)
        s = torch.diagonal(upper)
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", s.sign())
        self.log_s = nn.Parameter(s.abs().log())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))

    @property
    def weight(self) -> Tensor:
        """W ``(c, c)``, built from its factors if there are any."""
        if not self.lu:
            return self.dense
        lower, upper = self._triangles()
        return self.permutation @ lower @ upper

    @property
    def log_abs_det_weight(self) -> Tensor:
        """``log|det W|``, a scalar in nats: O(c) from the factors, O(c^3) without."""
        return self.log_s.sum() if self.lu else torch.linalg.slogdet(self.dense).logabsdet

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``W^-1 z`` at every pixel."""
        columns = self._columns(z)  # (c, N)
        if self.lu:
            lower, upper = self._triangles()
            half = torch.linalg.solve_triangular(lower, self.permutation.mT @ columns, upper=False)
            x = torch.linalg.solve_triangular(upper, half, upper=True)
        else:
            x = torch.linalg.solve(self.dense, columns)
        return self._placed(x, z), -self._log_det(z)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``W x`` at every pixel."""
        return self._placed(self.weight @ self._columns(x), x), self._log_det(x)

    def _triangles(self) -> Pair:
        one = torch.eye(len(self.log_s), dtype=self.log_s.dtype, device=self.log_s.device)
        return self.lower.tril(-1) + one, self.upper.triu(1) + torch.diag(self.sign * self.log_s.exp())

    def _columns(self, value: Tensor) -> Tensor:
        self.batch_shape_of(value)
        channels = len(self.log_s if self.lu else self.dense)
        if value.shape[-self.event_dims] != channels:
            raise ValueError(
                f"this 1x1 convolution has {channels} channels, got shape {tuple(value.shape)}: the channels "
                f"are dimension {-self.event_dims}"
            )
        return value.movedim(-self.event_dims, 0).reshape(channels, -1)

    def _placed(self, columns: Tensor, like: Tensor) -> Tensor:
        shape = like.movedim(-self.event_dims, 0).shape
        return columns.reshape(shape).movedim(0, -self.event_dims).contiguous()

    def _log_det(self, value: Tensor) -> Tensor:
        batch = self.batch_shape_of(value)
        pixels = value.shape[len(batch) + 1 :].numel()
        return (pixels * self.log_abs_det_weight).expand(batch).clone()
