"""Lecture 01 on the linear VAE: C4 (amortisation gap), C5 (which directions collapse), C9 (diagnostics)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from ledger import proves
from torch import Tensor
from torch.distributions import MultivariateNormal

from dgm_course.divergences import kl_divergence
from dgm_course.linear_gaussian import LinearGaussian, data_covariance, mutual_information
from dgm_course.linear_vae import (
    CollapseSpectrum,
    activity_line,
    amortisation_gap,
    approximation_gap,
    collapse_spectrum,
    expected_elbo,
    expected_kl_per_dim,
    random_linear_vae,
)
from dgm_course.numerics import gauss_hermite, gauss_legendre

Spectrum = Callable[..., CollapseSpectrum]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maximise(objective: Callable[[], Tensor], parameters: list[Tensor]) -> Tensor:
    """L-BFGS until the gradient is below 1e-9, so that the value is exact to rounding."""
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -objective()
        loss.backward()
        return loss

    optimiser.step(closure)
    return objective().detach()


# C4: a shared encoder pays the amortisation gap ---------------------------------------------------------


def gap_ignores_posterior_covariance(
    model: LinearGaussian, V: Tensor, q_cov: Tensor, covariance: Tensor
) -> Tensor:
    """Counts the error of the means only."""
    wrong = V - model.encoder()
    return 0.5 * ((model.posterior_precision() @ wrong @ covariance) * wrong).sum((-1, -2))


@functools.cache
def case_of_c4() -> tuple[LinearGaussian, Tensor, Tensor]:
    """A model, data with mean b, and the average of the best ELBO of any Gaussian q, point by point."""
    W = torch.tensor([[1.0, 0.9], [0.7, 1.0], [0.2, -0.3], [1.5, 0.4]], dtype=torch.float64)
    model = LinearGaussian(W, draw(4, seed=1), 0.5)
    x = model.sample(8, torch.Generator().manual_seed(2))[0]
    x = x - x.mean(0) + model.b
    q_mean = torch.zeros(8, 2, dtype=torch.float64)
    root = torch.eye(2, dtype=torch.float64).repeat(8, 1, 1)

    def objective() -> Tensor:
        return model.elbo(x, q_mean, root @ root.mT).mean()

    return model, x, maximise(objective, [q_mean.requires_grad_(), root.requires_grad_()])


@proves(
    "C4", right=amortisation_gap, wrong={"gap_ignores_posterior_covariance": gap_ignores_posterior_covariance}
)
def test_amortisation_gap(variant: Callable[..., Tensor]) -> None:
    model, x, best = case_of_c4()
    covariance = data_covariance(x)

    # the optimal linear encoder has gap 0
    _, cov = model.posterior(x[0])
    assert abs(variant(model, model.encoder(), cov, covariance).item()) < 1e-10

    # an encoder that does not see the last coordinate and has a diagonal covariance, trained on the ELBO
    seen = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    V, log_var = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)

    def objective() -> Tensor:
        return model.elbo(x, (x - model.b) @ (V * seen).T, log_var.exp().diag()).mean()

    trained = maximise(objective, [V.requires_grad_(), log_var.requires_grad_()])
    gap = variant(model, (V * seen).detach(), log_var.detach().exp().diag(), covariance)
    assert gap.item() == pytest.approx((best - trained).item(), abs=1e-8)

    # and that gap in closed form: what the unseen coordinate still tells (a Schur complement), and what a
    # diagonal misses; the posterior by conditioning the dense joint Gaussian
    gain = model.W.T @ torch.linalg.inv(model.W @ model.W.T + 0.5 * torch.eye(4, dtype=torch.float64))
    precision = torch.linalg.inv(torch.eye(2, dtype=torch.float64) - gain @ model.W)
    known = covariance[:3, :3]
    unseen = covariance[3, 3] - covariance[3, :3] @ torch.linalg.solve(known, covariance[:3, 3])
    of_mean = 0.5 * unseen * gain[:, 3] @ precision @ gain[:, 3]
    of_diagonal = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap.item() == pytest.approx((of_mean + of_diagonal).item(), abs=1e-8)
    assert approximation_gap(model).item() == pytest.approx(of_diagonal.item(), abs=1e-10)
    assert of_diagonal > 0.1 and of_mean > 0.1

    # any other encoder: the average over the points, one by one
    V, root = draw(2, 4, seed=3), draw(2, 2, seed=4)
    elbo = model.elbo(x, (x - model.b) @ V.T, root @ root.T).mean()
    gap = variant(model, V, root @ root.T, covariance)
    assert gap.item() == pytest.approx((best - elbo).item(), abs=1e-8)


# C5: direction j lives iff lambda_j > beta sigma2 -------------------------------------------------------

EIGENVALUES = torch.tensor([6.0, 3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
BASIS = torch.linalg.qr(draw(6, 6, seed=5)).Q
COVARIANCE = BASIS * EIGENVALUES @ BASIS.T
BETA, SIGMA2 = torch.meshgrid(
    torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64),
    torch.tensor([0.3, 0.6, 1.2], dtype=torch.float64),
    indexing="ij",
)


def threshold_without_beta(
    eigenvalues: Tensor, sigma2: Tensor, beta: Tensor, *, num_latents: int
) -> CollapseSpectrum:
    return collapse_spectrum(eigenvalues, sigma2, torch.ones_like(beta), num_latents=num_latents)


C5_WRONG = {"threshold_without_beta": threshold_without_beta}


@proves("C5", right=collapse_spectrum, wrong=C5_WRONG)
def test_predicted_optimum_is_stationary_and_the_best_nearby(variant: Spectrum) -> None:
    spectrum = variant(EIGENVALUES, SIGMA2, BETA, num_latents=5)
    top, used = EIGENVALUES[:5], spectrum.mean_var.sqrt()
    W = (BASIS[:, :5] * (top.sqrt() * used).unsqueeze(-2)).requires_grad_()
    V = ((used / top.sqrt()).unsqueeze(-1) * BASIS[:, :5].T).requires_grad_()
    log_var = spectrum.posterior_var.log().requires_grad_()
    value = expected_elbo(W, V, log_var, COVARIANCE, SIGMA2, BETA)
    for gradient in torch.autograd.grad(value.sum(), (W, V, log_var)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
    for seed, scale in enumerate((0.01, 0.01, 0.1, 0.1, 0.3, 0.3, 1.0, 1.0)):
        noise = [scale * draw(*p.shape, seed=10 + 3 * seed + i) for i, p in enumerate((W, V, log_var))]
        moved = expected_elbo(W + noise[0], V + noise[1], log_var + noise[2], COVARIANCE, SIGMA2, BETA)
        assert (moved < value).all()
    kl = expected_kl_per_dim(V, log_var, COVARIANCE)
    torch.testing.assert_close(kl, spectrum.kl_per_dim, rtol=0, atol=1e-10)
    assert torch.equal(spectrum.active, EIGENVALUES[:5] > (BETA * SIGMA2).unsqueeze(-1))


@functools.cache
def trained_linear_vaes() -> tuple[Tensor, Tensor]:
    """KLs, sorted, and ELBOs of linear VAEs trained from a random start, the whole grid at once.

    The last mode to converge is the rotation of the latents. With Adam's usual second-moment decay of 0.999
    it is held back by the large gradients of the start: KLs are then off by up to 0.05 after 3000 steps.
    """
    vae = random_linear_vae(6, 5, leading=BETA.shape, generator=torch.Generator().manual_seed(6))
    steps = 2000
    optimiser = torch.optim.Adam(vae, lr=0.02, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        (-expected_elbo(*vae, COVARIANCE, SIGMA2, BETA).sum()).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        kl = expected_kl_per_dim(vae.V, vae.log_var, COVARIANCE).sort(-1, descending=True).values
        return kl, expected_elbo(*vae, COVARIANCE, SIGMA2, BETA)


@proves("C5", right=collapse_spectrum, wrong=C5_WRONG)
def test_trained_linear_vaes_have_the_predicted_kls(variant: Spectrum) -> None:
    spectrum = variant(EIGENVALUES, SIGMA2, BETA, num_latents=5)
    kl, elbo = trained_linear_vaes()
    torch.testing.assert_close(kl, spectrum.kl_per_dim, rtol=0, atol=5e-5)
    assert torch.equal((kl > 5e-5).sum(-1), spectrum.active.sum(-1))
    # the optimum's value: collapsed, -1/2 [m log(2 pi sigma2) + tr C / sigma2]; an active direction of ratio
    # r = lambda / (beta sigma2) then gains beta/2 (r - 1 - log r)
    ratio = (EIGENVALUES[:5] / (BETA * SIGMA2).unsqueeze(-1)).clamp(min=1.0)
    gain = 0.5 * BETA * (ratio - 1 - ratio.log()).sum(-1)
    optimum = gain - 0.5 * (6 * torch.log(2 * math.pi * SIGMA2) + EIGENVALUES.sum() / SIGMA2)
    torch.testing.assert_close(elbo, optimum, rtol=0, atol=1e-6)


# C9: mutual information, active units -------------------------------------------------------------------


def mutual_information_from_diagonal_only(V: Tensor, q_cov: Tensor, covariance: Tensor) -> Tensor:
    aggregate = (V @ covariance @ V.mT + q_cov).diagonal(dim1=-2, dim2=-1)
    return 0.5 * (aggregate.log() - q_cov.diagonal(dim1=-2, dim2=-1).log()).sum(-1)


@proves(
    "C9",
    right=mutual_information,
    wrong={"mutual_information_from_diagonal_only": mutual_information_from_diagonal_only},
)
def test_mutual_information_equals_the_average_divergence_from_the_aggregate(
    variant: Callable[..., Tensor],
) -> None:
    """I_q[x, z] = E_x KL(q(z|x) || E_x q(z|x)), by quadrature over x (2-D) and z (2-D)."""
    V = torch.tensor([[0.8, 0.5], [0.3, 0.9]], dtype=torch.float64)
    root = torch.tensor([[1.0, 0.0], [0.6, 0.7]], dtype=torch.float64)
    q_cov = torch.tensor([[0.5, -0.2], [-0.2, 0.6]], dtype=torch.float64)
    points, mass = gauss_hermite(32, num_dims=2)
    z, weights = gauss_legendre(-8.0, 8.0, 48, num_dims=2)
    q = MultivariateNormal(((points @ root.T) @ V.T).unsqueeze(1), q_cov)
    log_q = q.log_prob(z)  # (points of x, nodes of z)
    aggregate = torch.logsumexp(log_q + mass.log().unsqueeze(1), 0)
    information = (mass * kl_divergence(log_q, aggregate, weights)).sum()
    assert variant(V, q_cov, root @ root.T).item() == pytest.approx(information.item(), abs=1e-6)


def line_at_beta_sigma2(sigma2: Tensor, beta: Tensor) -> Tensor:
    return beta * sigma2


@proves("C9", right=activity_line, wrong={"line_at_beta_sigma2": line_at_beta_sigma2})
def test_active_units_are_counted_above_a_line_of_their_own(variant: Callable[..., Tensor]) -> None:
    """Trained encoders on data with an eigenvalue just above and just below the line; 1.0101 beta sigma2."""
    beta, sigma2 = torch.tensor(1.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    assert (variant(sigma2, beta) / (beta * sigma2)).item() == pytest.approx(1.0101, abs=1e-4)
    for factor, counted in ((1.0005, True), (0.9995, False)):
        eigenvalue = factor * variant(sigma2, beta)
        x = torch.linalg.qr(draw(50, 1, seed=7) - draw(50, 1, seed=7).mean()).Q * (50 * eigenvalue).sqrt()
        assert data_covariance(x).item() == pytest.approx(eigenvalue.item(), rel=1e-12)
        vae = random_linear_vae(1, 1, scale=0.3, generator=torch.Generator().manual_seed(8))
        covariance = data_covariance(x)
        maximise(lambda c=covariance, v=vae: expected_elbo(*v, c, sigma2, beta), list(vae))
        means = (x @ vae.V.T).detach()
        assert (means.var(0, unbiased=False) > 0.01).item() == counted


def test_at_the_optimum_the_information_is_the_whole_kl() -> None:
    """The aggregated posterior of an optimal linear VAE is the prior: nothing is left for KL(q_agg || p)."""
    spectrum = collapse_spectrum(EIGENVALUES, SIGMA2, BETA, num_latents=5)
    torch.testing.assert_close(spectrum.mean_var + spectrum.posterior_var, torch.ones(4, 3, 5).double())
    V = (spectrum.mean_var / EIGENVALUES[:5]).sqrt().unsqueeze(-1) * BASIS[:, :5].T
    information = mutual_information(V, spectrum.posterior_var.diag_embed(), COVARIANCE)
    torch.testing.assert_close(information, spectrum.kl_per_dim.sum(-1), rtol=0, atol=1e-10)
