"""How much a forward pass keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgm_course.reversible.repeatable import leaves


class _Kept:
    """A saved tensor: alive as long as the graph holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_activation_bytes(function: Callable[..., Tensor], *inputs: Tensor) -> int:
    """Bytes of activations that ``function(*inputs)``, one tensor, keeps for its backward pass.

    Counted are the storages of the tensors that autograd has saved (``saved_tensors_hooks``) and still holds
    when the function has returned: each storage once, whole, however many saved tensors are views of it;
    inputs, copies in another dtype and a custom function's saved tensors included. Not counted are the
    storages of parameters: those of ``function`` if it is a module, and every ``nn.Parameter`` that gets a
    gradient. What the function uses in passing is not seen: measure peak memory for that. Ledger F8.
    """
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())  # a saved result would hold its own graph
        alive.add(kept)
        return kept

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = function(*inputs)
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    parameters += [leaf for leaf in leaves(result) if isinstance(leaf, nn.Parameter)]
    storages = {_place(kept.tensor): kept.tensor.untyped_storage().nbytes() for kept in alive}
    for parameter in parameters:
        storages.pop(_place(parameter), None)
    return sum(storages.values())


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
