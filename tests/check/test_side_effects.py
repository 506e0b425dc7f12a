"""Answers that change what is not theirs: seen, and put back as it was."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from .students import KL, failed, right
from .test_endless_answers import loops


def test_changed_inputs_are_named() -> None:
    def squares_in_place(mean: Tensor, log_var: Tensor) -> Tensor:
        return 0.5 * (mean.pow_(2) + log_var.exp() - log_var - 1).sum(-1)

    assert failed(squares_in_place, "it leaves its inputs").gap == "mean changed in place"

    def resizes(mean: Tensor, log_var: Tensor) -> Tensor:
        kl = right(mean, log_var)
        mean.set_(torch.zeros(1, dtype=mean.dtype))
        log_var.zero_()
        return kl

    assert failed(resizes, "it leaves its inputs").gap == "mean and log_var changed in place"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: torch.manual_seed(20), "torch"),
        (lambda: torch.rand(1), "torch"),
        (lambda: np.random.seed(1), "numpy"),
        (lambda: np.random.rand(), "numpy"),
        (lambda: random.random(), "random"),
    ],
)
def test_a_changed_random_state_is_seen_and_put_back(change: Callable[[], object], name: str) -> None:
    def answer(mean: Tensor, log_var: Tensor) -> Tensor:
        change()
        return right(mean, log_var)

    change()  # an answer that sets the very state in which the session is already: seen all the same
    before = random_states()
    assert failed(answer, "it leaves the global random state alone").gap == f"the state of {name} changed"
    assert random_states() == before


def random_states() -> tuple[object, ...]:
    of_numpy = np.random.get_state(legacy=False)
    kept = of_numpy["state"]["key"].tolist(), of_numpy["state"]["pos"]
    return torch.get_rng_state().tolist(), kept, random.getstate()


def test_the_check_leaves_the_random_states_alone() -> None:
    before = random_states()
    for answer in (right, lambda m, s: torch.randn(len(m)), lambda m, s: np.random.rand(len(m)), loops):
        KL.check(answer, time_limit=0.3)
        assert random_states() == before


def test_the_session_is_put_back() -> None:
    def meddles(mean: Tensor, log_var: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        warnings.simplefilter("ignore")
        return right(mean, log_var)

    out, err, filters = sys.stdout, sys.stderr, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        KL.check(meddles)
        assert torch.get_default_dtype() == torch.float32
        assert sys.stdout is out and sys.stderr is err
    assert list(warnings.filters) == filters


def test_the_students_defaults_change_nothing() -> None:
    expected = KL.check(lambda m, s: right(m, s) + 1).text
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert KL.check(right).passed
        assert KL.check(lambda m, s: right(m, s) + 1).text == expected
        assert torch.get_default_dtype() == torch.float64
        assert torch.zeros(1).device.type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_noise_is_kept_from_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    def noisy(mean: Tensor, log_var: Tensor) -> Tensor:
        print("mean is", mean.shape[0], "rows", "x" * 10**7)  # noqa: T201
        print("to stderr", file=sys.stderr, flush=True)  # noqa: T201
        warnings.warn("careful", stacklevel=2)
        return right(mean, log_var) + 1.0

    verdict = KL.check(noisy)
    assert "mean is" in verdict.printed and len(verdict.printed) <= 160
    assert KL.check(lambda m, s: noisy(m, s) - 1.0).passed
    assert capfd.readouterr() == ("", "")


def test_other_threads_may_print_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    def slow(mean: Tensor, log_var: Tensor) -> Tensor:
        time.sleep(0.01)
        return right(mean, log_var)

    stop = threading.Event()

    def talk() -> None:
        while not stop.wait(0.02):
            print("talk")  # noqa: T201

    thread = threading.Thread(target=talk)
    thread.start()
    assert KL.check(slow).passed
    stop.set()
    thread.join()
    assert "talk" in capsys.readouterr().out


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_the_check_leaves_the_random_state_of_a_gpu_alone() -> None:
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state()

    def answer(mean: Tensor, log_var: Tensor) -> Tensor:
        torch.manual_seed(0)
        return right(mean, log_var) + 0 * torch.rand(1, device="cuda").to(mean)

    failed(answer, "it leaves the global random state alone")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    verdict = failed(lambda m, s: right(m.cuda(), s.cuda()), "its device follows the input's")
    assert verdict.gap == "expected cpu, got cuda:0"
