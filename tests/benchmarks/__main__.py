"""``python -m tests.benchmarks [k7 ...] [--quick]``: measure all kernels, or the named ones.

A quick run takes each kernel at its tiny size, twice: it shows that everything runs and agrees, prints its
table and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch

from .fresh import load, peak_in_fresh_process
from .harness import measure
from .report import markdown, merge, record, section

HERE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    """Run the benchmarks; 2 for an unknown kernel. A disagreement ends the run with its message."""
    files = {file.stem.split("_")[0]: file for file in sorted(HERE.glob("k[0-9]*_*.py"))}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", metavar="kernel", help=f"some of: {', '.join(files)} (all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds, nothing written")
    options = parser.parse_args(arguments)
    wanted = [name.lower() for name in options.kernels] or list(files)
    unknown = [name for name in wanted if name not in files]
    if unknown:
        parser.error(f"no benchmark called {', '.join(unknown)}; there are: {', '.join(files)}")

    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    stored = HERE / "RESULTS.json"
    results = json.loads(stored.read_text()) if stored.exists() else {}
    for name in wanted:
        benchmark = load(files[name])
        records = {}
        for device in devices:
            print(f"{benchmark.kernel} on {device.type}: {benchmark.title}", flush=True)
            memory = None if options.quick else partial(peak_in_fresh_process, files[name], benchmark.threads)
            measured = measure(benchmark, device, quick=options.quick, peak_memory=memory)
            records[device.type] = record(benchmark, device, measured)
            print(section(records[device.type]), flush=True)
        if not options.quick:
            merge(results, benchmark, records)
            stored.write_text(json.dumps(results, indent=1) + "\n")
            (HERE / "RESULTS.md").write_text(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
