"""Discretized logistics: the probability of a level is the mass of its bin, the outermost bins are open."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dgm_course.logistic_mixture.checks import check_components, check_levels, check_rgb


def discretized_logistic_log_prob(
    y: Tensor, mean: Tensor | float, log_scale: Tensor | float, *, num_levels: int
) -> Tensor:
    """``log P(y) = log [F(y + 1/2) - F(y - 1/2)]`` of one logistic, in nats; all arguments broadcast.

    ``y`` holds levels 0, ..., L - 1. The lower edge of level 0 is minus infinity, the upper edge of level
    L - 1 plus infinity, so that the L probabilities sum to one. Computed without a difference, as
    ``-softplus(-a) - softplus(b) + log(1 - exp(-1/s))`` with ``a = (y + 1/2 - mean) / s`` and
    ``b = (y - 1/2 - mean) / s``, so it neither underflows nor cancels. Differentiable any number of times.

    Ledger D2; Salimans et al. 2017, "PixelCNN++". Raises ``ValueError`` for a y that is no level.
    """
    check_levels(y, num_levels)
    mean, log_scale = torch.as_tensor(mean), torch.as_tensor(log_scale)
    dtype = torch.promote_types(mean.dtype, log_scale.dtype)
    if y.is_floating_point():
        dtype = torch.promote_types(dtype, y.dtype)
    device = y.device
    y, mean, log_scale = y.to(dtype), mean.to(device, dtype), log_scale.to(device, dtype)
    inverse_scale = torch.exp(-log_scale)
    above = (y + 0.5 - mean) * inverse_scale
    below = (y - 0.5 - mean) * inverse_scale
    closed_below, closed_above = (y > 0).to(dtype), (y < num_levels - 1).to(dtype)
    log_width = torch.log(-torch.expm1(-inverse_scale))  # of the bin, on the logistic's own scale
    return (
        closed_below * closed_above * log_width
        - closed_above * softplus(-above)
        - closed_below * softplus(below)
    )


def discretized_logistic_mixture_log_prob(
    y: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, *, num_levels: int
) -> Tensor:
    """``log sum_k w_k [F_k(y + 1/2) - F_k(y - 1/2)]``, ``w = softmax(logits)``, in nats, for one channel.

    ``y (...)``, levels 0, ..., L - 1, and parameters ``(..., K)`` in levels, whose leading dimensions
    broadcast, give ``(...)``; 3K numbers a pixel for any L, where a categorical needs L. Open outer bins as
    in :func:`discretized_logistic_log_prob`.

    Ledger D3; Salimans et al. 2017, "PixelCNN++". Raises ``ValueError`` for a y that is no level and for
    parameters with different K.
    """
    check_components(logits, mean, log_scale)
    components = discretized_logistic_log_prob(y.unsqueeze(-1), mean, log_scale, num_levels=num_levels)
    return torch.logsumexp(torch.log_softmax(logits, dim=-1) + components, dim=-1)


def rgb_logistic_mixture_log_prob(
    y: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, coefficients: Tensor, *, num_levels: int
) -> Tensor:
    """Log-probability of a colour pixel: K components, in each of which the channels are coupled linearly.

    ``y (..., 3)``, ``logits (..., K)`` and ``mean, log_scale, coefficients (..., 3, K)``, whose leading
    dimensions broadcast, give ``(...)`` in nats: 10K numbers a pixel. In component k the channels are
    discretized logistics with means (levels counted from the middle, ``c = (L - 1) / 2``)

    ``m_r``,  ``m_g + a (y_r - c)``  and  ``m_b + b (y_r - c) + d (y_g - c)``,

    ``coefficients = (a, b, d)``, usually a tanh. Ledger D3; Salimans et al. 2017, "PixelCNN++", section 2.2.
    Raises ``ValueError`` for a y that is no level and for parameters that do not fit.
    """
    check_rgb(logits, mean, log_scale, coefficients)
    means = coupled_means(y, mean, coefficients, num_levels)  # (..., 3, K)
    channels = discretized_logistic_log_prob(y.unsqueeze(-1), means, log_scale, num_levels=num_levels)
    return torch.logsumexp(torch.log_softmax(logits, dim=-1) + channels.sum(-2), dim=-1)


def coupled_means(y: Tensor, mean: Tensor, coefficients: Tensor, num_levels: int) -> Tensor:
    """Means of the three channels given the pixel's earlier channels: ``(..., 3, K)``."""
    centred = (y.to(mean.dtype) - 0.5 * (num_levels - 1)).unsqueeze(-1)  # (..., 3, 1)
    red, green = centred[..., 0, :], centred[..., 1, :]  # (..., 1)
    a, b, d = coefficients.unbind(-2)  # (..., K)
    m_red, m_green, m_blue = mean.unbind(-2)
    means = torch.broadcast_tensors(m_red, m_green + a * red, m_blue + b * red + d * green)
    return torch.stack(means, dim=-2)
