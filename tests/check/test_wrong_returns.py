"""Answers that raise, or return what they should not: a verdict in words, never an error."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from dgm_course import check
from dgm_course.check.outcome import error_text

from .students import KL, failed, right


def test_an_error_is_shown_with_the_students_own_line() -> None:
    def divides(mean: Tensor, log_var: Tensor) -> Tensor:
        nothing = 0
        return torch.stack([mean / nothing, 1 / nothing])

    verdict = failed(divides, "it runs without an error")
    assert verdict.gap == "ZeroDivisionError: division by zero"
    assert verdict.line.endswith(": return torch.stack([mean / nothing, 1 / nothing])")


def test_an_error_inside_a_library_shows_the_line_that_called_it() -> None:
    def misfit(mean: Tensor, log_var: Tensor) -> Tensor:
        return torch.distributions.Normal(mean, -1.0 - mean**2).log_prob(mean)

    verdict = failed(misfit, "it runs without an error")
    assert "torch.distributions.Normal" in verdict.line and verdict.gap.startswith("ValueError")


def test_wrong_arguments_are_named() -> None:
    verdict = failed(lambda mean: mean, "it runs without an error")
    assert "TypeError" in verdict.gap and "called with mean, log_var" in verdict.gap and not verdict.line


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError("gone")])
def test_any_exception_is_a_verdict(error: BaseException) -> None:
    def raises(mean: Tensor, log_var: Tensor) -> Tensor:
        raise error

    assert type(error).__name__ in failed(raises, "it runs without an error").gap


def test_an_exception_with_a_broken_text_is_a_verdict() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    def raises(mean: Tensor, log_var: Tensor) -> Tensor:
        raise Broken

    assert failed(raises, "it runs without an error").gap == "Broken"


def test_an_error_that_announces_a_list_is_shown_without_it() -> None:
    verdict = failed(lambda mean, log_var: torch.max(mean, 0.5), "it runs without an error")
    assert verdict.gap.startswith("TypeError: max() received an invalid combination of arguments")
    assert verdict.gap.endswith("got (Tensor, float)")
    lines = {
        "broken state:\n\tno weight": "ValueError: broken state: no weight",
        "one line:": "ValueError: one line:",
        "two\nlines": "ValueError: two",
        "x" * 200: "ValueError: " + "x" * 145 + "...",
        "": "ValueError",
    }
    for message, text in lines.items():
        assert error_text(ValueError(message)) == text


def test_sys_exit_and_endless_recursion() -> None:
    def recurses(mean: Tensor, log_var: Tensor) -> Tensor:
        return recurses(mean, log_var)

    assert failed(lambda mean, log_var: sys.exit("bye"), "without an error").gap == "SystemExit: bye"
    assert failed(recurses, "without an error").gap.startswith("RecursionError")


class AlwaysEqual(float):
    """A number that claims to be whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __float__(self) -> float:
        return 1.0

    __hash__ = float.__hash__


class Tricky(Tensor):
    """A tensor that answers every question itself."""

    @classmethod
    def __torch_function__(cls, *_: object, **__: object) -> object:
        return True


def self_containing() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


RETURNS = {
    "none": (lambda m, s: None, "it returns", "None came back"),
    "nan": (lambda m, s: right(m, s) * math.nan, "finite", "got nan"),
    "inf": (lambda m, s: right(m, s) + math.inf, "finite", "got inf"),
    "wrong shape": (lambda m, s: right(m, s)[:, None], "it returns a tensor of shape", "expected a tensor"),
    "a number": (lambda m, s: 0.0, "it returns a tensor of shape", "got a number (float)"),
    "string": (lambda m, s: "0.5", "it returns", "type str"),
    "dictionary": (lambda m, s: {"kl": right(m, s)}, "it returns", "type dict"),
    "generator": (lambda m, s: (x for x in right(m, s)), "it returns", "type generator"),
    "strings in a list": (lambda m, s: ["a"] * len(m), "it returns", "other than numbers"),
    "ragged list": (lambda m, s: [[0.0]] * len(m) + [0.0], "it returns", "different shapes"),
    "list in itself": (lambda m, s: self_containing(), "it returns", "list"),
    "objects in an array": (lambda m, s: np.array([AlwaysEqual(1)], dtype=object), "it returns", "object"),
    "complex": (lambda m, s: right(m, s).to(torch.complex64), "it returns", "complex"),
    "sparse": (lambda m, s: right(m, s).to_sparse(), "it returns", "sparse"),
    "no data": (lambda m, s: right(m, s).to("meta"), "it returns", "without data"),
    "tensor subclass": (lambda m, s: right(m, s).as_subclass(Tricky), "it returns", "type Tricky"),
    "array subclass": (lambda m, s: np.ma.array(right(m, s).numpy()), "it returns", "type MaskedArray"),
    "huge view": (lambda m, s: torch.zeros(1).expand(10**12), "it returns", "(1000000000000,)"),
    "huge list": (lambda m, s: [0.0] * (10**6 + 1), "it returns", "a list of shape"),
    "a tuple": (lambda m, s: (right(m, s), right(m, s)), "it returns", "shape (2"),
    "half precision": (lambda m, s: (right(m, s) % 1e4).half(), "", ""),
}


@pytest.mark.parametrize("name", RETURNS)
def test_what_is_not_the_right_data_fails(name: str) -> None:
    answer, claim, gap = RETURNS[name]
    verdict = failed(answer, claim)
    assert gap in verdict.gap, verdict.text
    assert len(verdict.text) < 1500


def test_an_object_that_equals_everything_fails() -> None:
    class Anything:
        def __getattr__(self, name: str) -> object:
            return self

        def __call__(self, *_: object, **__: object) -> object:
            return self

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]
        __class__ = Tensor  # type: ignore[assignment]

    for exercise in (KL, check.kl_weight, check.active_units, check.causal_mask, check.free_bits):
        for value in (Anything(), AlwaysEqual(0.3)):
            failed(lambda *_, value=value: value, "it returns", exercise)


def test_a_class_or_a_module_is_an_answer_like_any_other() -> None:
    class Divergence(torch.nn.Module):
        def forward(self, mean: Tensor, log_var: Tensor) -> Tensor:
            return right(mean, log_var)

    assert KL.check(Divergence()).passed
    failed(Divergence, "it runs without an error")


@pytest.mark.parametrize("value", [torch.zeros(3), 1.5, "gaussian_kl", [], object()])
def test_what_is_no_function_fails_in_words(value: object) -> None:
    verdict = failed(value, "your function itself")
    assert verdict.hint == "Write check.gaussian_kl(gaussian_kl): the function's name, without arguments."
