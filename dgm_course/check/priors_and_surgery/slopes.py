"""An exercise whose answer has to have the right gradients as well as the right values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dgm_course.check import guard
from dgm_course.check.cases import RANDOM_INPUTS, Case, Draw
from dgm_course.check.engine import SEED, Exercise, Verdict
from dgm_course.check.spec import Function, Inputs


class DifferentiableExercise(Exercise):
    """An exercise checked twice: its values first, and if they are right, its gradients.

    Gradients are those of the answer's sum in every argument that requires grad (its inputs have to give
    some). Misconceptions with the right values and wrong gradients are declared by :meth:`wrong_slopes`.
    """

    def __init__(
        self, reference: Function, asks: str, wrt: tuple[str, ...], library: tuple[str, ...]
    ) -> None:
        super().__init__(reference, asks, library=library)
        parts = {f"gradient in {name}": "tensor" for name in wrt}
        self.slopes = Exercise(_differentiated(reference), f"{asks}, and its gradients", parts, library)

    def inputs(self, generate: Inputs) -> Inputs:
        """Decorator as in ``Spec``; for the gradients an edge case has no title, which speaks of values."""

        def untitled(draw: Draw) -> Iterator[Case]:
            for case in generate(draw):
                yield replace(case, title="")

        self.slopes.inputs(untitled)
        return super().inputs(generate)

    def wrong_slopes(self, **known: tuple[Function, str]) -> None:
        """Misconceptions as in ``Spec``, with the right values and wrong gradients."""
        self.misconceptions(**known)
        self.slopes.misconceptions(
            **{name: (_differentiated(wrong), hint) for name, (wrong, hint) in known.items()}
        )

    def check(
        self,
        answer: object,
        *,
        seed: int = SEED,
        count: int = RANDOM_INPUTS,
        time_limit: float = guard.TIME_LIMIT,
    ) -> Verdict:
        """The verdict on ``answer``; the time limit is for each of the two checks."""
        verdict = super().check(answer, seed=seed, count=count, time_limit=time_limit)
        if not verdict.passed:
            return verdict
        sloped = _differentiated(answer)  # type: ignore[arg-type]
        slopes = self.slopes.check(sloped, seed=seed, count=count, time_limit=time_limit)
        return verdict if slopes.passed else replace(slopes, exercise=self.name)


def _differentiated(function: Function) -> Callable[..., tuple[Tensor, ...]]:
    """The gradients of the function's sum in its arguments that require grad; 0 where none flows."""

    def gradients(*given: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        tracked = [v for v in given if isinstance(v, Tensor) and v.requires_grad]
        value = function(*given)
        total = _total(value)
        if not isinstance(total, Tensor) or not total.requires_grad:
            return tuple(torch.zeros_like(v) for v in tracked)
        return torch.autograd.grad(total, tracked, allow_unused=True, materialize_grads=True)

    gradients.__name__ = getattr(function, "__name__", "answer")
    return gradients


def _total(value: object) -> Tensor | float:
    """The sum of the tensors in an answer; numbers and arrays, which have no gradient, count as 0."""
    if isinstance(value, list | tuple):
        return sum(_total(part) for part in value)
    return value.sum() if isinstance(value, Tensor) else 0.0


def differentiable_exercise(
    asks: str, wrt: tuple[str, ...], *, library: tuple[str, ...] = ()
) -> Callable[[Function], DifferentiableExercise]:
    """Decorator: as ``engine.exercise``, with gradients in the arguments ``wrt``, those that require grad."""
    return lambda reference: DifferentiableExercise(reference, asks, wrt, library)
