"""Reversible blocks in a row, trained without storing their activations.

The forward pass keeps its output only. The backward pass walks back through the blocks: each is undone by
subtraction, and the branches just recomputed give the gradients. Rounding decides whether that works: in
float32 the reconstructed activations drift, and the gradients with them, the more the deeper. The cure is
cheap: the two streams are float64, the branches, where the work is, stay in the parameters' dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgm_course.reversible.block import ReversibleBlock, branch_dtype, check_value
from dgm_course.reversible.repeatable import first_value, refuse_unrepeatable


class ReversibleSequence(nn.Module):
    """Reversible blocks one after another: ``x (..., n, ...) -> y`` of the same shape, n even along ``dim``.

    ``x`` is split in two halves along ``dim``, which are the blocks' streams, and ``y`` is joined from the
    last block's. Activation memory does not grow with the number of blocks: the backward pass recomputes each
    block's input from its output, for one more evaluation of every branch. Blocks may share parameters, and
    parameters may be frozen.

    Gradients are as exact as stored activations make them, as long as the inverse map does not expand the
    streams' rounding, 1e-16 in float64, to what a branch can see. It may: with weights twice as large as
    PyTorch draws them, 64 dense blocks are beyond float64. Compare ``inverse(forward(x.double()))`` with x.

    ``save_activations=True`` runs the same map by plain autograd, storing everything, for comparison (it is
    an attribute and may be changed). ``stream_dtype`` is the dtype of the streams between the blocks, unless
    x has a wider one; with float32 the reversal loses digits at every block. The branches run in their
    parameters' dtype with autocast switched off, and ``y`` has the dtype of x: a float32 ``y`` is rounded,
    so that for an exact :meth:`inverse` x is handed in as float64, whatever the parameters are.

    First order only: a backward pass with ``create_graph=True`` raises ``ValueError``, as does a branch that
    would not repeat itself: random (Dropout) or keeping statistics (BatchNorm) in training mode, or dependent
    on tensors that require a gradient and are not its parameters. Every branch is called twice at the first
    forward pass, to find that out. ``ValueError`` also for no blocks, an odd size, a branch that changes the
    shape. Gomez et al. 2017, "The reversible residual network". Ledger F8.
    """

    def __init__(
        self,
        blocks: Iterable[ReversibleBlock],
        *,
        dim: int = 1,
        save_activations: bool = False,
        stream_dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        blocks = list(blocks)
        if not blocks or not all(isinstance(block, ReversibleBlock) for block in blocks):
            raise ValueError(
                "ReversibleSequence needs at least one block, all of them ReversibleBlock, got "
                f"{[type(block).__name__ for block in blocks]}: wrap two branches as ReversibleBlock(f, g)"
            )
        if not stream_dtype.is_floating_point:
            raise ValueError(f"stream_dtype must be a floating-point dtype, got {stream_dtype}: use float64")
        self.blocks = nn.ModuleList(blocks)
        self.dim = dim
        self.save_activations = save_activations
        self.stream_dtype = stream_dtype
        self._tried: set[bool] = set()  # the modes, training or not, in which the branches were tried out
        self._known: dict[int, _Branch] = {}  # what the last forward pass found out about each branch

    def forward(self, x: Tensor) -> Tensor:
        """``x -> y``, the same shape, dtype and device."""
        dtype = self._checked_dtype(x)
        if self.save_activations:
            with torch.autocast(x.device.type, enabled=False):
                streams = tuple(half.to(dtype) for half in x.chunk(2, self.dim))
                for block in self.blocks:
                    streams = block(*streams)
                return torch.cat(streams, self.dim).to(x.dtype)
        branches = self._branches(dtype)
        try_out = self.training not in self._tried
        parameters = list({id(p): p for branch in branches for p in branch.wanted}.values())
        y = _Reversible.apply(_Plan(branches, parameters, self.dim, dtype, try_out), x, *parameters)
        if try_out:
            self._tried.add(self.training)
        return y

    def inverse(self, y: Tensor) -> Tensor:
        """``y -> x``, from the last block to the first (differentiable by plain autograd)."""
        dtype = self._checked_dtype(y)
        with torch.autocast(y.device.type, enabled=False):
            streams = tuple(half.to(dtype) for half in y.chunk(2, self.dim))
            for block in reversed(self.blocks):
                streams = block.inverse(*streams)
            return torch.cat(streams, self.dim).to(y.dtype)

    def extra_repr(self) -> str:
        """The dimension that is split and how activations are had, for ``print(sequence)``."""
        return f"dim={self.dim}, save_activations={self.save_activations}, stream_dtype={self.stream_dtype}"

    def _branches(self, dtype: torch.dtype) -> list[_Branch]:
        """F and G of every block, looked into again only where something has changed."""
        modules = [branch for block in self.blocks for branch in (block.f, block.g)]
        for index, module in enumerate(modules):
            known, state = self._known.get(index), _state(module)
            if known is None or known.state != state or known.default != dtype:
                self._known[index] = _Branch.of(module, state, dtype)
        return [self._known[index] for index in range(len(modules))]

    def _checked_dtype(self, x: Tensor) -> torch.dtype:
        """The streams' dtype for this input, or ``ValueError``."""
        if not x.is_floating_point():
            raise ValueError(f"the input must be floating-point, got {x.dtype}: convert it with x.float()")
        if not -x.dim() <= self.dim < x.dim() or x.shape[self.dim] % 2:
            raise ValueError(
                f"the input is split in two halves along dim={self.dim}, whose size must be even, got shape "
                f"{tuple(x.shape)}: pad it by one, or choose another dim"
            )
        return torch.promote_types(self.stream_dtype, x.dtype)


@dataclass(frozen=True, eq=False)
class _Branch:
    """One of the functions F and G with what recomputing it needs."""

    module: nn.Module
    state: tuple
    default: torch.dtype
    dtype: torch.dtype
    slots: list[tuple[nn.Module, str, nn.Parameter]]  # who holds which parameter that wants a gradient
    wanted: list[nn.Parameter]  # the same parameters, each once

    @staticmethod
    def of(module: nn.Module, state: tuple, default: torch.dtype) -> _Branch:
        parts = list(module.modules())
        refuse_unrepeatable(parts)
        slots = [
            (part, name, p) for part in parts for name, p in part._parameters.items()
            if p is not None and p.requires_grad
        ]  # fmt: skip
        wanted = list({id(p): p for _, _, p in slots}.values())
        return _Branch(module, state, default, branch_dtype(module, default), slots, wanted)

    def value(self, stream: Tensor, try_out: bool) -> Tensor:
        at = stream.to(self.dtype)
        value = first_value(self.module, at) if try_out else self.module(at)
        check_value(self.module, stream, value)
        return value

    def pull_back(
        self, stream: Tensor, gradient: Tensor, totals: _Totals
    ) -> tuple[Tensor, Tensor | None]:
        """The value recomputed, and the gradient for the stream; the parameters' are added to ``totals``."""
        if not all(part._parameters.get(name) is p and p.requires_grad for part, name, p in self.slots):
            raise ValueError(
                f"a parameter of {type(self.module).__name__} was replaced or frozen between the forward and "
                "the backward pass: leave it until backward() has run"
            )
        with torch.enable_grad():
            at = stream.to(self.dtype).detach().requires_grad_()
            value = self.module(at)
        if not value.requires_grad:  # a constant
            return value, None
        gradient = gradient.to(value.dtype)
        found = torch.autograd.grad(value, (at, *self.wanted), gradient, allow_unused=True)
        totals.add(self.wanted, found[1:])
        return value.detach(), found[0]


def _state(module: nn.Module) -> tuple:
    """What a branch is made of, to see whether it has changed: its parts, their modes and parameters."""
    parts = [module]
    for part in parts:  # grows as it goes
        parts.extend(child for child in part._modules.values() if child is not None)
    modes = [(part, part.training, getattr(part, "p", None)) for part in parts]
    held = [p for part in parts for p in part._parameters.values() if p is not None]
    return modes, [(id(p), p.requires_grad, p.dtype) for p in held]


class _Totals:
    """The parameters' gradients, in memory taken before the first block.

    Kept one by one as they come, they would lie between the blocks' temporary tensors and leave gaps in the
    heap that nothing fits into: most of a block's memory was seen to be lost again at every block.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._places = {id(p): torch.empty_like(p) for p in parameters}
        self._touched: set[int] = set()

    def add(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        found = [(id(p), g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        new = [(self._places[key], g) for key, g in found if key not in self._touched]
        if new:
            torch._foreach_copy_(*map(list, zip(*new, strict=True)))
        for key, gradient in found:
            if key in self._touched:  # a parameter that several blocks share
                self._places[key] += gradient
        self._touched.update(key for key, _ in found)

    def found(self) -> list[Tensor | None]:
        return [place if key in self._touched else None for key, place in self._places.items()]


@dataclass(frozen=True, eq=False)
class _Plan:
    """Everything but the differentiable inputs."""

    branches: list[_Branch]  # F and G of the first block, F and G of the second, ...
    parameters: list[nn.Parameter]  # the differentiable inputs beside x
    dim: int
    dtype: torch.dtype
    try_out: bool

    def halves(self, joined: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The two streams, copies that may be overwritten."""
        halves = joined.detach().chunk(2, self.dim)
        return [half.to(dtype, copy=True, memory_format=torch.contiguous_format) for half in halves]


@functools.cache
def _keep_heap() -> None:
    """Once: take and give back 32 MB on the CPU, which raises glibc's thresholds for returning memory.

    A run that keeps almost nothing frees all of its heap again and again. Handed back to the system each
    time, it has to be mapped anew, page by page, for every branch: a twentieth of the time. Elsewhere this
    has no effect.
    """
    torch.empty(2**25 - 2**17, dtype=torch.uint8)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ANN401
        _keep_heap()
        updated, other = plan.halves(x, plan.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for branch in plan.branches:  # F moves the first stream, G the second, and so on
                updated += branch.value(other, plan.try_out)
                updated, other = other, updated
        joined = torch.cat((updated, other), plan.dim)
        ctx.plan = plan
        ctx.save_for_backward(joined, *parameters)  # parameters: so that a change in place is noticed
        return joined.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            raise ValueError(
                "ReversibleSequence differentiates once, and this backward pass was asked for a graph of "
                "itself: leave create_graph=True out, or set save_activations=True"
            )
        plan: _Plan = ctx.plan
        joined = ctx.saved_tensors[0]  # hooks may return copies of the others: plan.parameters counts
        wants_x = ctx.needs_input_grad[1]
        trained = [bool(branch.wanted) for branch in plan.branches]
        first = 0 if wants_x else trained.index(True)  # nothing before it wants a gradient
        grad_dtype = grad_output.dtype
        for branch in plan.branches[first:]:
            grad_dtype = torch.promote_types(grad_dtype, branch.dtype)
        updated, other = plan.halves(joined, plan.dtype)
        grad_updated, grad_other = plan.halves(grad_output, grad_dtype)
        totals = _Totals(plan.parameters)
        with torch.autocast(joined.device.type, enabled=False):
            for branch in reversed(plan.branches[first:]):
                updated, other = other, updated
                grad_updated, grad_other = grad_other, grad_updated
                value, gradient = branch.pull_back(other, grad_updated, totals)
                updated -= value
                if gradient is not None:
                    grad_other += gradient
        grad_x = None
        if wants_x:
            grad_x = torch.cat((grad_updated, grad_other), plan.dim).to(grad_output.dtype)
        return None, grad_x, *totals.found()
