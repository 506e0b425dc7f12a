"""Thousands of gradient estimates at once, where a log-weight is a quadratic function of the noise.

With a Gaussian q, ``z = m + s eps``, and a Gaussian posterior of precision ``Lambda`` times the identity,

``log w(eps) = log p(x, z) - log q(z|x) = constant + v . eps + h |eps|^2``,

and every gradient estimator of the bound is ``a + b sum_k w^_k eps_k``, or the same with squared weights. So
R estimates with K samples each need the weighted sums of the noise and nothing else: matrix products, in
blocks that stay in the cache, at about the cost of drawing the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

#: numbers of noise drawn at once: 1 MB in float32, so that a block stays in the cache
_BLOCK = 2**18
#: torch.bmm goes number by number below so many samples (for d = 20)
_FEW = 10


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
    if linear.dim() != 1 or not len(linear) or num_samples < 1 or num_estimates < 1:
        raise ValueError(
            f"linear must be (d,) and both counts at least 1, got {tuple(linear.shape)}, num_samples="
            f"{num_samples} and num_estimates={num_estimates}: one data point at a time"
        )
    if not quadratic < 0.5:
        raise ValueError(
            f"quadratic must be below 1/2, got {quadratic}: E exp(h |eps|^2) is infinite there, so these are "
            "no weights of a posterior"
        )
    linear = linear.detach()  # the noise is overwritten: no gradient could flow back
    results = []
    steepness = torch.full_like(linear, quadratic)
    squares = linear.new_empty(0)
    for blocks in noise_blocks(
        linear, num_samples=num_samples, num_estimates=num_estimates, generator=generator
    ):
        sums: _Sums | None = None
        for eps in blocks:
            squares = squares if squares.shape == eps.shape else torch.empty_like(eps)
            # log-weights (r, k): products with a vector beat sums over d
            log_w = eps @ linear + torch.mul(eps, eps, out=squares) @ steepness
            block = _sums(log_w, eps)
            sums = block if sums is None else _joined(sums, block)
        results.append(sums.normalised(num_samples))
    return WeightedNoise(*(torch.cat(parts) for parts in zip(*results, strict=True)))


def noise_blocks(
    like: Tensor, *, num_samples: int, num_estimates: int, generator: torch.Generator | None = None
) -> Iterator[Iterator[Tensor]]:
    """The noise of :func:`weighted_noise`: for each block of estimates its blocks of samples, ``(r, k, d)``.

    ``like`` is ``(d,)``. Each block of noise is overwritten by the next, and all must be read, in order.
    """
    k_block = _even(num_samples, _BLOCK // len(like))
    r_block = _even(num_estimates, _BLOCK // (len(like) * k_block))
    buffer = like.new_empty(r_block, k_block, len(like))

    def samples(rows: int) -> Iterator[Tensor]:
        for begin in range(0, num_samples, k_block):
            # the whole buffer is filled even where fewer rows are used: slices of it are drawn more slowly
            yield buffer.normal_(generator=generator)[:rows, : num_samples - begin]

    for start in range(0, num_estimates, r_block):
        yield samples(num_estimates - start)


def _even(total: int, largest: int) -> int:
    """The size of the fewest blocks, about equal, of at most ``largest``."""
    count = -(-total // max(1, largest))
    return -(-total // count)


class _Sums(NamedTuple):
    """Sums over some samples of each of r estimates, of weights relative to the largest among them."""

    largest: Tensor  # (r, 1) logarithm of the largest weight
    weight: Tensor  # (r, 1) sum of w
    squared_weight: Tensor  # (r, 1) sum of w^2
    noise: Tensor  # (r, d) sum of w eps
    squared_noise: Tensor  # (r, d) sum of w^2 eps

    def normalised(self, num_samples: int) -> WeightedNoise:
        """The result for these estimates."""
        total, squared_total = self.weight, self.weight.square()
        return WeightedNoise(
            (self.largest + torch.log(total / num_samples)).squeeze(1),
            self.noise / total,
            (self.squared_weight / squared_total).squeeze(1),
            self.squared_noise / squared_total,
        )


def _sums(log_w: Tensor, eps: Tensor) -> _Sums:
    """``log_w (r, k)`` and ``eps (r, k, d)``."""
    largest = log_w.amax(1, keepdim=True)
    w = torch.exp(log_w - largest)  # (r, k)
    squared = w * w
    if w.shape[1] < _FEW:
        noise, squared_noise = w[:, :1] * eps[:, 0], squared[:, :1] * eps[:, 0]
        for k in range(1, w.shape[1]):
            noise.addcmul_(w[:, k : k + 1], eps[:, k])
            squared_noise.addcmul_(squared[:, k : k + 1], eps[:, k])
    else:
        noise, squared_noise = torch.bmm(torch.stack([w, squared], 1), eps).unbind(1)
    return _Sums(largest, w.sum(1, keepdim=True), squared.sum(1, keepdim=True), noise, squared_noise)


def _joined(a: _Sums, b: _Sums) -> _Sums:
    """Sums over the samples of both: an online softmax."""
    largest = torch.maximum(a.largest, b.largest)
    parts = []
    for part in (a, b):
        shrink = torch.exp(part.largest - largest)
        shrinks = (shrink, shrink * shrink) * 2
        parts.append([value * by for value, by in zip(part[1:], shrinks, strict=True)])
    return _Sums(largest, *(x + y for x, y in zip(*parts, strict=True)))
