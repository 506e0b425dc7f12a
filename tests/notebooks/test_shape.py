"""Every lecture keeps the shape of ``lecture_shape.py``, and every rule there can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lecture_shape as shape
import pytest
from nbformat import NotebookNode

from dgm_course.notebooks.source import read_source

SOURCES = sorted((Path(__file__).parents[2] / "solutions" / "src").glob("*.py"))
NAMES = ("one", "two", "three", "four", "five")
EXERCISE = """
# %% [markdown]
# ### Exercise

# %% exercise="{0}"
def {0}(x):
    ### BEGIN SOLUTION
    return x
    ### END SOLUTION

# %% check="{0}" points=1
check.{0}({0})
### BEGIN HIDDEN TESTS
import math
### END HIDDEN TESTS
"""
GOOD = f"""\
# %% [markdown]
# # 01 · Tiny
#
# **Does it work?**
#
# | | |
# |---|---|
# | You need | nothing |
# | Time | 5 minutes |
# | Library files | `notebooks` · `notebooks.build` |

# %% [markdown]
# ## Where we are
#
# ## After this lecture you can
#
# 1. a;
# 2. b;
# 3. c.

# %%
import matplotlib.pyplot as plt
from dgm_course import check, plots

# %% [markdown]
# > **Theorem C1.** It is.
#
# <details><summary>Proof</summary>
#
# It was.
# </details>
#
# **Predict first:** will it be?

# %%
print("left", 1, "right", 1)
def helper(one):
    return one + 1

# %%
fig, ax = plt.subplots()
plots.show(fig, alt="A line that goes up and never down")

# %% [markdown]
# *What you see:* a line.
#
# > **Finding C7.** It may be.

# %%
x = helper(one=2)
{"".join(EXERCISE.format(name) for name in NAMES)}

# %% [markdown] written="C1" points=2
# Prove it.
# ### BEGIN SOLUTION
# It is.
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 2 points
# ### END MARK SCHEME

# %% [markdown]
# ## Equation ↔ function
#
# | equation | function |
# |---|---|
# | $x$ | `notebooks.source.read_source` |
#
# ## Summary
#
# ## References
#
# - Someone (2020), [Something](https://example.org/x).
"""


def lecture(folder: Path, text: str) -> NotebookNode:
    """The notebook of a source text."""
    path = folder / "01_tiny.py"
    path.write_text(text, encoding="utf-8")
    return read_source(path)


@pytest.mark.parametrize("rule", shape.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_lecture(path: Path, rule: Callable[[NotebookNode], list[str]]) -> None:
    assert rule(read_source(path)) == []


def test_there_is_a_lecture() -> None:
    if not SOURCES:
        pytest.skip("no lecture is written yet: solutions/src holds no NN_name.py")


@pytest.mark.parametrize("rule", shape.RULES, ids=lambda rule: rule.__name__)
def test_a_right_lecture_passes(tmp_path: Path, rule: Callable[[NotebookNode], list[str]]) -> None:
    assert rule(lecture(tmp_path, GOOD)) == []


WRONG = [
    (shape.title_block, "# 01 · Tiny", "# Tiny", "lacks '# NN"),
    (shape.title_block, "**Does it work?**", "It works.", "one question"),
    (shape.title_block, "5 minutes", "a while", "minutes"),
    (shape.title_block, "`notebooks.build`", "`notebooks.bild`", "dgm_course.notebooks.bild"),
    (shape.parts_in_order, "## Summary", "## Sum", "no heading '## Summary'"),
    (shape.parts_in_order, "## Where we are", "## Summary\n# ## Where we are", "'Summary' stands too early"),
    (shape.parts_in_order, "**Predict first", "**Guess", "prediction"),
    (shape.objectives, "# 3. c.", "#", "2 numbered objectives"),
    (shape.references, "[Something](https://example.org/x)", "Something", "without a link"),
    (shape.references, "# - Someone", "# Someone", "none was found"),
    (shape.equation_table, "read_source`", "read_sauce`", "notebooks.source.read_sauce"),
    (shape.equation_table, "`notebooks.source.read_source`", "it", "names no function"),
    (shape.one_imports_cell, "x = helper(one=2)", "import math", "'import math' belongs"),
    (shape.boxes_are_checked, 'print("left", 1, "right", 1)', "1 == 1", "no cell prints its two sides"),
    (shape.boxes_are_checked, "<summary>", "", "no proof"),
    (shape.boxes_are_checked, "# > **Theorem C1.** It is.",
     "# > **Theorem C1.** It is.\n#\n# > **Theorem C2.** It, too.", "theorem C1: no code cell"),
    (shape.boxes_are_checked, "> **Theorem", "**Theorem", None),
    (shape.figures_speak, ', alt="A line that goes up and never down"', "", "plots.show(fig, alt="),
    (shape.figures_speak, "A line that goes up and never down", "A line", "plots.show(fig, alt="),
    (shape.figures_speak, "*What you see:*", "See", "What you see"),
    (shape.figures_speak, "## Where we are", "![](a.png)", "no alternative text"),
    (shape.answers_are_leaves, "x = helper(one=2)", "x = one(2)", "uses 'one', the student's answer to one"),
    (shape.answers_are_leaves, "x = helper(one=2)", "one = 2", "uses 'one'"),
    (shape.answers_are_leaves, "    return one + 1", "    return two + 1", "uses 'two'"),
    (shape.answers_are_leaves, "check, plots", "check, plots, one", "uses 'one'"),
    (shape.answers_are_leaves, "check.two(two)", "check.two(two), one", "uses 'one'"),
    (shape.exercises, "### BEGIN HIDDEN TESTS\nimport math\n### END HIDDEN TESTS", "", "no ### BEGIN HIDDEN"),
    (shape.exercises, EXERCISE.format("two"), "", "4 exercises and 1 written"),
    (shape.no_wall_of_code, "x = helper(one=2)", "1\n# %%\n2\n# %%\n3\n# %%\n4", "four code cells"),
    (shape.nothing_forbidden, "x = helper(one=2)", "plt.show()", "instead of plt.show()"),
    (shape.nothing_forbidden, "x = helper(one=2)", "x.cuda()", "no hard"),
    (shape.nothing_forbidden, "x = helper(one=2)", "x = 'a\tb'", "a backslash of a formula"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "old", "new", "fault"), WRONG)
def test_a_wrong_lecture_fails(
    tmp_path: Path, rule: Callable[[NotebookNode], list[str]], old: str, new: str, fault: str | None
) -> None:
    assert old in GOOD
    faults = rule(lecture(tmp_path, GOOD.replace(old, new, 1)))
    assert fault is None or any(fault in line for line in faults), faults
