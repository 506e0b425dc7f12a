"""What every recorded experiment owes: a command that writes its record, and a record that comes with it."""

from __future__ import annotations

import json
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch

from dgm_course.__main__ import main
from dgm_course.reproduce import Record, load

ROOT = Path(__file__).parents[1]


def contents(record: Record) -> dict[str, object]:
    """The names in a record: tables with their rows' texts and columns, pictures."""
    tables = {
        name: {(*(v for v in row.values() if isinstance(v, str)), *sorted(row)) for row in rows}
        for name, rows in record.tables.items()
    }
    return {"tables": tables, "pictures": set(record.pictures)}


def run_quickly(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Record:
    """The record that ``reproduce NAME --quick --steps 4`` writes: the shipped one's tables and columns."""
    threads, state, path = torch.get_num_threads(), torch.get_rng_state(), folder / f"{name}.json"
    assert main(["reproduce", name, "--quick", "--steps", "4", "--out", str(path)]) == 0
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    record = load(path)
    assert capsys.readouterr().out.splitlines()[-1] == f"{path}: {record.provenance()}"
    assert record.name == name
    assert record.command == f"python -m dgm_course reproduce {name} --quick --steps 4"
    assert record.seeds == (0, 1) and "4 steps of" in record.budget and record.machine == "CPU, 1 thread"
    assert contents(record) == contents(load(name)), "what the lecture reads is what the command writes"
    return record


def run_on_gpu(name: str) -> None:
    """The same on CUDA, where there is one."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine: the CPU run of the command stands")
    experiment = import_module(f"dgm_course.reproduce.{name}")
    record = experiment.run(experiment.Settings().quick(), device="cuda")
    assert record.machine == "one GPU" and contents(record) == contents(load(name))


def shipped(name: str) -> Record:
    """The record that comes with the course: the full experiment, small, clean."""
    path = ROOT / "dgm_course" / "reproduce" / "records" / f"{name}.json"
    assert path.stat().st_size < 150_000
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "reproduce/records/*.json" in packed["package-data"]["dgm_course"]
    text = json.dumps({k: v for k, v in json.loads(path.read_text("utf-8")).items() if k != "pictures"})
    assert "/" not in text, "no paths"
    record, settings = load(name), import_module(f"dgm_course.reproduce.{name}").Settings()
    assert record.name == name and record.command == f"python -m dgm_course reproduce {name}"
    assert len(record.seeds) == settings.num_seeds
    return record
