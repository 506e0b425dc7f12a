"""Gradients of the importance-weighted bound, their estimators, and the signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.bounds.elbo import LogJoint, check_family, evaluate
from dgm_course.bounds.importance import normalized_weights, sample_dim

ESTIMATORS = ("plain", "sticking the landing", "dreg")


def reparametrised_gradient(
    log_joint: LogJoint,
    mean: Tensor,
    log_var: Tensor,
    *,
    num_samples: int,
    generator: torch.Generator | None = None,
    stop_score: bool = False,
) -> Tensor:
    """Single-sample reparametrised estimates of the ELBO's gradient with respect to ``(mean, log_var)``.

    ``d/d(mean, log_var) [log p(x, z) - log q(z)]`` at ``z = mean + exp(log_var / 2) eps``, one row for each
    ``eps ~ N(0, I)``; every row is unbiased. With ``stop_score`` the parameters inside ``log q`` are held
    fixed ("sticking the landing", Roeder, Wu and Duvenaud 2017): still unbiased, and zero when q is the
    posterior.

    Shapes: ``mean`` and ``log_var`` ``(d,)``, result ``(num_samples, 2d)``. ``log_joint`` maps ``(S, d)`` to
    ``(S,)``. Raises ``ValueError`` on any other shape. Ledger C3.
    """
    return iwae_gradient_estimates(
        log_joint, mean, log_var,
        num_samples=1, num_estimates=num_samples, generator=generator,
        estimator="sticking the landing" if stop_score else "plain",
    )  # fmt: skip


def iwae_gradient(log_w: Tensor, grad_log_w: Tensor, dim: int | None = None) -> Tensor:
    """Gradient of ``log (1/K) sum_k w_k``: ``sum_k w^_k grad log w_k`` with normalised weights w^_k.

    The samples share the gradient by weight: one K-sample step is no average of K single-sample steps.
    Shapes: ``log_w (K, B)``, ``grad_log_w (K, B, P)``, one gradient for each log-weight, result ``(B, P)``;
    for others ``dim`` names log_w's dimension of samples. Burda et al. 2016, equation 14. Ledger I5. Raises
    ``ValueError`` if the shapes differ.
    """
    return _weighted(normalized_weights(log_w, dim), grad_log_w, dim)


def dreg_gradient(log_w: Tensor, path_gradient: Tensor, dim: int | None = None) -> Tensor:
    """Doubly reparametrised gradient of L_K with respect to phi: ``sum_k w^_k^2 d log w_k/dz dz_k/dphi``.

    ``path_gradient`` is the derivative of ``log w_k = log p(x, z_k) - log q(z_k|x)`` through z_k alone, with
    phi inside ``log q`` held fixed. Same mean as :func:`iwae_gradient` for phi; its signal-to-noise ratio
    grows as sqrt(K) where that one's falls. For phi only: theta's gradient keeps the weights w^_k, and a loss
    for both is :func:`dgm_course.vae.dreg_loss`. Shapes as in :func:`iwae_gradient`. Tucker, Lawson, Gu and
    Maddison 2019, "Doubly reparameterized gradient estimators for Monte Carlo objectives". Ledger I7. Raises
    ``ValueError`` if the shapes differ.
    """
    return _weighted(normalized_weights(log_w, dim).square(), path_gradient, dim)


def iwae_gradient_estimates(
    log_joint: LogJoint,
    mean: Tensor,
    log_var: Tensor,
    *,
    num_samples: int,
    num_estimates: int = 1,
    estimator: str = "plain",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Independent estimates of the gradient of L_K with respect to q's ``(mean, log_var)``.

    Each uses ``num_samples`` (K) samples ``z = mean + exp(log_var / 2) eps``. ``estimator``:

    * ``"plain"``: :func:`iwae_gradient`, unbiased;
    * ``"dreg"``: :func:`dreg_gradient`, unbiased;
    * ``"sticking the landing"``: weights w^_k and the path gradient. Unbiased at K = 1 only, where it is
      zero if q is the posterior (Roeder, Wu and Duvenaud 2017); beyond it drops a term with a mean.

    Shapes: ``mean`` and ``log_var`` ``(d,)``, result ``(num_estimates, 2d)``. ``log_joint`` is one datum's
    ``log p(x, z)`` and maps ``(S, d)`` to ``(S,)``, with S = K times ``num_estimates``, all in memory at
    once (where ``log p(x, z)`` is a quadratic use :func:`dgm_course.bounds.noise.weighted_noise`). Raises
    ``ValueError`` on another shape or an unknown estimator. Ledger I6, I7.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
    check_family(mean, log_var, num_samples)
    if num_estimates < 1:
        raise ValueError(f"num_estimates must be at least 1, got {num_estimates}: ask for some estimates")
    mean, log_var = mean.detach(), log_var.detach()
    std = torch.exp(0.5 * log_var)
    kind = {"generator": generator, "dtype": mean.dtype, "device": mean.device}
    eps = torch.randn(num_samples, num_estimates, len(mean), **kind)  # (K, R, d)
    with torch.enable_grad():
        z = (mean + std * eps).flatten(0, 1).requires_grad_()  # (K R, d)
        log_joint_z = evaluate(log_joint, z)
        (slope,) = torch.autograd.grad(log_joint_z.sum(), z)  # d log p(x, z) / dz
    slope, log_joint_z = slope.reshape(eps.shape), log_joint_z.detach().reshape(eps.shape[:2])
    log_w = log_joint_z + (0.5 * eps.square() + 0.5 * log_var).sum(-1)  # but for a constant
    if estimator == "plain":
        # d log w / d(mean, log_var): log q depends on log_var alone, as -log_var / 2
        through_mean, through_log_var = slope, 0.5 * (slope * std * eps + 1.0)
    else:
        through_mean = slope + eps / std  # d log w / dz, as d log q / dz = -eps / std
        through_log_var = 0.5 * through_mean * std * eps
    gradients = torch.cat([through_mean, through_log_var], -1)  # (K, R, 2d)
    return (dreg_gradient if estimator == "dreg" else iwae_gradient)(log_w, gradients)


def signal_to_noise(estimates: Tensor, *, mean: Tensor | None = None, num_averaged: int = 1) -> Tensor:
    """``|E g| / sd(g)`` of each entry of a gradient estimator: ``(R, ...) -> (...)``.

    From R independent estimates: the absolute value of their mean over their sample standard deviation.
    ``mean (...)`` replaces the mean where a better one is known: an exact one, or that of another unbiased
    estimator with less noise (otherwise a ratio below ``1 / sqrt(R)`` is not seen). ``num_averaged`` is the
    number M of estimates that a step averages: the ratio grows by sqrt(M). Estimates that are all equal have
    an infinite ratio, and none (NaN) where they are all zero.
    Rainforth et al. 2018, "Tighter variational bounds are not necessarily better". Ledger I6.
    Raises ``ValueError`` for fewer than two estimates, a mean of another shape, or ``num_averaged`` below 1.
    """
    if estimates.dim() == 0 or len(estimates) < 2:
        raise ValueError(
            f"estimates must be (R, ...) with R >= 2, got {tuple(estimates.shape)}: a standard deviation "
            "needs two estimates at least"
        )
    if num_averaged < 1:
        raise ValueError(f"num_averaged must be at least 1, got {num_averaged}: it is the M of outer samples")
    signal = estimates.mean(0) if mean is None else mean
    if signal.shape != estimates.shape[1:]:
        raise ValueError(
            f"mean must have the shape of one estimate, {tuple(estimates.shape[1:])}, got "
            f"{tuple(signal.shape)}: average over the estimates only"
        )
    return signal.abs() / estimates.std(0) * num_averaged**0.5


def _weighted(weights: Tensor, gradients: Tensor, dim: int | None) -> Tensor:
    if gradients.shape[:-1] != weights.shape:
        raise ValueError(
            "each log-weight (K, ...) needs one gradient (K, ..., P), got "
            f"{tuple(weights.shape)} and {tuple(gradients.shape)}: put the parameters last"
        )
    return (weights.unsqueeze(-1) * gradients).sum(sample_dim(weights, dim) % weights.dim())
