"""Every lecture keeps to the house's limits: 60 seconds and 1.5 GB on two cores.

The memory is held against the limit: it hardly depends on the machine. The time is written down, to
``.artifacts/limits.json``, and bounded only so that a lecture that hangs ends.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
LECTURES = sorted((ROOT / "lectures").glob("*.ipynb"))
RECORD = ROOT / ".artifacts" / "limits.json"
MAX_MB = 1500
HOUSE_SECONDS = 60
HANG_SECONDS = 300


def peak_megabytes(pid: int) -> float:
    """The largest resident memory that a running process has had so far, in 10^6 bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kibibytes) * 1024 / 1e6


def run(path: Path, profile: Path) -> tuple[float, float]:
    """Run a notebook in a kernel of its own; return its seconds and the kernel's peak megabytes."""
    end = time.monotonic() + HANG_SECONDS
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout_func=lambda cell: max(1, round(end - time.monotonic())),  # for all cells together
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    )
    environment = {**os.environ, "IPYTHONDIR": str(profile), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment.pop("NBGRADER_EXECUTION", None)
    start = time.perf_counter()
    with client.setup_kernel(env=environment):
        for position, cell in enumerate(notebook.cells):
            client.execute_cell(cell, position)
        return time.perf_counter() - start, peak_megabytes(client.km.provisioner.pid)


@pytest.mark.long
@pytest.mark.parametrize("lecture", LECTURES, ids=lambda path: path.stem)
def test_memory_of_a_lecture(lecture: Path, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("this system has no /proc: a process's peak memory is not known here")
    seconds, megabytes = run(Path(shutil.copy(lecture, tmp_path)), tmp_path / "profile")
    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    found[lecture.stem] = {
        "seconds": round(seconds, 1),
        "seconds_of_the_house": HOUSE_SECONDS,
        "peak_megabytes": round(megabytes),
        "peak_megabytes_of_the_house": MAX_MB,
    }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert megabytes < MAX_MB, f"the kernel took {megabytes:.0f} MB"


def test_peak_memory_counts_what_was_given_back() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("this system has no /proc: a process's peak memory is not known here")
    code = "block = b'x' * 300_000_000; del block; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        one.stdout.readline()
        megabytes = peak_megabytes(one.pid)
        one.communicate(b"\n", timeout=60)
    assert 300 < megabytes < 400
