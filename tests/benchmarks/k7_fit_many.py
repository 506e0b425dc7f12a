"""K7: E small VAEs of the digits, trained at once by `train.fit_many`, one by one, and through `vmap`."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgm_course.data import digits
from dgm_course.nets import MLP
from dgm_course.train import fit_many

from .harness import Benchmark, Contender, Run, Size, faster_than

PIXELS, LATENTS, BATCH, STEPS, LR = 64, 8, 64, 10, 2e-3


@dataclass
class Inputs:
    """The same start, batches and noise for every contender: drawing them is not part of the work."""

    encoder: MLP  # stacked: 64 - hidden - 2d
    decoder: MLP  # stacked: d - hidden - 64
    x: Tensor  # (steps, B, 64), binary
    noise: Tensor  # (steps, E, B, d)

    @property
    def members(self) -> int:
        return self.noise.shape[1]

    def parameters(self) -> list[Tensor]:
        return [*self.encoder.parameters(), *self.decoder.parameters()]


def inputs(size: Size, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(7)
    members, hidden = size["E"], size["hidden"]
    encoder = MLP([PIXELS, hidden, 2 * LATENTS], members=members, generator=generator).to(device)
    decoder = MLP([LATENTS, hidden, PIXELS], members=members, generator=generator).to(device)
    data = digits().train_x
    x = data[torch.randint(len(data), (STEPS, BATCH), generator=generator)].to(device)
    noise = torch.randn(STEPS, members, BATCH, LATENTS, generator=generator).to(device)
    return Inputs(encoder, decoder, x, noise)


def negative_elbo(encoder: nn.Module, decoder: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """One-sample -ELBO averaged over the batch: x (B, 64), noise ([E,] B, d) -> ([E])."""
    mean, log_var = encoder(x).chunk(2, -1)
    logits = decoder(mean + (0.5 * log_var).exp() * noise)
    log_likelihood = (x * logits - F.softplus(logits)).sum(-1)
    kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(-1)
    return (kl - log_likelihood).mean(-1)


def together(given: Inputs) -> Run:
    encoder, decoder = copy.deepcopy(given.encoder), copy.deepcopy(given.decoder)
    parameters = [*encoder.parameters(), *decoder.parameters()]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return negative_elbo(encoder, decoder, given.x[step], given.noise[step])

    return lambda: fit_many(loss, parameters, steps=STEPS, lr=LR, progress=False).losses


class OneVAE(nn.Module):
    """A member as one would write it by itself, of ``torch.nn.Linear``."""

    def __init__(self, given: Inputs, index: int) -> None:
        super().__init__()
        self.encoder, self.decoder = (
            nn.Sequential(self._layer(net.layers[0], index), nn.SiLU(), self._layer(net.layers[1], index))
            for net in (given.encoder, given.decoder)
        )

    @staticmethod
    def _layer(stacked: nn.Module, index: int) -> nn.Linear:
        layer = nn.utils.skip_init(nn.Linear, stacked.in_features, stacked.out_features)
        layer.weight = nn.Parameter(stacked.weight[index].detach().mT.contiguous())
        layer.bias = nn.Parameter(stacked.bias[index].detach().clone())
        return layer

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return negative_elbo(self.encoder, self.decoder, x, noise)


def one_by_one(given: Inputs) -> Run:
    models = [OneVAE(given, e) for e in range(given.members)]

    def run() -> Tensor:
        losses = given.x.new_empty(STEPS, given.members)
        for e, model in enumerate(models):
            optimiser = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
            for step in range(STEPS):
                optimiser.zero_grad()
                loss = model(given.x[step], given.noise[step, e])
                loss.backward()
                optimiser.step()
                losses[step, e] = loss.detach()
        return losses

    return run


def vmapped(given: Inputs) -> Run:
    """PyTorch's recipe for ensembles, with one backward pass: faster than mapping ``grad`` itself."""
    models = [OneVAE(given, e) for e in range(given.members)]
    stacked, _ = torch.func.stack_module_state(models)
    parameters = {name: value.detach().requires_grad_() for name, value in stacked.items()}
    skeleton = copy.deepcopy(models[0]).to("meta")

    def call(parameters: dict[str, Tensor], x: Tensor, noise: Tensor) -> Tensor:
        return torch.func.functional_call(skeleton, parameters, (x, noise))

    def run() -> Tensor:
        losses = given.x.new_empty(STEPS, given.members)
        optimiser = torch.optim.Adam(parameters.values(), lr=LR, fused=True)
        mapped = torch.vmap(call, in_dims=(0, None, 0))
        for step in range(STEPS):
            optimiser.zero_grad()
            loss = mapped(parameters, given.x[step], given.noise[step])  # (E,)
            loss.sum().backward()
            optimiser.step()
            losses[step] = loss.detach()
        return losses

    return run


def products_alone(given: Inputs) -> Run:
    """The batched products of forward and backward: W x, and the gradients for W and (but for the data) x."""
    layers = [layer.weight.detach() for net in (given.encoder, given.decoder) for layer in net.layers]
    ins = [torch.ones(given.members, BATCH, w.shape[1], device=w.device) for w in layers]
    outs = [torch.ones(given.members, BATCH, w.shape[2], device=w.device) for w in layers]

    def run() -> None:
        for _ in range(STEPS):
            for index, (weight, rows, gradient) in enumerate(zip(layers, ins, outs, strict=True)):
                torch.bmm(rows, weight)
                torch.bmm(rows.mT, gradient)
                if index:
                    torch.bmm(gradient, weight.mT)

    return run


def reference(given: Inputs) -> Tensor:
    """Losses (steps, E) in float64, with einsum and Adam written out."""
    parameters = [p.detach().double().requires_grad_() for p in given.parameters()]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    losses = []
    for step in range(STEPS):
        x, noise = given.x[step].double(), given.noise[step].double()
        w1, b1, w2, b2, w3, b3, w4, b4 = (p if p.ndim == 3 else p[:, None] for p in parameters)
        hidden = F.silu(torch.einsum("bi,eio->ebo", x, w1) + b1)
        mean, log_var = (torch.einsum("ebi,eio->ebo", hidden, w2) + b2).split(LATENTS, -1)
        z = mean + (0.5 * log_var).exp() * noise
        logits = torch.einsum("ebi,eio->ebo", F.silu(torch.einsum("ebi,eio->ebo", z, w3) + b3), w4) + b4
        nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        kl = 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(-1)
        losses.append((nll + kl).mean(1))
        gradients = torch.autograd.grad(losses[-1].sum(), parameters)
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).add_(g**2, alpha=0.001)
            p.data -= LR * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    return torch.stack(losses).detach()


LOOP, VMAP = "a loop of E trainings", "stack_module_state + vmap"
BENCHMARK = Benchmark(
    kernel="K7",
    title="E small models trained at once (`train.fit_many`)",
    workload=(
        f"A step of Adam on E VAEs of the digits (64-hidden-2·{LATENTS} and {LATENTS}-hidden-64, SiLU, "
        f"Bernoulli pixels, batch {BATCH}), hidden 32 like lecture 01's encoder. All use fused Adam. What is "
        "gained is the cost of launching E small operations instead of one large one, so the gain shrinks as "
        "the models grow: the rows with hidden 128 show by how much."
    ),
    contenders=(
        Contender("train.fit_many", together),
        Contender(LOOP, one_by_one),
        Contender(VMAP, vmapped),
        Contender("the matrix products alone", products_alone, limit=True),
    ),
    inputs=inputs,
    reference=reference,
    tolerance=1e-5,
    sizes=[*({"E": members, "hidden": 32} for members in (4, 16, 64)), {"E": 64, "hidden": 128}],
    main={"E": 64, "hidden": 32},
    tiny={"E": 2, "hidden": 32},
    grows_in="E",
    goals=(faster_than(LOOP, 5), faster_than(VMAP, 1)),
    unit="step",
    units_per_run=STEPS,
)
