"""Does a branch give the same value when it is computed again? Reversal and recomputation rest on that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

_REMEDY = "use GroupNorm or LayerNorm in place of batch statistics and no dropout, or call .eval()"


def refuse_unrepeatable(modules: Iterable[nn.Module]) -> None:
    """``ValueError`` if one of the modules, in its present mode, is random or keeps statistics."""
    for part in modules:
        if part.training and (reason := _reason(part)):
            raise ValueError(
                f"a branch must give the same value when it is recomputed from its output, and "
                f"{type(part).__name__} in training mode {reason}: {_REMEDY}"
            )


def _reason(part: nn.Module) -> str | None:
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return "is random" if part.p > 0 else None
    if isinstance(part, nn.RReLU):
        return "is random"
    if isinstance(part, nn.MultiheadAttention | nn.RNNBase):
        return "drops units at random" if part.dropout > 0 else None
    if isinstance(part, nn.modules.batchnorm._NormBase):
        return "updates its running statistics at every call" if part.track_running_stats else None
    return None


def first_value(branch: nn.Module, at: Tensor) -> Tensor:
    """The branch's value, without gradient, after trying out what recomputation needs of it (once).

    Called twice it must give one value and leave its buffers alone, and everything that it depends on and
    that requires a gradient must be a parameter of its own. ``ValueError`` otherwise: the gradients would be
    wrong without a sign. The two values may differ by 1e-3 of the largest entry: some kernels of a GPU add in
    any order.
    """
    buffers = [(name, buffer, buffer._version) for name, buffer in branch.named_buffers()]
    version, name = at._version, type(branch).__name__
    with torch.enable_grad():
        value = branch(at.detach())
    with torch.no_grad():
        again = branch(at.detach())
    if at._version != version:
        raise ValueError(
            f"{name} overwrites its input, which the block still needs: use an activation with inplace=False"
        )
    changed = [key for key, buffer, version in buffers if buffer._version != version]
    if changed:
        raise ValueError(
            f"{name} changes its buffer {changed[0]!r} at every call, and so would differ when it is "
            f"recomputed: {_REMEDY}"
        )
    value_now = value.detach()
    different = value_now.shape != again.shape
    if not different and again.numel():
        gap, size = (value_now - again).abs().max(), again.abs().max()
        different = bool(gap > 1e-3 * size)  # NaN is not for this check to find
    if different:
        raise ValueError(
            f"{name} gave two values for one input, and a branch must repeat itself when it is recomputed: "
            f"{_REMEDY}"
        )
    own = {id(parameter) for parameter in branch.parameters()}
    foreign = sum(id(leaf) not in own for leaf in leaves(value))
    if foreign:
        raise ValueError(
            f"{name} depends on {foreign} tensor(s) requiring a gradient that are not its parameters and "
            "would get none: register them with nn.Parameter, or switch their requires_grad off"
        )
    return value_now


def leaves(value: Tensor) -> Iterator[Tensor]:
    """The leaf tensors that require a gradient and that a value was computed from, each once."""
    waiting, seen = [value.grad_fn], set()
    if value.grad_fn is None and value.requires_grad:
        yield value
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        waiting += [following for following, _ in node.next_functions]
