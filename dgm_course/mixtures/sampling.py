"""Samples of a mixture of diagonal Gaussians: first the component, then the point."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.gaussian import gaussian_sample
from dgm_course.mixtures.checks import as_components


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
    ``generator`` must live on the device of ``means``. Ledger S5. Raises ``ValueError`` unless ``n >= 1``,
    for shapes that do not fit, and for log-weights without any weight.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: ask for some samples")
    log_vars, log_weights = as_components(means, log_vars, log_weights)
    weights = torch.softmax(log_weights.detach(), -1)  # ([E,] components)
    if not bool(weights.isfinite().all()):
        raise ValueError(
            "log_weights must leave some component a weight, got NaN or +inf, or -inf for all of them: look "
            "at what they were computed from"
        )
    chosen = torch.multinomial(weights, n, replacement=True, generator=generator)  # ([E,] n)
    rows = chosen.unsqueeze(-1).expand(*chosen.shape, means.shape[-1])
    return gaussian_sample(means.gather(-2, rows), log_vars.gather(-2, rows), generator=generator)
