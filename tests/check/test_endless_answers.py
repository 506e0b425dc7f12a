"""Answers that do not end are stopped, or left behind with a word; in any thread."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from dgm_course import check
from dgm_course.check import guard
from dgm_course.check.engine import Verdict
from dgm_course.gaussian import gaussian_kl as library_kl

from .students import KL, failed, right

#: Seconds after which a test says that something hangs; nothing here takes long.
HANGS = 30.0


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
    release = threading.Event()
    left: list[threading.Thread] = []

    def blocks(mean: Tensor, log_var: Tensor) -> None:
        left.append(threading.current_thread())
        release.wait()

    try:
        verdict = failed(blocks, "it ends within", time_limit=0.1)
        assert "cannot be stopped: restart the kernel" in verdict.gap
        assert [thread.is_alive() for thread in left] == [True]
        after = KL.check(right)  # the next check is none the worse, while that thread is still there
        assert after.passed, after.text
        assert left[0].is_alive()
    finally:
        release.set()
        for thread in left:
            thread.join(HANGS)
    assert not left[0].is_alive()


def test_a_profiled_kernel_gives_up_on_what_cannot_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GRACE", 0.2)
    release = threading.Event()
    verdicts: list[Verdict] = []

    def profiled() -> None:
        sys.setprofile(lambda *_: None)
        verdicts.append(KL.check(lambda mean, log_var: release.wait(), time_limit=0.1))
        sys.setprofile(None)

    kernel = threading.Thread(target=profiled, daemon=True)
    kernel.start()
    kernel.join(HANGS)
    gave_up = not kernel.is_alive()
    release.set()
    for thread in threading.enumerate():
        if isinstance(thread, guard.Worker):
            thread.join(HANGS)
    assert gave_up and "cannot be stopped" in verdicts[0].gap


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
    thread.join(HANGS)
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


def pooled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An answer that leaves the work to another thread."""

    def answer(mean: Tensor, log_var: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, mean, log_var).result()

    return answer


def test_the_threads_of_an_answer_are_watched_too() -> None:
    kept = threading.getprofile()
    verdict = failed(pooled(library_kl), "it is your own work")
    assert "gaussian_kl" in verdict.gap
    assert KL.check(pooled(right)).passed
    assert threading.getprofile() is kept

    def unwatched(mean: Tensor, log_var: Tensor) -> Tensor:
        threading.setprofile(None)
        return pooled(library_kl)(mean, log_var)

    failed(unwatched, "it leaves the check alone")
    assert threading.getprofile() is kept


def test_a_thread_that_an_answer_left_behind_is_no_longer_watched() -> None:
    release, seen = threading.Event(), []

    def work() -> None:
        release.wait()
        seen.append(sys.getprofile())

    def answer(mean: Tensor, log_var: Tensor) -> Tensor:
        if not threads:
            threads.append(threading.Thread(target=work))
            threads[0].start()
        return right(mean, log_var)

    threads: list[threading.Thread] = []
    assert KL.check(answer).passed
    assert threads[0].is_alive()
    release.set()
    threads[0].join(HANGS)
    assert seen == [None]


@pytest.mark.parametrize("count", [1, 3])
def test_the_thread_count_is_put_back(count: int) -> None:
    def answer(mean: Tensor, log_var: Tensor) -> Tensor:
        torch.set_num_threads(count)
        return right(mean, log_var)

    def counts() -> tuple[int, int]:
        """In this thread, and in a new one."""
        with ThreadPoolExecutor(1) as pool:
            return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()

    kept = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert KL.check(answer).passed
        assert counts() == (2, 2)
    finally:
        torch.set_num_threads(kept)
