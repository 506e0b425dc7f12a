"""logistic_mixture: single logistics against mpmath, samples against probabilities, means against sums."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from mpmath import mp
from torch import Tensor

from dgm_course.logistic_mixture import (
    discretized_logistic_log_prob,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_mean,
    discretized_logistic_mixture_sample,
    logistic_log_prob,
    logistic_mixture_log_prob,
    rgb_logistic_mixture_log_prob,
    rgb_logistic_mixture_mean,
    rgb_logistic_mixture_sample,
)
from dgm_course.numerics import gauss_legendre

F32, F64 = torch.float32, torch.float64
TIGHT = {"rtol": 1e-13, "atol": 1e-15}
LOG_SCALES = [-12.0, -3.0, 0.25, 4.0, 8.0]
MEANS = [-1e4, 0.0, 3.0, 3.5, 16.25, 1e4]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(
    lead: tuple[int, ...], components: int, *, channels: bool, dtype: torch.dtype = F64
) -> list[Tensor]:
    g = generator(components)
    shape = (*lead, 3, components) if channels else (*lead, components)
    logits = torch.randn(*lead, components, generator=g, dtype=dtype)
    mean = 4 * torch.rand(shape, generator=g, dtype=dtype)
    log_scale = torch.randn(shape, generator=g, dtype=dtype) - 0.5
    coefficients = torch.tanh(torch.randn(shape, generator=g, dtype=dtype))
    return [logits, mean, log_scale, *([coefficients] if channels else [])]


# One logistic ---------------------------------------------------------------------------------------------


def mp_distribution(x: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mp.exp(-x))


def mp_log_mass(y: int, mean: mpmath.mpf, log_scale: mpmath.mpf, levels: int) -> mpmath.mpf:
    """A difference of distribution functions, at the end where these are small."""
    scale = mp.exp(log_scale)
    upper = mp.inf if y == levels - 1 else (y + mp.mpf("0.5") - mean) / scale
    lower = -mp.inf if y == 0 else (y - mp.mpf("0.5") - mean) / scale
    if lower + upper > 0:
        lower, upper = -upper, -lower
    return mp.log(mp_distribution(upper) - mp_distribution(lower))


@pytest.mark.parametrize("levels", [256, 17, 2])
def test_discretized_logistic_against_mpmath(levels: int) -> None:
    """Where P is nearly 1, log P is as exact as P; derivatives from differences in 120 digits."""
    step = mp.mpf("1e-40")
    for y, m, s in itertools.product((0, 1, min(3, levels - 1), levels - 1), MEANS, LOG_SCALES):
        mean, log_scale = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (m, s))
        value = discretized_logistic_log_prob(torch.tensor(y), mean, log_scale, num_levels=levels)
        found = torch.autograd.grad(value, [mean, log_scale])
        with mp.workdps(120):
            m, s = mp.mpf(m), mp.mpf(s)
            exact = mp_log_mass(y, m, s, levels)
            in_mean = mp_log_mass(y, m + step, s, levels) - mp_log_mass(y, m - step, s, levels)
            in_scale = mp_log_mass(y, m, s + step, levels) - mp_log_mass(y, m, s - step, levels)
            derivatives = [float(d / (2 * step)) for d in (in_mean, in_scale)]
        torch.testing.assert_close(value.detach(), torch.tensor(float(exact), dtype=F64), **TIGHT)
        torch.testing.assert_close(
            torch.stack(found), torch.tensor(derivatives, dtype=F64), rtol=1e-10, atol=1e-13
        )


@pytest.mark.parametrize("levels", [256, 17, 2])
def test_probabilities_of_one_logistic_sum_to_one(levels: int) -> None:
    mean, log_scale = torch.cartesian_prod(torch.tensor(MEANS), torch.tensor(LOG_SCALES)).double().unbind(-1)
    y = torch.arange(levels).unsqueeze(-1)
    total = discretized_logistic_log_prob(y, mean, log_scale, num_levels=levels).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0.0, atol=1e-12)


def test_outermost_bins_are_open() -> None:
    """The first level has the distribution function's value at 1/2, the last what is left above L - 3/2."""
    ends = discretized_logistic_log_prob(torch.tensor([0, 4]), 1.0, math.log(2.0), num_levels=5)
    expected = torch.tensor([1 / (1 + math.exp(0.25)), 1 / (1 + math.exp(1.25))])
    torch.testing.assert_close(ends.exp(), expected)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("log_scale", [-1e30, -200.0, -60.0, 60.0, 200.0, 1e30])
def test_one_logistic_is_finite_beyond_the_box(log_scale: float, dtype: torch.dtype) -> None:
    mean = torch.tensor([-1e30, 2.0, 2.5, 1e30], dtype=dtype, requires_grad=True)
    log_scales = torch.full((4,), log_scale, dtype=dtype, requires_grad=True)
    value = discretized_logistic_log_prob(torch.arange(5).unsqueeze(-1), mean, log_scales, num_levels=5)
    gradients = torch.autograd.grad(value.sum(), [mean, log_scales])
    assert value.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_derivatives_of_one_logistic() -> None:
    y = torch.tensor([0, 1, 2, 3])
    mean = torch.tensor([0.3, 5.0, -1.0, 2.0], dtype=F64, requires_grad=True)
    log_scale = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=F64, requires_grad=True)

    def function(mean: Tensor, log_scale: Tensor) -> Tensor:
        return discretized_logistic_log_prob(y, mean, log_scale, num_levels=4)

    assert torch.autograd.gradcheck(function, [mean, log_scale])
    assert torch.autograd.gradgradcheck(function, [mean, log_scale])


def test_level_dtypes_and_refusals() -> None:
    expected = discretized_logistic_log_prob(torch.arange(5), 2.0, 0.5, num_levels=5)
    assert expected.dtype == F32
    small = torch.arange(5).byte()
    assert torch.equal(discretized_logistic_log_prob(small, 2.0, 0.5, num_levels=5), expected)
    assert discretized_logistic_log_prob(torch.arange(5).double(), 2.0, 0.5, num_levels=5).dtype == F64
    assert discretized_logistic_log_prob(torch.empty(0), 2.0, 0.5, num_levels=5).shape == (0,)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        discretized_logistic_log_prob(torch.tensor(0), 0.0, 0.0, num_levels=1)
    with pytest.raises(ValueError, match=r"0, \.\.\., 4, got values from 0 to 5: pass whole numbers"):
        discretized_logistic_log_prob(torch.arange(6), 0.0, 0.0, num_levels=5)


# Densities on the line ------------------------------------------------------------------------------------


def test_logistic_density_against_mpmath() -> None:
    """In relative error, also far out."""
    for x, m, s in itertools.product((-300.0, -19.0, 0.5, 21.0, 4e5), (0.0, 0.5), (-4.0, 0.0, 3.0)):
        with mp.workdps(60):
            z = (mp.mpf(x) - m) / mp.exp(s)
            exact = -z - 2 * mp.log1p(mp.exp(-z)) - s if z > 0 else z - 2 * mp.log1p(mp.exp(z)) - s
        found = logistic_log_prob(torch.tensor(x, dtype=F64), m, s)
        torch.testing.assert_close(found, torch.tensor(float(exact), dtype=F64), rtol=1e-13, atol=1e-14)


def test_mixture_density_integrates_to_one_and_to_the_masses_of_bins() -> None:
    """An inner bin's mass is the integral of the density over the bin."""
    parameters = mixture((), 3, channels=False)
    y = torch.arange(1, 8)
    nodes, weights = gauss_legendre(-0.5, 0.5, 40)
    x = y.double() + nodes.reshape(-1, 1)  # (40, 7)
    integral = weights.flatten() @ logistic_mixture_log_prob(x, *parameters).exp()
    masses = discretized_logistic_mixture_log_prob(y, *parameters, num_levels=9).exp()
    torch.testing.assert_close(integral, masses, rtol=1e-8, atol=1e-12)


# Samples --------------------------------------------------------------------------------------------------


def assert_frequencies(index: Tensor, probabilities: Tensor) -> None:
    """Each outcome's count within five standard errors, and no outcome without probability."""
    n = index.numel()
    counts = torch.bincount(index, minlength=probabilities.numel()).double()
    error = (n * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - n * probabilities).abs() <= 5 * error + 1).all()


@pytest.mark.parametrize("levels", [2, 5])
def test_samples_follow_the_probabilities(levels: int) -> None:
    parameters = mixture((), 3, channels=False)
    many = [t.expand(100_000, 3) for t in parameters]
    drawn = discretized_logistic_mixture_sample(*many, num_levels=levels, generator=generator())
    log_p = discretized_logistic_mixture_log_prob(torch.arange(levels), *parameters, num_levels=levels)
    assert_frequencies(drawn.long(), log_p.exp())


def test_samples_of_colours_follow_the_probabilities() -> None:
    parameters = mixture((), 3, channels=True)
    many = [t.expand(200_000, *t.shape) for t in parameters]
    drawn = rgb_logistic_mixture_sample(*many, num_levels=3, generator=generator()).long()
    levels = torch.cartesian_prod(*[torch.arange(3)] * 3)
    log_p = rgb_logistic_mixture_log_prob(levels, *parameters, num_levels=3)
    assert_frequencies((drawn * torch.tensor([9, 3, 1])).sum(-1), log_p.exp())


@pytest.mark.parametrize("dtype", [F32, F64])
def test_shapes_dtypes_and_seeds_of_samples(dtype: torch.dtype) -> None:
    one = mixture((2, 1), 4, channels=False, dtype=dtype)
    one[1] = one[1].expand(2, 5, 4)
    colour = mixture((2, 5), 4, channels=True, dtype=dtype)
    for sample, parameters, shape in (
        (discretized_logistic_mixture_sample, one, (2, 5)), (rgb_logistic_mixture_sample, colour, (2, 5, 3)),
    ):  # fmt: skip
        first, again, other = (sample(*parameters, num_levels=256, generator=generator(s)) for s in (1, 1, 2))
        assert first.shape == shape and first.dtype == dtype
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert sample(*(t[:0] for t in parameters), num_levels=9).shape == (0, *shape[1:])
        assert not sample(*(t.requires_grad_() for t in parameters), num_levels=9).requires_grad


@pytest.mark.parametrize("log_scale", [-12.0, 8.0])
@pytest.mark.parametrize("mean", [-1e4, 7.0, 1e4])
def test_samples_stay_among_the_levels(mean: float, log_scale: float) -> None:
    g = generator()
    shape = (500, 2)
    parameters = [torch.zeros(shape), torch.full(shape, mean), torch.full(shape, log_scale)]
    drawn = discretized_logistic_mixture_sample(*parameters, num_levels=17, generator=g)
    assert set(drawn.tolist()) <= set(range(17))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_zero_of_the_random_numbers_is_no_outlier(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 is a value of torch.rand, one in 2^24 of float32's: 17 scales below the mean, and not 87."""
    monkeypatch.setattr(torch, "rand", lambda shape, **settings: torch.zeros(shape, dtype=dtype))
    mean = torch.full((1, 1), 100.0, dtype=dtype)
    drawn = discretized_logistic_mixture_sample(
        torch.zeros_like(mean), mean, torch.zeros_like(mean), num_levels=256, generator=generator()
    )
    eps = torch.finfo(dtype).eps
    assert drawn.item() == round(100.0 + math.log(eps / 4))


# Means ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_means_are_sums_over_the_levels(levels: int) -> None:
    logits, mean, log_scale = mixture((6,), 4, channels=False)
    mean = mean * levels / 4 + torch.tensor([0.0, 0.0, 0.0, 1e4, -1e4, 0.0], dtype=F64).unsqueeze(-1)
    log_scale = log_scale + torch.tensor([0.0, 8.0, -12.0, 0.0, 0.0, 2.0], dtype=F64).unsqueeze(-1)
    y = torch.arange(levels).unsqueeze(-1)
    p = discretized_logistic_mixture_log_prob(y, logits, mean, log_scale, num_levels=levels).exp()
    found = discretized_logistic_mixture_mean(logits, mean, log_scale, num_levels=levels)
    torch.testing.assert_close(found, (p * y).sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("log_scale", [-1e30, -1000.0, -100.0, 100.0, 1000.0, 1e30])
def test_means_are_finite_beyond_the_box(log_scale: float, dtype: torch.dtype) -> None:
    """A mean on a bin's edge is shared by both levels, however sharp the component is."""
    mean = torch.tensor([[0.5], [3.0], [-1e30], [1e30]], dtype=dtype, requires_grad=True)
    scale = torch.full((4, 1), log_scale, dtype=dtype, requires_grad=True)
    found = discretized_logistic_mixture_mean(torch.zeros_like(mean), mean, scale, num_levels=5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), [mean, scale]))
    expected = [0.5, 3.0, 0.0, 4.0] if log_scale < 0 else [2.0, 2.0, found[2].item(), found[3].item()]
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=dtype))


def test_means_of_colours_are_conditional() -> None:
    """``E[y_r]``, ``E[y_g | y_r]``, ``E[y_b | y_r, y_g]`` from the table of all 4^3 probabilities."""
    parameters = mixture((), 3, channels=True)
    levels = torch.cartesian_prod(*[torch.arange(4)] * 3)
    table = rgb_logistic_mixture_log_prob(levels, *parameters, num_levels=4).exp().reshape(4, 4, 4)
    value = torch.arange(4, dtype=F64)
    red = table.sum((1, 2)) @ value
    green = table.sum(2) @ value / table.sum((1, 2))  # (4,), for each red
    blue = table @ value / table.sum(2)  # (4, 4)
    found = rgb_logistic_mixture_mean(levels, *parameters, num_levels=4).reshape(4, 4, 4, 3)
    torch.testing.assert_close(found[..., 0], red.expand(4, 4, 4), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found[..., 1], green[:, None, None].expand(4, 4, 4), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found[..., 2], blue[..., None].expand(4, 4, 4), rtol=1e-12, atol=0.0)


def test_refusals_of_samples_and_means() -> None:
    logits, mean, log_scale = mixture((2,), 3, channels=False)
    colour = mixture((2,), 3, channels=True)
    with pytest.raises(ValueError, match="num_levels must be at least 2"):
        discretized_logistic_mixture_sample(logits, mean, log_scale, num_levels=1)
    with pytest.raises(ValueError, match="same number K >= 1"):
        discretized_logistic_mixture_mean(logits, mean[:, :2], log_scale, num_levels=4)
    with pytest.raises(ValueError, match=r"must end in \(3, K\)"):
        rgb_logistic_mixture_sample(logits, mean, log_scale, mean, num_levels=4)
    with pytest.raises(ValueError, match=r"0, \.\.\., 3, got values from 0 to 9"):
        rgb_logistic_mixture_mean(torch.tensor([0, 1, 9]), *colour, num_levels=4)
    with pytest.raises(ValueError, match="three channels"):
        rgb_logistic_mixture_mean(torch.tensor([0, 1]), *colour, num_levels=4)
