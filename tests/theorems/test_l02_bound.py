"""Lecture 02, the bound: I1 (unbiased weights), I2 (monotone in K), I3 (how fast it closes)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from ledger import proves
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from dgm_course.bounds import elbo, exact_iwae_bound, iwae_bound, iwae_gap
from dgm_course.gaussian import gaussian_chi2
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.numerics import gauss_hermite, gauss_legendre

Bound = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# I1: the average of K weights has mean p(x), and its logarithm a lower one ------------------------------

DRAWS, K = 40_000, 10


def weights_without_prior(model: LinearGaussian, x: Tensor, z: Tensor, log_q: Tensor) -> Tensor:
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    return model.log_joint(x, z) - log_prior - log_q


def log_weights(model: LinearGaussian, x: Tensor, z: Tensor, log_q: Tensor) -> Tensor:
    return elbo(model.log_joint(x, z), log_q)


@proves("I1", right=log_weights, wrong={"weights_without_prior": weights_without_prior})
def test_the_average_weight_has_mean_p_of_x(variant: Callable[..., Tensor]) -> None:
    """Standard errors below 1 % of p(x); without the prior the mean is off by a factor of four or more."""
    model = LinearGaussian(draw(4, 2, seed=0), draw(4, seed=1), 0.4)
    x = draw(4, seed=2)
    noise = model.sigma2 * torch.eye(4, dtype=torch.float64)
    log_px = MultivariateNormal(model.b, model.W @ model.W.T + noise).log_prob(x)
    post_mean, post_cov = model.posterior(x)
    q = MultivariateNormal(post_mean + 0.2, 1.5 * post_cov)
    z = q.mean + draw(K, DRAWS, 2, seed=3) @ q.scale_tril.T  # (K, draws, d)
    bounds = iwae_bound(variant(model, x, z, q.log_prob(z)))  # (draws,)
    ratio = (bounds - log_px).exp()  # average weight over p(x)
    error = ratio.std() / DRAWS**0.5
    assert error < 0.01 * ratio.mean()
    assert abs(ratio.mean() - 1) <= 5 * error, (ratio.mean() - 1) / error
    gap = log_px - bounds.mean()
    assert gap > 10 * bounds.std() / DRAWS**0.5  # the logarithm is biased, and low


# I2: log p(x) >= L_K >= L_M; the indices of the proof are distinct ---------------------------------------

LOG_PX = -3.0


def normal(mean: float, sd: float) -> Normal:
    """In float64: from plain numbers torch.distributions makes float32."""
    return Normal(*torch.tensor([mean, sd], dtype=torch.float64))


POSTERIOR, PROPOSAL = normal(0.0, 1.0), normal(0.7, 1.2)  # of z, one dimension


def log_weight(z: Tensor) -> Tensor:
    return LOG_PX + POSTERIOR.log_prob(z) - PROPOSAL.log_prob(z)


def exact(num_samples: int | list[int], posterior: Normal = POSTERIOR, q: Normal = PROPOSAL) -> Tensor:
    """L_K from the integral of log S: no samples, no K-dimensional quadrature."""
    z, weights = gauss_legendre(-14.0, 14.0, 1000)
    z = z.squeeze(-1)
    return exact_iwae_bound(LOG_PX + posterior.log_prob(z), q.log_prob(z), weights, num_samples)


def by_tensor_quadrature(bound: Bound, num_samples: int, num_nodes: int) -> Tensor:
    """L_K as the K-dimensional Gauss-Hermite integral of one draw of the bound."""
    nodes, weights = gauss_hermite(num_nodes, num_dims=num_samples)  # (N, K)
    return (weights * bound(log_weight(PROPOSAL.mean + PROPOSAL.stddev * nodes).T)).sum()


def mean_of_logs(log_w: Tensor) -> Tensor:
    return log_w.mean(0)


def sum_for_mean(log_w: Tensor) -> Tensor:
    return torch.logsumexp(log_w, 0)


@proves("I2", right=iwae_bound, wrong={"mean_of_logs": mean_of_logs, "sum_for_mean": sum_for_mean})
def test_the_bound_rises_with_k(variant: Bound) -> None:
    """Against the one-dimensional integral to 1e-8 (K = 4 with its 36 nodes: 1e-7)."""
    values = [by_tensor_quadrature(variant, k, n) for k, n in ((1, 120), (2, 120), (3, 100), (4, 36))]
    assert exact([1, 2, 3, 4]).tolist() == pytest.approx(torch.stack(values).tolist(), abs=1e-7)
    assert exact([1, 2, 3]).tolist() == pytest.approx(torch.stack(values[:3]).tolist(), abs=1e-8)
    assert all(later > earlier + 1e-3 for earlier, later in itertools.pairwise(values))
    many = exact([1, 2, 5, 10, 100, 1000, 10_000])
    assert (many.diff() > 0).all() and (many < LOG_PX).all()
    kl = torch.distributions.kl_divergence(PROPOSAL, POSTERIOR)
    assert values[0].item() == pytest.approx(LOG_PX - kl.item(), abs=1e-10)  # L_1 is the ELBO


def distinct_indices(k: int, m: int) -> Iterable[tuple[int, ...]]:
    return itertools.combinations(range(k), m)


def indices_with_replacement(k: int, m: int) -> Iterable[tuple[int, ...]]:
    return itertools.product(range(k), repeat=m)


@proves("I2", right=distinct_indices, wrong={"indices_with_replacement": indices_with_replacement})
def test_the_proof_needs_distinct_indices(variant: Callable[[int, int], Iterable[tuple[int, ...]]]) -> None:
    """K = 4, M = 2: any index law averages to the same mean weight, only distinct ones average to L_2."""
    nodes, weights = gauss_hermite(28, num_dims=4)  # (N, 4)
    log_w = log_weight(PROPOSAL.mean + PROPOSAL.stddev * nodes)
    chosen = [log_w[:, list(index)] for index in variant(4, 2)]  # each (N, 2)
    inner = torch.stack([iwae_bound(part, dim=1) for part in chosen])  # (indices, N)
    means = torch.stack([part.exp().mean(1) for part in chosen]).mean(0)
    torch.testing.assert_close(means, log_w.exp().mean(1))  # the step before Jensen holds either way
    bound_2, bound_4 = exact([2, 4])
    jensen = (weights * inner.mean(0)).sum()
    assert jensen.item() == pytest.approx(bound_2.item(), abs=1e-6)
    assert jensen < bound_4


def test_with_replacement_the_inner_average_is_a_mixture_of_bounds() -> None:
    nodes, weights = gauss_hermite(28, num_dims=4)
    log_w = log_weight(PROPOSAL.mean + PROPOSAL.stddev * nodes)
    pairs = indices_with_replacement(4, 2)
    inner = torch.stack([iwae_bound(log_w[:, list(index)], dim=1) for index in pairs]).mean(0)
    bound_1, bound_2 = exact([1, 2])
    assert (weights * inner).sum().item() == pytest.approx((0.75 * bound_2 + 0.25 * bound_1).item(), abs=1e-6)


# I3: K (log p(x) - L_K) -> chi^2 / 2 where the weights have a variance ------------------------------------


def chi2_without_half(chi2: Tensor, num_samples: int) -> Tensor:
    return chi2 / num_samples


def precisions(a: float, b: float, delta: float = 0.0) -> tuple[Normal, Normal]:
    """Posterior N(0, 1/a) and q = N(delta, 1/b)."""
    return normal(0.0, a**-0.5), normal(delta, b**-0.5)


@proves("I3", right=iwae_gap, wrong={"chi2_without_half": chi2_without_half})
def test_the_gap_closes_like_chi2_over_2k(variant: Callable[[Tensor, int], Tensor]) -> None:
    for a, b, delta in ((1.0, 1.5, 0.0), (1.0, 0.6, 0.5), (2.0, 1.5, 0.8), (1.0, 1.2, -0.4)):
        chi2 = a / math.sqrt(b * (2 * a - b)) * math.exp(a * b * delta**2 / (2 * a - b)) - 1
        left = LOG_PX - exact(10_000, *precisions(a, b, delta))
        predicted = variant(torch.tensor(chi2, dtype=torch.float64), 10_000)
        assert left.item() == pytest.approx(predicted.item(), rel=1e-3), (a, b, delta)
        numbers = [0.0, -math.log(a), -math.log(b)]
        zero, log_var_p, log_var_q = torch.tensor(numbers, dtype=torch.float64)[:, None]
        library = gaussian_chi2(zero, log_var_p, zero + delta, log_var_q).item()
        assert library == pytest.approx(chi2, rel=1e-12)


def test_the_ledgers_numbers_of_the_one_over_k_law() -> None:
    left = LOG_PX - exact([10, 100, 1000, 10_000], *precisions(1.0, 1.5))
    scaled = (left * torch.tensor([10, 100, 1000, 10_000])).tolist()
    assert scaled == pytest.approx([0.0630, 0.0744, 0.0769, 0.07729], abs=6e-5)
    assert 0.5 * (1 / math.sqrt(1.5 * 0.5) - 1) == pytest.approx(0.07735, abs=6e-6)


def test_a_bounded_weight_is_not_necessary() -> None:
    """For b > a the weight is unbounded. The bound converges all the same, for b > 2a at another rate."""
    for b in (1.5, 3.0, 6.0):
        z = torch.tensor([0.0, 10.0, 20.0], dtype=torch.float64)
        posterior, q = precisions(1.0, b)
        assert (posterior.log_prob(z) - q.log_prob(z)).diff().min() > 10  # grows without bound
        left = LOG_PX - exact([1, 10**2, 10**4, 10**6], posterior, q)
        assert (left.diff() < 0).all() and 0 < left[-1] < 0.2 * left[0]
    assert math.isinf(gaussian_chi2(*(torch.tensor([v]) for v in (0.0, 0.0, 0.0, -math.log(3.0)))))


def test_a_bounded_weight_is_not_sufficient() -> None:
    """p(z|x) uniform on [0, 1], q on [-1, 1]: w is 0 or 2 p(x), and with probability 2^-K all K are 0."""
    z, weights = gauss_legendre(-1.0, 1.0, 400)
    z = z.squeeze(-1)
    log_joint = torch.where(z > 0, LOG_PX, -math.inf).double()
    log_q = torch.full_like(z, -math.log(2.0))
    assert exact_iwae_bound(log_joint, log_q, weights, [1, 10, 10**6]).tolist() == [-math.inf] * 3
    draws = torch.rand(7, 2000, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2 - 1
    log_w = torch.where(draws > 0, LOG_PX + math.log(2.0), -math.inf)
    lost = (iwae_bound(log_w) == -math.inf).double().mean()
    assert abs(lost - 2**-7) <= 5 * (2**-7 / 2000) ** 0.5


def test_without_a_variance_the_gap_falls_more_slowly() -> None:
    """a = 1, b = 3: the exponent tends to -a/(b - a) = -1/2, up to logarithms; with b = 1.5 it is -1."""
    decade = [10**4, 10**5]
    for b, slope in ((3.0, -0.54), (1.5, -1.0)):
        left = LOG_PX - exact(decade, *precisions(1.0, b))
        assert math.log10(left[1] / left[0]) == pytest.approx(slope, abs=0.01)
