"""Every prior of the library, ready to be tested by law, and a small VAE with a prior of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import small_vaes
import torch
from torch import Tensor

from dgm_course.nets import MLP
from dgm_course.numerics import gauss_legendre
from dgm_course.priors import (
    AggregatedPosterior,
    FlowPrior,
    MixturePrior,
    Prior,
    StandardNormalPrior,
    VampPrior,
)
from dgm_course.vae import VAE

F64 = torch.float64
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SHARED = 4  # entries of a pseudo-input


def seeded(seed: int = 3, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=seeded(seed))


def lead(members: int | None) -> tuple[int, ...]:
    return () if members is None else (members,)


def vamp(
    d: int, members: int | None, generator: torch.Generator, bounds: tuple[float, float] | None = None
) -> VampPrior:
    encoder = MLP([SHARED, 6, 2 * d], members=members, generator=generator)
    start = torch.rand(*lead(members), 5, SHARED, generator=generator)
    return VampPrior(encoder, start, d, bounds=bounds, members=members)


def aggregated(d: int, members: int | None, generator: torch.Generator) -> AggregatedPosterior:
    noise = torch.randn(2, *lead(members), 7, d, generator=generator)
    return AggregatedPosterior(1.2 * noise[0], 0.5 * noise[1] - 1.0)


Make = Callable[[int, int | None, torch.Generator], Prior]
ZOO: dict[str, Make] = {
    "normal": lambda d, e, g: StandardNormalPrior(d, members=e),
    "mixture": lambda d, e, g: MixturePrior(4, d, members=e, generator=g),
    "vamp": vamp,
    "bounded vamp": lambda d, e, g: vamp(d, e, g, (-0.5, 2.0)),
    "realnvp": lambda d, e, g: FlowPrior.realnvp(d, hidden=8, num_layers=3, members=e, generator=g),
    "maf": lambda d, e, g: FlowPrior.maf(d, hidden=8, members=e, generator=g),
    "iaf": lambda d, e, g: FlowPrior.iaf(d, hidden=8, members=e, generator=g),
    "aggregated": aggregated,
}
FLOWS = ["realnvp", "maf", "iaf"]
every = pytest.mark.parametrize("name", ZOO)
members_or_not = pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])


def build(name: str, members: int | None = None, d: int = 2, seed: int = 0) -> Prior:
    """In float64, its parameters moved off their initial values: nothing holds by being N(0, I)."""
    prior = ZOO[name](d, members, seeded(seed)).double()
    noise = seeded(seed + 1000)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, dtype=F64, generator=noise))
    return prior


GRID = {1: gauss_legendre(-12.0, 12.0, 600), 2: gauss_legendre(-9.0, 9.0, 160, num_dims=2)}


def density_on_grid(prior: Prior) -> tuple[Tensor, Tensor]:
    """Nodes ``(N, d)`` and the mass at each, ``([E,] N)``."""
    z, weights = GRID[prior.latent_dim]
    with torch.no_grad():
        log_p = prior.log_prob(z.expand(*lead(prior.members), *z.shape))
    return z, weights * log_p.exp()


PICTURES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=F64)  # (32, 5)
PRIORS = ["mixture", "vamp", "maf"]
priors = pytest.mark.parametrize("name", PRIORS)


def make_prior(name: str, vae: VAE, generator: torch.Generator) -> Prior:
    """Off its initial values; the VampPrior shares the VAE's encoder."""
    e, d = vae.members, vae.latent_dim
    if name == "vamp":
        start = torch.rand(*(() if e is None else (e,)), 3, 5, generator=generator, dtype=F64)
        return VampPrior(vae.encoder, start, d, bounds=(0.0, 1.0), members=e)
    if name == "mixture":
        prior: Prior = MixturePrior(3, d, members=e, generator=generator).double()
    else:
        prior = FlowPrior.maf(d, hidden=8, members=e, generator=generator).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, dtype=F64, generator=generator))
    return prior


def small_vae(
    name: str = "mixture", members: int | None = None, latent_dim: int = 2, kind: str = "bernoulli"
) -> VAE:
    bare = small_vaes.small_vae(seeded(1), members, latent_dim, kind)
    return VAE(bare.encoder, bare.decoder, latent_dim, prior=make_prior(name, bare, seeded(2)))
