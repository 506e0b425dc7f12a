"""The importance-weighted bound and its exact gradient with very many samples, in memory that does not grow.

Two passes. The forward pass draws the noise in blocks and keeps nothing but the log-weights ``(K, B)``. The
gradient is ``sum_k w^_k grad log w_k``, and many normalised weights are negligible: the backward pass draws
the same noise again, picks the samples that count, and differentiates those, in batches of a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgm_course.gaussian import LOG_2PI
from dgm_course.numerics import log_mean_exp

PairLogJoint = Callable[[Tensor, Tensor], Tensor]  # x (..., m), z (..., d) -> log p(x, z) (...)


def streamed_iwae_bound(
    log_joint: PairLogJoint,
    x: Tensor,
    mean: Tensor,
    log_var: Tensor,
    *,
    num_samples: int,
    parameters: Iterable[Tensor] = (),
    generator: torch.Generator | None = None,
    rows: int = 1000,
) -> Tensor:
    """One draw of the K-sample bound for each x, as :func:`iwae_bound` of K log-weights would give: ``(B,)``.

    ``z_k = mean + exp(log_var / 2) eps_k`` are K samples of q(z|x) for each of B data points. Differentiable
    once, with respect to ``mean``, ``log_var`` (and so the encoder that made them) and the ``parameters`` of
    ``log_joint`` that are listed, which must be all that it depends on: plain gradient, exact to rounding.
    ``x`` is a constant.

    Memory beyond the ``(K, B)`` log-weights: about what ``rows`` samples (at least B) need in one step of
    training. Time: one forward pass for all samples, and a training step for those that count.
    Shapes: ``x (B, m)``, ``mean`` and ``log_var`` ``(B, d)``. ``log_joint`` maps ``x (..., m), z (..., d)``
    with equal batch shapes to ``(...)``. It is called twice with the same z, so it must not draw random
    numbers, and must treat samples independently. ``generator`` gives one number, from which every block of
    noise is seeded: the draw depends on it and on ``rows``. Burda et al. 2016. Ledger I5, I8. Raises
    ``ValueError`` on other shapes, and if ``log_joint`` depends on a parameter that is not listed.
    """
    if mean.dim() != 2 or mean.shape != log_var.shape or x.dim() != 2 or len(x) != len(mean):
        raise ValueError(
            "x must be (B, m), mean and log_var (B, d), got "
            f"{tuple(x.shape)}, {tuple(mean.shape)} and {tuple(log_var.shape)}: one row for each data point"
        )
    if num_samples < 1 or rows < 1 or len(x) < 1:
        raise ValueError(
            f"num_samples, rows and the batch need at least one, got {num_samples}, {rows} and B = {len(x)}: "
            "hand in some data points and ask for some samples"
        )
    device = torch.device("cpu") if generator is None else generator.device
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    wanted = list({id(p): p for p in parameters if p.requires_grad}.values())  # each once
    if torch.is_grad_enabled():
        _check_listed(log_joint, x[None, :1].detach(), mean[None, :1].detach(), wanted)
    plan = _Plan(log_joint, x.detach(), num_samples, seed, max(1, rows // len(x)), rows)
    return _StreamedBound.apply(plan, mean, log_var, *wanted)


def _check_listed(log_joint: PairLogJoint, x: Tensor, z: Tensor, parameters: list[Tensor]) -> None:
    """``ValueError`` if the graph of one log-joint ends in a parameter that is not among these."""
    with torch.enable_grad():
        waiting = [log_joint(x, z).grad_fn]
    known, seen, missing = {id(p) for p in parameters}, set(), 0
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # a leaf of the graph
        missing += variable is not None and id(variable) not in known
        waiting += [following for following, _ in node.next_functions]
    if missing:
        raise ValueError(
            f"log_joint depends on {missing} parameter(s) that would get no gradient: list them in "
            "parameters=, or switch their requires_grad off"
        )


@dataclass(frozen=True)
class _Plan:
    """Everything but the differentiable inputs."""

    log_joint: PairLogJoint
    x: Tensor  # (B, m)
    num_samples: int
    seed: int
    block: int  # samples of each x drawn at once
    rows: int  # pairs (sample, x) differentiated at once

    def noise(self, like: Tensor) -> Iterator[Tensor]:
        """The blocks of noise ``(k, B, d)``, the same at every call; each is overwritten by the next."""
        buffer = like.new_empty(min(self.block, self.num_samples), *like.shape)
        generator = torch.Generator(like.device)
        for number, start in enumerate(range(0, self.num_samples, self.block)):
            generator.manual_seed(self.seed + number)
            yield buffer.normal_(generator=generator)[: self.num_samples - start]


class _StreamedBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, mean: Tensor, log_var: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ANN401
        std = torch.exp(0.5 * log_var)  # (B, d)
        log_w = mean.new_empty(plan.num_samples, len(mean))  # (K, B)
        constant = 0.5 * (LOG_2PI + log_var).sum(-1)  # (B,)
        start = 0
        for eps in plan.noise(mean):
            z = torch.addcmul(mean, std, eps)  # (k, B, d)
            values = plan.log_joint(plan.x.expand(len(eps), *plan.x.shape), z)  # (k, B)
            if values.shape != eps.shape[:-1]:
                raise ValueError(
                    f"log_joint must map x and z {tuple(z.shape)} to one value a sample, "
                    f"{tuple(eps.shape[:-1])}, got {tuple(values.shape)}: sum over the last dimension only"
                )
            # the small terms first, so that they are rounded as small numbers
            minus_log_q = torch.add(constant, eps.square().sum(-1), alpha=0.5)
            torch.add(values, minus_log_q, out=log_w[start : start + len(eps)])
            start += len(eps)
        ctx.plan, ctx.log_w = plan, log_w
        ctx.save_for_backward(mean, std, *parameters)
        return log_mean_exp(log_w, 0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            raise ValueError(
                "streamed_iwae_bound differentiates once, and this backward pass was asked for a graph of "
                "itself: leave create_graph=True out, or take iwae_bound of all log-weights"
            )
        plan: _Plan = ctx.plan
        mean, std, *parameters = ctx.saved_tensors
        grad_mean, grad_std = torch.zeros_like(mean), torch.zeros_like(std)
        totals = [torch.zeros_like(p) for p in parameters]
        for eps, at, weight in _kept(plan, torch.softmax(ctx.log_w, 0), mean):
            scale = std[at]  # (n, d)
            z = torch.addcmul(mean[at], scale, eps).requires_grad_()
            with torch.enable_grad():
                values = plan.log_joint(plan.x[at], z)  # (n,)
                found = torch.autograd.grad(
                    values, [z, *parameters], weight * grad_output[at], allow_unused=True
                )
            if found[0] is not None:
                grad_mean.index_add_(0, at, found[0])
                grad_std.index_add_(0, at, found[0] * eps)
            for total, part in zip(totals, found[1:], strict=True):
                if part is not None:
                    total += part
        # d log w / d log_var = (d log p(x, z) / dz) std eps / 2 + 1/2, and the weights sum to one
        grad_log_var = 0.5 * (grad_std * std + grad_output.unsqueeze(-1))
        return None, grad_mean, grad_log_var, *totals


def _kept(plan: _Plan, weights: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The samples that count, ``plan.rows`` at a time: noise ``(n, d)``, index of x and weight ``(n,)``."""
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []
    count = start = 0
    smallest = torch.stack([_smallest_kept(column) for column in weights.mT])  # (B,)
    for eps in plan.noise(like):
        weight = weights[start : start + len(eps)]  # (k, B)
        start += len(eps)
        sample, at = torch.nonzero(~(weight < smallest), as_tuple=True)  # NaN counts: it has to be seen
        waiting.append((eps[sample, at], at, weight[sample, at]))
        count += len(at)
        while count >= plan.rows:
            joined = [torch.cat(parts) for parts in zip(*waiting, strict=True)]
            yield tuple(part[: plan.rows] for part in joined)
            waiting = [tuple(part[plan.rows :] for part in joined)]
            count -= plan.rows
    if count:
        yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))


def _smallest_kept(weights: Tensor) -> Tensor:
    """The smallest normalised weight that is kept, ``(K,) -> ()``: those dropped hold one rounding error."""
    ascending = weights.sort().values
    dropped = (ascending.cumsum(0) <= torch.finfo(weights.dtype).eps).sum()
    return ascending[dropped.clamp(max=len(weights) - 1)]
