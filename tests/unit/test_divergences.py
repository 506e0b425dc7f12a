"""divergences: quadrature against closed forms of Gaussians, and finite sums against fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl

from dgm_course.divergences import chi2_divergence, js_divergence, kl_divergence
from dgm_course.numerics import gauss_legendre

ALL = [kl_divergence, js_divergence, chi2_divergence]
Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]


def logs(*probabilities: float | Fraction) -> Tensor:
    return torch.tensor([float(p) for p in probabilities], dtype=torch.float64).log()


def test_gaussians_in_one_dimension(device: torch.device) -> None:
    nodes, weights = gauss_legendre(-30.0, 30.0, 400, device=device)
    p, q = Normal(0.3, 1.2), Normal(-0.5, 1.5)
    log_p, log_q = p.log_prob(nodes[:, 0]), q.log_prob(nodes[:, 0])
    assert kl_divergence(log_p, log_q, weights).item() == pytest.approx(torch_kl(p, q).item(), abs=1e-6)
    # chi2 + 1 = a / sqrt(b (2a - b)) exp(a b delta^2 / (2a - b)), precisions a of p and b of q (ledger I3)
    a, b, delta = 1 / 1.2**2, 1 / 1.5**2, 0.8
    exact = a / math.sqrt(b * (2 * a - b)) * math.exp(a * b * delta**2 / (2 * a - b)) - 1
    assert chi2_divergence(log_p, log_q, weights).item() == pytest.approx(exact, rel=1e-6)


def test_gaussians_in_two_dimensions_batched() -> None:
    nodes, weights = gauss_legendre(-12.0, 12.0, 120, num_dims=2)
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.8]], dtype=torch.float64)
    means = torch.tensor([[0.0, 0.0], [1.0, -0.5], [2.0, 1.0]], dtype=torch.float64)
    q = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    p = MultivariateNormal(means, covariance)
    log_p = p.log_prob(nodes.unsqueeze(1)).T  # (3, N)
    kl = kl_divergence(log_p, q.log_prob(nodes), weights)
    assert kl.shape == (3,)
    torch.testing.assert_close(kl, torch_kl(p, q), rtol=1e-10, atol=1e-10)


def test_finite_sums_against_fractions() -> None:
    p, q = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)], [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)]
    log_p, log_q, ones = logs(*p), logs(*q), torch.ones(3, dtype=torch.float64)
    chi2 = sum((a - b) ** 2 / b for a, b in zip(p, q, strict=True))
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    js = sum(
        a * math.log(2 * a / (a + b)) / 2 + b * math.log(2 * b / (a + b)) / 2
        for a, b in zip(p, q, strict=True)
    )
    assert kl_divergence(log_p, log_q, ones).item() == pytest.approx(kl, abs=1e-14)
    assert js_divergence(log_p, log_q, ones).item() == pytest.approx(js, abs=1e-14)
    assert js_divergence(log_q, log_p, ones).item() == pytest.approx(js, abs=1e-14)
    assert chi2_divergence(log_p, log_q, ones).item() == pytest.approx(chi2, abs=1e-14)


@pytest.mark.parametrize("divergence", ALL)
def test_zero_between_equals_even_with_holes(divergence: Divergence) -> None:
    log_p = logs(0.0, 0.25, 0.75, 0.0)
    assert divergence(log_p, log_p, torch.ones(4, dtype=torch.float64)) == 0.0


def test_densities_with_zeros() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    inside, outside = logs(0.0, 0.5, 0.5, 0.0), logs(0.25, 0.25, 0.25, 0.25)
    disjoint = logs(0.5, 0.0, 0.0, 0.5)
    assert kl_divergence(inside, outside, ones).item() == pytest.approx(math.log(2), abs=1e-14)
    assert chi2_divergence(inside, outside, ones).item() == pytest.approx(1.0, abs=1e-14)
    assert kl_divergence(outside, inside, ones) == math.inf
    assert chi2_divergence(outside, inside, ones) == math.inf
    assert js_divergence(inside, disjoint, ones).item() == pytest.approx(math.log(2), abs=1e-14)


@pytest.mark.parametrize("divergence", ALL)
def test_gradients_are_finite_where_densities_vanish(divergence: Divergence) -> None:
    free = torch.tensor([0.1, -0.4, 0.2], dtype=torch.float64, requires_grad=True)

    def of(parameters: Tensor) -> Tensor:
        log_p = torch.cat([logs(0.0, 0.0), torch.log_softmax(parameters, 0)])
        log_q = logs(0.0, 0.25, 0.25, 0.25, 0.25)
        return divergence(log_p, log_q, torch.ones(5, dtype=torch.float64))

    assert torch.autograd.gradcheck(of, (free,))
    log_q = free.log_softmax(0)
    value = divergence(logs(0.0, 0.4, 0.6), log_q, torch.ones(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value, free)
    assert gradient.isfinite().all() and gradient.abs().max() > 0.01


@pytest.mark.parametrize("divergence", ALL)
def test_far_apart_densities_do_not_overflow(divergence: Divergence) -> None:
    ones = torch.ones(2, dtype=torch.float64)
    log_p = torch.tensor([0.0, -2000.0], dtype=torch.float64)
    log_q = torch.tensor([0.0, -1500.0], dtype=torch.float64)
    assert divergence(log_p, log_q, ones) == 0.0


@pytest.mark.parametrize("divergence", ALL)
def test_float32_agrees_with_float64(divergence: Divergence) -> None:
    nodes, weights = gauss_legendre(-8.0, 8.0, 80)
    log_p, log_q = Normal(0.2, 1.0).log_prob(nodes[:, 0]), Normal(0.0, 1.3).log_prob(nodes[:, 0])
    single = divergence(log_p.float(), log_q.float(), weights.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), divergence(log_p, log_q, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", ALL)
def test_node_counts_must_agree(divergence: Divergence) -> None:
    with pytest.raises(ValueError, match="same number of nodes"):
        divergence(torch.zeros(3), torch.zeros(3), torch.ones(4))
