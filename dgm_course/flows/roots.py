"""What planar and Sylvester flows have in common: ``a + slope tanh(a + shift)`` along one number a."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: softplus of it is 1: where constrained parameters start from "no constraint felt"
LOG_E_MINUS_1 = math.log(math.e - 1.0)


def tanh_root(y: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """The root a of ``a + slope * tanh(a + shift) = y``, which is unique for ``slope >= -1``.

    The left side rises with a, and a lies within ``|slope|`` of y: bisection to the last bit, safe for every
    input. First and second derivatives, in all three arguments, are those of the implicit function; higher
    ones are not. Where slope is -1 exactly they are infinite at one point. Shapes broadcast. Ledger F4.
    """
    with torch.no_grad():
        low, high = y - slope.abs(), y + slope.abs()
        for _ in range(torch.finfo(low.dtype).bits):  # each halves the bracket: 32 or 64 times
            middle = 0.5 * (low + high)
            above = middle + slope * torch.tanh(middle + shift) > y
            high = torch.where(above, middle, high)
            low = torch.where(above, low, middle)
        a = 0.5 * (low + high)
    for _ in range(2):  # Newton steps of length zero: one carries first derivatives, two carry second ones
        bend = torch.tanh(a + shift)
        residual = a + slope * bend - y
        steepness = (1.0 + slope * (1.0 - bend.square())).clamp_min(torch.finfo(a.dtype).tiny)
        a = a - (residual - residual.detach()) / steepness
    return a


def log_abs_slope(bend: Tensor, room: Tensor) -> Tensor:
    """``log|1 + slope (1 - bend^2)|`` with ``bend = tanh(.)`` and ``room = 1 + slope``, in nats.

    Written as ``bend^2 + room (1 - bend^2)``, two terms of one sign for a bijection: nothing cancels.
    """
    square = bend.square()
    return torch.log(torch.abs(square + room * (1.0 - square)))
