"""bounds.noise: weighted sums of noise against a direct computation from the same noise; exact moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dgm_course.bounds import WeightedNoise, effective_sample_size, weighted_noise

F64 = torch.float64
BLOCK = "dgm_course.bounds.noise._BLOCK"


def seeded(device: torch.device | str = "cpu", seed: int = 3) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def noise_in_blocks(
    r_block: int, k_block: int, d: int, num_samples: int, num_estimates: int, like: Tensor
) -> Tensor:
    """The noise ``(R, K, d)`` in its order: block after block of K, then of R, each drawn whole."""
    generator = seeded(like.device)
    rows = []
    for start in range(0, num_estimates, r_block):
        parts = [
            like.new_empty(r_block, k_block, d).normal_(generator=generator)[:, : num_samples - begin]
            for begin in range(0, num_samples, k_block)
        ]
        rows.append(torch.cat(parts, 1)[: num_estimates - start])
    return torch.cat(rows)


def direct(eps: Tensor, linear: Tensor, quadratic: float) -> WeightedNoise:
    """Row after row, in float64, with a plain softmax."""
    rows = []
    for row in eps.double():
        log_w = row @ linear.double() + quadratic * row.square().sum(-1)  # (K,)
        w = torch.softmax(log_w, 0)
        log_mean = torch.logsumexp(log_w, 0) - math.log(len(log_w))
        rows.append((log_mean, w @ row, w.square().sum(), w.square() @ row))
    return WeightedNoise(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def call(linear: Tensor, quadratic: float, num_samples: int, num_estimates: int) -> WeightedNoise:
    generator = seeded(linear.device)
    return weighted_noise(
        linear, quadratic, num_samples=num_samples, num_estimates=num_estimates, generator=generator
    )


def check_close(result: WeightedNoise, expected: WeightedNoise, tolerance: float) -> None:
    for name, value, exact in zip(result._fields, result, expected, strict=True):
        scale = max(1.0, exact.abs().max().item())
        error = (value.double() - exact).abs().max().item()
        assert error <= tolerance * scale, (name, error, scale)


# the blocks: (number of noise entries in one, rows R and samples K in one) for d = 3
SMALL = [
    pytest.param(2**18, 7, 10, id="one block"),
    pytest.param(70, 2, 10, id="blocks of R"),  # 2, 2, 2, 1 rows
    pytest.param(12, 1, 4, id="blocks of K"),  # 4, 4, 2 samples
    pytest.param(2, 1, 1, id="one sample at a time"),  # smaller than one sample
]


@pytest.mark.parametrize(("block", "r_block", "k_block"), SMALL)
@pytest.mark.parametrize("quadratic", [0.0, -0.2, 0.49, -30.0])
def test_equals_a_direct_computation_with_the_same_noise(
    quadratic: float, block: int, r_block: int, k_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the work is cut: 1e-13. h just below 1/2, where weights barely have a mean, and far below."""
    monkeypatch.setattr(BLOCK, block)
    linear = torch.tensor([0.4, -1.0, 0.2], dtype=F64)
    result = call(linear, quadratic, 10, 7)
    eps = noise_in_blocks(r_block, k_block, 3, 10, 7, linear)
    assert eps.shape == (7, 10, 3)
    assert [tuple(part.shape) for part in result] == [(7,), (7, 3), (7,), (7, 3)]
    check_close(result, direct(eps, linear, quadratic), 1e-13)


@pytest.mark.parametrize("block", [2**18, 8])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_huge_log_weights_do_not_overflow(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """|v| = 1000 gives log-weights of thousands, of both signs: exp of none is finite in float32."""
    monkeypatch.setattr(BLOCK, block)
    linear = torch.tensor([600.0, -800.0], dtype=dtype)
    result = call(linear, -0.3, 12, 5)
    eps = noise_in_blocks(5 if block > 8 else 1, 12 if block > 8 else 4, 2, 12, 5, linear)
    log_w = eps.double() @ linear.double()
    assert log_w.max() > 1000 and log_w.min() < -1000
    assert all(part.isfinite().all() for part in result)
    check_close(result, direct(eps, linear, -0.3), 1e-12 if dtype == F64 else 1e-5)


@pytest.mark.parametrize("block", [2**18, 60])
def test_float32_is_as_good_as_its_format(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """K = 1000 samples, with and without the online softmax: 2e-6 of the float64 sums of the same noise."""
    monkeypatch.setattr(BLOCK, block)
    linear = torch.tensor([0.7, -0.1, 0.3, 0.5])
    result = call(linear, 0.1, 1000, 6)
    assert all(part.dtype == torch.float32 for part in result)
    eps = noise_in_blocks(6 if block > 60 else 1, 1000 if block > 60 else 15, 4, 1000, 6, linear)
    check_close(result, direct(eps, linear, 0.1), 2e-6)


def test_one_sample_has_all_the_weight() -> None:
    linear = torch.tensor([0.3, 0.8], dtype=F64)
    result = call(linear, 0.2, 1, 50)
    eps = noise_in_blocks(50, 1, 2, 1, 50, linear).squeeze(1)
    assert torch.equal(result.squared_weight, torch.ones(50, dtype=F64))
    torch.testing.assert_close(result.mean, eps, rtol=1e-15, atol=0)
    torch.testing.assert_close(result.squared_mean, eps, rtol=1e-15, atol=0)
    log_w = eps @ linear + 0.2 * eps.square().sum(-1)
    torch.testing.assert_close(result.log_mean_weight, log_w, rtol=1e-14, atol=1e-14)


def test_the_squared_weight_is_one_over_the_effective_sample_size() -> None:
    linear = torch.tensor([0.3, 0.8, -0.5], dtype=F64)
    eps = noise_in_blocks(20, 64, 3, 64, 20, linear)
    ess = effective_sample_size(eps @ linear + 0.1 * eps.square().sum(-1), dim=1)
    torch.testing.assert_close(1 / call(linear, 0.1, 64, 20).squared_weight, ess, rtol=1e-12, atol=0)


LINEAR = torch.tensor([0.3, -0.5], dtype=F64)


def moments(num_samples: int, num_estimates: int, seed: int) -> Tensor:
    """How many standard errors the mean weight and weighted noise are off their exact values: (3,).

    ``E exp(v . eps + h |eps|^2) = (1 - 2h)^(-d/2) exp(|v|^2 / (2 (1 - 2h)))``, and its derivative by v.
    """
    h, d = 0.1, 2
    result = weighted_noise(
        LINEAR, h, num_samples=num_samples, num_estimates=num_estimates, generator=seeded(seed=seed)
    )
    exact = (1 - 2 * h) ** (-d / 2) * torch.exp(LINEAR.square().sum() / (2 * (1 - 2 * h)))
    weight = result.log_mean_weight.exp().unsqueeze(-1)
    both = torch.cat([weight - exact, weight * result.mean - exact * LINEAR / (1 - 2 * h)], -1)
    return both.mean(0) / both.std(0) * num_estimates**0.5


@pytest.mark.parametrize(("num_samples", "num_estimates", "block"), [(1, 40_000, 512), (50, 2000, 64)])
def test_blocks_of_noise_are_independent_and_normal(
    num_samples: int, num_estimates: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact means within 5 standard errors; repeated blocks would be seen in the estimates below."""
    monkeypatch.setattr(BLOCK, block)
    assert (moments(num_samples, num_estimates, seed=20).abs() < 5).all()
    log_mean = call(LINEAR, 0.1, num_samples, num_estimates).log_mean_weight
    assert len(torch.unique(log_mean)) == num_estimates


def test_the_same_seed_repeats_and_a_generator_moves_on() -> None:
    first, again = call(LINEAR, 0.1, 5, 3), call(LINEAR, 0.1, 5, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    generator = seeded()
    draws = [
        weighted_noise(LINEAR, 0.1, num_samples=5, num_estimates=3, generator=generator) for _ in range(2)
    ]
    assert torch.equal(draws[0].mean, first.mean) and not torch.equal(draws[1].mean, first.mean)
    assert weighted_noise(LINEAR, 0.1, num_samples=2, num_estimates=3).mean.shape == (3, 2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_and_device_follow(dtype: torch.dtype, device: torch.device) -> None:
    linear = LINEAR.to(device=device, dtype=dtype)
    result = call(linear, 0.1, 6, 4)
    assert all(part.dtype == dtype and part.device.type == device.type for part in result)
    eps = noise_in_blocks(4, 6, 2, 6, 4, linear)
    check_close(WeightedNoise(*(p.cpu() for p in result)), direct(eps.cpu(), linear.cpu(), 0.1), 2e-6)


def test_bad_input_is_refused_with_a_reason() -> None:
    for linear, counts in ((torch.zeros(2, 3), (2, 2)), (torch.zeros(3), (0, 2)), (torch.zeros(3), (2, 0))):
        with pytest.raises(ValueError, match=r"linear must be \(d,\) and both counts at least 1") as caught:
            weighted_noise(linear, 0.1, num_samples=counts[0], num_estimates=counts[1])
        assert f"num_samples={counts[0]} and num_estimates={counts[1]}" in str(caught.value)
    for quadratic in (0.5, 3.0, math.nan):
        with pytest.raises(ValueError, match="quadratic must be below 1/2, got .* no weights of a posterior"):
            weighted_noise(torch.zeros(3), quadratic, num_samples=2, num_estimates=2)
