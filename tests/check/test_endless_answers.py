"""Answers that do not end are stopped, or left behind with a word; in any thread."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgm_course import check
from dgm_course.check import guard
from dgm_course.check.engine import Verdict

from .students import KL, failed, right


def loops(mean: Tensor, log_var: Tensor) -> Tensor:
    while True:
        pass


def catches_exceptions(mean: Tensor, log_var: Tensor) -> Tensor:
    while True:
        try:
            math.sin(1.0)
        except Exception:  # noqa: S112
            continue


def catches_everything(mean: Tensor, log_var: Tensor) -> Tensor:
    while True:
        try:
            math.sin(1.0)
        except BaseException:
            pass


def calls_and_catches_everything(mean: Tensor, log_var: Tensor) -> Tensor:
    while True:
        try:
            right(mean, log_var)
        except:  # noqa: E722
            pass


def is_slow(mean: Tensor, log_var: Tensor) -> Tensor:
    for _ in range(10**9):
        mean = mean + 0.0
    return right(mean, log_var)


@pytest.mark.parametrize(
    "answer",
    [loops, catches_exceptions, catches_everything, calls_and_catches_everything, is_slow],
    ids=lambda f: f.__name__,
)
def test_a_loop_is_stopped(answer: Callable[..., Tensor]) -> None:
    before = threading.active_count()
    verdict = failed(answer, "it ends within 0.2 seconds", time_limit=0.2)
    assert "it was stopped" in verdict.gap and verdict.input
    assert threading.active_count() == before


def test_what_cannot_be_stopped_is_left_behind_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GRACE", 0.2)
    began = time.perf_counter()
    verdict = failed(lambda mean, log_var: time.sleep(1.5), "it ends within", time_limit=0.1)
    assert "cannot be stopped: restart the kernel" in verdict.gap
    assert time.perf_counter() - began < 1.4
    assert KL.check(right).passed  # the next check is none the worse


def test_a_loop_only_on_some_input_shows_that_input() -> None:
    verdict = failed(
        lambda step, warmup: step / warmup if warmup else loops(step, warmup),
        "it ends within",
        check.kl_weight,
        time_limit=0.2,
    )
    assert verdict.input == "step = 0, warmup_steps = 0"


def test_the_check_works_in_any_thread() -> None:
    verdicts: list[Verdict] = []

    def work() -> None:
        verdicts.extend([KL.check(right), KL.check(loops, time_limit=0.2)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30.0)
    assert [v.status for v in verdicts] == ["PASS", "FAIL"]
    assert "it was stopped" in verdicts[1].gap


def test_an_interrupt_of_the_kernel_stops_the_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: threading.Thread, timeout: float = 0.0) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    before = threading.active_count()
    out, state = sys.stdout, torch.get_rng_state()
    monkeypatch.setattr(guard.Worker, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        KL.check(loops)
    assert threading.active_count() == before and sys.stdout is out
    assert torch.equal(torch.get_rng_state(), state)
