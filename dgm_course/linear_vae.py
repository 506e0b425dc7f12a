"""The linear VAE: the exact model trained through an encoder, with a weight beta on the KL term.

Decoder ``N(W z + b, sigma2 I)``, encoder ``q(z|x) = N(V (x - b), diag exp(log_var))``, b the data's mean. The
ELBO averaged over data depends on the data only through their covariance (weight 1/n), so it is a closed form
in ``(W, V, log_var)``, and so is its optimum (Lucas, Tucker, Grosse and Norouzi 2019; Dai, Wang and Wipf
2020): the posterior collapse of single latent directions can be predicted to the last digit.
Every argument takes leading member dimensions: a grid of models is one call.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dgm_course.linear_gaussian import LinearGaussian, check_positive, log_det


def expected_log_likelihood(
    W: Tensor, V: Tensor, log_var: Tensor, covariance: Tensor, sigma2: Tensor | float
) -> Tensor:
    """Average over the data of ``E_q[log p(x|z)]``, in nats.

    ``-m/2 log(2 pi sigma2) - [tr((I - W V) C (I - W V)^T) + sum_j |W_j|^2 exp(log_var_j)] / (2 sigma2)``

    Shapes: ``W (..., m, d)``, ``V (..., d, m)``, ``log_var (..., d)``, ``covariance C (..., m, m)``,
    ``sigma2`` a number or ``(...)``, result ``(...)``. Raises ``ValueError`` if they do not fit together.
    """
    _check_shapes(W, V, log_var, covariance)
    sigma2 = check_positive(sigma2, "sigma2", like=W)
    num_dims = W.shape[-2]
    residual = torch.eye(num_dims, dtype=W.dtype, device=W.device) - W @ V  # (..., m, m)
    error = ((residual @ covariance) * residual).sum((-1, -2))
    spread = (W.square().sum(-2) * log_var.exp()).sum(-1)
    return -0.5 * (num_dims * torch.log(2 * math.pi * sigma2) + (error + spread) / sigma2)


def expected_kl_per_dim(V: Tensor, log_var: Tensor, covariance: Tensor) -> Tensor:
    """Average over the data of ``KL(q(z_j|x) || N(0, 1))`` for each latent j, in nats.

    ``1/2 [v_j^T C v_j + exp(log_var_j) - 1 - log_var_j]`` with ``v_j`` the j-th row of V.

    Shapes: ``V (..., d, m)``, ``log_var (..., d)``, ``covariance C (..., m, m)``, result ``(..., d)``.
    Raises ``ValueError`` if they do not fit together. Free bits act on these (ledger C8).
    """
    _check_shapes(None, V, log_var, covariance)
    mean_square = ((V @ covariance) * V).sum(-1)  # (..., d)
    return 0.5 * (mean_square + torch.expm1(log_var) - log_var)


def expected_elbo(
    W: Tensor,
    V: Tensor,
    log_var: Tensor,
    covariance: Tensor,
    sigma2: Tensor | float,
    beta: Tensor | float = 1.0,
) -> Tensor:
    """The linear VAE's objective, exactly: average of ``E_q[log p(x|z)] - beta KL(q(z|x) || p(z))``, in nats.

    Shapes: ``W (..., m, d)``, ``V (..., d, m)``, ``log_var (..., d)``, ``covariance (..., m, m)``, ``sigma2``
    and ``beta`` numbers or ``(...)``, result ``(...)``. Raises ``ValueError`` if they do not fit together.
    Ledger C5.
    """
    kl = expected_kl_per_dim(V, log_var, covariance).sum(-1)
    return expected_log_likelihood(W, V, log_var, covariance, sigma2) - beta * kl


class CollapseSpectrum(NamedTuple):
    """What each latent direction does at the linear VAE's optimum; every field is ``(..., d)``."""

    kl_per_dim: Tensor  # average KL(q(z_j|x) || p(z_j)), in nats
    posterior_var: Tensor  # variance of q(z_j|x)
    mean_var: Tensor  # Var_x E_q[z_j], the number that active units are counted by
    active: Tensor  # bool: is the direction used at all


def collapse_spectrum(
    eigenvalues: Tensor, sigma2: Tensor | float, beta: Tensor | float = 1.0, *, num_latents: int | None = None
) -> CollapseSpectrum:
    """Which directions of a linear VAE survive: direction j is active iff ``lambda_j > beta sigma2``.

    An active direction has ``KL_j = 1/2 log(lambda_j / (beta sigma2))``, posterior variance
    ``beta sigma2 / lambda_j`` and ``Var E_q[z_j] = 1 - beta sigma2 / lambda_j``; any other has collapsed onto
    the prior: 0, 1 and 0.

    Shapes: ``eigenvalues (..., m)`` of the data's covariance (weight 1/n) in any order, ``sigma2`` and
    ``beta`` numbers or ``(...)``, every field of the result ``(..., d)``, largest eigenvalue first;
    ``d = num_latents``, by default m. Raises ``ValueError`` on a negative eigenvalue, a ``sigma2`` or
    ``beta`` that is not positive, or unless ``1 <= d <= m``. Ledger C5.
    """
    size = eigenvalues.shape[-1]
    num_latents = size if num_latents is None else num_latents
    if not 1 <= num_latents <= size:
        raise ValueError(f"num_latents must lie between 1 and m = {size}, got {num_latents}: change it")
    if not (eigenvalues >= 0).all():
        raise ValueError(
            f"eigenvalues of a covariance cannot be negative, got a minimum of {eigenvalues.min().item()}: "
            "clamp rounding errors at zero"
        )
    top = eigenvalues.sort(dim=-1, descending=True).values[..., :num_latents]  # (..., d)
    sigma2 = check_positive(sigma2, "sigma2", like=eigenvalues)
    threshold = (check_positive(beta, "beta", like=eigenvalues) * sigma2).unsqueeze(-1)  # (..., 1)
    ratio = torch.maximum(top / threshold, torch.ones_like(threshold))  # (..., d)
    return CollapseSpectrum(
        kl_per_dim=0.5 * ratio.log(),
        posterior_var=1.0 / ratio,
        mean_var=1.0 - 1.0 / ratio,
        active=top > threshold,
    )


def activity_line(
    sigma2: Tensor | float, beta: Tensor | float = 1.0, *, threshold: float = 0.01
) -> Tensor | float:
    """The eigenvalue above which ``Var_x E_q[z_j]`` exceeds ``threshold``: ``beta sigma2 / (1 - threshold)``.

    With the usual threshold of 0.01 the line where active units are *counted* lies at ``1.0101 beta sigma2``,
    a little above the line ``beta sigma2`` where directions come alive. Raises ``ValueError`` unless
    ``0 <= threshold < 1``. Ledger C5 and C9.
    """
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}: at the optimum Var E_q[z_j] < 1")
    return beta * sigma2 / (1.0 - threshold)


class LinearVAE(NamedTuple):
    """Parameters of a linear VAE, or of a stack of them: the first arguments of :func:`expected_elbo`."""

    W: Tensor  # (..., m, d) decoder
    V: Tensor  # (..., d, m) encoder's mean map
    log_var: Tensor  # (..., d) encoder's log-variance, the same for all x


def random_linear_vae(
    num_dims: int,
    num_latents: int,
    *,
    leading: tuple[int, ...] = (),
    scale: float = 0.1,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> LinearVAE:
    """A start for training: ``W, V ~ N(0, scale^2)``, unit variances; leaves that require gradients."""
    kind = {"dtype": dtype, "device": device}
    W = scale * torch.randn((*leading, num_dims, num_latents), generator=generator, **kind)
    V = scale * torch.randn((*leading, num_latents, num_dims), generator=generator, **kind)
    log_var = torch.zeros((*leading, num_latents), **kind)
    return LinearVAE(W.requires_grad_(), V.requires_grad_(), log_var.requires_grad_())


def optimal_linear_vae(
    covariance: Tensor, num_latents: int, sigma2: Tensor | float, beta: Tensor | float = 1.0
) -> LinearVAE:
    """A maximum of :func:`expected_elbo`: orthogonal columns ``W_j = u_j (lambda_j - beta sigma2)^(1/2)``.

    ``lambda_j, u_j`` are the covariance's top eigenpairs; where the root would be of a negative number the
    column is zero. With distinct eigenvalues it is unique up to the signs and the order of the latents.
    Shapes: ``covariance (..., m, m)``, ``sigma2`` and ``beta`` numbers or ``(...)``; raises ``ValueError`` as
    :func:`collapse_spectrum`. Ledger C5.
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values = values.clamp(min=0.0)
    spectrum = collapse_spectrum(values, sigma2, beta, num_latents=num_latents)
    top = values.flip(-1)[..., :num_latents]  # (..., d)
    basis = vectors.flip(-1)[..., :num_latents]  # (..., m, d)
    used = spectrum.mean_var.sqrt()  # (..., d)
    W = basis * (top.sqrt() * used).unsqueeze(-2)
    scale = torch.where(spectrum.active, used / top.clamp(min=torch.finfo(top.dtype).tiny).sqrt(), 0.0)
    return LinearVAE(W, scale.unsqueeze(-1) * basis.mT, spectrum.posterior_var.log())


def amortisation_gap(model: LinearGaussian, V: Tensor, q_cov: Tensor, covariance: Tensor) -> Tensor:
    """Average over the data of ``max_q ELBO(q) - ELBO(encoder)``, the price of a shared encoder, in nats.

    The encoder is ``N(V (x - b), q_cov)`` and q ranges over all Gaussians for each x separately, so the
    maximum is log p(x) and the gap is the average ``KL(encoder || p(z|x))``:
    ``1/2 [tr(P (V - G) C (V - G)^T) + tr(P q_cov) - d - log det(P q_cov)]`` with the posterior's precision P
    and the exact encoder's matrix G. Zero iff both are the posterior's (on the support of the data).

    Shapes: ``V (..., d, m)``, ``q_cov (..., d, d)``, ``covariance C (..., m, m)`` of data with mean b, result
    ``(...)``. Raises ``ValueError`` if they do not fit together or ``q_cov`` is not positive definite.
    Ledger C4.
    """
    if V.shape[-2:] != (model.num_latents, model.num_dims) or q_cov.shape[-2:] != (model.num_latents,) * 2:
        raise ValueError(
            f"V must be (..., d, m) and q_cov (..., d, d), d = {model.num_latents} and m = {model.num_dims}, "
            f"got {tuple(V.shape)} and {tuple(q_cov.shape)}: the encoder must match the model's W"
        )
    precision = model.posterior_precision()  # (..., d, d)
    wrong = V - model.encoder()  # (..., d, m)
    square = ((precision @ wrong @ covariance) * wrong).sum((-1, -2))
    trace = (precision * q_cov).sum((-1, -2))
    return 0.5 * (square + trace - model.num_latents - log_det(q_cov, "q_cov") - torch.logdet(precision))


def approximation_gap(model: LinearGaussian) -> Tensor:
    """What the best diagonal Gaussian for each x still misses: ``1/2 [sum_j log P_jj - log det P]``, in nats.

    P is the posterior's precision; that best q has the posterior's mean and the variances ``1 / P_jj``. It is
    the part of a mean-field encoder's gap that no amortisation can remove (Cremer, Li and Duvenaud 2018).
    Shape: the model's leading dimensions. Ledger C4.
    """
    precision = model.posterior_precision()  # (..., d, d)
    return 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.logdet(precision))


def _check_shapes(W: Tensor | None, V: Tensor, log_var: Tensor, covariance: Tensor) -> None:
    num_latents, num_dims = V.shape[-2:] if V.dim() > 1 else (0, 0)
    fits = log_var.shape[-1:] == (num_latents,) and covariance.shape[-2:] == (num_dims, num_dims)
    if W is not None:
        fits = fits and W.shape[-2:] == (num_dims, num_latents)
    if not fits:
        got = {"W": W, "V": V, "log_var": log_var, "covariance": covariance}
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in got.items() if t is not None)
        raise ValueError(
            "W (..., m, d), V (..., d, m), log_var (..., d) and covariance (..., m, m) must share m and d, "
            f"got {shapes}: V maps data to latents, W latents to data"
        )
