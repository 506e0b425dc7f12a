"""What a flow's bits per dimension are held against, and a judge of images that is no flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_course.numerics import nats_to_bits_per_dim


def independent_pixels(train: Tensor, levels: Tensor, num_levels: int) -> Tensor:
    """Bits/dim of ``levels`` when every pixel has its own histogram: ``(n, ...) -> (n,)``.

    The histogram of each position over ``train (N, ...)``, one added to every count, so that a level that
    never occurred costs finitely many bits. A model of the discrete levels: no dequantization. Ledger D7.
    """
    train, levels = train.flatten(1).long(), levels.flatten(1).long()  # (N, m), (n, m)
    counts = torch.ones(train.shape[1], num_levels, dtype=torch.float64, device=train.device)
    counts.scatter_add_(1, train.mT, torch.ones_like(train.mT, dtype=torch.float64))
    log_prob = (counts / counts.sum(1, keepdim=True)).log()  # (m, L)
    return nats_to_bits_per_dim(-log_prob.gather(1, levels.mT).sum(0), levels.shape[1])


def full_gaussian(train: Tensor, levels: Tensor) -> Tensor:
    """Bits/dim of uniformly dequantized ``levels`` under one Gaussian: ``(n, ...) -> (n,)``.

    Mean and full covariance are those of the dequantized training data, ``y + u`` with u uniform in [0, 1).
    The expectation over u has a closed form: ``E_u log N(y + u) = log N(y + 1/2) - tr(Sigma^-1) / 24``, since
    the noise has variance 1/12. An upper bound of the discretized Gaussian's bits. Ledger D4, D7.
    """
    train, levels = train.flatten(1).double() + 0.5, levels.flatten(1).double() + 0.5
    m = train.shape[1]
    noise = torch.eye(m, dtype=train.dtype, device=train.device) / 12
    factor = torch.linalg.cholesky(torch.atleast_2d(torch.cov(train.mT, correction=0)) + noise)
    white = torch.linalg.solve_triangular(factor, (levels - train.mean(0)).mT, upper=False)  # (m, n)
    trace = torch.cholesky_inverse(factor).trace()
    log_norm = factor.diagonal().log().sum() + 0.5 * m * math.log(2 * math.pi)
    return nats_to_bits_per_dim(log_norm + 0.5 * white.square().sum(0) + trace / 24, m)


class NearestNeighbours:
    """A k-nearest-neighbours classifier of images, as a judge of what a flow makes.

    ``train (N, ...)`` with ``labels (N,)``; Euclidean distance between images of levels.
    """

    def __init__(self, train: Tensor, labels: Tensor, k: int = 5) -> None:
        self.train, self.labels, self.k = train.flatten(1), labels, k

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(n, ...)`` to: majority label, whether all k agree, distance to the nearest; each ``(n,)``."""
        distances, rows = torch.cdist(images.flatten(1), self.train).topk(self.k, largest=False)
        votes = self.labels[rows]  # (n, k), nearest first
        return votes.mode(1).values, (votes == votes[:, :1]).all(1), distances[:, 0]
