"""The discretized mixture's log-probability and its gradient, computed together, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgm_course.logistic_mixture.block import Block
from dgm_course.logistic_mixture.components import plain_log_prob

#: Within these magnitudes of mean, log-scale and coefficients no factor over- or underflows, in float32 too.
RANGE = 1e10, 20.0, 1e6
#: Numbers, pixels times channels times components, in one block: eight such arrays stay in the cache.
BLOCK = {"cpu": 2**17, "cuda": 2**22}
TAILS = 1, 2, 2, 2  # dimensions of the parameters that are not leading: (K), and (C, K)

Parameters = Sequence[Tensor]  # logits, mean, log_scale and, where three channels are coupled, coefficients


def streamed_log_prob(y: Tensor, parameters: Parameters, num_levels: int) -> Tensor:
    """``y (..., C)`` and parameters of one dtype, whose leading dimensions broadcast, give ``(...)``."""
    # also without a gradient: autograd then refuses forward-mode derivatives, which would come out as zero
    return _StreamedLogProb.apply(y, num_levels, torch.is_grad_enabled(), *parameters)


def leading_dimensions(y: Tensor, parameters: Parameters) -> list[torch.Size]:
    """Those of y and of each parameter."""
    sizes = [t.shape[: t.dim() - tail] for t, tail in zip(parameters, TAILS, strict=False)]
    return [y.shape[:-1], *sizes]


def is_streamable(parameters: Parameters) -> bool:
    """Whether the blocks' arithmetic is right for these: dtype, device and range (not if one is NaN)."""
    logits, *others = parameters
    if logits.dtype not in (torch.float32, torch.float64) or logits.device.type not in BLOCK:
        return False
    return all(_largest(t) <= most for t, most in zip(others, RANGE, strict=False))


def _largest(t: Tensor) -> float:
    if t.numel() == 0:
        return 0.0
    t = t.detach()
    return float(torch.maximum(-t.amin(), t.amax()))  # aminmax is slower, and copies what is not contiguous


class _StreamedLogProb(torch.autograd.Function):
    """Inputs are saved for the backward pass. The gradients, which are ready by then, belong to ``ctx``.

    They live until the first backward pass or as long as the graph, and ``saved_tensors_hooks`` do not see
    them: hooks that pack or offload what is saved get the inputs only.
    """

    @staticmethod
    def forward(  # in here gradients are always disabled: ``grad`` says whether they were outside
        ctx: Any,  # noqa: ANN401
        y: Tensor,
        num_levels: int,
        grad: bool,
        *parameters: Tensor,
    ) -> Tensor:
        needs = [grad and need for need in ctx.needs_input_grad[3:]]
        value, ctx.gradients = _evaluate(y, num_levels, parameters, needs)
        ctx.num_levels = num_levels
        ctx.save_for_backward(y, *parameters)
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        y, *parameters = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # create_graph=True
            return None, None, None, *_plain_gradients(y, ctx.num_levels, parameters, needs, grad_output)
        # The first backward pass takes those of the forward pass and overwrites them; another needs new ones.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _evaluate(y, ctx.num_levels, parameters, needs)[1]
        return None, None, None, *_weighted(gradients, parameters, grad_output)


def _plain_gradients(
    y: Tensor, num_levels: int, parameters: Parameters, needs: Sequence[bool], grad_output: Tensor
) -> list[Tensor | None]:
    """Those of the plain formula, which can be differentiated again; in float64, as coupled means need it."""
    separate = [t.view_as(t) for t in parameters]  # one may have been computed from another
    wanted = [t for t, need in zip(separate, needs, strict=True) if need]
    value = plain_log_prob(y, [t.double() for t in separate], num_levels)
    found = iter(torch.autograd.grad(value, wanted, grad_output.double(), create_graph=True))
    return [next(found) if need else None for need in needs]


def _weighted(
    gradients: Sequence[Tensor | None], parameters: Parameters, grad_output: Tensor
) -> Iterator[Tensor | None]:
    """Gradients times ``grad_output``, in place, summed over what was broadcast."""
    one_for_all = not any(grad_output.stride())  # as behind a sum or a mean
    for gradient, t, tail in zip(gradients, parameters, TAILS, strict=False):
        if gradient is None:
            yield None
        elif one_for_all and grad_output.numel():
            yield _times(gradient, grad_output.reshape(-1)[0]).sum_to_size(t.shape)
        else:
            weight = grad_output.reshape(*grad_output.shape, *[1] * tail)
            yield _times(gradient, weight).sum_to_size(t.shape)


def _times(gradient: Tensor, weight: Tensor) -> Tensor:
    """In place, if one weight is asked for and not a batch of them (``is_grads_batched``)."""
    try:
        return gradient.mul_(weight)
    except RuntimeError:  # vmap's: the product is larger than the gradient
        return gradient * weight


def _evaluate(
    y: Tensor, num_levels: int, parameters: Parameters, needs: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The value ``(...)``, and its gradients where needed, each with all leading dimensions."""
    tails = [t.shape[t.dim() - tail :] for t, tail in zip(parameters, TAILS, strict=False)]
    lead_of_y, *leads = leading_dimensions(y, parameters)
    lead = torch.broadcast_shapes(lead_of_y, *leads)
    inputs = [t.detach().expand(*lead, *tail) for t, tail in zip(parameters, tails, strict=True)]
    inputs.insert(0, y.detach().expand(*lead, y.shape[-1]))
    value = parameters[0].new_empty(lead)
    fold = _Fold.without_copies(lead, inputs)
    gradients = [
        fold.empty_like(t, lead == own) if need else None
        for t, own, need in zip(inputs[1:], leads, needs, strict=True)
    ]
    if value.numel():
        y, *sources = (fold(t) for t in inputs)
        targets = [None if g is None else fold(g) for g in gradients]
        _fill(y, sources, value.view(fold.sizes), targets, num_levels)
    return value, gradients


@dataclass(frozen=True)
class _Fold:
    """All leading dimensions as two, which are put last."""

    lead: torch.Size
    split: int  # how many of them make the first

    @classmethod
    def without_copies(cls, lead: torch.Size, tensors: Sequence[Tensor]) -> _Fold:
        """One that is a view of every tensor, if there is one: pixels in a row, or pictures of such."""
        folds = [cls(lead, split) for split in range(max(1, len(lead)))]
        return next((fold for fold in folds if all(map(fold.is_view, tensors))), folds[0])

    @property
    def sizes(self) -> tuple[int, int]:
        return math.prod(self.lead[: self.split]), math.prod(self.lead[self.split :])

    def is_view(self, t: Tensor) -> bool:
        try:
            t.view(*self.sizes, *t.shape[len(self.lead) :])
        except RuntimeError:
            return False
        return True

    def __call__(self, t: Tensor) -> Tensor:
        return t.reshape(*self.sizes, *t.shape[len(self.lead) :]).movedim((0, 1), (-2, -1))

    def empty_like(self, t: Tensor, same_order: bool) -> Tensor:
        """Memory that folds without a copy, if possible in the order of t."""
        empty = torch.empty_like(t) if same_order else None
        return empty if empty is not None and self.is_view(empty) else t.new_empty(t.shape)


def _fill(
    y: Tensor, parameters: Parameters, value: Tensor, gradients: Sequence[Tensor | None], num_levels: int
) -> None:
    """Value ``(rows, columns)`` and gradients, block by block; everything else has rows and columns last."""
    channels, components = parameters[1].shape[:2]
    rows, columns = value.shape
    most = max(1, BLOCK[value.device.type] // (channels * components))
    width = min(columns, most)
    height = min(rows, max(1, most // width))
    scratch = value.new_empty(Block.size(channels, components, height * width))
    blocks: dict[int, Block] = {}  # those at the ends are smaller
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            at = ..., slice(row, row + height), slice(column, column + width)
            out = value[at]
            pixels = out.numel()
            if pixels not in blocks:
                blocks[pixels] = Block(scratch, channels, components, pixels, num_levels)
            targets = [None if g is None else g[at] for g in gradients]
            blocks[pixels].run(y[at], [t[at] for t in parameters], out, targets)
