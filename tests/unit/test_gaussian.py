"""gaussian: against torch.distributions, which shares no code with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from dgm_course.gaussian import (
    gaussian_entropy,
    gaussian_kl,
    gaussian_kl_per_dim,
    gaussian_log_prob,
    gaussian_sample,
)


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
