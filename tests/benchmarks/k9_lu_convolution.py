"""K9: invertible 1x1 convolution, LU factors against the dense matrix: log-determinant and whole step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dgm_course.flows import InvertibleConv1x1

from .harness import Benchmark, Contender, Goal, Result, Run, Size

SIDE = 8
REPEATS = 20  # of the log-determinant alone, so that the clock sees it


@dataclass
class Inputs:
    """Images ``x (B, c, 8, 8)`` and the two forms of one matrix."""

    x: Tensor
    lu: InvertibleConv1x1
    dense: InvertibleConv1x1


def inputs(size: Size, device: torch.device) -> Inputs:
    channels = size["c"]
    lu, dense = (
        InvertibleConv1x1(channels, lu=lu, generator=torch.Generator().manual_seed(7)) for lu in (True, False)
    )
    with torch.no_grad():  # away from the rotation, whose log-determinant is 0
        lu.log_s.add_(torch.linspace(-0.5, 0.6, channels))
        dense.dense.copy_(lu.weight)
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(size["B"], channels, SIDE, SIDE, generator=generator)
    return Inputs(x.to(device), lu.to(device), dense.to(device))


def step(layer: InvertibleConv1x1, x: Tensor) -> Result:
    """A training step but for the optimiser's part: mean negative log-likelihood, and its gradients."""
    z, log_det = layer.inverse(x)
    loss = (0.5 * z.square().flatten(1).sum(-1) - log_det).mean() / z[0].numel()
    torch.autograd.grad(loss, list(layer.parameters()))
    return loss.detach()


def log_det(layer: InvertibleConv1x1) -> Result:
    """log|det W| and its gradient for the parameters that it depends on, several times."""
    parameter = layer.log_s if layer.lu else layer.dense
    for _ in range(REPEATS):
        value = layer.log_abs_det_weight
        torch.autograd.grad(value, parameter)
    return value.detach()


def contender(name: str, lu: bool, work: Callable[..., Result]) -> Contender:
    def prepare(given: Inputs) -> Run:
        layer = given.lu if lu else given.dense
        if work is log_det:

            def run() -> None:
                log_det(layer)

            return run
        return lambda: work(layer, given.x)

    return Contender(name, prepare, limit=work is log_det)


def building(given: Inputs) -> Run:
    """W from its factors and back to their gradients, without images: O(c^3) still."""

    def run() -> None:
        weight = given.lu.weight
        parameters = [given.lu.lower, given.lu.upper, given.lu.log_s]
        torch.autograd.grad(weight, parameters, torch.ones_like(weight))

    return run


def reference(given: Inputs) -> Result:
    weight = given.dense.dense.detach().double()
    x = given.x.double()
    z = torch.einsum("ij,bjhw->bihw", weight, x)
    log_abs_det = SIDE * SIDE * torch.linalg.slogdet(weight).logabsdet
    return (0.5 * z.square().flatten(1).sum(-1) - log_abs_det).mean() / z[0].numel()


LU, DENSE = "a step with `lu=True`", "a step with `lu=False`"
LU_DET = f"log-determinant and gradient from the factors, {REPEATS} times"
DENSE_DET = f"log-determinant and gradient of the dense matrix, {REPEATS} times"
BUILDING = "W from its factors, and back"
MAIN = {"c": 512, "B": 16}

BENCHMARK = Benchmark(
    kernel="K9",
    title="Invertible 1x1 convolution, LU against dense (`flows.InvertibleConv1x1`)",
    workload=(
        f"One layer on B images of c channels and {SIDE} x {SIDE} pixels, float32: loss and gradients "
        "for the layer's parameters, and the log-determinant by itself. From the factors that costs O(c), "
        "without them O(c^3); multiplying the factors to W costs O(c^3) again (Ledger F7), and the "
        "convolution O(c^2) a pixel. Growth is fitted from c = 256 on; below, calls cost more than sums."
    ),
    contenders=(
        contender(LU, True, step),
        contender(DENSE, False, step),
        contender(LU_DET, True, log_det),
        contender(DENSE_DET, False, log_det),
        Contender(BUILDING, building, limit=True),
    ),
    inputs=inputs,
    reference=reference,
    tolerance=1e-5,
    sizes=[
        *({"c": channels, "B": 64} for channels in (12, 48)),
        *({"c": channels, "B": 16} for channels in (256, 512, 1024)),
    ],
    main=MAIN,
    tiny={"c": 12, "B": 2},
    grows_in="c",
    goals=(
        *(
            Goal(
                f"{name} grows with at least c^2", lambda rows, name=name: rows[name]["growth"], at_least=2.0
            )
            for name in (DENSE_DET, BUILDING)
        ),
        Goal(f"{LU_DET} grows with at most c^1", lambda rows: rows[LU_DET]["growth"], at_most=1.0),
        Goal(
            "the log-determinant from the factors at least 100 x as fast as the dense one",
            lambda rows: rows[DENSE_DET]["seconds"][1] / rows[LU_DET]["seconds"][1],
            at_least=100.0,
        ),
    ),
    unit="run",
)
