"""Pairs of points and components, block by block: what fits into the cache, for one mixture or many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_PAIRS, CUDA_PAIRS = 2**18, 2**22
CPU_COLUMNS, CUDA_COLUMNS = 512, 2048


@dataclass(frozen=True)
class Block:
    """Members, points and components of one block: slices of E, m and n."""

    members: slice
    points: slice
    components: slice

    def of_points(self, values: Tensor) -> Tensor:
        """``(E, k, m)`` cut to the block."""
        return values[self.members, :, self.points]

    def of_components(self, values: Tensor) -> Tensor:
        """``(E, k, n)`` cut to the block."""
        return values[self.members, :, self.components]


@dataclass(frozen=True)
class Tiling:
    """How E mixtures of n components at m points each are cut. Several members share a block if they fit."""

    members: int
    points: int
    components: int
    shape: tuple[int, int, int]  # the largest block

    @classmethod
    def plan(cls, members: int, points: int, components: int, device: torch.device) -> Tiling:
        """Blocks of a quarter of a million pairs on a CPU, of four million on a GPU."""
        cuda = device.type == "cuda"
        pairs = CUDA_PAIRS if cuda else CPU_PAIRS
        columns = min(components, CUDA_COLUMNS if cuda else CPU_COLUMNS)
        rows = min(points, pairs // columns)
        whole = columns == components and rows == points
        stack = min(members, max(1, pairs // (rows * columns))) if whole else 1
        return cls(members, points, components, (stack, rows, columns))

    def strips(self) -> Iterator[tuple[slice, slice]]:
        """Members and points, each with all components."""
        stack, rows, _ = self.shape
        for e in range(0, self.members, stack):
            for i in range(0, self.points, rows):
                yield slice(e, min(e + stack, self.members)), slice(i, min(i + rows, self.points))

    def blocks(self, members: slice, points: slice) -> Iterator[Block]:
        """The blocks of one strip."""
        step = self.shape[2]
        for j in range(0, self.components, step):
            yield Block(members, points, slice(j, min(j + step, self.components)))

    def scratch(self, like: Tensor, dtype: torch.dtype) -> Scratch:
        """Room for the numbers of one block."""
        return Scratch(like.new_empty(self.shape[0] * self.shape[1] * self.shape[2], dtype=dtype))


@dataclass(frozen=True)
class Scratch:
    """Memory that every block overwrites: page faults would cost a third of the time."""

    room: Tensor

    def shaped(self, block: Block) -> Tensor:
        """``(e, rows, columns)``, contiguous."""
        shape = [s.stop - s.start for s in (block.members, block.points, block.components)]
        return self.room[: shape[0] * shape[1] * shape[2]].view(shape)


class Exclusions:
    """The pairs of one strip that do not count, given as ``exclude (E, m)``: a component for each point."""

    def __init__(self, exclude: Tensor, members: slice, points: slice, tiling: Tiling) -> None:
        chosen, self._order = exclude[members, points].reshape(-1).sort()
        self._chosen = chosen
        edges = range(0, tiling.components + tiling.shape[2], tiling.shape[2])
        edges = torch.tensor(list(edges), device=exclude.device)
        self._starts = torch.searchsorted(chosen, edges).tolist()
        self._step = tiling.shape[2]

    def apply(self, scores: Tensor, block: Block) -> None:
        """Write -inf where a pair is excluded; ``scores (e, rows, columns)`` is contiguous."""
        number = block.components.start // self._step
        found = slice(self._starts[number], self._starts[number + 1])
        if found.start < found.stop:
            columns = self._chosen[found] - block.components.start
            scores.view(-1, scores.shape[-1])[self._order[found], columns] = -torch.inf
