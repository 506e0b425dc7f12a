"""Lecture 02, gradients: I5 (shared by weight), I6 (signal to noise), I7 (doubly reparametrised)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from ledger import proves
from torch import Tensor

from dgm_course.bounds import (
    dreg_gradient,
    iwae_bound,
    iwae_gradient,
    iwae_gradient_estimates,
    normalized_weights,
    signal_to_noise,
)
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.gaussian_toy import GaussianToy, ProjectedGradients
from dgm_course.linear_gaussian import LinearGaussian

Gradient = Callable[[Tensor, Tensor], Tensor]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# I5: the gradient of the bound shares the samples' gradients by normalised weight ------------------------


def weights_not_normalised(log_w: Tensor, grad_log_w: Tensor) -> Tensor:
    return (log_w.exp().unsqueeze(-1) * grad_log_w).sum(0)


def equal_weights(log_w: Tensor, grad_log_w: Tensor) -> Tensor:
    return grad_log_w.mean(0)


@proves(
    "I5", right=iwae_gradient,
    wrong={"weights_not_normalised": weights_not_normalised, "equal_weights": equal_weights},
)  # fmt: skip
def test_the_gradient_is_the_weighted_sum(variant: Gradient) -> None:
    inputs, parameters = draw(7, 3, 4, seed=0), draw(4, seed=1)  # K = 7, B = 3, P = 4

    def log_weights(theta: Tensor) -> Tensor:
        return torch.sin(inputs @ theta) * 2 + (inputs**2 @ theta.square()) / 3  # (K, B)

    def bound(theta: Tensor) -> Tensor:
        return iwae_bound(log_weights(theta))  # (B,)

    rows = torch.autograd.functional.jacobian(log_weights, parameters)  # (K, B, P)
    expected = torch.autograd.functional.jacobian(bound, parameters)  # (B, P): through the bound
    torch.testing.assert_close(variant(log_weights(parameters), rows), expected, rtol=0, atol=1e-10)


# I6: signal to noise against K and M, on the toy of Rainforth et al. --------------------------------------

SAMPLES = (1, 3, 10, 30, 100, 300, 1000)
ESTIMATES = {1: 40_000, 3: 40_000, 10: 20_000, 30: 10_000, 100: 8000, 300: 6000, 1000: 4000}


def projected(offset: float, num_samples: int, num_estimates: int) -> ProjectedGradients:
    toy = GaussianToy.near_optimum(offset, dtype=torch.float32)
    generator = torch.Generator().manual_seed(num_samples)
    return toy.projected(toy.gradients(num_samples, num_estimates, generator=generator))


@pytest.fixture(scope="module")
def rows() -> dict[float, list[ProjectedGradients]]:
    """The gradient estimates of both offsets, for every K, drawn once."""
    return {offset: [projected(offset, k, ESTIMATES[k]) for k in SAMPLES] for offset in (0.01, 0.05)}


def slope(
    values: list[Tensor], errors: list[float], samples: tuple[int, ...]
) -> tuple[float, float]:
    """Least-squares slope of log10 value against log10 K, and its standard error from the relative errors."""
    x = torch.tensor(samples).double().log10()
    lever = (x - x.mean()) / (x - x.mean()).square().sum()
    y = torch.stack(values).double().log10()
    error = lever * torch.tensor(errors).double() / math.log(10)
    return float(lever @ y), float(error.square().sum().sqrt())


def sd_error(estimates: Tensor) -> float:
    """Relative standard error of a standard deviation from R estimates, with their kurtosis."""
    centred = estimates - estimates.mean()
    kurtosis = centred.pow(4).mean() / centred.square().mean().square()
    return float(((kurtosis - 1) / (4 * len(estimates))).sqrt())


def ratio_error(estimates: Tensor, mean_from: Tensor) -> float:
    """Relative standard error of |mean| / sd, the mean taken from other estimates."""
    of_mean = float(mean_from.std() / mean_from.mean().abs()) / len(mean_from) ** 0.5
    return math.hypot(of_mean, sd_error(estimates))


def snr_divides_by_variance(
    estimates: Tensor, *, mean: Tensor | None = None, num_averaged: int = 1
) -> Tensor:
    signal = estimates.mean(0) if mean is None else mean
    return signal.abs() / estimates.var(0) * num_averaged


@proves("I6", right=signal_to_noise, wrong={"snr_divides_by_variance": snr_divides_by_variance})
def test_the_ratio_rises_for_theta_and_falls_for_phi(
    variant: Callable[..., Tensor], rows: dict[float, list[ProjectedGradients]]
) -> None:
    """Slopes within 0.1 of +1/2 and -1/2, five standard errors included; phi's mean from DReG."""
    near = rows[0.01]
    theta_errors, phi_errors = ([ratio_error(*pair) for pair in pairs] for pairs in (
        [(r.theta, r.theta) for r in near], [(r.phi, r.dreg) for r in near]
    ))  # fmt: skip
    theta = slope([variant(r.theta) for r in near], theta_errors, SAMPLES)
    phi = slope([variant(r.phi, mean=r.dreg.mean()) for r in near], phi_errors, SAMPLES)
    for (found, error), expected in ((theta, 0.5), (phi, -0.5)):
        assert abs(found - expected) + 5 * error < 0.1, (found, error)


@proves("I6", right=signal_to_noise, wrong={"snr_divides_by_variance": snr_divides_by_variance})
def test_outer_samples_help_both_by_their_root(
    variant: Callable[..., Tensor], rows: dict[float, list[ProjectedGradients]]
) -> None:
    """M = 16: the ratio of averages of 16 estimates, measured, is 4 times that of one, and so predicted."""
    r = rows[0.01][2]  # K = 10
    for estimates, mean in ((r.theta, r.theta), (r.phi, r.dreg)):
        averages = estimates.reshape(-1, 16).mean(1)
        measured = variant(averages, mean=mean.mean())
        predicted = variant(estimates, mean=mean.mean(), num_averaged=16)
        error = math.hypot(sd_error(averages), sd_error(estimates))  # the mean is the same on both sides
        assert abs(measured / predicted - 1) <= 5 * error
        assert abs(measured / variant(estimates, mean=mean.mean()) / 4 - 1) <= 5 * error


def test_at_the_optimum_phi_has_no_signal() -> None:
    toy = GaussianToy.near_optimum(0.0)
    gradients = toy.gradients(10, 20_000, generator=torch.Generator().manual_seed(0))
    error = gradients.phi.std(0) / 20_000**0.5
    assert (gradients.phi.mean(0).abs() <= 5 * error).all()
    with pytest.raises(ValueError, match="exactly zero"):
        toy.projected(gradients)


# I7: doubly reparametrised --------------------------------------------------------------------------------


def weights_not_squared(log_w: Tensor, path_gradient: Tensor) -> Tensor:
    return (normalized_weights(log_w).unsqueeze(-1) * path_gradient).sum(0)


@proves("I7", right=dreg_gradient, wrong={"weights_not_squared": weights_not_squared})
def test_dreg_has_the_plain_gradients_mean(variant: Gradient) -> None:
    """20 000 paired estimates, K = 5, within five standard errors of the difference."""
    model = LinearGaussian(draw(3, 2, seed=8) / 2, torch.zeros(3, dtype=torch.float64), 1.0)
    x, count = draw(3, seed=9), 20_000
    mean, log_var = model.posterior(x)[0] + 0.3, torch.tensor([-0.5, -0.9], dtype=torch.float64)
    std, eps = torch.exp(0.5 * log_var), draw(5, count, 2, seed=10)
    z = (mean + std * eps).requires_grad_()
    log_joint = model.log_joint(x, z)
    (slope_z,) = torch.autograd.grad(log_joint.sum(), z)
    log_w = (log_joint - gaussian_log_prob(z, mean, log_var)).detach()
    plain = iwae_gradient(log_w, slope_z)  # in the mean: log q does not depend on it along the path
    path = slope_z + (z.detach() - mean) / log_var.exp()  # d log w / dz
    difference = variant(log_w, path) - plain
    error = difference.std(0) / count**0.5
    assert (difference.mean(0).abs() <= 5 * error).all(), difference.mean(0) / error


def test_slope_of_i7(rows: dict[float, list[ProjectedGradients]]) -> None:
    """At offset 0.05, once K >> chi^2(p || q): +1/2 to within 0.1. Before that the ratio hardly moves."""
    found = rows[0.05][2:]
    ratios = [signal_to_noise(r.dreg) for r in found]
    rising, error = slope(ratios, [ratio_error(r.dreg, r.dreg) for r in found], SAMPLES[2:])
    assert abs(rising - 0.5) + 5 * error < 0.1, (rising, error)
    early = [signal_to_noise(r.dreg) for r in rows[0.05][:2]]
    assert abs(math.log10(early[1] / early[0]) / math.log10(3)) < 0.25


def test_sticking_the_landing_is_silent_at_the_posterior() -> None:
    model = LinearGaussian(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 0.5)
    x = draw(2, seed=11)
    mean, cov = model.posterior(x)
    given = (lambda z: model.log_joint(x, z), mean, cov.diagonal().log())
    draws = {"num_samples": 1, "num_estimates": 1000}
    silent = iwae_gradient_estimates(*given, **draws, estimator="sticking the landing")
    assert silent.abs().max() < 1e-12
    plain = iwae_gradient_estimates(*given, **draws, generator=torch.Generator().manual_seed(12))
    assert (plain.std(0) > 0.5).all()
