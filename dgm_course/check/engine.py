"""Check an answer and say PASS, TODO or FAIL: what ``check.gaussian_kl(gaussian_kl)`` does.

A lecture's module declares its exercises like this (``posterior_collapse`` is the pattern)::

    @exercise("the mean of each row")
    def row_mean(x: Tensor) -> Tensor:  # the reference; its name is the exercise's
        return x.mean(1)

    @row_mean.inputs
    def _(draw: Draw) -> Iterator[Case]:
        yield case("A row of zeros has mean 0.", x=torch.zeros(2, 3))
        for _ in range(draw.count):
            yield case(x=draw.normal(draw.integer(1, 4), draw.integer(1, 4), dtype=draw.dtype()))

    row_mean.misconceptions(
        column_mean=(lambda x: x.mean(0), "These are the means of the columns."),
    )

The check never raises for a student. While nbgrader validates or grades (``NBGRADER_EXECUTION``), whatever is
not PASS raises AssertionError, so that it costs its points.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dgm_course.check import guard, registry
from dgm_course.check.cases import RANDOM_INPUTS, Case
from dgm_course.check.judge import Finding, Rank, find_fault, recognise
from dgm_course.check.outcome import Outcome
from dgm_course.check.registry import FAIL, PASS, TODO, Lecture
from dgm_course.check.spec import FLOATING, Function, Spec

#: The seed of the inputs that students see: fixed, so that a verdict changes only with the answer.
SEED = 20

_NOT_GIVEN = object()


@dataclass(frozen=True, repr=False)
class Verdict:
    """The result of a check. A notebook shows nothing for it: its text has been printed already."""

    exercise: str
    status: str
    claim: str = ""  # the property that fails
    input: str = ""
    gap: str = ""
    line: str = ""
    printed: str = ""
    hint: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return self.status == PASS

    @property
    def text(self) -> str:
        """What the student reads."""
        named = {
            "property": self.claim,
            "input": self.input,
            "gap": self.gap,
            "your code": self.line,
            "printed": self.printed,
            "hint": self.hint,
            "note": self.note,
        }
        rows = [f"  {label + ':':<10} {words}" for label, words in named.items() if words]
        return "\n".join([f"{self.status}  {self.exercise}", *rows])

    def __repr__(self) -> str:
        return f"<{self.status} {self.exercise}>"

    def _ipython_display_(self) -> None:
        """Show nothing where a cell ends with a check."""


class Exercise(Spec):
    """A declared exercise; calling it with the student's function checks, prints and records."""

    def __repr__(self) -> str:
        return f"<check.{self.name}(your function): {self.asks}>"

    def __call__(self, *answers: object) -> Verdict:
        """Check the answer, print the verdict and remember it for ``check.progress()``."""
        grading = os.environ.get("NBGRADER_EXECUTION") in ("validate", "autograde")
        verdict = self.check(answers[0] if len(answers) == 1 else _NOT_GIVEN)
        registry.remember(self.name, verdict.status)
        print(verdict.text)
        if grading and not verdict.passed:
            raise AssertionError(verdict.text)
        return verdict

    def check(
        self,
        answer: object,
        *,
        seed: int = SEED,
        count: int = RANDOM_INPUTS,
        time_limit: float = guard.TIME_LIMIT,
    ) -> Verdict:
        """The verdict on ``answer``, without printing or remembering it.

        ``seed`` draws the inputs, ``count`` of them at random; ``time_limit`` is in seconds, for all of them.
        """
        if answer is None or answer is Ellipsis:
            return self._todo()
        if not callable(answer):
            return self._fail(
                "it is given your function itself",
                gap="got something that cannot be called",
                hint=f"Write check.{self.name}({self.name}): the function's name, without arguments.",
            )
        with guard.plain_defaults():
            return self._judge(answer, self.draw(seed, count), time_limit)

    def _judge(self, answer: Function, cases: list[Case], time_limit: float) -> Verdict:
        run = guard.run(
            answer, cases, num_parts=len(self.wants), library=self.library, time_limit=time_limit
        )
        if run.outcomes and all(_is_stub(outcome) for outcome in run.outcomes) and not run.stopped:
            return self._todo()
        beside = self._conduct(run, cases, time_limit)
        if beside is not None:
            return beside
        fault = find_fault(self, cases, run.outcomes)
        if fault is not None:
            again = self._in_double(answer, cases, time_limit)
            if again is None:
                return self._wrong(*fault, cases, run)
            run = again
        if run.random_change:
            names = " and ".join(run.random_change)
            return self._fail("it leaves the global random state alone", gap=f"the state of {names} changed")
        return Verdict(self.name, PASS, note=self._note(run))

    def _in_double(self, answer: Function, cases: list[Case], time_limit: float) -> guard.Run | None:
        """The run of an answer that is right where numbers it makes itself are float64, else None.

        That is the default in the lectures' notebooks: ``torch.tensor(3).log()`` has all of its digits there.
        """
        with guard.plain_defaults(torch.float64):
            run = guard.run(
                answer, cases, num_parts=len(self.wants), library=self.library, time_limit=time_limit
            )
        beside = self._conduct(run, cases, time_limit)
        return run if beside is None and find_fault(self, cases, run.outcomes) is None else None

    def _conduct(self, run: guard.Run, cases: list[Case], time_limit: float) -> Verdict | None:
        """FAIL for an answer that is someone else's, or that did not end; None for any other."""
        if run.library_call:
            return self._fail(
                "it is your own work",
                gap=f"it calls the course library's {run.library_call}",
                hint="Write it yourself: that function is what this exercise asks for.",
            )
        if run.unwatched:
            return self._fail("it leaves the check alone", gap="it switched Python's profiler off")
        if run.stopped:
            end = "it was stopped" if run.stopped == "stopped" else "it cannot be stopped: restart the kernel"
            return self._fail(
                f"it ends within {time_limit:g} seconds",
                cases[min(len(run.outcomes), len(cases) - 1)].show(),
                f"it was still running; {end}",
                "Does a loop wait for something that never comes?",
            )
        return None

    def _wrong(self, case: Case, finding: Finding, cases: list[Case], run: guard.Run) -> Verdict:
        printed = " | ".join(run.outcomes[cases.index(case)].printed.split("\n")).strip(" |")[:160]
        if finding.rank is Rank.ERROR and not finding.line:
            called = f"(your function is called with {', '.join(case.arguments)})"
            finding = Finding(finding.rank, finding.property, f"{finding.gap} {called}")
        hint = recognise(self, cases, run.outcomes)
        fault = (finding.property, case.show(), finding.gap, finding.line)
        return Verdict(self.name, FAIL, *fault, printed, hint)

    def _note(self, run: guard.Run) -> str:
        """A friendly word about a right answer in an unusual shape."""
        for want, part in zip(self.wants.values(), run.outcomes[0].parts, strict=True):
            if want in (*FLOATING, "mask") and part.kind != "tensor":
                kind = {"array": "a NumPy array", "list": "a list"}.get(part.kind, "a plain number")
                return f"right, as {kind}; the library computes with tensors"
            if want == "count" and not part.whole:
                return "right, as a floating number; a count reads better as an int"
        return ""

    def _todo(self) -> Verdict:
        return Verdict(self.name, TODO, note="replace the ... by your code, then run the cell again")

    def _fail(self, claim: str, shown: str = "", gap: str = "", hint: str = "") -> Verdict:
        return Verdict(self.name, FAIL, claim, shown, gap, hint=hint)


def exercise(
    asks: str, *, returns: str | dict[str, str] = "tensor", library: tuple[str, ...] = ()
) -> Callable[[Function], Exercise]:
    """Decorator: make an exercise of its reference; ``asks`` completes "it computes ...". See ``Spec``."""
    return lambda reference: Exercise(reference, asks, returns, library)


def require(checked: Exercise, answer: object, seed: int) -> None:
    """A hidden test: raise AssertionError unless ``answer`` passes on the inputs of ``seed``."""
    verdict = checked.check(answer, seed=seed)
    if not verdict.passed:
        raise AssertionError(f"hidden test of {checked.name}: {verdict.text}")


def show_progress(lectures: Mapping[str, Lecture]) -> None:
    """Print what is done, lecture by lecture."""
    print(registry.table(lectures))


def _is_stub(outcome: Outcome) -> bool:
    return [part.kind for part in outcome.parts] == ["stub"]
