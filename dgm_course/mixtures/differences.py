"""The exponents of all pairs from the differences x - mean: slow, and exact however narrow a component."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_course.gaussian import LOG_2PI, gaussian_log_prob
from dgm_course.mixtures.blocks import Block, Tiling
from dgm_course.mixtures.products import LOG2_E, Gradients, Needs


def log_terms(x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor) -> Tensor:
    """``log(w_j N_j(x_i))`` of all pairs at once, in plain autograd: ``(E, m, n)``, d times that inside."""
    terms = gaussian_log_prob(x.unsqueeze(-2), means.unsqueeze(-3), log_vars.unsqueeze(-3))
    return terms + log_w.unsqueeze(-2)


def log_sum_exp(terms: Tensor) -> Tensor:
    """Over the last dimension; where all are -inf the result is -inf and the gradient zero, not nan."""
    dead = (terms == -math.inf).all(-1)
    value = torch.logsumexp(torch.where(dead.unsqueeze(-1), 0.0, terms), -1)
    return torch.where(dead, -math.inf, value)


class Differences:
    """The interface of :class:`dgm_course.mixtures.products.Products`, dimension by dimension, no expansion.

    For what even float64 products round too much: about ten times as slow, in the same memory.
    """

    def __init__(
        self, x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor, tiling: Tiling, dtype: torch.dtype
    ) -> None:
        x, means, log_vars, log_w = (t.to(dtype) for t in (x, means, log_vars, log_w))
        self.x, self.means, self.precision = x.mT, means.mT, torch.exp(-log_vars).mT  # (E, d, m or n)
        self.bias = (log_w - 0.5 * (log_vars + LOG_2PI).sum(-1)).mul(LOG2_E).unsqueeze(1)  # (E, 1, n)
        self.scratch, self.spare = tiling.scratch(x, dtype), tiling.scratch(x, dtype)

    def _difference(self, block: Block, k: int) -> tuple[Tensor, Tensor]:
        """``x - mean`` in dimension k, ``(e, rows, columns)``, and the precisions ``(e, 1, columns)``."""
        points, means = block.of_points(self.x), block.of_components(self.means)
        out = self.spare.shaped(block)
        torch.sub(points[:, k].unsqueeze(2), means[:, k].unsqueeze(1), out=out)
        return out, block.of_components(self.precision)[:, k].unsqueeze(1)

    def scores(self, block: Block) -> Tensor:
        """``log2(w_j N_j(x_i))`` of a block, ``(e, rows, columns)``, less what is to be subtracted."""
        out = self.scratch.shaped(block)
        out.copy_(block.of_components(self.bias)).sub_(self.level)
        for k in range(self.x.shape[1]):
            difference, precision = self._difference(block, k)
            out.addcmul_(difference.square_(), precision, value=-0.5 * LOG2_E)
        return out

    def begin_strip(self, members: slice, points: slice) -> None:
        """Nothing is subtracted yet."""
        self.level = self.x.new_zeros(())

    def subtract(self, level: Tensor) -> None:
        """From now on, as long as the strip lasts, take ``level (e, rows)`` from its scores."""
        self.level = level.unsqueeze(-1)

    def end_strip(self, members: slice, points: slice) -> None:
        """Nothing to finish."""

    def begin_backward(self, weights: Tensor, needs: Needs) -> None:
        """Which gradients are wanted, of the sum of log-densities times ``weights (E, m)``."""
        self.weights, self.needs = weights.unsqueeze(1), needs
        self.of_x = torch.zeros_like(self.x)
        self.shift, self.squares = torch.zeros_like(self.means), torch.zeros_like(self.means)
        self.mass = torch.zeros_like(self.bias)

    def add(self, block: Block, chance: Tensor) -> None:
        """Sums that need the posterior of the components, ``chance (e, rows, columns)``."""
        chance = self.scratch.shaped(block).copy_(chance) if chance.dtype != self.x.dtype else chance
        weights = block.of_points(self.weights)  # (e, 1, rows)
        block.of_components(self.mass).baddbmm_(weights, chance)
        for k in range(self.x.shape[1] if any(self.needs[:3]) else 0):
            difference, precision = self._difference(block, k)
            if self.needs[2]:
                both = difference.square().mul_(chance)
                block.of_components(self.squares)[:, k : k + 1].baddbmm_(weights, both)
            difference.mul_(chance)
            block.of_components(self.shift)[:, k : k + 1].baddbmm_(weights, difference)
            block.of_points(self.of_x)[:, k : k + 1].baddbmm_(precision, difference.mT, alpha=-1.0)

    def gradients(self) -> Gradients:
        """With respect to x, means, log_vars and log_weights, in the input's shapes."""
        return (
            (self.of_x * self.weights).mT,
            (self.shift * self.precision).mT,
            (0.5 * (self.squares * self.precision - self.mass)).mT,
            self.mass.squeeze(1),
        )
