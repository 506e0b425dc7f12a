"""What stops ``python -m dgm_course build``, and what it takes out of the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from tiny_lecture import course, one_cell, run

from dgm_course.notebooks import build
from dgm_course.notebooks.execution import problems
from dgm_course.notebooks.source import BuildError, read_source

ROOT = Path(__file__).parents[2]
LONG = "\n".join(f"x{i} = {i}" for i in range(26))
EXERCISE = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n"
CHECK = '\n# %% check="f" points=1\ncheck.f(f)\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (one_cell(LONG), "cell 01-002: a code cell of 26 lines, the cap is 25"),
        (one_cell("x = 1", 'excercise="f"'), "unknown cell tag excercise"),
        (one_cell("x = 1", 'exercise="f" check="f"'), "is one of exercise, check"),
        (one_cell("x = 1", 'written="C1" points=2'), "is a markdown cell"),
        (one_cell("x = 1", "points=2"), "points belong to"),
        (one_cell("check.f(f)", 'check="f"'), "give points=N"),
        (one_cell("check.f(f)", 'check="f" points=0'), "give points=N"),
        (one_cell("check.f(g)", 'check="f" points=1'), "does not call check.f(f)"),
        (one_cell("check.f(f)", 'check="f" points=1'), "a check without its exercise"),
        (one_cell("def f(x):\n    return x\n", 'exercise="f"') + CHECK, "has no ### BEGIN SOLUTION"),
        (one_cell(EXERCISE, 'exercise="f"'), 'has no check="f" after it'),
        (one_cell(EXERCISE.replace("def f", "def g"), 'exercise="f"') + CHECK, "does not define f"),
        (one_cell(EXERCISE.replace("(x):", "(x:"), 'exercise="f"') + CHECK, "(line 1 of the cell)"),
        (one_cell(EXERCISE, 'exercise="f"') + 2 * CHECK, "01-check-f appears twice"),
        (one_cell(EXERCISE), "would not be removed from the student edition"),
        (one_cell("### BEGIN SOLUTION", 'exercise="f"'), "has no ### END SOLUTION"),
        (one_cell("### END SOLUTION", 'exercise="f"'), "has no BEGIN before it"),
        (one_cell("### BEGIN SOLUTION\n### BEGIN SOLUTION", 'exercise="f"'), "stands inside the region"),
        (one_cell("# BEGIN SOLUTION", 'exercise="f"'), "on a line of its own"),
        (one_cell(EXERCISE.replace("return x", LONG.replace("\n", "\n    ")), 'exercise="f"') + CHECK,
         "a region SOLUTION of 26 lines"),
        ('# %% [markdown] written="C1" points=4\n# ### BEGIN SOLUTION\n# Yes.\n# ### END SOLUTION\n',
         "needs its rubric"),
    ],
)  # fmt: skip
def test_a_source_that_breaks_a_rule_names_the_cell(tmp_path: Path, text: str, message: str) -> None:
    lecture = course(tmp_path, text)
    with pytest.raises(BuildError) as caught:
        build.build(lecture)
    assert message in str(caught.value) and "01_tiny.py" in str(caught.value)
    assert not lecture.student.exists() and not lecture.solutions.exists()


def test_a_stub_outside_a_function_is_refused(tmp_path: Path) -> None:
    text = one_cell("### BEGIN SOLUTION\nf = 3\n### END SOLUTION", 'exercise="f"') + CHECK
    with pytest.raises(BuildError, match=r"01_tiny, cell 01-002: the student's cell is not valid Python"):
        build.build(course(tmp_path, text))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def inner():\n    return 1 / 0\ninner()", "cell 01-002: ZeroDivisionError: division by zero\n"),
        ("import os\nassert 'NBGRADER_EXECUTION' not in os.environ, 'it bites'", "AssertionError: it bites"),
        ("import os\nos._exit(1)", "cell 01-002: the kernel died"),
    ],
)
def test_a_cell_that_fails_stops_the_build(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(BuildError) as caught:
        run(tmp_path, code)
    text = str(caught.value)
    assert text.startswith("01_tiny, cell 01-002: ") and message in text
    assert "\x1b" not in text
    assert "1 / 0" not in code or "return 1 / 0" in text, "the end of the traceback is shown"


def with_output(tmp_path: Path, **output: Any) -> nbformat.NotebookNode:  # noqa: ANN401
    """A notebook whose one code cell left this output."""
    notebook = read_source(course(tmp_path, one_cell("x = 1")).source)
    kind = "stream" if "text" in output else "display_data"
    notebook.cells[1].outputs = [nbformat.v4.new_output(kind, **output)]
    notebook.cells[1].execution_count = 1
    return notebook


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            {"text": f"saved in {Path.home()}/x"},
            "cell 01-002: a path of this machine in the output: saved in",
        ),
        ({"data": {"text/plain": f"PosixPath('{ROOT}/x')"}}, "a path of this machine"),
        ({"data": {"text/html": "/opt/python/site-packages/torch"}}, "a path of this machine"),
        ({"data": {"image/svg+xml": "<svg>/home/ann/x</svg>"}}, "a path of this machine"),
        ({"text": "C:\\Users\\ann"}, "a path of this machine"),
        ({"name": "stderr", "text": "/tmp/ipykernel_12/3.py:1: UserWarning: ho"}, "a path of this machine"),
        ({"name": "stderr", "text": "ho"}, "cell 01-002: writes to stderr: ho"),
        ({"data": {"text/plain": "<method at 0x7f12ab34cd50>"}}, "cell 01-002: an address in memory"),
        ({"text": "0123456789" * 110_000}, "has 1101 kB, the cap is 1000; largest outputs: 01-002 1100 kB"),
    ],
)
def test_what_an_output_may_not_hold(tmp_path: Path, output: dict[str, Any], message: str) -> None:
    [line] = problems(with_output(tmp_path, **output))
    assert message in line


def test_a_compared_cell_only_prints(tmp_path: Path) -> None:
    for output in ({"data": {"text/plain": "<Figure>"}}, {"text": "two sides"}):
        notebook = with_output(tmp_path, **output)
        notebook.cells[1].metadata["tags"] = ["nbval-check-output"]
        assert [("nbval compares" in line) for line in problems(notebook)] == (
            [] if "text" in output else [True]
        )
    with pytest.raises(
        BuildError, match="cell 01-002: nbval compares this cell, so it cannot have a progress"
    ):
        code = "from tqdm import trange\nfor i in trange(2): pass\nprint(i)"
        run(tmp_path, code, 'tags=["nbval-check-output"]')


def test_what_an_output_may_hold(tmp_path: Path) -> None:
    assert problems(with_output(tmp_path, data={"image/png": "/home/w" * 9, "text/plain": "<Figure>"})) == []
    assert problems(with_output(tmp_path, text="a ratio of 3:1, a/b = 0x10, at 12:30")) == []


def test_a_cell_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgm_course.notebooks.execution.CELL_TIMEOUT", 1)
    with pytest.raises(BuildError, match="01_tiny, cell 01-002: still running after 1 s"):
        run(tmp_path, "while True: pass")


def test_progress_bars_and_live_controls_leave_no_trace(tmp_path: Path) -> None:
    code = """\
import sys
import ipywidgets
from tqdm import tqdm
from tqdm.auto import tqdm as auto
for _ in tqdm(range(20), desc="fit"): pass
for _ in tqdm(iter([1, 2])): pass
for _ in auto(range(3)): pass
print("kept")
ipywidgets.IntSlider()"""
    cell = run(tmp_path, code).cells[1]
    assert [(output.output_type, output.text) for output in cell.outputs] == [("stream", "kept\n")]


def test_one_stream_no_timestamps_and_the_folder_of_the_notebook(tmp_path: Path) -> None:
    (tmp_path / "beside.txt").write_text("found")
    code = "import sys\nfor i in range(3):\n    print(i, flush=True)\nprint(open('beside.txt').read())"
    cell = run(tmp_path, code).cells[1]
    assert [output.text for output in cell.outputs] == ["0\n1\n2\nfound\n"]
    assert cell.metadata == {}
