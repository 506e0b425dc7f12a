"""gaussian_toy: densities against the exact model, gradients against autograd and exact derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from dgm_course.bounds import exact_iwae_bound
from dgm_course.gaussian_toy import GaussianToy, ProjectedGradients
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.numerics import gauss_legendre

F64 = torch.float64
MU, X, Q_MEAN = torch.tensor(
    [[0.3, -0.5, 1.0], [1.2, 0.4, -0.7], [0.4, 0.3, 0.6]], dtype=F64
)  # x far from mu, q_mean from the posterior's


def seeded(seed: int = 3, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def q_of(mean: Tensor, q_var: float) -> Independent:
    return Independent(Normal(mean, torch.full_like(mean, q_var).sqrt()), 1)


def test_densities_are_those_of_the_exact_model() -> None:
    """p(z) = N(mu, I), p(x|z) = N(z, I): the linear-Gaussian model in z - mu. 1e-13."""
    toy = GaussianToy(MU, X, Q_MEAN)
    model = LinearGaussian(torch.eye(3, dtype=F64), MU, 1.0)
    z = torch.randn(4, 5, 3, dtype=F64, generator=seeded())
    torch.testing.assert_close(toy.log_joint(z), model.log_joint(X, z - MU), rtol=1e-13, atol=1e-13)
    by_hand = q_of(MU, 1.0).log_prob(z) + q_of(z, 1.0).log_prob(X)
    torch.testing.assert_close(toy.log_joint(z), by_hand, rtol=1e-13, atol=1e-13)
    assert toy.log_joint(z[0, 0]).shape == () and toy.log_joint(z).shape == (4, 5)
    assert toy.log_evidence().item() == pytest.approx(model.log_prob(X).item(), rel=1e-14)
    assert toy.log_evidence().item() == pytest.approx(q_of(MU, 2.0).log_prob(X).item(), rel=1e-14)
    mean, cov = model.posterior(X)
    torch.testing.assert_close(toy.posterior_mean, mean + MU, rtol=1e-14, atol=0)
    torch.testing.assert_close(cov, 0.5 * torch.eye(3, dtype=F64), rtol=1e-14, atol=1e-15)


def by_autograd(eps: Tensor, q_var: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """theta, phi, dreg and the bound of one estimate from its noise ``(K, d)``."""
    mu, q_mean = MU.clone().requires_grad_(), Q_MEAN.clone().requires_grad_()
    z = q_mean + math.sqrt(q_var) * eps
    log_joint = q_of(mu, 1.0).log_prob(z) + q_of(z, 1.0).log_prob(X)
    log_w = log_joint - q_of(q_mean, q_var).log_prob(z)  # (K,)
    bound = torch.logsumexp(log_w, 0) - math.log(len(log_w))
    theta, phi = torch.autograd.grad(bound, (mu, q_mean), retain_graph=True)
    share = torch.softmax(log_w, 0).detach()
    stopped = log_joint - q_of(q_mean.detach(), q_var).log_prob(z)
    (dreg,) = torch.autograd.grad((share**2 * stopped).sum(), q_mean)
    return theta, phi, dreg, bound.detach()


@pytest.mark.parametrize("q_var", [0.3, 0.5, 2.0 / 3.0, 4.0])
@pytest.mark.parametrize("num_samples", [1, 2, 30])
def test_rows_equal_one_backward_pass_each(num_samples: int, q_var: float) -> None:
    """From the same noise ``(R, K, d)``, q narrower and wider than the posterior: 1e-12."""
    toy = GaussianToy(MU, X, Q_MEAN, q_var)
    rows = toy.gradients(num_samples, 6, generator=seeded())
    eps = torch.empty(6, num_samples, 3, dtype=F64).normal_(generator=seeded())
    expected = [torch.stack(parts) for parts in zip(*(by_autograd(e, q_var) for e in eps), strict=True)]
    assert [tuple(part.shape) for part in rows] == [(6, 3), (6, 3), (6, 3), (6,)]
    for name, found, exact in zip(rows._fields, rows, expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


# means against the exact bound ------------------------------------------------------------------------------


def exact_bound(mu: Tensor, q_mean: Tensor, x: Tensor, num_samples: int, q_var: float = 2.0 / 3.0) -> Tensor:
    """L_K by quadrature over z, one dimension or two."""
    nodes, weights = gauss_legendre(-8.0, 9.0, 300 if len(x) == 1 else 70, num_dims=len(x))
    log_joint = q_of(mu, 1.0).log_prob(nodes) + q_of(nodes, 1.0).log_prob(x)
    return exact_iwae_bound(log_joint, q_of(q_mean, q_var).log_prob(nodes), weights, num_samples)


def derivative(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-4) -> Tensor:
    """Central differences, entry by entry: error about 1e-8."""
    unit = torch.eye(len(at), dtype=F64) * step
    return torch.stack([(function(at + e) - function(at - e)) / (2 * step) for e in unit])


def off_the_exact_means(num_samples: int, seed: int) -> dict[str, Tensor]:
    """d = 1: how many standard errors of 40 000 estimates each mean is off."""
    mu, x, q_mean = (torch.tensor([value], dtype=F64) for value in (0.3, 1.7, 0.4))
    rows = GaussianToy(mu, x, q_mean).gradients(num_samples, 40_000, generator=seeded(seed))
    by_mu = derivative(lambda m: exact_bound(m, q_mean, x, num_samples), mu)
    by_q_mean = derivative(lambda q: exact_bound(mu, q, x, num_samples), q_mean)
    exact = {
        "theta": by_mu, "phi": by_q_mean, "dreg": by_q_mean, "bound": exact_bound(mu, q_mean, x, num_samples)
    }  # fmt: skip
    return {
        name: (value.mean(0) - exact[name]) / value.std(0) * 40_000**0.5
        for name, value in rows._asdict().items()
    }


@pytest.mark.parametrize("num_samples", [1, 3, 20])
def test_means_are_the_derivatives_of_the_exact_bound(num_samples: int) -> None:
    for name, deviation in off_the_exact_means(num_samples, seed=20).items():
        assert (deviation.abs() < 5).all(), (name, deviation)


def test_plain_and_dreg_have_one_mean_in_twenty_dimensions() -> None:
    """Paired, from the same noise: five standard errors in each of twenty dimensions."""
    rows = GaussianToy.near_optimum(0.2).gradients(10, 20_000, generator=seeded())
    difference = rows.phi - rows.dreg
    assert (difference.mean(0).abs() < 5 * difference.std(0) / 20_000**0.5).all()
    assert (rows.dreg.std(0) < 0.7 * rows.phi.std(0)).all()


# projections ------------------------------------------------------------------------------------------------


def directions(toy: GaussianToy, num_samples: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """The unit vectors that ``projected`` used for theta and for phi, read off its results."""
    rows = toy.gradients(num_samples, 20_000, generator=seeded(seed))
    projected = toy.projected(rows)
    assert all(part.shape == (20_000,) for part in projected)
    along = [
        torch.linalg.lstsq(table, part.unsqueeze(-1)).solution.squeeze(-1)
        for table, part in ((rows.theta, projected.theta), (rows.phi, projected.phi))
    ]
    torch.testing.assert_close(rows.dreg @ along[1], projected.dreg, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rows.theta @ along[0], projected.theta, rtol=1e-9, atol=1e-9)
    return along[0], along[1]


@pytest.mark.parametrize("num_samples", [1, 5])
def test_projections_are_on_the_exact_gradients(num_samples: int) -> None:
    """d = 2, by quadrature: phi's direction is exact (1e-6), theta's within 5e-3, as it uses the sample."""
    mu, x, q_mean = torch.tensor([[0.5, -0.4], [1.5, 0.6], [0.7, 0.9]], dtype=F64)
    theta, phi = directions(GaussianToy(mu, x, q_mean), num_samples)
    by_mu = derivative(lambda m: exact_bound(m, q_mean, x, num_samples), mu, 1e-3)
    by_q_mean = derivative(lambda q: exact_bound(mu, q, x, num_samples), q_mean, 1e-3)
    torch.testing.assert_close(phi, by_q_mean / by_q_mean.norm(), rtol=0, atol=1e-6)
    torch.testing.assert_close(theta, by_mu / by_mu.norm(), rtol=0, atol=5e-3)


def test_projections_point_up_the_bound() -> None:
    toy = GaussianToy.near_optimum(0.05)
    rows = toy.gradients(5, 50_000, generator=seeded())
    projected = toy.projected(rows)
    assert isinstance(projected, ProjectedGradients)
    assert projected.theta.mean() > 0 and projected.dreg.mean() > 0
    offset = toy.posterior_mean - toy.q_mean
    torch.testing.assert_close(projected.dreg, rows.dreg @ (offset / offset.norm()), rtol=1e-12, atol=1e-12)


# near the optimum, dtypes, refusals -------------------------------------------------------------------------


def test_near_optimum_is_off_the_posterior_by_the_offset() -> None:
    toy = GaussianToy.near_optimum(0.01)
    assert toy.mu.shape == (20,) and not toy.mu.any() and toy.q_var == 2.0 / 3.0
    torch.testing.assert_close(toy.q_mean - toy.posterior_mean, torch.full((20,), 0.01, dtype=F64))
    assert torch.equal(GaussianToy.near_optimum(0.3).x, toy.x)  # the data do not depend on the offset
    assert not torch.equal(GaussianToy.near_optimum(0.01, seed=1).x, toy.x)
    many = GaussianToy.near_optimum(0.0, 40_000).x  # x ~ N(0, 2 I)
    assert abs(many.mean()) < 5 * math.sqrt(2 / 40_000)
    assert abs(many.var() / 2 - 1) < 5 * math.sqrt(2 / 40_000)
    single = GaussianToy.near_optimum(0.01, dtype=torch.float32)
    torch.testing.assert_close(single.x, toy.x.float())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_and_device_follow(dtype: torch.dtype, device: torch.device) -> None:
    toy = GaussianToy(*(t.to(device=device, dtype=dtype) for t in (MU, X, Q_MEAN)))
    rows = toy.gradients(4, 5, generator=seeded(device=device))
    for value in (*rows, *toy.projected(rows), toy.log_evidence(), toy.posterior_mean, toy.log_joint(toy.x)):
        assert value.dtype == dtype and value.device.type == device.type


def test_float32_rows_are_as_good_as_their_format() -> None:
    """K = 1000 at the paper's setting against float64 sums of the same noise: 1e-5."""
    toy = GaussianToy.near_optimum(0.05, dtype=torch.float32)
    rows = toy.gradients(1000, 4, generator=seeded())
    eps = torch.empty(4, 1000, 20).normal_(generator=seeded()).double()
    s, pull = math.sqrt(toy.q_var), (toy.mu + toy.x - 2 * toy.q_mean).double()
    w = torch.softmax(s * eps @ pull + (0.5 - toy.q_var) * eps.square().sum(-1), 1)  # (R, K)
    phi = pull - 2 * s * (w.unsqueeze(-1) * eps).sum(1)
    path = pull + (1 / s - 2 * s) * eps
    torch.testing.assert_close(rows.phi.double(), phi, rtol=0, atol=1e-5)
    dreg = (w.square().unsqueeze(-1) * path).sum(1)
    torch.testing.assert_close(rows.dreg.double(), dreg, rtol=0, atol=1e-5)


def test_bad_input_is_refused_with_a_reason() -> None:
    for mu, x, q_mean in ((MU, X, Q_MEAN[:2]), (MU[:1], X, Q_MEAN), (MU[None], X[None], Q_MEAN[None])):
        with pytest.raises(ValueError, match=r"must all have shape \(d,\), got .*: the toy is about one x"):
            GaussianToy(mu, x, q_mean)
    for q_var in (0.25, 0.1, -1.0, math.nan):
        with pytest.raises(ValueError, match="q_var must be above 1/4, .*: otherwise E w.2 is infinite"):
            GaussianToy(MU, X, Q_MEAN, q_var)
    optimum = GaussianToy.near_optimum(0.0)
    with pytest.raises(ValueError, match="phi's gradient is exactly zero .* move q_mean by an offset"):
        optimum.projected(optimum.gradients(2, 3, generator=seeded()))
    for counts in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="both counts at least 1"):
            optimum.gradients(*counts)
