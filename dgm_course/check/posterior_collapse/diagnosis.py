"""Lecture 01's exercises about collapse itself: units that stay active, a decoder that sees its pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

# ---- active_units: (n, d), threshold -> count


@exercise("how many latent units are active", returns="count")
def active_units(means: Tensor, threshold: float = 0.01) -> int:
    return int((_variance(means) > threshold).sum())


def _variance(means: Tensor) -> Tensor:
    return (means - means.mean(0)).square().mean(0)  # (d,)


@active_units.inputs
def _(draw: Draw) -> Iterator[Case]:
    yield case("A unit that never moves is not active.", means=torch.ones(4, 3))
    yield case("To be active, a unit has to exceed the threshold.", means=torch.zeros(4, 2), threshold=0.0)
    yield case("A single data point shows no activity.", means=torch.tensor([[3.0, -2.0]]))
    yield case("The threshold is 0.01 if none is given.", means=torch.tensor([[0.0, 0.0], [1.0, 0.02]]))
    yield case(means=torch.tensor([[0.0], [0.0], [0.0], [0.22]]))  # 0.0091 by 1/n, 0.0121 by 1/(n - 1)
    yield case(means=torch.tensor([[1.0, -1.0, 3.0], [1.0, 1.0, 3.0]]), threshold=0.1)
    for _ in range(draw.count):
        rows, units, threshold = draw.integer(4, 9), draw.integer(1, 6), draw.choose([0.01, 0.1, 1.0])
        near = 1 - 0.5 / rows  # of the threshold: between the variances by 1/n and by 1/(n - 1)
        ratios = torch.tensor([draw.choose([0.02, 0.5, near, near, 2.0, 30.0]) for _ in range(units)])
        noise = draw.normal(rows, units)
        noise = (noise - noise.mean(0)) / _variance(noise).sqrt() * (ratios * threshold).sqrt()
        yield case(means=(noise + draw.uniform(units, low=-1, high=1)).to(draw.dtype()), threshold=threshold)


active_units.misconceptions(
    sample_variance=(lambda m, t=0.01: int((m.var(0) > t).sum()),
                     "The variance of a sample (n - 1) was taken. Here the n points are all there is."),
    over_units=(lambda m, t=0.01: int((m.var(1, correction=0) > t).sum()),
                "The variance was taken over the units. It has to be taken over the data points."),
    whole_matrix=(lambda m, t=0.01: int(m.var(correction=0) > t),
                  "This is one variance of the whole matrix. Each unit has a variance of its own."),
    whole_matrix_sample=(lambda m, t=0.01: int(m.var() > t),
                         "This is one variance of the whole matrix, as of a sample (n - 1). Each unit has a "
                         "variance of its own, and the n points are all there is."),
    standard_deviation=(lambda m, t=0.01: int((_variance(m).sqrt() > t).sum()),
                        "The standard deviation was compared with a threshold that is for variances."),
    second_moment=(lambda m, t=0.01: int((m.square().mean(0) > t).sum()),
                   "This measures how far a unit is from 0. Active is one that moves with the data."),
    inactive=(lambda m, t=0.01: int((_variance(m) <= t).sum()), "These are the units that are not active."),
    at_threshold=(lambda m, t=0.01: int((_variance(m) >= t).sum()),
                  "A unit that only just reaches the threshold was counted. It has to exceed it."),
    fixed_threshold=(lambda m, t=0.01: int((_variance(m) > 0.01).sum()),
                     "The threshold is fixed inside the function. Use the one that is passed in."),
    which_units=(lambda m, t=0.01: _variance(m) > t, "This says which units are active. How many are they?"),
    share=(lambda m, t=0.01: float((_variance(m) > t).double().mean()),
           "This is a share of the units. How many are they?"),
)

# ---- causal_mask: num_pixels, window -> (m, m)


@exercise("which inputs each output may read", returns="mask", library=("causal_window_mask", "MaskedMLP"))
def causal_mask(num_pixels: int, window: int) -> Tensor:
    return _between(num_pixels, 1, window)


def _between(num_pixels: int, low: int, high: int) -> Tensor:
    back = torch.arange(num_pixels) - torch.arange(num_pixels)[:, None]  # (m, m), [i, j]: j - i
    return (back >= low) & (back <= high)


@causal_mask.inputs
def _(draw: Draw) -> Iterator[Case]:
    yield case("With a window of 0 nothing may be read.", num_pixels=3, window=0)
    yield case("A single pixel has nothing to read.", num_pixels=1, window=2)
    yield case(num_pixels=5, window=2)
    for _ in range(draw.count):
        num_pixels = draw.integer(1, 9)
        yield case(num_pixels=num_pixels, window=draw.integer(1, num_pixels + 1))


@causal_mask.holds("No output may read its own input.")
def _(mask: np.ndarray, num_pixels: int, window: int) -> bool:
    return not mask.diagonal().any()


@causal_mask.holds("No output may read a later input (rows are inputs, columns are outputs).")
def _(mask: np.ndarray, num_pixels: int, window: int) -> bool:
    return not np.tril(mask, -1).any()


def _filled(num_pixels: int, places: list[tuple[int, int]]) -> Tensor:
    mask = torch.zeros(num_pixels, num_pixels)
    for place in places:
        mask[place] = 1
    return mask


causal_mask.misconceptions(
    transposed=(lambda m, w: _between(m, 1, w).T, "The mask is transposed: a row is for an input."),
    with_diagonal=(lambda m, w: _between(m, 0, w), "Every output may read its own input, and copy it."),
    shifted=(lambda m, w: _between(m, 0, w - 1),
             "The window is shifted by one: it holds the pixel itself, and leaves out the furthest."),
    too_short=(lambda m, w: _between(m, 1, w - 1), "The window is one pixel too short."),
    too_long=(lambda m, w: _between(m, 1, w + 1), "The window is one pixel too long."),
    no_window=(lambda m, w: _between(m, 1, m), "The window is ignored: everything earlier is readable."),
    upper_triangle=(lambda m, w: _between(m, 0, m),
                    "The window is ignored, and every output may read its own input."),
    lower_triangle=(lambda m, w: _between(m, 1, m).T,
                    "Every output reads what comes later, and the window is ignored. Rows are inputs here."),
    lower_with_diagonal=(lambda m, w: _between(m, 0, m).T,
                         "Every output reads itself and what comes later, and the window is ignored: "
                         "rows are inputs here."),
    transposed_with_diagonal=(lambda m, w: _between(m, 0, w).T,
                              "The mask is transposed, and every output may read its own input."),
    both_sides_with_diagonal=(lambda m, w: _between(m, 0, w) | _between(m, 0, w).T,
                              "The window reaches to both sides, and holds the pixel itself."),
    past_the_last=(lambda m, w: _filled(m, [(i, i + k) for i in range(m) for k in range(1, w + 1)]),
                   "Near an edge the window may reach past the last pixel, or before the first."),
    before_the_first=(lambda m, w: _filled(m, [(j - k, j) for j in range(m) for k in range(1, w + 1)]),
                      "The first pixels' window reaches before the first pixel, and a negative index counts "
                      "from the end."),
    both_sides=(lambda m, w: _between(m, 1, w) | _between(m, 1, w).T,
                "The window reaches to both sides. Later pixels must stay hidden."),
    inverted=(lambda m, w: ~_between(m, 1, w), "Zeros and ones have changed places: 1 means readable."),
    far_end_only=(lambda m, w: _between(m, max(w, 1), w), "Only the far end of the window is readable."),
    beyond_window=(lambda m, w: _between(m, w + 1, m), "What the window should show is what it hides."),
)
