"""Answers as students write them, for the tests of the check."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

from dgm_course import check
from dgm_course.check.engine import Exercise, Verdict

EXERCISES: list[Exercise] = [
    getattr(check, name) for lecture in check.LECTURES.values() for name in lecture.exercises
]


KL: Exercise = check.gaussian_kl


def right(mean: Tensor, log_var: Tensor) -> Tensor:
    """A right answer to ``gaussian_kl``."""
    return 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(-1)


def failed(answer: object, claim: str, exercise: Exercise = KL, **options: float) -> Verdict:
    """The verdict on an answer that has to fail, for want of a property in which ``claim`` occurs."""
    verdict = exercise.check(answer, **options)  # type: ignore[arg-type]
    assert verdict.status == "FAIL", verdict.text
    assert claim in verdict.claim, verdict.text
    return verdict


def by_student(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, as if a student had typed it: its code no longer comes from the course's files."""
    code: CodeType = function.__code__.replace(co_filename="student.py")  # type: ignore[attr-defined]
    return FunctionType(code, function.__globals__, "answer", function.__defaults__)  # type: ignore[attr-defined]
