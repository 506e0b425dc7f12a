"""The bound of any posterior with a tractable density, on a grid: every term without sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgm_course.divergences import kl_divergence
from dgm_course.vae.model import VAE


@dataclass(frozen=True)
class GridTerms:
    """What a grid over z tells of a few data points, in nats; every tensor starts with E if stacked.

    ``log_q (B, N)`` are the posteriors at the nodes, ``log_q_agg (N,)`` their mixture, ``mass (B,)`` what the
    grid holds of each; ``elbo (B,)``, ``log_px (B,)`` the exact evidence, ``marginal_kl ()`` the
    ``KL(q_agg || p)`` of these B points.
    """

    log_q: Tensor
    log_q_agg: Tensor
    mass: Tensor
    elbo: Tensor
    log_px: Tensor
    marginal_kl: Tensor


@torch.no_grad()
def grid_terms(vae: VAE, x: Tensor, nodes: Tensor, weights: Tensor) -> GridTerms:
    """ELBO, evidence and marginal KL of the points ``x (B, m)`` by a quadrature over z.

    ``nodes (N, d)`` and ``weights (N,)`` have to cover prior and posteriors (``mass`` says how well they do),
    in the model's dtype. For Gaussian posteriors and flow posteriors alike; of a stack, x is shared or
    ``(E, B, m)``. Ledger V2, V4, S3. Raises ``ValueError`` if nodes and weights do not fit the latent space
    or the dtype, and for an x of another shape.
    """
    if nodes.dim() != 2 or nodes.shape[1] != vae.latent_dim or weights.shape != nodes.shape[:1]:
        raise ValueError(
            f"nodes must be (N, {vae.latent_dim}) and weights (N,), got {tuple(nodes.shape)} and "
            f"{tuple(weights.shape)}: use numerics.gauss_legendre(..., num_dims={vae.latent_dim})"
        )
    wanted = next(vae.parameters()).dtype
    if {nodes.dtype, weights.dtype} != {wanted}:
        raise ValueError(
            f"nodes and weights must have the model's dtype, {wanted}, got {nodes.dtype} and "
            f"{weights.dtype}: use numerics.gauss_legendre(..., dtype={wanted}), or vae.double()"
        )
    vae._check_draw(x, num_samples=1)
    stack = () if vae.members is None else (vae.members,)
    z = nodes.unsqueeze(1).expand(*stack, len(nodes), 1, vae.latent_dim)  # ([E,] N, 1, d)
    log_q = vae.posterior_log_prob(z, x).mT  # ([E,] B, N)
    log_prior = vae.prior_log_prob(z).mT  # ([E,] 1, N)
    log_joint = vae.decoder.log_prob(x, z).mT + log_prior  # ([E,] B, N)
    log_q_agg = torch.logsumexp(log_q, -2) - math.log(x.shape[-2])  # ([E,] N)
    return GridTerms(
        log_q=log_q,
        log_q_agg=log_q_agg,
        mass=(weights * log_q.exp()).sum(-1),
        elbo=-kl_divergence(log_q, log_joint, weights),
        log_px=torch.logsumexp(log_joint + weights.log(), -1),
        marginal_kl=kl_divergence(log_q_agg, log_prior.squeeze(-2), weights),
    )
