"""Means of the discretized mixture, exactly, from the probabilities of exceeding each level."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.logistic_mixture.checks import (
    check_colour,
    check_components,
    check_levels,
    check_num_levels,
    check_rgb,
)
from dgm_course.logistic_mixture.components import (
    coupled_means,
    discretized_logistic_log_prob,
    inverse_scale_of,
)
from dgm_course.logistic_mixture.inputs import in_common_dtype


def discretized_logistic_mixture_mean(
    logits: Tensor, mean: Tensor, log_scale: Tensor, *, num_levels: int
) -> Tensor:
    """``E[y] = sum_k w_k sum_t P_k(y >= t)``: parameters ``(..., K)`` give ``(...)``, in levels.

    The mean of the discretized law, so always within 0, ..., L - 1, also where the logistic's own mean is
    not. In the widest dtype, float32 at least. Ledger D3. Raises ``ValueError`` for parameters with different
    K.
    """
    check_num_levels(num_levels)
    check_components(logits, mean, log_scale)
    logits, mean, log_scale = in_common_dtype(logits, mean, log_scale)
    return (torch.softmax(logits, dim=-1) * _component_means(mean, log_scale, num_levels)).sum(-1)


def rgb_logistic_mixture_mean(
    y: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, coefficients: Tensor, *, num_levels: int
) -> Tensor:
    """Each channel's mean given the pixel's earlier channels: ``E[y_r]``, ``E[y_g|y_r]``, ``E[y_b|y_r,y_g]``.

    Arguments as in ``rgb_logistic_mixture_log_prob``; gives ``(..., 3)`` in levels. What is known of the
    earlier channels moves the means *and* the weights of the components. ``y``'s blue entry is not read.
    Ledger D3. Raises ``ValueError`` for a y that is no level and for parameters that do not fit.
    """
    check_colour(y)
    check_levels(y, num_levels)
    check_rgb(logits, mean, log_scale, coefficients)
    logits, mean, log_scale, coefficients = in_common_dtype(logits, mean, log_scale, coefficients)
    means = coupled_means(y, mean, coefficients, num_levels)  # (..., 3, K)
    seen = discretized_logistic_log_prob(y.unsqueeze(-1), means, log_scale, num_levels=num_levels)
    earlier = torch.cat([torch.zeros_like(seen[..., :1, :]), seen[..., :2, :].cumsum(-2)], dim=-2)
    weights = torch.softmax(logits.unsqueeze(-2) + earlier, dim=-1)  # (..., 3, K)
    return (weights * _component_means(means, log_scale, num_levels)).sum(-1)


def _component_means(mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    """``sum_{t=1}^{L-1} P(y >= t) = sum_t sigmoid((mean - t + 1/2) / s)``, a level at a time."""
    inverse_scale = inverse_scale_of(log_scale)
    total = torch.zeros_like(mean * inverse_scale)
    for level in range(1, num_levels):
        total = total + torch.sigmoid((mean - (level - 0.5)) * inverse_scale)
    return total
