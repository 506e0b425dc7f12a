"""Thousands of gradient estimates at once, where a log-weight is a quadratic function of the noise.

With a Gaussian q, ``z = m + s eps``, and a Gaussian posterior of precision ``Lambda`` times the identity,

``log w(eps) = log p(x, z) - log q(z|x) = constant + v . eps + h |eps|^2``,

and every gradient estimator of the bound is ``a + b sum_k w^_k eps_k``, or the same with squared weights. So
R estimates with K samples each need the weighted sums of the noise and nothing else: matrix products, in
blocks that stay in the cache, at about the cost of drawing the noise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: numbers of noise drawn at once: 1 MB in float32, so that a block stays in the cache
_BLOCK = 2**18


class WeightedNoise(NamedTuple):
    """Weighted sums over K samples, once for each of R estimates; w^_k are the normalised weights."""

    log_mean_weight: Tensor  # (R,) log (1/K) sum_k exp(v . eps_k + h |eps_k|^2), nats
    mean: Tensor  # (R, d) sum_k w^_k eps_k
    squared_weight: Tensor  # (R,) sum_k w^_k^2, one over the effective sample size
    squared_mean: Tensor  # (R, d) sum_k w^_k^2 eps_k


def weighted_noise(
    linear: Tensor,
    quadratic: float,
    *,
    num_samples: int,
    num_estimates: int,
    generator: torch.Generator | None = None,
) -> WeightedNoise:
    """Draw ``eps ~ N(0, I)``, weigh it by ``exp(v . eps + h |eps|^2)``, and sum over K samples, R times.

    ``linear`` is v ``(d,)``, ``quadratic`` is h, ``num_samples`` K, ``num_estimates`` R. The memory does not
    grow with ``R K``: blocks of R, and for large K an online softmax over blocks of K. Rainforth et al. 2018
    need it for their figure 1. Ledger I6, I7. Raises ``ValueError`` on another shape or no samples, and for
    ``h >= 1/2``, where the weights have no mean.
    """
    if linear.dim() != 1 or num_samples < 1 or num_estimates < 1:
        raise ValueError(
            f"linear must be (d,) and both counts at least 1, got {tuple(linear.shape)}, num_samples="
            f"{num_samples} and num_estimates={num_estimates}: one data point at a time"
        )
    if not quadratic < 0.5:
        raise ValueError(
            f"quadratic must be below 1/2, got {quadratic}: E exp(h |eps|^2) is infinite there, so these are no "
            "weights of a posterior"
        )
    kind = {"dtype": linear.dtype, "device": linear.device}
    d = len(linear)
    k_block = min(num_samples, max(1, _BLOCK // d))
    r_block = min(num_estimates, max(1, _BLOCK // (d * k_block)))
    noise = torch.empty(r_block, k_block, d, **kind)  # one buffer for all blocks
    squares = torch.empty_like(noise)
    results = []
    for start in range(0, num_estimates, r_block):
        rows = min(r_block, num_estimates - start)
        sums = _Sums(rows, d, linear)
        for begin in range(0, num_samples, k_block):
            count = min(k_block, num_samples - begin)
            # the whole buffer is filled even where fewer rows are used: its shape never changes
            eps = noise.normal_(generator=generator)[:rows, :count]
            square = torch.mul(eps, eps, out=squares[:rows, :count]).sum(-1)  # (r, k)
            sums.add(torch.add(eps @ linear, square, alpha=quadratic), eps)
        results.append(sums.result(num_samples))
    return WeightedNoise(*(torch.cat(parts) for parts in zip(*results, strict=True)))


class _Sums:
    """An online softmax: sums of weights and weighted noise, relative to the largest weight so far."""

    def __init__(self, rows: int, d: int, like: Tensor) -> None:
        self.largest = like.new_full((rows, 1), -torch.inf)
        self.weight = like.new_zeros(2, rows)  # of w and of w^2
        self.noise = like.new_zeros(rows, 2, d)

    def add(self, log_w: Tensor, eps: Tensor) -> None:
        """``log_w (r, k)`` and ``eps (r, k, d)``."""
        largest = torch.maximum(self.largest, log_w.amax(1, keepdim=True))  # (r, 1)
        shrink = torch.exp(self.largest - largest)  # (r, 1), 0 at first
        w = torch.exp(log_w - largest)
        both = torch.stack([w, w * w], 1)  # (r, 2, k)
        shrinks = torch.cat([shrink, shrink * shrink], 1)  # (r, 2)
        self.weight = self.weight * shrinks.mT + both.sum(-1).mT
        self.noise = torch.baddbmm(self.noise * shrinks.unsqueeze(-1), both, eps)
        self.largest = largest

    def result(self, num_samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of :class:`WeightedNoise` for these rows."""
        total, squared = self.weight
        log_mean = self.largest.squeeze(1) + torch.log(total / num_samples)
        normaliser = total.unsqueeze(-1)
        return (
            log_mean,
            self.noise[:, 0] / normaliser,
            squared / total.square(),
            self.noise[:, 1] / normaliser.square(),
        )
