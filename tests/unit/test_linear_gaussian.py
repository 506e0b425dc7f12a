"""linear_gaussian: against torch's multivariate normal, scikit-learn's PCA and the joint law of (x, z)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from dgm_course.linear_gaussian import (
    LinearGaussian,
    data_covariance,
    eigen_solution,
    em_step,
    log_det,
    m_step,
    mutual_information,
)


def draw(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def random_model(
    generator: torch.Generator, leading: tuple[int, ...] = (), m: int = 5, d: int = 3
) -> LinearGaussian:
    sigma2 = 0.2 + torch.rand(leading, generator=generator, dtype=torch.float64)
    return LinearGaussian(
        draw(*leading, m, d, generator=generator), draw(*leading, m, generator=generator), sigma2
    )


def random_cov(*shape: int, generator: torch.Generator) -> Tensor:
    root = draw(*shape, shape[-1], generator=generator)
    return root @ root.mT + 0.1 * torch.eye(shape[-1], dtype=torch.float64)


def joint(model: LinearGaussian) -> MultivariateNormal:
    """The (m + d)-dimensional Gaussian of (x, z) of one model, assembled block by block."""
    W, m, d = model.W, model.num_dims, model.num_latents
    eye_m, eye_d = torch.eye(m, dtype=W.dtype), torch.eye(d, dtype=W.dtype)
    cov = torch.cat([torch.cat([W @ W.T + model.sigma2 * eye_m, W], 1), torch.cat([W.T, eye_d], 1)], 0)
    return MultivariateNormal(torch.cat([model.b, torch.zeros(d, dtype=W.dtype)]), cov)


@pytest.mark.parametrize(("m", "d"), [(5, 3), (2, 2), (1, 1), (2, 4)])
def test_densities_and_posterior_come_from_one_joint_gaussian(
    m: int, d: int, generator: torch.Generator
) -> None:
    model = random_model(generator, m=m, d=d)
    x, z = draw(7, m, generator=generator), draw(7, d, generator=generator)
    both = joint(model)
    cov = both.covariance_matrix
    torch.testing.assert_close(
        model.log_joint(x, z), both.log_prob(torch.cat([x, z], -1)), rtol=1e-10, atol=1e-10
    )
    marginal = MultivariateNormal(model.b, cov[:m, :m])
    torch.testing.assert_close(model.log_prob(x), marginal.log_prob(x), rtol=1e-10, atol=1e-10)
    gain = cov[m:, :m] @ torch.linalg.inv(cov[:m, :m])  # conditioning a joint Gaussian
    mean, post_cov = model.posterior(x)
    torch.testing.assert_close(mean, (x - model.b) @ gain.T, rtol=1e-9, atol=1e-9)
    expected = (cov[m:, m:] - gain @ cov[:m, m:]).expand(7, d, d)
    torch.testing.assert_close(post_cov, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.encoder(), gain, rtol=1e-9, atol=1e-9)


def test_elbo_and_posterior_kl_against_monte_carlo_and_torch(generator: torch.Generator) -> None:
    model = random_model(generator)
    x, q_mean = draw(4, 5, generator=generator), draw(4, 3, generator=generator)
    q_cov = random_cov(4, 3, generator=generator)
    q = MultivariateNormal(q_mean, q_cov)
    prior = MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    expected = kl_divergence(q, MultivariateNormal(*model.posterior(x)))
    torch.testing.assert_close(model.posterior_kl(x, q_mean, q_cov), expected, rtol=1e-10, atol=1e-10)
    z = q_mean + (torch.linalg.cholesky(q_cov) @ draw(20_000, 4, 3, 1, generator=generator)).squeeze(-1)
    for beta in (1.0, 0.3):
        values = model.log_joint(x, z) - prior.log_prob(z) + beta * (prior.log_prob(z) - q.log_prob(z))
        error = values.std(0) / math.sqrt(20_000)
        assert ((model.elbo(x, q_mean, q_cov, beta) - values.mean(0)).abs() < 5 * error).all()


def test_leading_dimensions_equal_single_models(generator: torch.Generator) -> None:
    stack = random_model(generator, (2, 3))
    x = draw(6, 5, generator=generator)  # shared by all models
    z, q_cov = draw(2, 3, 6, 3, generator=generator), random_cov(2, 3, 6, 3, generator=generator)
    one = LinearGaussian(stack.W[1, 2], stack.b[1, 2], stack.sigma2[1, 2])
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(stack.log_prob(x)[1, 2], one.log_prob(x), **close)
    torch.testing.assert_close(stack.log_joint(x, z)[1, 2], one.log_joint(x, z[1, 2]), **close)
    for left, right in zip(stack.posterior(x), one.posterior(x), strict=True):
        torch.testing.assert_close(left[1, 2], right, **close)
    for name in ("elbo", "posterior_kl"):
        many = getattr(stack, name)(x, z, q_cov)
        assert many.shape == (2, 3, 6)
        torch.testing.assert_close(many[1, 2], getattr(one, name)(x, z[1, 2], q_cov[1, 2]), **close)
    torch.testing.assert_close(em_step(stack, x).W[1, 2], em_step(one, x).W, **close)
    own = draw(2, 3, 6, 5, generator=generator)  # data of its own for each model
    torch.testing.assert_close(stack.log_prob(own)[1, 2], one.log_prob(own[1, 2]), **close)
    shared = LinearGaussian(stack.W, stack.b[0, 0], 0.5)
    assert shared.sigma2.shape == (2, 3) and shared.log_prob(x).shape == (2, 3, 6)
    assert one.log_prob(x[0]).shape == () and one.log_prob(own).shape == (2, 3, 6)


def test_samples_have_the_joint_law(generator: torch.Generator) -> None:
    model = random_model(generator, (2,), m=3, d=2)
    x, z = model.sample(40_000, generator)
    assert x.shape == (2, 40_000, 3) and z.shape == (2, 40_000, 2)
    for e in range(2):
        both = joint(LinearGaussian(model.W[e], model.b[e], model.sigma2[e]))
        rows = torch.cat([x[e], z[e]], -1) - both.mean
        products = rows.unsqueeze(-1) * rows.unsqueeze(-2)
        assert (rows.mean(0).abs() < 5 * rows.std(0) / 200).all()
        assert ((products.mean(0) - both.covariance_matrix).abs() < 5 * products.std(0) / 200).all()


def test_m_step_maximises_the_expected_joint_likelihood(generator: torch.Generator) -> None:
    x, mean = draw(40, 4, generator=generator), draw(40, 2, generator=generator)
    cov = random_cov(40, 2, generator=generator)
    best = m_step(x, mean, cov)

    def objective(W: Tensor, b: Tensor, log_sigma2: Tensor) -> Tensor:
        return LinearGaussian(W, b, log_sigma2.exp()).elbo(x, mean, cov).mean()

    parameters = [best.W, best.b, best.sigma2.log()]
    parameters = [p.detach().clone().requires_grad_() for p in parameters]
    value = objective(*parameters)
    for gradient in torch.autograd.grad(value, parameters):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    for _ in range(20):
        moved = [p.detach() + 0.05 * draw(*p.shape, generator=generator) for p in parameters]
        assert objective(*moved) < value


def test_eigen_solution_equals_scikit_learn(generator: torch.Generator) -> None:
    x = random_model(generator, m=6, d=2).sample(300, generator)[0]
    ours = eigen_solution(x, 2)
    theirs = PCA(2).fit(x.numpy() * math.sqrt(299 / 300))  # scikit-learn weighs with 1/(n - 1)
    cov = ours.W @ ours.W.T + ours.sigma2 * torch.eye(6, dtype=torch.float64)
    np.testing.assert_allclose(cov.numpy(), theirs.get_covariance(), rtol=1e-10, atol=1e-10)
    assert ours.sigma2.item() == pytest.approx(theirs.noise_variance_, rel=1e-10)
    np.testing.assert_allclose(data_covariance(x).numpy(), np.cov(x.numpy().T, bias=True), rtol=1e-12)


def test_eigen_solution_with_given_noise_is_the_best(generator: torch.Generator) -> None:
    x = draw(2, 50, 4, generator=generator) * torch.tensor([3.0, 2.0, 0.5, 0.1], dtype=torch.float64)
    best = eigen_solution(x, 4, sigma2=1.0)
    assert best.W.shape == (2, 4, 4)
    assert ((best.W.square().sum(-2) > 0).sum(-1) == 2).all()  # two eigenvalues lie below the noise
    value = best.log_prob(x).mean(-1)
    for _ in range(20):
        W = best.W + 0.05 * draw(2, 4, 4, generator=generator)
        assert (LinearGaussian(W, best.b, 1.0).log_prob(x).mean(-1) < value).all()


def test_mutual_information_of_the_exact_posterior(generator: torch.Generator) -> None:
    model = random_model(generator, (3,))
    cov = model.W @ model.W.mT + model.sigma2[:, None, None] * torch.eye(5, dtype=torch.float64)
    posterior_cov = torch.linalg.inv(model.posterior_precision())
    information = mutual_information(model.encoder(), posterior_cov, cov)
    expected = 0.5 * (torch.logdet(cov) - 5 * model.sigma2.log())  # H(x) - H(x|z)
    torch.testing.assert_close(information, expected, rtol=1e-10, atol=1e-10)


def test_float32_and_device(generator: torch.Generator, device: torch.device) -> None:
    model = random_model(generator)
    x, q_mean = draw(9, 5, generator=generator), draw(9, 3, generator=generator)
    q_cov = random_cov(3, generator=generator)
    single = LinearGaussian(*(p.float().to(device) for p in (model.W, model.b, model.sigma2)))
    arguments = [a.float().to(device) for a in (x, q_mean, q_cov)]
    values = {
        "log_prob": (single.log_prob(arguments[0]), model.log_prob(x)),
        "log_joint": (single.log_joint(*arguments[:2]), model.log_joint(x, q_mean)),
        "elbo": (single.elbo(*arguments), model.elbo(x, q_mean, q_cov)),
        "posterior_kl": (single.posterior_kl(*arguments), model.posterior_kl(x, q_mean, q_cov)),
    }
    for ours, exact in values.values():
        assert ours.dtype == torch.float32 and ours.device.type == device.type
        torch.testing.assert_close(ours.double().cpu(), exact, rtol=1e-4, atol=1e-4)
    generator_there = torch.Generator(device).manual_seed(0)
    data, _ = single.sample(50, generator_there)
    assert data.dtype == torch.float32 and data.device.type == device.type
    fitted = em_step(eigen_solution(data, 2), data)
    assert fitted.W.dtype == torch.float32 and fitted.W.device.type == device.type


def test_gradients_reach_every_parameter(generator: torch.Generator) -> None:
    x, q_mean = draw(3, 3, generator=generator), draw(3, 2, generator=generator)
    q_cov = random_cov(2, generator=generator)
    W, b = draw(3, 2, generator=generator).requires_grad_(), draw(3, generator=generator).requires_grad_()
    sigma2 = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for method in (
        lambda W, b, s: LinearGaussian(W, b, s).log_prob(x),
        lambda W, b, s: LinearGaussian(W, b, s).log_joint(x, q_mean),
        lambda W, b, s: LinearGaussian(W, b, s).elbo(x, q_mean, q_cov, 0.5),
        lambda W, b, s: LinearGaussian(W, b, s).posterior_kl(x, q_mean, q_cov),
    ):
        assert torch.autograd.gradcheck(method, (W, b, sigma2))


def test_bad_input_is_refused(generator: torch.Generator) -> None:
    W, b = draw(4, 2, generator=generator), draw(4, generator=generator)
    with pytest.raises(ValueError, match=r"W must be \(\.\.\., m, d\)"):
        LinearGaussian(W.T, b, 1.0)
    with pytest.raises(ValueError, match="sigma2 must be positive"):
        LinearGaussian(W, b, 0.0)
    with pytest.raises(ValueError, match="must broadcast"):
        LinearGaussian(W.expand(3, 4, 2), b.expand(2, 4), 1.0)
    model = LinearGaussian(W, b, 1.0)
    with pytest.raises(ValueError, match="x must be .* m = 4"):
        model.log_prob(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="z must be .* d = 2"):
        model.log_joint(b, b)
    with pytest.raises(ValueError, match="q_cov must be symmetric and positive definite"):
        model.elbo(b, W[0], -torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="diag_embed"):
        model.posterior_kl(b, W[0], torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="covariance must be .* m = 4"):
        mutual_information(W.T, torch.eye(2, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="one posterior for each row"):
        m_step(torch.zeros(5, 4), torch.zeros(4, 2), torch.eye(2).expand(4, 2, 2))
    with pytest.raises(ValueError, match="at most m - 1"):
        eigen_solution(draw(9, 4, generator=generator), 4)
    with pytest.raises(ValueError, match="1 that is not"):
        log_det(torch.tensor([[[1.0]], [[-1.0]]]))
