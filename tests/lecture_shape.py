"""The shape of a lecture, as far as a machine can check it: one function a rule.

A rule takes a lecture's notebook (``read_source``) and returns what breaks it, one line a fault.
``notebooks/test_shape.py`` holds the lectures against the rules, and shows that each rule bites.
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import symtable
from collections.abc import Callable

from nbformat import NotebookNode

from dgm_course.notebooks.source import defined_names, theorem_boxes

HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", re.DOTALL)


def code_cells(lecture: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in lecture.cells if cell.cell_type == "code"]


def markdown(lecture: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in lecture.cells if cell.cell_type == "markdown")


def python(cell: NotebookNode) -> str:
    """A cell's visible Python: without IPython's magics and without hidden tests."""
    lines = HIDDEN.sub("", cell.source).split("\n")
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in lines)


def graded(cell: NotebookNode, kind: str) -> str:
    """The exercise's name if ``cell`` is of ``kind`` (solution, grade, task), else an empty string."""
    grading = cell.metadata.get("nbgrader", {})
    return grading["grade_id"].split("-")[-1] if grading.get(kind) else ""


def calls(cell: NotebookNode, name: str) -> list[ast.Call]:
    """The calls of ``name``, e.g. ``plots.show``, in a cell."""
    nodes = [node for node in ast.walk(ast.parse(python(cell))) if isinstance(node, ast.Call)]
    return [node for node in nodes if ast.unparse(node.func) == name]


def title_block(lecture: NotebookNode) -> list[str]:
    first = lecture.cells[0]
    wanted = {
        "'# NN · Title'": rf"\A# {first['id'][:2]} · \S",
        "its one question in bold, '**...?**'": r"^\*\*[^*]+\?\*\*$",
        "'| You need | ... |'": r"^\| You need \| \S",
        "'| Time | ... minutes ... |'": r"^\| Time \|.*\d+ minutes",
        "'| Library files | `...` |'": r"^\| Library files \|.*`\w+`",
    }
    faults = [f"the title block lacks {what}" for what, mark in wanted.items()
              if not re.search(mark, first.source, re.MULTILINE)]  # fmt: skip
    files = "".join(re.findall(r"^\| Library files \|(.*)$", first.source, re.MULTILINE))
    return faults + [
        f"the title block names dgm_course.{name}, which does not exist"
        for name in re.findall(r"`([\w.]+)`", files)
        if importlib.util.find_spec(f"dgm_course.{name}") is None
    ]


def parts_in_order(lecture: NotebookNode) -> list[str]:
    text, place, faults = markdown(lecture), -1, []
    for heading in (
        "Where we are",
        "After this lecture you can",
        "Equation ↔ function",
        "Summary",
        "References",
    ):
        found = re.search(rf"^##+ (\d+ · )?{heading}\s*$", text, re.MULTILINE)
        if found is None:
            faults.append(f"no heading '## {heading}'")
        elif found.start() < place:
            faults.append(f"'{heading}' stands too early")
        else:
            place = found.start()
    if "**Predict first" not in text:
        faults.append("nothing invites a prediction: '**Predict first:** ...'")
    return faults


def section(lecture: NotebookNode, heading: str) -> str:
    """The text under a heading, up to the next one."""
    parts = re.split(rf"^##+ (?:\d+ · )?{heading}\s*$", markdown(lecture), maxsplit=1, flags=re.MULTILINE)
    return re.split(r"^##? ", parts[1], maxsplit=1, flags=re.MULTILINE)[0] if len(parts) > 1 else ""


def objectives(lecture: NotebookNode) -> list[str]:
    count = len(re.findall(r"^\d+\. ", section(lecture, "After this lecture you can"), re.MULTILINE))
    return [] if count >= 3 else [f"{count} numbered objectives; a lecture has at least three"]


def references(lecture: NotebookNode) -> list[str]:
    entries = re.split(r"^(?:[-*]|\d+\.) ", section(lecture, "References"), flags=re.MULTILINE)[1:]
    faults = [f"a reference without a link: {entry[:60]!r}" for entry in entries if "](https://" not in entry]
    return faults if entries else ["the references are a list; none was found"]


def equation_table(lecture: NotebookNode) -> list[str]:
    """Each ``module.name`` in the table of equations is a name of the library."""
    rows = [line for line in section(lecture, "Equation ↔ function").split("\n") if line.startswith("|")]
    names = [name for row in rows for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", row)]
    faults = [] if names else ["the table of equations names no function, as `module.function`"]
    for name in names:
        try:
            pkgutil.resolve_name(f"dgm_course.{name}")
        except (ImportError, AttributeError):
            faults.append(f"the table of equations names dgm_course.{name}, which does not exist")
    return faults


def one_imports_cell(lecture: NotebookNode) -> list[str]:
    """The first code cell imports; no later one does."""
    faults = []
    for position, cell in enumerate(code_cells(lecture)):
        body = ast.parse(python(cell)).body
        imports = [
            node for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        if position == 0 and not imports:
            faults.append(f"cell {cell['id']}: the first code cell is the imports cell")
        if position > 0 and imports:
            faults.append(f"cell {cell['id']}: '{ast.unparse(imports[0])}' belongs to the imports cell")
    return faults


def boxes_are_checked(lecture: NotebookNode) -> list[str]:
    """Before the next box, a theorem has a folded proof and a cell that prints; a finding has a cell."""
    boxes, faults = theorem_boxes(lecture), []
    ends = [box.position for box in boxes[1:]] + [len(lecture.cells)]
    for box, end in zip(boxes, ends, strict=True):
        between = lecture.cells[box.position : max(end, box.position + 1)]
        code = [cell for cell in between if cell.cell_type == "code"]
        what = f"{box.kind} {box.row}"
        if not code:
            faults.append(f"{what}: no code cell between its box and the next one")
        elif box.kind == "theorem" and not any(calls(cell, "print") for cell in code):
            faults.append(f"{what}: no cell prints its two sides before the next box")
        texts = [cell.source for cell in between if cell.cell_type == "markdown"]
        if box.kind == "theorem" and not re.search(r"<details>\s*<summary>.*</summary>", "\n".join(texts)):
            faults.append(f"{what}: no proof in a <details><summary>...</summary> fold")
    return faults if boxes else ["no theorem box: '> **Theorem C1.** ...'"]


def figures_speak(lecture: NotebookNode) -> list[str]:
    """A cell that draws shows its figure with an alternative text, and the next cell says what to see."""
    faults = []
    for position, cell in enumerate(lecture.cells):
        if cell.cell_type == "markdown":
            bare = re.findall(r"!\[\s*\]\([^)]*\)", cell.source)
            faults += [f"cell {cell['id']}: the picture {link} has no alternative text" for link in bare]
        elif calls(cell, "plt.subplots") or calls(cell, "plt.figure"):
            shows = calls(cell, "plots.show")
            texts = [key.value for call in shows for key in call.keywords if key.arg == "alt"]
            if not texts or any(
                isinstance(text, ast.Constant) and len(str(text.value)) < 20 for text in texts
            ):
                faults.append(f"cell {cell['id']}: end with plots.show(fig, alt='what the figure shows')")
            follow = lecture.cells[position + 1 : position + 2]
            if not follow or "*What you see" not in follow[0].source:
                faults.append(f"cell {cell['id']}: the next cell starts with '*What you see:*'")
    return faults


def answers_are_leaves(lecture: NotebookNode) -> list[str]:
    """No cell but its own check uses a name that an exercise defines: it would be a student's answer."""
    cells = code_cells(lecture)
    owners: dict[str, str] = {}
    for cell in cells:
        if graded(cell, "solution"):
            owners |= dict.fromkeys(defined_names(cell.source), graded(cell, "solution"))
    faults = []
    for cell in cells:
        own = graded(cell, "solution") or graded(cell, "grade")
        for name in sorted(global_names(python(cell)) & set(owners)):
            if owners[name] != own:
                faults.append(f"cell {cell['id']}: uses '{name}', the student's answer to {owners[name]}")
    return faults


def global_names(code: str) -> set[str]:
    """Names of the notebook that a cell reads or binds; local names of its functions are not among them."""
    tables, names = [symtable.symtable(code, "cell", "exec")], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        module = table.get_type() == "module"
        names |= {one.get_name() for one in table.get_symbols() if module or one.is_global()}
    return names


def exercises(lecture: NotebookNode) -> list[str]:
    """Five to seven exercises, each checked with hidden tests, and one or two written ones."""
    cells = lecture.cells
    faults = [
        f"cell {cell['id']}: the check of {graded(cell, 'grade')} has no ### BEGIN HIDDEN TESTS"
        for cell in cells
        if graded(cell, "grade") and not HIDDEN.search(cell.source)
    ]
    solved = sum(bool(graded(cell, "solution")) for cell in cells)
    written = sum(bool(graded(cell, "task")) for cell in cells)
    if not 5 <= solved <= 7 or not 1 <= written <= 2:
        faults.append(f"{solved} exercises and {written} written ones; a lecture has 5 to 7, and 1 or 2")
    return faults


def no_wall_of_code(lecture: NotebookNode) -> list[str]:
    kinds = [cell.cell_type for cell in lecture.cells]
    walls = [n for n in range(len(kinds) - 3) if kinds[n : n + 4] == ["code"] * 4]
    return [f"cell {lecture.cells[n]['id']}: four code cells in a row without a word" for n in walls]


FORBIDDEN = {
    r"\bplt\.show\(": "plots.show(fig, alt=...) instead of plt.show()",
    r"\.cuda\(": "no hard .cuda()",
    r"#\s*TODO|\bFIXME\b": "an unfinished passage",
    r"^[!%]\s*pip": "no installing in a lecture",
    r"[\x00-\x09\x0b-\x1f]": "a tab or control character: a backslash of a formula was lost",
}


def nothing_forbidden(lecture: NotebookNode) -> list[str]:
    return [
        f"cell {cell['id']}: {why}"
        for cell in lecture.cells
        for mark, why in FORBIDDEN.items()
        if re.search(mark, cell.source, re.MULTILINE)
    ]


RULES: list[Callable[[NotebookNode], list[str]]] = [
    title_block, parts_in_order, objectives, references, equation_table, one_imports_cell, boxes_are_checked,
    figures_speak, answers_are_leaves, exercises, no_wall_of_code, nothing_forbidden,
]  # fmt: skip
