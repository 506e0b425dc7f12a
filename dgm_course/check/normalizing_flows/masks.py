"""Lecture 03's exercise about MADE: the two masks of a network with one hidden layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

# ---- made_masks: (m,), (H,) -> (m, H), (H, m)

Pair = tuple[Tensor, Tensor]


@exercise("which input each hidden unit may read, and which hidden unit each output",
          returns={"input_mask": "mask", "output_mask": "mask"}, library=("causal_mask", "MaskedMLP"))
def made_masks(input_degrees: Tensor, hidden_degrees: Tensor) -> Pair:
    return _reads(input_degrees, hidden_degrees), _feeds(hidden_degrees, input_degrees)


def _reads(inputs: Tensor, hidden: Tensor) -> Tensor:
    return inputs[:, None] <= hidden  # (m, H)


def _feeds(hidden: Tensor, outputs: Tensor) -> Tensor:
    return hidden[:, None] < outputs  # (H, m)


@made_masks.inputs
def _(draw: Draw) -> Iterator[Case]:
    two, three = torch.tensor([2, 1]), torch.tensor([3, 1, 2])
    yield case("A hidden unit of degree 0 reads nothing, and feeds every output.",
               input_degrees=two, hidden_degrees=torch.tensor([0, 0, 0]))
    yield case("A hidden unit of the highest degree reads everything, and feeds nothing.",
               input_degrees=two, hidden_degrees=torch.tensor([2, 2, 2]))
    yield case(input_degrees=two, hidden_degrees=torch.tensor([1, 0, 2]))
    yield case(input_degrees=three, hidden_degrees=torch.tensor([1, 2]))
    yield case(input_degrees=three, hidden_degrees=torch.tensor([2, 0, 1]))
    for _ in range(draw.count):
        inputs, units = draw.integer(2, 6), draw.integer(2, 7)
        degrees = torch.tensor([draw.integer(0, inputs) for _ in range(units)])
        yield case(input_degrees=draw.normal(inputs).argsort() + 1, hidden_degrees=degrees)


def _paths(input_mask: np.ndarray, output_mask: np.ndarray) -> np.ndarray:
    return (input_mask != 0).astype(int) @ (output_mask != 0).astype(int)  # (m, m)


@made_masks.holds("No output depends on the input of its own degree.")
def _(input_mask: np.ndarray, output_mask: np.ndarray, input_degrees: Tensor, hidden_degrees: Tensor) -> bool:
    return not _paths(input_mask, output_mask).diagonal().any()


@made_masks.holds("No output depends on an input of a higher degree.")
def _(input_mask: np.ndarray, output_mask: np.ndarray, input_degrees: Tensor, hidden_degrees: Tensor) -> bool:
    later = (input_degrees[:, None] > input_degrees).numpy()
    return not _paths(input_mask, output_mask)[later].any()


@made_masks.holds("No connection that the degrees allow is missing.")
def _(input_mask: np.ndarray, output_mask: np.ndarray, input_degrees: Tensor, hidden_degrees: Tensor) -> bool:
    right = made_masks.reference(input_degrees, hidden_degrees)
    masks = zip(right, (input_mask, output_mask), strict=True)
    return not any((mask.numpy() & (mine == 0)).any() for mask, mine in masks)


def _sorted(degrees: Tensor) -> Tensor:
    return torch.arange(1, len(degrees) + 1)


def _cycled(degrees: Tensor, hidden: Tensor) -> Tensor:
    return torch.arange(len(hidden)) % max(len(degrees) - 1, 1) + 1


made_masks.misconceptions(
    both_strict=(lambda i, h: (i[:, None] < h, _feeds(h, i)),
                 "Both masks are strict, so that an output misses the input just before it. A hidden unit "
                 "may read an input of its own degree."),
    both_loose=(lambda i, h: (_reads(i, h), h[:, None] <= i),
                "Neither mask is strict, so that an output can read its own input, by way of a hidden unit "
                "of its own degree."),
    strictness_swapped=(lambda i, h: (i[:, None] < h, h[:, None] <= i),
                        "This is autoregressive, too, but by the other convention: here it is the output "
                        "that has to be strict, and a hidden unit of degree k may read the input of degree "
                        "k."),
    both_transposed=(lambda i, h: (_reads(i, h).T, _feeds(h, i).T),
                     "Both masks are transposed: that is how a Linear layer stores its weight. Here a row is "
                     "for what is read, a column for what reads it."),
    input_transposed=(lambda i, h: (_reads(i, h).T, _feeds(h, i)),
                      "The input mask is transposed: a row is for an input, a column for a hidden unit."),
    output_transposed=(lambda i, h: (_reads(i, h), _feeds(h, i).T),
                       "The output mask is transposed: a row is for a hidden unit, a column for an output."),
    both_reversed=(lambda i, h: (i[:, None] >= h, h[:, None] > i),
                   "Both comparisons point the wrong way: every output reads what comes after it."),
    input_reversed=(lambda i, h: (i[:, None] >= h, _feeds(h, i)),
                    "The comparison of the input mask points the wrong way: hidden units read inputs of "
                    "higher degrees."),
    output_reversed=(lambda i, h: (_reads(i, h), h[:, None] > i),
                     "The comparison of the output mask points the wrong way: outputs read hidden units of "
                     "higher degrees."),
    by_position=(lambda i, h: (_reads(_sorted(i), h), _feeds(h, _sorted(i))),
                 "The inputs were taken in the order in which they are stored. It is their degrees that give "
                 "the order."),
    input_by_position=(lambda i, h: (_reads(_sorted(i), h), _feeds(h, i)),
                       "For the input mask the inputs were taken in the order in which they are stored. It "
                       "is their degrees that give the order."),
    output_by_position=(lambda i, h: (_reads(i, h), _feeds(h, _sorted(i))),
                        "For the output mask the outputs were taken in the order in which they are stored. "
                        "An output has the degree of its input."),
    inverse_order=(lambda i, h: (_reads(i.argsort() + 1, h), _feeds(h, i.argsort() + 1)),
                   "Sorting tells which input comes first, which second. A degree is the other way round: "
                   "the place that an input has."),
    triangles=(lambda i, h: (torch.ones(len(i), len(h)).triu(), torch.ones(len(h), len(i)).triu(1)),
               "These are triangles: they go by the position of the units. Compare degrees."),
    hidden_by_position=(lambda i, h: (_reads(i, _cycled(i, h)), _feeds(_cycled(i, h), i)),
                        "The hidden units were given degrees in turn. Theirs are passed in."),
    hidden_clamped=(lambda i, h: (_reads(i, h.clamp(1, max(len(i) - 1, 1))),
                                  _feeds(h.clamp(1, max(len(i) - 1, 1)), i)),
                    "The degrees of hidden units were moved off the ends. Units of degree 0 or of the "
                    "highest degree are of little use, but allowed here."),
    zero_based=(lambda i, h: (_reads(i - 1, h), _feeds(h, i - 1)),
                "The degrees of the inputs were counted from 0. They start at 1, and those of the hidden "
                "units are meant for that."),
    inverted=(lambda i, h: (~_reads(i, h), ~_feeds(h, i)),
              "Zeros and ones have changed places: 1 means that a connection is there."),
    direct=(lambda i, h: (_reads(i, h), i[:, None] < i),
            "The second mask connects inputs and outputs, past the hidden units. What may an output read of "
            "those?"),
    same_mask=(lambda i, h: (_reads(i, h), _reads(i, h).T),
               "The second mask is the first, turned over: then an output reads just the units that read its "
               "own input."),
    order=(lambda i, h: (_feeds(h, i), _reads(i, h)), "The two masks have changed places."),
    everything=(lambda i, h: (torch.ones(len(i), len(h)), torch.ones(len(h), len(i))),
                "Nothing is masked: every output reads every input."),
)
