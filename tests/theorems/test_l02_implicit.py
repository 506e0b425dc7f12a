"""Lecture 02, what the weights stand for: I4 (the implicit posterior), I8 (the yardstick, its light)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from ledger import proves
from torch import Tensor
from torch.distributions import Normal

from dgm_course.bounds import (
    effective_sample_size,
    exact_iwae_bound,
    implicit_posterior_log_prob,
    importance_weighted_log_prob,
    iwae_bound,
)
from dgm_course.gaussian import gaussian_chi2
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.numerics import gauss_legendre

# I4, in the ledger's setting: posterior N(0, 1), q = N(0.7, 1.2^2), K = 2, everything relative to log p(x)

Z, WEIGHTS = gauss_legendre(-13.0, 13.0, 500)
Z = Z.squeeze(-1)
LOG_P = Normal(*torch.tensor([0.0, 1.0]).double()).log_prob(Z)
LOG_Q = Normal(*torch.tensor([0.7, 1.2], dtype=torch.float64)).log_prob(Z)


def unnormalised_q_iw() -> Tensor:
    """``p(x, z) / (1/2 (w(z) + w(z_2)))``, rows z, columns z_2: logarithm, (N, N)."""
    log_w = LOG_P - LOG_Q
    return LOG_P[:, None] - (torch.logaddexp(log_w[:, None], log_w) - math.log(2.0))


def bound_by_quadrature() -> Tensor:
    """L_2 over the plane (z_1, z_2)."""
    mass = WEIGHTS * LOG_Q.exp()
    log_w = LOG_P - LOG_Q
    return mass @ (torch.logaddexp(log_w[:, None], log_w) - math.log(2.0)) @ mass


def bound_is_expected_unnormalised_elbo() -> Tensor:
    """``E_{z_2} int q~_IW (log p(x, z) - log q~_IW) dz``: the statement of the theorem."""
    log_q_iw = unnormalised_q_iw()
    return WEIGHTS @ (log_q_iw.exp() * (LOG_P[:, None] - log_q_iw)) @ (WEIGHTS * LOG_Q.exp())


def elbo_of(log_density: Tensor) -> Tensor:
    return (WEIGHTS * log_density.exp() * (LOG_P - log_density)).sum()


def bound_is_elbo_of_expected_posterior() -> Tensor:
    """The slide's statement: L_K is the ELBO of q_EW."""
    return elbo_of((unnormalised_q_iw().exp() @ (WEIGHTS * LOG_Q.exp())).log())


@proves(
    "I4", right=bound_is_expected_unnormalised_elbo,
    wrong={"bound_is_elbo_of_expected_posterior": bound_is_elbo_of_expected_posterior},
)  # fmt: skip
def test_the_bound_is_the_expected_elbo_of_the_unnormalised_posterior(variant: Callable[[], Tensor]) -> None:
    assert variant().item() == pytest.approx(bound_by_quadrature().item(), abs=1e-9)
    assert variant().item() == pytest.approx(-0.11632, abs=1e-5)


def without_its_own_weight(log_joint: Tensor, log_q: Tensor, weights: Tensor, num_samples: int) -> Tensor:
    """Averages p(x, z) over the other samples' weights alone."""
    log_w = log_joint - log_q
    return log_joint + torch.logsumexp((weights * log_q.exp()).log() - log_w, 0)


@proves("I4", right=implicit_posterior_log_prob, wrong={"without_its_own_weight": without_its_own_weight})
def test_the_implicit_posterior_lies_between_q_and_the_posterior(variant: Callable[..., Tensor]) -> None:
    direct = (unnormalised_q_iw().exp() @ (WEIGHTS * LOG_Q.exp())).log()  # at K = 2, over the plane
    q_ew = variant(LOG_P, LOG_Q, WEIGHTS, 2)
    near = Z.abs() < 8
    torch.testing.assert_close(q_ew[near], direct[near], rtol=0, atol=1e-9)
    assert (WEIGHTS * q_ew.exp()).sum().item() == pytest.approx(1.0, abs=1e-10)
    bounds = exact_iwae_bound(LOG_P, LOG_Q, WEIGHTS, [1, 2])
    assert bounds.tolist() == pytest.approx([-0.28268, -0.11632], abs=1e-5)
    assert elbo_of(q_ew).item() == pytest.approx(-0.05748, abs=1e-5)
    assert bounds[1] + 0.05 < elbo_of(q_ew) < -0.05  # L_2 < ELBO(q_EW) < log p(x): strict


def normalised_over_z(log_joint: Tensor, log_q: Tensor, other_log_w: Tensor) -> Tensor:
    """Divides by the integral over z: a density for each set of other samples, not the bound's."""
    log_q_iw = importance_weighted_log_prob(log_joint, log_q, other_log_w)
    return log_q_iw - torch.logsumexp(log_q_iw + WEIGHTS.log()[:, None], 0)


@proves("I4", right=importance_weighted_log_prob, wrong={"normalised_over_z": normalised_over_z})
def test_the_importance_weighted_posteriors_average_to_q_ew(variant: Callable[..., Tensor]) -> None:
    """K = 2 over the plane against the test's own formula, whose mean is q_EW; K = 1 is q."""
    log_q_iw = variant(LOG_P[:, None], LOG_Q[:, None], (LOG_P - LOG_Q)[None, None])
    torch.testing.assert_close(log_q_iw, unnormalised_q_iw(), rtol=0, atol=1e-12)
    mean = (log_q_iw.exp() @ (WEIGHTS * LOG_Q.exp())).log()
    expected = implicit_posterior_log_prob(LOG_P, LOG_Q, WEIGHTS, 2)
    torch.testing.assert_close(mean[Z.abs() < 8], expected[Z.abs() < 8], rtol=0, atol=1e-9)
    alone = variant(LOG_P[:, None], LOG_Q[:, None], LOG_P.new_empty(0, 1, 1))
    torch.testing.assert_close(alone[:, 0], LOG_Q, rtol=0, atol=1e-12)
    three = variant(LOG_P[:, None], LOG_Q[:, None], torch.tensor([[[0.3]], [[-1.2]]], dtype=torch.float64))
    total = (LOG_P - LOG_Q).exp() + math.exp(0.3) + math.exp(-1.2)
    torch.testing.assert_close(three[:, 0], LOG_P - (total / 3).log(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 2, 10, 100])
def test_the_chain_of_bounds_for_any_k(num_samples: int) -> None:
    q_ew = implicit_posterior_log_prob(LOG_P, LOG_Q, WEIGHTS, num_samples)
    bound = exact_iwae_bound(LOG_P, LOG_Q, WEIGHTS, num_samples)
    assert (WEIGHTS * q_ew.exp()).sum().item() == pytest.approx(1.0, abs=1e-10)
    assert bound <= elbo_of(q_ew) + 1e-12 and elbo_of(q_ew) < 0
    if num_samples == 1:
        torch.testing.assert_close(q_ew, LOG_Q)


# I8: L_5000 measures, the effective sample size warns -----------------------------------------------------


def ess_from_log_weights(log_w: Tensor) -> Tensor:
    return log_w.sum(0).square() / log_w.square().sum(0)


def exact_model(spread: float, num_samples: int, seed: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights (K, 6) of a linear-Gaussian model, log p(x) and chi^2; q's variance is ``spread`` times."""
    kind = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    W = torch.tensor([[1.0, 0.0], [0.0, 1.5], [0.0, 0.0]], dtype=torch.float64)  # a diagonal posterior
    model = LinearGaussian(W, torch.zeros(3, dtype=torch.float64), 0.5)
    x = 2 * torch.randn(6, 3, **kind)
    mean, cov = model.posterior(x)
    variance = cov.diagonal(dim1=-2, dim2=-1)  # (6, 2)
    q = Normal(mean + 0.1, (spread * variance).sqrt())
    z = q.mean + q.stddev * torch.randn(num_samples, 6, 2, **kind)
    log_w = model.log_joint(x, z) - q.log_prob(z).sum(-1)
    chi2 = gaussian_chi2(mean, variance.log(), mean + 0.1, (spread * variance).log())
    return log_w, model.log_prob(x), chi2


@proves("I8", right=effective_sample_size, wrong={"ess_from_log_weights": ess_from_log_weights})
def test_the_effective_sample_size_is_k_over_one_plus_chi2(variant: Callable[[Tensor], Tensor]) -> None:
    """The share ESS / K with the standard error of a ratio of means (delta method), below 1 %."""
    count = 100_000
    for spread in (1.0, 1.5, 4.0):
        log_w, log_px, chi2 = exact_model(spread, count)
        w = (log_w - log_px).exp()
        share = variant(log_w) / count  # (6,)
        first, second = w.mean(0), w.square().mean(0)
        influence = 2 * first / second * w - (first / second).square() * w.square()
        error = influence.std(0) / count**0.5
        assert (error < 0.01).all()
        assert ((share - 1 / (1 + chi2)).abs() <= 5 * error).all(), (share - 1 / (1 + chi2)) / error


def test_l_5000_measures_the_evidence_and_a_low_sample_size_warns() -> None:
    errors, shares = [], []
    for spread in (1.0, 4.0, 400.0):
        log_w, log_px, chi2 = exact_model(spread, 5000)
        w = (log_w - log_px).exp()
        error = w.std(0) / 5000**0.5
        off = (iwae_bound(log_w) - log_px).expm1()
        assert (off.abs() <= 5 * error).all(), off / error  # unbiased for p(x), however wide q is
        errors.append(off.abs().max().item())
        shares.append((effective_sample_size(log_w) / 5000).median().item())
    assert errors[0] < errors[2] and shares[0] > 0.9 > shares[1] > 0.1 > shares[2]


def test_a_high_sample_size_does_not_certify() -> None:
    """Two modes of equal mass, q on one of them: nearly every sample counts, and half of p(x) is missing."""
    modes = torch.tensor([-6.0, 6.0], dtype=torch.float64)
    z = modes[1] + 0.5 * torch.randn(5000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    log_joint = torch.logsumexp(Normal(modes, 0.5).log_prob(z[:, None]) - math.log(2.0), 1)  # log p(x) = 0
    log_w = log_joint - Normal(modes[1], 0.5).log_prob(z)
    assert effective_sample_size(log_w) > 0.99 * 5000
    assert iwae_bound(log_w).item() == pytest.approx(-math.log(2.0), abs=0.01)
