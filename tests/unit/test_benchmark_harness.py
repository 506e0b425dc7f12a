"""The benchmark harness on tiny contenders, timed by a clock that counts the work done."""

from __future__ import annotations

import json
import math
import os
import platform
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import fresh, harness, report
from benchmarks.harness import Benchmark, Contender, Disagreement, Goal, Run, faster_than, measure, within
from benchmarks.measures import growth_exponent, quartiles, ratio_quartiles, relative_error
from torch import Tensor

CPU = torch.device("cpu")
FOLDER = Path(harness.__file__).parent


class Workshop:
    """Contenders whose run advances a clock by a known amount of work, and notes who ran."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.log: list[str] = []

    def contender(
        self, name: str, passes: int, power: int = 1, off: float = 0.0, **extra: object
    ) -> Contender:
        def prepare(x: Tensor) -> Run:
            def run() -> Tensor:
                self.log.append(name)
                self.clock += passes * len(x) ** power
                return 2 * x + off

            return run

        return Contender(name, prepare, **extra)

    def benchmark(self, *others: Contender, **changes: object) -> Benchmark:
        settings = dict(
            kernel="K0", title="doubling", workload="2x.", contenders=(self.contender("ours", 1), *others),
            inputs=lambda size, device: torch.arange(1.0, size["n"] + 1, device=device),
            reference=lambda x: 2 * x.double(), tolerance=1e-6, sizes=[{"n": 4}, {"n": 8}, {"n": 16}],
            main={"n": 16}, tiny={"n": 2}, grows_in="n", rounds=5, unit="doubling", units_per_run=4,
        )
        return Benchmark(**{**settings, **changes})


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shop = Workshop()
    clocks = types.SimpleNamespace(process_time=lambda: shop.clock, perf_counter=None)
    monkeypatch.setattr(harness, "time", clocks)
    return shop


def test_quartiles_and_ratios_on_given_numbers() -> None:
    values = [5.0, 1.0, 9.0, 3.0, 4.0, 2.0]
    np.testing.assert_allclose(quartiles(values), np.percentile(values, [25, 50, 75]))
    assert quartiles([7.0]) == [7.0, 7.0, 7.0]
    # A machine that is three times slower in the second round changes no ratio.
    assert ratio_quartiles([2.0, 6.0, 2.0], [1.0, 3.0, 1.0]) == [2.0, 2.0, 2.0]


def test_growth_exponent_on_given_numbers() -> None:
    assert math.isclose(growth_exponent([10, 100, 1000], [3 * n**1.5 for n in (10, 100, 1000)]), 1.5)
    assert growth_exponent([10, 10], [1.0, 2.0]) is None


def test_relative_error_looks_at_every_part() -> None:
    right = (torch.tensor([1.0, -4.0]), torch.tensor([10.0]))
    assert relative_error((torch.tensor([1.5, -4.0]), torch.tensor([10.0])), right) == 0.125
    for parts in ([math.nan, 10.0], [1.0, math.nan]):
        result = (torch.tensor([parts[0], -4.0]), torch.tensor([parts[1]]))
        assert math.isnan(relative_error(result, right))
    with pytest.raises(Disagreement, match="shapes"):
        relative_error(torch.ones(2), right)


def test_times_ratios_and_growth(workshop: Workshop) -> None:
    peers = workshop.contender("twice", 2), workshop.contender("square", 1, power=2)
    goals = faster_than("twice", 1.5), faster_than("twice", 2.5), within("square", 1)
    result = measure(workshop.benchmark(*peers, goals=goals), CPU)
    main = {row["contender"]: row for row in result["rows"] if row["size"] == {"n": 16}}
    assert main["ours"]["seconds"] == [4.0, 4.0, 4.0]  # 16 units of work, four doublings a run
    assert main["twice"]["ratio"] == [2.0, 2.0, 2.0]
    assert main["square"]["ratio"] == [16.0, 16.0, 16.0]
    assert math.isclose(main["twice"]["growth"], 1) and math.isclose(main["square"]["growth"], 2)
    assert [goal["met"] for goal in result["goals"]] == [True, False, True]
    assert [goal["value"] for goal in result["goals"]] == [2.0, 2.0, 1 / 16]


def test_a_goal_may_name_another_size_than_the_main_one(workshop: Workshop) -> None:
    peer = workshop.contender("square", 1, power=2)  # n times as long as ours
    goals = [faster_than("square", 5, at=at) for at in (None, {"n": 4}, {"n": 5})]
    benchmark = workshop.benchmark(peer, goals=goals)
    kept = report.record(benchmark, CPU, measure(benchmark, CPU))
    assert [goal["value"] for goal in kept["goals"]] == [16.0, 4.0, None]
    assert [goal["met"] for goal in kept["goals"]] == [True, False, None]
    lines = [line for line in report.section(kept).splitlines() if line.startswith("- Goal")]
    assert [line.split(":")[0] for line in lines] == [f"- Goal at n = {n}" for n in (16, 4, 5)]


def test_runs_are_interleaved(workshop: Workshop) -> None:
    names = {"ours", "b", "c"}
    peers = [workshop.contender(name, 1) for name in ("b", "c")]
    measure(workshop.benchmark(*peers, sizes=[{"n": 4}], main={"n": 4}, rounds=6), CPU)
    rounds = [tuple(workshop.log[start : start + 3]) for start in range(3, 21, 3)]  # after the untimed runs
    assert len(workshop.log) == 21 and all(set(order) == names for order in rounds)
    assert len(set(rounds)) > 1


def test_disagreement_stops_the_benchmark(workshop: Workshop) -> None:
    wrong = workshop.contender("wrong", 1, off=0.1)
    with pytest.raises(Disagreement, match=r"K0: 'wrong' is off the float64 reference by 0.013 .* and 1e-06"):
        measure(workshop.benchmark(wrong), CPU)
    with pytest.raises(Disagreement, match="by nan"):
        measure(workshop.benchmark(workshop.contender("nan", 1, off=math.nan)), CPU)
    tolerated = replace(wrong, tolerance=0.1)
    rows = measure(workshop.benchmark(tolerated), CPU, quick=True)["rows"]
    assert [row["contender"] for row in rows] == ["ours", "wrong"] and rows[1]["error"] > 0.01


def test_missing_peers_are_reported(workshop: Workshop) -> None:
    absent = workshop.contender("absent", 1, requires=("no_such_package",))
    heavy = workshop.contender("heavy", 1, skip=lambda size: "needs 22 GB" if size["n"] > 4 else None)
    benchmark = workshop.benchmark(absent, heavy, goals=(faster_than("absent", 2), faster_than("heavy", 1)))
    kept = report.record(benchmark, CPU, measure(benchmark, CPU))
    assert [goal["met"] for goal in kept["goals"]] == [None, None]
    assert "absent" not in workshop.log
    text = report.section(kept)
    assert text.count("| absent | n = 16 | not installed: no_such_package |") == 1
    assert text.count("| heavy | n = 4 | ") == 1 and "| heavy | n = 16 | not run: needs 22 GB |" in text
    assert "no_such_package not installed" in text and "Reached: not measured; **open**" in text


def test_a_goal_that_is_wrongly_written_is_not_hidden(workshop: Workshop) -> None:
    goal = Goal("nonsense", lambda rows: rows["ours"]["ratio"][1] / 0)
    with pytest.raises(ZeroDivisionError):
        measure(workshop.benchmark(goals=(goal,)), CPU)


def test_results_keep_what_was_not_measured_again(workshop: Workshop) -> None:
    benchmark = workshop.benchmark()
    kept = report.record(benchmark, CPU, measure(benchmark, CPU))
    results: dict[str, dict] = {"K10": {"title": "old", "workload": "-", "devices": {}}}
    report.merge(results, benchmark, {"cuda": {**kept, "machine": {**kept["machine"], "gpu": "Some GPU"}}})
    report.merge(results, benchmark, {"cpu": kept})
    assert set(results["K0"]["devices"]) == {"cpu", "cuda"}
    text = report.markdown(json.loads(json.dumps(results)))
    assert text.index("## K0. doubling") < text.index("## K10. old")
    assert "Some GPU, with" in text
    assert text.split("### K10: On a GPU")[1].strip() == "not measured: no CUDA device"


def test_machine_names_no_host_and_no_folder() -> None:
    text = json.dumps(report.machine(CPU, ["no-such-package", "numpy"]))
    private = [platform.node(), str(Path.home()), os.getcwd()]
    assert not [name for name in private if len(name) > 1 and name in text]
    assert torch.__version__ in text and np.__version__ in text


ALLOCATING = '''
import torch
from .harness import Benchmark, Contender

def prepare(n):
    def run():
        torch.ones(n * 2**18).sum()  # n MB
        return torch.ones(1)
    return run

BENCHMARK = Benchmark(
    kernel="K0", title="", workload="", contenders=[Contender("allocates", prepare)],
    inputs=lambda size, device: size["n"], reference=lambda n: torch.ones(1), tolerance=0.0,
    sizes=[{"n": 64}], main={"n": 64}, tiny={"n": 1}, grows_in="n",
)
'''


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="exact only with Linux's /proc")
def test_memory_of_a_known_allocation_in_a_fresh_process(tmp_path: Path) -> None:
    file = tmp_path / "k0_allocates.py"
    file.write_text(ALLOCATING)
    contender = fresh.load(file).contenders[0]
    bytes_used = fresh.peak_in_fresh_process(file, 1, contender, {"n": 64}, CPU)
    assert 60 * 2**20 < bytes_used < 80 * 2**20
    file.write_text(ALLOCATING.replace("return torch.ones(1)", "raise MemoryError('full')"))
    with pytest.raises(RuntimeError, match="(?s)'allocates' failed in a fresh process.*MemoryError: full"):
        fresh.peak_in_fresh_process(file, 1, contender, {"n": 64}, CPU)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="exact only with Linux's /proc")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are not asked")
def test_memory_that_the_inputs_left_free_is_counted_when_it_is_used_again(tmp_path: Path) -> None:
    file = tmp_path / "k0_allocates.py"
    # 64 kB at a time: the allocator keeps them for the next, since what lies above them is still in use
    blocks = "def blocks(n):\n    return [torch.ones(2**14) for _ in range(16 * n)]\n\n"
    file.write_text(
        ALLOCATING.replace("torch.ones(n * 2**18).sum()", "blocks(n[0])")
        .replace('size["n"],', '(size["n"], blocks(size["n"])[-1]),')
        .replace("def prepare", blocks + "def prepare")
    )
    bytes_used = fresh.peak_in_fresh_process(file, 1, fresh.load(file).contenders[0], {"n": 64}, CPU)
    assert 60 * 2**20 < bytes_used < 80 * 2**20


def test_quick_run_of_a_kernel_agrees_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in FOLDER.glob("RESULTS.*")}
    assert command.main(["k7", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert "| train.fit_many | E = 2, hidden = 32 |" in printed and "stack_module_state + vmap" in printed
    assert {file.name: file.stat().st_mtime_ns for file in FOLDER.glob("RESULTS.*")} == before


def test_unknown_kernel_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["k99"])
    message = capsys.readouterr().err
    assert "no benchmark called k99; there are: k" in message and "k7" in message


def test_the_table_in_the_repository_is_that_of_its_json() -> None:
    results = json.loads((FOLDER / "RESULTS.json").read_text())
    assert (FOLDER / "RESULTS.md").read_text() == report.markdown(results)
    measured = {name.lower() for name in results}
    assert measured == {file.stem.split("_")[0] for file in FOLDER.glob("k[0-9]*_*.py")}
