"""Small pixel models with either network and either head, and all pictures that they know."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgm_course.pixel_models import CategoricalHead, Head, LogisticMixtureHead, PixelModel

F64 = torch.float64
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
HEADS: dict[str, Callable[..., Head]] = {
    "categorical": lambda num_levels, channels: CategoricalHead(num_levels, channels=channels),
    "logistic": lambda num_levels, channels: LogisticMixtureHead(num_levels, 2, channels=channels),
}
NETS = ["cnn", "made"]
every_head = pytest.mark.parametrize("head", HEADS)
every_net = pytest.mark.parametrize("net", NETS)
Shape = tuple[int, int, int]


def seeded(seed: int = 3, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def build(
    net: str, head: str, shape: Shape, num_levels: int = 2, *, seed: int = 0, **settings: object
) -> PixelModel:
    """In float64, off the initial values: the numbers of one pixel depend well on the others."""
    generator = seeded(seed)
    if net == "cnn":
        settings = {"hidden": 5, "receptive_field": 2, "positions": 3} | settings
        model = PixelModel.pixel_cnn(
            shape, HEADS[head](num_levels, shape[0]), generator=generator, **settings
        )
    else:
        settings = {"hidden": [13, 14]} | settings
        model = PixelModel.made(shape, HEADS[head](num_levels, 1), generator=generator, **settings)
    noise = seeded(seed + 1000)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=F64, generator=noise))
    return model


def all_pictures(shape: Shape, num_levels: int = 2) -> Tensor:
    """``(L^m, m)``."""
    size = torch.Size(shape).numel()
    return torch.tensor(list(itertools.product(range(num_levels), repeat=size)), dtype=F64)


def pictures(*batch: int, shape: Shape, num_levels: int, seed: int = 1) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.randint(num_levels, (*batch, size), generator=seeded(seed)).double()
