"""The repository against ``claims.toml``: what the course claims is written, tested and shown.

A row that is *done* has a library function whose docstring names it, its box in its lecture (source and
student edition), and a test that runs: a theorem's rejects the named wrong variant (``ledger.proves``).
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import ledger
import nbformat
import pytest

from dgm_course.notebooks.source import read_source, theorem_boxes

HERE = Path(__file__).parent
ROOT = HERE.parent
CLAIMS: list[dict[str, Any]] = tomllib.loads((HERE / "claims.toml").read_text(encoding="utf-8"))["claim"]
COUNTS = {"C": 9, "I": 8, "F": 11, "D": 8, "S": 6, "V": 6, "G": 6, "T": 6}
LECTURES = {
    "C": "01_posterior_collapse", "I": "02_iwae", "F": "03_normalizing_flows", "D": "04_dequantization",
    "S": "05_elbo_surgery", "V": "06_flows_in_vae", "G": "07_gan_optimality", "T": "08_gan_training",
}  # fmt: skip
FINDINGS = {"C7", "D8", "F9", "F10", "S5", "T3", "T4"}
FIELDS = {"id", "lecture", "kind", "statement", "function", "oracle", "tolerance", "status"}
DONE = [claim for claim in CLAIMS if claim["status"] == "done"]
every_done_row = pytest.mark.parametrize("claim", DONE, ids=lambda claim: claim["id"])


def source_of(claim: dict[str, Any]) -> Path:
    return ROOT / "solutions" / "src" / f"{claim['lecture']}.py"


def test_sixty_rows() -> None:
    expected = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
    assert len(expected) == 60
    assert [claim["id"] for claim in CLAIMS] == expected


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_row_is_well_formed(claim: dict[str, Any]) -> None:
    theorem = claim["id"] not in FINDINGS
    assert set(claim) == FIELDS | ({"wrong_variant"} if theorem else set())
    assert all(isinstance(value, str) and value.strip() for value in claim.values())
    assert claim["kind"] == ("theorem" if theorem else "finding")
    assert claim["lecture"] == LECTURES[claim["id"][0]]
    assert claim["status"] in ("done", "planned")
    assert re.fullmatch(r"dgm_course(\.\w+){2,}", claim["function"])
    assert len(re.findall(r"[.;:](?:\s|$)", claim["statement"])) >= 1 and len(claim["statement"]) < 620
    assert not theorem or claim["wrong_variant"].isidentifier()


def test_a_written_lecture_has_no_planned_row() -> None:
    late = [claim["id"] for claim in CLAIMS if claim["status"] == "planned" and source_of(claim).exists()]
    assert not late, f"their lecture is written, so these rows are done: {late}"
    early = [claim["id"] for claim in DONE if not source_of(claim).exists()]
    assert not early, f"done, but without a lecture: {early}"


@every_done_row
def test_the_function_names_its_row(claim: dict[str, Any]) -> None:
    """``Ledger C5`` stands in the docstring of the function, its class or its module."""
    function = pkgutil.resolve_name(claim["function"])
    holders = [function, sys.modules.get(getattr(function, "__module__", ""))]
    parent = claim["function"].rpartition(".")[0]
    holders.append(pkgutil.resolve_name(parent))
    texts = [holder.__doc__ or "" for holder in holders if holder is not None]
    named = rf"Ledger [^.]*\b{claim['id']}\b"
    assert any(re.search(named, text) for text in texts), (
        f"{claim['function']} does not say 'Ledger {claim['id']}'"
    )


def test_docstrings_name_rows_that_exist() -> None:
    known = {claim["id"] for claim in CLAIMS}
    for path in sorted((ROOT / "dgm_course").rglob("*.py")):
        for mention in re.findall(r"Ledger ((?:[A-Z]\d+(?:, | and )?)+)", path.read_text(encoding="utf-8")):
            assert set(re.findall(r"[A-Z]\d+", mention)) <= known, f"{path.name}: {mention}"


@every_done_row
def test_the_box_is_in_the_lecture(claim: dict[str, Any]) -> None:
    source = source_of(claim)
    student = ROOT / "lectures" / f"{claim['lecture']}.ipynb"
    assert student.exists(), f"run 'python -m dgm_course build {claim['lecture'][:2]}'"
    for notebook in (read_source(source), nbformat.read(student, as_version=nbformat.NO_CONVERT)):
        boxes = [box.kind for box in theorem_boxes(notebook) if box.row == claim["id"]]
        assert boxes == [claim["kind"]], (
            f"one box '> **{claim['kind'].title()} {claim['id']}' in {source.name}"
        )


@pytest.mark.parametrize(
    "source", sorted((ROOT / "solutions" / "src").glob("*.py")), ids=lambda path: path.stem
)
def test_a_lecture_has_its_own_boxes_only(source: Path) -> None:
    rows = {box.row for box in theorem_boxes(read_source(source))}
    assert rows <= {claim["id"] for claim in CLAIMS if claim["lecture"] == source.stem}


def theorem_modules() -> list[ModuleType]:
    """The modules of tests/theorems: those that pytest has imported, the others imported now."""
    loaded = {getattr(module, "__file__", None): module for module in list(sys.modules.values())}
    modules = []
    for path in sorted((HERE / "theorems").glob("test_*.py")):
        module = loaded.get(str(path))
        if module is None:
            name = f"tests.theorems.{path.stem}"  # the name that pytest gives it, so that it is not run twice
            spec = importlib.util.spec_from_file_location(name, path)
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        modules.append(module)
    return modules


def is_skipped(test: Any) -> bool:  # noqa: ANN401
    marks = getattr(test, "pytestmark", [])
    return any(mark.name in ("skip", "skipif", "xfail", "long") for mark in marks)


@every_done_row
def test_a_test_runs_and_can_fail(claim: dict[str, Any]) -> None:
    tests = {f"{module.__name__}.{name}": test for module in theorem_modules()
             for name, test in vars(module).items() if name.startswith("test_")}  # fmt: skip
    if claim["kind"] == "finding":
        word = re.compile(rf"(^|_){claim['id'].lower()}(_|$)")
        running = [name for name, test in tests.items() if word.search(name.rpartition(".")[2])]
        running = [name for name in running if not is_skipped(tests[name])]
        assert running, f"no test in tests/theorems is called test_..._{claim['id'].lower()}_..."
        return
    proofs = ledger.PROVEN.get(claim["id"], [])
    running = [wrong for name, wrong in proofs if name in tests and not is_skipped(tests[name])]
    assert running, f"no test in tests/theorems is decorated with @proves('{claim['id']}', ...)"
    rejected = {name for wrong in running for name in wrong}
    assert claim["wrong_variant"] in rejected, f"{claim['id']}: its tests reject {sorted(rejected)}"


def test_no_theorem_is_proved_for_a_row_that_does_not_exist() -> None:
    theorem_modules()
    theorems = {claim["id"] for claim in CLAIMS if claim["kind"] == "theorem"}
    assert set(ledger.PROVEN) <= theorems
    names = [name for proofs in ledger.PROVEN.values() for name, _ in proofs]
    assert len(names) == len(set(names)), "a module of tests/theorems was imported twice"


def test_wrong_variants_are_not_the_library() -> None:
    """A wrong variant is written in the test: no function of the library stands among the wrong ones."""
    for path in sorted((HERE / "theorems").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                    and (node.module or "").startswith("dgm_course") for alias in node.names}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "proves":
                wrong = next(key.value for key in node.keywords if key.arg == "wrong")
                values = wrong.values if isinstance(wrong, ast.Dict) else []
                used = {value.id for value in values if isinstance(value, ast.Name)}
                assert not used & imported, f"{path.name}: {used & imported} is the library's own"
