"""K1: the log-density of a mixture with as many components as points, and all its gradients."""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.mixtures import mixture_log_prob

from .harness import Benchmark, Contender, Run, Size, faster_than, memory_below, within
from .measures import Result

CHUNK = 2**22  # numbers x - mean at once, where all at once would be gigabytes
CHECKED = 128  # points that count in the gradient, where the reference could not afford all
LogProb = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Inputs:
    """``x``, ``means`` and ``log_vars (E, n, d)``, ``logits`` and the points' weights ``(E, n)``.

    The gradient is that of the weighted sum of the log-densities. ``checked`` are the points whose weight is
    not zero, if not all: they alone are compared, and all other work is done just the same.
    """

    x: Tensor
    means: Tensor
    log_vars: Tensor
    logits: Tensor
    weights: Tensor
    gradient: bool
    checked: Tensor | None

    @property
    def mixture(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.means, self.log_vars, self.logits

    def leaves(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [t.to(dtype, copy=True).requires_grad_(self.gradient) for t in self.mixture]

    def result(self, value: Tensor, gradients: list[Tensor]) -> Result:
        if self.checked is not None:
            value, gradients = value[:, self.checked], [gradients[0][:, self.checked], *gradients[1:]]
        return (value, *gradients)


def inputs(size: Size, device: torch.device) -> Inputs:
    """Components as an encoder makes them for n data: together about N(0, I); or narrow and scattered."""
    generator = torch.Generator().manual_seed(1)
    members, n, d = size["E"], size["n"], size["d"]
    if size["narrow"]:
        means = 10 * torch.rand(members, n, d, generator=generator) - 5
        means[:, 1::2] = means[:, ::2] + 0.01 / d**0.5  # in overlapping pairs
        log_vars = torch.full((members, n, d), 2 * math.log(0.01))
    else:
        means = 0.5**0.5 * torch.randn(members, n, d, generator=generator)
        log_vars = math.log(0.5) + 0.3 * torch.randn(members, n, d, generator=generator)
    own = torch.randint(n, (members, n, 1), generator=generator).expand(members, n, d)
    noise = torch.randn(members, n, d, generator=generator)
    x = means.gather(1, own) + torch.exp(0.5 * log_vars.gather(1, own)) * noise
    logits = torch.randn(members, n, generator=generator)
    weights, checked = torch.randn(members, n, generator=generator), None
    if n > 20_000:
        checked = torch.randperm(n, generator=generator)[:CHECKED]
        weights = torch.zeros_like(weights).index_copy(1, checked, weights[:, checked])
        checked = checked.to(device)
    tensors = (t.to(device) for t in (x, means, log_vars, logits, weights))
    return Inputs(*tensors, gradient=bool(size["gradient"]), checked=checked)


def with_logits(log_prob: LogProb, x: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    """Normalised weights, as a prior that is trained has; torch.distributions normalises anyway."""
    return log_prob(x, means, log_vars, torch.log_softmax(logits, -1))


def whole(log_prob: LogProb) -> Callable[[Inputs], Run]:
    """One call for all points."""

    def prepare(given: Inputs) -> Run:
        leaves = given.leaves()

        def run() -> Result:
            value = with_logits(log_prob, *leaves)
            gradients = torch.autograd.grad(value, leaves, given.weights) if given.gradient else ()
            return given.result(value.detach(), list(gradients))

        return run

    return prepare


def in_chunks(log_prob: LogProb, dtype: torch.dtype = torch.float32) -> Callable[[Inputs], Run]:
    """A call and a backward pass for some points at a time, so that memory stays bounded."""

    def prepare(given: Inputs) -> Run:
        leaves = given.leaves(dtype)
        size = max(1, CHUNK // given.means.numel())

        def run() -> Result:
            values, of_x, totals = [], [], [torch.zeros_like(t) for t in leaves[1:]]
            for x, weights in zip(given.x.split(size, 1), given.weights.split(size, 1), strict=True):
                x = x.to(dtype).requires_grad_(given.gradient)
                value = with_logits(log_prob, x, *leaves[1:])
                values.append(value.detach())
                if given.gradient:
                    first, *rest = torch.autograd.grad(value, [x, *leaves[1:]], weights.to(dtype))
                    of_x.append(first)
                    totals = [total.add_(part) for total, part in zip(totals, rest, strict=True)]
            gradients = [torch.cat(of_x, 1), *totals] if given.gradient else []
            return given.result(torch.cat(values, 1), gradients)

        return run

    return prepare


def broadcasting(x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor) -> Tensor:
    square = (x.unsqueeze(2) - means.unsqueeze(1)).square() * torch.exp(-log_vars).unsqueeze(1)
    level = log_w - 0.5 * (log_vars + math.log(2 * math.pi)).sum(-1)
    return torch.logsumexp(level.unsqueeze(1) - 0.5 * square.sum(-1), -1)


def same_family(x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor) -> Tensor:
    parts = Independent(Normal(means, torch.exp(0.5 * log_vars), validate_args=False), 1)
    mixture = MixtureSameFamily(Categorical(logits=log_w), parts, validate_args=False)
    return mixture.log_prob(x.transpose(0, 1)).transpose(0, 1)


def product(x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor) -> Tensor:
    """The square multiplied out: a matrix product, and a matrix of all pairs."""
    precision = torch.exp(-log_vars)
    left = torch.cat([x.square(), x], -1)
    right = torch.cat([-0.5 * precision, precision * means], -1)
    level = log_w - 0.5 * (log_vars + math.log(2 * math.pi) + precision * means.square()).sum(-1)
    return torch.logsumexp(torch.baddbmm(level.unsqueeze(1), left, right.mT), -1)


def with_keops(x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor) -> Tensor:
    lazy = importlib.import_module("pykeops.torch").LazyTensor
    level = log_w - 0.5 * (log_vars + math.log(2 * math.pi)).sum(-1)
    components = (t[:, None].contiguous() for t in (means, torch.exp(-log_vars), level.unsqueeze(-1)))
    x_i, (mean_j, precision_j, level_j) = lazy(x[:, :, None].contiguous()), map(lazy, components)
    exponent = level_j - (precision_j * (x_i - mean_j) ** 2).sum(-1) / 2
    return exponent.logsumexp(dim=2).squeeze(-1)


def keops(given: Inputs) -> Run:
    importlib.import_module("pykeops").set_verbose(False)
    return whole(with_keops)(given)


def product_and_powers(given: Inputs) -> Run:
    """The matrix products and the powers of two that the expanded square needs, block by block, no more."""
    members, n, d = given.x.shape
    side = min(n, 512)
    device, k, blocks = given.x.device, 2 * d + 1, max(1, round(members * n * n / side**2))
    left, right = torch.randn(k, side, device=device), torch.randn(k, side, device=device) / k
    out, sums, others = (torch.zeros(s, side, device=device) for s in (side, k, k))

    def run() -> None:
        for _ in range(blocks):
            torch.mm(left.mT, right, out=out).exp2_()
        for _ in range(blocks if given.gradient else 0):
            torch.mm(left.mT, right, out=out).exp2_()
            sums.addmm_(left, out)
            others[:-1].addmm_(right[:-1], out.mT)

    return run


def reference(given: Inputs) -> Result:
    """Differences in float64, of the points that count."""
    if given.checked is None:
        return in_chunks(broadcasting, torch.float64)(given)()
    some = Inputs(
        given.x[:, given.checked], *given.mixture[1:], given.weights[:, given.checked], given.gradient, None
    )
    return in_chunks(broadcasting, torch.float64)(some)()


def either(*reasons: Callable[[Size], str | None]) -> Callable[[Size], str | None]:
    return lambda size: next((why for reason in reasons if (why := reason(size)) is not None), None)


def at_60_000(reason: str) -> Callable[[Size], str | None]:
    return lambda size: reason if size["n"] >= 60_000 else None


def without_compiler(size: Size) -> str | None:
    return None if shutil.which("c++") or shutil.which("g++") else "it compiles, and there is no C++ compiler"


def if_narrow(size: Size) -> str | None:
    return "its error is larger than a nat" if size["narrow"] else None


OURS = "mixtures.mixture_log_prob"
KEOPS, BROADCASTING, FAMILY = "pykeops LazyTensor", "broadcasting, in chunks", "MixtureSameFamily, in chunks"
PRODUCT, LIMIT = "one matrix product, then logsumexp", "the matrix products and exp2 alone"


def size(n: int, d: int, *, members: int = 1, narrow: int = 0, gradient: int = 1) -> Size:
    return {"n": n, "d": d, "E": members, "narrow": narrow, "gradient": gradient}


MAIN, FLAT, DEEP, HUGE = size(5000, 10), size(5000, 2), size(2500, 50), size(60_000, 50)
BENCHMARK = Benchmark(
    kernel="K1",
    title="The log-density of a mixture with very many components (`mixtures.mixture_log_prob`)",
    workload=(
        "n points and n components in d dimensions, float32: the log-density at all points, and (gradient = "
        "1) its gradients with respect to points, means, log-variances and log-weights. E > 1 is a stack of "
        "mixtures, as in training E models with mixture priors. Components are drawn as if by an encoder "
        "whose aggregated posterior is about N(0, I). narrow = 1: sigma = 0.01 and means within 5, where a "
        "float32 product of the expanded square loses a nat and more, and ours takes its products in "
        "float64. The limit stays in float32 there. At n = 60 000 the gradient is that of 128 random points' "
        "log-densities, so that the reference in float64 can be afforded; the work is that of all points. "
        "Most of the chunks' memory is gaps in the heap: 100 MB where each large tensor is mapped by itself."
    ),
    contenders=(
        Contender(OURS, whole(mixture_log_prob)),
        Contender(
            KEOPS,
            keops,
            requires=("pykeops",),
            skip=either(at_60_000("three quarters of an hour a run"), without_compiler),
        ),
        Contender(BROADCASTING, in_chunks(broadcasting), skip=at_60_000("a quarter of an hour a run")),
        Contender(FAMILY, in_chunks(same_family), skip=at_60_000("half an hour a run")),
        Contender(PRODUCT, whole(product), skip=either(at_60_000("needs 40 GB"), if_narrow)),
        Contender(LIMIT, product_and_powers, limit=True, skip=at_60_000("half a minute a run")),
    ),
    inputs=inputs,
    reference=reference,
    tolerance=1e-4,
    sizes=[
        size(1000, 10),
        size(2500, 10),
        MAIN,
        {**MAIN, "gradient": 0},
        FLAT,
        DEEP,
        {**DEEP, "narrow": 1},
        size(128, 8, members=32),
        HUGE,
    ],
    main=MAIN,
    tiny=size(200, 3),
    grows_in="n",
    goals=[
        *(
            goal
            for at, factor in ((MAIN, 2), (FLAT, 3.5), (DEEP, 2))
            for goal in (
                faster_than(KEOPS, 8, at=at),
                faster_than(BROADCASTING, 10, at=at),
                within(LIMIT, factor, at=at),
            )
        ),
        memory_below(OURS, 20),
        memory_below(OURS, 250, at=HUGE),
    ],
    rounds=4,
    unit="value and gradients",
)
