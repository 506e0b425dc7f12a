"""Write both editions of the lectures of a checkout, or compare them with their sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .editions import student_edition, to_json
from .execution import execute, problems
from .source import BuildError, lecture_number, read_source

_CODE_FIELDS = ("id", "cell_type", "source", "metadata")


@dataclass(frozen=True)
class Lecture:
    """Where a lecture's files stand in a checkout."""

    source: Path
    student: Path
    solutions: Path

    @property
    def name(self) -> str:
        """``"01_posterior_collapse"``."""
        return self.source.stem

    @property
    def mend(self) -> str:
        """The command that writes this lecture's editions."""
        return f"python -m dgm_course build {lecture_number(self.name)}"


def checkout(start: Path | None = None) -> Path:
    """The root of the course: the working directory if it holds the sources, else this package's checkout."""
    candidates = [start or Path.cwd(), Path(__file__).parents[2]]
    for root in candidates:
        if (root / "solutions" / "src").is_dir():
            return root.resolve()
    raise BuildError("no solutions/src here: run this at the top of a checkout of the course")


def lectures(root: Path, selection: Sequence[str] = ()) -> list[Lecture]:
    """The lectures that have a source, in order; ``selection`` keeps numbers (``"1"``, ``"01"``) or names."""
    found = []
    for source in sorted((root / "solutions" / "src").glob("*.py")):
        lecture_number(source.stem)
        notebook = f"{source.stem}.ipynb"
        found.append(Lecture(source, root / "lectures" / notebook, root / "solutions" / notebook))
    chosen = []
    for wanted in selection:
        matches = [
            one for one in found if wanted in (one.name, one.name[:2]) or wanted.zfill(2) == one.name[:2]
        ]
        if not matches:
            names = ", ".join(one.name for one in found) or "none"
            raise BuildError(f"no lecture {wanted}; the sources are: {names}")
        chosen += [one for one in matches if one not in chosen]
    return chosen if selection else found


def build(lecture: Lecture, *, run: bool = True, report: Callable[[str], None] = lambda line: None) -> None:
    """Write both editions of ``lecture``. Nothing is written when anything is wrong.

    With ``run=False`` nothing is executed: the outputs of the executed edition are kept if its code is still
    that of the source, and otherwise that edition is left as it was (``report`` is told).
    """
    source = read_source(lecture.source)
    student = _student(lecture, source)
    full = (
        execute(source, lecture.solutions.parent, lecture.name) if run else _with_old_outputs(lecture, source)
    )
    lecture.student.parent.mkdir(parents=True, exist_ok=True)
    lecture.student.write_text(to_json(student), encoding="utf-8", newline="\n")
    report(f"wrote lectures/{lecture.student.name}")
    if full is None:
        report(f"left solutions/{lecture.solutions.name}: its code has changed, so run '{lecture.mend}'")
        return
    text = to_json(full)
    lecture.solutions.write_text(text, encoding="utf-8", newline="\n")
    report(f"wrote solutions/{lecture.solutions.name} ({len(text.encode()) / 1000:.0f} kB)")


def drift(lecture: Lecture) -> list[str]:
    """How the committed editions differ from ``lecture``'s source: a line for each difference.

    The student edition is compared byte for byte. Outside CI (the variable ``CI``) a copy that somebody has
    run and answered counts as unchanged, too. The executed edition is compared cell by cell without its
    outputs, which are held to the rules of ``execution.problems``.
    """
    source = read_source(lecture.source)
    found = []
    student = _student(lecture, source)
    if not lecture.student.exists():
        found.append(f"lectures/{lecture.student.name} is missing")
    elif lecture.student.read_bytes() != to_json(student).encode():
        committed = _read(lecture.student)
        if os.environ.get("CI") or _difference(_handed_back(committed, student), student):
            place = _difference(committed, student) or "its bytes"
            found.append(
                f"lectures/{lecture.student.name} differs from its source: {place} (building it anew loses "
                "answers written into it: keep a copy)"
            )
    if not lecture.solutions.exists():
        found.append(f"solutions/{lecture.solutions.name} is missing")
    else:
        full = _read(lecture.solutions)
        place = _difference(full, source)
        if place:
            found.append(f"solutions/{lecture.solutions.name} differs from its source: {place}")
        found += [f"solutions/{lecture.solutions.name}, {line}" for line in problems(full)]
    return [f"{line}; run '{lecture.mend}'" for line in found]


def strays(root: Path) -> list[str]:
    """Notebooks in ``lectures/`` and ``solutions/`` that no source makes."""
    names = {one.name for one in lectures(root)}
    notebooks = sorted([*(root / "lectures").glob("*.ipynb"), *(root / "solutions").glob("*.ipynb")])
    return [
        f"{path.parent.name}/{path.name} has no source in solutions/src; remove it"
        for path in notebooks
        if path.stem not in names
    ]


def _student(lecture: Lecture, source: NotebookNode) -> NotebookNode:
    try:
        return student_edition(source)
    except BuildError as error:
        raise BuildError(f"{lecture.name}, {error}") from error


def _read(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=nbformat.NO_CONVERT)
    except nbformat.reader.NotJSONError as error:
        raise BuildError(f"{path.name} is not a notebook: {error}") from error


def _handed_back(worked: NotebookNode, released: NotebookNode) -> NotebookNode:
    """A notebook that somebody worked in, with what they may change set back to what was handed out."""
    same_cells = [cell.get("id") for cell in worked.cells] == [cell["id"] for cell in released.cells]
    for cell, original in zip(worked.cells, released.cells, strict=False) if same_cells else ():
        ours = original.metadata
        if ours.get("nbgrader", {}).get("solution") or "written-answer" in ours.get("tags", []):
            cell.source = original.source
        if {key: cell.metadata.get(key) for key in ours} == ours:
            cell.metadata = ours  # JupyterLab notes which cells are folded or scrolled
    worked.metadata = released.metadata  # and which kernel ran them
    return worked


def _difference(committed: NotebookNode, wanted: NotebookNode) -> str:
    """The first place where two notebooks differ, outputs aside; empty when they do not."""
    for old, new in zip(committed.cells, wanted.cells, strict=False):
        for field in _CODE_FIELDS:
            if old.get(field) != new.get(field):
                return f"cell {new['id']}, {field}"
    if len(committed.cells) != len(wanted.cells):
        return f"{len(committed.cells)} cells, the source makes {len(wanted.cells)}"
    return "" if committed.metadata == wanted.metadata else "the notebook's metadata"


def _with_old_outputs(lecture: Lecture, source: NotebookNode) -> NotebookNode | None:
    if not lecture.solutions.exists():
        return None
    old = [cell for cell in _read(lecture.solutions).cells if cell.cell_type == "code"]
    new = [cell for cell in source.cells if cell.cell_type == "code"]
    if [cell.source for cell in old] != [cell.source for cell in new]:
        return None
    for before, now in zip(old, new, strict=True):
        now.outputs, now.execution_count = before.outputs, before.execution_count
    return source
