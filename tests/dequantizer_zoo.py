"""Every dequantizer, ready to be tested by law; a density of the plane; a quadrature of the unit cube."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dgm_course.dequantization import (
    Dequantizer,
    UniformDequantizer,
    VariationalDequantizer,
)
from dgm_course.flows import Compose, FixedAffine, Flow, realnvp_transform
from dgm_course.numerics import gauss_legendre

F64 = torch.float64
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
LEVELS = 6
Make = Callable[..., Dequantizer]
ZOO: dict[str, tuple[Make, int]] = {
    "uniform": (lambda e, g: UniformDequantizer(members=e), 2),
    "coupling": (
        lambda e, g: VariationalDequantizer.coupling(
            2, LEVELS, num_layers=3, hidden=8, context=3, members=e, generator=g
        ),
        2,
    ),
    "autoregressive": (
        lambda e, g: VariationalDequantizer.autoregressive(
            2, LEVELS, num_layers=2, hidden=8, context=3, members=e, generator=g
        ),
        2,
    ),
    "autoregressive 1": (
        lambda e, g: VariationalDequantizer.autoregressive(
            1, LEVELS, hidden=8, context=3, members=e, generator=g
        ),
        1,
    ),
    "neighbourhood": (
        lambda e, g: VariationalDequantizer.neighbourhood(
            (1, 1, 2), LEVELS, hidden=8, members=e, generator=g
        ),
        2,
    ),
}
every = pytest.mark.parametrize("name", ZOO)
learned = pytest.mark.parametrize("name", [name for name in ZOO if name != "uniform"])
members_or_not = pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)


def seeded(seed: int = 3, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def moved(module: nn.Module, spread: float = 0.1, seed: int = 7) -> nn.Module:
    """In float64, off the initial values."""
    generator = seeded(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, dtype=F64, generator=generator))
    return module


def build(name: str, members: int | None = None, *, spread: float = 0.1, seed: int = 0) -> Dequantizer:
    """Off its initial values, so that nothing holds by being uniform; not so far that u crowds at 1.

    There 1 - u has lost the digits that the density needs.
    """
    return moved(ZOO[name][0](members, seeded(seed)), spread, seed + 1000)


def plane_flow(members: int | None = None) -> Flow:
    """RealNVP of the plane, over levels 0, ..., 5."""
    transform = realnvp_transform(2, num_layers=2, hidden=[6], members=members, generator=seeded(2))
    return moved(Flow(Compose([transform, FixedAffine(3.0, 1.7)]), 2))


def levels(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(LEVELS, shape, generator=seeded(seed)).double()


def lead(members: int | None) -> tuple[int, ...]:
    return () if members is None else (members,)


def unit_cube(num_dims: int, power: float = 4.0) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights in t, ``u = t^p / (t^p + (1 - t)^p)``: at the ends the density of a
    scaled logistic is a power of u, which no polynomial follows, and a higher one of t."""
    t, weights = gauss_legendre(0.0, 1.0, 200, num_dims=num_dims)
    u = torch.sigmoid(power * torch.logit(t))
    keep = ((u > 0) & (u < 1)).all(-1)
    return u[keep], (weights * (power * u * (1 - u) / (t * (1 - t))).prod(-1))[keep]
