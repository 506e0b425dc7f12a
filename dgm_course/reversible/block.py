"""The reversible residual block: two streams, each updated from the other, undone by subtraction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.reversible.repeatable import refuse_unrepeatable


class ReversibleBlock(nn.Module):
    """``y1 = x1 + F(x2)``, ``y2 = x2 + G(y1)``: a bijection for any F and G, invertible or not.

    The second stream sees the *updated* first one: G(x1) in its place would leave two equations that no
    subtraction can solve. ``f`` and ``g`` are modules that keep their input's shape (...). Shapes:
    ``x1, x2 (...) -> y1, y2 (...)``. A branch runs in its parameters' dtype (without parameters in the
    stream's) and the sums in the streams': float64 streams with float32 branches lose next to nothing on the
    way back. The Jacobian's determinant is 1.

    Gomez et al. 2017, "The reversible residual network". Ledger F8. Raises ``ValueError`` for a branch that
    is not a module or that changes the shape, and for streams of different shapes.
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        for name, branch in (("f", f), ("g", g)):
            if not isinstance(branch, nn.Module):
                raise ValueError(
                    f"{name} must be an nn.Module, so that its parameters are known, got "
                    f"{type(branch).__name__}: write the branch as a module with a forward method"
                )
        self.f = f
        self.g = g

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """``(x1, x2) -> (y1, y2)``, all of one shape (...)."""
        check_streams(x1, x2)
        y1 = x1 + run_branch(self.f, x2)
        y2 = x2 + run_branch(self.g, y1)
        return y1, y2

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        """``(y1, y2) -> (x1, x2)``: x2 = y2 - G(y1), then x1 = y1 - F(x2), as long to compute as forward.

        Raises ``ValueError`` too if a branch would not repeat itself (Dropout in training mode and the like).
        """
        check_streams(y1, y2)
        refuse_unrepeatable(self.modules())
        x2 = y2 - run_branch(self.g, y1)
        x1 = y1 - run_branch(self.f, x2)
        return x1, x2


def run_branch(branch: nn.Module, stream: Tensor) -> Tensor:
    """The branch's output at a stream, in the branch's own dtype: ``(...) -> (...)``.

    Raises ``ValueError`` if the branch changes the shape.
    """
    value = branch(stream.to(branch_dtype(branch, stream.dtype)))
    check_value(branch, stream, value)
    return value


def branch_dtype(branch: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of a branch's first floating-point parameter, or ``default`` if it has none."""
    return next((p.dtype for p in branch.parameters() if p.is_floating_point()), default)


def check_value(branch: nn.Module, stream: Tensor, value: Tensor) -> None:
    """``ValueError`` unless a branch's value has the shape of the stream that it was computed from."""
    if value.shape != stream.shape:
        raise ValueError(
            f"a branch must keep its input's shape, {tuple(stream.shape)}, got {tuple(value.shape)} from "
            f"{type(branch).__name__}: give its last layer as many outputs as its first has inputs, and pad "
            "convolutions"
        )


def check_streams(first: Tensor, second: Tensor) -> None:
    """``ValueError`` unless two streams have the same shape."""
    if first.shape != second.shape:
        raise ValueError(
            f"the two streams must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}: split "
            "the input in halves with x.chunk(2, dim)"
        )
