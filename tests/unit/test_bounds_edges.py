"""bounds and its neighbours at the edges: huge weights, equal weights, empty batches, shapes that mislead."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from dgm_course.bounds import (
    chi2_from_log_weights,
    effective_sample_size,
    exact_iwae_bound,
    implicit_posterior_log_prob,
    iwae_bound,
    iwae_gradient_estimates,
    signal_to_noise,
    streamed_iwae_bound,
    weighted_noise,
)
from dgm_course.gaussian import gaussian_chi2
from dgm_course.nets import MLP
from dgm_course.numerics import gauss_legendre
from dgm_course.vae import VAE, BernoulliDecoder, importance_log_weights

F64 = torch.float64

Z, WEIGHTS = gauss_legendre(-12.0, 12.0, 600)
Z = Z.squeeze(-1)


def log_normal(mean: float, sd: float, z: Tensor = Z) -> Tensor:
    return Normal(*torch.tensor([mean, sd], dtype=F64)).log_prob(z)


# the exact bound and the implicit posterior -----------------------------------------------------------------


def test_the_implicit_posterior_is_right_where_the_weights_are_huge() -> None:
    """q narrower than the posterior (b = 3 a): at |z| = 8 a weight is exp(64) times p(x).

    ``int exp(-u w) phi^(K-1) du`` lives at u ~ 1/w: the grid of log u has to reach below that.
    """
    log_p, log_q = log_normal(0.0, 1.0), log_normal(0.0, 3.0**-0.5)
    log_w = log_p - log_q
    other = (WEIGHTS.log() + log_q)[None] - (torch.logaddexp(log_w[:, None], log_w) - math.log(2.0))
    direct = log_p + torch.logsumexp(other, 1)
    near = Z.abs() < 9.0
    q_ew = implicit_posterior_log_prob(log_p, log_q, WEIGHTS, 2)
    torch.testing.assert_close(q_ew[near], direct[near], rtol=0, atol=1e-8)


def test_a_q_without_mass_somewhere_keeps_nothing_there() -> None:
    """A uniform q under a wider posterior: q_EW is zero where q is."""
    outside = Z.abs() > 1.0
    nodes, weights = gauss_legendre(-1.0, 1.0, 60)
    inner = nodes.squeeze(-1)
    log_q = torch.full_like(inner, -math.log(2.0))
    expected = implicit_posterior_log_prob(log_normal(0.0, 1.0, inner), log_q, weights, 2)
    assert (weights * expected.exp()).sum().item() == pytest.approx(1.0, rel=0, abs=1e-10)
    # the same quadrature, and nodes outside that carry no weight for q
    z = torch.cat([inner, Z[outside]])
    joined = implicit_posterior_log_prob(
        log_normal(0.0, 1.0, z), torch.cat([log_q, torch.full_like(Z[outside], -math.inf)]),
        torch.cat([weights, WEIGHTS[outside]]), 2,
    )  # fmt: skip
    assert joined[60:].isneginf().all()
    torch.testing.assert_close(joined[:60], expected, rtol=0, atol=1e-10)


def test_autograd_through_the_exact_bound_does_not_warn() -> None:
    """The exact gradient of L_K: a warning would be an error here."""
    mean = torch.tensor(0.3, dtype=F64, requires_grad=True)
    log_q = -0.5 * (Z - mean).square() - 0.5 * math.log(2 * math.pi)
    bound = exact_iwae_bound(log_normal(0.0, 1.0), log_q, WEIGHTS, 1)
    (slope,) = torch.autograd.grad(bound, mean)
    assert slope.item() == pytest.approx(-0.3, rel=0, abs=1e-12)  # of -KL


def test_the_gradient_of_the_exact_bound_where_q_is_far_too_wide() -> None:
    """q five times wider, log-weights over thousands of nats: against central differences."""
    z, weights = gauss_legendre(-14.0, 14.0, 1000)
    z = z.squeeze(-1)

    def bound(sd: Tensor) -> Tensor:
        log_joint = Normal(torch.zeros_like(sd), sd).log_prob(z)
        return exact_iwae_bound(log_joint, log_normal(0.0, 1.0, z), weights, 10)

    sd = torch.tensor(0.2, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(bound(sd), sd)
    step = 1e-5
    differences = (bound(sd.detach() + step) - bound(sd.detach() - step)) / (2 * step)
    assert gradient.item() == pytest.approx(differences.item(), rel=1e-6)


@pytest.mark.parametrize("num_samples", [[], math.inf, 0])
def test_a_number_of_samples_that_is_none_is_refused(num_samples: object) -> None:
    with pytest.raises(ValueError, match="at least 1 and finite"):
        exact_iwae_bound(log_normal(0.0, 1.0), log_normal(0.0, 1.0), WEIGHTS, num_samples)


def test_a_joint_that_is_nowhere_is_refused() -> None:
    for value in (math.nan, -math.inf):
        with pytest.raises(ValueError, match="finite at some"):
            exact_iwae_bound(torch.full_like(Z, value), log_normal(0.0, 1.0), WEIGHTS, 2)


def test_the_message_shows_how_much_mass_is_missing() -> None:
    """And not "the nodes hold a mass of 1 of q, and 1 is needed"."""
    with pytest.raises(ValueError, match="mass") as caught:
        exact_iwae_bound(log_normal(0.0, 1.0), log_normal(0.0, 1.0) + 1.5e-6, WEIGHTS, 2)
    assert "a mass of 1 of q" not in str(caught.value)


# weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [-801.7, 333.3])
def test_float32_sample_sizes_stay_within_their_range(level: float) -> None:
    """Equal weights at the level of an image's log-likelihood: ESS 50.004 of 50 and chi^2 -9e-5.

    ``2 logsumexp(l) - logsumexp(2 l)`` subtracts numbers of 1600; ``1 / softmax(l).square().sum()`` does not.
    """
    log_w = torch.full((50,), level)
    assert effective_sample_size(log_w).item() == pytest.approx(50.0, rel=1e-6)
    assert chi2_from_log_weights(log_w).item() == pytest.approx(0.0, rel=0, abs=1e-6)


@pytest.mark.parametrize("function", [iwae_bound, chi2_from_log_weights])
def test_a_number_without_a_sample_dimension_is_refused(function: object) -> None:
    """A ValueError with a next step, no IndexError."""
    with pytest.raises(ValueError, match="at least one sample"):
        function(torch.zeros(()))  # type: ignore[operator]


# gradients and noise --------------------------------------------------------------------------------------


def test_a_mean_of_another_shape_is_refused() -> None:
    """(3,) estimates and a mean (3, 1) would broadcast to a table (3, 3) of ratios."""
    with pytest.raises(ValueError, match="mean"):
        signal_to_noise(torch.randn(5, 3), mean=torch.ones(3, 1))


@pytest.mark.parametrize("num_estimates", [0, -1])
def test_no_estimates_are_refused(num_estimates: int) -> None:
    """0 would give an empty table."""
    with pytest.raises(ValueError, match="num_estimates"):
        iwae_gradient_estimates(
            lambda z: -z.square().sum(-1), torch.zeros(2), torch.zeros(2),
            num_samples=2, num_estimates=num_estimates,
        )  # fmt: skip


def test_weighted_noise_keeps_no_graph() -> None:
    """The buffer of noise is overwritten, so a graph through it would be of no use."""
    linear = torch.ones(2, requires_grad=True)
    result = weighted_noise(linear, 0.1, num_samples=5, num_estimates=3)
    assert not any(part.requires_grad for part in result)


# the streamed bound ---------------------------------------------------------------------------------------

SLOPE = torch.tensor([[0.5, -1.0, 0.3]], dtype=F64)


def streamed(
    slope: Tensor, parameters: list[Tensor], rows: int = 5, fail: bool = False
) -> tuple[Tensor, Tensor]:
    """The bound (rows,) and q's mean, which wants a gradient."""
    x = torch.randn(rows, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    mean = torch.zeros(rows, 1, dtype=F64, requires_grad=True)

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        values = -0.5 * (x - z @ slope).square().sum(-1) - 0.5 * z.square().sum(-1)
        return values / 0.0 * 0.0 if fail else values

    bound = streamed_iwae_bound(
        log_joint, x, mean, torch.zeros_like(mean),
        num_samples=20, parameters=parameters, generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    return bound, mean


def test_a_parameter_listed_twice_gets_its_gradient_once() -> None:
    """As with ``[*vae.parameters(), *vae.decoder.parameters()]``."""
    slope = SLOPE.clone().requires_grad_()
    (once,) = torch.autograd.grad(streamed(slope, [slope])[0].sum(), slope)
    (twice,) = torch.autograd.grad(streamed(slope, [slope, slope])[0].sum(), slope)
    torch.testing.assert_close(twice, once)


def test_a_bound_that_is_nan_has_no_finite_gradient() -> None:
    """NaN exceeds no threshold, and must count all the same."""
    bound, mean = streamed(SLOPE, [], fail=True)
    assert bound.isnan().all()
    (gradient,) = torch.autograd.grad(bound.sum(), mean)
    assert gradient.isnan().all()


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        streamed(SLOPE, [], rows=0)


# chi^2 of Gaussians, VAEs -----------------------------------------------------------------------------------


def test_chi2_keeps_its_digits_where_the_gaussians_are_nearly_equal() -> None:
    """Log-variances r = 1e-5 to 1e-9: chi^2 = r^2/2 + r^3/2 + ..."""
    small = torch.tensor([[1e-5], [1e-7], [1e-9]], dtype=F64)
    exact = small.squeeze(1) ** 2 / 2 + small.squeeze(1) ** 3 / 2
    torch.testing.assert_close(gaussian_chi2(torch.zeros_like(small), small), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_chi2_where_q_is_very_wide(dtype: torch.dtype) -> None:
    """Log-variances r = -1 to -60: 1 + chi^2 = 1 / sqrt(c (2 - c)), c = exp(r), about exp(-r/2) / sqrt 2."""
    log_var = torch.tensor([-1.0, -10.0, -17.0, -40.0, -60.0])[:, None].to(dtype).requires_grad_()
    chi2 = gaussian_chi2(torch.zeros_like(log_var), log_var)
    ratio = [math.exp(r) for r in log_var.flatten().tolist()]
    exact = [1 / math.sqrt(c * (2 - c)) - 1 for c in ratio]
    assert chi2.tolist() == pytest.approx(exact, rel=1e-12 if dtype == F64 else 1e-5)
    (gradient,) = torch.autograd.grad(chi2.sum(), log_var)
    slopes = [-(1 - c) / (2 - c) / math.sqrt(c * (2 - c)) for c in ratio]
    assert gradient.flatten().tolist() == pytest.approx(slopes, rel=1e-10 if dtype == F64 else 1e-4)


def test_an_infinite_dimension_does_not_make_its_neighbours_gradient_nan() -> None:
    """One infinite dimension beside a finite one."""
    mean = torch.tensor([0.0, 0.3], dtype=F64, requires_grad=True)
    log_var = torch.tensor([1.0, 0.1], dtype=F64, requires_grad=True)
    chi2 = gaussian_chi2(mean, log_var)
    assert chi2 == math.inf
    assert not any(g.isnan().any() for g in torch.autograd.grad(chi2, (mean, log_var)))


def bernoulli_vae(encoder_members: int | None = None, decoder_members: int | None = None) -> VAE:
    encoder = MLP([4, 4], members=encoder_members)
    return VAE(encoder, BernoulliDecoder(MLP([2, 4], members=decoder_members)), 2)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_log_weights_of_another_batch_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Only x (B, m): otherwise ``dim=-2`` would not be the samples' dimension."""
    with pytest.raises(ValueError, match=r"x"):
        bernoulli_vae().log_weights(torch.zeros(shape), num_samples=5)


def test_importance_weights_of_a_batch_of_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x"):
        importance_log_weights(bernoulli_vae(), torch.zeros(2, 3, 4), num_samples=5)


def test_a_shared_encoder_beside_stacked_decoders_does_not_mix_data_points_up() -> None:
    """At B = E = K = 3 a z (B, K, d) would be read as (E, ., d)."""
    with pytest.raises(ValueError, match="an encoder for each"):
        bernoulli_vae(None, 3)
