"""Every exercise of every lecture: right answers pass, stubs are to do, misconceptions earn their hints."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

from dgm_course import check
from dgm_course.check.engine import Exercise
from dgm_course.check.spec import Misconception

from .students import EXERCISES, by_student, is_plain

LECTURES = Path(__file__).parents[2] / "lectures"
MISTAKES = [pytest.param(e, m, id=f"{e.name}-{m.name}") for e in EXERCISES for m in e.mistakes]
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)


@each_exercise
def test_a_right_answer_passes(exercise: Exercise) -> None:
    verdict = exercise.check(by_student(exercise.reference))
    assert verdict.passed, verdict.text
    assert not verdict.note


@each_exercise
def test_a_check_is_light(exercise: Exercise) -> None:
    cases = exercise.draw(seed=0)
    assert len(cases) <= 60
    values = [value for case in cases for value in case.arguments.values() if not callable(value)]
    assert all(torch.as_tensor(value).numel() <= 1000 for value in values)


@each_exercise
def test_no_right_answer_in_ten_thousand_fails(exercise: Exercise) -> None:
    verdict = exercise.check(by_student(exercise.reference), seed=1, count=10_000, time_limit=60.0)
    assert verdict.passed, verdict.text


@each_exercise
def test_a_stub_is_to_do(exercise: Exercise) -> None:
    for stub in (lambda *_: ..., lambda *_, **__: ..., None, ...):
        verdict = exercise.check(stub)
        assert verdict.status == "TODO"
        assert exercise.name in verdict.text


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES)
def test_a_misconception_fails_with_its_own_hint(exercise: Exercise, mistake: Misconception) -> None:
    """On an input that makes the gap plain, and without the formula that is asked for."""
    verdict = exercise.check(mistake.wrong)
    assert verdict.status == "FAIL"
    assert verdict.hint == mistake.hint
    assert verdict.claim and verdict.input and verdict.gap
    assert is_plain(verdict.gap), verdict.gap
    words = " ".join([verdict.hint, verdict.claim, verdict.note, exercise.asks])
    assert not FORMULA.search(words), words
    assert not re.search(r"(def|lambda|return)\b", verdict.text)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_other_inputs_tell_the_misconceptions_apart_as_well(seed: int) -> None:
    for exercise in EXERCISES:
        for mistake in exercise.mistakes:
            verdict = exercise.check(mistake.wrong, seed=1000 + seed)
            assert verdict.hint == mistake.hint, f"{exercise.name}: {mistake.name}"


@each_exercise
def test_an_exercise_is_complete(exercise: Exercise) -> None:
    hints = [m.hint for m in exercise.mistakes]
    assert len(hints) >= 4
    assert len(set(hints)) == len(hints)
    assert repr(exercise) == f"<check.{exercise.name}(your function): {exercise.asks}>"


def test_the_register_names_what_the_files_declare() -> None:
    modules = {m.name for m in pkgutil.iter_modules(check.__path__)}
    names = [exercise.name for exercise in EXERCISES]
    assert len(set(names)) == len(names)
    assert not modules & {*names, "progress", "hidden"}  # a module would hide the exercise of its name
    for lecture in check.LECTURES.values():
        module = importlib.import_module(f"dgm_course.check.{lecture.module}")
        declared = {name for name, value in vars(module).items() if isinstance(value, Exercise)}
        assert declared == set(lecture.exercises)


def test_the_register_keeps_the_order_of_the_lecture() -> None:
    for number, lecture in check.LECTURES.items():
        (notebook,) = LECTURES.glob(f"{number}_*.ipynb")
        text = notebook.read_text(encoding="utf-8")
        called = re.findall(r"check\.(\w+)\(\1\)", text)  # check.elbo(elbo)
        assert tuple(dict.fromkeys(called)) == lecture.exercises


#: Code and formulas: calls, operators between operands, powers, halves, the names of functions.
FORMULA = re.compile(
    r"torch\.|np\.|math\.|\*|\^|²|½|0\.5\b|\b(exp|log|clamp|sqrt|square|sum|mean|min|max|triu|tril)\s*\("
    r"|[a-z_)]\s[+/]\s[a-z(]|<=|>=|=="
)


@each_exercise
def test_a_verdict_is_the_same_each_time(exercise: Exercise) -> None:
    answers = [m.wrong for m in exercise.mistakes[:3]] + [lambda *_: torch.rand(1).item()]
    for answer in answers:
        first = exercise.check(answer).text
        torch.rand(3)
        assert exercise.check(answer).text == first


@each_exercise
def test_the_seed_draws_the_inputs(exercise: Exercise) -> None:
    shown = [[case.show() for case in exercise.draw(seed)] for seed in (3, 3, 4)]
    assert shown[0] == shown[1] != shown[2]
