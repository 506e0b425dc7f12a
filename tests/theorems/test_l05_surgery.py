"""Lecture 05: S1 (the KL term in two parts), S2 (information, 0 to log n), S3 (where the prior stands)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from ledger import proves
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.divergences import kl_divergence
from dgm_course.gaussian import gaussian_kl, gaussian_log_prob
from dgm_course.numerics import gauss_legendre
from dgm_course.surgery import (
    ELBOSurgery,
    Estimate,
    elbo_surgery,
    elbo_surgery_per_dim,
    index_information,
    mutual_information,
)

Codes = tuple[Tensor, Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(n: int, dim: int, seed: int = 0, spread: float = 1.5) -> Codes:
    """Means and log-variances of n posteriors, of different widths."""
    mean = spread * torch.randn(n, dim, generator=seeded(seed), dtype=torch.float64)
    log_var = -1.5 + 0.5 * torch.randn(n, dim, generator=seeded(seed + 1), dtype=torch.float64)
    return mean, log_var


def mixture(mean: Tensor, log_var: Tensor) -> MixtureSameFamily:
    """q_agg as PyTorch's own mixture."""
    parts = Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(mean), dtype=mean.dtype)), parts)


def by_quadrature(mean: Tensor, log_var: Tensor) -> dict[str, Tensor]:
    """The three divergences of S1 on a grid of the line or the plane, each by itself."""
    dim = mean.shape[-1]
    nodes, weights = gauss_legendre(-12.0, 12.0, 600 if dim == 1 else 240, num_dims=dim)
    log_q = Independent(Normal(mean[:, None], torch.exp(0.5 * log_var[:, None])), 1).log_prob(nodes)  # (n, N)
    log_aggregate = mixture(mean, log_var).log_prob(nodes)
    log_prior = Independent(Normal(torch.zeros(dim, dtype=mean.dtype), 1.0), 1).log_prob(nodes)
    return {
        "kl": kl_divergence(log_q, log_prior, weights).mean(),
        "mutual_information": kl_divergence(log_q, log_aggregate, weights).mean(),
        "marginal_kl": kl_divergence(log_aggregate, log_prior, weights),
    }


# S1 -------------------------------------------------------------------------------------------------------

aggregate_without_own_posterior = partial(elbo_surgery, leave_one_out=True)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_two_parts_add_up_by_quadrature(dim: int) -> None:
    parts = by_quadrature(*codes(7, dim))
    total = parts["mutual_information"] + parts["marginal_kl"]
    torch.testing.assert_close(total, parts["kl"], rtol=0, atol=1e-10)
    torch.testing.assert_close(parts["kl"], gaussian_kl(*codes(7, dim)).mean(), rtol=0, atol=1e-10)


@proves(
    "S1", right=elbo_surgery, wrong={"aggregate_without_own_posterior": aggregate_without_own_posterior}
)  # fmt: skip
def test_each_sample_splits(variant: Callable[..., ELBOSurgery]) -> None:
    """Sample by sample: the two log-ratios add up to the third, each against PyTorch's distributions."""
    mean, log_var = codes(30, 4)
    z = mean + torch.exp(0.5 * log_var) * torch.randn(5, 30, 4, generator=seeded(2), dtype=torch.float64)
    terms = variant(mean, log_var, num_samples=5, generator=seeded(2))
    log_q = Independent(Normal(mean, torch.exp(0.5 * log_var)), 1).log_prob(z)
    log_prior = Independent(Normal(torch.zeros_like(mean), 1.0), 1).log_prob(z)
    exact = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(terms.kl, log_q - log_prior, **exact)
    torch.testing.assert_close(terms.mutual_information + terms.marginal_kl, log_q - log_prior, **exact)
    torch.testing.assert_close(terms.mutual_information, log_q - mixture(mean, log_var).log_prob(z), **exact)


@pytest.mark.parametrize("dim", [1, 2])
@proves(
    "S1", right=elbo_surgery, wrong={"aggregate_without_own_posterior": aggregate_without_own_posterior}
)  # fmt: skip
def test_each_mean_is_its_divergence(variant: Callable[..., ELBOSurgery], dim: int) -> None:
    mean, log_var = codes(7, dim)
    exact = by_quadrature(mean, log_var)
    terms = variant(mean, log_var, num_samples=20_000, generator=seeded(3))
    for name, value in exact.items():
        found = Estimate.of(getattr(terms, name))
        error = (found.mean - value).abs()
        assert error < 5 * found.standard_error, f"{name}: {error / found.standard_error:.1f} standard errors"


@pytest.mark.parametrize("name", ["mutual_information", "marginal_kl"])
def test_the_wrong_aggregate_is_far_off(name: str) -> None:
    """The band of the test above rejects it by more than ten standard errors, in each term."""
    mean, log_var = codes(7, 1)
    terms = aggregate_without_own_posterior(mean, log_var, num_samples=20_000, generator=seeded(3))
    found = Estimate.of(getattr(terms, name))
    assert (found.mean - by_quadrature(mean, log_var)[name]).abs() > 10 * found.standard_error


def test_each_dimension_splits_by_itself() -> None:
    """KL_j = I[x, z_j] + KL(q_agg(z_j) || p(z_j)), the terms (d, S, n), against quadrature of each."""
    mean, log_var = codes(7, 3)
    terms = elbo_surgery_per_dim(mean, log_var, num_samples=20_000, generator=seeded(4))
    whole = terms.mutual_information + terms.marginal_kl
    torch.testing.assert_close(whole, terms.kl, rtol=0, atol=1e-10)
    for j in range(3):
        for name, value in by_quadrature(mean[:, j : j + 1], log_var[:, j : j + 1]).items():
            found = Estimate.of(getattr(terms, name)[j])
            assert (found.mean - value).abs() < 5 * found.standard_error, (j, name)


# S2 -------------------------------------------------------------------------------------------------------


def sum_in_place_of_mean(mean: Tensor, log_var: Tensor, **kind: object) -> Estimate:
    found = mutual_information(mean, log_var, **kind)
    return Estimate(len(mean) * found.mean, len(mean) * found.standard_error)


def log_n_forgotten(mean: Tensor, log_var: Tensor, **kind: object) -> Estimate:
    found = mutual_information(mean, log_var, **kind)
    return Estimate(found.mean - math.log(len(mean)), found.standard_error)


WRONG_INFORMATION = {"sum_in_place_of_mean": sum_in_place_of_mean, "log_n_forgotten": log_n_forgotten}


@proves("S2", right=mutual_information, wrong=WRONG_INFORMATION)
def test_information_between_its_limits(variant: Callable[..., Estimate]) -> None:
    """0 for identical posteriors, log n for disjoint ones (to 1e-10), and quadrature between them."""
    n = 9
    same = torch.ones(n, 2, dtype=torch.float64)
    apart = torch.arange(n, dtype=torch.float64)[:, None] * torch.tensor([40.0, 0.0], dtype=torch.float64)
    for mean, limit in ((same, 0.0), (apart, math.log(n))):
        found = variant(mean, torch.zeros_like(mean), num_samples=50, generator=seeded())
        assert abs(found.mean.item() - limit) < 1e-10
    for sd in (0.3, 1.0, 3.0):  # the posteriors' width, their means one apart
        mean = torch.arange(n, dtype=torch.float64)[:, None] - 4.0
        log_var = torch.full_like(mean, 2 * math.log(sd))
        nodes, weights = gauss_legendre(-30.0, 30.0, 2000)
        log_q = gaussian_log_prob(nodes, mean[:, None], log_var[:, None])  # (n, N)
        exact = kl_divergence(log_q, mixture(mean, log_var).log_prob(nodes), weights).mean()
        found = variant(mean, log_var, num_samples=4000, generator=seeded(1))
        assert (found.mean - exact).abs() < 5 * found.standard_error
        assert 0 < exact < math.log(n)


@pytest.mark.parametrize("wrong", WRONG_INFORMATION.values())
def test_wrong_information_is_far_off(wrong: Callable[..., Estimate]) -> None:
    mean, log_var = codes(9, 1)
    found = wrong(mean, log_var, num_samples=4000, generator=seeded(1))
    exact = by_quadrature(mean, log_var)["mutual_information"]
    assert (found.mean - exact).abs() > 10 * found.standard_error


def test_no_sample_exceeds_log_n() -> None:
    """q_agg >= q(z|x_i) / n everywhere, so the upper limit holds before averaging, at any width."""
    for log_var in (-12.0, -4.0, 0.0, 4.0):
        mean, _ = codes(40, 3)
        terms = elbo_surgery(mean, torch.full_like(mean, log_var), num_samples=50, generator=seeded())
        assert terms.mutual_information.max() <= math.log(40) + 1e-8  # the density's stated rounding


def test_the_two_forms_of_information_agree() -> None:
    """(1/n) sum KL(q_i || q_agg) = log n - E H[q(i|z)], by quadrature, and the estimators with it."""
    mean, log_var = codes(9, 1)
    nodes, weights = gauss_legendre(-14.0, 14.0, 1500)
    log_q = gaussian_log_prob(nodes, mean[:, None], log_var[:, None])  # (n, N)
    log_aggregate = mixture(mean, log_var).log_prob(nodes)
    index = torch.exp(log_q - log_aggregate) / len(mean)  # q(i|z)
    entropy = -(weights * log_aggregate.exp() * torch.xlogy(index, index).sum(0)).sum()
    exact = by_quadrature(mean, log_var)["mutual_information"]
    torch.testing.assert_close(math.log(len(mean)) - entropy, exact, rtol=0, atol=1e-10)
    found = index_information(mean, log_var, num_samples=4000, generator=seeded(1))
    assert (found.mean - exact).abs() < 5 * found.standard_error


# S3 -------------------------------------------------------------------------------------------------------

NODES, WEIGHTS = gauss_legendre(-14.0, 14.0, 1200)


def gaussian_prior() -> Codes:
    """lambda: the mean and the log-variance of a Gaussian prior on the line."""
    numbers = torch.tensor([0.4, -0.3], dtype=torch.float64)
    return numbers[:1].clone().requires_grad_(), numbers[1:].clone().requires_grad_()


def forward_kl_to_the_prior(log_aggregate: Tensor, log_prior: Tensor) -> Tensor:
    return kl_divergence(log_aggregate, log_prior, WEIGHTS)


def reverse_kl_to_the_prior(log_aggregate: Tensor, log_prior: Tensor) -> Tensor:
    return kl_divergence(log_prior, log_aggregate, WEIGHTS)


@proves(
    "S3", right=forward_kl_to_the_prior, wrong={"reverse_kl_to_the_prior": reverse_kl_to_the_prior}
)  # fmt: skip
def test_the_prior_enters_a_forward_kl(variant: Callable[[Tensor, Tensor], Tensor]) -> None:
    """d ELBO / d lambda, from closed-form KLs of the posteriors, is minus that of KL(q_agg || p)."""
    mean, log_var = codes(7, 1)
    prior = gaussian_prior()
    elbo = -gaussian_kl(mean, log_var, *prior).mean()  # and terms without lambda
    log_aggregate = mixture(mean, log_var).log_prob(NODES)
    divergence = variant(log_aggregate, gaussian_log_prob(NODES, *prior))
    for left, right in zip(
        torch.autograd.grad(elbo, prior), torch.autograd.grad(-divergence, prior), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


def test_no_other_term_depends_on_the_prior() -> None:
    """Of the library's terms only marginal_kl (and so the ELBO) has a gradient in lambda: S3, pathwise."""
    mean, log_var = codes(7, 1)
    prior = gaussian_prior()
    terms = elbo_surgery(
        mean, log_var, log_prior=lambda z: gaussian_log_prob(z, *prior),
        log_likelihood=lambda z: -z.square().sum(-1), num_samples=20_000, generator=seeded(5),
    )  # fmt: skip
    assert not terms.reconstruction.requires_grad
    assert not terms.mutual_information.requires_grad
    minus_kl = torch.autograd.grad(-terms.marginal_kl.mean(), prior, retain_graph=True)
    for left, right in zip(
        torch.autograd.grad(terms.elbo.mean(), prior, retain_graph=True), minus_kl, strict=True
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    exact = kl_divergence(mixture(mean, log_var).log_prob(NODES), gaussian_log_prob(NODES, *prior), WEIGHTS)
    z = mean + torch.exp(0.5 * log_var) * torch.randn(
        20_000, 7, 1, generator=seeded(5), dtype=torch.float64
    )  # the samples of the surgery above
    square = (z - prior[0]).square() * torch.exp(-prior[1])
    per_sample = ((z - prior[0]) * torch.exp(-prior[1]), 0.5 * square - 0.5)  # d log p(z) / d lambda
    for sampled, each, right in zip(minus_kl, per_sample, torch.autograd.grad(-exact, prior), strict=True):
        found = Estimate.of(each.detach().squeeze(-1))
        torch.testing.assert_close(sampled.squeeze(), found.mean, rtol=0, atol=1e-10)
        assert (found.mean - right).abs() < 5 * found.standard_error
