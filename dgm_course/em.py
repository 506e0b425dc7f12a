"""Expectation-maximisation on a mixture of Gaussians, one step at a time, so that it can be drawn.

The latent variable is the component's index, so q is a table of responsibilities and both steps are exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class GaussianMixture(NamedTuple):
    """``p(x) = sum_k weights_k N(x; means_k, covariances_k)``, k components in m dimensions."""

    weights: Tensor  # (..., k)
    means: Tensor  # (..., k, m)
    covariances: Tensor  # (..., k, m, m)

    def log_joint(self, x: Tensor) -> Tensor:
        """``log p(x, k)``: ``(..., n, m) -> (..., n, k)``; ``ValueError`` if a covariance is singular."""
        factor, info = torch.linalg.cholesky_ex(self.covariances)  # (..., k, m, m)
        if info.any() or not factor.isfinite().all():
            raise ValueError(
                f"covariances must be positive definite, got {int((info > 0).sum())} that are not: "
                "a component has shrunk onto too few points; restart it, or set min_variance"
            )
        shift = (x.unsqueeze(-3) - self.means.unsqueeze(-2)).mT  # (..., k, m, n)
        square = torch.linalg.solve_triangular(factor, shift, upper=False).square().sum(-2)  # (..., k, n)
        log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (..., k)
        constant = self.weights.log() - 0.5 * (x.shape[-1] * math.log(2.0 * math.pi) + log_det)
        return (constant.unsqueeze(-1) - 0.5 * square).mT

    def log_prob(self, x: Tensor) -> Tensor:
        """``log p(x)``: ``(..., n, m) -> (..., n)``."""
        return self.log_joint(x).logsumexp(-1)


class MixtureStep(NamedTuple):
    """One step of EM and what is needed to draw it."""

    mixture: GaussianMixture  # after the M-step
    responsibilities: Tensor  # (..., n, k): q(k|x), the posterior before the M-step
    log_prob: Tensor  # (..., n): log p(x) before the M-step, which the bound touches after the E-step


def gaussian_mixture_em_step(
    mixture: GaussianMixture, x: Tensor, *, min_variance: float = 0.0
) -> MixtureStep:
    """E-step ``q(k|x) = p(k|x)``, then the M-step: weighted fractions, means and covariances.

    With ``min_variance = 0`` the mean of ``log p(x)`` never falls; a positive value is added to the diagonal
    of every covariance, which keeps components from collapsing onto a point but is no longer exact EM.
    Shapes: ``x (..., n, m)`` (one-dimensional data: ``(n, 1)``), mixture as in :class:`GaussianMixture`.
    Raises ``ValueError`` if they do not fit together, or if a component is singular or has lost every point.
    Ledger C2.
    """
    num_dims = mixture.means.shape[-1]
    if x.dim() < 2 or x.shape[-1] != num_dims or mixture.covariances.shape[-2:] != (num_dims, num_dims):
        raise ValueError(
            "x must be (..., n, m), means (..., k, m) and covariances (..., k, m, m), got "
            f"{tuple(x.shape)}, {tuple(mixture.means.shape)} and {tuple(mixture.covariances.shape)}: "
            "give one-dimensional data the shape (n, 1)"
        )
    components = {mixture.weights.shape[-1], mixture.means.shape[-2], mixture.covariances.shape[-3]}
    if len(components) > 1:
        raise ValueError(
            f"weights (..., k), means (..., k, m) and covariances (..., k, m, m) must share k, got "
            f"{sorted(components)} components: give each component all three"
        )
    log_joint = mixture.log_joint(x)  # (..., n, k)
    log_prob = log_joint.logsumexp(-1)  # (..., n)
    responsibilities = torch.exp(log_joint - log_prob.unsqueeze(-1))  # (..., n, k)
    counts = responsibilities.sum(-2)  # (..., k)
    if not (counts > 0).all():
        raise ValueError(
            f"every component needs some responsibility, got sums {counts.tolist()}: "
            "start the lost component nearer to the data, or use fewer components"
        )
    means = responsibilities.mT @ x / counts.unsqueeze(-1)  # (..., k, m)
    shift = x.unsqueeze(-3) - means.unsqueeze(-2)  # (..., k, n, m)
    covariances = (responsibilities.mT.unsqueeze(-1) * shift).mT @ shift / counts[..., None, None]
    ridge = min_variance * torch.eye(num_dims, dtype=x.dtype, device=x.device)
    updated = GaussianMixture(counts / x.shape[-2], means, covariances + ridge)
    return MixtureStep(updated, responsibilities, log_prob)
