"""Diagonal Gaussians, given as ``(mean, log_var)``; the last dimension is the event, all others are batch.

``log_var`` is the logarithm of the *variance* (not of the standard deviation). Plain numbers are allowed
wherever one value serves all entries, so ``gaussian_kl(mean, log_var)`` is the divergence from N(0, I).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)


def gaussian_log_prob(x: Tensor, mean: Tensor | float, log_var: Tensor | float) -> Tensor:
    """Log-density of N(mean, diag exp(log_var)) at ``x``, in nats.

    ``-1/2 sum_j [log 2 pi + log_var_j + (x_j - mean_j)^2 exp(-log_var_j)]``

    Shapes: ``x``, ``mean``, ``log_var`` broadcast to ``(..., d)``; the result is ``(...)``.
    Raises ``ValueError`` if the event sizes ``d`` differ.
    """
    _check_event(x=x, mean=mean, log_var=log_var)
    log_var = _like(log_var, x)
    return -0.5 * (LOG_2PI + log_var + (x - mean) ** 2 * torch.exp(-log_var)).sum(-1)


def gaussian_kl_per_dim(
    mean: Tensor, log_var: Tensor, other_mean: Tensor | float = 0.0, other_log_var: Tensor | float = 0.0
) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(other_mean, exp(other_log_var))) of each dimension, in nats.

    ``1/2 [exp(r) - 1 - r + (mean - other_mean)^2 exp(-other_log_var)]`` with ``r = log_var - other_log_var``.

    Shapes: the arguments broadcast to ``(..., d)``, which is also the result's. The default is the divergence
    from N(0, I). Raises ``ValueError`` if the event sizes ``d`` differ.
    """
    _check_event(mean=mean, log_var=log_var, other_mean=other_mean, other_log_var=other_log_var)
    log_ratio = log_var - other_log_var  # (..., d)
    shift = mean - other_mean  # (..., d)
    if isinstance(other_log_var, Tensor):
        squared = shift**2 * torch.exp(-other_log_var)
    else:
        squared = shift**2 * math.exp(-other_log_var)
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + squared)


def gaussian_kl(
    mean: Tensor, log_var: Tensor, other_mean: Tensor | float = 0.0, other_log_var: Tensor | float = 0.0
) -> Tensor:
    """KL(N(mean, diag exp(log_var)) || N(other_mean, diag exp(other_log_var))), in nats.

    The sum of :func:`gaussian_kl_per_dim` over the last dimension: ``(..., d) -> (...)``. The default is the
    divergence from N(0, I). Raises ``ValueError`` if the event sizes ``d`` differ.
    """
    return gaussian_kl_per_dim(mean, log_var, other_mean, other_log_var).sum(-1)


def gaussian_chi2(
    mean: Tensor, log_var: Tensor, other_mean: Tensor | float = 0.0, other_log_var: Tensor | float = 0.0
) -> Tensor:
    """chi2(p || q) = ``E_q[(p / q)^2] - 1`` of p = N(mean, diag exp(log_var)), q = N(other_mean, ...).

    With precisions a of p and b of q and the gap delta of their means, one dimension gives
    ``1 + chi2 = a / sqrt(b (2a - b)) exp(a b delta^2 / (2a - b))``, infinite unless ``b < 2a``: q's tails
    must not be too light. Dimensions multiply. The default q is N(0, I).

    Shapes: the arguments broadcast to ``(..., d)``, the result is ``(...)``. Raises ``ValueError`` if the
    event sizes ``d`` differ. Ledger I3.
    """
    _check_event(mean=mean, log_var=log_var, other_mean=other_mean, other_log_var=other_log_var)
    shift, other = mean - other_mean, _like(other_log_var, mean if isinstance(mean, Tensor) else log_var)
    log_ratio = log_var - other  # (..., d): log b / a
    finite = (log_ratio < math.log(2.0)).all(-1, keepdim=True)
    log_ratio = torch.where(finite, log_ratio, 0.0)  # keeps the gradient of the other rows finite
    excess = torch.expm1(log_ratio)  # b / a - 1
    square = shift**2 * torch.exp(-other)  # b delta^2
    # log b (2a - b) / a^2, written as 1 - (b / a - 1)^2 near b = a, and factor by factor where q is wide
    near = log_ratio > -0.7
    log_product = torch.where(
        near, torch.log1p(-torch.where(near, excess, 0.0) ** 2), log_ratio + torch.log1p(-excess)
    )
    terms = square / (1.0 - excess) - 0.5 * log_product
    return torch.where(finite.squeeze(-1), torch.expm1(terms.sum(-1)), math.inf)


def gaussian_entropy(log_var: Tensor) -> Tensor:
    """Entropy ``1/2 sum_j (1 + log 2 pi + log_var_j)`` of a diagonal Gaussian: ``(..., d) -> (...)``."""
    return 0.5 * (1.0 + LOG_2PI + log_var).sum(-1)


def gaussian_sample(
    mean: Tensor,
    log_var: Tensor,
    *,
    generator: torch.Generator | None = None,
    sample_shape: Sequence[int] = (),
) -> Tensor:
    """Reparametrised samples ``mean + exp(log_var / 2) eps`` with ``eps ~ N(0, I)``.

    Shape: ``sample_shape + (..., d)``, the arguments broadcast together. Gradients flow to both arguments.
    ``generator`` must live on the device of ``mean``. Raises ``ValueError`` if the event sizes ``d`` differ.
    """
    _check_event(mean=mean, log_var=log_var)
    shape = (*sample_shape, *torch.broadcast_shapes(mean.shape, log_var.shape))
    eps = torch.randn(shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + torch.exp(0.5 * log_var) * eps


def _like(value: Tensor | float, reference: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=reference.dtype, device=reference.device)


def _check_event(**arguments: Tensor | float) -> None:
    """Means and points share one event size; a variance may be shared by the event (last dimension 1)."""
    sizes = {name: a.shape[-1] for name, a in arguments.items() if isinstance(a, Tensor) and a.dim() > 0}
    points = {size for name, size in sizes.items() if not name.endswith("log_var")}
    spreads = {size for name, size in sizes.items() if name.endswith("log_var")} - ({1} if points else set())
    if len(points | spreads) <= 1:
        return
    got = ", ".join(f"{name} {tuple(arguments[name].shape)}" for name in sizes)  # type: ignore[union-attr]
    raise ValueError(
        f"the last dimension (the event) must be the same in all arguments, got {got}: "
        "check for a missing or an extra dimension"
    )
