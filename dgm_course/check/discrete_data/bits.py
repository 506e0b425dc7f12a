"""Lecture 04's exercise about units: from nats of a density to bits per dimension of discrete data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

# ---- bits_per_dim: (B,), m, w -> (B,)


@exercise("the bits per dimension of each data point", library=("nats_to_bits_per_dim",))
def bits_per_dim(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    return _bits(log_prob, num_dims, bin_width)


def _bits(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    return -(log_prob / num_dims + math.log(bin_width)) / math.log(2)


@bits_per_dim.magnitude
def _(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    return (log_prob.abs() / num_dims + abs(math.log(bin_width))) / math.log(2)


@bits_per_dim.inputs
def _(draw: Draw) -> Iterator[Case]:
    widths = [1.0, 1 / 256, 2 / 255, 1 / 32, 0.5, 2.0, 1 / 17]
    for _ in range(draw.count):
        rows, dims, width = draw.integer(2, 5), draw.choose([6, 12, 49, 64, 192, 784]), draw.choose(widths)
        bits = draw.uniform(rows, low=0.7, high=7.0)
        log_prob = -dims * (bits * math.log(2) + math.log(width))
        yield case(log_prob=log_prob.to(draw.dtype()), num_dims=dims, bin_width=width)
    nats = torch.full((2,), -3 * math.log(256), dtype=torch.float64)
    yield case("A uniform model of 256 levels needs 8 bits per dimension.",
               log_prob=nats, num_dims=3, bin_width=1.0)
    yield case("A uniform model of 256 levels needs 8 bits per dimension, also where the data were scaled.",
               log_prob=torch.zeros(2, dtype=torch.float64), num_dims=3, bin_width=1 / 256)


def _of(combine: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, int, float], Tensor]:
    """What becomes of the nats per dimension, and of the logarithm of the width."""
    return lambda v, m, w: combine(v / m, math.log(w))


_LOG2 = math.log(2)

bits_per_dim.misconceptions(
    nats=(_of(lambda v, w: -(v + w)), "These are nats per dimension. How many nats has a bit?"),
    sign=(_of(lambda v, w: (v + w) / _LOG2),
          "Only the sign is wrong: likely data need few bits, and never less than none."),
    no_width=(_of(lambda v, w: -v / _LOG2),
              "The width of the bins is not used. A density of data that were scaled down is higher, and its "
              "bins are narrower: which mass has a bin?"),
    no_width_nats=(_of(lambda v, w: -v),
                   "These are nats per dimension of the density. Both the width of the bins and the unit are "
                   "missing."),
    width_sign=(_of(lambda v, w: -(v - w) / _LOG2),
                "The width of the bins has the wrong sign: is the mass of a narrow bin larger or smaller "
                "than that of a wide one?"),
    width_once=(lambda v, m, w: -(v + math.log(w)) / m / _LOG2,
                "The width was counted once for the whole data point. A bin is as wide in each of its "
                "dimensions."),
    width_not_logged=(lambda v, m, w: -(v / m + w) / _LOG2,
                      "The width was added as it is. A density times a width is a mass: what becomes of that "
                      "in logarithms?"),
    width_times_density=(lambda v, m, w: -v * w / m / _LOG2,
                         "The width multiplies a log-density. It is the density that it multiplies."),
    divided_by_width=(lambda v, m, w: -v / w / m / _LOG2,
                      "The log-density was divided by the width. What becomes of a factor in logarithms?"),
    width_converted_twice=(lambda v, m, w: -(v / m + math.log2(w)) / _LOG2,
                           "The width was converted into bits twice."),
    width_in_nats=(_of(lambda v, w: -v / _LOG2 - w),
                   "Bits and nats were mixed: the width's logarithm is still in nats."),
    density_in_nats=(lambda v, m, w: -v / m - math.log2(w),
                     "Bits and nats were mixed: the log-density is still in nats."),
    eight_bits=(_of(lambda v, w: -v / _LOG2 + 8),
                "Eight bits were added, whatever the width. That is right for one width only."),
    eight_bits_less=(_of(lambda v, w: -v / _LOG2 - 8),
                     "Eight bits were subtracted, whatever the width."),
    not_divided=(lambda v, m, w: -(v + math.log(w)) / _LOG2,
                 "The number of dimensions is missing, in both terms."),
    whole_point=(lambda v, m, w: -(v + m * math.log(w)) / _LOG2,
                 "These are the bits of the whole data point. How many are that for each dimension?"),
    whole_density=(lambda v, m, w: -v / _LOG2,
                   "These are the bits of the whole data point's density: neither the number of dimensions "
                   "nor the width of the bins is used."),
    width_many_times=(lambda v, m, w: -(v / m + m * math.log(w)) / _LOG2,
                      "The log-density is that of one dimension, but the width was counted for all of "
                      "them."),
    batch_counted=(lambda v, m, w: -(v / len(v) + math.log(w)) / _LOG2,
                   "The batch was counted. How many dimensions has a data point?"),
    multiplied=(_of(lambda v, w: -(v + w) * _LOG2),
                "The logarithm of 2 multiplies: a bit is less than a nat, so that more of them are needed."),
    decimal=(_of(lambda v, w: -(v + w) / math.log(10)),
             "These are decimal digits: a logarithm of base 10. Bits are asked for."),
    bytes=(_of(lambda v, w: -(v + w) / math.log(256)), "These are bytes. Bits are asked for."),
    tensor_log=(lambda v, m, w: -(v / m + torch.log(w)) / _LOG2,
                "A plain number was given to the logarithm of tensors: Python has one for numbers."),
    log_of_logs=(lambda v, m, w: -torch.log2(v) / m - math.log2(w),
                 "A logarithm was taken of what is one already. Only its unit has to change."),
    mean=(lambda v, m, w: _bits(v, m, w).mean(),
          "The batch was averaged. Keep one number for each data point."),
    total=(lambda v, m, w: _bits(v, m, w).sum(),
           "The batch was summed. Keep one number for each data point."),
    perplexity=(lambda v, m, w: torch.exp2(_bits(v, m, w)),
                "A power was taken in the end: these are numbers of equally likely levels. Bits are asked "
                "for."),
    rounded=(lambda v, m, w: _bits(v, m, w).round(),
             "The bits were rounded. An average over many dimensions may be any number."),
)  # fmt: skip
