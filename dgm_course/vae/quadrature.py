"""Exact bounds and likelihoods of VAEs with one or two latents, by quadrature. The oracle of Ledger C6."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.gaussian import gaussian_entropy, gaussian_kl_per_dim
from dgm_course.numerics import gauss_hermite, gauss_legendre
from dgm_course.vae.model import VAE, ELBOTerms

#: nodes evaluated at once: the memory does not grow with the grid (unless gradients are recorded)
_BLOCK = 256


def quadrature_elbo(vae: VAE, x: Tensor, num_nodes: int = 32) -> ELBOTerms:
    """The ELBO's terms at ``x (..., B, m)`` without sampling noise, for ``latent_dim <= 2``.

    ``E_q log p(x|z) = sum_n w_n log p(x | mean(x) + exp(log_var(x)/2) node_n)`` with Gauss-Hermite nodes,
    ``num_nodes`` along each latent. Differentiable, so it can be trained on; but with one coarse rule the
    optimiser learns to hide steep changes of the decoder between the nodes, and the bound is false.
    Change the rule from step to step (``num_nodes=5 + step % 4``), and report with a fine one (64).
    Ledger C6. Raises ``ValueError`` for more than two latents.
    """
    _check(vae, x)
    if not vae.gaussian_posterior:
        raise ValueError(
            "quadrature_elbo's nodes follow a Gaussian posterior, this VAE has a flow: use grid_terms, whose "
            "nodes you choose"
        )
    mean, log_var = vae.encode(x)  # (..., B, d)
    nodes, weights = gauss_hermite(
        num_nodes, num_dims=vae.latent_dim, dtype=mean.dtype, device=mean.device
    )  # (N, d), (N,)
    std, dim = torch.exp(0.5 * log_var), vae._sample_dim
    ones = [1] * (mean.dim() - 1 - dim)  # the batch dimensions behind the nodes
    log_likelihood = log_prior = mean.new_zeros(mean.shape[:-1])  # (..., B)
    for node, weight in zip(nodes.split(_BLOCK), weights.split(_BLOCK), strict=True):
        node, weight = node.reshape(-1, *ones, vae.latent_dim), weight.reshape(-1, *ones)
        z = mean.unsqueeze(dim) + std.unsqueeze(dim) * node  # ([E,] N, ..., B, d)
        log_likelihood = log_likelihood + (weight * vae.decoder.log_prob(x, z)).sum(dim)
        if vae.prior is not None:
            log_prior = log_prior + (weight * vae.prior.log_prob(z)).sum(dim)
    if vae.prior is None:
        return ELBOTerms(log_likelihood, gaussian_kl_per_dim(mean, log_var))
    return ELBOTerms(log_likelihood, (-gaussian_entropy(log_var) - log_prior).unsqueeze(-1))


def quadrature_log_prob(vae: VAE, x: Tensor, num_nodes: int = 128, *, radius: float = 8.0) -> Tensor:
    """``log p(x) = log int p(x|z) p(z) dz`` at ``x (B, m)``, for ``latent_dim <= 2``: ``(..., B)``.

    Gauss-Legendre on ``[-radius, radius]``, ``num_nodes`` along each latent; what lies outside has mass
    1e-15 at radius 8 under N(0, I) (give a wider prior of the model's own a larger one). Double ``num_nodes``
    to see how many digits stand. Ledger C6.
    Raises ``ValueError`` for more than two latents.
    """
    _check(vae, x)
    reference = next(vae.parameters())
    nodes, weights = gauss_legendre(
        -radius, radius, num_nodes, num_dims=vae.latent_dim, dtype=reference.dtype, device=reference.device
    )  # (N, d), (N,)
    parts = []
    for node, weight in zip(nodes.split(_BLOCK), weights.split(_BLOCK), strict=True):
        z = node.unsqueeze(-2)  # (N, 1, d)
        if vae.members is not None:
            z = z.expand(vae.members, *z.shape)  # (E, N, 1, d)
        log_mass = weight.log()[:, None] + vae.prior_log_prob(z)  # ([E,] N, 1)
        parts.append(torch.logsumexp(vae.decoder.log_prob(x, z) + log_mass, dim=-2))  # (..., B)
    return torch.logsumexp(torch.stack(parts), dim=0)


def _check(vae: VAE, x: Tensor) -> None:
    if x.dim() < 2:
        raise ValueError(f"x must be (..., B, m), got shape {tuple(x.shape)}: use x.unsqueeze(0) for one x")
    if vae.latent_dim > 2:
        raise ValueError(
            f"quadrature needs latent_dim <= 2, got {vae.latent_dim}: its grid grows like "
            "num_nodes ** latent_dim; use sampled terms or importance sampling instead"
        )
