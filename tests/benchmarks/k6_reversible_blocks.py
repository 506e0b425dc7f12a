"""K6: the gradient of a deep residual network of two streams, whose activations are recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dgm_course.reversible import ReversibleBlock, ReversibleSequence

from .harness import Benchmark, Contender, Goal, Result, Row, Run, Size, faster_than, within

CHANNELS, SIDE, UNITS = 8, 16, 64  # of each stream, with convolutions and with dense branches
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Inputs:
    """One network for all, its input, and the gradient that comes from above."""

    network: ReversibleSequence
    x: Tensor  # (B, 2 C, side, side), or (B, 2 units)
    weights: Tensor  # of the sum over the output that is differentiated

    def gradients(self, y: Tensor) -> Result:
        """The output, and the gradients for x and (as one vector) for the parameters."""
        parameters = list(self.network.parameters())
        found = torch.autograd.grad((self.weights * y).sum(), [self.x, *parameters])
        return y.detach(), found[0], torch.cat([g.flatten() for g in found[1:]])

    def halves(self) -> tuple[Tensor, Tensor]:
        return self.x.chunk(2, 1)

    def steps(self) -> list[Step]:
        """The blocks, as one would write them without this library."""
        return [plain_block(block) for block in self.network.blocks]


def plain_block(block: ReversibleBlock) -> Step:
    def step(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + block.f(x2)
        return y1, x2 + block.g(y1)

    return step


def branch(dense: int, generator: torch.Generator) -> nn.Sequential:
    """RevNet's basic residual function, twice normalise, activate and convolve, or two dense layers."""
    def dense_layer() -> nn.Linear:
        return nn.utils.skip_init(nn.Linear, UNITS, UNITS)

    def convolution() -> nn.Conv2d:
        return nn.utils.skip_init(nn.Conv2d, CHANNELS, CHANNELS, 3, padding=1)

    if dense:
        layers = [dense_layer(), nn.SiLU(), dense_layer()]
    else:
        layers = []
        for _ in range(2):
            layers += [nn.GroupNorm(1, CHANNELS), nn.SiLU(), convolution()]
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = math.prod(layer.weight.shape[1:]) ** -0.5
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return nn.Sequential(*layers)


def inputs(size: Size, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(6)
    branches = [branch(size["dense"], generator) for _ in range(2 * size["depth"])]
    blocks = [ReversibleBlock(f, g) for f, g in zip(branches[::2], branches[1::2], strict=True)]
    shape = (size["B"], 2 * UNITS) if size["dense"] else (size["B"], 2 * CHANNELS, SIDE, SIDE)
    x, weights = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    return Inputs(ReversibleSequence(blocks).to(device), x.requires_grad_(), weights)


def reversible(given: Inputs) -> Run:
    return lambda: given.gradients(given.network(given.x))


def plain(given: Inputs) -> Run:
    def run() -> Result:
        streams = given.halves()
        for step in given.steps():
            streams = step(*streams)
        return given.gradients(torch.cat(streams, 1))

    return run


def plain_and_once_more(given: Inputs) -> Run:
    """Plain autograd, and the forward pass a second time without a graph: what recomputing costs at least."""
    store = plain(given)

    def run() -> None:
        with torch.no_grad():
            streams = given.halves()
            for step in given.steps():
                streams = step(*streams)
        store()

    return run


def checkpointed(given: Inputs, length: int) -> Run:
    """Segments of ``length`` blocks, whose inputs are kept and whose insides are computed again."""
    steps = given.steps()

    def segment(start: int) -> Step:
        def run(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            for step in steps[start : start + length]:
                x1, x2 = step(x1, x2)
            return x1, x2

        return run

    def run() -> Result:
        streams = given.halves()
        for start in range(0, len(steps), length):
            streams = checkpoint(segment(start), *streams, use_reentrant=False, preserve_rng_state=False)
        return given.gradients(torch.cat(streams, 1))

    return run


def reference(given: Inputs) -> Result:
    """Float64, stored, with the branches written in functional form."""
    parameters = [p.detach().double().requires_grad_() for p in given.network.parameters()]
    x = given.x.detach().double().requires_grad_()
    waiting = iter(parameters)

    def value(h: Tensor) -> Tensor:
        if h.dim() == 2:
            hidden = F.silu(h @ next(waiting).mT + next(waiting))
            return hidden @ next(waiting).mT + next(waiting)
        for _ in range(2):
            scale, shift = next(waiting)[:, None, None], next(waiting)[:, None, None]
            variance, mean = torch.var_mean(h, (1, 2, 3), correction=0, keepdim=True)
            h = F.silu(scale * (h - mean) / (variance + 1e-5).sqrt() + shift)
            h = F.conv2d(h, next(waiting), next(waiting), padding=1)
        return h

    x1, x2 = x.chunk(2, 1)
    for _ in given.network.blocks:
        x1 = x1 + value(x2)
        x2 = x2 + value(x1)
    y = torch.cat((x1, x2), 1)
    found = torch.autograd.grad((given.weights.double() * y).sum(), [x, *parameters])
    return y.detach(), found[0], torch.cat([g.flatten() for g in found[1:]])


OURS, PLAIN = "reversible.ReversibleSequence", "plain autograd, float32"
EACH, ROOT = "torch.utils.checkpoint, each block", "torch.utils.checkpoint, sqrt(depth) segments"
SIZES = [{"depth": depth, "B": 64, "dense": 0} for depth in (16, 64, 256)]
SMALL, DENSE = {"depth": 256, "B": 16, "dense": 0}, {"depth": 256, "B": 1024, "dense": 1}


def over_plain(column: str) -> Callable[[Mapping[str, Row]], float]:
    return lambda rows: rows[OURS][column] / rows[PLAIN][column]


BENCHMARK = Benchmark(
    kernel="K6",
    title="The gradient of a reversible network (`reversible.ReversibleSequence`)",
    workload=(
        "y1 = x1 + F(x2), y2 = x2 + G(y1), depth times; output and gradients for x and all parameters. dense "
        f"= 0: RevNet's basic residual function (GroupNorm, SiLU, 3 x 3 convolution, twice) on B pictures of "
        f"2 x {CHANNELS} x {SIDE} x {SIDE}. dense = 1: Linear, SiLU, Linear, {UNITS} units, on B rows of 2 x "
        f"{UNITS}. All but plain autograd recompute: one more forward pass, a quarter to a third more "
        "arithmetic, which is measured below as a limit. Ours has about 0.1 ms a branch on top: float64 sums "
        "and Python's calls. Where the system's memory is slow, or given back at every step, plain autograd "
        "loses more than that to what it stores. "
        "What ours saves does not grow with depth, but the gradients of the parameters are in everyone's "
        "memory (2.5 MB at depth 256 with convolutions, 17 MB with dense layers, and as much again for the "
        "vector that is compared), with a few hundred bytes of bookkeeping for each parameter. All round in "
        "float32 in the same places: the largest error is that of a few entries, and another batch moves "
        "its ratio by a quarter; over all entries ours is no larger."
    ),
    contenders=(
        Contender(OURS, reversible),
        Contender(PLAIN, plain),
        Contender(EACH, lambda given: checkpointed(given, 1)),
        Contender(ROOT, lambda given: checkpointed(given, math.isqrt(len(given.network.blocks)))),
        Contender("plain autograd and one more forward pass", plain_and_once_more, limit=True),
    ),
    inputs=inputs,
    reference=reference,
    tolerance=1e-4,
    sizes=[*SIZES, SMALL, DENSE],
    main=SIZES[-1],
    tiny={"depth": 4, "B": 4, "dense": 0},
    grows_in="depth",
    goals=(
        within(PLAIN, 1.3),
        within(PLAIN, 1.3, at=SMALL),
        within(PLAIN, 1.3, at=DENSE),
        faster_than(EACH, 1),
        Goal("peak memory at most a twentieth of plain autograd's", over_plain("peak_bytes"), at_most=0.05),
        *(
            Goal(f"error at most that of {PLAIN}", over_plain("error"), at_most=1, at=size)
            for size in (SIZES[-1], SMALL, DENSE)
        ),
    ),
    rounds=5,
    unit="gradient",
)
