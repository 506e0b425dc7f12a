"""Measure a kernel beside its peers: same inputs, interleaved runs, agreement with a float64 reference.

An entry declares a `Benchmark`. At each of its sizes `measure` runs every contender once untimed and
compares what it returns with the reference; then it times all of them round by round, in a new order each
round. What disturbs the machine disturbs everyone, and a ratio is the median of the ratios within rounds.
Peak memory is measured by `fresh`, in one new process for each contender and size.
"""

from __future__ import annotations

import gc
import importlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .measures import Disagreement, Result, growth_exponent, quartiles, ratio_quartiles, relative_error

Size = Mapping[str, int]
Run = Callable[[], Result | None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way to do the work. ``prepare(inputs)`` returns the function to time; it is not timed itself.

    ``requires`` names the packages it needs (a missing one is reported in the table), ``skip(size)`` returns
    the reason why it is not run at a size, or None, and ``tolerance`` replaces the benchmark's own where a
    peer is known to be less accurate. A ``limit`` is a part of the work that nobody can do without, such as
    its matrix products: it returns None and is compared with nothing.
    """

    name: str
    prepare: Callable[[Any], Run]
    requires: tuple[str, ...] = ()
    skip: Callable[[Size], str | None] = lambda size: None
    tolerance: float | None = None
    limit: bool = False


@dataclass(frozen=True)
class Goal:
    """A bound on one number taken from the rows of one size (contender's name -> row): main, or ``at``."""

    text: str
    value: Callable[[Mapping[str, Row]], float]
    at_least: float = -math.inf
    at_most: float = math.inf
    on: str = "cpu"
    at: Size | None = None


def faster_than(peer: str, factor: float, on: str = "cpu", at: Size | None = None) -> Goal:
    """The peer takes at least ``factor`` times our time."""
    text = f"at least {factor:g} x as fast as {peer}"
    return Goal(text, lambda rows: rows[peer]["ratio"][1], at_least=factor, on=on, at=at)


def within(limit: str, factor: float, on: str = "cpu", at: Size | None = None) -> Goal:
    """We take at most ``factor`` times the limit's time."""
    text = f"at most {factor:g} x the time of {limit}"
    return Goal(text, lambda rows: 1 / rows[limit]["ratio"][1], at_most=factor, on=on, at=at)


def memory_below(ours: str, megabytes: float, on: str = "cpu", at: Size | None = None) -> Goal:
    """Our peak memory beyond the inputs, in MB."""
    text = f"peak memory of {ours} below {megabytes:g} MB"
    return Goal(text, lambda rows: rows[ours]["peak_bytes"] / 1e6, at_most=megabytes, on=on, at=at)


def seconds_below(ours: str, seconds: float, on: str = "cpu", at: Size | None = None) -> Goal:
    """Our median time."""
    text = f"{ours} in less than {seconds:g} s"
    return Goal(text, lambda rows: rows[ours]["seconds"][1], at_most=seconds, on=on, at=at)


@dataclass(frozen=True)
class Benchmark:
    """A kernel, its peers and its goals. The first contender is ours; ratios are others' time over ours.

    ``inputs(size, device)`` makes the data, the same for all; ``reference(inputs)`` is the float64 answer
    that every contender must match: max |result - reference| <= tolerance * max |reference|. Times are per
    ``unit``, of which a run does ``units_per_run``. Goals hold at the size ``main`` unless they name another;
    growth is fitted over the sizes that differ from it in ``grows_in`` only. ``tiny`` is the size of a quick
    run, and what warms a process up before its memory is measured. With one thread the clock is the process's
    CPU time, which busy neighbours hardly disturb; with more, and on a GPU, it is the wall clock.
    """

    kernel: str
    title: str
    workload: str
    contenders: Sequence[Contender]
    inputs: Callable[[Size, torch.device], Any]
    reference: Callable[[Any], Result]
    tolerance: float
    sizes: Sequence[Size]
    main: Size
    tiny: Size
    grows_in: str
    goals: Sequence[Goal] = ()
    cuda_sizes: Sequence[Size] = ()
    cuda_main: Size | None = None
    rounds: int = 9
    threads: int = 1
    unit: str = "run"
    units_per_run: int = 1

    def plan(self, device: torch.device) -> tuple[Sequence[Size], Size]:
        """The sizes to measure on a device, and the main one."""
        cuda = device.type == "cuda"
        return (cuda and self.cuda_sizes) or self.sizes, (cuda and self.cuda_main) or self.main


def missing(contender: Contender) -> str | None:
    """The reason why a peer cannot be imported, or None."""
    for package in contender.requires:
        try:
            importlib.import_module(package)
        except ImportError as error:
            known = isinstance(error, ModuleNotFoundError) and error.name == package
            return f"not installed: {package}" if known else f"{package} does not import: {error}"
    return None


def check_agreement(benchmark: Benchmark, contender: Contender, result: Result, reference: Result) -> float:
    """The contender's relative error; `Disagreement` if it exceeds the tolerance."""
    error = relative_error(result, reference)
    tolerance = benchmark.tolerance if contender.tolerance is None else contender.tolerance
    if not error <= tolerance:
        raise Disagreement(
            f"{benchmark.kernel}: '{contender.name}' is off the float64 reference by {error:.2g} (relative), "
            f"and {tolerance:.2g} is allowed"
        )
    return error


def measure_size(benchmark: Benchmark, size: Size, device: torch.device, rounds: int) -> list[Row]:
    """Agreement, times and ratios of all contenders at one size: a row each."""
    inputs = benchmark.inputs(size, device)
    reference = benchmark.reference(inputs)
    rows: list[Row] = []
    running: dict[str, tuple[Contender, list[float]]] = {}
    for contender in benchmark.contenders:
        row: Row = {"contender": contender.name, "size": dict(size)}
        rows.append(row)
        reason = missing(contender)
        if reason is None and (why := contender.skip(size)) is not None:
            reason = f"not run: {why}"
        if reason is not None:
            row["missing"] = reason
            continue
        result = contender.prepare(inputs)()
        if not contender.limit:
            row["error"] = check_agreement(benchmark, contender, result, reference)
        running[contender.name] = (contender, [])
    order = list(running.values())
    for index in range(rounds):
        random.Random(index).shuffle(order)
        for contender, times in order:
            seconds = timed(contender.prepare(inputs), device, benchmark.threads)
            times.append(seconds / benchmark.units_per_run)
    ours = running[benchmark.contenders[0].name][1]
    for row in rows:
        if row["contender"] in running:
            times = running[row["contender"]][1]
            row["seconds"] = quartiles(times)
            row["ratio"] = ratio_quartiles(times, ours)
    return rows


def timed(run: Run, device: torch.device, threads: int) -> float:
    """Seconds of one run: CPU time with one thread, wall time with more or on a GPU."""
    gc.collect()
    cuda = device.type == "cuda"
    clock = time.process_time if threads == 1 and not cuda else time.perf_counter
    if cuda:
        torch.cuda.synchronize(device)
    start = clock()
    run()
    if cuda:
        torch.cuda.synchronize(device)
    return clock() - start


def add_growth(benchmark: Benchmark, rows: Sequence[Row], main: Size) -> None:
    """Write into each row of the main size how that contender's time and memory grow with ``grows_in``."""
    key = benchmark.grows_in
    for row in rows:
        if row["size"] != dict(main) or "seconds" not in row:
            continue
        family = [
            r for r in rows
            if r["contender"] == row["contender"] and "seconds" in r
            and all(r["size"][k] == v for k, v in main.items() if k != key)
        ]
        sizes = [r["size"][key] for r in family]
        row["growth"] = growth_exponent(sizes, [r["seconds"][1] for r in family])
        if all((r.get("peak_bytes") or 0) >= 1e6 for r in family):  # less is the allocator's noise
            row["memory_growth"] = growth_exponent(sizes, [r["peak_bytes"] for r in family])


def judge(benchmark: Benchmark, rows: Sequence[Row], main: Size, device: torch.device) -> list[Row]:
    """Each goal of the device: text, size, the number reached, and whether it is met (None: not measured)."""
    verdicts: list[Row] = []
    for goal in benchmark.goals:
        if goal.on != device.type:
            continue
        size = dict(main if goal.at is None else goal.at)
        table = {r["contender"]: r for r in rows if r["size"] == size}
        try:
            value = goal.value(table)
            met = goal.at_least <= value <= goal.at_most
        except (KeyError, TypeError):  # the row has no such number: its contender did not run here
            value = met = None
        verdicts.append({"goal": goal.text, "at": size, "value": value, "met": met})
    return verdicts


def measure(
    benchmark: Benchmark,
    device: torch.device,
    *,
    quick: bool = False,
    peak_memory: Callable[[Contender, Size, torch.device], int | None] | None = None,
) -> dict[str, Any]:
    """All about one kernel on one device, ready for JSON; a quick run has two rounds at the tiny size."""
    sizes, main = ((benchmark.tiny,), benchmark.tiny) if quick else benchmark.plan(device)
    rounds = 2 if quick else benchmark.rounds
    threads = torch.get_num_threads()
    torch.set_num_threads(benchmark.threads)
    gc.freeze()  # what was loaded before is not searched for garbage before each run
    try:
        rows = []
        for size in sizes:
            rows += measure_size(benchmark, size, device, rounds)
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
    if peak_memory is not None:
        for row in rows:
            contender = next(c for c in benchmark.contenders if c.name == row["contender"])
            if "missing" not in row and not contender.limit:
                row["peak_bytes"] = peak_memory(contender, row["size"], device)
    add_growth(benchmark, rows, main)
    goals = [] if quick else judge(benchmark, rows, main, device)
    return {"main": dict(main), "rounds": rounds, "rows": rows, "goals": goals}
