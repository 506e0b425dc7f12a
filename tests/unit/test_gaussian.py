"""gaussian: against torch.distributions, which shares no code with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from dgm_course.divergences import chi2_divergence
from dgm_course.gaussian import (
    gaussian_chi2,
    gaussian_entropy,
    gaussian_kl,
    gaussian_kl_per_dim,
    gaussian_log_prob,
    gaussian_sample,
)
from dgm_course.numerics import gauss_legendre


def normal(mean: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


def draw(*shape: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


@pytest.mark.parametrize("batch", [(), (5,), (3, 2, 5)])
def test_log_prob_kl_and_entropy_equal_torch_distributions(
    batch: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> None:
    x, mean, log_var, other_mean, other_log_var = (
        draw(*batch, 4, generator=generator, device=device) for _ in range(5)
    )
    p, q = normal(other_mean, other_log_var), normal(mean, log_var)
    torch.testing.assert_close(gaussian_log_prob(x, mean, log_var), q.log_prob(x), rtol=1e-12, atol=1e-12)
    kl = gaussian_kl(mean, log_var, other_mean, other_log_var)
    torch.testing.assert_close(kl, kl_divergence(q, p), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gaussian_entropy(log_var), q.entropy(), rtol=1e-12, atol=1e-12)
    per_dim = gaussian_kl_per_dim(mean, log_var, other_mean, other_log_var)
    assert per_dim.shape == (*batch, 4) and kl.shape == batch
    torch.testing.assert_close(per_dim, kl_divergence(q.base_dist, p.base_dist), rtol=1e-12, atol=1e-12)


def test_defaults_mean_the_standard_normal(generator: torch.Generator) -> None:
    mean, log_var = draw(6, 3, generator=generator), draw(6, 3, generator=generator)
    zero = torch.zeros_like(mean)
    expected = kl_divergence(normal(mean, log_var), normal(zero, zero))
    torch.testing.assert_close(gaussian_kl(mean, log_var), expected, rtol=1e-12, atol=1e-12)
    numbers = gaussian_kl(mean, log_var, 0.3, -0.7)
    torch.testing.assert_close(numbers, gaussian_kl(mean, log_var, zero + 0.3, zero - 0.7))
    log_prob = normal(zero + 0.3, zero - 0.7).log_prob(mean)
    torch.testing.assert_close(gaussian_log_prob(mean, 0.3, -0.7), log_prob)


def test_kl_near_zero_keeps_its_digits() -> None:
    """For log_var = e the divergence is e^2/4 + e^3/12 + ...: exp(e) - 1 - e written naively loses it."""
    small = torch.tensor([1e-5, -1e-6], dtype=torch.float64)
    kl = gaussian_kl_per_dim(torch.zeros_like(small), small)
    assert kl.tolist() == pytest.approx((small**2 / 4 + small**3 / 12).tolist(), rel=1e-4)
    assert (kl > 0).all()


def test_stacked_members_broadcast(generator: torch.Generator) -> None:
    x = draw(7, 3, generator=generator)  # (B, d)
    mean, log_var = draw(4, 1, 3, generator=generator), draw(4, 1, 1, generator=generator)  # (E, 1, ...)
    stacked = gaussian_log_prob(x, mean, log_var)
    assert stacked.shape == (4, 7)
    single = normal(mean[2, 0], log_var[2, 0].expand(3)).log_prob(x)
    torch.testing.assert_close(stacked[2], single, rtol=1e-12, atol=1e-12)


def test_sample_has_the_right_law_and_reparametrised_gradient(generator: torch.Generator) -> None:
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    log_var = torch.tensor([0.0, 1.5], dtype=torch.float64, requires_grad=True)
    z = gaussian_sample(mean, log_var, generator=generator, sample_shape=(40_000,))
    assert z.shape == (40_000, 2)
    error = z.detach().std(0) / 200.0
    assert ((z.detach().mean(0) - mean.detach()).abs() < 5 * error).all()
    var = torch.exp(log_var.detach())
    assert ((z.detach().var(0) - var).abs() < 5 * var * math.sqrt(2 / 40_000)).all()
    z.sum().backward()
    assert mean.grad is not None and log_var.grad is not None
    assert mean.grad.tolist() == [40_000.0, 40_000.0]
    torch.testing.assert_close(log_var.grad, 0.5 * (z - mean).detach().sum(0))


def test_sample_is_reproducible_and_follows_dtype_and_device(device: torch.device) -> None:
    mean, log_var = torch.zeros(2, 3, device=device), torch.zeros(3, device=device)
    first, second = (
        gaussian_sample(mean, log_var, generator=torch.Generator(device).manual_seed(3), sample_shape=(5,))
        for _ in range(2)
    )
    assert first.shape == (5, 2, 3) and first.dtype == torch.float32 and first.device.type == device.type
    assert torch.equal(first, second)


def test_float32_agrees_with_float64(generator: torch.Generator) -> None:
    mean, log_var = draw(50, 4, generator=generator), draw(50, 4, generator=generator)
    single = gaussian_kl(mean.float(), log_var.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), gaussian_kl(mean, log_var), rtol=1e-5, atol=1e-6)


def test_event_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="missing or an extra dimension"):
        gaussian_kl(torch.zeros(3, 1), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"x \(5, 2\), mean \(3,\)"):
        gaussian_log_prob(torch.zeros(5, 2), torch.zeros(3), 0.0)
    with pytest.raises(ValueError, match="last dimension"):
        gaussian_sample(torch.zeros(4), torch.zeros(3))


# chi^2 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "log_var", "other_mean", "other_log_var"),
    [
        (0.0, 0.0, 0.5, math.log(1.44)),
        (0.3, -1.2, -0.4, 0.6),  # q much wider
        (1.0, 0.5, 0.7, 0.2),  # q narrower than p, but b < 2a
        (0.0, 0.6, 0.0, 0.0),  # b = 1.82 a
        (-2.0, 0.0, 2.0, 0.0),  # far apart: chi^2 = exp(16) - 1
        (0.0, 0.0, 0.0, 1e-4),  # chi^2 = 5e-9
    ],
)
def test_chi2_equals_quadrature(
    mean: float, log_var: float, other_mean: float, other_log_var: float, device: torch.device
) -> None:
    """Relative 1e-10, and absolute 1e-13 where chi^2 is small."""
    numbers = torch.tensor([mean, log_var, other_mean, other_log_var], dtype=torch.float64, device=device)
    m, v, other_m, other_v = numbers.unsqueeze(-1)  # (1,) each
    nodes, weights = gauss_legendre(-40.0, 40.0, 600, device=device)
    log_p, log_q = normal(m, v).log_prob(nodes), normal(other_m, other_v).log_prob(nodes)
    exact = chi2_divergence(log_p, log_q, weights).item()
    chi2 = gaussian_chi2(m, v, other_m, other_v)
    assert chi2.shape == () and chi2.dtype == torch.float64 and chi2.device.type == device.type
    assert chi2.item() == pytest.approx(exact, rel=1e-10, abs=1e-13)
    plain = gaussian_chi2(m, v, other_mean, other_log_var)  # q given by numbers
    assert plain.item() == pytest.approx(exact, rel=1e-10, abs=1e-13)


def test_chi2_of_several_dimensions_is_a_product(generator: torch.Generator) -> None:
    """``1 + chi^2`` multiplies; in two dimensions against quadrature too, relative 1e-9."""
    mean, other_mean = (0.5 * draw(3, 2, generator=generator) for _ in range(2))
    log_var, other_log_var = (0.2 * draw(3, 2, generator=generator) for _ in range(2))
    chi2 = gaussian_chi2(mean, log_var, other_mean, other_log_var)
    each = [gaussian_chi2(*(t[:, [j]] for t in (mean, log_var, other_mean, other_log_var))) for j in (0, 1)]
    torch.testing.assert_close(1 + chi2, (1 + each[0]) * (1 + each[1]), rtol=1e-13, atol=0)
    nodes, weights = gauss_legendre(-18.0, 18.0, 130, num_dims=2)
    log_p = normal(mean[:, None], log_var[:, None]).log_prob(nodes)  # (3, N)
    log_q = normal(other_mean[:, None], other_log_var[:, None]).log_prob(nodes)
    torch.testing.assert_close(chi2, chi2_divergence(log_p, log_q, weights), rtol=1e-9, atol=0)


def test_chi2_is_infinite_from_half_the_variance_on() -> None:
    """q's variance half of p's or less (b >= 2a), the very edge included; just above it, huge."""
    zero = torch.zeros(1, dtype=torch.float64)
    log_2 = torch.tensor([math.log(2.0)], dtype=torch.float64)
    for mean, log_var, q_mean, q_log_var in (
        (zero, log_2, 0.0, 0.0), (zero, zero, 0.0, -math.log(2.0)), (zero, 2 * log_2, zero, zero),
        (zero + 1, log_2, zero - 1, zero),
    ):  # fmt: skip
        assert gaussian_chi2(mean, log_var, q_mean, q_log_var).item() == math.inf
    near = gaussian_chi2(zero, log_2 - 1e-8).item()  # a = (1 + 1e-8) / 2, b = 1, 2a - b = 1e-8
    assert near == pytest.approx(0.5 / math.sqrt(1e-8) - 1, rel=1e-5)
    table = torch.tensor([[0.0, 0.0], [0.0, 0.8], [0.3, 0.1]], dtype=torch.float64)
    assert gaussian_chi2(torch.zeros_like(table), table).isinf().tolist() == [False, True, False]
    assert gaussian_chi2(zero, zero).item() == 0.0


def test_chi2_broadcasts_and_defaults_to_the_standard_normal(generator: torch.Generator) -> None:
    mean, log_var = draw(4, 1, 3, generator=generator), -draw(3, generator=generator).abs()
    other_mean, other_log_var = draw(5, 3, generator=generator), torch.tensor([0.4], dtype=torch.float64)
    chi2 = gaussian_chi2(mean, log_var, other_mean, other_log_var)
    assert chi2.shape == (4, 5)
    one = gaussian_chi2(mean[2, 0], log_var, other_mean[3], other_log_var.expand(3))
    assert chi2[2, 3].item() == pytest.approx(one.item(), rel=1e-14)
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(gaussian_chi2(mean, log_var), gaussian_chi2(mean, log_var, zero, zero))
    with pytest.raises(ValueError, match="missing or an extra dimension"):
        gaussian_chi2(torch.zeros(3), torch.zeros(3), torch.zeros(2))


def test_chi2_is_differentiable_beside_infinite_ones(generator: torch.Generator) -> None:
    arguments = [(0.3 * draw(2, 3, generator=generator)).requires_grad_() for _ in range(4)]
    assert torch.autograd.gradcheck(gaussian_chi2, arguments)
    mean = torch.full((3, 1), 0.2, dtype=torch.float64, requires_grad=True)
    log_var = torch.tensor([[0.1], [math.log(2.0)], [5.0]], dtype=torch.float64, requires_grad=True)
    chi2 = gaussian_chi2(mean, log_var)
    assert chi2.isinf().tolist() == [False, True, True]
    assert all(g.isfinite().all() for g in torch.autograd.grad(chi2.sum(), (mean, log_var)))
