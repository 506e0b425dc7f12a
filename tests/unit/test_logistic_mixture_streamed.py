"""Mixtures of discretized logistics: accuracy over the whole range, and all shapes, orders and dtypes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import mpmath
import pytest
import torch
from mpmath import mp
from torch import Tensor

from dgm_course.logistic_mixture import (
    discretized,
    discretized_logistic_mixture_log_prob,
    rgb_logistic_mixture_log_prob,
)
from dgm_course.logistic_mixture.components import plain_log_prob

F32, F64 = torch.float32, torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-13}


@pytest.fixture(autouse=True, params=[-1, 10**9], ids=["streamed", "as if small"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discretized, "SMALL", request.param)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_inputs(
    lead: tuple[int, ...], components: int, channels: int, levels: int, dtype: torch.dtype = F64
) -> tuple[Tensor, list[Tensor]]:
    """A picture's levels, and parameters as a trained network gives them: for one channel without the 1."""
    g = generator(components)
    shape = (*lead, components) if channels == 1 else (*lead, channels, components)
    y = torch.randint(levels, lead if channels == 1 else (*lead, channels), generator=g)
    logits = torch.randn(*lead, components, generator=g, dtype=dtype)
    mean = (levels - 1) * torch.rand(shape, generator=g, dtype=dtype)
    log_scale = math.log(levels / 8) + torch.randn(shape, generator=g, dtype=dtype)
    rest = [torch.tanh(torch.randn(shape, generator=g, dtype=dtype))] if channels == 3 else []
    return y, [logits, mean, log_scale, *rest]


def log_prob(y: Tensor, parameters: Sequence[Tensor], levels: int) -> Tensor:
    if len(parameters) == 4:
        return rgb_logistic_mixture_log_prob(y, *parameters, num_levels=levels)
    return discretized_logistic_mixture_log_prob(y, *parameters, num_levels=levels)


def plain(y: Tensor, parameters: Sequence[Tensor], levels: int) -> Tensor:
    if len(parameters) == 4:
        return plain_log_prob(y, parameters, levels)
    logits, *others = parameters
    return plain_log_prob(y.unsqueeze(-1), [logits, *(t.unsqueeze(-2) for t in others)], levels)


def evaluated(
    function: Callable[..., Tensor], y: Tensor, parameters: Sequence[Tensor], levels: int
) -> list[Tensor]:
    """Value and all gradients, weighted differently for each pixel."""
    leaves = [t.detach().requires_grad_() for t in parameters]
    value = function(y, leaves, levels)
    weights = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    return [value.detach(), *torch.autograd.grad(value, leaves, weights)]


# Accuracy -------------------------------------------------------------------------------------------------


def mp_log_prob(y: list[int], numbers: list[list], levels: int) -> mpmath.mpf:
    """From the definition, as a difference of distribution functions, at the end where these are small."""
    logits, mean, log_scale, *coefficients = numbers
    centred = [value - mp.mpf(levels - 1) / 2 for value in y]
    total = mp.mpf(0)
    for k, logit in enumerate(logits):
        mass = mp.exp(logit)
        for c, value in enumerate(y):
            middle = mean[c][k]
            if coefficients and c == 1:
                middle += coefficients[0][0][k] * centred[0]
            if coefficients and c == 2:
                middle += coefficients[0][1][k] * centred[0] + coefficients[0][2][k] * centred[1]
            scale = mp.exp(log_scale[c][k])
            upper = mp.inf if value == levels - 1 else (value + mp.mpf("0.5") - middle) / scale
            lower = -mp.inf if value == 0 else (value - mp.mpf("0.5") - middle) / scale
            if lower + upper > 0:
                lower, upper = -upper, -lower
            mass *= 1 / (1 + mp.exp(-upper)) - 1 / (1 + mp.exp(-lower))
        total += mass
    return mp.log(total) - mp.log(sum(map(mp.exp, logits)))


def mp_gradient(y: list[int], numbers: list[list], levels: int) -> list[list]:
    """Central differences with a step of 1e-40, in 120 digits."""
    step = mp.mpf("1e-40")

    def derivative(holder: list, k: int) -> mpmath.mpf:
        middle, values = holder[k], []
        for sign in (1, -1):
            holder[k] = middle + sign * step
            values.append(mp_log_prob(y, numbers, levels))
        holder[k] = middle
        return (values[0] - values[1]) / (2 * step)

    logits, *others = numbers
    rows = [[derivative(logits, k) for k in range(len(logits))]]
    return rows + [[[derivative(row, k) for k in range(len(row))] for row in array] for array in others]


CORNERS = list(itertools.product((-12.0, 0.5, 8.0), (-1e4, 0.25, 200.0, 1e4)))


@pytest.mark.parametrize("levels", [256, 17, 2])
def test_value_and_gradient_against_mpmath(levels: int) -> None:
    """All that enters is a multiple of 1/64, so that the coupled means are exact; log-scale -12 to 8."""
    g = generator(levels)
    tensors = []
    for number, (log_scale, mean) in enumerate(CORNERS):
        y = torch.randint(levels, (3,), generator=g)
        y[number % 3] = (0, levels - 1)[number % 2]
        others = torch.randint(levels, (3, 2), generator=g).double()
        means = others + torch.randint(-32, 33, (3, 2), generator=g) / 64
        log_scales = torch.randint(-12 * 8, 8 * 8, (3, 2), generator=g).double() / 8
        means[:, 0], log_scales[:, 0] = mean, log_scale
        coefficients = torch.randint(-64, 65, (3, 2), generator=g).double() / 64
        logits = torch.randn(2, generator=g, dtype=F64)
        tensors.append((y, [logits, means, log_scales, coefficients]))
    with mp.workdps(120):
        for y, parameters in tensors:
            numbers = [[[mp.mpf(v) for v in row] for row in t] for t in (p.tolist() for p in parameters[1:])]
            numbers.insert(0, [mp.mpf(v) for v in parameters[0].tolist()])
            expected = [mp_log_prob(y.tolist(), numbers, levels), *mp_gradient(y.tolist(), numbers, levels)]
            leaves = [t.requires_grad_() for t in parameters]
            value = log_prob(y, leaves, levels)
            found = [value.detach(), *torch.autograd.grad(value, leaves)]
            for got, right in zip(found, expected, strict=True):
                right = torch.tensor(as_floats(right), dtype=F64)
                torch.testing.assert_close(got, right, **TIGHT)


def as_floats(numbers: object) -> object:
    return [as_floats(n) for n in numbers] if isinstance(numbers, list) else float(numbers)


@pytest.mark.parametrize("levels", [256, 17, 2])
@pytest.mark.parametrize("log_scale, mean", CORNERS)
def test_probabilities_sum_to_one(levels: int, log_scale: float, mean: float) -> None:
    logits, others = torch.randn(4, generator=generator(), dtype=F64), torch.linspace(0, 1, 4, dtype=F64)
    value = discretized_logistic_mixture_log_prob(
        torch.arange(levels), logits, mean * (1 - others) + levels * others, log_scale - others,
        num_levels=levels,
    )
    assert abs(value.exp().sum().item() - 1) < 1e-12


@pytest.mark.parametrize("mean", [-30.0, 1.3, 500.0])
def test_probabilities_of_colours_sum_to_one(mean: float) -> None:
    levels = torch.cartesian_prod(*[torch.arange(5)] * 3)  # (125, 3)
    parameters = random_inputs((), 3, 3, 5)[1]
    parameters[1][0] += mean
    assert abs(log_prob(levels, parameters, 5).exp().sum().item() - 1) < 1e-12


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("levels", [256, 17])
def test_value_and_gradient_are_finite_over_the_whole_box(levels: int, dtype: torch.dtype) -> None:
    g = generator(levels)
    lead = (3000,)
    y, parameters = random_inputs(lead, 4, 3, levels, dtype)
    parameters[1] = 1e4 * (2 * torch.rand(*lead, 3, 4, generator=g) - 1).to(dtype)
    parameters[2] = (20 * torch.rand(*lead, 3, 4, generator=g) - 12).to(dtype)
    for at, (log_scale, mean) in enumerate(itertools.product((-12.0, 8.0), (-1e4, 0.5, levels - 1.0, 1e4))):
        parameters[1][at], parameters[2][at] = mean, log_scale
    parameters[0][:50] *= 1e4
    assert all(t.isfinite().all() for t in evaluated(log_prob, y, parameters, levels))
    one = [parameters[0], *(t[:, 0] for t in parameters[1:3])]
    assert all(t.isfinite().all() for t in evaluated(log_prob, y[:, 0], one, levels))


@pytest.mark.parametrize("dtype, log_scale, mean", [
    *itertools.product([F32, F64], [-60.0, 60.0], [-1e30, 3.0, 3.5, 1e30]),
    (F32, 1e30, 1e38), (F32, -1e30, 1e38), (F64, -1e300, -1e300), (F64, 1e300, 3.0),
])  # fmt: skip
def test_beyond_the_box_all_is_finite(dtype: torch.dtype, log_scale: float, mean: float) -> None:
    y, parameters = random_inputs((5,), 2, 3, 7, dtype)
    parameters[1][..., 0], parameters[2][..., 0] = mean, log_scale
    assert all(t.isfinite().all() for t in evaluated(log_prob, y, parameters, 7))


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_nan_is_not_hidden(which: int) -> None:
    y, parameters = random_inputs((4,), 3, 3, 17)
    parameters[which][2] = math.nan
    assert log_prob(y, parameters, 17).isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("components, channels", [(10, 3), (1, 3), (10, 1), (1, 1)])
def test_float32_is_as_accurate_as_the_dtype(components: int, channels: int) -> None:
    """To 64 unit roundoffs of the largest: a and b, up to 20, are rounded in relation to their size."""
    y, parameters = random_inputs((64, 8), components, channels, 256, F32)
    exact = evaluated(plain, y, [t.double() for t in parameters], 256)
    for got, right in zip(evaluated(log_prob, y, parameters, 256), exact, strict=True):
        assert got.dtype == F32
        atol = 64 * 2.0**-24 * right.abs().max().item()
        torch.testing.assert_close(got.double(), right, rtol=0.0, atol=atol)


def test_coupled_means_lose_nothing_in_float32() -> None:
    """Near the level, as a sum of terms of 200 levels and more, at scales of 1/7 level."""
    y, parameters = random_inputs((200,), 4, 3, 256, F32)
    logits, _, log_scale, coefficients = parameters
    centred = (y - 127.5).unsqueeze(-1)
    mean = y.unsqueeze(-1) + torch.randn(200, 3, 4, generator=generator())
    mean[:, 1] -= coefficients[:, 0] * centred[:, 0]
    mean[:, 2] -= (coefficients[:, 1:] * centred[:, :2]).sum(1)
    parameters = [logits, mean, torch.full_like(log_scale, -2.0), coefficients]
    exact = evaluated(plain, y, [t.double() for t in parameters], 256)

    def worst(function: Callable[..., Tensor]) -> float:
        found = evaluated(function, y, parameters, 256)
        pairs = zip(found, exact, strict=True)
        return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)

    assert worst(log_prob) < 64 * 2.0**-24 < 1e-5 < worst(plain)


def test_components_without_weight_do_not_count() -> None:
    y, parameters = random_inputs((6,), 4, 3, 17)
    fewer = [t[..., :3] for t in parameters]
    parameters[0][..., 3] = -math.inf
    found, expected = evaluated(log_prob, y, parameters, 17), evaluated(log_prob, y, fewer, 17)
    torch.testing.assert_close(found[0], expected[0], **TIGHT)
    for got, right in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(got[..., :3], right, **TIGHT)
        assert (got[..., 3] == 0).all()


# Derivatives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components, channels, levels", [(3, 3, 17), (1, 3, 256), (3, 1, 5), (1, 1, 2)])
def test_first_and_second_derivatives(components: int, channels: int, levels: int) -> None:
    y, parameters = random_inputs((2, 2), components, channels, levels)
    y[0, 0], y[0, 1] = 0, levels - 1
    leaves = [t.requires_grad_() for t in parameters]
    torch.autograd.gradcheck(lambda *t: log_prob(y, t, levels), leaves)
    torch.autograd.gradgradcheck(lambda *t: log_prob(y, t, levels), leaves)


def test_second_derivatives_of_parameters_that_depend_on_one_another() -> None:
    y, (logits, *_) = random_inputs((3,), 2, 1, 9)

    def hessian(function: Callable[..., Tensor]) -> Tensor:
        def total(x: Tensor) -> Tensor:
            mean = 3 * x
            return function(y, [x, mean, mean.square().clamp(max=2.0)], 9).sum()

        return torch.autograd.functional.hessian(total, logits)

    torch.testing.assert_close(hessian(log_prob), hessian(plain), **TIGHT)


def test_a_second_backward_pass_gives_the_same() -> None:
    y, parameters = random_inputs((7,), 3, 3, 17)
    leaves = [t.requires_grad_() for t in parameters]
    value = log_prob(y, leaves, 17)
    weights = torch.linspace(1, 3, 7, dtype=F64)
    first = torch.autograd.grad(value, leaves, weights, retain_graph=True)
    kept = [t.clone() for t in first]
    second = torch.autograd.grad(value, leaves, 2 * weights)
    for before, got, again in zip(kept, first, second, strict=True):
        assert torch.equal(before, got) and torch.equal(2 * before, again)


def test_a_mean_over_pixels_weighs_all_alike() -> None:
    y, parameters = random_inputs((6, 2), 3, 3, 17)
    leaves = [t.requires_grad_() for t in parameters]
    found = torch.autograd.grad(log_prob(y, leaves, 17).mean(), leaves)
    expected = torch.autograd.grad(plain(y, leaves, 17).mean(), leaves)
    torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("channels", [1, 3])
def test_only_what_needs_a_gradient_gets_one(channels: int) -> None:
    y, parameters = random_inputs((5,), 3, channels, 17)
    expected = evaluated(log_prob, y, parameters, 17)[1:]
    weights = torch.linspace(-1, 2, 5, dtype=F64)
    for which in range(len(parameters)):
        leaves = [t.detach().requires_grad_(at == which) for at, t in enumerate(parameters)]
        value = log_prob(y, leaves, 17)
        torch.testing.assert_close(torch.autograd.grad(value, leaves[which], weights)[0], expected[which])
        with torch.no_grad():
            assert not log_prob(y, leaves, 17).requires_grad
    assert not log_prob(y, parameters, 17).requires_grad
