"""bounds.exact.implicit_posterior_log_prob: what one keeps when one of K samples is chosen by its weight."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from dgm_course.bounds import exact_iwae_bound, implicit_posterior_log_prob
from dgm_course.numerics import gauss_legendre

F64 = torch.float64
Z, WEIGHTS = gauss_legendre(-12.0, 12.0, 500)
Z = Z.squeeze(-1)


def normal(mean: float, sd: float) -> Normal:
    """In float64: from plain numbers torch.distributions makes float32."""
    return Normal(*torch.tensor([mean, sd], dtype=F64))


Q = normal(0.4, 1.3)
LOG_Q = Q.log_prob(Z)


def log_joint(z: Tensor) -> Tensor:
    """Two modes of different width, not normalised."""
    return torch.logaddexp(-2.0 * (z - 1.5) ** 2, -0.6 * (z + 1.2) ** 2 - 0.5) - 3.0


LOG_JOINT = log_joint(Z)
LOG_POSTERIOR = LOG_JOINT - torch.logsumexp(LOG_JOINT + WEIGHTS.log(), 0)


def integral(values: Tensor) -> float:
    return (WEIGHTS * values).sum().item()


def test_one_sample_is_q_itself_and_a_copy() -> None:
    q_ew = implicit_posterior_log_prob(LOG_JOINT, LOG_Q, WEIGHTS, 1)
    assert torch.equal(q_ew, LOG_Q) and q_ew is not LOG_Q


@pytest.mark.parametrize("num_samples", [2, 3, 10, 1000, 10**6])
def test_integrates_to_one(num_samples: int) -> None:
    for log_joint in (LOG_JOINT, LOG_JOINT + 500.0, LOG_JOINT - 500.0):  # whatever p(x) is
        q_ew = implicit_posterior_log_prob(log_joint, LOG_Q, WEIGHTS, num_samples)
        assert integral(q_ew.exp()) == pytest.approx(1.0, rel=0, abs=1e-12)


@pytest.mark.parametrize("num_samples", [2, 3])
def test_equals_quadrature_over_the_other_samples(num_samples: int) -> None:
    """``E [p(x, z) / mean weight]`` at the nodes within 6 of the origin, on an even grid: 1e-10."""
    near = Z.abs() < 6.0
    w, grid = (LOG_JOINT - LOG_Q)[near].exp(), torch.linspace(-11.0, 11.0, 401, dtype=F64)
    mass = Q.log_prob(grid).exp() * (22.0 / 400)
    other = (log_joint(grid) - Q.log_prob(grid)).exp()
    if num_samples == 2:
        expected = torch.stack([(mass / (0.5 * (one + other))).sum() for one in w])
    else:
        pairs, both = other[:, None] + other, mass[:, None] * mass
        expected = torch.stack([(both / ((one + pairs) / 3)).sum() for one in w])
    q_ew = implicit_posterior_log_prob(LOG_JOINT, LOG_Q, WEIGHTS, num_samples)[near]
    torch.testing.assert_close(q_ew, LOG_JOINT[near] + expected.log(), rtol=0, atol=1e-10)


def test_the_tails_are_as_exact_as_the_middle() -> None:
    """q wider, K = 2: log-densities down to -90, where no sample of q lies: to 1e-8."""
    log_p, log_q = normal(0.0, 1.0).log_prob(Z), normal(0.7, 1.2).log_prob(Z)
    log_w = log_p - log_q
    mean_weight = torch.logaddexp(log_w[:, None], log_w) - math.log(2.0)
    direct = log_p + torch.logsumexp(WEIGHTS.log() + log_q - mean_weight, 1)
    q_ew = implicit_posterior_log_prob(log_p, log_q, WEIGHTS, 2)
    assert q_ew.min() < -70
    torch.testing.assert_close(q_ew, direct, rtol=0, atol=1e-8)


def test_approaches_the_posterior() -> None:
    """The divergence from the posterior falls, in the end like 1/K^2; the total variation like 1/K."""
    counts = [1, 2, 10, 100, 1000, 10_000]
    all_q = [implicit_posterior_log_prob(LOG_JOINT, LOG_Q, WEIGHTS, k) for k in counts]
    kl = [integral(q.exp() * (q - LOG_POSTERIOR)) for q in all_q]
    distance = [0.5 * integral((q.exp() - LOG_POSTERIOR.exp()).abs()) for q in all_q]
    assert all(b < a for a, b in zip(kl[:-1], kl[1:], strict=True))
    assert kl[4] / kl[5] == pytest.approx(100.0, rel=0.02)
    assert distance[4] / distance[5] == pytest.approx(10.0, rel=0.02) and distance[5] < 1e-4


def test_its_elbo_lies_between_the_bound_and_the_evidence() -> None:
    log_px = torch.logsumexp(LOG_JOINT + WEIGHTS.log(), 0).item()
    for k in (2, 5, 50):
        q_ew = implicit_posterior_log_prob(LOG_JOINT, LOG_Q, WEIGHTS, k)
        bound = exact_iwae_bound(LOG_JOINT, LOG_Q, WEIGHTS, k).item()
        assert bound < integral(q_ew.exp() * (LOG_JOINT - q_ew)) < log_px


def test_the_elbo_of_the_ledgers_example() -> None:
    """I4: posterior N(0, 1), q = N(0.7, 1.2^2), K = 2."""
    log_p, log_q = normal(0.0, 1.0).log_prob(Z), normal(0.7, 1.2).log_prob(Z)
    q_ew = implicit_posterior_log_prob(log_p, log_q, WEIGHTS, 2)
    assert integral(q_ew.exp() * (log_p - q_ew)) == pytest.approx(-0.05748, rel=0, abs=5.1e-6)


@pytest.mark.parametrize("num_samples", [2, 5, 40])
@pytest.mark.parametrize(("p", "ratio"), [(0.3, 20.0), (1e-6, 1e6), (0.5, 1e-9)])
def test_two_states_are_a_binomial_sum(p: float, ratio: float, num_samples: int) -> None:
    """One state has probability p and ``ratio`` times the other's weight: with j of it, jr / (jr + K - j)."""
    log_q = torch.tensor([p, 1.0 - p], dtype=F64).log()
    log_w = torch.tensor([math.log(ratio), 0.0], dtype=F64)
    q_ew = implicit_posterior_log_prob(log_q + log_w, log_q, torch.ones(2, dtype=F64), num_samples)
    with mpmath.workdps(40):
        share, r, k = mpmath.mpf(p), mpmath.mpf(ratio), num_samples
        law = [mpmath.binomial(k, j) * share**j * (1 - share) ** (k - j) for j in range(k + 1)]
        first = float(mpmath.log(mpmath.fsum(law[j] * j * r / (j * r + k - j) for j in range(k + 1))))
        second = float(mpmath.log(mpmath.fsum(law[j] * (k - j) / (j * r + k - j) for j in range(k + 1))))
    assert q_ew.tolist() == pytest.approx([first, second], rel=1e-11, abs=1e-13)


def keep_one(num_samples: int, draws: int, generator: torch.Generator) -> Tensor:
    """Sampling importance resampling: K samples of q, one kept, chosen by its weight."""
    z = Q.mean + Q.stddev * torch.randn(draws, num_samples, dtype=F64, generator=generator)
    w = (log_joint(z) - Q.log_prob(z)).exp()
    return z.gather(1, torch.multinomial(w, 1, generator=generator)).squeeze(1)


def deviations(kept: Tensor, num_samples: int) -> Tensor:
    """How many standard errors the kept samples' moments and shares of intervals are off: (10,)."""
    density = implicit_posterior_log_prob(LOG_JOINT, LOG_Q, WEIGHTS, num_samples).exp()
    edges = [-math.inf, -2.0, -1.0, 0.0, 1.0, 1.5, 2.0, math.inf]
    result = []
    for power in (1, 2, 3):
        sample = kept**power
        result.append((sample.mean() - integral(density * Z**power)) / sample.std() * len(kept) ** 0.5)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        fine, weights = gauss_legendre(max(low, -12.0), min(high, 12.0), 60)
        at, share = fine.squeeze(-1), ((kept > low) & (kept <= high)).double().mean()
        # the same q_EW, at the nodes of this interval too: they carry no weight in the quadrature over q
        none = torch.zeros_like(at)
        nodes, mass = torch.cat([Z, at]), torch.cat([WEIGHTS, none])
        inside = implicit_posterior_log_prob(log_joint(nodes), Q.log_prob(nodes), mass, num_samples)[len(Z) :]
        p = (weights * inside.exp()).sum()
        result.append((share - p) / (p * (1 - p) / len(kept)).sqrt())
    return torch.stack(result)


@pytest.mark.parametrize("num_samples", [2, 5, 30])
def test_is_the_law_of_resampled_samples(num_samples: int, generator: torch.Generator) -> None:
    """Three moments and seven intervals within 5 standard errors of 60 000; q, or twice K, is ten off."""
    kept = keep_one(num_samples, 60_000, generator)
    assert (deviations(kept, num_samples).abs() < 5).all()
    assert deviations(kept, 1).abs().max() > 40
    if num_samples < 30:
        assert deviations(kept, 2 * num_samples).abs().max() > 10


def test_two_dimensional_z() -> None:
    """Against quadrature over the other sample, K = 2: 1e-9."""

    def correlated(z: Tensor) -> Tensor:
        return -0.5 * (z[:, 0] - 0.8 * z[:, 1]) ** 2 - 0.7 * z[:, 1] ** 2

    nodes, weights = gauss_legendre(-9.0, 9.0, 100, num_dims=2)
    q = normal(0.0, 1.3)
    log_q, joint = q.log_prob(nodes).sum(-1), correlated(nodes)
    q_ew = implicit_posterior_log_prob(joint, log_q, weights, 2)
    assert (weights * q_ew.exp()).sum().item() == pytest.approx(1.0, rel=0, abs=1e-9)
    axis = torch.linspace(-9.0, 9.0, 151, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    mass = q.log_prob(grid).sum(-1).exp() * float(axis[1] - axis[0]) ** 2
    other = (correlated(grid) - q.log_prob(grid).sum(-1)).exp()
    near = torch.nonzero(nodes.norm(dim=-1) < 4.0).squeeze(-1)[::30]
    assert len(near) > 20
    for index in near:
        expected = (mass / (0.5 * ((joint - log_q)[index].exp() + other))).sum().log() + joint[index]
        assert q_ew[index].item() == pytest.approx(expected.item(), rel=0, abs=1e-9)


def test_no_posterior_where_all_weights_may_be_zero() -> None:
    """And no harm where q and the joint vanish together."""
    outside = Z.abs() > 6.0
    log_p, log_q = normal(0.0, 0.5).log_prob(Z), normal(0.3, 0.5).log_prob(Z)
    expected = implicit_posterior_log_prob(log_p, log_q, WEIGHTS, 5)[~outside]
    cut = [part.masked_fill(outside, -math.inf) for part in (log_p, log_q)]
    q_ew = implicit_posterior_log_prob(*cut, WEIGHTS, 5)
    assert torch.equal(q_ew.isneginf(), outside)
    torch.testing.assert_close(q_ew[~outside], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"q has mass where p\(x, z\) is zero, .* cut q off there"):
        implicit_posterior_log_prob(cut[0].masked_fill(Z < 0, -math.inf), log_q, WEIGHTS, 5)


def test_dtype_and_device_follow(device: torch.device) -> None:
    double = implicit_posterior_log_prob(LOG_JOINT.to(device), LOG_Q.to(device), WEIGHTS.to(device), 10)
    arguments = (part.float().to(device) for part in (LOG_JOINT, LOG_Q, WEIGHTS))
    single = implicit_posterior_log_prob(*arguments, 10)
    for value, dtype in ((double, F64), (single, torch.float32)):
        assert value.dtype == dtype and value.device.type == device.type
    near = Z.abs() < 5.0
    torch.testing.assert_close(single.cpu().double()[near], double.cpu()[near], rtol=0, atol=1e-4)


def test_bad_input_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(500,\), \(499,\) and \(500,\)"):
        implicit_posterior_log_prob(LOG_JOINT, LOG_Q[1:], WEIGHTS, 2)
    with pytest.raises(ValueError, match="a mass of 0.5 of q, and 1 is needed: widen the range"):
        implicit_posterior_log_prob(LOG_JOINT, normal(12.0, 1.0).log_prob(Z), WEIGHTS, 2)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0: it is the K"):
        implicit_posterior_log_prob(LOG_JOINT, LOG_Q, WEIGHTS, 0)
