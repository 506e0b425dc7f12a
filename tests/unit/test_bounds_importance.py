"""bounds.importance: weights and what they tell, against loops of high-precision numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from dgm_course.bounds import (
    chi2_from_log_weights,
    effective_sample_size,
    iwae_bound,
    iwae_gap,
    normalized_weights,
)

F64 = torch.float64
STATISTICS = [iwae_bound, effective_sample_size, chi2_from_log_weights]  # (K, ...) -> (...)
ALL = [*STATISTICS, normalized_weights]
INF = math.inf


def columns(num_samples: int, seed: int = 0) -> Tensor:
    """Log-weights (K, 6): ordinary ones, near +-1000, spread over 1000, equal, and with zero weights."""
    generator = torch.Generator().manual_seed(seed)
    log_w = 2.0 * torch.randn(num_samples, 6, dtype=F64, generator=generator)
    log_w[:, 1] += 1000.0
    log_w[:, 2] -= 1000.0
    log_w[:, 3] *= 250.0
    log_w[:, 4] = -7.25
    log_w[1::2, 5] = -INF
    return log_w


def by_loops(log_w: list[float]) -> tuple[float, list[float], float, float]:
    """Bound, normalised weights, effective sample size and chi^2 of one column, with 50 digits."""
    with mpmath.workdps(50):
        w = [mpmath.exp(mpf(value)) if value > -INF else mpf(0) for value in log_w]
        total, squares, count = sum(w), sum(v * v for v in w), len(w)
        ess = total**2 / squares
        bound = mpmath.log(total / count)
        return float(bound), [float(v / total) for v in w], float(ess), float(count / ess - 1)


@pytest.mark.parametrize("num_samples", [1, 2, 7, 100])
def test_values_equal_loops_in_fifty_digits(num_samples: int) -> None:
    """Relative 2e-14 for the bound. ESS and chi^2 come from logarithms up to 2000: 1e-12."""
    log_w = columns(num_samples)
    bound, weights = iwae_bound(log_w), normalized_weights(log_w)
    ess, chi2 = effective_sample_size(log_w), chi2_from_log_weights(log_w)
    assert bound.shape == ess.shape == chi2.shape == (6,) and weights.shape == log_w.shape
    for b, column in enumerate(log_w.T.tolist()):
        exact_bound, exact_weights, exact_ess, exact_chi2 = by_loops(column)
        assert bound[b].item() == pytest.approx(exact_bound, rel=2e-14, abs=2e-14)
        assert weights[:, b].tolist() == pytest.approx(exact_weights, rel=1e-11, abs=1e-300)
        assert ess[b].item() == pytest.approx(exact_ess, rel=2e-12)
        assert chi2[b].item() == pytest.approx(exact_chi2, rel=2e-12, abs=2e-12 * num_samples)


def test_values_by_hand() -> None:
    log_w = torch.tensor([3.0, 1.0], dtype=F64).log()
    assert iwae_bound(log_w).item() == pytest.approx(math.log(2.0), rel=1e-15)
    assert normalized_weights(log_w).tolist() == pytest.approx([0.75, 0.25], rel=1e-15)
    assert effective_sample_size(log_w).item() == pytest.approx(1.6, rel=1e-14)  # 16 / 10
    assert chi2_from_log_weights(log_w).item() == pytest.approx(0.25, rel=1e-14)  # E w^2 / (E w)^2 = 5 / 4
    two_of_four = torch.tensor([0.0, -INF, 0.0, -INF], dtype=F64)
    assert effective_sample_size(two_of_four).item() == pytest.approx(2.0, rel=1e-15)
    assert iwae_bound(two_of_four).item() == pytest.approx(-math.log(2.0), rel=1e-15)


@pytest.mark.parametrize("constant", [0.0, 1e4, -1e4])
def test_only_the_bound_depends_on_the_scale_of_the_weights(constant: float) -> None:
    """log w + c: the bound moves by c, everything else stays (1e4 costs 1e-12 relative)."""
    log_w = columns(9)[:, [0, 5]]
    moved = log_w + constant
    torch.testing.assert_close(iwae_bound(moved), iwae_bound(log_w) + constant, rtol=1e-12, atol=1e-11)
    for statistic in (effective_sample_size, chi2_from_log_weights, normalized_weights):
        torch.testing.assert_close(statistic(moved), statistic(log_w), rtol=2e-11, atol=2e-11)


def test_sample_sizes_and_chi2_stay_in_their_range() -> None:
    """1 <= ESS <= K, the ends at one weight and at equal ones; 0 <= chi^2 <= N - 1 (1e-12 for rounding)."""
    for num_samples in (1, 2, 17):
        log_w = columns(num_samples, seed=3)
        ess, chi2 = effective_sample_size(log_w), chi2_from_log_weights(log_w)
        assert (ess > 1 - 1e-12).all() and (ess < num_samples * (1 + 1e-12)).all()
        assert (chi2 > -1e-12).all() and (chi2 < num_samples - 1 + 1e-9).all()
        assert ess[4].item() == pytest.approx(num_samples, rel=1e-13)
    alone = torch.tensor([0.0, -2000.0, -INF], dtype=F64)
    assert effective_sample_size(alone).item() == 1.0 and chi2_from_log_weights(alone).item() == 2.0


def test_one_sample_is_the_elbo_and_has_all_the_weight() -> None:
    log_w = columns(1)
    assert torch.equal(iwae_bound(log_w), log_w[0])
    assert torch.equal(normalized_weights(log_w), torch.ones(1, 6, dtype=F64))
    assert effective_sample_size(log_w).tolist() == [1.0] * 6
    assert chi2_from_log_weights(log_w).tolist() == [0.0] * 6


def test_a_column_without_any_weight_has_the_bound_minus_infinity_and_harms_no_other() -> None:
    log_w = columns(4)
    alone = log_w.clone()
    log_w[:, 2] = -INF
    others = [0, 1, 3, 4, 5]
    assert iwae_bound(log_w)[2] == -INF
    for function in ALL:
        assert torch.equal(function(log_w)[..., others], function(alone)[..., others])


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_samples_lie_in_the_named_dimension(dim: int) -> None:
    log_w = columns(4, seed=1)[:, :5, None] + torch.linspace(-2, 2, 3, dtype=F64)  # (4, 5, 3)
    log_w = log_w + torch.randn(4, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    first = log_w.movedim(dim, 0)
    for statistic in STATISTICS:
        assert statistic(log_w, dim=dim).shape == first.shape[1:]
        flat = statistic(first.flatten(1)).reshape(first.shape[1:])
        torch.testing.assert_close(statistic(log_w, dim=dim), flat, rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="leave open which dimension"):
            statistic(log_w)
    weights = normalized_weights(log_w, dim=dim)
    assert weights.shape == log_w.shape
    flat = normalized_weights(first.flatten(1)).reshape(first.shape)
    torch.testing.assert_close(weights.movedim(dim, 0), flat, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights.sum(dim), torch.ones(first.shape[1:], dtype=F64))


def test_the_gradient_of_the_bound_is_the_normalised_weights() -> None:
    """Zero weights have a zero gradient, not NaN."""
    log_w = columns(8).requires_grad_()
    (gradient,) = torch.autograd.grad(iwae_bound(log_w).sum(), log_w)
    expected = torch.tensor([by_loops(column)[1] for column in log_w.T.tolist()], dtype=F64).T
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-300)
    assert (gradient[1::2, 5] == 0).all()


@pytest.mark.parametrize("function", ALL)
def test_everything_is_differentiable(function: Callable[[Tensor], Tensor]) -> None:
    log_w = columns(5)[:, [0, 4]].requires_grad_()
    assert torch.autograd.gradcheck(function, (log_w,))
    with_zero = torch.tensor([0.3, -INF, -1.0], dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(with_zero).square().sum(), with_zero)
    assert gradient.isfinite().all() and gradient[1] == 0


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_and_device_follow(
    function: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    log_w = columns(6)[:, :3].to(device=device, dtype=dtype)
    value = function(log_w)
    assert value.dtype == dtype and value.device.type == device.type
    exact = function(log_w.double())
    tolerance = 5e-3 if dtype == torch.float32 else 1e-12  # float32 logarithms near 2000 have 1e-4
    torch.testing.assert_close(value.double(), exact, rtol=tolerance, atol=tolerance)


def test_the_gap_is_chi2_over_two_k() -> None:
    assert iwae_gap(3.0, 6) == 0.25 and isinstance(iwae_gap(3.0, 6), float)
    assert iwae_gap(INF, 10) == INF
    counts, chi2 = torch.tensor([1, 10, 100]), torch.tensor([[2.0], [6.0]], dtype=F64)
    expected = torch.tensor([[1.0, 0.1, 0.01], [3.0, 0.3, 0.03]], dtype=F64)
    torch.testing.assert_close(iwae_gap(chi2, counts), expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(iwae_gap(chi2, 100), expected[:, 2:], rtol=1e-15, atol=0)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize(("shape", "dim"), [((0,), 0), ((0, 3), 0), ((3, 0), 1), ((3, 0), -1)])
def test_no_samples_are_refused(
    function: Callable[[Tensor, int], Tensor], shape: tuple[int, ...], dim: int
) -> None:
    with pytest.raises(ValueError, match=rf"at least one \w+ along dim={dim}, got shape") as caught:
        function(torch.zeros(shape), dim)
    assert str(tuple(shape)) in str(caught.value)


def test_a_single_number_has_no_samples() -> None:
    for function in (normalized_weights, effective_sample_size):
        with pytest.raises(ValueError, match=r"got shape \(\): draw K >= 1 samples"):
            function(torch.zeros(()))


@pytest.mark.parametrize("num_samples", [0, -3, 0.5, torch.tensor([4, 0])])
def test_the_gap_needs_samples(num_samples: float | Tensor) -> None:
    with pytest.raises(ValueError, match=r"num_samples must be at least 1, got .*it is the K of the bound"):
        iwae_gap(1.0, num_samples)
