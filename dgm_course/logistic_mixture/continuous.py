"""The logistic density and a mixture of such densities, on the line."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dgm_course.logistic_mixture.inputs import in_common_dtype


def logistic_log_prob(x: Tensor, mean: Tensor | float, log_scale: Tensor | float) -> Tensor:
    """``log sigmoid'((x - mean) / s) - log s``, ``s = exp(log_scale)``, in nats; all arguments broadcast.

    Stable for any x: the tails fall like ``exp(-|x - mean| / s)``. In the widest dtype of the three, float32
    at least; x may hold integers. Ledger D2.
    """
    x, mean, log_scale = in_common_dtype(x, mean, log_scale)
    z = (x - mean) * torch.exp(-log_scale)
    return logsigmoid(z) + logsigmoid(-z) - log_scale


def logistic_mixture_log_prob(x: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """``log sum_k w_k Logistic(x; mean_k, s_k)``, ``w = softmax(logits)``, in nats.

    ``x (...)`` and parameters ``(..., K)``, whose leading dimensions broadcast, give ``(...)``. A product of
    such densities over the last dimension is the usual continuous model of a pixel vector. Ledger D4.
    """
    x, logits, mean, log_scale = in_common_dtype(x.unsqueeze(-1), logits, mean, log_scale)
    components = logistic_log_prob(x, mean, log_scale)  # (..., K)
    return torch.logsumexp(torch.log_softmax(logits, dim=-1) + components, dim=-1)
