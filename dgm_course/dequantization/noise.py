"""Noise within the bins: what a dequantizer is, and the uniform one."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from dgm_course.logistic_mixture.checks import check_whole
from dgm_course.logistic_mixture.sampling import uniform_noise
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
        """Uniform noise and zeros. Raises ``ValueError`` as :func:`sample_shape` does."""
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

    Raises ``ValueError`` unless y has a batch dimension and holds whole numbers (negative ones too) and
    ``num_samples >= 1``, and for another E.
    """
    if y.dim() < 2:
        raise ValueError(
            f"y must be (..., B, m), got shape {tuple(y.shape)}: use y.unsqueeze(0) for one sample"
        )
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: it is the K of the bound")
    check_whole(y)
    *lead, rows, entries = y.shape
    if members is not None and not lead:
        lead = [members]
    if members is not None and lead != [members]:
        raise ValueError(
            f"a stack of {members} takes y (B, m), shared, or ({members}, B, m), got {tuple(y.shape)}"
        )
    return (*lead, num_samples, rows, entries)


def check_inside(u: Tensor) -> None:
    """``ValueError`` unless u lies strictly inside the unit cube."""
    if u.numel() and not bool(((u > 0) & (u < 1)).all()):
        raise ValueError(
            f"noise within a bin lies strictly between 0 and 1, got {float(u.min()):.4g} to "
            f"{float(u.max()):.4g}: subtract the level, u = x - y"
        )
