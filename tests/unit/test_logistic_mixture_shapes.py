"""Mixtures of discretized logistics: leading dimensions, orders in memory, dtypes, blocks, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

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


@pytest.fixture(autouse=True)
def _streamed_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discretized, "SMALL", -1)


def one_channel(y: Tensor, *parameters: Tensor) -> Tensor:
    return discretized_logistic_mixture_log_prob(y, *parameters, num_levels=LEVELS)


def colour(y: Tensor, *parameters: Tensor) -> Tensor:
    return rgb_logistic_mixture_log_prob(y, *parameters, num_levels=LEVELS)


def plain(y: Tensor, *parameters: Tensor) -> Tensor:
    if len(parameters) == 4:
        return plain_log_prob(y, parameters, LEVELS)
    logits, *others = parameters
    return plain_log_prob(y.unsqueeze(-1), [logits, *(t.unsqueeze(-2) for t in others)], LEVELS)


def inputs(leads: Sequence[tuple[int, ...]], components: int, channels: int) -> tuple[Tensor, list[Tensor]]:
    """Levels and parameters, each with leading dimensions of its own."""
    g = torch.Generator().manual_seed(1)
    tail = (components,) if channels == 1 else (3, components)
    y = torch.randint(LEVELS, (*leads[0], *tail[:-1]), generator=g)
    tails = [(components,), *[tail] * (len(leads) - 2)]
    scales = (1.0, 10.0, 1.0, 0.5)
    shifts = (0.0, 8.0, 0.5, 0.0)
    parameters = [
        shift + scale * torch.randn(*lead, *tail, generator=g, dtype=F64)
        for lead, tail, scale, shift in zip(leads[1:], tails, scales, shifts, strict=False)
    ]
    return y, parameters


def assert_same(function: Callable[..., Tensor], y: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Value and gradients are those of the plain formula; returns the gradients."""
    leaves = [t.detach().requires_grad_() for t in parameters]
    value, expected = function(y, *leaves), plain(y, *leaves)
    torch.testing.assert_close(value, expected, **TIGHT)
    weights = torch.linspace(-1, 2, value.numel(), dtype=F64).reshape(value.shape)
    found = torch.autograd.grad(value, leaves, weights)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves, weights), **TIGHT)
    return list(found)


LEADS = {
    "no dimension": [(), (), (), (), ()],
    "one": [(7,)] * 5,
    "pictures": [(2, 3, 4)] * 5,
    "none at all": [(0,)] * 5,
    "none in the middle": [(2, 0, 3)] * 5,
    "one mixture for all": [(5, 3), (), (), (), ()],
    "all levels": [(9, 1, 1), (2, 3), (2, 3), (2, 3), (2, 3)],
    "a stack of mixtures": [(2, 6, 3), (2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)],
    "a stack and shared pixels": [(6, 3), (2, 1, 1), (2, 6, 3), (2, 1, 3), (1, 1, 1)],
    "crosswise": [(2, 1, 3), (4, 1), (1, 4, 3), (), (2, 4, 1)],
}


@pytest.mark.parametrize("block", [1, 40, 100_000])
@pytest.mark.parametrize("components", [1, 4])
@pytest.mark.parametrize("leads", LEADS.values(), ids=LEADS.keys())
def test_leading_dimensions(
    leads: list[tuple[int, ...]], components: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(streamed.BLOCK, "cpu", block)
    y, parameters = inputs(leads, components, 3)
    assert_same(colour, y, parameters)
    y, parameters = inputs(leads[:4], components, 1)
    assert_same(one_channel, y, parameters)


@pytest.mark.parametrize("block", [40, 300, 2000, 100_000])
def test_a_networks_output(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Components far apart in memory, pixels side by side: read and answered in that order."""
    monkeypatch.setitem(streamed.BLOCK, "cpu", block)
    components = 4
    output = torch.randn(5, 10 * components, 6, 8, generator=torch.Generator().manual_seed(2), dtype=F64)
    y = torch.randint(LEVELS, (5, 3, 6, 8), generator=torch.Generator().manual_seed(3)).permute(0, 2, 3, 1)
    logits, *others = output.split([components, *[3 * components] * 3], 1)
    parameters = [t.unflatten(1, (3, components)).permute(0, 3, 4, 1, 2) for t in others]
    found = assert_same(colour, y, [logits.permute(0, 2, 3, 1), *parameters])
    assert [t.stride(2) for t in found] == [1] * 4  # neighbours in a row


def test_other_orders_in_memory() -> None:
    y, parameters = inputs([(6, 4)] * 5, 3, 3)
    transposed = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in parameters]
    assert_same(colour, y, transposed)
    assert_same(colour, y.movedim(-1, 0).contiguous().movedim(0, -1), transposed)
    twice = [torch.cat([t, t], -1)[..., ::2] for t in parameters]
    assert_same(colour, y, twice)


def test_gradients_that_share_memory_are_not_overwritten() -> None:
    """Of an expanded parameter the gradient is a sum, not the last of many writes to one place."""
    y, parameters = inputs([(6, 4)] * 5, 3, 3)
    parameters[1] = parameters[1][:1].expand(6, 4, 3, 3)
    assert_same(colour, y, parameters)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, F32, F64])
def test_dtypes_of_levels(dtype: torch.dtype) -> None:
    y, parameters = inputs([(6, 4)] * 5, 3, 3)
    assert torch.equal(colour(y.to(dtype), *parameters), colour(y, *parameters))


def test_the_widest_dtype_decides() -> None:
    y, parameters = inputs([(6,)] * 5, 3, 3)
    expected = colour(y, *parameters)
    single = [t.to(F32) for t in parameters]
    assert colour(y, *single).dtype == colour(y.to(torch.float16), *single).dtype == F32
    assert colour(y.double(), *single).dtype == F64
    mixed = [single[0], parameters[1], *single[2:]]
    leaves = [t.requires_grad_() for t in mixed]
    value = colour(y, *leaves)
    assert value.dtype == F64
    found = torch.autograd.grad(value.sum(), leaves)
    assert [t.dtype for t in found] == [F32, F64, F32, F32]
    torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_that_of_the_arguments_only(dtype: torch.dtype) -> None:
    """Value and gradient are those of the same numbers in float32; a gradient has its parameter's dtype."""
    y, parameters = inputs([(6,)] * 5, 3, 3)
    half = [t.to(dtype).requires_grad_() for t in parameters]
    single = [t.detach().float().requires_grad_() for t in half]
    value, expected = colour(y.to(dtype), *half), colour(y, *single)
    assert value.dtype == F32 and torch.equal(value, expected)
    found = torch.autograd.grad(value.sum(), half)
    for got, right in zip(found, torch.autograd.grad(expected.sum(), single), strict=True):
        assert torch.equal(got, right.to(dtype))


@pytest.mark.cuda
def test_cuda_gives_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    y, parameters = inputs([(50, 40)] * 5, 10, 3)
    here = assert_same(colour, y, parameters)
    leaves = [t.cuda().requires_grad_() for t in parameters]
    value = colour(y.cuda(), *leaves)
    torch.testing.assert_close(value.cpu().detach(), plain(y, *parameters), **TIGHT)
    weights = torch.linspace(-1, 2, value.numel(), dtype=F64).reshape(value.shape).cuda()
    found = torch.autograd.grad(value, leaves, weights)
    torch.testing.assert_close([t.cpu() for t in found], here, **TIGHT)


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y, message", [
    (torch.tensor([0.0, 0.5, 3.0]), "whole numbers"),
    (torch.tensor([0, -1, 3]), "from -1 to 3"),
    (torch.tensor([0, 17, 3]), r"levels 0, \.\.\., 16, got values from 0 to 17"),
    (torch.tensor([0.0, math.nan, 3.0]), "must hold the levels"),
    (torch.tensor([1.0, 2.0, 3.0], requires_grad=True), "y.detach()"),
    (torch.zeros(3, device="meta"), "y is on meta, parameters are on cpu"),
])  # fmt: skip
def test_what_is_no_level_is_refused(y: Tensor, message: str) -> None:
    parameters = inputs([(3,)] * 4, 2, 1)[1]
    with pytest.raises(ValueError, match=message):
        one_channel(y, *parameters)
    parameters = inputs([()] * 5, 2, 3)[1]
    with pytest.raises(ValueError, match=message):
        colour(y, *parameters)


def test_levels_with_a_gradient_are_taken_where_none_is_asked_for() -> None:
    y, parameters = inputs([(3,)] * 4, 2, 1)
    with torch.no_grad():
        assert torch.equal(one_channel(y.double().requires_grad_(), *parameters), one_channel(y, *parameters))


def test_other_refusals() -> None:
    y, parameters = inputs([(3,)] * 4, 2, 1)
    with pytest.raises(ValueError, match="num_levels must be at least 2, got 1"):
        discretized_logistic_mixture_log_prob(y, *parameters, num_levels=1)
    with pytest.raises(ValueError, match="same number K >= 1"):
        one_channel(y, parameters[0][:, :1], *parameters[1:])
    with pytest.raises(ValueError, match="same number K >= 1"):
        one_channel(y, *(t[:, :0] for t in parameters))
    y, parameters = inputs([(3,)] * 5, 2, 3)
    with pytest.raises(ValueError, match=r"must end in \(3, K\) = \(3, 2\)"):
        colour(y, *parameters[:3], parameters[3][:, :1])
    with pytest.raises(ValueError, match="three channels"):
        colour(y[:, :2], *parameters)
    with pytest.raises(ValueError, match="three channels"):
        colour(y[:, :1], *parameters)
