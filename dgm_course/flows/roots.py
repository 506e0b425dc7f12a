"""The one equation that planar and Sylvester flows have to solve to be inverted."""

from __future__ import annotations

import torch
from torch import Tensor


def tanh_root(y: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """The root a of ``a + slope * tanh(a + shift) = y``, which is unique for ``slope >= -1``.

    The left side rises with a, and a lies within ``|slope|`` of y: bisection to the last bit, safe for every
    input. Differentiable once, in all three arguments, by the implicit function theorem. Where slope is -1
    exactly the derivative is infinite at one point. Shapes broadcast. Ledger F4.
    """
    with torch.no_grad():
        low, high = y - slope.abs(), y + slope.abs()
        for _ in range(torch.finfo(low.dtype).bits):  # each halves the bracket: 32 or 64 times
            middle = 0.5 * (low + high)
            above = middle + slope * torch.tanh(middle + shift) > y
            high = torch.where(above, middle, high)
            low = torch.where(above, low, middle)
        a = 0.5 * (low + high)
        steepness = 1.0 + slope * (1.0 - torch.tanh(a + shift).square())
        steepness = steepness.clamp_min(torch.finfo(a.dtype).tiny)
    residual = a + slope * torch.tanh(a + shift) - y  # zero, up to rounding; its gradient is what is wanted
    return a - (residual - residual.detach()) / steepness
