"""A masked network inverted block by block, in the order in which its units can be known.

Unit i of a layer has a *level*: how many inputs must be known before it can be computed, read off the masks;
input i itself has level i + 1. In the order of the levels every weight matrix is block triangular. A block
of inputs then needs one product with all that is known already, half of a forward pass over all blocks, and
small products among its own units.

Within a block, inputs are either solved for one by one, or by *sweeps*: all are guessed, computed from the
guesses, and computed again. What a sweep leaves as it was is its own solution, since input j reads earlier
ones only; the first input that it changes has read nothing but these, so it is right as well. A sweep that
gives anything else than finite numbers settles nothing: then the guesses are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dgm_course.nets import MaskedMLP

#: ``step(given (N, n), out (N, n, k)) -> (N, n)``: the unknown inputs from the network's outputs for them
Step = Callable[[Tensor, Tensor], Tensor]

#: Up to this many inputs are solved for one by one, without guesses, in blocks of ...
_ONE_BY_ONE, _NARROW_BLOCK = 64, 16
#: More are solved for in this many blocks, by sweeps; what is exact is left out of them once it is more than
#: this part of the inputs.
_BLOCKS, _PART = 12, 3
#: Sweeps go on as long as they settle this many inputs each, not counting the first so many sweeps.
_PACE, _PATIENCE = 2, 12


class LevelOrder:
    """What the masks of a network say about the order: found once, kept while the masks stay. Ledger F5, F6.

    Raises ``ValueError`` if some output reads an input that is not before it.
    """

    def __init__(self, net: MaskedMLP) -> None:
        num_inputs, layers = net.num_inputs, (net.input, *net.layers)
        self.masks = [layer.mask for layer in layers]
        self.versions = [_version(mask) for mask in self.masks]
        steps = torch.arange(num_inputs + 1, device=self.masks[0].device, dtype=torch.float32)
        levels, outputs = steps[1:], steps[:-1].repeat_interleave(net.outputs_per_input)
        #: of the inputs, each hidden layer and the outputs: units in the order of their levels, ...
        self.orders: list[Tensor | None] = [None]  # None: as they lie
        #: ... and how many of them have a level less than j = 0, ..., d
        self.edges: list[list[int]] = [torch.searchsorted(levels, steps).tolist()]
        for mask in self.masks:
            levels = ((mask != 0) * levels.unsqueeze(1)).amax(0)  # the latest that a unit reads
            ascending, order = levels.sort(stable=True)
            self.orders.append(order)
            self.edges.append(torch.searchsorted(ascending, steps).tolist())
        if bool((levels > outputs).any()):
            raise ValueError(
                "output j of an autoregressive network may read inputs i < j only, but some output reads its "
                "own or a later input: check the masks"
            )
        self.orders[-1], self.edges[-1] = None, [j * net.outputs_per_input for j in range(num_inputs + 1)]
        size = _NARROW_BLOCK if num_inputs <= _ONE_BY_ONE else -(-num_inputs // _BLOCKS)
        self.blocks = [
            _Block(start, min(start + size, num_inputs), self) for start in range(0, num_inputs, size)
        ]

    def is_of(self, net: MaskedMLP) -> bool:
        """Whether the network still has the masks that this order was read off."""
        masks = [layer.mask for layer in (net.input, *net.layers)]
        return all(
            new is old and version is not None and _version(new) == version
            for new, old, version in zip(masks, self.masks, self.versions, strict=True)
        )


class _Part(NamedTuple):
    """A layer's weights from all units of level < stop to those of the block."""

    rows: Tensor | slice
    columns: Tensor | slice
    num_known: int  # rows of level < start
    known_mask: Tensor | None  # None: all ones
    own_mask: Tensor


class _Block:
    """Inputs start, ..., stop - 1, the units of the levels start, ..., stop - 1, and what they read."""

    def __init__(self, start: int, stop: int, order: LevelOrder) -> None:
        self.start, self.stop, self.parts = start, stop, []
        for depth, mask in enumerate(order.masks):
            rows = _units(order.orders[depth], 0, order.edges[depth][stop])
            columns = _units(order.orders[depth + 1], *(order.edges[depth + 1][j] for j in (start, stop)))
            num_known = order.edges[depth][start]
            known, own = _taken(mask, rows, columns).tensor_split([num_known])
            whole = bool((known == 1).all())
            self.parts.append(_Part(rows, columns, num_known, None if whole else known.clone(), own.clone()))


_ORDERS: WeakKeyDictionary[MaskedMLP, LevelOrder] = WeakKeyDictionary()


def level_order(net: MaskedMLP) -> LevelOrder:
    """The :class:`LevelOrder` of a network: the last one if its masks are the same tensors, unchanged."""
    order = _ORDERS.get(net)
    if order is None or not order.is_of(net):
        order = _ORDERS[net] = LevelOrder(net)
    return order


def solve_by_levels(
    net: MaskedMLP, step: Step, given: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """v with ``v = step(given, net(v))`` and ``net(v)``: ``given (N, d)`` gives ``(N, d)`` and ``(N, d, k)``.

    Exact, see above. Raises ``ValueError`` for a network that is not autoregressive, and for a context where
    none is wanted or the other way round.
    """
    return _Solve(net, step, given, context).run()


class _Solve:
    """One solution in the making. Everything is held with units first, ``(units, N)``: levels are rows."""

    def __init__(self, net: MaskedMLP, step: Step, given: Tensor, context: Tensor | None) -> None:
        self.net, self.step, self.order = net, step, level_order(net)
        self.layers = (net.input, *net.layers)
        self.biases = [
            layer.bias.unsqueeze(1) if order is None else layer.bias[order].unsqueeze(1)
            for layer, order in zip(self.layers, self.order.orders[1:], strict=True)
        ]
        if (context is None) != (net.context is None):
            net(given, context)  # raises the network's own error
        if context is not None:
            self.biases[0] = self.biases[0] + net.context(context).T[self.order.orders[1]]
        self.given = given.T.contiguous()
        self.value = self.given.clone()  # the first guess: many flows are not far from the identity
        #: activations of the hidden layers and the outputs
        self.units = [given.new_empty(layer.out_features, len(given)) for layer in self.layers]
        self.one_by_one = net.num_inputs <= _ONE_BY_ONE

    def run(self) -> tuple[Tensor, Tensor]:
        """All blocks, one after another."""
        for block in self.order.blocks:
            fixed, weights = self._from_known(block)
            start = block.start
            while start < block.stop:
                stop = start + 1 if self.one_by_one else block.stop
                start += self._settle(block.start, start, stop, fixed, weights)
        out = self.units[-1].unflatten(0, (self.net.num_inputs, self.net.outputs_per_input))
        return self.value.T.contiguous(), out.permute(2, 0, 1)

    def _from_known(self, block: _Block) -> tuple[list[Tensor], list[Tensor]]:
        """For each layer, what its units in the block get from all units before (units, N), and the weights
        among the block's own (units, units of the layer below)."""
        fixed, weights = [], []
        below = [self.value, *self.units]
        for depth, part in enumerate(block.parts):
            weight = _taken(self.layers[depth].weight, part.rows, part.columns)
            known, own = weight[: part.num_known], weight[part.num_known :]
            known = known if part.known_mask is None else known * part.known_mask
            first, last = (self.order.edges[depth + 1][j] for j in (block.start, block.stop))
            bias = self.biases[depth][first:last]
            fixed.append(torch.addmm(bias, known.T, below[depth][: part.num_known]))
            weights.append((own * part.own_mask).T)
        return fixed, weights

    def _settle(self, first: int, start: int, stop: int, fixed: list[Tensor], weights: list[Tensor]) -> int:
        """Sweep over inputs start, ..., stop - 1 of the block from ``first`` until enough of them are exact
        to go on with the rest, or the guesses have failed: how many are exact."""
        stages, below = [], self.value
        for depth, (pre, weight) in enumerate(zip(fixed, weights, strict=True)):
            rows, units = self.order.edges[depth], self.order.edges[depth + 1]
            cut = slice(units[start] - units[first], units[stop] - units[first])
            weight = weight[cut, : rows[stop] - rows[first]]
            new = self.units[depth][units[start] : units[stop]]
            stages.append((pre[cut], weight, below[rows[first] : rows[stop]], new))
            below = self.units[depth]
        value, given = self.value[start:stop], self.given[start:stop].T
        out = stages[-1][-1].unflatten(0, (stop - start, self.net.outputs_per_input)).permute(2, 0, 1)
        num_exact = num_sweeps = 0
        while num_exact <= (stop - start) // _PART:
            for pre, weight, below, new in stages[:-1]:
                torch.addmm(pre, weight, below, out=new)
                new.copy_(self.net.activation(new))
            pre, weight, below, new = stages[-1]
            torch.addmm(pre, weight, below, out=new)
            found = self.step(given, out).T
            num_exact = 1 if stop - start == 1 else self._unchanged(value, found)
            value.copy_(found)
            num_sweeps += 1
            self.one_by_one |= num_exact < max(1, _PACE * (num_sweeps - _PATIENCE))
            if self.one_by_one:
                break
        return num_exact

    def _unchanged(self, old: Tensor, new: Tensor) -> int:
        """How many inputs the sweep has settled: up to the first that it changed, that one included.

        0 if a guess overflowed: infinity times a masked weight, which is 0, is not a number.
        """
        if not new.numel():
            return len(new)
        changes = (new - old).abs().amax(1).tolist()
        if not math.isfinite(sum(changes)):
            return 0
        return next((i for i, change in enumerate(changes) if change != 0), len(changes) - 1) + 1


def _units(order: Tensor | None, start: int, stop: int) -> Tensor | slice:
    return slice(start, stop) if order is None else order[start:stop]


def _taken(matrix: Tensor, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
    """``matrix[rows][:, columns]``: views first, then what leaves less to copy."""
    if isinstance(rows, slice):
        matrix = matrix[rows]
    if isinstance(columns, slice):
        matrix = matrix[:, columns]
    few = not isinstance(rows, slice) and 2 * len(rows) < len(matrix)
    if few:
        matrix = matrix.index_select(0, rows)
    if not isinstance(columns, slice):
        matrix = matrix.index_select(1, columns)
    return matrix if few or isinstance(rows, slice) else matrix.index_select(0, rows)


def _version(tensor: Tensor) -> int | None:
    """The counter of in-place changes; None where torch keeps none."""
    return None if tensor.is_inference() else tensor._version
