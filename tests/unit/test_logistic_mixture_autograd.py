"""Mixtures of discretized logistics: the streamed gradient among autograd's modes and transforms."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from dgm_course.logistic_mixture import (
    discretized,
    discretized_logistic_mixture_log_prob,
    rgb_logistic_mixture_log_prob,
    streamed,
)
from dgm_course.logistic_mixture.components import plain_log_prob

F32, F64 = torch.float32, torch.float64
TIGHT = {"rtol": 1e-11, "atol": 1e-13}
LEVELS = 17


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(pixels: int, channels: int, components: int = 2, dtype: torch.dtype = F64) -> list[Tensor]:
    """Levels, and parameters in one dtype."""
    g = seeded(pixels)
    tail = (components,) if channels == 1 else (3, components)
    y = torch.randint(LEVELS, (pixels, *tail[:-1]), generator=g)
    logits = torch.randn(pixels, components, generator=g, dtype=F64)
    mean, log_scale, coefficients = (torch.randn(pixels, *tail, generator=g, dtype=F64) for _ in range(3))
    parameters = [logits, 8 + 5 * mean, log_scale, coefficients.tanh()][: 3 if channels == 1 else 4]
    return [y, *(t.to(dtype) for t in parameters)]


def log_prob(y: Tensor, *parameters: Tensor) -> Tensor:
    if len(parameters) == 4:
        return rgb_logistic_mixture_log_prob(y, *parameters, num_levels=LEVELS)
    return discretized_logistic_mixture_log_prob(y, *parameters, num_levels=LEVELS)


def plain(y: Tensor, *parameters: Tensor) -> Tensor:
    if len(parameters) == 4:
        return plain_log_prob(y, parameters, LEVELS)
    logits, *others = parameters
    return plain_log_prob(y.unsqueeze(-1), [logits, *(t.unsqueeze(-2) for t in others)], LEVELS)


@pytest.fixture
def streamed_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discretized, "SMALL", -1)


either_way = pytest.mark.parametrize("small", [-1, 10**9], ids=["streamed", "as if small"])
one_or_three = pytest.mark.parametrize("channels", [1, 3])


# Small problems -------------------------------------------------------------------------------------------


@one_or_three
def test_small_problems_take_the_plain_formula(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted are pixels times channels times components, after broadcasting."""

    def refuse(*_: object) -> Tensor:
        raise ArithmeticError

    monkeypatch.setattr(discretized, "streamed_log_prob", refuse)
    most = discretized.SMALL // (8 * channels)
    y, *parameters = inputs(most, channels, components=8)
    assert log_prob(y, *parameters).shape == (most,)
    with pytest.raises(ArithmeticError):
        log_prob(*inputs(most + 1, channels, components=8))
    with pytest.raises(ArithmeticError):
        log_prob(y.unsqueeze(1), *(t.unsqueeze(0) for t in parameters))


@one_or_three
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_small_and_streamed_agree_to_rounding(
    channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 64 unit roundoffs of the largest, and in the same dtypes."""
    y, *parameters = inputs(40, channels, 3, dtype)
    results = []
    for small in (-1, 10**9):
        monkeypatch.setattr(discretized, "SMALL", small)
        leaves = [t.clone().requires_grad_() for t in parameters]
        value = log_prob(y, *leaves)
        results.append([value.detach(), *torch.autograd.grad(value.sum(), leaves)])
    for first, second in zip(*results, strict=True):
        assert first.dtype == second.dtype == dtype
        atol = 32 * torch.finfo(dtype).eps * second.abs().max().item()
        torch.testing.assert_close(first, second, rtol=0.0, atol=atol)


# What is refused, and what is not -------------------------------------------------------------------------


@one_or_three
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when forward mode is first used
@pytest.mark.usefixtures("streamed_however_small")
def test_function_transforms_are_refused(channels: int) -> None:
    """Forward mode too, in which a derivative that is missing would count as zero."""
    y, logits, *others = inputs(3, channels)

    def value(logits: Tensor) -> Tensor:
        return log_prob(y, logits, *others)

    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda logits: value(logits).sum())(logits)
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.jvp(value, (logits,), (logits,))
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.jacfwd(value)(logits)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(log_prob)(y, logits, *others)
    for enabled in (True, False):
        with (
            torch.set_grad_enabled(enabled), forward_ad.dual_level(),
            pytest.raises(RuntimeError, match="forward mode"),
        ):  # fmt: skip
            value(forward_ad.make_dual(logits, torch.ones_like(logits)))


@one_or_three
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_small_problems_have_forward_mode_derivatives(channels: int) -> None:
    y, *parameters = inputs(3, channels)
    directions = tuple(torch.randn(t.shape, generator=seeded(5), dtype=F64) for t in parameters)
    slope = torch.func.jvp(lambda *t: log_prob(y, *t), tuple(parameters), directions)[1]
    leaves = [t.requires_grad_() for t in parameters]
    for pixel, value in enumerate(log_prob(y, *leaves)):
        gradients = torch.autograd.grad(value, leaves, retain_graph=True)
        expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        torch.testing.assert_close(slope[pixel].detach(), expected, **TIGHT)


@pytest.mark.usefixtures("streamed_however_small")
def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In no_grad too, where the parameters of a network still require some."""
    asked: list[list[bool]] = []
    evaluate = streamed._evaluate

    def spy(y: Tensor, num_levels: int, parameters: list[Tensor], needs: list[bool]) -> object:
        asked.append(list(needs))
        return evaluate(y, num_levels, parameters, needs)

    monkeypatch.setattr(streamed, "_evaluate", spy)
    y, *parameters = inputs(3, 1)
    leaves = [t.clone().requires_grad_() for t in parameters]
    log_prob(y, *parameters)
    with torch.no_grad():
        log_prob(y, *leaves)
    log_prob(y, parameters[0], *leaves[1:])
    assert asked == [[False] * 3, [False] * 3, [False, True, True]]


@one_or_three
@either_way
def test_many_gradients_at_once(channels: int, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``is_grads_batched``, before and after the gradients of the forward pass are used up."""
    monkeypatch.setattr(discretized, "SMALL", small)
    y, *parameters = inputs(5, channels)
    parameters[1] = parameters[1][:1]  # one mean for all pixels
    leaves = [t.requires_grad_() for t in parameters]
    value, weights = log_prob(y, *leaves), torch.randn(4, 5, generator=seeded(1), dtype=F64)
    for _ in range(2):
        found = torch.autograd.grad(value, leaves, weights, is_grads_batched=True, retain_graph=True)
        for index, weight in enumerate(weights):
            expected = torch.autograd.grad(plain(y, *leaves), leaves, weight)
            for got, right in zip(found, expected, strict=True):
                torch.testing.assert_close(got[index], right, **TIGHT)
    jacobian = torch.autograd.functional.jacobian
    found = jacobian(lambda *t: log_prob(y, *t), tuple(parameters), vectorize=True)
    torch.testing.assert_close(found, jacobian(lambda *t: plain(y, *t), tuple(parameters)), **TIGHT)


@either_way
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_tensors_made_in_inference_mode(
    dtype: torch.dtype, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Levels of a data set and constant parameters, which autograd does not keep as they are."""
    monkeypatch.setattr(discretized, "SMALL", small)
    expected_y, *parameters = inputs(6, 3, dtype=dtype)
    with torch.inference_mode():
        y = expected_y.clone()
        constant = parameters[2].clone()
        assert log_prob(y, *parameters).shape == (6,)
    leaves = [parameters[0].requires_grad_(), parameters[1].requires_grad_(), parameters[3].requires_grad_()]
    found = torch.autograd.grad(log_prob(y, *leaves[:2], constant, leaves[2]).sum(), leaves)
    value = log_prob(expected_y, *leaves[:2], parameters[2], leaves[2])
    for got, right in zip(found, torch.autograd.grad(value.sum(), leaves), strict=True):
        assert torch.equal(got, right)
    assert y.is_inference() and torch.equal(y, expected_y)


COMPILED = """
import torch
from dgm_course.logistic_mixture import discretized, discretized_logistic_mixture_log_prob

discretized.SMALL = -1

def total(y, *parameters):
    return discretized_logistic_mixture_log_prob(y, *(1.0 * t for t in parameters), num_levels=17).sum()

compiled = torch.compile(total, backend="aot_eager", dynamic=True)
for pixels in (6, 9):
    g = torch.Generator().manual_seed(pixels)
    y = torch.randint(17, (pixels,), generator=g)
    leaves = [torch.randn(pixels, 3, generator=g).requires_grad_() for _ in range(3)]
    found = torch.autograd.grad(compiled(y, *leaves), leaves)
    expected = torch.autograd.grad(total(y, *leaves), leaves)
    for got, right in zip(found, expected, strict=True):
        atol = 64 * 2.0**-24 * right.abs().max().item()
        torch.testing.assert_close(got, right, rtol=0.0, atol=atol)
print("agrees")
"""


def test_the_compiler_gets_the_plain_formula() -> None:
    """With sizes that change: the blocks' views would make assumptions about them.

    In a process of its own: the compiler changes how errors are reported in the one that imports it.
    """
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0 and "agrees" in done.stdout, done.stderr


# Accuracy of what can be differentiated again -------------------------------------------------------------


def relative_errors(function: Callable[..., Tensor], y: Tensor, parameters: list[Tensor]) -> list[float]:
    """Of first gradients asked for with ``create_graph`` and of a second derivative, against float64."""

    def derivatives(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in parameters]
        first = torch.autograd.grad(function(y, *leaves).sum(), leaves, create_graph=True)
        assert all(t.dtype == dtype for t in first)
        second = torch.autograd.grad(first[1].sum(), leaves[1])
        return [*(t.detach().double() for t in first), second[0].double()]

    pairs = zip(derivatives(function, F32), derivatives(plain, F64), strict=True)
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]


@either_way
def test_gradients_with_a_graph_lose_nothing_in_float32(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coupled means near the level, as sums of terms of 1000 levels, at scales of 1/7 level."""
    monkeypatch.setattr(discretized, "SMALL", small)
    y, logits, _, log_scale, coefficients = inputs(100, 3, 4, F32)
    centred = (y - 0.5 * (LEVELS - 1)).unsqueeze(-1)
    coefficients = 200 * coefficients
    mean = y.unsqueeze(-1) + 0.5 * torch.randn(100, 3, 4, generator=seeded(3))
    mean[:, 1] -= coefficients[:, 0] * centred[:, 0]
    mean[:, 2] -= (coefficients[:, 1:] * centred[:, :2]).sum(1)
    parameters = [logits, mean, torch.full_like(log_scale, math.log(1 / 7)), coefficients]
    assert max(relative_errors(log_prob, y, parameters)) < 64 * 2.0**-24
    assert max(relative_errors(plain, y, parameters)) > 256 * 2.0**-24, "the case is a hard one"
