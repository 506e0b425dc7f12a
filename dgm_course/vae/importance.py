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
    members = vae.members or 1
    block = max(1, min(num_samples, _ROWS // (members * x.shape[-2])))
    counts = [block] * (num_samples // block) + [num_samples % block] * (num_samples % block > 0)
    return torch.cat([vae.log_weights(x, num_samples=k, generator=generator) for k in counts], dim=-2)
