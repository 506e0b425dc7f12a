"""The house keeps its plan: floors, sizes, the library's habits, what lies at the top, instant ``--help``."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "dgm_course"
FLOORS = {
    "numerics": 0, "gaussian": 0,
    "mixtures": 1, "logistic_mixture": 1, "divergences": 1, "bounds": 1, "two_sample": 1, "gan": 1, "nets": 1,
    "data": 1, "em": 1,
    "linear_gaussian": 2, "linear_vae": 2, "gaussian_toy": 2, "flows": 2, "reversible": 2, "pixel_models": 2,
    "vae": 3, "priors": 3, "dequantization": 3, "surgery": 3,
    "train": 4, "plots": 4, "pictures": 4,
    "demos": 5, "check": 5,
    "notebooks": 6, "grading": 6, "reproduce": 6, "__main__": 6,
}  # fmt: skip
#: Modules of lectures that are not written yet.
PLANNED = {"two_sample", "gan", "grading"}
#: Imports between modules of one floor: (importer, imported).
NEIGHBOURS = {("linear_vae", "linear_gaussian"), ("plots", "pictures"), ("__main__", "notebooks"),
              ("__main__", "reproduce")}  # fmt: skip
TOP = {"README.md", "requirements.txt", "lectures", "solutions", "dgm_course", "tests", "binder",
       "pyproject.toml", "Makefile", "LICENSE"}  # fmt: skip
MAX_LINES = 320  # "about 300": a file that reaches this wants splitting
PRINTS = {"__main__.py", "check/engine.py"}
SEEDS = {"check/guard.py"}  # sets known random states around a student's call, and restores the student's
FILES = sorted(LIBRARY.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(LIBRARY).as_posix())


def dotted(path: Path) -> str:
    """``dgm_course.vae.model`` of its file; a package's ``__init__`` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in FILES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str, *, lazy: bool = True) -> Iterator[str]:
    """The library's modules that ``name`` imports; without ``lazy`` those that it needs to be imported."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    nodes = ast.walk(TREES[name]) if lazy else iter(TREES[name].body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("dgm_course"))
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *([node.module] if node.module else [])])
            if base.split(".")[0] == "dgm_course":
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield inner if inner in MODULES else base


def room(module: str) -> str:
    """``vae`` of ``dgm_course.vae.model``; empty for the package itself."""
    return (module.split(".") + [""])[1]


def test_every_module_has_a_floor() -> None:
    rooms = {room(name) for name in MODULES} - {""}
    assert rooms <= set(FLOORS), "a module that DESIGN does not list"
    assert set(FLOORS) - rooms == PLANNED, "PLANNED names exactly the modules that do not exist yet"


def test_planned_claims_name_listed_modules() -> None:
    claims = tomllib.loads((ROOT / "tests" / "claims.toml").read_text(encoding="utf-8"))["claim"]
    assert {claim["function"].split(".")[1] for claim in claims} <= set(FLOORS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_strictly_down(name: str) -> None:
    here = room(name)
    for imported in imports(name):
        there = room(imported)
        assert here, f"dgm_course/__init__.py imports {imported}; it is the glossary and imports nothing"
        assert there, f"{name} imports the package itself; import the module"
        allowed = here == there or FLOORS[there] < FLOORS[here] or (here, there) in NEIGHBOURS
        assert allowed, f"{name} (floor {FLOORS[here]}) imports {imported} (floor {FLOORS[there]})"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Module by module, packages' insides too (``static_order`` raises CycleError)."""
    graph = {name: set(imports(name, lazy=False)) - {name} for name in MODULES}
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(MODULES)


def test_no_circle_between_neighbours() -> None:
    rooms = {here: {room(there) for name in MODULES if room(name) == here for there in imports(name)} - {here}
             for here in FLOORS}  # fmt: skip
    list(graphlib.TopologicalSorter(rooms).static_order())


@pytest.mark.parametrize(
    "path",
    [*FILES, *sorted((ROOT / "tests").rglob("*.py"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it"


@every_file
def test_habits_of_the_library(path: Path) -> None:
    tree, name = TREES[dotted(path)], path.relative_to(LIBRARY).as_posix()
    for node in ast.walk(tree):
        call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert not call.endswith("plt.show"), "a drawing function returns its axes"
        assert not call.endswith(".cuda"), "device follows the inputs"
        seeds = call in ("torch.manual_seed", "np.random.seed", "random.seed")
        assert not seeds or name in SEEDS, "pass a generator"
        assert call != "print" or name in PRINTS, "the library returns, it does not print"
        narrows = isinstance(node, ast.Assert) and "is not None" in ast.unparse(
            node.test
        )  # for type checkers
        assert narrows or not isinstance(node, ast.Assert), "raise ValueError: -O removes assertions"
        raised = ast.unparse(node.exc) if isinstance(node, ast.Raise) and node.exc else ""
        assert not raised.startswith("NotImplementedError"), "no stubs"
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(one, ast.Pass) for one in node.body)
            assert not silent, f"line {node.lineno} swallows an exception"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert "rcParams" not in ast.unparse(node) or isinstance(node, ast.Import | ast.ImportFrom), (
                "importing must not change matplotlib's settings"
            )
    assert not re.search(r"#\s*(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8"))


@every_file
def test_public_names_have_docstrings(path: Path) -> None:
    tree = TREES[dotted(path)]
    assert ast.get_docstring(tree), "the module has no docstring"
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in tree.body:
        decorators = [ast.unparse(one) for one in getattr(node, "decorator_list", [])]
        if any(one.startswith("exercise(") for one in decorators):
            continue  # a reference solution: the decorator's text documents it
        if isinstance(node, definitions) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, definitions) and not inner.name.startswith("_"):
                    assert ast.get_docstring(inner), f"{node.name}.{inner.name} has no docstring"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; old = set(sys.modules); import dgm_course; print(*(set(sys.modules) - old))"
    assert set(run_python("-c", code).stdout.split()) <= {"dgm_course", "__future__"}


@pytest.mark.parametrize("command", [[], ["build"]])
def test_help_is_instant(command: list[str]) -> None:
    """It imports nothing that takes long to import."""
    arguments = ["-X", "importtime", "-m", "dgm_course", *command, "--help"]
    done = run_python(*arguments)
    assert done.stdout.startswith("usage: python -m dgm_course")
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    heavy = {"torch", "numpy", "matplotlib", "nbformat", "nbgrader", "jupytext", "sklearn"}
    assert not imported & heavy


def test_what_lies_at_the_top() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is not known here")
    if shutil.which("git") is None:
        pytest.skip("git is not installed: which files belong to the repository is not known here")
    command = ["git", "-c", "safe.directory=*", "ls-files"]  # a checkout may belong to another user
    plain = {**os.environ, "LC_ALL": "C"}
    listed = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=60)
    if "not a git repository" in listed.stderr:
        pytest.skip(f"not a git checkout ({listed.stderr.strip()}): its files are not known here")
    assert listed.returncode == 0, listed.stderr
    names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP


def requirements() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {pin.name: pin for pin in pins}


def test_requirements_are_exact_and_satisfy_the_package() -> None:
    pins = requirements()
    for pin in pins.values():
        assert [one.operator for one in pin.specifier] == ["=="] and "*" not in str(pin.specifier), str(pin)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for need in map(Requirement, project["dependencies"]):
        assert need.name in pins, f"{need.name} is not pinned in requirements.txt"
        [version] = [one.version for one in pins[need.name].specifier]
        assert need.specifier.contains(version), (
            f"requirements.txt pins {pins[need.name]}, the package needs {need}"
        )


def test_third_party_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    called = {"scikit-learn": "sklearn", "pillow": "PIL"}
    declared = {called.get(name, name) for name in (Requirement(one).name for one in project["dependencies"])}
    pinned = {called.get(name, name) for name in requirements()}
    carried = {"IPython", "traitlets", "requests"}  # by ipywidgets and pooch
    tools = {"nbformat", "nbclient"}  # by nbconvert
    for name, tree in TREES.items():
        roots = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
                 for alias in node.names}  # fmt: skip
        roots |= {(node.module or "").split(".")[0] for node in ast.walk(tree)
                  if isinstance(node, ast.ImportFrom) and not node.level}  # fmt: skip
        foreign = roots - set(sys.stdlib_module_names) - {"dgm_course", ""}
        allowed = declared | carried | (pinned | tools if FLOORS.get(room(name)) == 6 else set())
        assert foreign <= allowed, (
            f"{name} imports {foreign - allowed}, which pyproject.toml does not declare"
        )


def test_binder_agrees_with_the_requirements() -> None:
    path = ROOT / "binder" / "environment.yml"
    if not path.exists():
        pytest.skip("binder/environment.yml is not written yet")
    conda = {"pytorch-cpu": "torch", "pytorch": "torch", "matplotlib-base": "matplotlib"}
    pins = requirements()
    for name, version in re.findall(
        r"^\s*-\s*([\w-]+)==?([\d.*]+)\s*$", path.read_text(encoding="utf-8"), re.M
    ):
        if name != "python":
            pin = pins[conda.get(name, name)]
            assert str(pin.specifier).removeprefix("==").startswith(version.rstrip("*")), f"{name}: {pin}"
