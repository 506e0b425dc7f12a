"""bounds.gradients: against autograd written out by hand, paired samples, and exact derivatives of L_K."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from dgm_course.bounds import (
    dreg_gradient,
    exact_iwae_bound,
    iwae_bound,
    iwae_gradient,
    iwae_gradient_estimates,
    reparametrised_gradient,
    signal_to_noise,
)
from dgm_course.numerics import gauss_legendre

F64 = torch.float64
MEAN = torch.tensor([0.4, -0.6], dtype=F64)
LOG_VAR = torch.tensor([-0.3, 0.5], dtype=F64)
PLAIN, STICKING, DREG = "plain", "sticking the landing", "dreg"


def log_joint(z: Tensor) -> Tensor:
    """Not Gaussian, not normalised; any number of dimensions."""
    return -0.6 * z.square().sum(-1) - 0.05 * (z**4).sum(-1) + torch.sin(2 * z[..., 0] - z[..., -1])


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=seeded(seed))


# weighted sums ---------------------------------------------------------------------------------------------


def per_sample_gradients(log_w: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of each log-weight with respect to the same parameters, by one backward pass each."""
    parameters = at.clone().requires_grad_()
    values = log_w(parameters)
    rows = [torch.autograd.grad(v, parameters, retain_graph=True)[0] for v in values.flatten()]
    return torch.stack(rows).reshape(*values.shape, -1)


@pytest.mark.parametrize("shape", [(1,), (6,), (1, 3), (6, 3), (4, 2, 3)])  # three: dim is named
def test_the_plain_gradient_is_autograd_through_the_bound(shape: tuple[int, ...]) -> None:
    """Every entry of the batch for itself, 1e-13; log-weights of a few hundred nats apart."""
    a, b, c = draw(*shape, seed=1), draw(*shape, seed=2), 100.0 * draw(*shape, seed=3)

    def log_w(parameters: Tensor) -> Tensor:
        return a * parameters[0] + torch.sin(b * parameters[1]) * parameters[2] + c

    at = torch.tensor([0.3, -1.2, 0.7], dtype=F64)
    dim = 0 if len(shape) > 2 else None
    gradient = iwae_gradient(log_w(at), per_sample_gradients(log_w, at), dim)
    assert gradient.shape == (*shape[1:], 3)
    expected = per_sample_gradients(lambda p: iwae_bound(log_w(p), dim), at)  # autograd, entry by entry
    torch.testing.assert_close(gradient, expected.reshape(gradient.shape), rtol=1e-13, atol=1e-13)


def test_dreg_squares_the_weights() -> None:
    """By hand: weights 3/4 and 1/4 give 9/16 and 1/16 (not normalised again)."""
    log_w = torch.tensor([3.0, 1.0], dtype=F64).log() + 800.0
    path = torch.tensor([[1.0, 0.0], [16.0, 32.0]], dtype=F64)
    assert dreg_gradient(log_w, path).tolist() == pytest.approx([9 / 16 + 1.0, 2.0], rel=1e-12)
    assert iwae_gradient(log_w, path).tolist() == pytest.approx([0.75 + 4.0, 8.0], rel=1e-12)
    many = dreg_gradient(log_w[:, None].expand(2, 5), path[:, None].expand(2, 5, 2))
    assert many.shape == (5, 2) and torch.equal(many[4], many[0])


def test_a_sample_without_weight_counts_nothing() -> None:
    log_w = torch.tensor([0.2, -math.inf, 1.0], dtype=F64)
    gradients = draw(3, 2, seed=4)
    for estimator in (iwae_gradient, dreg_gradient):
        kept = estimator(log_w[[0, 2]], gradients[[0, 2]])
        torch.testing.assert_close(estimator(log_w, gradients), kept, rtol=1e-14, atol=0)


@pytest.mark.parametrize("estimator", [iwae_gradient, dreg_gradient])
def test_gradients_must_belong_to_the_weights(estimator: Callable[[Tensor, Tensor], Tensor]) -> None:
    for log_w, gradients in (((4, 3), (4, 3)), ((4, 3), (4, 2)), ((4,), (3, 4)), ((4, 1), (4, 3, 2))):
        with pytest.raises(ValueError, match="one gradient .* put the parameters last") as caught:
            estimator(torch.zeros(log_w), torch.zeros(gradients))
        assert f"{log_w} and {gradients}" in str(caught.value)
    with pytest.raises(ValueError, match="at least one sample"):
        estimator(torch.zeros(0, 3), torch.zeros(0, 3, 2))


# estimates from a model -------------------------------------------------------------------------------------


def by_autograd(eps: Tensor, estimator: str) -> Tensor:
    """One estimate from the noise ``(K, d)``, as Tucker et al. write it: a surrogate with stopped parts."""
    mean, log_var = MEAN.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
    z = mean + torch.exp(0.5 * log_var) * eps
    inside = (mean, log_var) if estimator == PLAIN else (mean.detach(), log_var.detach())
    q = Independent(Normal(inside[0], torch.exp(0.5 * inside[1])), 1)
    log_w = log_joint(z) - q.log_prob(z)  # (K,)
    share = (log_w - torch.logsumexp(log_w, 0)).exp().detach()
    surrogate = {
        PLAIN: torch.logsumexp(log_w, 0) - math.log(len(log_w)),
        STICKING: (share * log_w).sum(),
        DREG: (share**2 * log_w).sum(),
    }[estimator]
    return torch.cat(torch.autograd.grad(surrogate, (mean, log_var)))


@pytest.mark.parametrize("estimator", [PLAIN, STICKING, DREG])
@pytest.mark.parametrize("num_samples", [1, 2, 9])
def test_rows_equal_one_backward_pass_each(estimator: str, num_samples: int) -> None:
    """The same noise, (K, R, d), means and log-variances: 1e-12."""
    rows = iwae_gradient_estimates(
        log_joint, MEAN, LOG_VAR,
        num_samples=num_samples, num_estimates=7, estimator=estimator, generator=seeded(),
    )  # fmt: skip
    assert rows.shape == (7, 4) and not rows.requires_grad
    eps = draw(num_samples, 7, 2, seed=5)
    expected = torch.stack([by_autograd(eps[:, r], estimator) for r in range(7)])
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


def test_one_sample_gives_the_estimators_of_the_elbo() -> None:
    """K = 1 is :func:`reparametrised_gradient`, with and without the score; DReG is sticking the landing."""
    for estimator, stop_score in ((PLAIN, False), (STICKING, True), (DREG, True)):
        rows = iwae_gradient_estimates(
            log_joint, MEAN, LOG_VAR,
            num_samples=1, num_estimates=50, estimator=estimator, generator=seeded(),
        )  # fmt: skip
        elbo = reparametrised_gradient(
            log_joint, MEAN, LOG_VAR, num_samples=50, generator=seeded(), stop_score=stop_score
        )
        torch.testing.assert_close(rows, elbo, rtol=1e-12, atol=1e-12)


def test_at_the_posterior_the_path_gradients_vanish_and_the_plain_one_does_not() -> None:
    """q = posterior: every log-weight is log p(x), whatever the noise."""
    q = Independent(Normal(MEAN, torch.exp(0.5 * LOG_VAR)), 1)
    for estimator in (PLAIN, STICKING, DREG):
        rows = iwae_gradient_estimates(
            lambda z: q.log_prob(z) - 7.0, MEAN, LOG_VAR,
            num_samples=5, num_estimates=30, estimator=estimator, generator=seeded(),
        )  # fmt: skip
        if estimator == PLAIN:
            assert (rows.std(0) > 0.1).all()
        else:
            assert rows.abs().max() < 1e-13


def estimates(estimator: str, num_samples: int, num_estimates: int, seed: int) -> Tensor:
    return iwae_gradient_estimates(
        log_joint, MEAN, LOG_VAR,
        num_samples=num_samples, num_estimates=num_estimates, estimator=estimator, generator=seeded(seed),
    )  # fmt: skip


def paired(estimator: str, num_samples: int, seed: int) -> Tensor:
    """Standard errors between the means of this estimator and of the plain one, common random numbers."""
    difference = estimates(estimator, num_samples, 30_000, seed) - estimates(PLAIN, num_samples, 30_000, seed)
    return difference.mean(0) / difference.std(0) * 30_000**0.5


@pytest.mark.parametrize("num_samples", [1, 5, 20])
def test_dreg_has_the_plain_mean_and_sticking_the_landing_has_not(num_samples: int) -> None:
    """Five standard errors; beyond K = 1 the single reparametrisation is off by more than twenty."""
    assert (paired(DREG, num_samples, seed=20).abs() < 5).all()
    single = paired(STICKING, num_samples, seed=20).abs()
    assert (single < 5).all() if num_samples == 1 else single.max() > 20


def exact_derivatives(mean: float, log_var: float, num_samples: int, step: float = 1e-4) -> Tensor:
    """Of L_K, d = 1, with respect to (mean, log_var): central differences of the exact bound (error 1e-8)."""
    z, weights = gauss_legendre(-9.0, 9.0, 300)

    def bound(m: float, v: float) -> Tensor:
        log_q = Normal(*torch.tensor([m, math.exp(0.5 * v)], dtype=F64)).log_prob(z.squeeze(-1))
        return exact_iwae_bound(log_joint(z), log_q, weights, num_samples)

    by_mean = bound(mean + step, log_var) - bound(mean - step, log_var)
    by_log_var = bound(mean, log_var + step) - bound(mean, log_var - step)
    return torch.stack([by_mean, by_log_var]) / (2 * step)


def off_the_exact_gradient(estimator: str, num_samples: int, seed: int) -> Tensor:
    rows = iwae_gradient_estimates(
        log_joint, torch.tensor([0.9], dtype=F64), torch.tensor([-0.2], dtype=F64),
        num_samples=num_samples, num_estimates=30_000, estimator=estimator, generator=seeded(seed),
    )  # fmt: skip
    error = rows.std(0) / 30_000**0.5
    return (rows.mean(0) - exact_derivatives(0.9, -0.2, num_samples)) / error


@pytest.mark.parametrize("num_samples", [1, 4, 15])
def test_means_equal_the_derivatives_of_the_exact_bound(num_samples: int) -> None:
    """Five standard errors, which are 1 % of the gradient or less for DReG."""
    for estimator in (PLAIN, DREG):
        assert (off_the_exact_gradient(estimator, num_samples, seed=20).abs() < 5).all(), estimator
    if num_samples > 1:
        assert off_the_exact_gradient(STICKING, num_samples, seed=20).abs().max() > 20


def test_estimates_follow_dtype_and_device_and_work_without_grad(device: torch.device) -> None:
    mean, log_var = MEAN.float().to(device), LOG_VAR.float().to(device)
    with torch.no_grad():
        for estimator in (PLAIN, STICKING, DREG):
            rows = iwae_gradient_estimates(
                log_joint, mean, log_var, num_samples=3, num_estimates=2, estimator=estimator,
                generator=torch.Generator(device).manual_seed(0),
            )  # fmt: skip
            assert rows.shape == (2, 4) and rows.dtype == torch.float32 and rows.device.type == device.type


def test_estimates_leave_the_parameters_alone_and_default_to_one() -> None:
    mean, log_var = MEAN.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
    slope = torch.ones((), dtype=F64, requires_grad=True)
    rows = iwae_gradient_estimates(lambda z: slope * log_joint(z), mean, log_var, num_samples=3)
    assert rows.shape == (1, 4) and not rows.requires_grad
    assert mean.grad is None and log_var.grad is None and slope.grad is None


def test_bad_requests_are_refused() -> None:
    def call(mean: Tensor = MEAN, log_var: Tensor = LOG_VAR, **options: object) -> Tensor:
        return iwae_gradient_estimates(log_joint, mean, log_var, **{"num_samples": 2, **options})

    with pytest.raises(ValueError, match=r"one of \('plain', 'sticking the landing', 'dreg'\), got 'stl'"):
        call(estimator="stl")
    with pytest.raises(ValueError, match=r"shape \(d,\), got \(3, 2\) and \(2,\).*one data point at a time"):
        call(MEAN.expand(3, 2))
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        call(num_samples=0)
    with pytest.raises(ValueError, match=r"map z \(8, 2\) to one value a row, \(8,\), got \(8, 2\)"):
        iwae_gradient_estimates(lambda z: -(z**2), MEAN, LOG_VAR, num_samples=2, num_estimates=4)


# signal to noise --------------------------------------------------------------------------------------------


def test_signal_to_noise_by_hand() -> None:
    """Mean over the sample standard deviation (R - 1), entry by entry, never negative."""
    table = torch.tensor([[1.0, -2.0, 4.0], [3.0, -6.0, -4.0]], dtype=F64)
    assert signal_to_noise(table).tolist() == pytest.approx([2 / 2**0.5, 4 / 8**0.5, 0.0], rel=1e-15)
    assert signal_to_noise(table, num_averaged=9).tolist() == pytest.approx(
        [6 / 2**0.5, 12 / 8**0.5, 0.0], rel=1e-15
    )
    better = torch.tensor([0.0, -1.0, 1.0], dtype=F64)
    assert signal_to_noise(table, mean=better).tolist() == pytest.approx(
        [0.0, 1 / 8**0.5, 1 / 32**0.5], rel=1e-15
    )
    assert signal_to_noise(table[:, 0]).shape == () and signal_to_noise(draw(5, 2, 3)).shape == (2, 3)


def test_averaging_m_estimates_gives_root_m() -> None:
    """Measured on real averages of 25: within 3 %."""
    rows = 0.2 + draw(200_000, 2, seed=7)
    averaged = rows.reshape(-1, 25, 2).mean(1)
    torch.testing.assert_close(
        signal_to_noise(averaged), signal_to_noise(rows, num_averaged=25), rtol=0.03, atol=0
    )


def test_signal_to_noise_needs_two_estimates_and_one_average() -> None:
    for shape in ((), (0, 3), (1, 3)):
        with pytest.raises(
            ValueError, match="R >= 2, got .*: a standard deviation needs two estimates"
        ) as caught:
            signal_to_noise(torch.zeros(shape))
        assert str(shape) in str(caught.value)
    with pytest.raises(ValueError, match="num_averaged must be at least 1, got 0: it is the M"):
        signal_to_noise(torch.zeros(4, 3), num_averaged=0)
