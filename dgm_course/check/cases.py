"""The inputs of an exercise: drawn from a seed, handed out as fresh copies, shown in one short line."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

#: How many random inputs an exercise draws, beside its edge cases.
RANDOM_INPUTS = 20


@dataclass(frozen=True, eq=False)
class Case:
    """One input: arguments in the order of the student's signature, and the property it is there to show."""

    arguments: Mapping[str, Any]
    title: str = ""

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype that a tensor answer has to follow; None where no argument is a float tensor."""
        floats = (v.dtype for v in self.arguments.values() if isinstance(v, Tensor) and v.is_floating_point())
        return next(floats, None)

    @property
    def size(self) -> float:
        """How much there is to look at: a tensor counts by its entries, a number by its size."""
        values = self.arguments.values()
        return sum(v.numel() for v in values if isinstance(v, Tensor)) + sum(
            abs(v) for v in values if isinstance(v, int | float)
        )

    @property
    def thin(self) -> bool:
        """Whether a tensor has an axis of length 1: it hides which axis went wrong."""
        return any(1 in v.shape for v in self.arguments.values() if isinstance(v, Tensor))

    def fresh(self) -> list[Any]:
        """The arguments, with tensors copied so that no answer can touch the originals.

        A copy of a tensor that requires grad does too. As in a model it is computed from something else, so
        that it can be changed in place (see :meth:`changed`).
        """
        return [_copy(v) if isinstance(v, Tensor) else v for v in self.arguments.values()]

    def changed(self, given: Sequence[Any]) -> tuple[str, ...]:
        """The names of the tensors in ``given`` (made by :meth:`fresh`) that no longer are the originals."""
        return tuple(
            name
            for (name, mine), theirs in zip(self.arguments.items(), given, strict=True)
            if isinstance(mine, Tensor) and not _same(mine, theirs)
        )

    def show(self) -> str:
        """The arguments in one line: small tensors whole, larger ones by shape and range."""
        return ", ".join(f"{name} = {_show(value)}" for name, value in self.arguments.items())


def case(title: str = "", /, **arguments: object) -> Case:
    """A :class:`Case`: ``case(mean=m, log_var=v)``, or with the property it shows as a first argument."""
    return Case(arguments, title)


class Draw:
    """What an input generator draws from: the same seed gives the same cases on every machine."""

    def __init__(self, seed: int, count: int = RANDOM_INPUTS) -> None:
        self.count = count
        self._generator = torch.Generator().manual_seed(seed)
        self._dice = random.Random(seed)
        self._dtypes = itertools.cycle([torch.float32, torch.float64])

    def dtype(self) -> torch.dtype:
        """float32 and float64 in turn."""
        return next(self._dtypes)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self._generator, dtype=dtype)

    def uniform(self, *shape: int, low: float, high: float, dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform numbers on [low, high)."""
        return low + (high - low) * torch.rand(shape, generator=self._generator, dtype=dtype)

    def integer(self, low: int, high: int) -> int:
        """A whole number, ``low <= number <= high``."""
        return self._dice.randint(low, high)

    def choose(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]


def number(value: float) -> str:
    """A number in at most four digits."""
    return f"{float(value):.4g}"


def _copy(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad).clone()


def _same(mine: Tensor, theirs: Tensor) -> bool:
    if (mine.shape, mine.dtype, mine.device) != (theirs.shape, theirs.dtype, theirs.device):
        return False
    if mine.requires_grad and not theirs.requires_grad:  # cut off from what it was computed from
        return False
    values = mine.detach().numpy(), theirs.detach().numpy()
    return bool(np.array_equal(*values, equal_nan=mine.is_floating_point()))


def _show(value: object) -> str:
    if isinstance(value, Tensor):
        kinds = [] if value.dtype == torch.float32 else [str(value.dtype).removeprefix("torch.")]
        kinds += ["requires grad"] if value.requires_grad else []
        kind = f" ({', '.join(kinds)})" if kinds else ""
        value = value.detach()
        if value.numel() <= 8:
            return _nested(value.tolist()) + kind
        low, high = number(value.min()), number(value.max())
        return f"tensor of shape {tuple(value.shape)}{kind} with entries from {low} to {high}"
    if isinstance(value, float):
        return number(value)
    return repr(value)


def _nested(values: object) -> str:
    if isinstance(values, list):
        return "[" + ", ".join(_nested(v) for v in values) + "]"
    return number(values) if isinstance(values, float) else str(values)
