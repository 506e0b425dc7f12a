"""Bits per dimension of discrete data, whatever their scale; what the bounds refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from dequantizer_zoo import F64, levels, plane_flow, seeded
from torch import Tensor
from torch.distributions import Normal

from dgm_course.data import digits
from dgm_course.dequantization import (
    UniformDequantizer,
    bits_per_dim,
    importance_weighted_bound,
    uniform_bound,
    variational_bound,
)
from dgm_course.flows import Compose, FixedAffine, Flow


def test_the_uniform_model_has_eight_bits_and_that_of_the_digits_log2_of_17() -> None:
    y = torch.randint(256, (10, 12), generator=seeded())
    bound = uniform_bound(lambda x: x.new_full(x.shape[:-1], -12 * math.log(256.0)), y)
    torch.testing.assert_close(bits_per_dim(bound, 12, bin_width=1), torch.full((10,), 8.0))
    y = digits(binary=False).test_x
    inside = uniform_bound(lambda x: x.new_full(x.shape[:-1], -64 * math.log(17.0)), y)
    bits = bits_per_dim(inside, 64, bin_width=1)
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(17.0)))


@pytest.mark.parametrize(("width", "offset"), [(1 / 256, 0.0), (2 / 255, -1.0), (1 / 16, 0.5)])
def test_bits_per_dim_do_not_depend_on_the_scale_of_the_data(width: float, offset: float) -> None:
    """One flow on levels, and on ``offset + width * (levels + noise)``: the width makes up for it."""
    p, y = plane_flow(), levels(6, 2)
    scaled = Flow(Compose([*p.transform, FixedAffine(offset, width)]), 2)
    settings = {"num_samples": 3}
    bound = uniform_bound(p.log_prob, y, **settings, generator=seeded())
    other = uniform_bound(lambda x: scaled.log_prob(offset + width * x), y, **settings, generator=seeded())
    right = bits_per_dim(bound, 2, bin_width=1)
    torch.testing.assert_close(bits_per_dim(other, 2, bin_width=width), right)
    flattered = bits_per_dim(other, 2, bin_width=1)
    torch.testing.assert_close(right - flattered, torch.full((6,), -math.log2(width), dtype=F64))
    if width == 1 / 256:
        torch.testing.assert_close(right - flattered, torch.full((6,), 8.0, dtype=F64))


def test_bits_per_dim_keeps_shape_dtype_and_gradient() -> None:
    for dtype in (torch.float32, F64):
        log_prob = torch.tensor([[-3.0, 0.0], [5.0, -1e5]], dtype=dtype, requires_grad=True)
        bits = bits_per_dim(log_prob, 4, bin_width=0.5)
        assert bits.shape == (2, 2) and bits.dtype == dtype
        torch.testing.assert_close(bits, -(log_prob / 4 + math.log(0.5)) / math.log(2))
        (slope,) = torch.autograd.grad(bits.sum(), log_prob)
        torch.testing.assert_close(slope, torch.full_like(slope, -1 / (4 * math.log(2))))


# refusals -------------------------------------------------------------------------------------------------


def bound(log_prob: Callable[[Tensor], Tensor], **settings: object) -> Tensor:
    return variational_bound(log_prob, UniformDequantizer(), torch.zeros(5, 3), **settings)


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: bits_per_dim(torch.zeros(2), 4, bin_width=0), "bin_width must be a positive number, got 0"),
    (lambda: bits_per_dim(torch.zeros(2), 4, bin_width=-1.0), "distance of neighbouring levels"),
    (lambda: bits_per_dim(torch.zeros(2), 4, bin_width=math.nan), "got nan"),
    (lambda: bits_per_dim(torch.zeros(2), 4, bin_width=math.inf), "got inf"),
    (lambda: bits_per_dim(torch.zeros(2), 0, bin_width=1), "num_dims"),
    (lambda: bound(Normal(0.0, 1.0).log_prob), r"\(1, 5\) for \(1, 5, 3\), got \(1, 5, 3\): sum over"),
    (lambda: bound(lambda x: x.sum()), r"one number for each x, \(1, 5\) .* got \(\)"),
    (lambda: bound(lambda x: x.sum(-1).mean(0)), r"got \(5,\)"),
    (lambda: bound(lambda x: x.sum(-1).expand(2, 1, 5)), r"\(1, 5\) for \(1, 5, 3\), got \(2, 1, 5\)"),
    (lambda: uniform_bound(lambda x: x.sum(-1), torch.tensor([[0.25, 1.0]])),
     "y must hold levels, got values from 0.25 to 1: pass whole numbers, neither scaled nor with noise"),
    (lambda: uniform_bound(lambda x: x.sum(-1), torch.tensor([[torch.inf, 1.0]])), "from 1 to inf"),
    (lambda: bound(lambda x: x.sum(-1), num_samples=0), "num_samples must be at least 1, got 0"),
    (lambda: uniform_bound(lambda x: x.sum(-1), torch.zeros(3)), r"got shape \(3,\)"),
    (lambda: importance_weighted_bound(
        lambda x: x.sum(-1), UniformDequantizer(), torch.zeros(1, 2), num_samples=-1
    ), "the K of the bound"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
