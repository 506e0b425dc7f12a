"""numerics: stable sums against big floats, quadratures against integrals known by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from dgm_course.numerics import (
    default_device,
    gauss_hermite,
    gauss_legendre,
    log_log_slope,
    log_mean_exp,
    nats_to_bits_per_dim,
    sum_except_batch,
)


def test_default_device_is_cuda_where_there_is_one() -> None:
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("offset", [0.0, 1e5, -1e5])
def test_log_mean_exp_equals_exact_arithmetic(offset: float, device: torch.device) -> None:
    counts = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 9.0]], dtype=torch.float64, device=device)
    expected = [math.log(Fraction(7, 3)), math.log(4)]
    result = log_mean_exp(counts.log() + offset, dim=1) - offset
    assert result.dtype == torch.float64 and result.device.type == device.type
    assert result.tolist() == pytest.approx(expected, abs=1e-10)
    assert log_mean_exp(counts.log(), dim=0, keepdim=True).shape == (1, 3)


def test_log_mean_exp_of_zeros_is_minus_infinity_and_of_nothing_an_error() -> None:
    assert log_mean_exp(torch.full((4,), -math.inf), dim=0) == -math.inf
    with pytest.raises(ValueError, match="at least one term"):
        log_mean_exp(torch.zeros(3, 0), dim=1)


def test_sum_except_batch() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert sum_except_batch(x).tolist() == [66.0, 210.0]
    assert sum_except_batch(x, batch_dims=2).tolist() == x.sum(-1).tolist()
    assert sum_except_batch(x, batch_dims=3) is x
    assert sum_except_batch(x, batch_dims=0) == 276.0
    with pytest.raises(ValueError, match="batch_dims"):
        sum_except_batch(x, batch_dims=4)


def test_bits_per_dim() -> None:
    """A uniform law on 256 levels costs 8 bits a dimension, on 17 levels log2 17."""
    assert nats_to_bits_per_dim(3 * math.log(256), 3) == pytest.approx(8.0, abs=1e-14)
    nats = 64 * torch.tensor([17.0, 2.0], dtype=torch.float64).log()
    assert nats_to_bits_per_dim(nats, 64).tolist() == pytest.approx([math.log2(17), 1.0], abs=1e-14)
    with pytest.raises(ValueError, match="num_dims"):
        nats_to_bits_per_dim(1.0, 0)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_gauss_legendre_integrates_an_exponential(num_dims: int, device: torch.device) -> None:
    nodes, weights = gauss_legendre(-1.0, 2.0, 20, num_dims=num_dims, device=device)
    assert nodes.shape == (20**num_dims, num_dims) and weights.shape == (20**num_dims,)
    assert nodes.device.type == device.type and weights.dtype == torch.float64
    coefficients = torch.arange(1.0, num_dims + 1, dtype=torch.float64, device=device)
    integral = (weights * torch.exp(nodes @ coefficients)).sum()
    exact = math.prod((math.exp(2 * c) - math.exp(-c)) / c for c in range(1, num_dims + 1))
    assert integral.item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("num_nodes", [12, 64, 256])
def test_gauss_hermite_has_the_moments_of_a_normal(num_nodes: int) -> None:
    nodes, weights = gauss_hermite(num_nodes)
    moments = [(weights * nodes[:, 0] ** k).sum().item() for k in range(9)]
    assert moments == pytest.approx([1, 0, 1, 0, 3, 0, 15, 0, 105], rel=1e-11, abs=1e-11)


def test_gauss_hermite_in_two_dimensions() -> None:
    nodes, weights = gauss_hermite(32, num_dims=2)
    value = (weights * torch.cos(nodes[:, 0] + 2 * nodes[:, 1])).sum()
    assert value.item() == pytest.approx(math.exp(-2.5), abs=1e-12)


def test_quadratures_in_float32() -> None:
    nodes, weights = gauss_hermite(16, dtype=torch.float32)
    assert nodes.dtype == weights.dtype == torch.float32
    assert (weights * nodes[:, 0] ** 2).sum().item() == pytest.approx(1.0, abs=1e-5)


def test_quadratures_reject_bad_input() -> None:
    with pytest.raises(ValueError, match="low < high"):
        gauss_legendre(1.0, 1.0, 4)
    with pytest.raises(ValueError, match="num_nodes >= 1"):
        gauss_legendre(0.0, 1.0, 0)
    with pytest.raises(ValueError, match="num_dims >= 1"):
        gauss_hermite(3, num_dims=0)
    with pytest.raises(ValueError, match="at most 256"):
        gauss_hermite(257)


def test_log_log_slope_is_the_exponent_of_a_power_law() -> None:
    x = torch.tensor([1.0, 3.0, 10.0, 500.0], dtype=torch.float64)
    y = torch.stack([7 * x**-0.5, 0.1 * x**2])  # (2, 4)
    assert log_log_slope(x, y).tolist() == pytest.approx([-0.5, 2.0], abs=1e-12)
    noisy = y[0] * torch.tensor([1.0, 1.1, 0.9, 1.0], dtype=torch.float64)
    expected = np.polyfit(x.log().numpy(), noisy.log().numpy(), 1)[0]
    assert log_log_slope(x, noisy).item() == pytest.approx(expected, abs=1e-12)


def test_log_log_slope_refuses_what_has_no_exponent() -> None:
    with pytest.raises(ValueError, match="two different values"):
        log_log_slope(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="one y for each x"):
        log_log_slope(torch.tensor([1.0, 2.0]), torch.ones(3))
    with pytest.raises(ValueError, match="zero or negative"):
        log_log_slope(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
