"""Lecture 03's exercise about the affine coupling layer: its inverse direction and its log-determinant."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

# ---- affine_coupling: (B, d), (d/2, d) -> (B, d), (B,)

Pair = tuple[Tensor, Tensor]


@exercise("z from x, and the log-determinant of this direction, in nats",
          returns={"z": "tensor", "log_det": "tensor"}, library=("AffineCoupling",))
def affine_coupling(x: Tensor, weight: Tensor) -> Pair:
    return _solved(*_parts(x, weight))


def _solved(x1: Tensor, x2: Tensor, log_scale: Tensor, shift: Tensor) -> Pair:
    return torch.cat([x1, _undone(x2, log_scale, shift)], 1), (-log_scale).sum(1)


def _parts(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, x2 = x.chunk(2, 1)
    return x1, x2, *(x1 @ weight).chunk(2, 1)  # each (B, d/2)


def _undone(x2: Tensor, log_scale: Tensor, shift: Tensor) -> Tensor:
    return (x2 - shift) * torch.exp(-log_scale)


@affine_coupling.magnitude
def _(x: Tensor, weight: Tensor) -> Pair:
    x1, x2, log_scale, _ = _parts(x, weight)
    for_scale, for_shift = (x1.abs() @ weight.abs()).chunk(2, 1)
    second = (x2.abs() + for_shift) * torch.exp(-log_scale) * (1 + for_scale)
    return torch.cat([x1.abs(), second], 1), for_scale.sum(1)


@affine_coupling.inputs
def _(draw: Draw) -> Iterator[Case]:
    x, zero = torch.tensor([[1.0, -2.0, 0.5, 3.0]]), torch.zeros(2, 2)
    yield case("With weights of 0 the layer changes nothing.", x=x, weight=torch.zeros(2, 4))
    yield case("Where the log-scales are 0, the layer only shifts: it changes no volume.",
               x=x, weight=torch.cat([zero, torch.tensor([[1.0, 0.5], [-1.0, 2.0]])], 1))
    yield case("Where the shifts are 0, the layer only scales.",
               x=x, weight=torch.cat([torch.tensor([[0.5, -1.0], [0.25, 0.5]]), zero], 1))
    yield case(x=torch.tensor([[2.0, 5.0]]), weight=torch.tensor([[0.5, 1.0]]))
    yield case(x=torch.tensor([[1.0, 2.0, -1.0, 3.0]]),
               weight=torch.tensor([[1.0, -0.5, 0.5, 1.0], [0.25, 1.0, 1.0, -1.0]]))
    for _ in range(draw.count):
        rows, half, dtype = draw.integer(2, 4), draw.integer(1, 4), draw.dtype()
        weight = draw.choose([0.5, 1.0]) * draw.normal(half, 2 * half) / half**0.5
        yield case(x=1.5 * draw.normal(rows, 2 * half).to(dtype), weight=weight.to(dtype))


@affine_coupling.holds("The first half passes unchanged.")
def _(z: np.ndarray, log_det: np.ndarray, x: Tensor, weight: Tensor) -> bool:
    half = x.shape[1] // 2
    return bool(np.allclose(z[:, :half], x[:, :half].double().numpy()))


def _with(
    move: Callable[[Tensor, Tensor, Tensor], Tensor] = _undone,
    log_det: Callable[[Tensor], Tensor] = lambda s: -s.sum(1),
) -> Callable[[Tensor, Tensor], Pair]:
    """The layer with another second half, or another log-determinant."""

    def wrong(x: Tensor, weight: Tensor) -> Pair:
        x1, x2, log_scale, shift = _parts(x, weight)
        return torch.cat([x1, move(x2, log_scale, shift)], 1), log_det(log_scale)

    return wrong


def _turned(x: Tensor) -> Tensor:
    return torch.cat([*reversed(x.chunk(2, 1))], 1)


def _of_second_half(x: Tensor, weight: Tensor) -> Pair:
    z, log_det = _solved(*_parts(_turned(x), weight))
    return _turned(z), log_det


def _of_itself(x: Tensor, weight: Tensor) -> Pair:
    x1, x2 = x.chunk(2, 1)
    return _solved(x1, x2, *(x2 @ weight).chunk(2, 1))


def _alternating(x: Tensor, weight: Tensor) -> Pair:
    x1, x2 = x.chunk(2, 1)
    return _solved(x1, x2, (x1 @ weight)[:, ::2], (x1 @ weight)[:, 1::2])


def _swapped(x: Tensor, weight: Tensor) -> Pair:
    x1, x2, shift, log_scale = _parts(x, weight)
    return _solved(x1, x2, log_scale, shift)


def _halves_swapped(x: Tensor, weight: Tensor) -> Pair:
    z, log_det = _solved(*_parts(x, weight))
    return _turned(z), log_det


affine_coupling.misconceptions(
    sampled=(_with(lambda v, s, t: v * s.exp() + t, lambda s: s.sum(1)),
             "This is the sampling direction, from z to x. Solve it for z: which step has to be undone "
             "first?"),
    sampled_negative=(_with(lambda v, s, t: v * s.exp() + t),
                      "The log-determinant is that of the way from x to z, but the map is the way from z "
                      "to x. Solve that for z."),
    scaled_again=(_with(lambda v, s, t: (v - t) * s.exp()),
                  "The shift is undone, but the scale is applied once more. How is a multiplication undone?"),
    scaled_again_and_counted=(_with(lambda v, s, t: (v - t) * s.exp(), lambda s: s.sum(1)),
                              "The shift is undone, but the scale is applied once more, and counted so in "
                              "the log-determinant. How is a multiplication undone?"),
    shift_not_scaled=(_with(lambda v, s, t: v * torch.exp(-s) - t),
                      "Sampling scales first and shifts last. To undo that, which of the two goes first?"),
    shift_added=(_with(lambda v, s, t: (v + t) * torch.exp(-s)),
                 "The shift was added a second time. Sampling has added it already."),
    shift_lost=(_with(lambda v, s, t: v * torch.exp(-s)), "The shift is missing: sampling adds one."),
    additive=(_with(lambda v, s, t: v - t, lambda s: 0 * s.sum(1)),
              "This is an additive layer: it shifts only. Here sampling scales, too."),
    positive=(_with(log_det=lambda s: s.sum(1)),
              "The log-determinant is that of sampling. If sampling stretches, what does the way back do?"),
    no_log_det=(_with(log_det=lambda s: 0 * s.sum(1)),
                "The log-determinant is 0 only for a layer that shifts. This one scales, too."),
    scales_added=(_with(log_det=lambda s: torch.exp(-s).sum(1)),
                  "Scales were added up. A determinant multiplies them: what is to be added?"),
    sampling_scales_added=(_with(log_det=lambda s: -torch.exp(s).sum(1)),
                           "The scales of sampling were added up. What the network gives first are their "
                           "logarithms already."),
    determinant=(_with(log_det=lambda s: torch.exp(-s).prod(1)),
                 "This is the determinant. Its logarithm is asked for, and is simpler."),
    log_of_log=(_with(log_det=lambda s: -s.log().sum(1)),
                "A logarithm was taken of what is one already, and may be negative."),
    sizes_added=(_with(log_det=lambda s: -s.abs().sum(1)),
                 "The log-scales lost their signs. A scale below 1 has a negative logarithm, and should "
                 "have."),
    scale_is_no_log=(_with(lambda v, s, t: (v - t) / s, lambda s: -s.abs().log().sum(1)),
                     "The log-scale was used as the scale itself. It may be 0 or negative: which positive "
                     "number belongs to it?"),
    variance=(_with(lambda v, s, t: (v - t) * torch.exp(-s / 2), lambda s: -s.sum(1) / 2),
              "A half was put in, as if the log-scale were a variance's logarithm. It is the scale's."),
    per_dimension=(_with(log_det=lambda s: -s),
                   "These are the single dimensions' terms. The Jacobian is triangular: what do they give "
                   "together?"),
    dimension_mean=(_with(log_det=lambda s: -s.mean(1)),
                    "The log-scales were averaged. A determinant multiplies all of the scales."),
    batch_sum=(_with(log_det=lambda s: -s.sum()),
               "The log-determinant was summed over the batch, too. Each row has one of its own."),
    batch_mean=(_with(log_det=lambda s: -s.sum(1).mean()),
                "The log-determinant was averaged over the batch. Each row has one of its own."),
    over_batch=(_with(log_det=lambda s: -s.sum(0)),
                "The log-scales were summed over the batch. They have to be summed over the dimensions."),
    axis_kept=(_with(log_det=lambda s: -s.sum(1, keepdim=True)),
               "The axis that was summed over is still there in the log-determinant, with one entry. Let "
               "the sum drop it."),
    second_half_only=(lambda x, w: (_undone(*_parts(x, w)[1:]), -_parts(x, w)[2].sum(1)),
                      "Only the second half came back. The first half belongs to z, too."),
    halves_swapped=(_halves_swapped, "The halves of z have changed places: which of them passed unchanged?"),
    of_second_half=(_of_second_half, "The halves have changed roles: the network reads the first half, which "
                                     "passes, and moves the second."),
    of_itself=(_of_itself, "The second half was moved by what the network makes of itself: sampling could "
                           "not know it yet. The network reads the half that passes."),
    swapped=(_swapped, "Log-scale and shift have changed places: which columns come first?"),
    alternating=(_alternating, "The columns were dealt out in turn. The first half of them are the "
                               "log-scales."),
    order=(lambda x, w: _solved(*_parts(x, w))[::-1], "The two answers have changed places."),
)
