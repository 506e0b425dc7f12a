"""Three bounds of ``log P(y) = log int_[0,1)^m p(y + u) du``, and bits per dimension.

``log_prob`` is any function ``x (..., m) -> (...)`` that gives log p(x) in nats, x being levels plus noise.
For a density of scaled data put the scale into it (``flows.FixedAffine``), or account for it by
:func:`bits_per_dim`. A stack of E densities needs a y for each, ``y.expand(E, B, m)``, or a dequantizer that
is a stack as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dgm_course.bounds import iwae_bound
from dgm_course.dequantization.noise import Dequantizer, UniformDequantizer
from dgm_course.numerics import nats_to_bits_per_dim

LogProb = Callable[[Tensor], Tensor]


def dequantize(y: Tensor, u: Tensor) -> Tensor:
    """``x = y + u``, kept inside the bin ``[y, y + 1)``, in u's dtype; y and u broadcast.

    The sum of a level and a number just below 1 can round up to the next level, which belongs to another
    bin: there the result is the largest float below y + 1. Gradients reach u as they are, there too.
    ``u`` lies in [0, 1), as a dequantizer's does; that is not checked. Ledger D4.
    """
    level = y.to(u.dtype)
    x = level + u
    top = torch.nextafter(level + 1.0, level)
    return torch.where(x > top, top + (u - u.detach()), x)


def dequantization_log_weights(
    log_prob: LogProb,
    dequantizer: Dequantizer,
    y: Tensor,
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``log p(y + u_k) - log q(u_k|y)``, ``u_k ~ q(u|y)``: ``y (..., B, m)`` gives ``(..., K, B)``, nats.

    ``E exp`` of each is P(y). The three bounds are averages of these, in two ways. Ledger D5, D6. Raises
    ``ValueError`` without samples, for a y that is not ``(..., B, m)`` or holds no whole numbers, and if
    ``log_prob`` gives another shape than ``(..., K, B)``.
    """
    u, log_q = dequantizer.rsample(y, num_samples, generator=generator)  # (..., K, B, m), (..., K, B)
    x = dequantize(y.unsqueeze(-3), u)
    log_p = log_prob(x)
    if log_p.shape != x.shape[:-1]:
        raise ValueError(
            f"log_prob must give one number for each x, {tuple(x.shape[:-1])} for {tuple(x.shape)}, got "
            f"{tuple(log_p.shape)}: sum over the dimensions (torch.distributions.Independent does)"
        )
    return log_p - log_q


def uniform_bound(
    log_prob: LogProb, y: Tensor, *, num_samples: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """``E_u log p(y + u)``, u uniform on the unit cube: an estimate of a lower bound of log P(y), in nats.

    ``y (..., B, m)`` gives ``(..., B)``, the mean over ``num_samples`` draws. The gap to log P(y) is
    ``KL(U || p(u|y))``. Ledger D4; Theis et al. 2016, "A note on the evaluation of generative models".
    """
    noise = UniformDequantizer()
    return variational_bound(log_prob, noise, y, num_samples=num_samples, generator=generator)


def variational_bound(
    log_prob: LogProb,
    dequantizer: Dequantizer,
    y: Tensor,
    *,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``E_q[log p(y + u) - log q(u|y)]``: an estimate of a lower bound of log P(y), in nats.

    ``y (..., B, m)`` gives ``(..., B)``, the mean over ``num_samples`` draws. The gap to log P(y) is
    ``KL(q(u|y) || p(u|y))``; with uniform q it is :func:`uniform_bound`. Differentiable in the parameters of
    p and of q. Ledger D5; Ho et al. 2019, "Flow++".
    """
    weights = dequantization_log_weights(
        log_prob, dequantizer, y, num_samples=num_samples, generator=generator
    )
    return weights.mean(-2)


def importance_weighted_bound(
    log_prob: LogProb,
    dequantizer: Dequantizer,
    y: Tensor,
    *,
    num_samples: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``log (1/K) sum_k p(y + u_k) / q(u_k|y)``: one draw of the K-sample bound of log P(y), in nats.

    ``y (..., B, m)`` gives ``(..., B)``. Its mean rises with K, from the variational bound at K = 1 to
    log P(y). Ledger D6; Hoogeboom et al. 2020, "Learning discrete distributions by dequantization".
    """
    weights = dequantization_log_weights(
        log_prob, dequantizer, y, num_samples=num_samples, generator=generator
    )
    return iwae_bound(weights, dim=-2)


def bits_per_dim(log_prob: Tensor, num_dims: int, *, bin_width: float) -> Tensor:
    """Bits per dimension of discrete data under a density: ``-(log_prob / m + log bin_width) / log 2``.

    ``log_prob (...)`` in nats is log p(x), or a bound of it, for x on the scale that the model sees, and
    ``bin_width`` the distance of neighbouring levels on that scale: 1 for levels, 1/256 for 8-bit data scaled
    to [0, 1), 2/255 for [-1, 1]. A probability P(y) is a mass already: ``bin_width=1``. Leaving the width
    out would flatter the second model by 8 bits. Shape ``(...)``.

    Ledger D7. Raises ``ValueError`` unless ``bin_width`` is positive and ``num_dims >= 1``.
    """
    if not (bin_width > 0 and math.isfinite(bin_width)):
        raise ValueError(
            f"bin_width must be a positive number, got {bin_width}: the distance of neighbouring levels, 1 "
            "if the data are not scaled"
        )
    return nats_to_bits_per_dim(-log_prob, num_dims) - math.log2(bin_width)
