"""A record is put together here: what an experiment found, with the date, time and machine of its run."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dgm_course.reproduce.record import Record, Row


def finished(
    name: str,
    *,
    command: str,
    budget: str,
    start: float,
    num_seeds: int,
    device: torch.device | str,
    tables: Mapping[str, Sequence[Row]],
    pictures: Mapping[str, Tensor],
) -> Record:
    """The `Record` of a run that ends now and began when ``time.process_time()`` was ``start``.

    Its seeds are 0, 1, ..., ``num_seeds - 1``; ``device`` is where its tensors were.
    """
    return Record(
        name=name,
        command=command,
        date=datetime.date.today().isoformat(),
        budget=budget,
        cpu_seconds=time.process_time() - start,
        seeds=tuple(range(num_seeds)),
        torch_version=torch.__version__.split("+")[0],
        machine=_machine(torch.device(device)),
        tables=tables,
        pictures=pictures,
    )


def _machine(device: torch.device) -> str:
    threads = torch.get_num_threads()
    return "one GPU" if device.type != "cpu" else f"CPU, {threads} thread" + ("s" if threads > 1 else "")
