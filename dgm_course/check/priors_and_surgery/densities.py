"""What the references and the known mistakes of lecture 05 are made of: Gaussian terms and their mixtures."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal

from dgm_course.check.cases import Draw
from dgm_course.gaussian import LOG_2PI


def terms(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Each dimension's Gaussian log-density: the arguments broadcast to ``(..., d)``, the result's shape."""
    return -0.5 * (LOG_2PI + log_var + (z - mean) ** 2 * torch.exp(-log_var))


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """``log N(z; mean, diag exp(log_var))``: ``(...)``."""
    return terms(z, mean, log_var).sum(-1)


def log_prior(z: Tensor) -> Tensor:
    """``log N(z; 0, I)``: ``(...)``."""
    return -0.5 * (LOG_2PI + z**2).sum(-1)


def table(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Every z under every Gaussian: ``(..., d), (n, d), (n, d) -> (..., n)``."""
    return log_normal(z.unsqueeze(-2), mean, log_var)


def term_table(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The same, dimension by dimension: ``(..., n, d)``."""
    return terms(z.unsqueeze(-2), mean, log_var)


def normal_table(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """``table`` by torch's own Gaussian, which refuses a scale that is not positive."""
    return Normal(mean, scale).log_prob(z.unsqueeze(-2)).sum(-1)


def log_mean(values: Tensor, dim: int = -1) -> Tensor:
    """The logarithm of the average of the exponentials."""
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def aggregate(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The log-density of the equal mixture: ``(..., d) -> (...)``."""
    return log_mean(table(z, mean, log_var))


def size(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """How large the terms of a Gaussian log-density are, the square multiplied out: ``(...)``."""
    return (3 + log_var.abs() + (z.abs() + mean.abs()) ** 2 * torch.exp(-log_var)).sum(-1)


def mixture_size(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The same for a mixture: that of its largest component."""
    return size(z.unsqueeze(-2), mean, log_var).amax(-1)


def draw_gaussians(draw: Draw, count: int, dims: int) -> tuple[Tensor, Tensor]:
    """Means and log-variances ``(count, dims)`` that overlap; log-variances of one or both signs."""
    low, high = draw.choose([(-1.5, -0.3), (-1.0, 0.8), (0.3, 1.0)])
    return draw.choose([1.0, 2.0]) * draw.normal(count, dims), draw.uniform(count, dims, low=low, high=high)


def draw_samples(draw: Draw, samples: int, mean: Tensor, log_var: Tensor) -> Tensor:
    """``z[s, i] ~ N(mean_i, diag exp(log_var_i))``: ``(S, n, d)``."""
    return mean + torch.exp(log_var / 2) * draw.normal(samples, *mean.shape)
