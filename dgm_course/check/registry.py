"""What has been checked in this session, and the table that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PASS, TODO, FAIL = "PASS", "TODO", "FAIL"


class Lecture(NamedTuple):
    """A lecture's line in the register: its title, its file in this package, its exercises in order."""

    title: str
    module: str
    exercises: tuple[str, ...]


_VERDICTS: dict[str, list[str]] = {}


def remember(exercise: str, status: str) -> None:
    """Add a verdict to the session's record."""
    _VERDICTS.setdefault(exercise, []).append(status)


def forget() -> None:
    """Start the record again, as restarting the kernel does."""
    _VERDICTS.clear()


def table(lectures: Mapping[str, Lecture]) -> str:
    """Each lecture with its exercises: the last verdict and the number of tries in this session."""
    rows = []
    for number, lecture in lectures.items():
        done = sum(_VERDICTS.get(name, [""])[-1] == PASS for name in lecture.exercises)
        rows.append(f"Lecture {number}  {lecture.title}: {done} of {len(lecture.exercises)} done")
        for name in lecture.exercises:
            tries = [status for status in _VERDICTS.get(name, []) if status != TODO]
            last = _VERDICTS.get(name, ["-"])[-1]
            count = f"{len(tries)} {'try' if len(tries) == 1 else 'tries'}" if tries else ""
            rows.append(f"  {last:<4}  {name:<20} {count}".rstrip())
    return "\n".join(rows)
