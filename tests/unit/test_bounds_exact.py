"""bounds.exact: L_K against closed forms, sums over counts, K-dimensional quadrature, mpmath and sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from dgm_course.bounds import exact_iwae_bound, iwae_bound
from dgm_course.numerics import gauss_legendre

F64 = torch.float64
LOG_PX = -41.5


def normal(mean: float, sd: float, device: torch.device | str = "cpu") -> Normal:
    """In float64: from plain numbers torch.distributions makes float32."""
    return Normal(*torch.tensor([mean, sd], dtype=F64, device=device))


def line(low: float, high: float, panels: int, order: int = 16) -> tuple[Tensor, Tensor]:
    """Composite Gauss-Legendre rule: nodes and weights ``(panels * order,)``."""
    nodes, weights = gauss_legendre(-1.0, 1.0, order)
    edges = torch.linspace(low, high, panels + 1, dtype=F64)
    half = 0.5 * edges.diff()[:, None]
    return (edges[:-1, None] + half * (nodes[:, 0] + 1.0)).flatten(), (half * weights).flatten()


def gaussians(
    counts: int | Sequence[int] | Tensor, posterior: Normal, q: Normal, reach: float = 14.0
) -> Tensor:
    z, weights = line(-reach, reach, 60)
    return exact_iwae_bound(LOG_PX + posterior.log_prob(z), q.log_prob(z), weights, counts)


# closed forms ------------------------------------------------------------------------------------------


def two_uniforms(rate: float) -> float:
    """L_2 - log p(x) for q = Exp(1) and the posterior Exp(rate), where ``w / p(x) = rate U^(rate - 1)``.

    ``log (U_1^k + U_2^k) = k log max + log (1 + R^k)``, R = min / max uniform and independent of max; for
    k < 0 the roles of min and max change. E log max = -1/2, E log min = -3/2.
    """
    with mpmath.workdps(30):
        k = mpmath.mpf(rate) - 1
        ratio = mpmath.quad(lambda r: mpmath.log1p(r ** abs(k)), [0, 0.5, 1])
        return float(mpmath.log(rate) - k * (0.5 if k > 0 else 1.5) + ratio - mpmath.log(2))


@pytest.mark.parametrize(
    ("rate", "reach", "panels"),
    [(20.0, 45.0, 200), (1.001, 45.0, 50), (0.5, 120.0, 100), (0.05, 900.0, 300)],
)
def test_exponentials_in_closed_form(rate: float, reach: float, panels: int) -> None:
    """q from twenty times too wide to twenty times too narrow, the gap from 5e-7 to 16 nats: 1e-12 or better.

    At rate 1/2 and below E w^2 is infinite.
    """
    z, weights = line(0.0, reach, panels)
    bounds = exact_iwae_bound(LOG_PX + math.log(rate) - rate * z, -z, weights, [1, 2])
    elbo = math.log(rate) - (rate - 1.0)  # E_q z = 1
    scale = max(1.0, abs(elbo)) * 1e-13
    assert (bounds - LOG_PX).tolist() == pytest.approx([elbo, two_uniforms(rate)], rel=0, abs=scale + 3e-14)


def mean_log_sum_of_uniforms(count: int) -> float:
    """``E log (U_1 + ... + U_K)`` (Irwin-Hall): log x integrated K times, differenced K times."""
    with mpmath.workdps(40 + 2 * count):
        harmonic = mpmath.harmonic(count)
        terms = [
            (-1) ** j * mpmath.binomial(count, j) * mpmath.mpf(count - j) ** count
            * (mpmath.log(count - j) - harmonic)
            for j in range(count)
        ]  # fmt: skip
        return float(mpmath.fsum(terms) / mpmath.factorial(count))


def test_means_of_uniforms_in_closed_form_for_many_samples() -> None:
    """Posterior Exp(2), q = Exp(1): w / p(x) = 2 U."""
    counts = [1, 2, 3, 10, 60, 200]
    z, weights = line(0.0, 60.0, 60)
    bounds = exact_iwae_bound(math.log(2.0) - 2.0 * z, -z, weights, counts)
    exact = [mean_log_sum_of_uniforms(k) + math.log(2.0 / k) for k in counts]
    assert bounds.tolist() == pytest.approx(exact, rel=0, abs=1e-14)


def test_two_dimensional_z_in_closed_form() -> None:
    """q = N(0, 2 I_2), posterior N(0, I_2): ``|z|^2 / 4 ~ Exp(1)`` under q, so that again w / p(x) = 2 U."""
    nodes, weights = gauss_legendre(-13.0, 13.0, 80, num_dims=2)
    posterior, q = normal(0.0, 1.0), normal(0.0, math.sqrt(2.0))
    log_joint, log_q = posterior.log_prob(nodes).sum(-1), q.log_prob(nodes).sum(-1)
    counts = [1, 2, 10, 200]
    bounds = exact_iwae_bound(log_joint, log_q, weights, counts)
    exact = [mean_log_sum_of_uniforms(k) + math.log(2.0 / k) for k in counts]
    assert bounds.tolist() == pytest.approx(exact, rel=0, abs=1e-11)


def two_point(p: float, w: tuple[float, float], num_samples: int) -> float:
    """L_K when a weight is w[0] with probability p and else w[1]: a sum over the number of the first."""
    with mpmath.workdps(40):
        first, second, share = mpmath.mpf(w[0]), mpmath.mpf(w[1]), mpmath.mpf(p)
        terms = [
            mpmath.binomial(num_samples, j) * share**j * (1 - share) ** (num_samples - j)
            * mpmath.log((j * first + (num_samples - j) * second) / num_samples)
            for j in range(num_samples + 1)
        ]  # fmt: skip
        return float(mpmath.fsum(terms))


@pytest.mark.parametrize(
    ("p", "w"),
    [
        pytest.param(0.3, (2.0, 0.1), id="ordinary"),
        pytest.param(1e-10, (1e12, 1.0), id="rare and huge"),
        pytest.param(0.5, (1.0 + 1e-6, 1.0), id="nearly equal"),
        pytest.param(1e-3, (1e-8, 1.0), id="rare and tiny"),
        pytest.param(0.99, (1e-30, 5.0), id="nearly always tiny"),
    ],
)
def test_a_law_of_two_weights_is_a_binomial_sum(p: float, w: tuple[float, float]) -> None:
    """Nodes and weights may be those of a finite set."""
    counts, ones = [1, 2, 7, 300], torch.ones(2, dtype=F64)
    log_q = torch.tensor([p, 1.0 - p], dtype=F64).log()
    bounds = exact_iwae_bound(log_q + torch.tensor(w, dtype=F64).log(), log_q, ones, counts)
    assert bounds.tolist() == pytest.approx([two_point(p, w, k) for k in counts], rel=1e-13, abs=1e-14)


# quadrature in K dimensions, mpmath, Monte Carlo -----------------------------------------------------------


def tensor_trapezoid(log_joint: Tensor, log_q: Tensor, spacing: float, num_samples: int) -> float:
    """``E log (1/K) sum_k w_k`` on the K-fold product of an even grid: plain exponentials, plain sums."""
    q, w = log_q.exp() * spacing, (log_joint - log_q).exp()
    total, mass = w, q
    for _ in range(num_samples - 1):
        total, mass = total.unsqueeze(-1) + w, mass.unsqueeze(-1) * q
    return (mass * (total / num_samples).log()).sum().item()


def bumpy(z: Tensor) -> Tensor:
    """log p(x, z), neither normalised nor Gaussian: two modes under a wave."""
    return torch.logaddexp(-0.7 * (z - 1.5) ** 2, -0.4 * (z + 1.2) ** 2 - 0.5) + 0.3 * torch.sin(2 * z) - 2.0


@pytest.mark.parametrize("q", [normal(0.3, 1.4), normal(-0.4, 0.9)], ids=["wide", "narrow"])
def test_equals_quadrature_in_k_dimensions(q: Normal) -> None:
    """K = 1, 2, 3 on even grids, spectrally accurate: 2e-10, and at K = 3, with fewer nodes, 1e-8."""
    z, weights = line(-13.0, 13.0, 60)
    bounds = exact_iwae_bound(bumpy(z), q.log_prob(z), weights, [1, 2, 3]).tolist()
    for k, count, tolerance in ((1, 601, 2e-10), (2, 601, 2e-10), (3, 151, 1e-8)):
        grid = torch.linspace(-10.0, 10.0, count, dtype=F64)
        brute = tensor_trapezoid(bumpy(grid), q.log_prob(grid), 20.0 / (count - 1), k)
        assert bounds[k - 1] == pytest.approx(brute, rel=0, abs=tolerance), k


def test_two_dimensional_z_equals_quadrature_over_both_samples() -> None:
    """A correlated posterior, K = 2: four dimensions, 1e-7. K = 1 is minus the KL divergence: 1e-12."""
    mean, scale = torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([[1.0, 0.0], [0.5, 0.8]], dtype=F64)
    posterior = MultivariateNormal(mean, scale_tril=scale)
    q = MultivariateNormal(torch.zeros_like(mean), 1.3 * torch.eye(2, dtype=F64))
    nodes, weights = gauss_legendre(-11.0, 11.0, 80, num_dims=2)
    bounds = exact_iwae_bound(posterior.log_prob(nodes), q.log_prob(nodes), weights, [1, 2])
    grid = torch.linspace(-6.5, 6.5, 34, dtype=F64)
    square = torch.cartesian_prod(grid, grid)
    brute = tensor_trapezoid(posterior.log_prob(square), q.log_prob(square), float(grid[1] - grid[0]) ** 2, 2)
    assert bounds[0].item() == pytest.approx(-kl_divergence(q, posterior).item(), rel=0, abs=1e-12)
    assert bounds[1].item() == pytest.approx(brute, rel=0, abs=1e-7)


@pytest.mark.parametrize(
    ("mean", "sd", "reach"), [(0.0, 1.001, 14.0), (12.0, 1.0, 30.0), (0.5, 0.1, 9.0), (-3.0, 8.0, 90.0)],
    ids=["close", "far away", "narrow", "wide"],
)  # fmt: skip
def test_one_sample_is_the_elbo(mean: float, sd: float, reach: float) -> None:
    """``L_1 = log p(x) - KL(q || posterior)``, in closed form: 1e-11."""
    posterior, q = normal(0.0, 1.0), normal(mean, sd)
    left = LOG_PX - gaussians(1, posterior, q, reach=reach).item()
    assert left == pytest.approx(kl_divergence(q, posterior).item(), rel=0, abs=1e-11)


def by_mpmath(b: float, delta: float, num_samples: int) -> float:
    """L_K - log p(x), posterior N(0, 1), q = N(delta, 1/b): both integrals on even grids with 25 digits."""
    with mpmath.workdps(25):
        step, b, delta = mpmath.mpf(1) / 6, mpmath.mpf(b), mpmath.mpf(delta)
        noise = [step * i for i in range(-58, 59)]
        mass = [step * mpmath.npdf(y) for y in noise]
        w = [mpmath.exp((y**2 - mpmath.log(b) - (delta + y / mpmath.sqrt(b)) ** 2) / 2) for y in noise]
        total = mpmath.mpf(0)
        for n in range(-141, 25):
            u = mpmath.exp(mpmath.mpf(n) / 3)
            lost = mpmath.fsum(-m * mpmath.expm1(-u * v) for m, v in zip(mass, w, strict=True))
            total += mpmath.exp(-num_samples * u) - (1 - lost) ** num_samples
        return float(total / 3)


@pytest.mark.parametrize(
    ("b", "delta", "num_samples"), [(6.0, 0.5, 1000), (1.001, 1e-3, 10)], ids=["no variance", "tiny gap"]
)
def test_hard_settings_equal_mpmath(b: float, delta: float, num_samples: int) -> None:
    z, weights = line(-14.0, 14.0, 60)
    log_joint, log_q = normal(0.0, 1.0).log_prob(z), normal(delta, b**-0.5).log_prob(z)
    bound = exact_iwae_bound(log_joint, log_q, weights, num_samples).item()
    assert bound == pytest.approx(by_mpmath(b, delta, num_samples), rel=0, abs=1e-12)


def test_fifty_samples_agree_with_monte_carlo(generator: torch.Generator) -> None:
    """Within 5 standard errors of 80 000 draws; L_1 and L_500 lie more than ten away."""
    posterior, q = normal(0.0, 1.0), normal(1.0, 1.5)
    z = q.mean + q.stddev * torch.randn(50, 80_000, dtype=F64, generator=generator)
    draws = iwae_bound(LOG_PX + posterior.log_prob(z) - q.log_prob(z))
    error = draws.std() / 80_000**0.5
    deviations = (gaussians([1, 50, 500], posterior, q) - draws.mean()) / error
    assert abs(deviations[1]) < 5 and deviations[0] < -10 and deviations[2] > 10


# the ledger, shapes, refusals -----------------------------------------------------------------------------


def test_numbers_of_the_ledger() -> None:
    """I3: K times the gap and its limit, the slope without a variance. I4: L_1 and L_2."""
    counts = torch.tensor([10, 100, 1000, 10_000])
    scaled = counts * (LOG_PX - gaussians(counts, normal(0.0, 1.0), normal(0.0, 1.5**-0.5)))
    assert scaled.tolist() == pytest.approx([0.0630, 0.0744, 0.0769, 0.07729], rel=0, abs=5.1e-5)
    limit = 1e8 * (LOG_PX - gaussians(10**8, normal(0.0, 1.0), normal(0.0, 1.5**-0.5)))
    assert limit.item() == pytest.approx(0.07735, rel=0, abs=1e-5)
    gap = LOG_PX - gaussians([10**4, 10**5], normal(0.0, 1.0), normal(0.0, 3.0**-0.5))
    assert math.log10(gap[1] / gap[0]) == pytest.approx(-0.54, rel=0, abs=5e-3)
    two = gaussians([1, 2], normal(0.0, 1.0), normal(0.7, 1.2)) - LOG_PX
    assert two.tolist() == pytest.approx([-0.28268, -0.11632], rel=0, abs=5.1e-6)


def test_the_bound_rises_with_k_and_stays_below_the_evidence() -> None:
    counts = [1, 2, 3, 5, 10, 100, 10**4, 10**6]
    for q in (normal(0.7, 1.2), normal(0.0, 6.0**-0.5), normal(5.0, 1.0), normal(0.0, 4.0)):
        bounds = gaussians(counts, normal(0.0, 1.0), q, reach=45.0)
        assert (bounds.diff() > 0).all() and (bounds < LOG_PX).all()


def test_at_the_posterior_every_bound_is_the_evidence() -> None:
    bounds = gaussians([1, 2, 1000, 10**9], normal(0.3, 0.8), normal(0.3, 0.8))
    assert bounds.tolist() == pytest.approx([LOG_PX] * 4, rel=0, abs=1e-13)


def test_a_joint_that_is_zero_where_q_has_mass_makes_every_bound_minus_infinity() -> None:
    """With probability 2^-K all K weights are zero."""
    z, weights = line(-14.0, 14.0, 60)
    log_joint = normal(0.0, 1.0).log_prob(z).masked_fill(z < 0, -math.inf)
    bounds = exact_iwae_bound(log_joint, normal(0.0, 1.0).log_prob(z), weights, [1, 2, 100])
    assert bounds.tolist() == [-math.inf] * 3


def test_densities_that_vanish_are_no_harm_beyond_the_support_of_q() -> None:
    """Both zero on the outer nodes, or q alone: then half of p(x) is out of reach for every K."""
    z, weights = line(-14.0, 14.0, 56)  # a panel ends at 0 and at 6
    outside = z.abs() > 6.0
    log_p, log_q = normal(0.0, 0.5).log_prob(z), normal(0.3, 0.5).log_prob(z)
    expected = exact_iwae_bound(log_p, log_q, weights, [1, 2, 50])
    cut = (part.masked_fill(outside, -math.inf) for part in (log_p, log_q))
    torch.testing.assert_close(exact_iwae_bound(*cut, weights, [1, 2, 50]), expected, rtol=0, atol=1e-12)
    half = (log_p + math.log(2.0)).masked_fill(z < 0, -math.inf)
    bounds = exact_iwae_bound(log_p, half, weights, [1, 2, 50])
    assert bounds.tolist() == pytest.approx([-math.log(2.0)] * 3, rel=0, abs=1e-13)


def test_the_result_has_the_shape_of_the_counts() -> None:
    """One grid of u serves all: what else is asked for changes nothing but rounding."""
    pair = (normal(0.0, 1.0), normal(0.7, 1.2))
    table = gaussians(torch.tensor([[1, 2, 3], [10, 100, 10**6]]), *pair)
    assert table.shape == (2, 3)
    for counts in (1, torch.tensor(1)):
        assert gaussians(counts, *pair).shape == ()
    alone = torch.stack([gaussians(k, *pair) for k in (1, 2, 3, 10, 100, 10**6)])
    torch.testing.assert_close(table.flatten(), alone, rtol=0, atol=1e-13)


def test_mass_that_a_rough_quadrature_misses_is_made_up() -> None:
    """q is normalised at the nodes: with e^c times its density (c below 1e-6) the bounds move by -c."""
    z, weights = line(-14.0, 14.0, 60)
    log_p, log_q = normal(0.0, 1.0).log_prob(z), normal(0.7, 1.2).log_prob(z)
    bounds = exact_iwae_bound(log_p, log_q, weights, [1, 10, 10**6])
    for c in (-8e-7, 8e-7):
        moved = exact_iwae_bound(log_p, log_q + c, weights, [1, 10, 10**6])
        torch.testing.assert_close(moved, bounds - c, rtol=0, atol=1e-13)


def test_dtype_and_device_follow(device: torch.device) -> None:
    """float32 nodes give five decimals."""
    z, weights = (part.to(device) for part in line(-14.0, 14.0, 60))
    log_joint = normal(0.0, 1.0, device).log_prob(z)
    log_q = normal(0.7, 1.2, device).log_prob(z)
    double = exact_iwae_bound(log_joint, log_q, weights, [1, 2, 50])
    single = exact_iwae_bound(log_joint.float(), log_q.float(), weights.float(), [1, 2, 50])
    for value, dtype in ((double, F64), (single, torch.float32)):
        assert value.dtype == dtype and value.device.type == device.type
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_bad_input_is_refused_with_a_reason() -> None:
    z, weights = line(-14.0, 14.0, 20)
    log_p, log_q = normal(0.0, 1.0).log_prob(z), normal(0.7, 1.2).log_prob(z)
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(320,\), \(320,\) and \(319,\)"):
        exact_iwae_bound(log_p, log_q, weights[:-1], 2)
    with pytest.raises(ValueError, match="at the nodes of one quadrature"):
        exact_iwae_bound(log_p.unsqueeze(0), log_q.unsqueeze(0), weights.unsqueeze(0), 2)
    for mean, held in ((14.0, "0.5"), (1e4, "0")):
        with pytest.raises(ValueError, match=rf"a mass of {held} of q, and 1 is needed: widen the range"):
            exact_iwae_bound(log_p, normal(mean, 1.2).log_prob(z), weights, 2)
    for counts in (0, -1, [1, 0], torch.tensor([3, -2])):
        with pytest.raises(ValueError, match=r"at least 1 and finite, got .*K of the bound"):
            exact_iwae_bound(log_p, log_q, weights, counts)
