"""Lecture 01 on the exact model: C1 (the bound) and C2 (EM)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from ledger import proves
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from dgm_course.bounds import elbo, elbo_from_evidence, elbo_from_kl
from dgm_course.em import GaussianMixture, MixtureStep, gaussian_mixture_em_step
from dgm_course.linear_gaussian import LinearGaussian, data_covariance, eigen_solution, em_step, m_step
from dgm_course.numerics import gauss_hermite

Step = Callable[[LinearGaussian, Tensor], LinearGaussian]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_log_prob(model: LinearGaussian, x: Tensor) -> Tensor:
    """log p(x) from the dense covariance: no posterior, no inversion lemma."""
    noise = model.sigma2 * torch.eye(model.num_dims, dtype=x.dtype)
    return MultivariateNormal(model.b, model.W @ model.W.T + noise).log_prob(x)


# C1: log p(x) = ELBO(q) + KL(q || p(z|x)) --------------------------------------------------------------


def reversed_kl(model: LinearGaussian, x: Tensor, q_mean: Tensor, q_cov: Tensor) -> Tensor:
    return kl_divergence(MultivariateNormal(*model.posterior(x)), MultivariateNormal(q_mean, q_cov))


def elbo_without_entropy(
    model: LinearGaussian, x: Tensor, q_mean: Tensor, q_cov: Tensor, beta: float = 1.0
) -> Tensor:
    return model.elbo(x, q_mean, q_cov, beta) - beta * MultivariateNormal(q_mean, q_cov).entropy()


def elbo_by_quadrature(model: LinearGaussian, x: Tensor, q_mean: Tensor, q_cov: Tensor) -> Tensor:
    """Form 1 averaged over q: the integrand is a quadratic, so that Gauss-Hermite is exact."""
    nodes, weights = gauss_hermite(6, num_dims=model.num_latents)
    root = torch.linalg.cholesky(q_cov)  # (d, d) or (B, d, d)
    z = q_mean + (root @ nodes[:, None, :, None]).squeeze(-1)  # (N, B, d)
    log_q = MultivariateNormal(q_mean, q_cov).log_prob(z)
    return (weights[:, None] * elbo(model.log_joint(x, z), log_q)).sum(0)


def case_of_c1() -> tuple[LinearGaussian, Tensor, Tensor, Tensor]:
    model = LinearGaussian(draw(4, 2, seed=0), draw(4, seed=1), 0.4)
    x, root = 2 * draw(5, 4, seed=2), torch.tensor([[0.9, 0.0], [-0.5, 0.6]], dtype=torch.float64)
    return model, x, draw(5, 2, seed=3), root @ root.T


@proves("C1", right=LinearGaussian.posterior_kl, wrong={"posterior_kl_reversed": reversed_kl})
def test_evidence_is_elbo_plus_posterior_kl(variant: Callable[..., Tensor]) -> None:
    model, x, q_mean, q_cov = case_of_c1()
    log_px = exact_log_prob(model, x)
    for scale in (0.5, 1.0, 3.0):
        gap = variant(model, x, q_mean, scale * q_cov)
        bound = elbo_by_quadrature(model, x, q_mean, scale * q_cov)
        torch.testing.assert_close(bound + gap, log_px, rtol=0, atol=1e-10)
        torch.testing.assert_close(elbo_from_evidence(log_px, gap), bound, rtol=0, atol=1e-10)
        assert (bound < log_px - 0.01).all()  # strict: q is not the posterior
    mean, cov = model.posterior(x)
    torch.testing.assert_close(elbo_by_quadrature(model, x, mean, cov), log_px, rtol=0, atol=1e-10)
    nothing = torch.zeros_like(log_px)
    torch.testing.assert_close(variant(model, x, mean, cov), nothing, rtol=0, atol=1e-10)
    for moved in (variant(model, x, mean + 1e-3, cov), variant(model, x, mean, 1.01 * cov)):
        assert (moved > 1e-7).all()  # equality holds at the posterior only


@proves("C1", right=LinearGaussian.elbo, wrong={"elbo_without_entropy": elbo_without_entropy})
def test_closed_form_elbo_is_the_average_of_form_one(variant: Callable[..., Tensor]) -> None:
    model, x, q_mean, q_cov = case_of_c1()
    expected = elbo_by_quadrature(model, x, q_mean, q_cov)
    torch.testing.assert_close(variant(model, x, q_mean, q_cov), expected, rtol=0, atol=1e-10)
    # form 2: the likelihood term of E_q[log p(x|z)] alone, and torch's KL to the prior
    prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    kl = kl_divergence(MultivariateNormal(q_mean, q_cov), prior)
    log_likelihood = variant(model, x, q_mean, q_cov, beta=0.0)
    torch.testing.assert_close(elbo_from_kl(log_likelihood, kl), expected, rtol=0, atol=1e-10)


# C2: EM never decreases the likelihood -----------------------------------------------------------------

SCALES = torch.tensor([3.0, 2.2, 1.5, 0.9, 0.6], dtype=torch.float64)


def em_without_posterior_covariance(model: LinearGaussian, x: Tensor) -> LinearGaussian:
    mean, cov = model.posterior(x)
    return m_step(x, mean, torch.zeros_like(cov))


def data_of_c2() -> Tensor:
    rotation = torch.linalg.qr(draw(5, 5, seed=4)).Q
    return (draw(200, 5, seed=5) * SCALES) @ rotation.T + 1.0


def assert_same_law(model: LinearGaussian, other: LinearGaussian, atol: float) -> None:
    torch.testing.assert_close(model.W @ model.W.T, other.W @ other.W.T, rtol=0, atol=atol)
    torch.testing.assert_close(model.sigma2, other.sigma2, rtol=0, atol=atol)


C2_WRONG = {"m_step_without_posterior_covariance": em_without_posterior_covariance}


@proves("C2", right=em_step, wrong=C2_WRONG)
def test_em_on_pca_climbs_to_the_eigen_solution(variant: Step) -> None:
    x = data_of_c2()
    model = LinearGaussian(draw(5, 2, seed=6), torch.zeros(5, dtype=torch.float64), 1.0)
    values = [exact_log_prob(model, x).mean()]
    for _ in range(60):
        mean, cov = model.posterior(x)
        tight = model.elbo(x, mean, cov).mean()  # after the E-step
        new = variant(model, x)
        raised = new.elbo(x, mean, cov).mean()  # after the M-step, same q
        values.append(exact_log_prob(new, x).mean())
        torch.testing.assert_close(tight, values[-2], rtol=0, atol=1e-10)
        assert tight - 1e-10 <= raised <= values[-1] + 1e-10
        model = new
    assert (torch.stack(values).diff() > -1e-10).all() and values[-1] - values[0] > 0.5
    for _ in range(400):
        model = variant(model, x)
    assert_same_law(model, eigen_solution(x, 2), atol=1e-8)


@proves("C2", right=em_step, wrong=C2_WRONG)
def test_other_eigenvector_subsets_are_saddles(variant: Step) -> None:
    x = data_of_c2()
    values, vectors = torch.linalg.eigh(data_covariance(x))  # ascending
    kept, left_out = [4, 2], [0, 1, 3]  # largest and third, not the second
    noise = values[left_out].mean()
    start = LinearGaussian(vectors[:, kept] * (values[kept] - noise).sqrt(), x.mean(0), noise)
    assert_same_law(variant(start, x), start, atol=1e-10)  # a fixed point ...
    best = eigen_solution(x, 2)
    assert exact_log_prob(best, x).mean() - exact_log_prob(start, x).mean() > 0.05
    model = LinearGaussian(start.W + 1e-3 * vectors[:, [3]], start.b, noise)
    for _ in range(600):
        model = variant(model, x)
    assert_same_law(model, best, atol=1e-8)  # ... but an unstable one


def hard_assignment(mixture: GaussianMixture, x: Tensor) -> MixtureStep:
    """k-means' E-step: each point to its likeliest component."""
    step = gaussian_mixture_em_step(mixture, x)
    hard = torch.nn.functional.one_hot(step.responsibilities.argmax(-1), len(mixture.weights)).double()
    counts = hard.sum(0)
    means = hard.T @ x / counts[:, None]
    shift = x - means[:, None]  # (k, n, m)
    covariances = (hard.T[..., None] * shift).mT @ shift / counts[:, None, None]
    return MixtureStep(GaussianMixture(counts / len(x), means, covariances), hard, step.log_prob)


@proves("C2", right=gaussian_mixture_em_step, wrong={"hard_assignment": hard_assignment})
def test_em_on_a_mixture_climbs_and_equals_scikit_learn(
    variant: Callable[[GaussianMixture, Tensor], MixtureStep],
) -> None:
    centres = torch.tensor([[0.0, 0.0], [2.5, 1.0], [-1.0, 3.0]], dtype=torch.float64)
    x = draw(180, 2, seed=7) + centres.repeat(60, 1)
    eye = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    mixture = GaussianMixture(torch.full((3,), 1 / 3, dtype=torch.float64), x[:3].clone(), eye)
    values = []
    for i in range(60):
        result = variant(mixture, x)
        values.append(result.log_prob.mean())
        if i < 3:
            theirs = SklearnMixture(
                3,
                max_iter=1,
                reg_covar=0.0,
                init_params="random",
                random_state=0,
                weights_init=mixture.weights.numpy(),
                means_init=mixture.means.numpy(),
                precisions_init=torch.linalg.inv(mixture.covariances).numpy(),
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                theirs.fit(x.numpy())
            for ours, other in zip(
                result.mixture, (theirs.weights_, theirs.means_, theirs.covariances_), strict=True
            ):
                torch.testing.assert_close(ours, torch.as_tensor(other), rtol=1e-9, atol=1e-9)
        q = result.responsibilities
        bound = (q * (mixture.log_joint(x) - q.log())).sum(-1).mean()
        raised = (q * (result.mixture.log_joint(x) - q.log())).sum(-1).mean()
        torch.testing.assert_close(bound, values[-1], rtol=0, atol=1e-10)  # tight after the E-step
        assert bound - 1e-10 <= raised <= result.mixture.log_prob(x).mean() + 1e-10
        mixture = result.mixture
    assert (torch.stack(values).diff() > -1e-10).all() and values[-1] - values[0] > 0.1
