"""Noise within the bins: what a dequantizer is, and the uniform one."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from dgm_course.nets import Stackable


class Dequantizer(Stackable, abc.ABC):
    """A distribution q(u|y) of noise in the open unit cube, given the levels y. Ledger D4, D5.

    ``rsample(y, n)`` inserts a dimension of n samples before the data's: ``y (..., B, m)`` gives
    ``u (..., n, B, m)`` and ``log_q (..., n, B)`` in nats. ``members`` is the number E of stacked
    distributions, or None; a stack gives ``u (E, n, B, m)`` for shared ``y (B, m)`` or ``y (E, B, m)``, and
    :func:`dgm_course.nets.member` takes one out of it.
    """

    @abc.abstractmethod
    def rsample(
        self, y: Tensor, num_samples: int = 1, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reparametrised noise and its log-density: ``u (..., n, B, m)``, ``log q(u|y) (..., n, B)``."""

    @abc.abstractmethod
    def log_prob(self, u: Tensor, y: Tensor) -> Tensor:
        """``log q(u|y)`` in nats: ``u (..., n, B, m)``, ``y (..., B, m)`` give ``(..., n, B)``."""


class UniformDequantizer(Dequantizer):
    """q(u|y) = 1 on the unit cube, whatever y is: log q = 0. Ledger D4; Theis et al. 2016.

    With ``members=E`` it gives each of E stacked densities noise of its own for shared data.
    """

    def rsample(
        self, y: Tensor, num_samples: int = 1, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Uniform noise and zeros. Raises ``ValueError`` without data or samples."""
        u = uniform_noise(sample_shape(y, num_samples, self.members), like=y, generator=generator)
        return u, u.new_zeros(u.shape[:-1])

    def log_prob(self, u: Tensor, y: Tensor) -> Tensor:
        """Zeros, for u inside the unit cube; ``ValueError`` for another u."""
        check_inside(u)
        if self.members is not None and u.dim() == 3:
            u = u.expand(self.members, *u.shape)
        return u.new_zeros(torch.broadcast_shapes(u.shape, y.unsqueeze(-3).shape)[:-1])


def sample_shape(y: Tensor, num_samples: int, members: int | None = None) -> tuple[int, ...]:
    """``(..., n, B, m)`` for ``y (..., B, m)``, with E in front where a stack shares the data.

    Raises ``ValueError`` unless y has a batch dimension and ``num_samples >= 1``, and for another E.
    """
    if y.dim() < 2:
        raise ValueError(
            f"y must be (..., B, m), got shape {tuple(y.shape)}: use y.unsqueeze(0) for one sample"
        )
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: it is the K of the bound")
    *lead, rows, entries = y.shape
    if members is not None and not lead:
        lead = [members]
    if members is not None and lead != [members]:
        raise ValueError(
            f"a stack of {members} takes y (B, m), shared, or ({members}, B, m), got {tuple(y.shape)}"
        )
    return (*lead, num_samples, rows, entries)


def uniform_noise(
    shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform on the open interval (0, 1), in the dtype of ``like`` (the default dtype for integers).

    ``torch.rand`` gives multiples of eps/2, 0 among them: that one becomes eps/4, as far from 0 as it may be,
    and not the least number of the dtype, of which ``logit`` would make an outlier (-87 in float32, not -17).
    """
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    noise = torch.rand(shape, dtype=dtype, device=like.device, generator=generator)
    limits = torch.finfo(dtype)
    return noise.clamp_(limits.eps / 4, 1.0 - limits.eps / 2)


def check_inside(u: Tensor) -> None:
    """``ValueError`` unless u lies strictly inside the unit cube."""
    if u.numel() and not bool(((u > 0) & (u < 1)).all()):
        raise ValueError(
            f"noise within a bin lies strictly between 0 and 1, got {float(u.min()):.4g} to "
            f"{float(u.max()):.4g}: subtract the level, u = x - y"
        )


def check_levels(y: Tensor, num_levels: int) -> None:
    """``ValueError`` unless y holds whole numbers within 0, ..., num_levels - 1."""
    if not y.numel():
        return
    low, high = float(y.min()), float(y.max())
    if not (low >= 0 and high <= num_levels - 1) or (y.is_floating_point() and not torch.equal(y, y.round())):
        raise ValueError(
            f"y must hold the levels 0, ..., {num_levels - 1}, got values from {low:.4g} to {high:.4g}: pass "
            "whole numbers, neither scaled nor with noise added"
        )
