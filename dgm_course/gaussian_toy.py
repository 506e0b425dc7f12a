"""The Gaussian toy of Rainforth et al. 2018: where the importance-weighted gradient's noise can be measured.

``p(z) = N(mu, I_d)``, ``p(x|z) = N(z, I_d)``, ``q(z|x) = N(A x + b, q_var I_d)``, at one fixed x. theta is
mu, phi is (A, b); the gradient with respect to A is that with respect to ``q_mean = A x + b`` times x, so
that both have the same signal-to-noise ratio, and phi's gradient here is q_mean's. The posterior is
``N((x + mu) / 2, I / 2)``: at ``q_var = 2/3`` q is a little too wide, and q_mean is off by what we like.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dgm_course.bounds.noise import weighted_noise


class ToyGradients(NamedTuple):
    """R estimates of the gradient of L_K, all from the same noise."""

    theta: Tensor  # (R, d) with respect to mu
    phi: Tensor  # (R, d) with respect to q_mean, plain estimator
    dreg: Tensor  # (R, d) with respect to q_mean, doubly reparametrised: the same mean as phi
    bound: Tensor  # (R,) draws of log (1/K) sum_k w_k, nats


class ProjectedGradients(NamedTuple):
    """One number for each estimate: its component along the direction of the exact gradient."""

    theta: Tensor  # (R,)
    phi: Tensor  # (R,)
    dreg: Tensor  # (R,)


class GaussianToy:
    """The toy at one x: ``mu``, ``x`` and ``q_mean`` of shape ``(d,)``, and the variance of q.

    Raises ``ValueError`` if the shapes differ, or unless ``q_var > 1/4``: below, the weights have no variance
    (the posterior's variance is 1/2), and from there on nothing here would have one.
    """

    def __init__(self, mu: Tensor, x: Tensor, q_mean: Tensor, q_var: float = 2.0 / 3.0) -> None:
        if mu.dim() != 1 or not mu.shape == x.shape == q_mean.shape:
            raise ValueError(
                "mu, x and q_mean must all have shape (d,), got "
                f"{tuple(mu.shape)}, {tuple(x.shape)} and {tuple(q_mean.shape)}: the toy is about one x"
            )
        if not q_var > 0.25:
            raise ValueError(
                f"q_var must be above 1/4, half the posterior's variance, got {q_var}: otherwise E w^2 is "
                "infinite and there is no signal-to-noise ratio; widen q"
            )
        self.mu, self.x, self.q_mean, self.q_var = mu, x, q_mean, q_var

    @classmethod
    def near_optimum(
        cls,
        offset: float,
        num_dims: int = 20,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> GaussianToy:
        """mu = 0, x drawn from the model, and q_mean the posterior's mean plus ``offset`` in each dimension.

        At ``offset = 0`` the gradient of phi is exactly 0 and has no signal. The laws of the signal-to-noise
        ratio hold for K well above chi^2: from K = 1 on at 0.05, from about 100 on at 0.25. The paper moves
        its parameters by about 0.01.
        """
        generator = torch.Generator().manual_seed(seed)
        x = math.sqrt(2.0) * torch.randn(num_dims, generator=generator, dtype=torch.float64)
        x = x.to(dtype=dtype, device=device)
        return cls(torch.zeros_like(x), x, 0.5 * x + offset)

    @property
    def posterior_mean(self) -> Tensor:
        """``(x + mu) / 2``, ``(d,)``; the posterior's variance is 1/2."""
        return 0.5 * (self.x + self.mu)

    def log_evidence(self) -> Tensor:
        """``log p(x) = log N(x; mu, 2 I)``, nats."""
        return -0.5 * (math.log(4.0 * math.pi) + 0.5 * (self.x - self.mu).square()).sum()

    def log_joint(self, z: Tensor) -> Tensor:
        """``log p(x, z)``: ``(..., d) -> (...)``, nats."""
        squares = (z - self.mu).square() + (self.x - z).square()
        return -0.5 * (2.0 * math.log(2.0 * math.pi) + squares).sum(-1)

    def gradients(
        self, num_samples: int, num_estimates: int, *, generator: torch.Generator | None = None
    ) -> ToyGradients:
        """R estimates of the gradient of L_K with K samples each, for theta and phi. Ledger I6, I7.

        With ``z = q_mean + s eps`` a log-weight is ``c + v . eps + h |eps|^2``, so all that is needed is
        :func:`dgm_course.bounds.noise.weighted_noise`. Memory does not grow with R K.
        """
        s = math.sqrt(self.q_var)
        pull = self.mu + self.x - 2.0 * self.q_mean  # d log p(x, z) / dz at eps = 0
        noise = weighted_noise(
            s * pull, 0.5 - self.q_var,
            num_samples=num_samples, num_estimates=num_estimates, generator=generator,
        )  # fmt: skip
        constant = self.log_joint(self.q_mean) + 0.5 * len(self.x) * math.log(2.0 * math.pi * self.q_var)
        return ToyGradients(
            theta=self.q_mean - self.mu + s * noise.mean,  # of z - mu
            phi=pull - 2.0 * s * noise.mean,
            dreg=pull * noise.squared_weight.unsqueeze(-1) + (1.0 / s - 2.0 * s) * noise.squared_mean,
            bound=constant + noise.log_mean_weight,
        )

    def projected(self, gradients: ToyGradients) -> ProjectedGradients:
        """Components along the exact gradients' directions.

        By symmetry ``E sum_k w^_k eps_k`` points from q_mean to the posterior's mean, and so does phi's
        gradient. theta's is ``q_mean - mu`` plus a multiple of that, which the doubly reparametrised
        estimates give with little noise. Raises ``ValueError`` where one of the two is exactly zero.
        """
        pull = self.posterior_mean - self.q_mean
        if not bool(pull.any()):
            raise ValueError(
                "phi's gradient is exactly zero where q_mean is the posterior's mean: it has no direction; "
                "move q_mean by an offset, 0.01 say"
            )
        along = pull / torch.linalg.vector_norm(pull)  # (d,)
        phi, dreg = gradients.phi @ along, gradients.dreg @ along  # (R,)
        # s E sum_k w^_k eps_k = (2 pull - E phi) / 2
        theta_mean = self.q_mean - self.mu + pull - 0.5 * dreg.mean() * along
        length = torch.linalg.vector_norm(theta_mean)
        if not bool(length > 0):
            raise ValueError(
                "theta's gradient is exactly zero where q_mean and the posterior's mean are mu: it has no "
                "direction; take an x that is not mu"
            )
        return ProjectedGradients(gradients.theta @ (theta_mean / length), phi, dreg)
