"""What came back from an answer, taken out as plain data.

A student's object is never asked what it equals or what it is worth: only exact built-in types, tensors and
arrays are read (no subclass), and they are copied into float64 arrays. All later comparisons see the copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Most numbers that are copied out of one returned value: no exercise has an answer near this size.
MOST_NUMBERS = 1_000_000

_NUMPY_NUMBERS = frozenset(
    {np.bool_, np.float16, np.float32, np.float64}
    | {np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64}
)


@dataclass(frozen=True)
class Part:
    """One returned value: what it was (``kind``), and, where it was numbers, a float64 copy of them."""

    kind: str  # tensor, array, list, number, stub (Ellipsis), none, or object: anything else
    type_name: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    device: str = "cpu"
    values: np.ndarray | None = None  # None too where the value is too large to copy
    tracked: bool = False  # a tensor that requires grad, or a list that holds one

    @property
    def whole(self) -> bool:
        """Whether the numbers are integers or booleans by type."""
        return not self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True)
class Outcome:
    """One call of an answer: its parts, or the error it ended with, and what it did on the way."""

    parts: tuple[Part, ...] = ()
    error: str = ""  # "ZeroDivisionError: division by zero"
    line: str = ""  # the student's line that raised it
    changed: tuple[str, ...] = ()  # inputs that were changed in place
    printed: str = ""


def error_text(error: BaseException) -> str:
    """The error's name and its first words in one line, at most 160 characters.

    Where the first line only announces a list ("..., but expected one of:") it is shown without the
    announcement, and where it ends with a colon otherwise, with what follows.
    """
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # an exception whose __str__ fails still has a name
        lines = []
    words = lines[0].rstrip().removesuffix("but expected one of:").rstrip(" ,;") if lines else ""
    if words.endswith(":") and len(lines) > 1:
        words = f"{words} {lines[1].strip()}"
    text = type(error).__name__ + (f": {words}" if words else "")
    return text if len(text) <= 160 else text[:157] + "..."


def take_out(raw: object, num_parts: int = 1) -> tuple[Part, ...]:
    """The plain data in ``raw``.

    Where several parts are asked for, a tuple or list of that many is split; anything else stays one part.
    """
    if num_parts > 1 and type(raw) in (tuple, list) and len(raw) == num_parts:  # type: ignore[arg-type]
        return tuple(take_part(item) for item in raw)  # type: ignore[attr-defined]
    return (take_part(raw),)


def take_part(raw: object, depth: int = 0) -> Part:
    """The plain data in one returned value. Reads exact types only, so that no code of the student runs."""
    kind = type(raw)
    if raw is None:
        return Part("none")
    if raw is Ellipsis:
        return Part("stub")
    if kind in (bool, int, float):
        return _number(raw)  # type: ignore[arg-type]
    if kind in _NUMPY_NUMBERS:
        return Part("number", kind.__name__, dtype=kind.__name__, values=np.array(float(raw)))  # type: ignore[arg-type]
    if kind is Tensor or kind is torch.nn.Parameter:
        return _tensor(raw)  # type: ignore[arg-type]
    if kind is np.ndarray:
        return _array(raw)  # type: ignore[arg-type]
    if kind in (list, tuple):
        return _list(raw, depth)  # type: ignore[arg-type]
    return Part("object", kind.__name__)


def _number(raw: float) -> Part:
    kind = type(raw).__name__
    try:
        value = float(raw)
    except OverflowError:  # an integer beyond float64
        value = math.inf
    return Part("number", kind, dtype="float64" if kind == "float" else kind, values=np.array(value))


def _tensor(raw: Tensor) -> Part:
    dtype = str(raw.dtype).removeprefix("torch.")
    if raw.layout != torch.strided or raw.is_complex() or raw.is_quantized or raw.is_meta or raw.is_nested:
        return Part("object", f"{dtype} tensor that is sparse, complex, nested or without data")
    values = None
    if raw.numel() <= MOST_NUMBERS:
        values = raw.detach().to("cpu", torch.float64).resolve_neg().numpy().copy()
    return Part("tensor", "tensor", tuple(raw.shape), dtype, str(raw.device), values, raw.requires_grad)


def _array(raw: np.ndarray) -> Part:
    if raw.dtype.kind not in "biuf":
        return Part("object", f"array of {raw.dtype.name}")
    values = raw.astype(np.float64) if raw.size <= MOST_NUMBERS else None
    return Part("array", "array", raw.shape, raw.dtype.name, values=values)


def _list(raw: list[object] | tuple[object, ...], depth: int) -> Part:
    name = type(raw).__name__
    if len(raw) > MOST_NUMBERS:
        return Part("list", name, (len(raw),))
    if depth > 8:
        return Part("object", f"{name} within a {name}, many times over")
    items = [take_part(item, depth + 1) for item in raw]
    if any(item.kind in ("none", "stub", "object") or item.values is None for item in items):
        return Part("object", f"{name} that holds something other than numbers")
    if len({item.shape for item in items}) > 1:
        return Part("object", f"{name} of parts of different shapes")
    values = np.stack([item.values for item in items]) if items else np.zeros(0)  # type: ignore[misc]
    whole = all(item.whole for item in items)
    tracked = any(item.tracked for item in items)
    return Part("list", name, values.shape, "int64" if whole else "float64", values=values, tracked=tracked)
