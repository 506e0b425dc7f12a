"""The log-density of a mixture of diagonal Gaussians. Ledger S1, S4, S5."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_course.mixtures.checks import as_exclude, as_mixture
from dgm_course.mixtures.differences import log_sum_exp, log_terms
from dgm_course.mixtures.streamed import streamed_log_prob

#: Up to this many numbers, points times components times d, all differences at once are the fastest way.
SMALL = 2**15


def mixture_log_prob(
    x: Tensor,
    means: Tensor,
    log_vars: Tensor | float,
    log_weights: Tensor | None = None,
    *,
    exclude: Tensor | None = None,
) -> Tensor:
    """``log sum_j w_j N(x; means_j, diag exp(log_vars_j))`` in nats: ``x (..., d) -> (...)``.

    ``means (n, d)``; ``log_vars`` broadcasts to it; ``log_weights (n,)`` are taken as they are (normalise
    them with ``log_softmax``; -inf is allowed), and default to ``-log n``. ``exclude (...)``, of x's batch
    shape, holds for each point the index of one component that is left out, or -1: the weights of the others
    are divided by their sum (``1 - w_j`` of normalised weights), so that a leave-one-out density is a
    density. Where nothing is left, the result is -inf and its gradient zero. A stack of E mixtures has
    ``means (E, n, d)``, ``log_weights (E, n)``, or ``(n,)`` for all, and ``x (E, ..., d)``.

    Gradients flow to all floating arguments. Time grows with m points times n components times d, memory
    with m + n: pairs are streamed in blocks, as matrix products of the expanded square. Beyond small problems
    (``SMALL``) the gradient cannot be differentiated again: that raises ``RuntimeError``.

    Rounding: products are taken in float64, and differences instead of products, as soon as the unit roundoff
    times an exponent's largest terms exceeds 1e-4 nats in float32, 1e-8 in float64: narrow components far
    from the origin cost time, not accuracy. The error was seen to stay below that on random mixtures, and to
    reach fifteen times that where all dimensions are alike; the rounding of the result itself is added. The
    method is chosen once for a call: one narrow member of a stack, or a NaN, slows all of it down.

    Values are finite, log-weights finite or -inf; at a point at infinity the value is -inf, its gradient NaN.
    Float32 and float64, CPU and CUDA. Ledger D1, S1, S4, S5. Raises ``ValueError`` for shapes, dtypes and
    indices that do not fit.
    """
    mixture = as_mixture(x, means, log_vars, log_weights)
    left_out = None if exclude is None else as_exclude(exclude, x, means.shape[-2])
    if left_out is not None:
        left_out = left_out.reshape(mixture.x.shape[:2])
    if mixture.x.numel() * means.shape[-2] <= SMALL:
        terms = log_terms(*mixture)  # (E, m, n)
        if left_out is not None:
            numbers = torch.arange(means.shape[-2], device=terms.device)
            terms = torch.where(left_out.unsqueeze(-1) == numbers, -math.inf, terms)
        value = log_sum_exp(terms)
    else:
        value = streamed_log_prob(*mixture, left_out)  # (E, m)
    if left_out is not None:
        rest = log_weight_of_others(mixture.log_w).gather(-1, left_out.clamp(min=0))
        value = value - torch.where(left_out < 0, 0.0, rest)
    return value.reshape(x.shape[:-1])


def log_weight_of_others(log_w: Tensor) -> Tensor:
    """``log sum_{i != j} w_i`` for each component j: ``(E, n) -> (E, n)``; 0 where the others have no weight.

    In O(n): sums before and after j, without ``1 - w_j``, which loses everything when w_j is nearly one. The
    largest weight's others are summed by themselves, since on its scale they may vanish.
    """
    index = torch.arange(log_w.shape[-1], device=log_w.device)
    is_top = index == log_w.argmax(-1, keepdim=True)
    of_top = log_sum_exp(torch.where(is_top, -math.inf, log_w)).unsqueeze(-1)  # (E, 1)
    peak = log_w.detach().amax(-1, keepdim=True)
    w = torch.exp(log_w - torch.where(peak == -math.inf, 0.0, peak))
    before = torch.nn.functional.pad(w[..., :-1].cumsum(-1), (1, 0))
    after = torch.nn.functional.pad(w[..., 1:].flip(-1).cumsum(-1).flip(-1), (0, 1))
    others = before + after
    of_rest = torch.where(is_top | (others == 0.0), 1.0, others).log() + peak
    log_rest = torch.where(is_top, of_top, of_rest)
    return torch.where(log_rest == -math.inf, 0.0, log_rest)
