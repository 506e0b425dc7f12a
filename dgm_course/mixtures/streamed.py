"""Value and gradient of a mixture's log-density in memory that grows with points plus components only.

Forward: block by block, ``log2(w_j N_j(z_i))`` and a running sum of powers of two, relative to a maximum.
Backward: the same exponents less the logarithm of the sum are those of the posterior q(j|z_i); all four
gradients are sums weighted by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dgm_course.mixtures.blocks import Block, Exclusions, Tiling
from dgm_course.mixtures.differences import Differences
from dgm_course.mixtures.products import LN_2, Products, largest_magnitude

#: What the rounding of an exponent may come to, in nats, before the next more exact method is taken.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
Method = type[Products] | type[Differences]


def streamed_log_prob(
    x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor, exclude: Tensor | None
) -> Tensor:
    """``log sum_j w_j N_j(x)``: ``x (E, m, d)``, ``means, log_vars (E, n, d)``, ``log_w (E, n) -> (E, m)``.

    ``exclude (E, m)``: a component that does not count, or -1. All floating arguments share a dtype.
    """
    return _StreamedLogProb.apply(exclude, x, means, log_vars, log_w)


def choose_method(
    x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor
) -> tuple[Method, torch.dtype]:
    """Products in the inputs' dtype, or in float64, or differences: the first that is exact enough."""
    tolerance = TOLERANCE[x.dtype]
    if not (x.dtype == torch.float32 and _float32_products_are_rounded(x.device)):
        if _roundoff(x.dtype) * largest_magnitude(x, means, log_vars, log_w) <= tolerance:
            return Products, x.dtype
    if x.dtype != torch.float64:
        wide = (t.double() for t in (x, means, log_vars, log_w))
        if _roundoff(torch.float64) * largest_magnitude(*wide) <= tolerance:
            return Products, torch.float64
    return Differences, torch.float64


def _roundoff(dtype: torch.dtype) -> float:
    return 0.5 * torch.finfo(dtype).eps


def _float32_products_are_rounded(device: torch.device) -> bool:
    """Whether the user allowed TF32 or bfloat16 inside float32 matrix products."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("tf32", "bf16")


class _Stream:
    """One pass over all pairs, strip by strip: some points (of some members), with all their components."""

    def __init__(
        self, mixture: Sequence[Tensor], exclude: Tensor | None, method: Method, dtype: torch.dtype
    ) -> None:
        x, means, *_ = mixture
        self.tiling = Tiling.plan(*x.shape[:2], means.shape[1], x.device)
        self.pairs = method(*mixture, self.tiling, dtype)
        self.exclude = exclude
        self.spare = None if dtype == x.dtype else self.tiling.scratch(x, x.dtype)

    def strips(self) -> Iterator[tuple[slice, slice]]:
        for members, points in self.tiling.strips():
            self.pairs.begin_strip(members, points)
            if self.exclude is not None:
                self.left_out = Exclusions(self.exclude, members, points, self.tiling)
            yield members, points

    def scores(self, block: Block) -> Tensor:
        """Exponents of two ``(e, rows, columns)``, less what has been subtracted."""
        scores = self.pairs.scores(block)
        if self.exclude is not None:
            self.left_out.apply(scores, block)
        return scores

    def powers(self, scores: Tensor, block: Block) -> Tensor:
        """Two to these exponents, in the inputs' dtype, in place where that is theirs."""
        if self.spare is not None:
            scores = self.spare.shaped(block).copy_(scores)
        return scores.exp2_()

    def log2_total_at_one_level(self, members: slice, points: slice) -> Tensor | None:
        """``(e, rows)``, relative to the first block's maximum; None if that does not do for some point.

        Any level will do from which the sum does not overflow, and that is not above it by far: what is
        subtracted inside the product costs nothing.
        """
        first, *others = self.tiling.blocks(members, points)
        scores = self.scores(first)
        level = scores.amax(-1)
        if not (level > -math.inf).all():
            return None
        total = self.powers(scores.sub_(level.unsqueeze(-1)), first).sum(-1)
        self.pairs.subtract(level)
        for block in others:
            total = total + self.powers(self.scores(block), block).sum(-1)
        return level + total.log2() if (total < math.inf).all() else None

    def log2_total(self, members: slice, points: slice) -> Tensor:
        """``(e, rows)``, with a running maximum: right for every input."""
        top = total = None
        for block in self.tiling.blocks(members, points):
            scores = self.scores(block)
            highest = scores.amax(-1)
            highest = highest if top is None else torch.maximum(top, highest)
            level = torch.where(highest == -math.inf, 0.0, highest)
            part = self.powers(scores.sub_(level.unsqueeze(-1)), block).sum(-1)
            total = part if top is None else total * torch.exp2(top - level) + part
            top = highest
        return level + total.log2()


class _StreamedLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exclude: Tensor | None, *mixture: Tensor) -> Tensor:  # noqa: ANN401
        x = mixture[0]
        method, dtype = choose_method(*mixture)
        stream = _Stream(mixture, exclude, method, dtype)
        log2_total = x.new_empty(x.shape[:2], dtype=dtype)  # (E, m)
        one_level = True
        for members, points in stream.strips():
            found = stream.log2_total_at_one_level(members, points) if one_level else None
            if found is None:
                one_level = False  # nor will it do for the other strips
                stream.pairs.subtract(log2_total.new_zeros(1, 1))
                found = stream.log2_total(members, points)
            log2_total[members, points] = found
        ctx.save_for_backward(exclude, log2_total, *mixture)
        ctx.method = method, dtype
        return (log2_total * LN_2).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        exclude, log2_total, *mixture = ctx.saved_tensors
        with torch.no_grad():
            found = _gradients(ctx, exclude, log2_total, mixture, grad_output)
        if torch.is_grad_enabled():  # create_graph=True
            inputs = grad_output, *mixture
            found = (None if g is None else _OnceDifferentiable.apply(g, *inputs) for g in found)
        return None, *found


def _gradients(
    ctx: Any,  # noqa: ANN401
    exclude: Tensor | None,
    log2_total: Tensor,
    mixture: Sequence[Tensor],
    grad_output: Tensor,
) -> list[Tensor | None]:
    stream, needs = _Stream(mixture, exclude, *ctx.method), ctx.needs_input_grad[1:]
    nowhere = log2_total == -math.inf  # the gradient there is taken to be zero
    weights = torch.where(nowhere, 0.0, grad_output.to(log2_total.dtype))
    stream.pairs.begin_backward(weights, needs)
    log2_total = torch.where(nowhere, 0.0, log2_total)
    for members, points in stream.strips():
        stream.pairs.subtract(log2_total[members, points])
        for block in stream.tiling.blocks(members, points):
            stream.pairs.add(block, stream.powers(stream.scores(block), block))
        stream.pairs.end_strip(members, points)
    dtype = mixture[0].dtype
    return [g.to(dtype) if need else None for g, need in zip(stream.pairs.gradients(), needs, strict=True)]


class _OnceDifferentiable(torch.autograd.Function):
    """A gradient that depends on the inputs in a way that autograd cannot see: going on from it is refused.

    torch's ``once_differentiable`` refuses only where the incoming gradient depends on something itself.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        raise RuntimeError(
            "the gradient of a streamed mixture_log_prob cannot be differentiated again: for second "
            "derivatives of so large a mixture, write it with gaussian_log_prob and torch.logsumexp"
        )
