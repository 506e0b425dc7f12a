"""Run an answer so that nothing it does can harm the student's session.

The answer runs in a thread of its own while the calling thread waits: that works alike in a Jupyter kernel's
main thread, in one of its subshell threads, and on Windows, where no alarm signal exists. When its time is
up, an exception is raised *inside* that thread, again and again, since an answer may catch it. What still
will not stop (a loop that catches everything, a call that blocks) is left behind and reported as such: the
check returns all the same. An alarm signal in the main thread could not reach the other threads, and it
could not give up: an answer that catches everything would hang the kernel.

The limit has one gap. It is kept by the waiting thread, which runs only when the answer lets go of Python's
global interpreter lock. Bytecode does so every few milliseconds, and so do torch, a sleep and a socket; one
long call into C that holds the lock, such as ``sum(range(3 * 10**8))``, does not. It holds up the check, and
the whole kernel, until it returns; the answer is stopped and reported then. Nothing inside the process can
do better, so where answers are graded they must run jailed in a process of their own, with a limit outside.

Around the run the random states (torch, numpy, ``random``) are set to known values and then put back, as are
torch's default type and thread count; what the answer prints is kept from the screen, and its warnings are
dropped. Calls into the library function that the exercise asks for are seen as they happen, by a profile
function that looks at the file and the name of every Python function called: an alias,
``functools.partial`` or a wrapper makes no difference, nor does a thread that the answer starts. A thread
that was there before the check, such as that of a pool the student has already used, is not watched.
"""

from __future__ import annotations

import ctypes
import linecache
import os
import random
import sys
import sysconfig
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

from dgm_course.check.cases import Case
from dgm_course.check.outcome import Outcome, Part, error_text, take_out

#: Seconds that an answer has for all inputs together, and seconds that it is then given to stop.
TIME_LIMIT = 5.0
GRACE = 2.0

#: The random states inside a check start from this seed: one that no answer sets by chance.
INNER_SEED = 3_141_592_653

_CHECK = os.path.dirname(__file__)
_COURSE = os.path.dirname(_CHECK)
_NOT_THE_STUDENT = tuple(
    {_COURSE + os.sep, "<frozen"} | {sysconfig.get_path(p) + os.sep for p in ("stdlib", "purelib", "platlib")}
)


class _Settled(KeyboardInterrupt):
    """Raised by a thread inside itself and caught at once, unless the user's own interrupt cuts in."""


@dataclass
class Run:
    """What an answer did: one outcome for each input it finished, and what it did beside computing."""

    outcomes: list[Outcome] = field(default_factory=list)
    stopped: str = ""  # "" | "stopped": ran past the limit | "unstoppable": ran past it and is still running
    library_call: str = ""  # the function called that the student was to write
    unwatched: bool = False  # the answer switched the profile function off
    random_change: tuple[str, ...] = ()  # generators whose global state it changed


class Captured:
    """Stands in for stdout and stderr: keeps the first of what one thread writes, passes on all others'."""

    def __init__(self, stream: Any, thread: threading.Thread) -> None:  # noqa: ANN401
        self._stream, self._thread, self._text = stream, thread, ""

    def write(self, text: str) -> int:
        """Keep at most 400 characters of the answer's output; others' goes where it would have gone."""
        if threading.get_ident() != self._thread.ident:
            return self._stream.write(text)
        self._text += str(text[: 400 - len(self._text)])
        return len(text)

    def taken(self) -> str:
        """What was written since the last call."""
        text, self._text = self._text, ""
        return text

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class Worker(threading.Thread):
    """The thread in which an answer runs."""

    def __init__(self, answer: Callable[..., object], cases: Sequence[Case], num_parts: int) -> None:
        super().__init__(daemon=True, name="dgm_course check")
        self.answer, self.cases, self.num_parts = answer, cases, num_parts
        self.library: Collection[str] = ()
        self.result = Run()
        self.over = False  # the check no longer waits for this thread
        self.watcher = self._watch  # bound once, so that ``is`` tells whether it is still in place

    def run(self) -> None:
        """Call the answer on every case, in order."""
        try:
            for case in self.cases:
                self.result.outcomes.append(self._call(case))
        except SystemExit:
            return

    def halt(self) -> None:
        """Raise SystemExit in this thread until it ends or the grace is over, at uneven intervals."""
        until = time.monotonic() + GRACE
        for turn in range(10**6):
            if not self.is_alive() or time.monotonic() > until:
                return
            _raise_exit(self.ident)
            self.join(0.001 * (1 + turn % 7))

    def _call(self, case: Case) -> Outcome:
        torch.set_grad_enabled(True)  # in this thread: whatever the last call left behind
        given = case.fresh()
        parts: tuple[Part, ...] = ()
        changed: tuple[str, ...] = ()
        error = line = ""
        try:
            sys.setprofile(self.watcher)
            try:
                raw = self.answer(*given)
                theirs = getattr(threading.getprofile(), "__func__", None)  # or another check's
                self.result.unwatched |= sys.getprofile() is not self.watcher or theirs is not Worker._watch
            finally:
                sys.setprofile(None)
            parts, changed = take_out(raw, self.num_parts), case.changed(given)
            del raw
        except BaseException as caught:
            if self.result.stopped and isinstance(caught, SystemExit):  # from `halt`, not the answer's own
                raise
            error, line = error_text(caught), _students_line(caught.__traceback__)
        printed = "".join(s.taken() for s in (sys.stdout, sys.stderr) if isinstance(s, Captured))
        return Outcome(parts, error, line, changed, printed)

    def _watch(self, frame: FrameType, event: str, _: object) -> None:
        if self.over:  # a thread that the answer left behind
            sys.setprofile(None)
            return
        if event != "call" or self.result.library_call:
            return
        code = frame.f_code
        if code.co_filename.startswith(_COURSE):
            names = {code.co_name, code.co_qualname.split(".")[0]}
            if names & set(self.library):
                self.result.library_call = code.co_qualname


def run(
    answer: Callable[..., object],
    cases: Sequence[Case],
    *,
    num_parts: int = 1,
    library: Collection[str] = (),
    time_limit: float = TIME_LIMIT,
) -> Run:
    """Call ``answer`` with copies of every case's arguments, and say what came of it.

    ``library`` names the functions and classes of ``dgm_course`` that the answer must not call. Raises
    nothing that the answer raises; a KeyboardInterrupt of the calling thread stops the answer and goes on.
    """
    worker = Worker(answer, cases, num_parts)
    worker.library = library
    with _kept_session() as random_change, _captured(worker), _watched(worker):
        worker.start()
        try:
            worker.join(time_limit)
        finally:
            if worker.is_alive():
                worker.result.stopped = "stopped"
                worker.halt()
        changed = random_change()
    result = worker.result
    if worker.is_alive():
        result.stopped = "unstoppable"
    unwatched = result.unwatched and not result.stopped
    return Run(list(result.outcomes), result.stopped, result.library_call, unwatched, changed)


def _raise_exit(ident: int | None) -> None:
    """Raise SystemExit in the thread ``ident`` as soon as it executes bytecode, and harm no other thread.

    A SystemExit, and no subclass: a thread that dies of it prints nothing.

    Python 3.11 has one flag that tells all threads that one of them has something to raise, and clears it
    when an exception is raised: never, if that thread is blocked in C or has just ended. As long as the flag
    is set, every thread that has a profile or trace function (the next check's, a debugger's) executes the
    first instruction of the next function it calls for ever. So the calling thread raises an exception of its
    own, which clears the flag, before it calls anything else. A blocked thread keeps its exception and raises
    it when it is back from C. Later versions do not need this, and it does no harm there.
    """
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    other, leave = ctypes.c_ulong(ident), ctypes.py_object(SystemExit)
    me, settled = ctypes.c_ulong(threading.get_ident()), ctypes.py_object(_Settled)
    try:
        raise_in(other, leave)
        raise_in(me, settled)
        for _ in range(10**6):  # it is raised here at the latest, in the first turns
            pass
    except _Settled:
        return  # the flag is cleared, which is all that this exception is for


@contextmanager
def plain_defaults(default_dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """This dtype, the CPU and gradients as torch's defaults inside, whatever the session has set."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(default_dtype)
    try:
        with nullcontext() if device.type == "cpu" else torch.device("cpu"), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def _watched(worker: Worker) -> Iterator[None]:
    """The threads started inside have the worker's profile function, and lose it afterwards."""
    kept = threading.getprofile()
    threading.setprofile(worker.watcher)
    try:
        yield
    finally:
        worker.over = True
        threading.setprofile(kept)


@contextmanager
def _captured(worker: Worker) -> Iterator[None]:
    out, err = sys.stdout, sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stdout, sys.stderr = Captured(out, worker), Captured(err, worker)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


@contextmanager
def _kept_session() -> Iterator[Callable[[], tuple[str, ...]]]:
    """Known random states inside, the student's own afterwards; yields what tells which have changed."""
    cpu, cuda, threads = torch.default_generator, torch.cuda.is_initialized(), torch.get_num_threads()
    kept = cpu.get_state(), np.random.get_state(), random.getstate(), torch.get_default_dtype()
    kept_cuda = torch.cuda.get_rng_state_all() if cuda else []
    cpu.manual_seed(INNER_SEED)
    np.random.seed(INNER_SEED)
    random.seed(INNER_SEED)
    start = _random_states()

    def changed() -> tuple[str, ...]:
        return tuple(name for name, state in _random_states().items() if state != start[name])

    try:
        yield changed
    finally:
        cpu.set_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
        torch.set_default_dtype(kept[3])
        torch.set_num_threads(threads)
        if cuda:
            torch.cuda.set_rng_state_all(kept_cuda)


def _random_states() -> dict[str, object]:
    of_numpy = np.random.get_state(legacy=False)
    return {
        "torch": torch.default_generator.get_state().numpy().tobytes(),
        "numpy": (of_numpy["state"]["key"].tobytes(), of_numpy["state"]["pos"], of_numpy["has_gauss"]),
        "random": random.getstate(),
    }


def _students_line(trace: TracebackType | None) -> str:
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]
    mine = [place for place in places if not place[0].startswith(_NOT_THE_STUDENT)]
    if not mine:
        return ""
    text = linecache.getline(*mine[-1]).strip()
    return f"line {mine[-1][1]}: {text[:120]}" if text else f"line {mine[-1][1]}"
