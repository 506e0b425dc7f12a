"""Solving ``v_j = step(given_j, net(v)_j)`` where ``net(v)_j`` reads only ``v_<j``: the sequential direction.

Three ways, one answer: dimension after dimension (the textbook, d network passes), by sweeps of the whole
network until nothing changes (at most d + 1 passes), and for a :class:`MaskedMLP` block by block, which costs
about as much as one or two passes (Ledger F5).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.flows.levels import Step, solve_by_levels
from dgm_course.nets import MaskedMLP


def solve_autoregressive(
    net: nn.Module, step: Step, given: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """v with ``v = step(given, net(v))``, and ``out = net(v)``: ``(..., d)`` and ``(..., d, k)``.

    ``step(given (..., n), out (..., n, k)) -> (..., n)`` acts on each dimension by itself. Exact for every
    autoregressive network, whatever its parameters: a sweep over several dimensions settles those that it
    does not change and the first that it does. Differentiable once, in ``given``, ``context`` and the
    network's parameters, by the implicit function theorem; that costs two more passes and, backward, as many
    as gradients need to travel from the last dimension to the first, at most d. Ledger F5. Raises
    ``ValueError`` for a network that is not autoregressive, where that shows in its masks, and
    ``RuntimeError`` in a backward pass with ``create_graph=True``.
    """
    needed = [given, *net.parameters()] + ([] if context is None else [context])
    with torch.no_grad():
        value, out = _solved(net, step, given, context)
    needed.append(step(given, out))  # a step may have parameters of its own
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in needed)):
        return value, out
    return _differentiable(net, step, given, context, value)


def solve_sequentially(
    net: nn.Module, step: Step, given: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by the textbook, one network pass a dimension: slow, obvious, never sees a wrong number.

    Ledger F5: d passes for v, and one more for ``out``.
    """
    value = torch.zeros_like(given)
    for j in range(given.shape[-1]):
        out = _outputs(net, value, context)
        entry = step(given, out)[..., j]
        later = torch.zeros_like(given[..., j + 1 :]).expand(*entry.shape, -1)
        value = torch.cat([value[..., :j].expand(*entry.shape, j), entry.unsqueeze(-1), later], dim=-1)
    return value, _outputs(net, value, context)


def solve_by_sweeps(
    net: nn.Module, step: Step, given: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by whole passes until one changes nothing: at most d + 1, fewer where the net forgets fast.

    Guesses of late dimensions may overflow before they are right; then :func:`solve_sequentially` takes over.
    """
    value = torch.zeros_like(given)
    for _ in range(given.shape[-1] + 1):
        out = _outputs(net, value, context)
        new = step(given, out)
        if torch.equal(new, value):
            return value, out
        value = new
    return solve_sequentially(net, step, given, context)


def _solved(net: nn.Module, step: Step, given: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    if type(net) is not MaskedMLP or net.members is not None:  # a subclass may compute something else
        return solve_by_sweeps(net, step, given, context)
    batch = given.shape[:-1]
    if context is not None:
        batch = torch.broadcast_shapes(batch, context.shape[:-1])
    rows = given.expand(*batch, -1).reshape(batch.numel(), given.shape[-1])
    if context is not None:
        context = context.expand(*batch, -1).reshape(batch.numel(), context.shape[-1])
    value, out = solve_by_levels(net, step, rows, context)
    return value.reshape(*batch, given.shape[-1]), out.reshape(*batch, *out.shape[-2:])


def _outputs(net: nn.Module, value: Tensor, context: Tensor | None) -> Tensor:
    return net(value) if context is None else net(value, context)


def _differentiable(
    net: nn.Module, step: Step, given: Tensor, context: Tensor | None, value: Tensor
) -> tuple[Tensor, Tensor]:
    """One more step from the solution, whose gradient is carried to the fixed point's.

    With F(v) = step(given, net(v)) and N = dF/dv (strictly triangular), dv = (I - N)^-1 dF: a gradient g that
    arrives at v goes on as y = g + N^T y, solved by sweeps.
    """
    num_dims = given.shape[-1]
    solution = step(given, _outputs(net, value, context))

    def carried(gradient: Tensor | None) -> Tensor | None:
        if gradient is None:  # nothing that is differentiated depends on the solution
            return None
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the autoregressive inversion is differentiable once, and create_graph=True asks for more: "
                "use dgm_course.flows.inversion.solve_sequentially, which autograd follows step by step"
            )
        with torch.enable_grad():
            at = value.detach().requires_grad_()
            again = step(given.detach(), _outputs(net, at, None if context is None else context.detach()))
        total = gradient
        for _ in range(num_dims):
            (back,) = torch.autograd.grad(again, at, total, retain_graph=True, allow_unused=True)
            new = gradient if back is None else gradient + back
            if torch.equal(new, total):
                break
            total = new
        return total

    solution.register_hook(carried)
    return solution, _outputs(net, solution, context)
