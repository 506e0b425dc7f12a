"""The student edition of a lecture, by nbgrader's preprocessors, and the bytes of a notebook.

nbgrader's own command forces one folder per notebook, so its preprocessors are called from here, in the order
of its ``generate_assignment``; ``tests/notebooks`` compares the two. Left out are the header and the AUTOTEST
templates, which no lecture uses, and the gradebook.
"""

from __future__ import annotations

import copy
import re

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearHiddenTests,
    ClearMarkScheme,
    ClearOutput,
    ClearSolutions,
    ComputeChecksums,
    LockCells,
)
from traitlets.config import Config

from .source import ANSWER_STUB, BuildError

#: A stub that raised would stop the lecture at the first unanswered exercise.
CODE_STUB = "# YOUR CODE HERE\nreturn ..."
_STEPS = (
    LockCells,
    ClearSolutions,
    ClearOutput,
    CheckCellMetadata,
    ClearHiddenTests,
    ClearMarkScheme,
    ComputeChecksums,
    CheckCellMetadata,
)
_LEFT_BEHIND = re.compile(r"(BEGIN|END) (SOLUTION|HIDDEN TESTS|MARK SCHEME)")


def nbgrader_config() -> Config:
    """nbgrader's configuration for this course: what stands in place of an answer."""
    config = Config()
    config.ClearSolutions.code_stub = {"python": CODE_STUB}
    config.ClearSolutions.text_stub = ANSWER_STUB
    return config


def student_edition(source: NotebookNode) -> NotebookNode:
    """Return the notebook a student gets: stubs, no hidden tests, no mark schemes, no outputs, checksums.

    ``source`` is what ``read_source`` returns; it is not changed. Raises ``BuildError`` when something that a
    student must not see would be left, or when a stub is not valid Python where it stands.
    """
    notebook = copy.deepcopy(source)
    config = nbgrader_config()
    for step in _STEPS:
        notebook, _ = step(config=config).preprocess(notebook, {})
    for cell in notebook.cells:
        left = _LEFT_BEHIND.search(cell.source)
        if left:
            raise BuildError(f"cell {cell['id']}: '{left[0]}' is left in the student edition")
        if cell.cell_type == "code":
            _require_python(cell)
    return notebook


def to_json(notebook: NotebookNode) -> str:
    """The text of a notebook's file: sorted keys, lists of lines, one newline at the end."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def _require_python(cell: NotebookNode) -> None:
    code = TransformerManager().transform_cell(cell.source)
    try:
        compile(code, cell["id"], "exec")
    except SyntaxError as error:
        raise BuildError(
            f"cell {cell['id']}: the student's cell is not valid Python ({error.msg}, line {error.lineno}); "
            "a solution region stands inside a function, and the stub is '# YOUR CODE HERE', 'return ...'"
        ) from error
