"""What a long experiment leaves behind: numbers and small pictures, with how they were made."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

Number = float | int | str | None
Row = dict[str, Number]
_RECORDS = Path(__file__).with_name("records")


@dataclass(frozen=True, eq=False)
class Record:
    """The result of one run of an experiment, with all that a caption must say of it.

    ``command`` repeats the run; ``date`` is ISO 8601; ``budget`` says in words what each model was given
    (steps, batch); ``cpu_seconds`` is the process's CPU time, everything included; ``machine`` is in generic
    words. ``tables`` maps a name to rows ``{column: number or text}``; a column ``*_se`` is the standard
    error of the column before it. ``pictures`` maps a name to uint8 tensors, for images ``(..., C, H, W)``
    of grey or colour levels.
    """

    name: str
    command: str
    date: str
    budget: str
    cpu_seconds: float
    seeds: tuple[int, ...]
    torch_version: str
    machine: str
    tables: Mapping[str, Sequence[Row]]
    pictures: Mapping[str, Tensor]

    def provenance(self) -> str:
        """One line for a caption: date, command, seeds, budget, time and machine."""
        seeds = f"{len(self.seeds)} seed" + ("s" if len(self.seeds) != 1 else "")
        minutes = self.cpu_seconds / 60
        time = f"{minutes:.0f} CPU minutes" if minutes >= 2 else f"{self.cpu_seconds:.0f} CPU seconds"
        made = f"torch {self.torch_version}, {self.machine}"
        return f"recorded {self.date}: {self.command}; {seeds}; {self.budget}; {time}, {made}"


def save(record: Record, path: Path | str) -> None:
    """Write a record as compact JSON, pictures as base64 of their bytes, numbers to six significant digits.

    Raises ``ValueError`` for a picture that is not uint8.
    """
    for name, picture in record.pictures.items():
        if picture.dtype != torch.uint8:
            raise ValueError(
                f"a record keeps pictures as uint8 levels, got {picture.dtype} for '{name}': round, clamp to "
                "0 ... 255 and convert with .to(torch.uint8)"
            )
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    values["tables"] = {name: [_rounded(row) for row in rows] for name, rows in record.tables.items()}
    values["pictures"] = {
        name: {
            "shape": list(picture.shape),
            "data": base64.b64encode(picture.cpu().contiguous().numpy().tobytes()).decode("ascii"),
        }
        for name, picture in record.pictures.items()
    }
    Path(path).write_text(json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")


def load(name: str | Path) -> Record:
    """The record called ``name`` that comes with the course, or the one in a file, given its ``Path``.

    Raises ``ValueError`` for a name without a record, listing those there are.
    """
    path = name if isinstance(name, Path) else _RECORDS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _RECORDS.glob("*.json"))) or "none"
        raise ValueError(
            f"there is no record {str(name)!r} (known: {known}): pass one of these names, or the Path of a "
            "file that `python -m dgm_course reproduce` wrote"
        )
    values = json.loads(path.read_text(encoding="utf-8"))
    values["seeds"] = tuple(values["seeds"])
    values["pictures"] = {name: _picture(stored) for name, stored in values["pictures"].items()}
    return Record(**values)


def _picture(stored: Mapping[str, object]) -> Tensor:
    raw = list(base64.b64decode(stored["data"]))
    return torch.tensor(raw, dtype=torch.uint8).reshape(stored["shape"])


def _rounded(row: Row) -> Row:
    return {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in row.items()}
