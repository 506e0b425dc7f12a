"""K5: inversion of an autoregressive flow: sampling from a MAF, beside one pass and the peers' loops."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgm_course.flows import (
    MaskedAutoregressiveFlow,
    iaf_parameters,
    soft_clamp,
    solve_by_sweeps,
    solve_sequentially,
)
from dgm_course.nets import MaskedMLP

from .harness import Benchmark, Contender, Run, Size, faster_than, within

WIDTH = 1024


@dataclass
class Inputs:
    """The flow and the noise ``z (B, D)``."""

    flow: MaskedAutoregressiveFlow
    z: Tensor

    @property
    def layers(self) -> list[nn.Module]:
        return [self.flow.net.input, *self.flow.net.layers]


def inputs(size: Size, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(5)
    net = MaskedMLP(size["D"], [WIDTH, WIDTH], 2, generator=generator)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(size["gain"])
    z = torch.randn(size["B"], size["D"], generator=generator)
    return Inputs(MaskedAutoregressiveFlow(net).to(device), z.to(device))


def without_gradients(function: Callable[[], Tensor | None]) -> Run:
    def run() -> Tensor | None:
        with torch.no_grad():
            return function()

    return run


def ours(given: Inputs) -> Run:
    return without_gradients(lambda: given.flow(given.z)[0])


def one_pass(given: Inputs) -> Run:
    def function() -> None:
        given.flow.net(given.z)

    return without_gradients(function)


def scaled_up(given: Tensor, out: Tensor) -> Tensor:
    shift, raw = out.unbind(-1)
    return shift + soft_clamp(raw).exp() * given


def sequential(given: Inputs) -> Run:
    return without_gradients(lambda: solve_sequentially(given.flow.net, scaled_up, given.z)[0])


def sweeps(given: Inputs) -> Run:
    return without_gradients(lambda: solve_by_sweeps(given.flow.net, scaled_up, given.z)[0])


def reference(given: Inputs) -> Tensor:
    """Whole passes in float64 until nothing changes: no sorting, no blocks."""
    net = MaskedMLP(given.z.shape[-1], [WIDTH, WIDTH], 2).to(given.z.device)
    net.load_state_dict(given.flow.net.state_dict())
    with torch.no_grad():
        return solve_by_sweeps(net.double(), scaled_up, given.z.double())[0]


class PeersNet(nn.Module):
    """A peer's masked layers, with our weights and masks. ``context`` is None."""

    def __init__(self, layers: list[nn.Linear], weights: list[nn.Module]) -> None:
        super().__init__()
        for theirs, layer in zip(layers, weights, strict=True):
            theirs.weight.data = layer.weight.detach().T.contiguous()
            theirs.bias.data = layer.bias.detach().clone()
            theirs.mask = layer.mask.T.contiguous().to(theirs.mask.dtype)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = nn.functional.silu(layer(x))
        return last(x)


def like_nflows(masked_linear: str, transform: str) -> Callable[[Inputs], Run]:
    """nflows, and normflows, which has the code from there. Their scale is replaced by ours."""

    def prepare(given: Inputs) -> Run:
        linear = importlib.import_module(masked_linear).MaskedLinear
        module, name = transform.rsplit(".", 1)

        class Flow(getattr(importlib.import_module(module), name)):
            def _elementwise_inverse(self, inputs: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
                shift, raw = out.view(*inputs.shape, 2).unbind(-1)
                log_scale = soft_clamp(raw)
                return inputs * log_scale.exp() + shift, log_scale.sum(-1)

        num_dims = given.z.shape[-1]
        layers = [
            linear(torch.arange(layer.in_features), layer.out_features, num_dims, False, False)
            for layer in given.layers
        ]
        flow = Flow(2, 2)
        flow.features, flow.autoregressive_net = num_dims, PeersNet(layers, given.layers)
        flow.to(given.z.device)
        return without_gradients(lambda: flow.inverse(given.z)[0])

    return prepare


def with_zuko(given: Inputs) -> Run:
    zuko = importlib.import_module("zuko")

    def univariate(shift: Tensor, raw: Tensor) -> torch.distributions.Transform:
        mu, log_sigma = iaf_parameters(shift, soft_clamp(raw))  # zuko's transform goes from data to noise
        return torch.distributions.AffineTransform(mu, log_sigma.exp())

    flow = zuko.flows.MaskedAutoregressiveTransform(2, univariate=univariate)
    flow.passes = given.z.shape[-1]
    layers = [zuko.nn.MaskedLinear(layer.mask.T.bool()) for layer in given.layers]
    flow.hyper = PeersNet(layers, given.layers)
    flow.to(given.z.device)
    return without_gradients(lambda: flow().inv(given.z))


PASS, SEQUENTIAL = "one forward pass of the network", "dimension after dimension (`solve_sequentially`)"
ZUKO, NFLOWS, NORMFLOWS = "zuko", "nflows", "normflows"
MAIN, LARGE = {"D": 64, "B": 256, "gain": 1}, {"D": 784, "B": 64, "gain": 1}

BENCHMARK = Benchmark(
    kernel="K5",
    title="Autoregressive inversion (`MaskedAutoregressiveFlow.forward`, `flows.solve_autoregressive`)",
    workload=(
        f"B samples of a MAF in D dimensions with hidden layers [{WIDTH}, {WIDTH}], float32. The peers' own "
        "masked layers and inversion loops run with our weights, masks and scale, so that all return the "
        "same samples. Weights are as initialised, times `gain`: a larger one makes dimensions depend on one "
        "another more strongly, and ours sweep more often. What ours read off the masks is kept from one "
        "call to the next; the weights are sorted in every call."
    ),
    contenders=(
        Contender("MaskedAutoregressiveFlow.forward", ours),
        Contender(PASS, one_pass, limit=True),
        Contender(SEQUENTIAL, sequential),
        Contender("sweeps of the whole network (`solve_by_sweeps`)", sweeps),
        Contender(ZUKO, with_zuko, requires=("zuko",)),
        Contender(
            NFLOWS,
            like_nflows(
                "nflows.transforms.made",
                "nflows.transforms.autoregressive.MaskedAffineAutoregressiveTransform",
            ),
            requires=("nflows",),
        ),
        Contender(
            NORMFLOWS,
            like_nflows("normflows.nets.made", "normflows.flows.MaskedAffineAutoregressive"),
            requires=("normflows",),
        ),
    ),
    inputs=inputs,
    reference=reference,
    tolerance=1e-5,
    sizes=[
        {"D": 16, "B": 256, "gain": 1},
        MAIN,
        {"D": 256, "B": 256, "gain": 1},
        LARGE,
        {**MAIN, "gain": 3},
        {**LARGE, "gain": 3},
    ],
    main=MAIN,
    tiny={"D": 8, "B": 4, "gain": 1},
    grows_in="D",
    goals=[
        goal
        for size, factor in ((MAIN, 25), (LARGE, 300))
        for goal in (
            within(PASS, 2, at=size),
            *(faster_than(name, factor, at=size) for name in (ZUKO, NFLOWS, NORMFLOWS)),
        )
    ],
    rounds=5,
    unit="inversion",
)
