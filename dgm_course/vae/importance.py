"""Importance sampling of a trained VAE: the log-weights behind its likelihood estimate L_5000. Ledger I8."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.vae.model import VAE

#: pairs (sample, x) evaluated at once
_ROWS = 10_000


@torch.no_grad()
def importance_log_weights(
    vae: VAE, x: Tensor, *, num_samples: int = 5000, generator: torch.Generator | None = None
) -> Tensor:
    """K log-weights of each x, without gradients and in blocks: ``x (B, m) -> ([E,] K, B)``, nats.

    ``iwae_bound(log_w, dim=-2)`` is L_K, which estimates ``log p(x)`` from below (Burda et al. 2016 report
    K = 5000), ``effective_sample_size(log_w, dim=-2)`` its warning light, ``log_w.mean(-2)`` the ELBO. The
    result takes 4 E K B bytes in float32, everything else stays small. Ledger I8. Raises ``ValueError``
    without samples or rows.
    """
    if num_samples < 1 or x.dim() < 2 or x.shape[-2] == 0:
        raise ValueError(
            f"needs num_samples >= 1 and x (B, m) with B >= 1, got {num_samples} and {tuple(x.shape)}: use "
            "x.unsqueeze(0) for one x"
        )
    stack = () if vae.members is None else (vae.members,)
    block = max(1, _ROWS // ((vae.members or 1) * x.shape[-2]))
    reference = next(vae.parameters())
    log_w = torch.empty(*stack, num_samples, x.shape[-2], dtype=reference.dtype, device=reference.device)
    for part in log_w.split(block, dim=-2):
        part.copy_(vae.log_weights(x, num_samples=part.shape[-2], generator=generator))
    return log_w
