"""Log-weights to draw: close to 0, and as far from it as those of a model of images."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.check.cases import Draw

#: Columns at -1000 and 1000, and one whose entries are 400 apart: too far for float32 from anything but the
#: largest. Small enough to be shown whole.
FAR = torch.tensor([[-1000.0, 1000.0, 200.0], [-1001.0, 1002.0, -200.0]])

#: The same for small numbers: here every mistake shows.
NEAR = torch.tensor([[0.0, -1.0], [1.0, 1.5], [-0.5, 0.5]])


def draw_log_weights(draw: Draw, num_samples: int, num_rows: int) -> Tensor:
    """Log-weights ``(K, B)``, in float32 and float64 in turn; in half of them each x has its own level."""
    noise = draw.normal(num_samples, num_rows)
    if draw.choose([True, False]):
        return (draw.choose([0.5, 1.0, 2.0]) * noise).to(draw.dtype())
    levels = torch.tensor([draw.choose([-1000.0, -100.0, 0.0, 100.0, 1000.0]) for _ in range(num_rows)])
    spreads = torch.tensor([draw.choose([0.5, 2.0, 300.0]) for _ in range(num_rows)])
    return (levels + spreads * noise).to(draw.dtype())


def shares_by_exp(log_w: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """Normalised weights by way of the weights themselves, which overflow or vanish."""
    w = torch.exp(log_w - shift)
    return w / w.sum(0)


def rounded(log_w: Tensor) -> Tensor:
    """By how many rounding errors a weight may be off, as a part of itself: for each x, ``(K, B) -> (B,)``.

    A float that is near -1000 is off by a thousand times more than one near 1, and so is, relatively, what
    its exponential is. The check allows for a thousand errors already: ten times more for that leaves room.
    """
    return log_w.abs().amax(0) / 100
