"""What lecture 06's exercises hand to an answer: likelihoods, densities and flows; and their draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dgm_course.check.cases import Draw
from dgm_course.gaussian import LOG_2PI

Pair = tuple[Tensor, Tensor]
Density = Callable[[Tensor], Tensor]  # (..., d) -> (...), nats
Map = Callable[[Tensor], Pair]  # (..., d) -> (..., d), (...)

#: The library's classes that know the density of a flow's samples, and the bound.
DENSITIES = ("FlowPosteriorVAE", "Flow", "FlowPrior")


class _InBoth(dict[torch.dtype, tuple[Tensor, ...]]):
    """Tensors in float32 and in float64; for any other dtype those in float32."""

    def __init__(self, *values: Tensor) -> None:
        both = (torch.float32, torch.float64)
        super().__init__({dtype: tuple(value.to(dtype) for value in values) for dtype in both})

    def __missing__(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return self[torch.float32]


class Pixels:
    """``log p(x|z)`` of independent binary pixels; x has gone into the signs of ``weight`` and ``offset``."""

    def __init__(self, weight: Tensor, offset: Tensor) -> None:
        self.given = weight, offset  # (d, m), (m,)
        self._in = _InBoth(*self.given)

    def __repr__(self) -> str:
        return f"a log-likelihood of {len(self.given[0])} latent dimensions"

    def __call__(self, z: Tensor) -> Tensor:
        """``log p(x|z)``: ``(..., d) -> (...)``."""
        weight, offset = self._in[z.dtype]
        return logsigmoid(z @ weight + offset).sum(-1)

    def size(self, reach: Tensor) -> Tensor:
        """How large its terms are where z's are as large as ``reach``: ``(..., d) -> (...)``."""
        weight, offset = self.given
        return (1 + reach @ weight.abs() + offset.abs()).sum(-1)


class Same:
    """A likelihood that does not depend on z."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{self.value:g} for every z"

    def __call__(self, z: Tensor) -> Tensor:
        """The same number for every z: ``(..., d) -> (...)``."""
        return 0 * z[..., 0] + self.value

    def size(self, reach: Tensor) -> Tensor:
        """How large it is: ``(..., d) -> (...)``."""
        return abs(self.value) + 0 * reach[..., 0]


class Bell:
    """The density of N(mean, diag exp(log_var)), the same for every row."""

    def __init__(self, mean: Tensor, log_var: Tensor) -> None:
        self.given = mean, log_var  # (d,), (d,)
        self._in = _InBoth(*self.given)

    def __repr__(self) -> str:
        return f"a density of {len(self.given[0])} dimensions"

    def __call__(self, z: Tensor) -> Tensor:
        """``log q(z)``: ``(..., d) -> (...)``."""
        return log_normal(z, *self._in[z.dtype])

    def size(self, reach: Tensor) -> Tensor:
        """How large its terms are where z's are as large as ``reach``: ``(..., d) -> (...)``."""
        return normal_size(reach, *self.given)


class Moved:
    """The density of the flow prior: a standard normal that ``transform`` has moved."""

    def __init__(self, transform: Bend) -> None:
        self.transform = transform

    def __repr__(self) -> str:
        return "the density of the flow prior"

    def __call__(self, z: Tensor) -> Tensor:
        """``log p(z)``: ``(..., d) -> (...)``."""
        noise, log_det = self.transform.inverse(z)
        return log_prior(noise) + log_det

    def size(self, reach: Tensor) -> Tensor:
        """How large its terms are where z's are as large as ``reach``: ``(..., d) -> (...)``."""
        return log_prior(self.transform.reach_back(reach)).abs() + self.transform.most


class Bend:
    """A coupling, then a scale and a shift of every dimension; and the way back.

    The first part a of a vector stays; the second becomes ``b exp(s) + a @ shifts``, with
    ``s = tanh(a @ scales)``. Then all is multiplied by ``exp(log_scale)`` and moved by ``offset``.
    """

    def __init__(self, name: str, log_scale: Tensor, offset: Tensor, scales: Tensor, shifts: Tensor) -> None:
        self.name, self.kept = name, len(scales)
        self.given = log_scale, offset, scales, shifts
        self.most = float(log_scale.abs().sum()) + len(log_scale)  # no log-determinant is larger
        self._in = _InBoth(log_scale.exp(), log_scale.sum(), offset, scales, shifts)

    def __repr__(self) -> str:
        return self.name

    def __call__(self, z: Tensor) -> Pair:
        """The map and its log-determinant: ``(..., d)`` and ``(...)``."""
        scale, volume, offset, scales, shifts = self._in[z.dtype]
        a, b = z[..., : self.kept], z[..., self.kept :]
        bend = torch.tanh(a @ scales)
        bent = torch.cat([a, b * torch.exp(bend) + a @ shifts], -1)
        return bent * scale + offset, bend.sum(-1) + volume

    def inverse(self, z: Tensor) -> Pair:
        """The way back and its log-determinant: ``(..., d)`` and ``(...)``."""
        scale, volume, offset, scales, shifts = self._in[z.dtype]
        straight = (z - offset) / scale
        a, b = straight[..., : self.kept], straight[..., self.kept :]
        bend = torch.tanh(a @ scales)
        return torch.cat([a, (b - a @ shifts) * torch.exp(-bend)], -1), -bend.sum(-1) - volume

    def reach(self, z: Tensor) -> Tensor:
        """How large the terms are that make the map's values, and what rounding z does to them."""
        log_scale, offset, scales, shifts = self.given
        a, b = z[..., : self.kept].abs(), z[..., self.kept :].abs()
        slope = 1 + a @ scales.abs()  # what rounding s does to exp(s), as a part of it
        bent = torch.cat([a, math.e * b * slope + a @ shifts.abs()], -1)
        return bent * torch.exp(log_scale) + offset.abs()

    def reach_back(self, z: Tensor) -> Tensor:
        """The same for the way back."""
        log_scale, offset, scales, shifts = self.given
        straight = (z.abs() + offset.abs()) * torch.exp(-log_scale)
        a, b = straight[..., : self.kept], straight[..., self.kept :]
        return torch.cat([a, math.e * (b + a @ shifts.abs()) * (1 + a @ scales.abs())], -1)


class Back:
    """The inverse of a flow, as a map of its own."""

    def __init__(self, transform: Bend) -> None:
        self.transform = transform

    def __repr__(self) -> str:
        return f"the inverse of {self.transform}"

    def __call__(self, z: Tensor) -> Pair:
        """The way back and its log-determinant: ``(..., d)`` and ``(...)``."""
        return self.transform.inverse(z)


def normal_terms(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Each dimension's Gaussian log-density: the arguments broadcast to ``(..., d)``, the result's shape."""
    return -0.5 * (LOG_2PI + log_var + (z - mean) ** 2 * torch.exp(-log_var))


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """``log N(z; mean, diag exp(log_var))``: ``(...)``."""
    return normal_terms(z, mean, log_var).sum(-1)


def prior_terms(z: Tensor) -> Tensor:
    """Each dimension's standard normal log-density."""
    return -0.5 * (LOG_2PI + z**2)


def log_prior(z: Tensor) -> Tensor:
    """``log N(z; 0, I)``: ``(...)``."""
    return prior_terms(z).sum(-1)


def normal_size(reach: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """How large the terms of ``log N`` are, the square multiplied out: ``(...)``."""
    square = (reach.abs() + mean.abs()) ** 2 * torch.exp(-log_var)
    return (3 + log_var.abs() + square * (1 + log_var.abs())).sum(-1)


def log_mean(values: Tensor, dim: int = 0) -> Tensor:
    """The logarithm of the average of the exponentials."""
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def draw_sizes(draw: Draw) -> list[int]:
    """Samples (or steps), rows and dimensions: three different numbers, so that no axis hides."""
    return draw.choose([[2, 3, 4], [2, 4, 3], [3, 2, 4], [3, 4, 2], [4, 2, 3], [4, 3, 2], [5, 3, 2]])


def draw_gaussians(draw: Draw, *shape: int) -> Pair:
    """Means and log-variances; the log-variances are of one sign or both, and not near 0 all at once."""
    low, high = draw.choose([(-1.5, -0.4), (-1.2, 1.0), (0.4, 1.2)])
    return draw.choose([0.7, 1.5]) * draw.normal(*shape), draw.uniform(*shape, low=low, high=high)


def draw_pixels(draw: Draw, dims: int) -> Pixels:
    """Three pixels."""
    return Pixels(draw.normal(dims, 3), draw.normal(3))


def draw_flow(draw: Draw, dims: int) -> Bend:
    """A flow that mostly stretches or mostly shrinks."""
    kept = draw.integer(1, dims - 1)
    scales, shifts = (size * draw.normal(kept, dims - kept) for size in (1.0, 0.5))
    log_scale = draw.choose([-1, 1]) * draw.uniform(dims, low=0.4, high=0.8)
    return Bend(f"a flow of {dims} dimensions", log_scale, 0.5 * draw.normal(dims), scales, shifts)


def plain(name: str, log_scale: list[float], offset: list[float]) -> Bend:
    """A flow of two dimensions that only scales and shifts."""
    none = torch.zeros(1, 1, dtype=torch.float64)
    given = (torch.tensor(values, dtype=torch.float64) for values in (log_scale, offset))
    return Bend(name, *given, none, none)
