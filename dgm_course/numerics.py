"""Small numerical tools that every other module uses: stable sums, units, quadrature nodes."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU.

    Other back ends are used only on request (``.to("mps")``): the oracles of this course need float64.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def log_mean_exp(log_values: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Logarithm of a mean whose terms are given as logarithms: ``log (1/K) sum_k exp(log_values_k)``.

    Never overflows or underflows; entries of ``-inf`` count as zeros. Shape: ``log_values`` without ``dim``.
    Raises ``ValueError`` if there is nothing to average.

    >>> log_mean_exp(torch.tensor([1000.0, 1000.0]), dim=0)
    tensor(1000.)
    """
    count = log_values.shape[dim]
    if count == 0:
        raise ValueError(
            f"log_mean_exp needs at least one term along dim={dim}, got shape {tuple(log_values.shape)}: "
            "average over a dimension that is not empty"
        )
    return torch.logsumexp(log_values, dim=dim, keepdim=keepdim) - math.log(count)


def sum_except_batch(x: Tensor, batch_dims: int = 1) -> Tensor:
    """Sum over every dimension but the first ``batch_dims``: ``(B, ...) -> (B,)``.

    Raises ``ValueError`` if ``x`` has fewer than ``batch_dims`` dimensions.
    """
    if not 0 <= batch_dims <= x.dim():
        raise ValueError(
            f"batch_dims must lie between 0 and the number of dimensions of x ({x.dim()}), got {batch_dims}: "
            "count the leading batch dimensions of x"
        )
    return x if batch_dims == x.dim() else x.flatten(batch_dims).sum(-1)


def nats_to_bits_per_dim(nats: Number, num_dims: int) -> Number:
    """Nats per sample to bits per dimension: ``nats / (num_dims log 2)``.

    The sign is kept: hand in a negative log-likelihood to get the usual positive number. Ledger D7.
    Raises ``ValueError`` unless ``num_dims >= 1``.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, got {num_dims}: count the entries of one sample")
    return nats / (num_dims * math.log(2.0))


def log_log_slope(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares slope of ``log y`` against ``log x``: the exponent of a power law, ``(..., n) -> (...)``.

    ``x (n,)`` and ``y (..., n)`` positive. Raises ``ValueError`` unless there are two different x, or where a
    logarithm does not exist.

    >>> round(log_log_slope(torch.tensor([1.0, 10.0, 100.0]), torch.tensor([5.0, 0.5, 0.05])).item(), 6)
    -1.0
    """
    if x.dim() != 1 or y.shape[-1:] != x.shape or len(x.unique()) < 2:
        raise ValueError(
            f"x must be (n,) with two different values and y (..., n), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}: one y for each x, in the last dimension"
        )
    if not bool((x > 0).all() and (y > 0).all()):
        raise ValueError("a power law is fitted to positive numbers, and some x or y are zero or negative")
    log_x, log_y = x.log(), y.log()
    lever = log_x - log_x.mean()
    return (log_y * lever).sum(-1) / lever.square().sum()


def gauss_legendre(
    low: float,
    high: float,
    num_nodes: int,
    *,
    num_dims: int = 1,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Nodes ``(N, num_dims)`` and weights ``(N,)``: ``sum w f(node)`` is the integral of f over a box.

    The box is ``[low, high] ** num_dims``, the grid a tensor product with ``N = num_nodes ** num_dims``,
    exact for polynomials of degree ``2 num_nodes - 1`` in each variable.
    Raises ``ValueError`` unless ``low < high`` and both counts are at least 1.
    """
    _check_counts(num_nodes, num_dims)
    if not low < high:
        raise ValueError(f"the interval needs low < high, got low={low}, high={high}: swap or widen the ends")
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    half = 0.5 * (high - low)
    return _tensor_product(low + half * (nodes + 1.0), half * weights, num_dims, dtype, device)


def gauss_hermite(
    num_nodes: int,
    *,
    num_dims: int = 1,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Nodes ``(N, num_dims)`` and weights ``(N,)`` with ``E_{N(0, I)}[f] = sum w f(node)``.

    A tensor-product grid, ``N = num_nodes ** num_dims``, exact for polynomials of degree ``2 num_nodes - 1``
    in each variable; the weights sum to one. Raises ``ValueError`` unless both counts are at least 1 and
    ``num_nodes <= 256`` (beyond that the outer weights underflow).
    """
    _check_counts(num_nodes, num_dims)
    if num_nodes > 256:
        raise ValueError(f"num_nodes must be at most 256, got {num_nodes}: the outer weights would underflow")
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return _tensor_product(nodes, weights / weights.sum(), num_dims, dtype, device)


def _check_counts(num_nodes: int, num_dims: int) -> None:
    if num_nodes < 1 or num_dims < 1:
        raise ValueError(
            f"a quadrature needs num_nodes >= 1 and num_dims >= 1, got {num_nodes} and {num_dims}: "
            "give positive integers"
        )


def _tensor_product(
    nodes: np.ndarray,
    weights: np.ndarray,
    num_dims: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor]:
    """One-dimensional nodes and weights (R,) to nodes (R ** num_dims, num_dims) and their product weights."""
    axes = np.meshgrid(*[nodes] * num_dims, indexing="ij")
    products = weights
    for _ in range(num_dims - 1):
        products = np.multiply.outer(products, weights)
    grid = np.stack([axis.ravel() for axis in axes], axis=-1)  # (N, num_dims)
    return (
        torch.as_tensor(grid, dtype=dtype, device=device),
        torch.as_tensor(products.ravel(), dtype=dtype, device=device),
    )
