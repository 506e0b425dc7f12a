"""Densities that know their exact log-density and sample from themselves; Gaussian mixtures first."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

#: numbers in one block of point-component pairs: half a megabyte, so that it stays in the cache
_BLOCK = 2**16
Device = torch.device | str | None


class Density(Protocol):
    """A probability density on R^num_dims with an exact ``log_prob`` and an exact sampler."""

    num_dims: int

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density: ``(..., num_dims) -> (...)``, in nats."""
        ...

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device = None,
    ) -> Tensor:
        """Draw ``n`` independent points, ``(n, num_dims)``."""
        ...


class GaussianMixture:
    """A mixture of isotropic Gaussians: ``p(x) = sum_k w_k N(x; mu_k, s_k^2 I)``.

    ``weights (K,)``, ``means (K, d)`` and ``sds (K,)`` are kept in float64 and follow ``x`` in dtype and
    device. Raises ``ValueError`` if the shapes disagree, a weight is negative, the weights do not sum to one
    or a standard deviation is not positive.
    """

    def __init__(self, weights: Tensor, means: Tensor, sds: Tensor) -> None:
        if means.dim() != 2 or means.numel() == 0 or {weights.shape, sds.shape} != {means.shape[:1]}:
            raise ValueError(
                "a mixture of K components in d dimensions needs weights (K,), means (K, d), sds (K,), got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(sds.shape)}: give one weight, one "
                "mean and one standard deviation a component"
            )
        total = float(weights.double().sum())
        if not bool((weights >= 0).all()) or not abs(total - 1.0) < 1e-6:
            raise ValueError(
                f"the weights of a mixture are non-negative and sum to 1, got {weights.tolist()[:8]} with "
                f"sum {total:.6g}: divide them by their sum"
            )
        if not bool(((sds > 0) & sds.isfinite()).all()):
            raise ValueError(
                f"standard deviations are positive and finite, got {sds.tolist()[:8]}: give the standard "
                "deviation itself, not its logarithm"
            )
        self.weights = weights.double() / weights.double().sum()
        self.means = means.double()
        self.sds = sds.double()
        self.num_dims = means.shape[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """``log sum_k w_k N(x; mu_k, s_k^2 I)``: ``(..., d) -> (...)``, in blocks when K is large."""
        rows = as_rows(x, self.num_dims)
        block = max(1, _BLOCK // len(self.weights))
        return torch.cat([self._log_prob(part) for part in rows.split(block)]).reshape(x.shape[:-1])

    def _log_prob(self, x: Tensor) -> Tensor:
        log_weights, means, sds = self.weights.log().to(x), self.means.to(x), self.sds.to(x)
        coordinates = zip(x.unsqueeze(-1).unbind(-2), means.unbind(-1), strict=True)  # (B, 1) and (K,) each
        distance2 = sum(((x_j - mean_j) / sds).square() for x_j, mean_j in coordinates)  # (B, K)
        log_scale = self.num_dims * (sds.log() + 0.5 * math.log(2.0 * math.pi))  # (K,)
        return torch.logsumexp(log_weights - log_scale - 0.5 * distance2, dim=-1)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device = None,
    ) -> Tensor:
        """``x = mu_k + s_k e`` with k drawn by the weights and e standard normal, ``(n, d)``."""
        place = draw_device(n, generator)
        weights, means, sds = (t.to(place) for t in (self.weights, self.means, self.sds))
        component = torch.multinomial(weights, n, replacement=True, generator=generator)  # (n,)
        noise = torch.randn(n, self.num_dims, generator=generator, dtype=torch.float64, device=place)
        return (means[component] + sds[component, None] * noise).to(dtype=dtype, device=device or place)


def as_rows(x: Tensor, num_dims: int) -> Tensor:
    """Check a point's shape and dtype and flatten its batch dimensions: ``(..., d) -> (B, d)``."""
    if x.dim() < 1 or x.shape[-1] != num_dims or not x.is_floating_point():
        raise ValueError(
            f"a point of this density has shape (..., {num_dims}) and a floating point dtype, got "
            f"{tuple(x.shape)} and {x.dtype}: put the coordinates last"
            + (", as in x.unsqueeze(-1)" if num_dims == 1 else "")
        )
    return x.reshape(-1, num_dims)


def draw_device(n: int, generator: torch.Generator | None) -> torch.device:
    """Where the random numbers are drawn: on the generator's device."""
    if n < 1:
        raise ValueError(f"a sample holds at least one point, got n={n}: ask for n >= 1")
    return generator.device if generator is not None else torch.device("cpu")
