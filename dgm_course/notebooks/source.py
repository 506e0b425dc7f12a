"""Read a lecture's source and expand its short cell tags into nbgrader's cell metadata.

=============================================  ==========================================================
cell marker in ``solutions/src/NN_name.py``    cell(s) of the notebook
=============================================  ==========================================================
``# %% exercise="elbo"``                       solution cell ``NN-elbo``; the student writes the lines
                                               between ``### BEGIN SOLUTION`` and ``### END SOLUTION``
``# %% check="elbo" points=2``                 autograded test cell ``NN-check-elbo``: ``check.elbo(elbo)``,
                                               then ``### BEGIN HIDDEN TESTS`` ... ``### END HIDDEN TESTS``
``# %% [markdown] written="C1" points=4``      task cell ``NN-written-C1`` (the question; model answer and
                                               rubric as its mark scheme) and a plain cell for the answer
=============================================  ==========================================================

A written exercise is one nbgrader *task*, because nbgrader accepts a mark scheme in task cells only and its
Formgrader shows it only there: beside the student's answer, the score and the comment box. The source states
the model answer between ``### BEGIN SOLUTION`` and ``### END SOLUTION`` and the rubric between
``### BEGIN MARK SCHEME`` and ``### END MARK SCHEME``; in the notebook these markers become an HTML comment
and bold labels, so that they do not render as headings and nbgrader still finds them.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode, from_dict
from nbformat.v4 import new_markdown_cell

#: Lines of a code cell that a student sees, and of each region that a student does not see.
MAX_CELL_LINES = 25
ANSWER_STUB = "YOUR ANSWER HERE"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_TAGS = {"exercise", "check", "written", "points"}
_KEPT = {"tags", "jupyter"}
_JUPYTEXT = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker", "title"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_REGION = re.compile(r"^\s*### (BEGIN|END) (SOLUTION|HIDDEN TESTS|MARK SCHEME)\s*$")
_BOX = re.compile(r"^> \*\*(Theorem|Finding) ([A-Z]\d+)\b", re.MULTILINE)


class BuildError(ValueError):
    """A lecture's source or its outputs break a rule; the message names the cell and the fix."""


@dataclass(frozen=True)
class Box:
    """A theorem box ``> **Theorem C5`` or ``> **Finding C7``: its kind, ledger row, and cell's position."""

    kind: str
    row: str
    position: int


def lecture_number(name: str) -> str:
    """``"01"`` of ``"01_posterior_collapse"``."""
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise BuildError(
            f"a lecture's source is named NN_name.py, e.g. 01_posterior_collapse.py, not {name}.py"
        )
    return name[:2]


def read_source(path: Path) -> NotebookNode:
    """Return the notebook of ``path``, a py:percent script, as nbgrader's source: expanded, with fixed ids.

    Raises ``BuildError`` when a cell breaks one of the rules of this module.
    """
    number = lecture_number(path.stem)
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        where = f"{path.name}, cell {number}-{len(cells) + 1:03d}"
        cells += _expand(cell, number, where)
    for position, cell in enumerate(cells, start=1):
        cell["id"] = f"{number}-{position:03d}"
    notebook.cells = cells
    notebook.metadata = from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    _pair_exercises(notebook, path.name)
    return notebook


def theorem_boxes(notebook: NotebookNode) -> list[Box]:
    """The theorem and finding boxes of a notebook's markdown, in order."""
    return [
        Box(kind.lower(), row, position)
        for position, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown"
        for kind, row in _BOX.findall(cell.source)
    ]


def _expand(cell: NotebookNode, number: str, where: str) -> list[NotebookNode]:
    given = dict(cell.metadata)
    kind = _kind(cell, given, where)
    regions = _regions(cell.source, where)
    allowed = {"exercise": {"SOLUTION"}, "check": {"HIDDEN TESTS"}, "written": {"SOLUTION", "MARK SCHEME"}}
    stray = set(regions) - allowed.get(kind, set()) - {""}
    if stray:
        raise BuildError(
            f"{where}: a {kind} cell with a {sorted(stray)[0]} region, which would not be removed "
            f"from the student edition; tag the cell"
        )
    cell.metadata = NotebookNode({key: given[key] for key in sorted(_KEPT & set(given))})
    if kind == "written":
        return _expand_written(cell, f"{number}-written-{given[kind]}", given["points"], regions, where)
    if cell.cell_type == "code":
        _require_short(regions, where)
    if kind == "exercise":
        if not regions.get("SOLUTION"):
            raise BuildError(
                f"{where}: exercise {given[kind]} has no ### BEGIN SOLUTION ... ### END SOLUTION"
            )
        cell.metadata["nbgrader"] = _nbgrader(f"{number}-{given[kind]}", solution=True)
    elif kind == "check":
        call = f"check.{given[kind]}({given[kind]})"
        if call not in "\n".join(regions[""]):
            raise BuildError(f"{where}: the check cell of {given[kind]} does not call {call}")
        cell.metadata["nbgrader"] = _nbgrader(
            f"{number}-check-{given[kind]}", grade=True, locked=True, points=given["points"]
        )
    return [cell]


def _kind(cell: NotebookNode, given: dict[str, Any], where: str) -> str:
    """``exercise``, ``check``, ``written`` or ``plain``, from a cell's tags, which are looked through."""
    unknown = set(given) - _TAGS - _KEPT - _JUPYTEXT
    if unknown:
        known = ", ".join(sorted(_TAGS | _KEPT))
        raise BuildError(f"{where}: unknown cell tag {', '.join(sorted(unknown))}; known are {known}")
    if cell.cell_type not in ("code", "markdown"):
        raise BuildError(f"{where}: a {cell.cell_type} cell; a lecture has code and markdown cells only")
    kinds = [kind for kind in ("exercise", "check", "written") if kind in given]
    if len(kinds) > 1:
        raise BuildError(f"{where}: a cell is one of exercise, check and written; this one is {kinds}")
    kind = kinds[0] if kinds else "plain"
    wanted = {"exercise": "code", "check": "code", "written": "markdown"}.get(kind, cell.cell_type)
    if cell.cell_type != wanted:
        raise BuildError(f"{where}: a cell tagged {kind} is a {wanted} cell, not a {cell.cell_type} cell")
    if kind != "plain" and not (isinstance(given[kind], str) and _NAME.fullmatch(given[kind])):
        raise BuildError(f'{where}: {kind}={given[kind]!r} should be a name in quotes, e.g. {kind}="elbo"')
    if kind in ("check", "written"):
        _require_points(given, where)
    elif "points" in given:
        raise BuildError(f"{where}: points belong to a check or a written cell, not to a {kind} one")
    return kind


def _expand_written(
    cell: NotebookNode, grade_id: str, points: float, regions: dict[str, list[str]], where: str
) -> list[NotebookNode]:
    for region, meaning in (("SOLUTION", "model answer"), ("MARK SCHEME", "rubric")):
        if not "\n".join(regions.get(region, [])).strip():
            raise BuildError(
                f"{where}: a written exercise needs its {meaning}, between ### BEGIN {region} "
                f"and ### END {region}"
            )
    unit = "point" if points == 1 else "points"
    question = "\n".join(regions[""]).strip() or f"**Written answer, {points} {unit}.** Use the cell below."
    answer = _labelled("Model answer", regions["SOLUTION"])
    rubric = _labelled("Rubric", regions["MARK SCHEME"])
    # The comment follows the question without a blank line: the student's cell is then the question, exactly.
    cell.source = (
        f"{question}\n<!-- BEGIN MARK SCHEME -->\n\n{answer}\n\n{rubric}\n\n<!-- END MARK SCHEME -->"
    )
    cell.metadata["nbgrader"] = _nbgrader(grade_id, task=True, locked=True, points=points)
    stub = new_markdown_cell(ANSWER_STUB, metadata={"deletable": False, "tags": ["written-answer"]})
    return [cell, stub]


def _labelled(label: str, lines: list[str]) -> str:
    text = "\n".join(lines).strip()
    return text if text.startswith(f"**{label}") else f"**{label}**\n\n{text}"


def _nbgrader(grade_id: str, points: float | None = None, **flags: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"grade": False, "locked": False, "solution": False, "task": False, **flags}
    if points is not None:
        metadata["points"] = points
    return {**metadata, "grade_id": grade_id, "schema_version": 3}


def _require_points(given: dict[str, Any], where: str) -> None:
    points = given.get("points")
    if isinstance(points, bool) or not isinstance(points, int | float) or points <= 0:
        raise BuildError(f"{where}: give points=N, a positive number (got {points!r})")


def _regions(source: str, where: str) -> dict[str, list[str]]:
    """Lines by region, ``""`` for what stands outside of all; the markers themselves are left out."""
    regions: dict[str, list[str]] = {"": []}
    inside = ""
    for line in source.split("\n"):
        marker = _REGION.match(line)
        if marker is None:
            regions[inside].append(line)
        elif marker[1] == "BEGIN" and not inside:
            inside = marker[2]
            regions.setdefault(inside, [])
        elif marker[1] == "END" and inside == marker[2]:
            inside = ""
        else:
            raise BuildError(
                f"{where}: '{line.strip()}' "
                + (f"stands inside the region {inside}" if inside else "has no BEGIN before it")
            )
    if inside:
        raise BuildError(f"{where}: ### BEGIN {inside} has no ### END {inside}")
    loose = re.search(
        r"(BEGIN|END) (SOLUTION|HIDDEN TESTS|MARK SCHEME)", "\n".join(sum(regions.values(), []))
    )
    if loose:
        raise BuildError(f"{where}: write '### {loose[0]}' on a line of its own")
    return regions


def _require_short(regions: dict[str, list[str]], where: str) -> None:
    for region, lines in regions.items():
        if len(lines) > MAX_CELL_LINES:
            what = f"region {region}" if region else "code cell"
            raise BuildError(
                f"{where}: a {what} of {len(lines)} lines, the cap is {MAX_CELL_LINES}; "
                f"move code into the library"
            )


def _pair_exercises(notebook: NotebookNode, name: str) -> None:
    ids = [cell.metadata.nbgrader.grade_id for cell in notebook.cells if "nbgrader" in cell.metadata]
    for grade_id in ids:
        if ids.count(grade_id) > 1:
            raise BuildError(f"{name}: {grade_id} appears twice")
    for position, cell in enumerate(notebook.cells):
        grading = cell.metadata.get("nbgrader", {})
        if grading.get("solution"):
            exercise = grading["grade_id"].split("-", 1)[1]
            following = [
                c.metadata.nbgrader.grade_id
                for c in notebook.cells[position + 1 :]
                if "nbgrader" in c.metadata
            ]
            if f"{cell['id'][:2]}-check-{exercise}" not in following:
                raise BuildError(
                    f'{name}, cell {cell["id"]}: exercise {exercise} has no check="{exercise}" after it'
                )
            if exercise not in _names_of(cell, name):
                raise BuildError(f"{name}, cell {cell['id']}: exercise {exercise} does not define {exercise}")
        elif grading.get("grade") and f"{cell['id'][:2]}-{grading['grade_id'].split('-', 2)[2]}" not in ids:
            raise BuildError(f"{name}, cell {cell['id']}: a check without its exercise")


def _names_of(cell: NotebookNode, name: str) -> set[str]:
    try:
        return defined_names(cell.source)
    except SyntaxError as error:
        raise BuildError(
            f"{name}, cell {cell['id']}: {error.msg} (line {error.lineno} of the cell)"
        ) from error


def defined_names(code: str) -> set[str]:
    """Names that a cell binds at its top level by def, class or assignment (imports are not counted)."""
    names: set[str] = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)
            }
    return names
