"""Samples of a mixture of diagonal Gaussians: first the component, then the point."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.gaussian import gaussian_sample


def mixture_sample(
    n: int,
    means: Tensor,
    log_vars: Tensor | float,
    log_weights: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``n`` independent points: ``(n, d)``, or ``(E, n, d)`` from a stack of mixtures.

    Arguments as in :func:`dgm_course.mixtures.mixture_log_prob`; here weights need not be normalised.
    Gradients reach means and variances, not the weights (the choice of a component is discrete).
    ``generator`` must live on the device of ``means``. Raises ``ValueError`` unless ``n >= 1``.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: ask for some samples")
    num_components, dim = means.shape[-2:]
    log_vars = torch.as_tensor(log_vars, dtype=means.dtype, device=means.device).expand(means.shape)
    if log_weights is None:
        log_weights = means.new_zeros(num_components)
    weights = torch.softmax(log_weights, -1).expand(means.shape[:-1])  # ([E,] components)
    chosen = torch.multinomial(weights, n, replacement=True, generator=generator)  # ([E,] n)
    rows = chosen.unsqueeze(-1).expand(*chosen.shape, dim)
    return gaussian_sample(means.gather(-2, rows), log_vars.gather(-2, rows), generator=generator)
