"""One discretized logistic, the coupling of the channels, and the plain formula of a mixture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dgm_course.logistic_mixture.checks import check_levels
from dgm_course.logistic_mixture.inputs import common_dtype, in_common_dtype


def discretized_logistic_log_prob(
    y: Tensor, mean: Tensor | float, log_scale: Tensor | float, *, num_levels: int
) -> Tensor:
    """``log P(y) = log [F(y + 1/2) - F(y - 1/2)]`` of one logistic, in nats; all arguments broadcast.

    ``y`` holds levels 0, ..., L - 1. The lower edge of level 0 is minus infinity, the upper edge of level
    L - 1 plus infinity, so that the L probabilities sum to one. Computed without a difference, as
    ``-softplus(-a) - softplus(b) + log(1 - exp(-1/s))`` with ``a = (y + 1/2 - mean) / s`` and
    ``b = (y - 1/2 - mean) / s``, so it neither underflows nor cancels. Differentiable any number of times.

    Finite for all finite parameters: a log-scale beyond 80 in size (float64: 600) counts as 80 (600), and a
    distance beyond 1e30 scales (1e300) as that, with gradient 0 there. Ledger D2; Salimans et al. 2017,
    "PixelCNN++". In the widest dtype of the three, float32 at least. Raises ``ValueError`` for a y that is no
    level.
    """
    check_levels(y, num_levels)
    return _log_prob(*in_common_dtype(y, mean, log_scale), num_levels)


def inverse_scale_of(log_scale: Tensor) -> Tensor:
    """``1/s``, a number other than 0: a log-scale beyond 80 in size (float64: 600) counts as 80 (600)."""
    most = 600.0 if log_scale.dtype == torch.float64 else 80.0
    return torch.exp(-log_scale.clamp(-most, most))


def _log_prob(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    most_scales = 1e300 if y.dtype == torch.float64 else 1e30
    inverse_scale = inverse_scale_of(log_scale)
    above = ((y + 0.5 - mean) * inverse_scale).clamp(-most_scales, most_scales)
    below = ((y - 0.5 - mean) * inverse_scale).clamp(-most_scales, most_scales)
    closed_below, closed_above = (y > 0).to(y.dtype), (y < num_levels - 1).to(y.dtype)
    log_width = torch.log(-torch.expm1(-inverse_scale))  # of the bin, on the logistic's own scale
    return (
        closed_below * closed_above * log_width
        + closed_above * logsigmoid(above)
        + closed_below * logsigmoid(-below)
    )


def coupled_means(y: Tensor, mean: Tensor, coefficients: Tensor, num_levels: int) -> Tensor:
    """Means of the three channels given the pixel's earlier channels: ``(..., 3, K)``."""
    centred = (y.to(mean.dtype) - 0.5 * (num_levels - 1)).unsqueeze(-1)  # (..., 3, 1)
    red, green = centred[..., 0, :], centred[..., 1, :]  # (..., 1)
    a, b, d = coefficients.unbind(-2)  # (..., K)
    m_red, m_green, m_blue = mean.unbind(-2)
    means = torch.broadcast_tensors(m_red, m_green + a * red, m_blue + b * red + d * green)
    return torch.stack(means, dim=-2)


def plain_log_prob(y: Tensor, parameters: Sequence[Tensor], num_levels: int) -> Tensor:
    """The mixture's log-probability as it is written: levels ``y (..., C)`` give ``(...)``.

    ``parameters`` are the logits ``(..., K)``, mean and log-scale ``(..., C, K)``, and for three coupled
    channels the coefficients ``(..., 3, K)``. Differentiable any number of times.
    """
    logits, mean, log_scale, *coefficients = parameters
    if coefficients:
        mean = coupled_means(y, mean, coefficients[0], num_levels)
    dtype = common_dtype(y, mean, log_scale)
    channels = _log_prob(y.unsqueeze(-1).to(dtype), mean.to(dtype), log_scale.to(dtype), num_levels)
    return torch.logsumexp(torch.log_softmax(logits, dim=-1) + channels.sum(-2), dim=-1)
