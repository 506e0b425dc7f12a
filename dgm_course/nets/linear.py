"""Affine layers, one network or ``members=E`` of them at once, and the multilayer perceptron.

A stacked layer holds E independent copies of its parameters along a leading dimension and applies them with
one batched product (``baddbmm``): E small networks cost about as much as one. Its input is

* ``(B, features)``, two dimensions: *shared*, every member sees the same rows, or
* ``(E, ..., features)``, three or more: member e sees row e (a leading 1 is shared by all).

Its output always starts with E. :func:`member` takes one network out of a stack.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class Stackable(nn.Module):
    """A module whose own parameters start with a member dimension E, unless ``members`` is None.

    A subclass may hold stacked buffers or plain attributes as well; it then extends :meth:`take_member`.
    """

    def __init__(self, members: int | None = None) -> None:
        super().__init__()
        if members is not None and members < 1:
            raise ValueError(f"members must be None or at least 1, got {members}: use None for one network")
        self.members = members

    def take_member(self, index: int) -> None:
        """Keep only member ``index`` of this module's own parameters, in place (:func:`member` calls it)."""
        for name, parameter in list(self._parameters.items()):
            if parameter is not None:
                values = parameter.detach()[index].clone()
                self._parameters[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        self.members = None


class Linear(Stackable):
    """Affine map ``y = x (W * mask) + b`` with W of shape ``([E,] in, out)`` and b of shape ``([E,] out)``.

    Shapes: ``x (..., in) -> (..., out)``; stacked, ``x (B, in) -> (E, B, out)`` and
    ``x (E, ..., in) -> (E, ..., out)``.
    ``mask`` is ``(in, out)`` or, stacked, ``(E, in, out)``: where it is 0 the weight does not act.
    The initial law is that of ``torch.nn.Linear``, U(-1/sqrt(in), 1/sqrt(in)) for weights and bias, drawn one
    member after another from ``generator``. Raises ``ValueError`` for sizes that do not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        members: int | None = None,
        mask: Tensor | None = None,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(members)
        if in_features < 1 or out_features < 1:
            raise ValueError(
                f"Linear needs in_features >= 1 and out_features >= 1, got {in_features} and {out_features}: "
                "leave a layer without inputs out"
            )
        self.in_features = in_features
        self.out_features = out_features
        shapes = [(in_features, out_features), (out_features,)] if bias else [(in_features, out_features)]
        drawn = _draw(shapes, in_features, members, generator)
        self.weight = drawn[0]
        self.bias = drawn[1] if bias else None
        self.register_buffer("mask", None if mask is None else self._checked_mask(mask).to(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map: ``(..., in) -> (..., out)``, with a leading E if stacked."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"the last dimension of the input must be in_features={self.in_features}, got shape "
                f"{tuple(x.shape)}: check the layer's sizes or the order of the dimensions"
            )
        weight = self.weight if self.mask is None else self.weight * self.mask
        if self.members is None:
            return x @ weight if self.bias is None else x @ weight + self.bias
        batch = self._batch_shape(x)
        rows = x.reshape(x.shape[0] if x.dim() > 2 else 1, -1, self.in_features)  # (E or 1, N, in)
        rows = rows.expand(self.members, -1, -1)
        if self.bias is None:
            y = torch.bmm(rows, weight)  # (E, N, out)
        else:
            y = torch.baddbmm(self.bias.unsqueeze(1), rows, weight)  # (E, N, out)
        return y.reshape(self.members, *batch, self.out_features)

    def take_member(self, index: int) -> None:
        """Keep only member ``index``, its mask included."""
        super().take_member(index)
        if self.mask is not None and self.mask.dim() == 3:
            self.mask = self.mask[index].clone()

    def extra_repr(self) -> str:
        """Sizes, members and whether there is a mask, for ``print(net)``."""
        extra = "" if self.members is None else f", members={self.members}"
        return f"{self.in_features}, {self.out_features}{extra}{'' if self.mask is None else ', masked'}"

    def _batch_shape(self, x: Tensor) -> tuple[int, ...]:
        if x.dim() == 2:
            return tuple(x.shape[:-1])
        if x.dim() < 2 or x.shape[0] not in (1, self.members):
            raise ValueError(
                f"a stack of {self.members} takes rows (B, {self.in_features}) that all members share, or an "
                f"input (E, ..., {self.in_features}) with E = {self.members} or 1, got shape "
                f"{tuple(x.shape)}: use x.unsqueeze(0) to add a dimension"
            )
        return tuple(x.shape[1:-1])

    def _checked_mask(self, mask: Tensor) -> Tensor:
        shape = (self.in_features, self.out_features)
        allowed = [shape] if self.members is None else [shape, (self.members, *shape)]
        if tuple(mask.shape) not in allowed:
            raise ValueError(
                f"mask must have the shape of the weight, {' or '.join(map(str, allowed))}, got "
                f"{tuple(mask.shape)}: rows are inputs, columns are outputs"
            )
        return mask


def _draw(
    shapes: Sequence[tuple[int, ...]], fan_in: int, members: int | None, generator: torch.Generator | None
) -> list[nn.Parameter]:
    """Parameters of the given shapes from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), one member after another."""
    device = None if generator is None else generator.device
    stack = () if members is None else (members,)
    tensors = [torch.empty(*stack, *shape, device=device) for shape in shapes]
    bound = 1.0 / math.sqrt(fan_in)
    for index in range(1 if members is None else members):
        for tensor in tensors:
            (tensor if members is None else tensor[index]).uniform_(-bound, bound, generator=generator)
    return [nn.Parameter(tensor) for tensor in tensors]


class LocalLinear(Stackable):
    """An affine map of its own at every position: ``y_j = x_j W_j + b_j``, ``W ([E,] positions, in, out)``.

    Shapes: ``(..., positions, in) -> (..., positions, out)``; stacked, both start with E. Initial law as in
    :class:`Linear`. Raises ``ValueError`` for sizes that do not fit.
    """

    def __init__(
        self,
        positions: int,
        in_features: int,
        out_features: int,
        *,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(members)
        shapes = [(positions, in_features, out_features), (positions, out_features)]
        self.weight, self.bias = _draw(shapes, in_features, members, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Apply each position's map: ``(..., positions, in) -> (..., positions, out)``."""
        *stack, positions, size, _ = self.weight.shape
        leading = list(x.shape[:1]) if stack else []
        if x.dim() < 2 + len(stack) or x.shape[-2:] != (positions, size) or leading != stack:
            wanted = ", ".join(map(str, [*stack, "...", positions, size]))
            raise ValueError(
                f"the input must be ({wanted}), its last two dimensions positions and features, got shape "
                f"{tuple(x.shape)}: check the order of the dimensions"
            )
        if self.members is None:
            return torch.einsum("...pi,pio->...po", x, self.weight) + self.bias
        bias = self.bias.reshape(self.members, *[1] * (x.dim() - 3), *self.bias.shape[1:])
        return torch.einsum("e...pi,epio->e...po", x, self.weight) + bias


class MLP(nn.Module):
    """Multilayer perceptron: affine maps with an activation between them, none after the last.

    ``sizes = [in, hidden, ..., out]``. Shapes as in :class:`Linear`: ``(..., in) -> (..., out)``, with a
    leading E in the output if ``members=E``. Raises ``ValueError`` for fewer than two sizes.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        members: int | None = None,
        activation: Activation = nn.functional.silu,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"sizes must name at least the input and the output, got {list(sizes)}")
        self.activation = activation
        self.layers = nn.ModuleList(
            Linear(a, b, members=members, generator=generator)
            for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network: ``(..., in) -> (..., out)``."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


def members_of(module: nn.Module) -> int | None:
    """The number E of members stacked in ``module``, or None if nothing in it is stacked.

    Raises ``ValueError`` if parts of it are stacked with different E.
    """
    counts = {part.members for part in module.modules() if isinstance(part, Stackable)} - {None}
    if len(counts) > 1:
        raise ValueError(
            f"the parts of one stacked module must have the same number of members, got {sorted(counts)}: "
            "build all of them with one value of members="
        )
    return counts.pop() if counts else None


def member(module: nn.Module, index: int) -> nn.Module:
    """An un-stacked copy of member ``index`` of a stacked module (its parameters are copies, not views).

    Works on any module made of this library's layers, a whole VAE included.
    Raises ``ValueError`` if nothing is stacked or there is no such member.
    """
    count = members_of(module)
    if count is None:
        raise ValueError("member() needs a stacked module, got one without members: use the module itself")
    if not -count <= index < count:
        raise ValueError(f"index must lie in [-{count}, {count}), got {index}: members count from 0")
    single = copy.deepcopy(module)
    for part in single.modules():
        if isinstance(part, Stackable) and part.members is not None:
            part.take_member(index)
    return single


def add_features(a: Tensor, b: Tensor, members: int | None) -> Tensor:
    """Sum of two feature tensors whose last batch dimensions correspond; the member dimension stays first.

    ``(E, B, H) + (E, S, B, H) -> (E, S, B, H)``; without members it is ordinary broadcasting.
    """
    if members is not None:
        while a.dim() < b.dim():
            a = a.unsqueeze(1)
        while b.dim() < a.dim():
            b = b.unsqueeze(1)
    return a + b
