"""Answers as students write them, for the tests of the check."""

from __future__ import annotations

import re
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


def expect_right(name: str, answer: Callable[..., Any]) -> None:
    """The answer passes without a note, on the inputs that students see and on 500 others."""
    exercise = getattr(check, name)
    verdict = exercise.check(answer)
    assert verdict.passed and not verdict.note, verdict.text
    verdict = exercise.check(answer, seed=7, count=500, time_limit=60.0)
    assert verdict.passed, verdict.text


def expect_hint(name: str, known: str, answer: Callable[..., Any], shown: str) -> None:
    """The answer earns the hint of the misconception ``known``, and the verdict's text holds ``shown``."""
    verdict = getattr(check, name).check(answer)
    hints = {mistake.name: mistake.hint for mistake in getattr(check, name).mistakes}
    assert verdict.hint == hints[known], verdict.text
    assert shown in verdict.text, verdict.text


def is_plain(gap: str) -> bool:
    """Whether the two numbers that a verdict shows, if it does, differ by a tenth of the larger."""
    values = re.search(r"expected (-?[\d.]+), got (-?[\d.]+)", gap)
    if not values:
        return True
    right, wrong = map(float, values.groups())
    return abs(wrong - right) >= 0.1 * max(abs(wrong), abs(right)) - 1e-3
