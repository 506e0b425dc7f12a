"""The exponents of all pairs as one matrix product, by expanding the square, and backward's sums of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_course.gaussian import LOG_2PI
from dgm_course.mixtures.blocks import Block, Tiling

LOG2_E, LN_2 = 1.0 / math.log(2.0), math.log(2.0)
Needs = tuple[bool, bool, bool, bool]  # gradients for x, means, log_vars, log_weights
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def centred(x: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Both minus the average of the means, which no difference of theirs notices."""
    origin = means.mean(-2, keepdim=True)
    return x - origin, means - origin


def largest_magnitude(x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor) -> float:
    """A bound on the sum of the magnitudes of the terms that make up one exponent, over all pairs.

    ``sum (z^2 + mu^2) / var + |log w - 1/2 sum (log var + log 2 pi)|``, about: the rounding error of an
    exponent is this times the unit roundoff, times a small number. Shapes as in :class:`Products`.
    """
    x, means = centred(x, means)
    precision, squares = torch.exp(-log_vars), x.square()  # (E, n, d), (E, m, d)
    widest = (precision * squares.amax(-2, keepdim=True)).sum(-1).max()
    narrowest = (squares * precision.amax(-2, keepdim=True)).sum(-1).max()
    of_means = (precision * means.square()).sum(-1).max()
    level = (log_w - 0.5 * (log_vars + LOG_2PI).sum(-1)).abs()
    level = torch.where(log_w == -math.inf, 0.0, level).max()
    return (torch.minimum(widest, narrowest) + of_means + level).item()


class Products:
    """E mixtures in which ``log2(w_j N_j(z_i))`` is ``rows[:, i] . columns[:, j]``.

    Shapes: ``x (E, m, d)``, ``means`` and ``log_vars (E, n, d)``, ``log_w (E, n)``. A row is ``[z^2, z, 1,
    -level]`` and a column ``[-1/(2 var), mu / var, bias, log 2] / log 2``, features first: columns are
    ``(E, 2 d + 2, n)``, and of the rows only those of one strip exist. That way around the products of the
    backward pass are fastest too. Computed in ``dtype``.
    """

    def __init__(
        self, x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor, tiling: Tiling, dtype: torch.dtype
    ) -> None:
        self.inputs, self.dtype, self.dim = (x, means, log_vars), dtype, x.shape[-1]
        self.origin = means.to(dtype).mean(-2, keepdim=True)  # (E, 1, d)
        self.scratch = tiling.scratch(x, dtype)
        self.needs: Needs | None = None  # None: this is a forward pass
        means, precision = self._components()
        d, columns = self.dim, x.new_empty(len(x), 2 * self.dim + 2, means.shape[1], dtype=dtype)
        torch.mul(precision.mT, -0.5, out=columns[:, :d])
        torch.mul(precision.mT, means.mT, out=columns[:, d : 2 * d])
        bias = (log_vars.to(dtype) + LOG_2PI).sum(-1) + precision.mul_(means.square_()).sum(-1)
        columns[:, -2] = log_w.to(dtype) - 0.5 * bias
        columns[:, -1] = LN_2
        self.columns = columns.mul_(LOG2_E)

    def _components(self) -> tuple[Tensor, Tensor]:
        """Centred means and precisions, both ``(E, n, d)``."""
        _, means, log_vars = self.inputs
        return means.to(self.dtype) - self.origin, torch.exp(-log_vars.to(self.dtype))

    def begin_backward(self, weights: Tensor, needs: Needs) -> None:
        """Which gradients are wanted, of the sum of log-densities times ``weights (E, m)``."""
        self.weights, self.needs = weights, needs
        self.first = 0 if needs[2] else self.dim if needs[1] else 2 * self.dim
        if any(needs[1:]):
            self.component_sums = torch.zeros_like(self.columns[:, self.first : -1])
        if needs[0]:
            self.of_x = torch.empty_like(self.inputs[0], dtype=self.dtype)

    def begin_strip(self, members: slice, points: slice) -> None:
        """Prepare the rows of some points."""
        x = self.inputs[0][members, points].to(self.dtype) - self.origin[members]  # (e, rows, d)
        self.rows = x.new_zeros(len(x), 2 * self.dim + 2, x.shape[1])
        self.rows[:, self.dim : 2 * self.dim] = x.mT
        torch.square(x.mT, out=self.rows[:, : self.dim])
        self.rows[:, -2] = 1.0
        if self.needs is not None:
            self.left = self.rows[:, self.first : -1] * self.weights[members, points].unsqueeze(1)
            self.point_sums = torch.zeros_like(self.rows[:, : 2 * self.dim])

    def subtract(self, level: Tensor) -> None:
        """From now on, as long as the strip lasts, take ``level (e, rows)`` from its scores."""
        self.rows[:, -1] = -level

    def scores(self, block: Block) -> Tensor:
        """``log2(w_j N_j(z_i))`` of a block, ``(e, rows, columns)``, less what is to be subtracted."""
        out = self.scratch.shaped(block)
        return torch.bmm(self.rows.mT, block.of_components(self.columns), out=out)

    def add(self, block: Block, chance: Tensor) -> None:
        """Sums that need the posterior of the components, ``chance (e, rows, columns)``."""
        if chance.dtype != self.dtype:
            chance = self.scratch.shaped(block).copy_(chance)
        if any(self.needs[1:]):
            block.of_components(self.component_sums).baddbmm_(self.left, chance)
        if self.needs[0]:
            columns = block.of_components(self.columns)[:, : 2 * self.dim]
            self.point_sums.baddbmm_(columns, chance.mT)

    def end_strip(self, members: slice, points: slice) -> None:
        """The gradient of the strip's points: ``weight ln 2 (sum q mu / var - z sum q / var)``."""
        if self.needs[0]:
            d = self.dim
            x, sums = self.rows[:, d : 2 * d], self.point_sums
            pull = torch.addcmul(sums[:, d:], x, sums[:, :d], value=2.0)
            pull *= self.weights[members, points].unsqueeze(1) * LN_2
            self.of_x[members, points] = pull.mT

    def gradients(self) -> Gradients:
        """With respect to x, means, log_vars and log_weights, in the input's shapes, where needed."""
        del self.columns  # as large as what is made here
        of_x = self.of_x if self.needs[0] else None
        if not any(self.needs[1:]):
            return of_x, None, None, None
        sums, d = self.component_sums.mT, self.dim  # (E, n, 1 to 2 d + 1)
        mass = sums[..., -1:]
        if not (self.needs[1] or self.needs[2]):
            return of_x, None, None, mass.squeeze(-1)
        means, precision = self._components()
        first = sums[..., -1 - d : -1]
        shift = torch.addcmul(first, means, mass, value=-1.0)  # sum of (z - mu)
        if not self.needs[2]:
            return of_x, shift.mul_(precision), None, mass.squeeze(-1)
        squares = sums[..., :d] - means.mul_(first + shift)  # sum of (z - mu)^2
        of_log_vars = squares.mul_(precision).sub_(mass).mul_(0.5)
        return of_x, shift.mul_(precision), of_log_vars, mass.squeeze(-1)
