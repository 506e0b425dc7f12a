"""K2: the importance-weighted bound of a VAE and its gradient, with up to 100 000 samples a data point."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dgm_course.bounds import iwae_bound, streamed_iwae_bound

from .harness import Benchmark, Contender, Goal, Result, Run, Size, faster_than, memory_below

BATCH, PIXELS, HIDDEN, LATENTS = 20, 784, 200, 50
CHUNK = 1000 // BATCH  # samples of each x at once, where a contender goes by chunks
LOG_2PI = math.log(2 * math.pi)


@dataclass
class Inputs:
    """The networks of Burda et al. 2016, pictures, and the noise that our function draws, for the others."""

    encoder: nn.Sequential  # 784 - 200 - 200 - 2 x 50
    decoder: nn.Sequential  # 50 - 200 - 200 - 784
    x: Tensor  # (B, 784), binary
    noise: Tensor  # (K, B, 50)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z): (..., 784), (..., 50) -> (...), nats."""
        logits = self.decoder(z)
        return (x * logits - F.softplus(logits)).sum(-1) - 0.5 * (z.square() + LOG_2PI).sum(-1)

    def encoded(self) -> tuple[Tensor, Tensor]:
        return self.encoder(self.x).chunk(2, -1)

    def log_weights(self, mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        """What one writes down first: (k, B) from noise (k, B, 50)."""
        z = mean + torch.exp(0.5 * log_var) * noise
        log_q = -0.5 * (noise.square() + log_var + LOG_2PI).sum(-1)
        return self.log_joint(self.x.expand(len(noise), *self.x.shape), z) - log_q

    def with_gradients(self, bound: Tensor) -> Result:
        """The bound (B,) and the gradients of its sum over B, encoder's and decoder's, each as one vector."""
        parameters = list(self.encoder.parameters()), list(self.decoder.parameters())
        flat = torch.autograd.grad(bound.sum(), [p for part in parameters for p in part])
        split = len(parameters[0])
        return (
            bound.detach(),
            *(torch.cat([g.flatten() for g in part]) for part in (flat[:split], flat[split:])),
        )


def network(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    """Tanh layers with PyTorch's law of the weights, whatever the global seed."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        for parameter in (layer.weight, layer.bias):
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def inputs(size: Size, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(2)
    encoder = network([PIXELS, HIDDEN, HIDDEN, 2 * LATENTS], generator).to(device)
    decoder = network([LATENTS, HIDDEN, HIDDEN, PIXELS], generator).to(device)
    if size["peaked"]:
        decoder[-1].weight.data *= 4
    x = torch.bernoulli(torch.full((BATCH, PIXELS), 0.3), generator=generator).to(device)
    return Inputs(encoder, decoder, x, noise_of_ours(size["K"], x))


def noise_of_ours(num_samples: int, x: Tensor) -> Tensor:
    """(K, B, 50): where q is N(0, I), the z that our function hands to ``log_joint`` are its noise."""
    blocks: list[Tensor] = []

    def record(x: Tensor, z: Tensor) -> Tensor:
        blocks.append(z)
        return z.sum(-1)

    standard = x.new_zeros(BATCH, LATENTS)
    with torch.no_grad():
        streamed_iwae_bound(
            record, x, standard, standard, num_samples=num_samples, generator=seeded(x.device)
        )
    return torch.cat(blocks)


def seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(5)


def streamed(given: Inputs) -> Run:
    def run() -> Result:
        bound = streamed_iwae_bound(
            given.log_joint, given.x, *given.encoded(), num_samples=len(given.noise),
            parameters=given.decoder.parameters(), generator=seeded(given.x.device),
        )  # fmt: skip
        return given.with_gradients(bound)

    return run


def expanded(given: Inputs) -> Run:
    """K B rows in one forward and one backward pass."""
    return lambda: given.with_gradients(iwae_bound(given.log_weights(*given.encoded(), given.noise)))


def checkpointed(given: Inputs) -> Run:
    """Chunk by chunk, each computed again in the backward pass: PyTorch's own way to save memory."""

    def run() -> Result:
        mean, log_var = given.encoded()
        log_w = [
            checkpoint(given.log_weights, mean, log_var, noise, use_reentrant=False, preserve_rng_state=False)
            for noise in given.noise.split(CHUNK)
        ]
        return given.with_gradients(iwae_bound(torch.cat(log_w)))

    return run


def products_alone(given: Inputs) -> Run:
    """The decoder's matrix products for K B rows, forward and backward, chunk by chunk."""
    weights = [layer.weight.detach() for layer in given.decoder if isinstance(layer, nn.Linear)]
    ins, outs = (
        [torch.ones(CHUNK * BATCH, w.shape[dim], device=w.device) for w in weights] for dim in (1, 0)
    )

    def run() -> None:
        for _ in range(len(given.noise) // CHUNK):
            for weight, before, after in zip(weights, ins, outs, strict=True):
                torch.mm(before, weight.mT)
                torch.mm(after.mT, before)
                torch.mm(after, weight)

    return run


def reference(given: Inputs) -> Result:
    """Float64 in two loops over chunks: all log-weights, then their gradients by normalised weight."""
    encoder, decoder = copy.deepcopy(given.encoder).double(), copy.deepcopy(given.decoder).double()
    x = given.x.double()
    mean, log_var = encoder(x).chunk(2, -1)
    leaves = mean.detach().requires_grad_(), log_var.detach().requires_grad_()

    def log_weights(noise: Tensor) -> Tensor:
        q = Normal(leaves[0], torch.exp(0.5 * leaves[1]))
        z = q.mean + q.stddev * noise.double()
        logits = decoder(z)
        nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        return (Normal(torch.zeros_like(z), 1).log_prob(z) - q.log_prob(z)).sum(-1) - nll

    chunks = given.noise.split(CHUNK)
    with torch.no_grad():
        log_w = torch.cat([log_weights(noise) for noise in chunks])  # (K, B)
    for noise, weight in zip(chunks, torch.softmax(log_w, 0).split(CHUNK), strict=True):
        (weight * log_weights(noise)).sum().backward()
    torch.autograd.backward((mean, log_var), [leaf.grad for leaf in leaves])
    gradients = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (encoder, decoder))
    return torch.logsumexp(log_w, 0) - math.log(len(log_w)), *gradients


def at_100_000(reason: str) -> Callable[[Size], str | None]:
    return lambda size: reason if size["K"] >= 100_000 else None


OURS, NAIVE = "bounds.streamed_iwae_bound", "one pass over K B rows"
BENCHMARK = Benchmark(
    kernel="K2",
    title="The importance-weighted bound of a VAE and its gradient (`bounds.streamed_iwae_bound`)",
    workload=(
        f"A VAE of {PIXELS} binary pixels and {LATENTS} latents, two layers of {HIDDEN} tanh units each way, "
        f"{BATCH} pictures, K samples of each: the bound, and its gradient for encoder and decoder. With "
        "peaked = 1 (the decoder's last weights times 4, as training narrows posteriors) about a sixth of "
        "the samples hold all but 1e-7 of the weight, and ours differentiates only those. peaked = 0 is the "
        "network as it is initialised: nothing can be left out, and ours goes through the decoder twice "
        "forward and once backward, as checkpointing does; what it gains on the single pass are the page "
        "faults of 3 GB, whose price varies: 1.15 to 1.8 in three runs of this table. Errors come from the "
        "rounding of log p(x, z) in float32, the same kind for all: another batch moves their ratio by a "
        "quarter. The others are given our noise (40 MB at K = 10 000), which counts in neither their time "
        "nor their memory; ours draws it. Most of checkpointing's memory is gaps in the heap."
    ),
    contenders=(
        Contender(OURS, streamed),
        Contender(NAIVE, expanded, skip=at_100_000("needs 22 GB")),
        Contender("torch.utils.checkpoint, in chunks", checkpointed, skip=at_100_000("a minute a run")),
        Contender("the decoder's matrix products alone", products_alone, limit=True),
    ),
    inputs=inputs,
    reference=reference,
    tolerance=1e-4,
    sizes=[
        {"K": 10_000, "peaked": 0},
        {"K": 1000, "peaked": 1},
        {"K": 10_000, "peaked": 1},
        {"K": 100_000, "peaked": 1},
    ],
    main={"K": 10_000, "peaked": 1},
    tiny={"K": 64, "peaked": 0},
    grows_in="K",
    goals=(
        faster_than(NAIVE, 1.7),
        faster_than(NAIVE, 1.7, at={"K": 10_000, "peaked": 0}),
        Goal(
            f"error at most that of {NAIVE}, both in float32",
            lambda rows: rows[OURS]["error"] / rows[NAIVE]["error"],
            at_most=1,
        ),
        memory_below(OURS, 100, at={"K": 100_000, "peaked": 1}),
    ),
    rounds=5,
    unit="gradient",
)
