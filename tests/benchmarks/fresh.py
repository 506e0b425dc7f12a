"""Peak memory of one contender in a process of its own: ``peak_in_fresh_process``.

The child (``python -m tests.benchmarks.fresh FILE CONTENDER SIZE DEVICE THREADS``) runs the contender once at
the tiny size, so that code loaded on first use does not count, makes the inputs, and measures by how much one
run at the wanted size, preparation included, raises the resident memory at its highest.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .harness import Benchmark, Contender


def load(file: Path) -> Benchmark:
    """The ``BENCHMARK`` that a file defines; its relative imports are those of this package."""
    spec = importlib.util.spec_from_file_location(f"{__package__}.{file.stem}", file)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BENCHMARK


def peak_in_fresh_process(
    file: Path, threads: int, contender: Contender, size: Mapping[str, int], device: torch.device
) -> int | None:
    """Bytes beyond the inputs that one run needs at its highest, or None where it cannot be measured."""
    name = __package__ or "benchmarks"
    root = Path(__file__).parents[len(name.split("."))]
    arguments = [str(file), contender.name, json.dumps(dict(size)), str(device), str(threads)]
    child = subprocess.run(
        [sys.executable, "-m", f"{name}.fresh", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        capture_output=True, text=True,
    )
    if child.returncode:
        raise RuntimeError(f"'{contender.name}' failed in a fresh process at {dict(size)}:\n{child.stderr}")
    return json.loads(child.stdout.splitlines()[-1])


def peak_of(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which ``run()`` raises the memory in use at its highest; None if the system does not say."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _resident(reset=True)
    run()
    after = _resident(reset=False)
    return None if before is None or after is None else after - before


def _resident(reset: bool) -> int | None:
    """The highest resident memory of this process so far, in bytes; with ``reset``, counted from now on.

    Before a reset the allocator returns what is free, else the run would fill that first, unseen.
    """
    try:
        if reset:
            if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
                libc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux, or not permitted: the highest since the process began
        if importlib.util.find_spec("resource") is None:
            return None
        import resource

        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024


def main(file: str, name: str, size: str, device_name: str, threads: str) -> None:
    """Measure and print the bytes as the last line."""
    benchmark, device = load(Path(file)), torch.device(device_name)
    contender = next(c for c in benchmark.contenders if c.name == name)
    torch.set_num_threads(int(threads))
    contender.prepare(benchmark.inputs(benchmark.tiny, device))()
    inputs = benchmark.inputs(json.loads(size), device)
    print(json.dumps(peak_of(lambda: contender.prepare(inputs)(), device)))


if __name__ == "__main__":
    main(*sys.argv[1:])
