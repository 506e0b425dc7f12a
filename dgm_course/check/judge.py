"""Compare what an answer returned with the reference, and recognise misconceptions.

Everything here works on plain data: it never sees the student's function or objects, so that it can run in
another process than the answer did.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from dgm_course.check.cases import Case, number
from dgm_course.check.outcome import Outcome, Part
from dgm_course.check.spec import FLOATING, Spec

#: A right answer may be off by this many rounding errors of the size of its terms. Other algorithms need some
#: dozens; the nearest misconception is off by millions.
ROUNDING_ERRORS = 1000
EPSILON = {"float64": 2.0**-52}  # every other dtype is judged as float32
_FLOAT32 = 2.0**-23


#: A gap of this part of the larger number, or more, is plain to see: the smallest such input is shown.
PLAIN_GAP = 0.1


class Rank(IntEnum):
    """What is reported first when several things are wrong."""

    ERROR = 0
    TYPE = 1
    SHAPE = 2
    FINITE = 3
    TITLE = 4
    PROPERTY = 5
    VALUE = 6
    TRACKED = 7
    DTYPE = 8
    CHANGED = 9


@dataclass(frozen=True)
class Finding:
    """What is wrong with one outcome."""

    rank: Rank
    property: str
    gap: str
    line: str = ""
    clarity: float = 0.0  # of a wrong value: its largest relative gap, at most PLAIN_GAP


def find_fault(spec: Spec, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> tuple[Case, Finding] | None:
    """The most telling fault over all cases; None if there is none.

    Among the inputs that show it: for a wrong value the one with the largest relative gap, for an error or a
    wrong shape one without axes of length 1; then the smallest, an ordinary one, and the first.
    """
    worst: tuple[tuple[int, float, float, bool, int], Case, Finding] | None = None
    for index, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        finding = examine(spec, case, outcome)
        if finding is None:
            continue
        thin = finding.rank <= Rank.SHAPE and case.thin
        order = (finding.rank, thin - finding.clarity, case.size, bool(case.title), index)
        if worst is None or order < worst[0]:
            worst = order, case, finding
    return None if worst is None else worst[1:]


def examine(spec: Spec, case: Case, outcome: Outcome) -> Finding | None:
    """What is wrong with one outcome, or None."""
    if outcome.error:
        return Finding(Rank.ERROR, "it runs without an error", outcome.error, outcome.line)
    expected = spec.expected(case)
    sizes = spec.sizes(case, expected)
    if len(outcome.parts) != len(expected):
        names = ", ".join(spec.wants)
        return Finding(Rank.TYPE, f"it returns a tuple ({names})", _described(outcome.parts[0]))
    parts = zip(spec.wants.items(), outcome.parts, expected, sizes, strict=True)
    for (name, want), got, right, size in parts:
        finding = _examine_part(want, got, right, size, case)
        if finding is not None:
            return _named(name, _explained(spec, case, outcome, finding))
    if outcome.changed:
        names = " and ".join(outcome.changed)
        return Finding(Rank.CHANGED, "it leaves its inputs as they were", f"{names} changed in place")
    return None


def recognise(spec: Spec, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> str:
    """The hint of the misconception whose answers these are, or an empty string.

    Its values must agree wherever both gave an answer, and differ from the reference's somewhere; or both of
    them let a gradient through where the exercise asks for a constant. Passed over, if they are at most half
    of all, are inputs on which only one of the two ended with an error, and edge cases (with a title) that
    the answer gets right: a student may have thought of one and be wrong elsewhere.
    """
    truths = [spec.expected(case) for case in cases]
    magnitudes = [spec.sizes(case, expected) for case, expected in zip(cases, truths, strict=True)]
    best, hint = 0, ""
    for misconception in spec.mistakes:
        evidence = passed_over = 0
        for case, outcome, expected, sizes in zip(cases, outcomes, truths, magnitudes, strict=True):
            wrong = spec.mistaken(misconception, case)
            if outcome.error or wrong.error:
                same = _same_error(outcome.error, wrong.error)
                evidence, passed_over = evidence + same, passed_over + (not same)
                continue
            if not _agree(outcome.parts, wrong.parts, sizes, case):
                if not (case.title and _agree(outcome.parts, expected, sizes, case)):
                    break
                passed_over += 1
                continue
            attached = _tracked(spec, outcome.parts) and _tracked(spec, wrong.parts)
            evidence += attached or not _agree(wrong.parts, expected, sizes, case)
        else:
            if evidence > best and passed_over <= len(cases) / 2:
                best, hint = evidence, misconception.hint
    return hint


def tolerance(part: Part, size: np.ndarray | float, case: Case) -> np.ndarray | float:
    """How far a right answer of this dtype, for this input's dtype, may be from the reference."""
    dtypes = [part.dtype] + ([str(case.dtype).removeprefix("torch.")] if case.dtype else [])
    return ROUNDING_ERRORS * max(_epsilon(dtype) for dtype in dtypes) * size


def _epsilon(dtype: str) -> float:
    exact = not dtype.startswith(("float", "bfloat"))  # an integer has no rounding errors of its own
    return EPSILON["float64"] if exact else EPSILON.get(dtype, _FLOAT32)


def _examine_part(want: str, got: Part, right: Part, size: np.ndarray, case: Case) -> Finding | None:
    if got.kind in ("none", "stub", "object"):
        return Finding(Rank.TYPE, f"it returns {_wanted(want, right)}", _described(got))
    if got.shape != right.shape:
        gap = f"expected {_wanted(want, right)}, got {_described(got)}"
        return Finding(Rank.SHAPE, f"it returns {_wanted(want, right)}", gap)
    values, truth = got.values, right.values
    assert values is not None and truth is not None  # an equal shape is a small one
    bad = np.isfinite(truth) & ~np.isfinite(values)
    if bad.any():
        return Finding(Rank.FINITE, "it is finite for every finite input", _gap(values, truth, bad))
    wrong_dtype = want in FLOATING and got.kind == "tensor" and case.dtype is not None
    wrong_dtype = wrong_dtype and got.dtype != str(case.dtype).removeprefix("torch.")
    allowed: np.ndarray | float = 0.0
    if want in (*FLOATING, "number"):
        allowed = 0.02 * size if wrong_dtype else tolerance(got, size, case)
    bad = _differ(values, truth, allowed)
    if bad.any():
        return Finding(Rank.VALUE, "", _gap(values, truth, bad), clarity=_clarity(values, truth, bad).max())
    if want == "constant" and got.tracked:
        gap = "the values are right, but the result still requires grad"
        return Finding(Rank.TRACKED, "it is a constant: no gradient flows through it", gap)
    if wrong_dtype:
        gap = f"expected {str(case.dtype).removeprefix('torch.')}, got {got.dtype}"
        return Finding(Rank.DTYPE, "its dtype follows the input's", gap)
    if want in FLOATING and got.device != "cpu":
        return Finding(Rank.DTYPE, "its device follows the input's", f"expected cpu, got {got.device}")
    return None


def _explained(spec: Spec, case: Case, outcome: Outcome, finding: Finding) -> Finding:
    """A wrong value, in the words of the case or of the first property that it breaks."""
    if finding.rank is not Rank.VALUE:
        return finding
    if case.title:
        return replace(finding, rank=Rank.TITLE, property=case.title)
    values = [part.values for part in outcome.parts]
    if [part.shape for part in outcome.parts] == [part.shape for part in spec.expected(case)]:
        for rule in spec.properties:
            if not rule.test(*values, **case.arguments):
                return replace(finding, rank=Rank.PROPERTY, property=rule.text)
    return replace(finding, property=f"it computes {spec.asks}")


def _named(name: str, finding: Finding) -> Finding:
    return replace(finding, gap=f"{name}: {finding.gap}") if name else finding


def _tracked(spec: Spec, parts: tuple[Part, ...]) -> bool:
    """Whether a gradient flows through a part that has to be a constant."""
    wants = spec.wants.values()
    return len(parts) == len(wants) and any(
        want == "constant" and part.tracked for want, part in zip(wants, parts, strict=True)
    )


def _agree(
    parts: tuple[Part, ...], others: tuple[Part, ...], sizes: tuple[np.ndarray, ...], case: Case
) -> bool:
    if not len(parts) == len(others) == len(sizes):  # an answer, or a misconception, may lack a part
        return False
    for part, other, size in zip(parts, others, sizes, strict=True):
        if part.shape != other.shape or part.values is None or other.values is None:
            return False
        scale = np.max(size, initial=1.0) + np.abs(other.values)
        if _differ(part.values, other.values, tolerance(part, scale, case), nan_equals_nan=True).any():
            return False
    return True


def _differ(
    values: np.ndarray, others: np.ndarray, allowed: np.ndarray | float, nan_equals_nan: bool = False
) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        close = (values == others) | (np.abs(values - others) <= np.where(np.isfinite(others), allowed, -1.0))
    if nan_equals_nan:
        close |= np.isnan(values) & np.isnan(others)
    return np.asarray(~close)


def _same_error(error: str, known: str) -> bool:
    """Whether two errors are of one kind: the same name, and mostly the same words (numbers may differ)."""
    (name, _, text), (known_name, _, known_text) = error.partition(": "), known.partition(": ")
    words, known_words = set(re.findall("[A-Za-z]+", text)), set(re.findall("[A-Za-z]+", known_text))
    shared = len(words & known_words)
    return bool(error) and name == known_name and 2 * shared >= min(len(words), len(known_words))


def _clarity(values: np.ndarray, truth: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """How plain each wrong entry is: its gap as a part of the larger number, at most PLAIN_GAP."""
    with np.errstate(all="ignore"):
        relative = np.abs(values - truth) / np.maximum(np.abs(values), np.abs(truth))
    return np.where(bad, np.fmin(relative, PLAIN_GAP), 0.0)


def _gap(values: np.ndarray, truth: np.ndarray, bad: np.ndarray) -> str:
    clearest = np.argmax(np.where(bad, 1.0 + _clarity(values, truth, bad), 0.0))
    at = tuple(int(i) for i in np.unravel_index(clearest, bad.shape))
    mine, right = float(values[at]), float(truth[at])
    place = f"at [{', '.join(map(str, at))}] " if at else ""
    short = number(mine), number(right)
    if short[0] == short[1]:
        short = f"{mine:.12g}", f"{right:.12g}"
    off = f" (off by {number(mine - right)})" if np.isfinite(mine - right) else ""
    count = f"; {int(bad.sum())} of {bad.size} entries differ" if bad.size > 1 else ""
    return f"{place}expected {short[1]}, got {short[0]}{off}{count}"


def _wanted(want: str, right: Part) -> str:
    if want == "number":
        return "a number"
    if want == "count":
        return "a whole number"
    zeros = " of zeros and ones" if want == "mask" else ""
    return f"a scalar{zeros}" if right.shape == () else f"a tensor{zeros} of shape {right.shape}"


def _described(got: Part) -> str:
    if got.kind == "none":
        return "nothing: None came back (is the return missing?)"
    if got.kind == "stub":
        return "the ... of the empty exercise"
    if got.kind == "object":
        return f"an object of type {got.type_name}, which the check does not read"
    if got.kind == "number":
        return f"a number ({got.type_name})"
    return f"a {got.type_name} of shape {got.shape}"
