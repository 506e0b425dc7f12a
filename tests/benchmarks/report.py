"""The record: ``RESULTS.json``, one entry a kernel and device, and ``RESULTS.md``, written from it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .harness import Benchmark

HEAD = """# Benchmarks: the kernels beside their peers

Written by `make bench` from `RESULTS.json`; `python -m tests.benchmarks k7` measures one kernel again and
leaves the others as they are. All contenders of a table ran on the same inputs, in turn, in the same process,
and each agreed with a float64 reference in that run, or there would be no table. Times and ratios are medians
over the rounds, with quartiles in brackets; a ratio is that contender's time over ours within a round. Memory
is what one run, preparation included, adds to the inputs at its highest, in a fresh process. `E^0.9` under
growth: the cost grows like that power of E over the sizes that differ from the goal's in E only. An italic
contender is a limit: a part of the work that nobody can do without.
"""
COLUMNS = (
    "contender", "size", "time", "time / ours", "peak memory", "relative error", "time grows", "memory grows",
)


def machine(device: torch.device, packages: Iterable[str] = ()) -> dict[str, Any]:
    """What a reader needs to know of the machine: processor, versions; no names of hosts or folders."""
    system = f"{platform.system()} {platform.machine()}"
    known = {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": system}
    if device.type == "cuda":
        known["gpu"] = torch.cuda.get_device_name(device)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in sorted(packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {**known, "vector": torch.backends.cpu.get_cpu_capability(), "versions": versions}


def _cpu_model() -> str:
    """The processor's name as the system gives it."""
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def record(benchmark: Benchmark, device: torch.device, measured: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one kernel on one device, with date, machine and settings."""
    packages = {package for contender in benchmark.contenders for package in contender.requires}
    cpu_time = benchmark.threads == 1 and device.type == "cpu"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(device, packages),
        "threads": benchmark.threads,
        "clock": "CPU time" if cpu_time else "wall time",
        "unit": benchmark.unit,
        "grows_in": benchmark.grows_in,
        **measured,
    }


def merge(results: dict[str, Any], benchmark: Benchmark, records: Mapping[str, dict[str, Any]]) -> None:
    """Put a kernel's new records (device type -> record) into the results, keeping those of other devices."""
    kept = results.get(benchmark.kernel, {}).get("devices", {})
    results[benchmark.kernel] = {
        "title": benchmark.title,
        "workload": benchmark.workload,
        "devices": {**kept, **records},
    }


def markdown(results: Mapping[str, Any]) -> str:
    """All of ``RESULTS.md``."""
    parts = [HEAD]
    for kernel in sorted(results, key=lambda name: int(name[1:])):
        entry = results[kernel]
        parts.append(f"## {kernel}. {entry['title']}\n\n{entry['workload']}\n")
        for device, heading in (("cpu", "On the CPU"), ("cuda", "On a GPU")):
            found = entry["devices"].get(device)
            body = section(found) if found else "not measured: no CUDA device\n"
            parts.append(f"### {kernel}: {heading}\n\n{body}")
    return "\n".join(parts)


def section(kept: Mapping[str, Any]) -> str:
    """Machine, goals and table of one kernel on one device."""
    seen = kept["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in seen["versions"].items())
    chip = f"{seen['gpu']}, with {seen['cpu']}" if "gpu" in seen else seen["cpu"]
    lines = [
        f"{kept['date']}; {chip}, {seen['cores']} cores, {seen['vector']}, {seen['system']}; {versions}; "
        f"threads used: {kept['threads']}; {kept['clock']} per {kept['unit']}, {kept['rounds']} rounds.",
        "",
    ]
    for goal in kept["goals"]:
        reached = "not measured" if goal["met"] is None else f"{goal['value']:.3g}"
        verdict = {True: "**met**", False: "**not met**", None: "**open**"}[goal["met"]]
        size = _size(goal.get("at", kept["main"]))
        lines.append(f"- Goal at {size}: {goal['goal']}. Reached: {reached}; {verdict}.")
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += [table_row(row, kept["grows_in"]) for row in kept["rows"]]
    return "\n".join(lines) + "\n"


def table_row(row: Mapping[str, Any], grows_in: str) -> str:
    """One contender at one size; a peer that did not run says why."""
    cells = [row["contender"], _size(row["size"])]
    if "missing" in row:
        return "| " + " | ".join([*cells, row["missing"], *["–"] * (len(COLUMNS) - 3)]) + " |"
    if "error" not in row:
        cells[0] = f"*{cells[0]}*"
    low, middle, high = row["ratio"]
    growths = [row.get("growth"), row.get("memory_growth")]
    cells += [
        _spread(row["seconds"]),
        f"{middle:.2f} ({low:.2f}–{high:.2f})",
        _memory(row),
        f"{row['error']:.1e}" if "error" in row else "–",
        *("–" if growth is None else f"{grows_in}^{growth:.2f}" for growth in growths),
    ]
    return "| " + " | ".join(cells) + " |"


def _memory(row: Mapping[str, Any]) -> str:
    if row.get("peak_bytes") is None:
        return "not measured" if "error" in row else "–"  # a limit is not asked
    megabytes = row["peak_bytes"] / 1e6
    return f"{megabytes:.1f} MB" if megabytes >= 1 else "< 1 MB"


def _size(size: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in size.items())


def _spread(seconds: list[float]) -> str:
    """Quartiles in the unit that suits the median."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, scale = next((u, s) for u, s in units if seconds[1] >= s or u == "µs")
    low, middle, high = (f"{value / scale:.3g}" for value in seconds)
    return f"{middle} {unit} ({low}–{high})"
