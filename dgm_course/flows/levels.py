"""A masked network sorted by when its units can be known, and its inversion block by block.

Unit i of a layer has a *level*: how many inputs must be known before it can be computed, read off the masks. In
the order of the levels every weight matrix is block triangular, so that a block of inputs needs one product
with all that is known already and a few small products within the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgm_course.nets import MaskedMLP

#: Inputs solved for together: small enough that a block's own sweeps are cheap, large enough to be few.
_SMALLEST_BLOCK, _MOST_BLOCKS = 8, 12


class SortedNet:
    """The weights of a :class:`MaskedMLP`, sorted by level. Ledger F5, F6.

    Raises ``ValueError`` if some output reads an input that is not before it.
    """

    def __init__(self, net: MaskedMLP) -> None:
        self.net, self.num_inputs = net, net.num_inputs
        levels = torch.arange(1, net.num_inputs + 1, device=net.input.weight.device)
        order = torch.arange(net.num_inputs, device=levels.device)
        self.weights: list[Tensor] = []  # sorted, masked: (units before, units)
        self.biases: list[Tensor] = []
        self.levels: list[Tensor] = []  # ascending, of each hidden layer
        for depth, layer in enumerate((net.input, *net.layers)):
            last = depth == len(net.layers)
            reads = layer.mask.index_select(0, order) != 0
            levels = (reads * levels.unsqueeze(1)).amax(0)  # the latest that a unit reads
            after = torch.arange(len(levels), device=levels.device) if last else levels.argsort(stable=True)
            weight = (layer.weight * layer.mask).index_select(0, order)
            self.weights.append(weight if last else weight.index_select(1, after))
            self.biases.append(layer.bias if last else layer.bias[after])
            if depth == 0:
                self.first = after
            if last:
                self._check(levels)
            else:
                levels, order = levels[after], after
                self.levels.append(levels)

    def solve(
        self, step: Callable[[Tensor, Tensor], Tensor], given: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """v with ``v = step(given, net(v))`` and ``net(v)``: ``given (N, d)``, ``(N, d)``, ``(N, d, k)``."""
        from_context = self.biases[0]
        if (context is None) != (self.net.context is None):
            self.net(given, context)  # raises the network's own error
        if context is not None:
            from_context = from_context + self.net.context(context).index_select(-1, self.first)
        state = _State(
            step, given, from_context, torch.empty_like(given),
            [given.new_empty(len(given), len(levels)) for levels in self.levels],
            given.new_empty(len(given), self.weights[-1].shape[1]),
        )  # fmt: skip
        size = max(_SMALLEST_BLOCK, -(-self.num_inputs // _MOST_BLOCKS))
        for start in range(0, self.num_inputs, size):
            self._block(state, start, min(start + size, self.num_inputs))
        return state.value, state.out.unflatten(-1, (self.num_inputs, self.net.outputs_per_input))

    def _block(self, state: _State, start: int, stop: int) -> None:
        """Inputs start, ..., stop - 1, given all before them: sweeps until nothing changes, at most as many
        as inputs. A guess that overflows would spoil its block: then in two halves, down to one input."""
        cuts = [self._cut(levels, start, stop) for levels in self.levels]
        k = self.net.outputs_per_input
        fixed = self._from_before(state, start, cuts, slice(start * k, stop * k))
        given, value = state.given[:, start:stop], state.value[:, start:stop]
        value.zero_()
        for _ in range(stop - start):
            out = self._within(state, start, stop, cuts, fixed)
            new = state.step(given, out.unflatten(-1, (stop - start, k)))
            done = torch.equal(new, value)
            value.copy_(new)
            if done:
                break
        state.out[:, start * k : stop * k] = out
        if stop - start > 1 and not bool(value.isfinite().all()):
            middle = (start + stop) // 2
            self._block(state, start, middle)
            self._block(state, middle, stop)

    def _from_before(self, state: _State, start: int, cuts: Sequence[slice], columns: slice) -> list[Tensor]:
        """What the known inputs and units give to each layer's new units: (N, units of the block)."""
        first = state.from_context[..., cuts[0]] + state.value[:, :start] @ self.weights[0][:start, cuts[0]]
        fixed = [first]
        for depth, cut in enumerate(cuts):
            to = cuts[depth + 1] if depth + 1 < len(cuts) else columns
            known = state.hidden[depth][:, : cut.start]
            weight = self.weights[depth + 1][: cut.start, to]
            fixed.append(torch.addmm(self.biases[depth + 1][to], known, weight))
        return fixed

    def _within(
        self, state: _State, start: int, stop: int, cuts: Sequence[slice], fixed: Sequence[Tensor]
    ) -> Tensor:
        """Once through the block's own units: its outputs (N, inputs * k)."""
        activation, k = self.net.activation, self.net.outputs_per_input
        below, rows = state.value[:, start : stop - 1], slice(start, stop - 1)
        for depth, cut in enumerate(cuts):
            pre = torch.addmm(fixed[depth], below, self.weights[depth][rows, cut])
            below, rows = activation(pre), cut
            state.hidden[depth][:, cut] = below
        return torch.addmm(fixed[-1], below, self.weights[-1][rows, start * k : stop * k])

    def _cut(self, levels: Tensor, start: int, stop: int) -> slice:
        """The units that become known within a block: those of level start, ..., stop - 1."""
        low = 0 if start == 0 else int(torch.searchsorted(levels, start))
        return slice(low, int(torch.searchsorted(levels, stop)))

    def _check(self, levels: Tensor) -> None:
        outputs = torch.arange(self.num_inputs, device=levels.device)
        if bool((levels > outputs.repeat_interleave(self.net.outputs_per_input)).any()):
            raise ValueError(
                "output j of an autoregressive network may read inputs i < j only, but some output reads its own "
                "or a later input: check the masks"
            )


class _State:
    """What is known so far: inputs, hidden units (sorted), outputs."""

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], Tensor],
        given: Tensor,
        from_context: Tensor,
        value: Tensor,
        hidden: list[Tensor],
        out: Tensor,
    ) -> None:
        self.step, self.given, self.from_context = step, given, from_context
        self.value, self.hidden, self.out = value, hidden, out
