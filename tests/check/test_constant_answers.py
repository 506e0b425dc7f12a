"""An exercise that wants a constant: a tensor like any other, through which no gradient flows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

from .students import KL, failed, right


@exercise("twice its input, as a constant", returns="constant")
def double(x: Tensor) -> Tensor:
    return 2 * x.detach()


@double.inputs
def _(draw: Draw) -> Iterator[Case]:
    for _ in range(draw.count):
        yield case(x=draw.normal(draw.integer(1, 4), dtype=draw.dtype()).requires_grad_())
    yield case("Twice 0 is 0.", x=torch.zeros(3))


double.misconceptions(
    attached=(lambda x: 2 * x, "A gradient flows."),
    half=(lambda x: x / 2, "This is one half of it."),
    negative=(lambda x: -2 * x.detach(), "The sign is wrong."),
)
CLAIM = "it is a constant: no gradient flows through it"


def test_a_result_that_requires_grad_is_a_fault_of_its_own() -> None:
    for answer in (lambda x: x + x, lambda x: list(x + x), lambda x: torch.nn.Parameter(2 * x.detach())):
        verdict = failed(answer, CLAIM, double)
        assert verdict.gap == "the values are right, but the result still requires grad"
        assert verdict.input.endswith("requires grad)")
        assert verdict.hint == "A gradient flows."


@pytest.mark.parametrize(
    "answer",
    [
        double.reference,
        lambda x: (x + x).detach(),
        lambda x: torch.no_grad()(lambda: x + x)(),
        lambda x: torch.inference_mode()(lambda: x + x)(),
        lambda x: torch.tensor((x + x).tolist(), dtype=x.dtype),
    ],
)
def test_a_constant_passes_however_it_was_cut_off(answer: Callable[[Tensor], Tensor]) -> None:
    verdict = double.check(answer)
    assert verdict.passed and not verdict.note, verdict.text


def test_arrays_and_lists_are_constants() -> None:
    for answer, words in ((lambda x: 2 * x.detach().numpy(), "array"), (lambda x: (2 * x).tolist(), "list")):
        verdict = double.check(answer)
        assert verdict.passed and words in verdict.note, verdict.text


def test_a_wrong_value_comes_first_and_its_hint_does_not_ask_for_a_gradient() -> None:
    for answer in (lambda x: x / 2, lambda x: 0.5 * x.detach()):
        assert failed(answer, "it computes twice its input", double).hint == "This is one half of it."
    assert failed(lambda x: -2 * x, "it computes twice", double).hint == "The sign is wrong."


def test_a_right_constant_with_another_fault_is_not_taken_for_an_attached_one() -> None:
    def changes(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.mul_(2).clone()

    verdict = failed(lambda x: 2 * x.detach().double(), "its dtype follows the input's", double)
    assert not verdict.hint
    verdict = failed(changes, "it leaves its inputs as they were", double)
    assert verdict.gap == "x changed in place" and not verdict.hint


def test_an_input_that_is_changed_in_place_or_cut_off_is_seen() -> None:
    def in_place(x: Tensor) -> Tensor:
        x *= 2
        return x.detach()

    for answer in (in_place, lambda x: 2 * x.detach_(), lambda x: x.data.mul_(2)):
        assert failed(answer, "it leaves its inputs", double).gap == "x changed in place"
    assert double.check(lambda x: x.clone().detach_().mul_(2)).passed


def test_what_torch_refuses_of_a_tracked_tensor_is_shown_in_its_words() -> None:
    for answer in (lambda x: 2 * x.numpy(), lambda x: np.multiply(x, 2)):
        verdict = failed(answer, "it runs without an error", double)
        assert "Use tensor.detach().numpy() instead" in verdict.gap
        assert "2" in verdict.line


def test_a_backward_pass_in_an_answer_leaves_the_originals_alone() -> None:
    cases = double.draw(seed=1)
    first = cases[0].fresh()[0]
    assert first.requires_grad and cases[0].arguments["x"].is_leaf
    first.sum().backward()
    assert cases[0].arguments["x"].grad is None
    assert not cases[-1].fresh()[0].requires_grad
    assert cases[0].changed([first]) == ()
    assert cases[0].changed([first.detach()]) == ("x",)

    def backward(x: Tensor) -> Tensor:
        if x.requires_grad:
            x.square().sum().backward()
        return 2 * x.detach()

    assert double.check(backward).passed


def test_gradients_are_on_whatever_the_session_or_the_last_call_has_set() -> None:
    def switches_off(x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return 2 * x.detach()

    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            assert double.check(double.reference).passed
            assert failed(lambda x: 2 * x, CLAIM, double).hint == "A gradient flows."
    assert double.check(switches_off).passed
    assert torch.is_grad_enabled()


def test_other_exercises_do_not_mind_a_gradient() -> None:
    @exercise("its input", returns="tensor")
    def same(x: Tensor) -> Tensor:
        return x

    @same.inputs
    def _(draw: Draw) -> Iterator[Case]:
        yield case(x=torch.ones(3, requires_grad=True))
        yield case(x=torch.ones(9, requires_grad=True))

    assert same.check(lambda x: 1 * x).passed
    assert same.check(lambda x: x.detach().clone()).passed
    verdict = same.check(lambda x: x + (len(x) > 3))
    assert verdict.input == "x = tensor of shape (9,) (requires grad) with entries from 1 to 1"


def test_the_answer_of_a_lecture_may_switch_gradients_on() -> None:
    def answer(mean: Tensor, log_var: Tensor) -> Tensor:
        return right(mean.requires_grad_(), log_var)

    assert KL.check(answer).passed
