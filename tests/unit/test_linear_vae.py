"""linear_vae: the closed forms against averages over data points, one at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from dgm_course.linear_gaussian import LinearGaussian, data_covariance
from dgm_course.linear_vae import (
    activity_line,
    amortisation_gap,
    approximation_gap,
    collapse_spectrum,
    expected_elbo,
    expected_kl_per_dim,
    expected_log_likelihood,
    optimal_linear_vae,
    random_linear_vae,
)

EIGENVALUES = torch.tensor([6.0, 3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)


def draw(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_averages_equal_the_mean_over_data_points(generator: torch.Generator) -> None:
    x = draw(30, 4, generator=generator) * torch.tensor([2.0, 1.0, 1.0, 0.3], dtype=torch.float64) + 1.0
    W, V = draw(4, 2, generator=generator), draw(2, 4, generator=generator)
    log_var, b = draw(2, generator=generator), x.mean(0)
    covariance = data_covariance(x)
    means = (x - b) @ V.T
    q = Normal(means, torch.exp(0.5 * log_var).expand_as(means))
    per_dim = kl_divergence(q, Normal(torch.zeros_like(means), torch.ones_like(means))).mean(0)
    kl = expected_kl_per_dim(V, log_var, covariance)
    torch.testing.assert_close(kl, per_dim, rtol=1e-10, atol=1e-10)
    elbos = LinearGaussian(W, b, 0.6).elbo(x, means, torch.diag(log_var.exp()), beta=0.7)
    average = expected_elbo(W, V, log_var, covariance, 0.6, 0.7)
    torch.testing.assert_close(average, elbos.mean(), rtol=1e-10, atol=1e-10)
    z = q.sample((20_000,))  # (S, n, d)
    values = Independent(Normal(z @ W.T + b, math.sqrt(0.6)), 1).log_prob(x).mean(-1)
    likelihood = expected_log_likelihood(W, V, log_var, covariance, 0.6)
    assert (likelihood - values.mean()).abs() < 5 * values.std() / math.sqrt(20_000)


def test_a_grid_of_models_equals_single_models(generator: torch.Generator) -> None:
    covariance = data_covariance(draw(50, 4, generator=generator))
    beta, sigma2 = 0.5 + torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    W, V, log_var = random_linear_vae(4, 2, leading=(3, 4), scale=1.0, generator=generator)
    many = expected_elbo(W, V, log_var, covariance, sigma2, beta)
    assert many.shape == (3, 4) and log_var.shape == (3, 4, 2) and W.requires_grad
    one = expected_elbo(W[2, 1], V[2, 1], log_var[2, 1], covariance, sigma2[2, 1], beta[2, 1])
    torch.testing.assert_close(many[2, 1], one, rtol=1e-12, atol=1e-12)
    spectrum = collapse_spectrum(EIGENVALUES, sigma2, beta, num_latents=5)
    single = collapse_spectrum(EIGENVALUES, sigma2[1, 3].item(), beta[1, 3].item(), num_latents=5)
    for field, alone in zip(spectrum, single, strict=True):
        assert field.shape == (3, 4, 5)
        torch.testing.assert_close(field[1, 3], alone)
    best = optimal_linear_vae(covariance, 2, sigma2, beta)
    alone = optimal_linear_vae(covariance, 2, sigma2[1, 3], beta[1, 3])
    for field, parameter in zip(best, alone, strict=True):
        torch.testing.assert_close(field[1, 3], parameter)
    model = LinearGaussian(W, torch.zeros(4, dtype=torch.float64), sigma2)
    gap = amortisation_gap(model, V, log_var.exp().diag_embed(), covariance)
    lone_model = LinearGaussian(W[0, 1], torch.zeros(4, dtype=torch.float64), sigma2[0, 1])
    lone = amortisation_gap(lone_model, V[0, 1], log_var[0, 1].exp().diag(), covariance)
    torch.testing.assert_close(gap[0, 1], lone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(approximation_gap(model)[0, 1], approximation_gap(lone_model))


def test_spectrum_by_hand() -> None:
    spectrum = collapse_spectrum(torch.tensor([1.0, 4.0, 0.5, 0.0]), sigma2=0.5, beta=2.0, num_latents=3)
    assert spectrum.active.tolist() == [True, False, False]  # 4 > 1; 1 is not above 1
    assert spectrum.kl_per_dim.tolist() == pytest.approx([math.log(2), 0, 0])
    assert spectrum.posterior_var.tolist() == pytest.approx([0.25, 1, 1])
    assert spectrum.mean_var.tolist() == pytest.approx([0.75, 0, 0])
    assert collapse_spectrum(torch.tensor([1.0, 0.0]), 2.0).kl_per_dim.tolist() == [0.0, 0.0]


def test_optimum_has_orthogonal_columns_and_predicted_statistics(generator: torch.Generator) -> None:
    covariance = data_covariance(draw(80, 6, generator=generator) * EIGENVALUES.sqrt())
    W, V, log_var = optimal_linear_vae(covariance, 5, 0.4, 1.5)
    spectrum = collapse_spectrum(torch.linalg.eigvalsh(covariance), 0.4, 1.5, num_latents=5)
    gram = W.T @ W
    torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-12)
    kl = expected_kl_per_dim(V, log_var, covariance)
    torch.testing.assert_close(kl, spectrum.kl_per_dim, rtol=1e-10, atol=1e-10)
    mean_var = (V @ covariance @ V.T).diagonal()
    torch.testing.assert_close(mean_var, spectrum.mean_var, rtol=1e-10, atol=1e-10)


def test_approximation_gap_is_what_the_best_diagonal_q_misses(generator: torch.Generator) -> None:
    model = LinearGaussian(draw(5, 3, generator=generator), torch.zeros(5, dtype=torch.float64), 0.5)
    x = draw(5, generator=generator)
    mean, _ = model.posterior(x)
    log_var = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_var], max_iter=200, line_search_fn="strong_wolfe")

    def gap() -> Tensor:
        return model.log_prob(x) - model.elbo(x, mean, log_var.exp().diag())

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = gap()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert gap().item() == pytest.approx(approximation_gap(model).item(), abs=1e-9)


def test_activity_line() -> None:
    assert activity_line(0.5, 2.0) == pytest.approx(1.0101, abs=1e-4)
    assert activity_line(torch.tensor([1.0, 2.0]), threshold=0.0).tolist() == [1.0, 2.0]


def test_float32_and_device(generator: torch.Generator, device: torch.device) -> None:
    covariance = data_covariance(draw(60, 6, generator=generator))
    there = covariance.float().to(device)
    best = optimal_linear_vae(there, 3, 0.4, 1.5)
    assert all(p.dtype == torch.float32 and p.device.type == device.type for p in best)
    value = expected_elbo(*best, there, 0.4, 1.5)
    exact = expected_elbo(*optimal_linear_vae(covariance, 3, 0.4, 1.5), covariance, 0.4, 1.5)
    assert value.item() == pytest.approx(exact.item(), abs=1e-4)
    start = random_linear_vae(4, 2, dtype=torch.float32, device=device)
    assert start.W.device.type == device.type and start.V.dtype == torch.float32 and start.V.is_leaf


def test_gradients(generator: torch.Generator) -> None:
    covariance = data_covariance(draw(20, 3, generator=generator))
    parameters = random_linear_vae(3, 2, leading=(2,), scale=1.0, generator=generator)
    assert torch.autograd.gradcheck(lambda *p: expected_elbo(*p, covariance, 0.5, 0.8), tuple(parameters))


def test_bad_input_is_refused(generator: torch.Generator) -> None:
    W, V, log_var = random_linear_vae(4, 2, generator=generator)
    covariance = torch.eye(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="V maps data to latents"):
        expected_elbo(V, W, log_var, covariance, 1.0)
    with pytest.raises(ValueError, match="must share m and d"):
        expected_kl_per_dim(V, log_var[:1], covariance)
    model = LinearGaussian(W, torch.zeros(4, dtype=torch.float64), 1.0)
    with pytest.raises(ValueError, match="must match the model's W"):
        amortisation_gap(model, W, torch.eye(2, dtype=torch.float64), covariance)
    with pytest.raises(ValueError, match="sigma2 must be positive"):
        expected_elbo(W, V, log_var, covariance, -1.0)
    with pytest.raises(ValueError, match="beta must be positive"):
        collapse_spectrum(EIGENVALUES, 1.0, 0.0)
    with pytest.raises(ValueError, match="cannot be negative"):
        collapse_spectrum(-EIGENVALUES, 1.0)
    with pytest.raises(ValueError, match="between 1 and m = 6"):
        collapse_spectrum(EIGENVALUES, 1.0, num_latents=7)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        activity_line(1.0, threshold=1.0)
