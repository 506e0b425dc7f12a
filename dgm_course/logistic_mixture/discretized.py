"""Mixtures of discretized logistics: a pixel of one channel, and a colour pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_course.logistic_mixture.checks import (
    as_constant_levels,
    check_colour,
    check_components,
    check_device,
    check_rgb,
)
from dgm_course.logistic_mixture.components import plain_log_prob
from dgm_course.logistic_mixture.inputs import common_dtype, out_of_inference_mode
from dgm_course.logistic_mixture.streamed import is_streamable, leading_dimensions, streamed_log_prob

#: Up to this many numbers, pixels times channels times components, the plain formula is the fastest way.
SMALL = 2**11


def discretized_logistic_mixture_log_prob(
    y: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, *, num_levels: int
) -> Tensor:
    """``log sum_k w_k [F_k(y + 1/2) - F_k(y - 1/2)]``, ``w = softmax(logits)``, in nats, for one channel.

    ``y (...)``, levels 0, ..., L - 1, and parameters ``(..., K)`` in levels, whose leading dimensions
    broadcast, give ``(...)``; 3K numbers a pixel for any L, where a categorical needs L. Open outer bins as
    in ``discretized_logistic_log_prob``. Gradients flow to the parameters; y is a constant.

    The gradient is computed together with the value, some pixels at a time, for log-scales within 20 and
    means within 1e10 in size (coefficients of colours: 1e6); the memory that takes is that of the gradient.
    Any other call, and all within ``torch.compile``, goes through the plain formula, slower and with more
    memory: finite for all finite parameters, if not exact where ``discretized_logistic_log_prob`` says so. So
    do second derivatives (``create_graph=True``), and what is small (``SMALL``), in float64. Beyond that,
    forward-mode derivatives and ``torch.func`` are refused with a ``RuntimeError``: there, write the mixture
    with ``discretized_logistic_log_prob`` and ``torch.logsumexp``.

    In the arguments' widest dtype, float32 at least: half precision is too coarse for the edges of bins.
    Ledger D3; Salimans et al. 2017, "PixelCNN++". Raises ``ValueError`` for a y that is no level or requires
    a gradient, and for parameters with different K or on another device.
    """
    check_components(logits, mean, log_scale)
    return _log_prob(y.unsqueeze(-1), [logits, mean.unsqueeze(-2), log_scale.unsqueeze(-2)], num_levels)


def rgb_logistic_mixture_log_prob(
    y: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, coefficients: Tensor, *, num_levels: int
) -> Tensor:
    """Log-probability of a colour pixel: K components, in each of which the channels are coupled linearly.

    ``y (..., 3)``, ``logits (..., K)`` and ``mean, log_scale, coefficients (..., 3, K)``, whose leading
    dimensions broadcast, give ``(...)`` in nats: 10K numbers a pixel. In component k the channels are
    discretized logistics with means (levels counted from the middle, ``c = (L - 1) / 2``)

    ``m_r``,  ``m_g + a (y_r - c)``  and  ``m_b + b (y_r - c) + d (y_g - c)``,

    ``coefficients = (a, b, d)``, usually a tanh. In float32 too, these sums are exact to the size of their
    distance from y, which may be much smaller than its terms. Range, memory, gradients and errors as in
    ``discretized_logistic_mixture_log_prob``. Ledger D3; Salimans et al. 2017, "PixelCNN++", section 2.2.
    """
    check_colour(y)
    check_rgb(logits, mean, log_scale, coefficients)
    return _log_prob(y, [logits, mean, log_scale, coefficients], num_levels)


def _log_prob(y: Tensor, parameters: Sequence[Tensor], num_levels: int) -> Tensor:
    check_device(y, *parameters)
    y = as_constant_levels(y, num_levels)
    dtype = common_dtype(y, *parameters)
    parameters = [out_of_inference_mode(t).to(dtype) for t in parameters]
    if torch.compiler.is_compiling() or not is_streamable(parameters):
        return plain_log_prob(y, parameters, num_levels)
    pixels = math.prod(torch.broadcast_shapes(*leading_dimensions(y, parameters)))
    if pixels * math.prod(parameters[1].shape[-2:]) <= SMALL:
        return plain_log_prob(y, [t.double() for t in parameters], num_levels).to(dtype)
    return streamed_log_prob(y, parameters, num_levels)
