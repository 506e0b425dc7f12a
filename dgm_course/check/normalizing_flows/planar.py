"""Lecture 03's exercise about the planar flow: its log-determinant, without a determinant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

# ---- planar_log_det: (B, d), (d,), (d,), number -> (B,)


@exercise("the planar flow's log-determinant at each z, in nats",
          library=("planar", "planar_inverse", "PlanarFlow", "sylvester"))
def planar_log_det(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    return _stretch(z, u, w, b).abs().log()


def _slope(a: Tensor) -> Tensor:
    return 1 - torch.tanh(a) ** 2


def _stretch(z: Tensor, u: Tensor, w: Tensor, b: float, slope: Callable[[Tensor], Tensor] = _slope) -> Tensor:
    return 1 + (u @ w) * slope(z @ w + b)  # (B,)


@planar_log_det.magnitude
def _(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    inside = 1 + (z.abs() @ w.abs() + abs(b))
    return (1 + u.norm() * w.norm() * inside) / _stretch(z, u, w, b).abs()


@planar_log_det.inputs
def _(draw: Draw) -> Iterator[Case]:
    z, u, w = torch.tensor([[2.0, -1.0], [0.5, 1.0]]), torch.tensor([1.0, 0.5]), torch.tensor([1.0, -0.5])
    yield case("Without u the map is the identity: it changes no volume.", z=z, u=0 * u, w=w, b=0.5)
    yield case("Where tanh is flat, the map only shifts: it changes no volume.", z=z, u=u, w=w, b=60.0)
    yield case("Where tanh is flat, the map only shifts: it changes no volume (far to the left, too).",
               z=z, u=u, w=w, b=-60.0)
    yield case(z=torch.tensor([[0.5, 0.5]]), u=torch.tensor([1.0, 2.0]), w=torch.tensor([1.0, 0.5]), b=-1.0)
    yield case(z=torch.tensor([[1.0, 0.5]]), u=torch.tensor([-4.0, 1.0]), w=torch.tensor([1.0, -1.0]), b=0.25)
    for _ in range(draw.count):
        rows, dims, dtype = draw.integer(2, 4), draw.integer(2, 5), draw.dtype()
        b, w = draw.choose([-1.5, -0.75, 0.5, 1.25]), draw.normal(dims)
        w = w / w.norm() * draw.uniform(low=0.7, high=2.0)
        low, high = draw.choose([(-8.0, -5.0), (-0.8, -0.3), (0.5, 3.0)])  # below -1: no bijection
        u = draw.normal(dims)
        u = u + (draw.uniform(low=low, high=high) - u @ w) * w / (w @ w)
        inside = draw.uniform(rows, low=0.3, high=1.2)
        inside = inside * torch.tensor([draw.choose([-1, 1]) for _ in range(rows)])
        z = draw.normal(rows, dims)
        z = z + (inside - b - z @ w)[:, None] * w / (w @ w)
        yield case(z=z.to(dtype), u=u.to(dtype), w=w.to(dtype), b=b)


def _with(slope: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    return lambda z, u, w, b: _stretch(z, u, w, b, slope).abs().log()


def _bent_back(shift: float) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """With u moved along w so that the map stays a bijection: Rezende & Mohamed's rule, or with a shift."""

    def answer(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
        along = u @ w
        wanted = torch.nn.functional.softplus(along + shift) - 1
        return _stretch(z, u + (wanted - along) * w / (w @ w), w, b).abs().log()

    return answer


planar_log_det.misconceptions(
    no_slope=(_with(torch.ones_like),
              "The slope of tanh is missing: where tanh is flat, the map changes no volume."),
    no_slope_scalar=(lambda z, u, w, b: (1 + u @ w).abs().log(),
                     "The slope of tanh is missing, and with it z: the change of volume differs from point "
                     "to point."),
    tanh_itself=(_with(torch.tanh), "A Jacobian holds derivatives: this is tanh itself, not its slope."),
    not_squared=(_with(lambda a: 1 - torch.tanh(a)),
                 "The slope of tanh is as steep to the left as to the right. Is a square missing?"),
    squared_outside=(_with(lambda a: (1 - torch.tanh(a)) ** 2),
                     "The slope of tanh is as steep to the left as to the right. What exactly is squared?"),
    plus_square=(_with(lambda a: 1 + torch.tanh(a) ** 2),
                 "This slope is largest where tanh is flat. A sign in the derivative is wrong."),
    slope_at_tanh=(_with(lambda a: _slope(torch.tanh(a))),
                   "The tanh was taken twice: its slope is needed at the number that goes in, not at the one "
                   "that comes out."),
    sigmoid_slope=(_with(lambda a: torch.tanh(a) * (1 - torch.tanh(a))),
                   "This is how a sigmoid's slope follows from its value. For tanh there is another rule."),
    no_bias=(lambda z, u, w, b: _stretch(z, u, w, 0.0).abs().log(),
             "The slope was taken without the bias: at which number does the map evaluate tanh?"),
    u_for_w=(lambda z, u, w, b: _stretch(z, w, u, b).abs().log(),
             "The two vectors have changed places: which of them does z meet inside tanh?"),
    constrained=(_bent_back(math.log(math.e - 1)),
                 "u was moved so that the map stays a bijection. The determinant for the u that is given is "
                 "asked for."),
    constrained_unshifted=(_bent_back(0.0),
                           "u was replaced by one for which the map is a bijection. The given u has a "
                           "determinant, too, whether the map folds or not."),
    no_abs=(lambda z, u, w, b: _stretch(z, u, w, b).log(),
            "The determinant may be negative, if u points far enough against w: volumes change by its size."),
    abs_of_term=(lambda z, u, w, b: (1 + (_stretch(z, u, w, b) - 1).abs()).log(),
                 "The absolute value came too early: where u points against w, the map may shrink volumes."),
    abs_outside=(lambda z, u, w, b: _stretch(z, u, w, b).abs().log().abs(),
                 "The absolute value was taken of the logarithm. Where the map shrinks volumes it has to "
                 "stay negative."),
    log_missing=(lambda z, u, w, b: _stretch(z, u, w, b).abs(),
                 "This is the size of the determinant. Its logarithm is asked for."),
    plain_determinant=(lambda z, u, w, b: _stretch(z, u, w, b),
                       "This is the determinant. The logarithm of its size is asked for."),
    no_identity=(lambda z, u, w, b: (_stretch(z, u, w, b) - 1).abs().log(),
                 "The map keeps z and adds to it: without u, its determinant has to be 1."),
    minus=(lambda z, u, w, b: (2 - _stretch(z, u, w, b)).abs().log(),
           "A sign inside the determinant is wrong: if u points along w, the map stretches."),
    negative=(lambda z, u, w, b: -_stretch(z, u, w, b).abs().log(),
              "Only the sign is wrong: this is the log-determinant of the way back."),
    each_dimension=(lambda z, u, w, b: (1 + u * w * _slope(z @ w + b)[:, None]).abs().log().sum(1),
                    "The dimensions were treated one by one, as if the Jacobian were diagonal. Everywhere u "
                    "meets w, it has an entry."),
    not_summed=(lambda z, u, w, b: (1 + u * w * _slope(z @ w + b)[:, None]).abs().log(),
                "There is still one number for each dimension. Vectors u and w meet in one scalar product."),
    log_slope=(lambda z, u, w, b: _slope(z @ w + b).log(),
               "This is the logarithm of tanh's slope alone. The map adds to z, in the direction of u."),
    axis_kept=(lambda z, u, w, b: _stretch(z, u, w, b).abs().log()[:, None],
               "There is an axis of one entry left. Keep one number for each z."),
    batch_mean=(lambda z, u, w, b: _stretch(z, u, w, b).abs().log().mean(),
                "The batch was averaged. Keep one number for each z."),
    batch_sum=(lambda z, u, w, b: _stretch(z, u, w, b).abs().log().sum(),
               "The batch was summed. Keep one number for each z."),
)
