"""Run a notebook in a fresh kernel and look at what it printed.

A committed notebook must not depend on the machine that ran it. Progress bars and live controls are taken
out of the outputs: a bar is written to the kernel's stderr and holds speeds and times, and a widget is a
number that means nothing without its kernel (JupyterLab shows "model not found" in its place). Everything
else that ties an output to a machine is an error: a path, an address in memory, a warning.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode, from_dict
from nbformat.v4 import new_output

from .editions import to_json
from .source import METADATA, BuildError

CELL_TIMEOUT = 120  # seconds
MAX_BYTES = 1_000_000
_WIDGET = "application/vnd.jupyter.widget-view+json"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# tqdm: "fit:  40%|####      | 400/1000 [00:01<00:02, 310it/s]", or "400it [00:01, 310it/s]" without a total.
_PROGRESS = re.compile(r"\d+%\|.*\||\d+it \[")
_PATHS = re.compile(r"site-packages|dist-packages|ipykernel_\d+|/home/\w+|/Users/\w+|\b[A-Za-z]:\\\w+")
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")


def execute(source: NotebookNode, folder: Path, name: str) -> NotebookNode:
    """Return ``source`` with outputs, run from top to bottom by a fresh kernel whose directory is ``folder``.

    The checks run as they do in nbgrader's validation: a solution that fails its own check stops the build.
    Raises ``BuildError`` naming the lecture and the cell when a cell fails, takes more than ``CELL_TIMEOUT``
    seconds, or leaves an output that ``problems`` refuses.
    """
    notebook = copy.deepcopy(source)
    running = {"id": notebook.cells[0]["id"]}
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
        on_cell_start=lambda cell, cell_index: running.update(id=cell["id"]),
    )
    with tempfile.TemporaryDirectory() as profile:
        environment = {
            **os.environ,
            "NBGRADER_EXECUTION": "validate",
            "IPYTHONDIR": profile,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            raise BuildError(
                f"{name}, cell {running['id']}: {error.ename}: {_ANSI.sub('', error.evalue)}\n"
                f"{_tail(str(error))}"
            ) from error
        except CellTimeoutError as error:
            raise BuildError(f"{name}, cell {running['id']}: still running after {CELL_TIMEOUT} s") from error
        except DeadKernelError as error:
            raise BuildError(f"{name}, cell {running['id']}: the kernel died (out of memory?)") from error
    found = [
        f"cell {cell['id']}: nbval compares this cell, so it cannot have a progress bar or live controls"
        for cell in notebook.cells
        if _tidy(cell) and _compared(cell)
    ]
    notebook.metadata = from_dict(METADATA)  # nbclient adds the Python version, which differs
    found += problems(notebook)
    if found:
        raise BuildError("\n".join(f"{name}, {line}" for line in found))
    return notebook


def problems(notebook: NotebookNode) -> list[str]:
    """What is wrong with the outputs of an executed notebook: a line for each cell, none when all is well."""
    found: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None and cell.source.strip():
            found.append(f"cell {cell['id']}: was never executed")
        for output in cell.outputs:
            found += [f"cell {cell['id']}: {fault}" for fault in _faults(output)]
        if _compared(cell) and [output.get("name") for output in cell.outputs] != ["stdout"]:
            found.append(f"cell {cell['id']}: nbval compares this cell, so it prints, and does nothing else")
    size = len(to_json(notebook).encode())
    if size > MAX_BYTES:
        weights = sorted(
            ((len(json.dumps(c.get("outputs", []))), c["id"]) for c in notebook.cells), reverse=True
        )
        largest = ", ".join(f"{cell_id} {weight / 1000:.0f} kB" for weight, cell_id in weights[:5])
        found.append(
            f"the notebook has {size / 1000:.0f} kB, the cap is {MAX_BYTES / 1000:.0f}; largest outputs: "
            f"{largest}. Draw fewer or smaller figures there"
        )
    return found


def _compared(cell: NotebookNode) -> bool:
    """Whether ``make notebooks`` compares the cell's text with the committed one."""
    return cell.cell_type == "code" and "nbval-check-output" in cell.metadata.get("tags", [])


def _tidy(cell: NotebookNode) -> bool:
    """Take progress bars, live controls and timings out of a cell; whether a bar or a control was there."""
    cell.metadata.pop("execution", None)
    if cell.cell_type != "code":
        return False
    shown = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]
    warned = [output for output in shown if output.get("name") == "stderr"]
    lines = re.split(r"[\r\n]+", "".join(output.text for output in warned))
    said = "\n".join(line for line in lines if line.strip() and not _PROGRESS.search(line))
    kept = [new_output("stream", name="stderr", text=said)] if said else []
    for output in shown:
        if output in warned:
            continue
        if kept and output.get("name") == "stdout" == kept[-1].get("name"):
            kept[-1].text += output.text  # how a stream is cut into messages depends on the machine's speed
        else:
            kept.append(output)
    removed = len(shown) < len(cell.outputs) or bool(warned and not said)
    cell.outputs = kept
    return removed


def _faults(output: NotebookNode) -> list[str]:
    if output.output_type == "error":
        return [f"{output.ename}: {output.evalue}"]
    if output.output_type == "stream":
        texts = [output.text]
    else:
        texts = [
            str(value) for kind, value in output.data.items() if kind.startswith("text/") or "svg" in kind
        ]
    text = _ANSI.sub("", "\n".join(texts))
    leak = _machine_paths().search(text)
    if leak:
        line = text[text.rfind("\n", 0, leak.start()) + 1 :].split("\n", 1)[0]
        return [f"a path of this machine in the output: {line.strip()[:200]}"]
    address = _ADDRESS.search(text)
    if address:
        return [f"an address in memory in the output ({text.strip()[:80]}): end the line with a semicolon"]
    if output.output_type == "stream" and output.name == "stderr":
        return [f"writes to stderr: {text.strip()[:200]}"]
    return []


def _machine_paths() -> re.Pattern[str]:
    here = [str(Path.home()), sys.prefix, str(Path(__file__).parents[2])]
    return re.compile("|".join([_PATHS.pattern, *(re.escape(path) for path in here if len(path) > 3)]))


def _tail(text: str, lines: int = 12) -> str:
    """The end of a traceback, without colours."""
    return "\n".join(_ANSI.sub("", text).rstrip().split("\n")[-lines:])
