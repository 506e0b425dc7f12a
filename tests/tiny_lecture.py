"""The smallest lecture that has everything the build must treat, and helpers that write such lectures."""

from __future__ import annotations

from pathlib import Path

from nbformat import NotebookNode

from dgm_course.notebooks import build
from dgm_course.notebooks.execution import execute
from dgm_course.notebooks.source import read_source

TINY = '''\
# ---
# jupyter:
#   kernelspec:
#     display_name: Mine
#     language: python
#     name: mine
# ---

# %% [markdown]
# # 01 · Tiny
#
# > **Theorem C5.** Two is two.
# > More of it.
#
# Not a box: **Theorem C1**.

# %% A title tags=["hide-input"]
from types import SimpleNamespace
check = SimpleNamespace(double=lambda f: print("PASS" if f(2) == 4 else "TODO"))

# %% exercise="double"
def double(x):
    """Twice x."""
    if x is not None:
        ### BEGIN SOLUTION
        secret_code = 2 * x
        return secret_code
        ### END SOLUTION

# %% check="double" points=2
check.double(double)
### BEGIN HIDDEN TESTS
secret_input = 5
assert double(secret_input) == 10
### END HIDDEN TESTS

# %% [markdown] written="C1" points=4
# Prove it.
#
# ### BEGIN SOLUTION
# The secret proof.
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 4 points for the secret step.
# ### END MARK SCHEME

# %% tags=["nbval-check-output"]
print("two sides: 2.00 = 2.00")

# %% [markdown]
# > **Finding C7.** It may rain.
'''


def course(folder: Path, text: str = TINY) -> build.Lecture:
    """A checkout in ``folder`` with one lecture, whose source is ``text``."""
    (folder / "solutions" / "src").mkdir(parents=True, exist_ok=True)
    (folder / "solutions" / "src" / "01_tiny.py").write_text(text, encoding="utf-8")
    return build.lectures(folder)[0]


def one_cell(code: str, tags: str = "") -> str:
    """A source whose first cell is a title and whose second is ``code``."""
    return f"# %% [markdown]\n# # Title\n\n# %% {tags}\n{code}\n"


def run(tmp_path: Path, code: str, tags: str = "") -> NotebookNode:
    """Execute a source with one code cell."""
    return execute(read_source(course(tmp_path, one_cell(code, tags)).source), tmp_path, "01_tiny")
