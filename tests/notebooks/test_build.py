"""``python -m dgm_course build``: from one source to two editions, and what stops it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from tiny_lecture import TINY, course

from dgm_course.__main__ import main
from dgm_course.notebooks import build
from dgm_course.notebooks.editions import nbgrader_config, student_edition, to_json
from dgm_course.notebooks.execution import problems
from dgm_course.notebooks.source import read_source, theorem_boxes

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "solutions" / "src").glob("*.py"))


def cells(path: Path) -> list[nbformat.NotebookNode]:
    """The cells of a notebook file."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT).cells


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> build.Lecture:
    """The tiny lecture, built once."""
    lecture = course(tmp_path_factory.mktemp("course"))
    build.build(lecture)
    return lecture


def test_student_edition_has_stubs_and_no_secrets(built: build.Lecture) -> None:
    text = built.student.read_text(encoding="utf-8")
    assert "secret" not in text
    assert "SOLUTION" not in text and "HIDDEN" not in text and "SCHEME" not in text
    _, _, exercise, check, task, answer, plain, _ = cells(built.student)
    assert exercise.source.endswith("        # YOUR CODE HERE\n        return ...")
    assert check.source == "check.double(double)"
    assert task.source == "Prove it."
    assert answer.source == "YOUR ANSWER HERE"
    assert plain.outputs == [] and plain.execution_count is None


def test_grading_metadata(built: build.Lecture) -> None:
    graded = [cell.metadata for cell in cells(built.student) if "nbgrader" in cell.metadata]
    found = {metadata.nbgrader.grade_id: metadata for metadata in graded}
    assert list(found) == ["01-double", "01-check-double", "01-written-C1"]
    for metadata in found.values():
        assert metadata.nbgrader.schema_version == 3
        assert len(metadata.nbgrader.checksum) == 32
        assert metadata.deletable is False
    flags = ("solution", "grade", "locked", "task")
    exercise, check, task = ({k for k in flags if m.nbgrader[k]} for m in found.values())
    assert (exercise, check, task) == ({"solution"}, {"grade", "locked"}, {"locked", "task"})
    assert [m.nbgrader.get("points") for m in found.values()] == [None, 2, 4]
    assert "editable" not in found["01-double"] and found["01-check-double"].editable is False


def test_solutions_edition_is_executed_and_its_markdown_has_labels(built: build.Lecture) -> None:
    full = cells(built.solutions)
    assert [c.execution_count for c in full if c.cell_type == "code"] == [1, 2, 3, 4]
    assert full[6].outputs[0].text == "two sides: 2.00 = 2.00\n"
    assert "assert double(secret_input) == 10" in full[3].source
    task = full[4].source
    assert task.index("**Model answer**") < task.index("secret proof") < task.index("**Rubric**")
    assert not any(line.startswith("#") for line in task.split("\n")), "a marker would render as a heading"
    assert problems(nbformat.read(built.solutions, as_version=4)) == []


def test_ids_are_deterministic_and_shared_by_the_editions(built: build.Lecture) -> None:
    ids = [f"01-{position:03d}" for position in range(1, 9)]
    assert [c.id for c in cells(built.student)] == ids
    assert [c.id for c in cells(built.solutions)] == ids


def test_files_are_clean_and_building_again_changes_no_byte(built: build.Lecture) -> None:
    before = built.student.read_bytes(), built.solutions.read_bytes()
    for raw in before:
        text = raw.decode()
        assert text.endswith("}\n") and not text.endswith("\n\n")
        assert "jupytext" not in text and "iopub" not in text
        metadata = json.loads(text)["metadata"]
        assert set(metadata) == {"kernelspec", "language_info"}
        assert metadata["language_info"] == {"name": "python"}
    build.build(built)
    assert (built.student.read_bytes(), built.solutions.read_bytes()) == before


def test_check_finds_no_drift_then_names_it_and_its_remedy(tmp_path: Path) -> None:
    lecture = course(tmp_path)
    build.build(lecture)
    assert build.drift(lecture) == [] and build.strays(tmp_path) == []
    lecture.source.write_text(TINY.replace("Two is two", "Two is Two"), encoding="utf-8")
    lines = build.drift(lecture)
    assert len(lines) == 2
    assert "lectures/01_tiny.ipynb" in lines[0] and "cell 01-001, source" in lines[0]
    assert "solutions/01_tiny.ipynb" in lines[1] and lines[1].endswith("run 'python -m dgm_course build 01'")
    build.build(lecture)
    lecture.solutions.unlink()
    assert any("is missing" in line for line in build.drift(lecture))
    (tmp_path / "lectures" / "09_old.ipynb").write_text("{}")
    assert "09_old.ipynb has no source" in build.strays(tmp_path)[0]


def test_check_lets_a_student_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lecture that was run and answered is no drift, except in CI; any other change is one."""
    lecture = course(tmp_path)
    build.build(lecture)
    notebook = nbformat.read(lecture.student, as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = "def double(x):\n    return x + x"
        if "written-answer" in cell.metadata.get("tags", []):
            cell.source = "Because it is."
        cell.metadata["collapsed"] = True
    run = [cell for cell in notebook.cells if cell.cell_type == "code"]
    run[0].execution_count, run[0].outputs = 3, [nbformat.v4.new_output("stream", text="PASS")]
    notebook.metadata["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    nbformat.write(notebook, lecture.student)
    monkeypatch.delenv("CI", raising=False)
    assert build.drift(lecture) == []
    monkeypatch.setenv("CI", "true")
    assert "loses answers" in build.drift(lecture)[0]
    monkeypatch.delenv("CI")
    notebook.cells[0].source += " More."
    nbformat.write(notebook, lecture.student)
    assert "cell 01-001, source" in build.drift(lecture)[0]


def test_check_holds_committed_outputs_to_the_rules(tmp_path: Path) -> None:
    lecture = course(tmp_path)
    build.build(lecture)
    notebook = nbformat.read(lecture.solutions, as_version=4)
    notebook.cells[6].execution_count = None
    nbformat.write(notebook, lecture.solutions)
    assert "cell 01-007: was never executed" in build.drift(lecture)[0]


def test_without_execution_outputs_stay_while_the_code_does(tmp_path: Path) -> None:
    lecture = course(tmp_path)
    build.build(lecture)
    told: list[str] = []
    lecture.source.write_text(TINY.replace("Two is two", "Two is Two"), encoding="utf-8")
    build.build(lecture, run=False, report=told.append)
    assert build.drift(lecture) == []
    assert cells(lecture.solutions)[6].outputs
    lecture.source.write_text(TINY.replace("2.00 = 2.00", "2.0 = 2.0"), encoding="utf-8")
    build.build(lecture, run=False, report=told.append)
    assert told[-1].startswith("left solutions/01_tiny.ipynb")
    assert [line[:9] for line in build.drift(lecture)] == ["solutions"]


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    course(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["build", "1"]) == 0
    assert "wrote solutions/01_tiny.ipynb" in capsys.readouterr().out
    assert main(["build", "--check"]) == 0
    (tmp_path / "lectures" / "01_tiny.ipynb").unlink()
    assert main(["build", "--check"]) == 1
    assert "lectures/01_tiny.ipynb is missing; run" in capsys.readouterr().err
    assert main(["build", "7"]) == 1
    assert "no lecture 7; the sources are: 01_tiny" in capsys.readouterr().err


def test_theorem_boxes(tmp_path: Path) -> None:
    boxes = theorem_boxes(read_source(course(tmp_path).source))
    assert [(box.kind, box.row, box.position) for box in boxes] == [
        ("theorem", "C5", 0),
        ("finding", "C7", 7),
    ]


def test_nbgraders_own_command_makes_the_same_bytes(tmp_path: Path) -> None:
    """``nbgrader generate_assignment`` makes the student edition, from the source or the executed edition."""
    lecture = course(tmp_path / "course")
    build.build(lecture)
    folder = tmp_path / "source" / "ps"
    folder.mkdir(parents=True)
    (folder / "executed.ipynb").write_bytes(lecture.solutions.read_bytes())
    (folder / "plain.ipynb").write_text(to_json(read_source(lecture.source)))
    settings = nbgrader_config().ClearSolutions.items()
    lines = ["c = get_config()", *(f"c.ClearSolutions.{name} = {value!r}" for name, value in settings)]
    (tmp_path / "nbgrader_config.py").write_text("\n".join(lines))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # nbgrader calls alembic
    subprocess.run(
        [sys.executable, "-m", "nbgrader", "generate_assignment", "ps"],
        cwd=tmp_path, env={**os.environ, "PATH": path}, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    for name in ("executed", "plain"):
        released = (tmp_path / "release" / "ps" / f"{name}.ipynb").read_bytes()
        assert released == lecture.student.read_bytes()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_editions_are_up_to_date(path: Path) -> None:
    [lecture] = build.lectures(ROOT, [path.stem])
    assert build.drift(lecture) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_answer_reaches_the_student(path: Path) -> None:
    """Line by line: what stands inside a region of the source does not stand in the student's cell."""
    source = read_source(path)
    student = student_edition(source)
    for full, blank in zip(source.cells, student.cells, strict=True):
        kept = set(blank.source.split("\n"))
        gone = [line for line in full.source.split("\n") if line not in kept]
        assert all(line.strip() in ("# YOUR CODE HERE", "return ...") or line in full.source.split("\n")
                   for line in kept)  # fmt: skip
        if full.source != blank.source:
            assert gone and "nbgrader" in full.metadata


def test_no_notebook_without_a_source() -> None:
    assert build.strays(ROOT) == []
