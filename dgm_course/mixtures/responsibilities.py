"""Which component a point came from: the posterior over the components of a mixture. Ledger S2."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.mixtures.checks import as_mixture
from dgm_course.mixtures.differences import log_terms


def mixture_responsibilities(
    x: Tensor, means: Tensor, log_vars: Tensor | float, log_weights: Tensor | None = None
) -> Tensor:
    """``q(j|x) = w_j N_j(x) / sum_i w_i N_i(x)``: ``x ([E,] ..., d) -> ([E,] ..., n)``, rows sum to one.

    Dense by nature: the result has points times components entries, and the differences ``x - mean``, which
    are taken as they are (no expansion of the square), d times as many: hand in a block of points at a time.
    Exact to the rounding of an exponent, that is of ``1/2 sum (x - mean)^2 / var``. Gradients flow to all
    floating arguments, which are those of :func:`dgm_course.mixtures.mixture_log_prob`, errors included;
    weights need not be normalised. A row is nan where no component has any density. Ledger S2.
    """
    mixture = as_mixture(x, means, log_vars, log_weights)
    return torch.softmax(log_terms(*mixture), -1).reshape(*x.shape[:-1], means.shape[-2])
