"""K3: R gradient estimates of the importance-weighted bound with K samples each, on the Gaussian toy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from dgm_course.bounds.noise import noise_blocks
from dgm_course.gaussian_toy import GaussianToy

from .harness import Benchmark, Contender, Result, Run, Size, faster_than, within

DIMS, OFFSET = 20, 0.01  # those of Rainforth et al. 2018
LogWeights = Callable[[Tensor, Tensor, Tensor], Tensor]  # mu, q_mean (..., 1, d), z (..., K, d) -> (..., K)


@dataclass
class Inputs:
    """The toy and the counts; the noise is drawn within the time of every contender."""

    toy: GaussianToy
    num_estimates: int
    num_samples: int

    @property
    def counts(self) -> dict[str, int]:
        return {"num_estimates": self.num_estimates, "num_samples": self.num_samples}

    def noise(self) -> Iterator[Tensor]:
        """The numbers that ours draws, in its blocks (r, K, d): each is overwritten by the next."""
        for blocks in noise_blocks(self.toy.mu, **self.counts, generator=seeded(self.toy.mu.device)):
            [eps] = blocks  # at these sizes all K samples fit in one
            yield eps


def inputs(size: Size, device: torch.device) -> Inputs:
    toy = GaussianToy.near_optimum(OFFSET, DIMS, dtype=torch.float32)
    toy = GaussianToy(toy.mu.to(device), toy.x.to(device), toy.q_mean.to(device))
    return Inputs(toy, size["R"], size["K"])


def seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(3)


def ours(given: Inputs) -> Run:
    return lambda: tuple(given.toy.gradients(**given.counts, generator=seeded(given.toy.mu.device)))


def written_out(toy: GaussianToy) -> LogWeights:
    """log p(x, z) - log q(z) as arithmetic."""
    constant = 0.5 * DIMS * math.log(toy.q_var / (2 * math.pi))

    def log_weights(mu: Tensor, q_mean: Tensor, z: Tensor) -> Tensor:
        squares = (z - mu).square() + (toy.x - z).square() - (z - q_mean).square() / toy.q_var
        return constant - 0.5 * squares.sum(-1)

    return log_weights


def with_distributions(toy: GaussianToy) -> LogWeights:
    """The same in the words of torch.distributions."""
    sd = math.sqrt(toy.q_var)

    def normal(mean: Tensor, sd: float) -> Independent:
        return Independent(Normal(mean, sd), 1)

    def log_weights(mu: Tensor, q_mean: Tensor, z: Tensor) -> Tensor:
        log_joint = normal(mu, 1.0).log_prob(z) + normal(z, 1.0).log_prob(toy.x)
        return log_joint - normal(q_mean, sd).log_prob(z)

    return log_weights


def objective(toy: GaussianToy, log_weights: LogWeights) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function of mu, q_mean and q_mean once more whose gradients are theta's, phi's plain one, and DReG.

    The bound, plus the sum of w^_k^2 log w_k in which only the path of z_k is differentiated; and the bound.
    """
    sd = math.sqrt(toy.q_var)

    def value(mu: Tensor, q_mean: Tensor, path: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        log_w = log_weights(mu, q_mean, q_mean + sd * eps)  # (..., K)
        bound = torch.logsumexp(log_w, -1) - math.log(eps.shape[-2])
        along_path = log_weights(mu.detach(), q_mean.detach(), path + sd * eps)
        return bound + (torch.softmax(log_w.detach(), -1).square() * along_path).sum(-1), bound

    return value


def loop(formula: Callable[[GaussianToy], LogWeights]) -> Callable[[Inputs], Run]:
    """One backward pass after the other."""

    def prepare(given: Inputs) -> Run:
        toy = given.toy
        value = objective(toy, formula(toy))

        def run() -> Result:
            start = (toy.mu, toy.q_mean, toy.q_mean)
            parameters = [p.clone().unsqueeze(0).requires_grad_() for p in start]  # (1, d)
            rows = []
            for block in given.noise():
                for eps in block:
                    total, bound = value(*parameters, eps)
                    rows.append((*torch.autograd.grad(total, parameters), bound.detach()))
            *gradients, bounds = zip(*rows, strict=True)
            return *(torch.cat(parts) for parts in gradients), torch.stack(bounds)

        return run

    return prepare


def vmapped(given: Inputs) -> Run:
    """``vmap(grad)``, a block at a time: all R at once are slower, and need the noise in memory."""
    toy = given.toy
    gradient = torch.func.grad(objective(toy, written_out(toy)), argnums=(0, 1, 2), has_aux=True)
    mapped = torch.func.vmap(gradient, in_dims=(None, None, None, 0))

    def run() -> Result:
        found = [mapped(toy.mu, toy.q_mean, toy.q_mean, eps) for eps in given.noise()]
        gradients, bounds = zip(*found, strict=True)
        return *(torch.cat(parts) for parts in zip(*gradients, strict=True)), torch.cat(bounds)

    return run


def copies(given: Inputs, dtype: torch.dtype, formula: Callable[[GaussianToy], LogWeights]) -> Result:
    """One backward pass for a block of estimates, each with its own copy of the parameters (r, 1, d)."""
    toy = GaussianToy(*(t.to(dtype) for t in (given.toy.mu, given.toy.x, given.toy.q_mean)))
    value = objective(toy, formula(toy))
    found = []
    for eps in given.noise():
        start = (toy.mu, toy.q_mean, toy.q_mean)
        parameters = [p.repeat(len(eps), 1, 1).requires_grad_() for p in start]
        total, bound = value(*parameters, eps.to(dtype))
        gradients = torch.autograd.grad(total.sum(), parameters)
        found.append((*(g.squeeze(1) for g in gradients), bound.detach()))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def drawing(given: Inputs) -> Run:
    def run() -> None:
        for _ in given.noise():
            pass

    return run


LOOP, VMAP, DRAWING = "a loop of R backward passes", "torch.func.vmap(grad), in blocks", "drawing the noise"
COPIES = "autograd over copies of the parameters, in blocks"


def skip_many(size: Size) -> str | None:
    return "ten times the row R = 1000, K = 10" if size["R"] > 1000 else None


BENCHMARK = Benchmark(
    kernel="K3",
    title="R gradient estimates with K samples each (`GaussianToy.gradients`, `bounds.weighted_noise`)",
    workload=(
        f"The Gaussian toy of Rainforth et al. 2018 in {DIMS} dimensions, float32: R draws of the K-sample "
        "bound, each with its gradient for theta, for phi, and the doubly reparametrised one for phi, all "
        "from the same samples. Everyone draws the noise within the time, and it is the same bit for bit. "
        "Without the third gradient, which costs ours next to nothing, the loops would take about half as "
        "long. Blocks are the same for all and stay in the cache; at K = 1 the results are larger than the "
        "noise."
    ),
    contenders=(
        Contender("GaussianToy.gradients", ours),
        Contender(LOOP, loop(written_out), skip=skip_many),
        Contender("a loop over torch.distributions", loop(with_distributions), skip=skip_many),
        Contender(VMAP, vmapped),
        Contender(COPIES, lambda given: lambda: copies(given, torch.float32, written_out)),
        Contender(DRAWING, drawing, limit=True),
    ),
    inputs=inputs,
    reference=lambda given: copies(given, torch.float64, with_distributions),
    tolerance=1e-4,
    sizes=[*({"R": 1000, "K": samples} for samples in (1, 10, 100, 1000)), {"R": 10_000, "K": 10}],
    main={"R": 1000, "K": 1000},
    tiny={"R": 30, "K": 10},
    grows_in="K",
    goals=(
        within(DRAWING, 3),
        within(DRAWING, 3, at={"R": 1000, "K": 10}),
        faster_than(LOOP, 3),
        faster_than(LOOP, 100, at={"R": 1000, "K": 10}),
        faster_than(LOOP, 100, at={"R": 1000, "K": 1}),
        faster_than(VMAP, 1),
        faster_than(VMAP, 1, at={"R": 1000, "K": 10}),
    ),
    unit="run",
)
