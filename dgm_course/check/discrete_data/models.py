"""What lecture 04's exercises hand to an answer: densities of data with noise, and noise; and their draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dgm_course.check.cases import Draw
from dgm_course.gaussian import LOG_2PI

Density = Callable[[Tensor], Tensor]  # (..., m) -> (...), nats
Noise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (S, B, m), (B, m) -> (S, B, m), (S, B)

#: Levels of the data are 0, ..., LEVELS - 1.
LEVELS = 8

#: The library's functions that would be an answer: to the two exercises about masses, and to the bounds.
MASSES = ("discretized_logistic_log_prob", "discretized_logistic_mixture_log_prob",
          "rgb_logistic_mixture_log_prob", "plain_log_prob", "streamed_log_prob")  # fmt: skip
BOUNDS = ("uniform_bound", "variational_bound", "importance_weighted_bound",
          "dequantization_log_weights")  # fmt: skip

_DTYPES = (torch.float32, torch.float64)


class Bumps:
    """An equal mixture of diagonal Gaussians with positive means and standard deviations ``(K, m)``."""

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean, scale
        constant = -(0.5 * LOG_2PI + scale.log()).sum(-1) - math.log(len(mean))
        self._given = {dtype: (mean.to(dtype), scale.to(dtype), constant.to(dtype)) for dtype in _DTYPES}

    def __repr__(self) -> str:
        return f"a density of {self.mean.shape[1]} dimensions"

    def __call__(self, x: Tensor) -> Tensor:
        """``log p(x)``: ``(..., m) -> (...)``."""
        return torch.logsumexp(self._components(x), -1)

    def size(self, x: Tensor) -> Tensor:
        """How large the terms are that make ``log p(x)``, and what rounding x does to it: ``(...)``."""
        x = x.unsqueeze(-2)
        reach = (x.abs() + self.mean) * (x - self.mean).abs() / self.scale**2
        terms = (1 + self.scale.log().abs() + reach).sum(-1)
        return (torch.softmax(self._components(x.squeeze(-2)), -1) * terms).sum(-1)

    def _components(self, x: Tensor) -> Tensor:
        mean, scale, constant = self._given.get(x.dtype, self._given[torch.float32])
        return constant - 0.5 * ((x.unsqueeze(-2) - mean) / scale).square().sum(-1)  # (..., K)


class Flat:
    """The uniform density of the cube that holds all bins."""

    def __repr__(self) -> str:
        return f"a flat density from 0 to {LEVELS}"

    def __call__(self, x: Tensor) -> Tensor:
        """``log p(x)``: ``(..., m) -> (...)``."""
        inside = ((x >= 0) & (x <= LEVELS)).all(-1)
        height = 0 * x[..., 0] - x.shape[-1] * math.log(LEVELS)
        return torch.where(inside, height, -math.inf)

    def size(self, x: Tensor) -> Tensor:
        """How large ``log p(x)`` is: ``(...)``."""
        return self(x).abs()


class Squashed:
    """Normal noise, moved and stretched as y says, and squashed into the unit cube."""

    def __init__(self, weight: Tensor, shift: Tensor, log_scale: Tensor) -> None:
        self.given = weight, shift, log_scale

    def __repr__(self) -> str:
        return f"a g of {len(self.given[1])} dimensions"

    def __call__(self, epsilon: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``u`` and the log-determinant in epsilon: ``(S, B, m)`` and ``(S, B)``."""
        weight, shift, log_scale = (v.to(epsilon.dtype) for v in self.given)
        bend = torch.tanh((y / LEVELS - 0.5) @ weight)
        stretch = log_scale + 0.5 * bend
        z = shift + bend + torch.exp(stretch) * epsilon
        log_det = (stretch + logsigmoid(z) + logsigmoid(-z)).sum(-1)
        return torch.sigmoid(z), log_det


class Even:
    """The normal's own CDF, which makes uniform noise of normal noise, whatever y is."""

    def __repr__(self) -> str:
        return "a g that makes uniform noise"

    def __call__(self, epsilon: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``u`` and the log-determinant in epsilon: ``(S, B, m)`` and ``(S, B)``."""
        return torch.special.ndtr(epsilon), log_normal(epsilon)


def log_normal(epsilon: Tensor) -> Tensor:
    """``log N(epsilon; 0, I)``: ``(..., m) -> (...)``."""
    return normal_terms(epsilon).sum(-1)


def normal_terms(epsilon: Tensor) -> Tensor:
    """The same, dimension by dimension."""
    return -0.5 * (LOG_2PI + epsilon**2)


def log_mean(log_w: Tensor, dim: int = 0) -> Tensor:
    """The logarithm of the average of the exponentials."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def draw_sizes(draw: Draw) -> list[int]:
    """Draws, rows and dimensions: three different numbers, so that no axis can pass for another."""
    return draw.choose([[2, 3, 4], [2, 4, 3], [3, 2, 4], [3, 4, 2], [4, 2, 3], [4, 3, 2], [5, 3, 2]])


def draw_bumps(draw: Draw, dims: int) -> Bumps:
    """Two components with their means among the levels, about as wide as a bin."""
    mean = draw.uniform(2, dims, low=1.0, high=LEVELS - 1.0)
    return Bumps(mean, draw.uniform(2, dims, low=0.35, high=1.1))


def draw_levels(draw: Draw, rows: int, density: Bumps) -> Tensor:
    """Levels ``(rows, m)`` where the density is not small."""
    dims = density.mean.shape[1]
    x = density.mean[draw.integer(0, 1)] + density.scale.mean() * draw.normal(rows, dims)
    return x.floor().clamp(0, LEVELS - 1)


def draw_noise(draw: Draw, dims: int) -> Squashed:
    """A g that leans to one side and is narrow or wide."""
    weight = 2 * draw.normal(dims, dims)
    log_scale = draw.choose([-0.7, 0.0, 0.5]) + 0.2 * draw.normal(dims)
    return Squashed(weight, draw.normal(dims), log_scale)
