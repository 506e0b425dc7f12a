"""How an exercise is declared: a reference, inputs, properties and misconceptions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import RANDOM_INPUTS, Case, Draw
from dgm_course.check.outcome import Outcome, Part, error_text, take_out

Function = Callable[..., Any]
Inputs = Callable[[Draw], Iterator[Case]]

#: What an exercise can ask for: a floating tensor that follows its input's dtype, such a tensor through which
#: no gradient flows, a number, a whole number, or a tensor of zeros and ones of any dtype. The last two are
#: compared exactly.
WANTS = ("tensor", "constant", "number", "count", "mask")

#: The wants that are a floating tensor in the dtype of the input.
FLOATING = ("tensor", "constant")


@dataclass(frozen=True)
class Misconception:
    """A known wrong implementation and the hint that it earns."""

    name: str
    hint: str
    wrong: Function


@dataclass(frozen=True)
class Property:
    """What every right answer fulfils; it names the failure of a wrong one. ``test(value, **arguments)``."""

    text: str
    test: Callable[..., bool]


class Spec:
    """One exercise. The function it is made from is the reference; decorators add the rest.

    ``returns`` is one of :data:`WANTS`, or for an answer of several parts a dict from each part's name to
    one of them. ``library`` names further functions of ``dgm_course`` that an answer must not call (the one
    with the exercise's own name never may).
    """

    def __init__(
        self,
        reference: Function,
        asks: str,
        returns: str | dict[str, str] = "tensor",
        library: tuple[str, ...] = (),
    ) -> None:
        self.wants = returns if isinstance(returns, dict) else {"": returns}
        unknown = set(self.wants.values()) - set(WANTS)
        if unknown:
            raise ValueError(f"returns must be one of {WANTS}, or a dict to them; got {sorted(unknown)}")
        self.reference, self.asks = reference, asks
        self.name = reference.__name__
        self.library = frozenset({self.name, *library})
        self.properties: list[Property] = []
        self.mistakes: list[Misconception] = []
        self._inputs: Inputs | None = None
        self._magnitude: Function | None = None

    def inputs(self, generate: Inputs) -> Inputs:
        """Decorator: the generator of cases, ``generate(draw)``; random ones are ``draw.count`` many."""
        self._inputs = generate
        return generate

    def magnitude(self, size: Function) -> Function:
        """Decorator: how large the terms are that a right answer adds up, where they may cancel.

        Rounding errors scale with them. Same arguments as the reference, broadcasts to its result; without
        it, one plus the result's own size is taken.
        """
        self._magnitude = size
        return size

    def holds(self, text: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
        """Decorator: a property of every right answer, ``test(value, **arguments) -> bool``.

        It is asked only about values that differ from the reference's, to say in words what is wrong with
        them: so no property can reject a right answer. The first declared wins.
        """

        def add(test: Callable[..., bool]) -> Callable[..., bool]:
            self.properties.append(Property(text, test))
            return test

        return add

    def misconceptions(self, **known: tuple[Function, str]) -> None:
        """Known wrong implementations by name, each with what to tell a student whose answers equal its."""
        self.mistakes += [Misconception(name, hint, wrong) for name, (wrong, hint) in known.items()]

    def draw(self, seed: int, count: int = RANDOM_INPUTS) -> list[Case]:
        """The cases of one seed: edge cases, and ``count`` random ones."""
        if self._inputs is None:
            raise ValueError(f"exercise {self.name} has no inputs: decorate a generator with .inputs")
        return list(self._inputs(Draw(seed, count)))

    def expected(self, case: Case) -> tuple[Part, ...]:
        """The reference's answer, computed in float64."""
        return take_out(self.reference(*_exact(case)), len(self.wants))

    def sizes(self, case: Case, expected: tuple[Part, ...]) -> tuple[np.ndarray, ...]:
        """For each part, the size that rounding errors scale with."""
        sizes = [1.0 + np.abs(part.values) for part in expected]  # type: ignore[arg-type]
        if self._magnitude is not None:
            terms = take_out(self._magnitude(*_exact(case)), len(self.wants))
            sizes = [s + t.values for s, t in zip(sizes, terms, strict=True)]  # type: ignore[operator]
        return tuple(sizes)

    def mistaken(self, misconception: Misconception, case: Case) -> Outcome:
        """What the misconception answers."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return Outcome(take_out(misconception.wrong(*case.fresh()), len(self.wants)))
        except Exception as error:  # an error is an answer too, and may be what gives the misconception away
            return Outcome(error=error_text(error))


def _exact(case: Case) -> list[Any]:
    return [
        v.to(torch.float64) if isinstance(v, Tensor) and v.is_floating_point() else v for v in case.fresh()
    ]
