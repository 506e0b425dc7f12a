"""Lecture 03's exercise about the reversible residual block: its inputs from its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

# ---- revnet_inverse: (B, k), (B, k), (k, k), (k, k) -> (B, k), (B, k)

Pair = tuple[Tensor, Tensor]
Branch = Callable[[Tensor], Tensor]


@exercise("the block's inputs from its outputs", returns={"x1": "tensor", "x2": "tensor"},
          library=("ReversibleBlock", "ReversibleSequence", "AdditiveCoupling"))
def revnet_inverse(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    return _undone(y1, y2, a, b)


def _undone(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    x2 = y2 - _branch(b)(y1)
    return y1 - _branch(a)(x2), x2


def _branch(matrix: Tensor) -> Branch:
    return lambda v: torch.tanh(v @ matrix)


@revnet_inverse.magnitude
def _(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    second = y2.abs() + 1 + y1.abs() @ b.abs()
    return y1.abs() + 1 + second @ a.abs(), second


@revnet_inverse.inputs
def _(draw: Draw) -> Iterator[Case]:
    zero, a, b = torch.zeros(2, 2), torch.tensor([[0.5, -1.0], [1.5, 0.25]]), torch.eye(2) / 2
    y1, y2 = torch.tensor([[1.0, -0.5]]), torch.tensor([[0.5, -1.0]])
    yield case("Where F and G are 0, the block changes nothing.", y1=y1, y2=y2, a=zero, b=zero)
    yield case("Where F is 0, x1 is y1.", y1=y1, y2=y2, a=zero, b=a)
    yield case("Where G is 0, x2 is y2.", y1=y1, y2=y2, a=a, b=zero)
    yield case(y1=y1, y2=y2, a=a, b=b)
    for _ in range(draw.count):
        rows, dims, dtype = draw.integer(2, 4), draw.integer(2, 4), draw.dtype()
        x, size = 1.5 * draw.normal(2, rows, dims), draw.choose([0.7, 1.5]) / dims**0.5
        weights = size * draw.normal(2, dims, dims)
        values = _forward(*x, *weights)
        names = ("y1", "y2", "a", "b")
        yield case(**{n: v.to(dtype) for n, v in zip(names, (*values, *weights), strict=True)})


def _forward(x1: Tensor, x2: Tensor, a: Tensor, b: Tensor) -> Pair:
    y1 = x1 + _branch(a)(x2)
    return y1, x2 + _branch(b)(y1)


@revnet_inverse.holds("Sent through the block, x1 and x2 give y1 and y2 back.")
def _(x1: np.ndarray, x2: np.ndarray, y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> bool:
    again = _forward(*(torch.as_tensor(v, dtype=torch.float64) for v in (x1, x2)), a.double(), b.double())
    return all(torch.allclose(mine, y.double(), atol=1e-4) for mine, y in zip(again, (y1, y2), strict=True))


def _x2_first(
    second: Callable[[Tensor, Tensor, Branch, Branch], Tensor],
    first: Callable[[Tensor, Tensor, Tensor, Branch, Branch], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Pair]:
    """x2 from y1, y2, F, G, and then x1 from y1, y2, x2, F, G."""

    def wrong(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
        x2 = second(y1, y2, _branch(a), _branch(b))
        return first(y1, y2, x2, _branch(a), _branch(b)), x2

    return wrong


def _x1_first(
    first: Callable[[Tensor, Tensor, Branch, Branch], Tensor],
    second: Callable[[Tensor, Tensor, Tensor, Branch, Branch], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Pair]:
    """x1 from y1, y2, F, G, and then x2 from y1, y2, x1, F, G."""

    def wrong(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
        x1 = first(y1, y2, _branch(a), _branch(b))
        return x1, second(y1, y2, x1, _branch(a), _branch(b))

    return wrong


def _linear(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    x2 = y2 - y1 @ b
    return y1 - x2 @ a, x2


def _tanh_first(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    x2 = y2 - torch.tanh(y1) @ b
    return y1 - torch.tanh(x2) @ a, x2


revnet_inverse.misconceptions(
    slide=(_x2_first(lambda y1, y2, f, g: y2 - f(y1), lambda y1, y2, x2, f, g: y1 - g(x2)),
           "F and G have changed places, as on the lecture's slide. Look at the block: which of the two "
           "was added to x2, and has to be taken off again?"),
    slide_from_outputs=(_x1_first(lambda y1, y2, f, g: y1 - g(y2), lambda y1, y2, x1, f, g: y2 - f(y1)),
                        "F and G have changed places, and x1 is found without x2. Which function was added "
                        "to which stream, and what did it read?"),
    slide_x1_first=(_x1_first(lambda y1, y2, f, g: y1 - g(y2), lambda y1, y2, x1, f, g: y2 - f(x1)),
                    "F and G have changed places, and x1 is found before x2. Undo the block's last step "
                    "first, with its own function."),
    from_outputs=(_x1_first(lambda y1, y2, f, g: y1 - f(y2), lambda y1, y2, x1, f, g: y2 - g(y1)),
                  "x2 is right, but F was taken at y2. The block had added F of x2: is that known by now?"),
    x1_first=(_x1_first(lambda y1, y2, f, g: y1 - f(y2), lambda y1, y2, x1, f, g: y2 - g(x1)),
              "The steps were undone in the order in which the block makes them. The last one has to be "
              "undone first: all that it read is known."),
    g_of_x1=(lambda y1, y2, a, b: (_undone(y1, y2, a, b)[0], y2 - _branch(b)(_undone(y1, y2, a, b)[0])),
             "x1 is right, but G was taken at x1. The second stream saw the first one when it was updated "
             "already."),
    g_of_y2=(_x2_first(lambda y1, y2, f, g: y2 - g(y2), lambda y1, y2, x2, f, g: y1 - f(x2)),
             "G was taken at y2 itself. Each stream is updated from the other one."),
    f_of_y1=(_x2_first(lambda y1, y2, f, g: y2 - g(y1), lambda y1, y2, x2, f, g: y1 - f(y1)),
             "x2 is right, but F was taken at y1 itself. Each stream is updated from the other one."),
    f_twice=(_x2_first(lambda y1, y2, f, g: y2 - f(y1), lambda y1, y2, x2, f, g: y1 - f(x2)),
             "F was used for both streams. The second stream was updated by G."),
    g_twice=(_x2_first(lambda y1, y2, f, g: y2 - g(y1), lambda y1, y2, x2, f, g: y1 - g(x2)),
             "x2 is right, but G was used for both streams. The first stream was updated by F."),
    forward=(_forward, "This is the block itself, applied to its outputs. It has to be undone."),
    plus=(_x2_first(lambda y1, y2, f, g: y2 + g(y1), lambda y1, y2, x2, f, g: y1 + f(x2)),
          "The order is right, but the functions were added once more. How is an addition undone?"),
    x1_plus=(_x2_first(lambda y1, y2, f, g: y2 - g(y1), lambda y1, y2, x2, f, g: y1 + f(x2)),
             "x2 is right. For x1, F was added once more: how is an addition undone?"),
    x2_plus=(_x2_first(lambda y1, y2, f, g: y2 + g(y1), lambda y1, y2, x2, f, g: y1 - f(x2)),
             "For x2, G was added once more: how is an addition undone?"),
    turned=(_x2_first(lambda y1, y2, f, g: g(y1) - y2, lambda y1, y2, x2, f, g: f(x2) - y1),
            "The differences are the wrong way round: what is to be taken off from what?"),
    x2_negative=(_x2_first(lambda y1, y2, f, g: g(y1) - y2, lambda y1, y2, x2, f, g: y1 - f(x2)),
                 "The difference for x2 is the wrong way round: what is to be taken off from what?"),
    x2_kept=(_x2_first(lambda y1, y2, f, g: y2, lambda y1, y2, x2, f, g: y1 - f(x2)),
             "The second stream was left as it is. The block has added G to it."),
    x1_kept=(_x2_first(lambda y1, y2, f, g: y2 - g(y1), lambda y1, y2, x2, f, g: y1),
             "x2 is right. The first stream was left as it is, but the block has added F to it."),
    order=(lambda *given: _undone(*given)[::-1], "The two streams came back in the wrong order: x1 first."),
    no_tanh=(_linear, "The tanh is missing: F and G are no linear maps."),
    tanh_first=(_tanh_first, "The tanh was applied before the matrix. In F and G it comes last."),
    transposed=(lambda y1, y2, a, b: _undone(y1, y2, a.T, b.T),
                "The matrices were transposed, as a Linear layer would do. Here a row vector meets them as "
                "they are."),
)
