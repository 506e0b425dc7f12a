"""The importance-weighted bound of a VAE: its log-weights in blocks (Ledger I8), and a loss for DReG (I7)."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.bounds import iwae_bound, normalized_weights
from dgm_course.vae.model import VAE


@torch.no_grad()
def importance_log_weights(
    vae: VAE,
    x: Tensor,
    *,
    num_samples: int = 5000,
    generator: torch.Generator | None = None,
    rows: int = 10_000,
) -> Tensor:
    """K log-weights of each x, without gradients and in blocks: ``x (B, m) -> ([E,] K, B)``, nats.

    ``iwae_bound(log_w, dim=-2)`` is L_K, which estimates ``log p(x)`` from below (Burda et al. 2016 report
    K = 5000), ``effective_sample_size(log_w, dim=-2)`` its warning light, ``log_w.mean(-2)`` the ELBO. The
    result takes 4 E K B bytes in float32; beside it, memory for ``rows`` pairs of a sample and an x. The draw
    depends on ``rows``. Ledger I8. Raises ``ValueError`` without samples, data or rows.
    """
    if num_samples < 1 or rows < 1:
        raise ValueError(f"num_samples and rows must be at least 1, got {num_samples} and {rows}")
    if x.dim() < 2 or x.shape[-2] == 0:
        raise ValueError(f"x must be (B, m) with B >= 1, got {tuple(x.shape)}: use x.unsqueeze(0) for one x")
    stack = () if vae.members is None else (vae.members,)
    rows = max(1, rows // (vae.members or 1))
    reference = next(vae.parameters())
    log_w = torch.empty(*stack, num_samples, x.shape[-2], dtype=reference.dtype, device=reference.device)
    columns = min(x.shape[-2], max(1, rows // 20))  # few enough that the encoder's share stays small
    block = max(1, rows // columns)
    for data, part in zip(x.split(columns, dim=-2), log_w.split(columns, dim=-1), strict=True):
        for samples in part.split(block, dim=-2):
            count = samples.shape[-2]
            samples.copy_(vae.log_weights(data, num_samples=count, generator=generator))
    return log_w


def dreg_loss(
    vae: VAE, x: Tensor, *, num_samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """``-L_K`` averaged over the batch, with the doubly reparametrised gradient for the encoder: ``([E])``.

    Its value is one draw of ``-iwae_bound`` (nats); its gradient is unbiased for that of ``-L_K``. For the
    decoder it is the plain one, ``sum_k w^_k grad log w_k``, for the encoder
    ``sum_k w^_k^2 d log w_k/dz dz/dphi``: what arrives at z_k has been weighted once, and is weighted once
    more on its way on. Tucker et al. 2019. Ledger I7. ``x`` and errors as in :meth:`VAE.log_weights`.
    """
    z, log_q = vae.posterior_sample(x, num_samples=num_samples, generator=generator, stop_score=True)
    log_w = vae.log_joint(x, z) - log_q  # ([E,] K, B)
    weights = normalized_weights(log_w.detach(), dim=-2)
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * weights.unsqueeze(-1))
    surrogate = (weights * log_w).sum(-2)  # ([E,] B): the right gradient, another value
    bound = iwae_bound(log_w.detach(), dim=-2) + surrogate - surrogate.detach()
    return -bound.mean(-1)
