"""Every transform of the library, ready to be tested by law: how to make it, and the shape of its events.

A new transform adds one entry; ``tests/laws/test_flow_laws.py`` then holds it to all laws, and checks that
none is missing here. Parameters are moved off their initial values: no law holds by being the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgm_course import flows
from dgm_course.nets import MLP, ConvNet, MaskedMLP

Make = Callable[[torch.Generator], flows.Transform]


@dataclass(frozen=True)
class Entry:
    """One transform: ``make`` draws it, ``event`` is its events' shape; ``unit`` if x lies in (0, 1).

    ``spread`` is how far its parameters are moved off their initial values.
    """

    name: str
    make: Make
    event: tuple[int, ...]
    unit: bool = False
    spread: float = 0.3

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> flows.Transform:
        """The transform with parameters drawn around their initial values."""
        transform = self.make(torch.Generator().manual_seed(seed)).to(dtype)
        noise = torch.Generator().manual_seed(seed + 1000)
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter.add_(self.spread * torch.randn(parameter.shape, generator=noise).to(parameter))
        return transform

    def points(self, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Points of the base: N(0, 1.5^2)."""
        generator = torch.Generator().manual_seed(seed)
        return 1.5 * torch.randn(*batch, *self.event, generator=generator, dtype=torch.float64).to(dtype)


class Shifted(nn.Module):
    """A conditioner without a network: shifts and log-scales that depend on a sine of their input."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x.sum(-1, keepdim=True) * self.weight + self.weight.square())


class Counting(nn.Module):
    """A network that counts its passes, and does not show what it is made of (nor its masks)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.net(x)


def affine(mask: Tensor, **kind: object) -> Make:
    return lambda g: flows.AffineCoupling(mask, conditioner(mask, 2, g), **kind)


def additive(mask: Tensor) -> Make:
    return lambda g: flows.AdditiveCoupling(mask, conditioner(mask, 1, g))


def conditioner(mask: Tensor, num_outputs: int, g: torch.Generator) -> nn.Module:
    kept, moved = int(mask.sum()), int((~mask).sum())
    if mask.dim() == 1:
        return MLP([kept, 8, num_outputs * moved], generator=g)
    if mask.shape[1:] == (1, 1):
        return ConvNet(kept, 6, num_outputs * moved, generator=g)
    return ConvNet(2, 6, num_outputs * 2, generator=g)  # checkerboards of the zoo have two channels


def maf(num_dims: int, hidden: int | list[int]) -> Make:
    return lambda g: flows.MaskedAutoregressiveFlow(MaskedMLP(num_dims, hidden, 2, generator=g))


def iaf(num_dims: int, hidden: int | list[int]) -> Make:
    return lambda g: flows.InverseAutoregressiveFlow(MaskedMLP(num_dims, hidden, 2, generator=g))


def conv1x1(num_channels: int, **kind: object) -> Make:
    return lambda g: flows.InvertibleConv1x1(num_channels, generator=g, **kind)


def fixed_linear(num_dims: int) -> Make:
    shape = (num_dims, num_dims)
    return lambda g: flows.FixedLinear(torch.randn(shape, generator=g).double(), torch.arange(num_dims))


def whitening(num_dims: int) -> Make:
    mix = torch.linspace(-1.0, 2.0, num_dims * num_dims).double().reshape(num_dims, num_dims).cos()
    return lambda g: flows.FixedLinear.whitening(5 + torch.randn(40, num_dims, generator=g).double() @ mix)


def realnvp(num_dims: int) -> Make:
    return lambda g: flows.realnvp_transform(num_dims, num_layers=3, hidden=[8], generator=g)


def mixed(g: torch.Generator) -> flows.Compose:
    """Several kinds, one behind the other, one of them turned round."""
    return flows.Compose([
        flows.PlanarFlow(2, generator=g),
        flows.Permutation.reverse(2),
        flows.Inverse(flows.MaskedAutoregressiveFlow(MaskedMLP(2, 8, 2, generator=g))),
        flows.ActNorm(2),
        flows.RadialFlow(2, generator=g),
    ])  # fmt: skip


MIXING = torch.tensor([[0.5, -1.0], [2.0, 1.5]], dtype=torch.float64)
CHECKERBOARD = flows.checkerboard_mask(2, 3)

ZOO = [
    Entry("planar", lambda g: flows.PlanarFlow(2, generator=g), (2,)),
    Entry("planar, strong", lambda g: flows.PlanarFlow(2, generator=g), (2,), spread=1.0),
    Entry("planar 5", lambda g: flows.PlanarFlow(5, generator=g), (5,)),
    Entry("planar 1", lambda g: flows.PlanarFlow(1, generator=g), (1,), spread=1.0),
    Entry("radial", lambda g: flows.RadialFlow(2, generator=g), (2,), spread=1.0),
    Entry("radial 4", lambda g: flows.RadialFlow(4, generator=g), (4,)),
    Entry("radial 1", lambda g: flows.RadialFlow(1, generator=g), (1,)),
    Entry("sylvester", lambda g: flows.SylvesterFlow(2, 2, generator=g), (2,)),
    Entry("sylvester 5", lambda g: flows.SylvesterFlow(5, 3, generator=g), (5,)),
    Entry("additive coupling", additive(flows.half_mask(2)), (2,)),
    Entry("additive coupling, images", additive(flows.channel_mask(3)), (3, 2, 2)),
    Entry("affine coupling", affine(flows.half_mask(2, first=False)), (2,)),
    Entry("affine coupling, alternating", affine(flows.alternating_mask(5)), (5,)),
    Entry("affine coupling, channels", affine(flows.channel_mask(3, first=False)), (3, 2, 2)),
    Entry("affine coupling, checkerboard", affine(CHECKERBOARD), (2, 2, 3)),
    Entry("affine coupling, sines", lambda g: flows.AffineCoupling(flows.half_mask(3), Shifted(2)), (3,)),
    Entry("actnorm", lambda g: flows.ActNorm(2), (2,)),
    Entry("actnorm, images", lambda g: flows.ActNorm(2, event_dims=3), (2, 3, 2)),
    Entry("1x1 by LU", conv1x1(3), (3, 2, 2)),
    Entry("1x1 dense", conv1x1(3, lu=False), (3, 2, 2)),
    Entry("linear by LU", conv1x1(2, event_dims=1), (2,)),
    Entry("linear dense", conv1x1(2, lu=False, event_dims=1), (2,)),
    Entry("MAF", maf(2, 16), (2,)),
    Entry("MAF 11", maf(11, [24, 33]), (11,)),
    Entry("IAF", iaf(2, 16), (2,)),
    Entry("IAF 11", iaf(11, [24, 33]), (11,)),
    Entry("permutation", lambda g: flows.Permutation([1, 0]), (2,)),
    Entry("permutation of channels", lambda g: flows.Permutation([2, 0, 1], event_dims=3), (3, 2, 1)),
    Entry("fixed affine", lambda g: flows.FixedAffine(torch.ones(2), torch.tensor([-0.5, 2.0])), (2,)),
    Entry("fixed affine, images", lambda g: flows.FixedAffine(8.0, 4.0, event_dims=3), (1, 2, 3)),
    Entry("fixed linear", lambda g: flows.FixedLinear(MIXING, MIXING[0]), (2,)),
    Entry("fixed linear 3", fixed_linear(3), (3,)),
    Entry("whitening", whitening(2), (2,)),
    Entry("RealNVP in one call", realnvp(2), (2,), spread=0.15),
    Entry("RealNVP in one call, 5", realnvp(5), (5,), spread=0.15),
    Entry("sigmoid", lambda g: flows.Sigmoid(), (2,), unit=True),
    Entry("sigmoid, images", lambda g: flows.Sigmoid(event_dims=3), (1, 2, 2), unit=True),
    Entry("composition", mixed, (2,)),
    Entry("inverse", lambda g: flows.Inverse(affine(flows.half_mask(2))(g)), (2,)),
    Entry("squeezed", lambda g: flows.Squeezed(affine(flows.channel_mask(4))(g)), (1, 4, 2)),
    Entry(
        "on the first channels",
        lambda g: flows.OnFirstChannels(affine(flows.channel_mask(2))(g), 2), (3, 2, 2),
    ),
    Entry(
        "Glow",
        lambda g: flows.glow_transform((1, 4, 4), steps_per_scale=2, hidden=6, generator=g),
        (1, 4, 4), spread=0.1,
    ),
    Entry(
        "Glow, one scale, three channels",
        lambda g: flows.glow_transform((3, 2, 6), num_scales=1, steps_per_scale=2, hidden=6, generator=g),
        (3, 2, 6), spread=0.1,
    ),
]  # fmt: skip
