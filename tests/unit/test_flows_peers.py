"""With the same weights our flows have the densities of zuko, nflows and normflows (float64, to 1e-6).

The peers' own networks stand in as our conditioners; copied are only the few parameters of the simple layers.
Where a peer's scale is another function of the network's output than ours, ``log_scale=`` says so.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from dgm_course.flows import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Flow,
    Inverse,
    InverseAutoregressiveFlow,
    InvertibleConv1x1,
    MaskedAutoregressiveFlow,
    RadialFlow,
    Transform,
    half_mask,
    iaf_parameters,
    planar,
    radial,
)
from dgm_course.nets import MaskedMLP

DIMS, BATCH = 6, 11


def peer(name: str) -> ModuleType:
    package = name.split(".")[0]
    pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[bench]'")
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def seeded_float64() -> Iterator[None]:
    """The peers draw their weights from the global generator, and some make tensors of the default dtype."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(dtype)


def moved_away(module: nn.Module) -> nn.Module:
    """Parameters that are not at their start, where many layers are the identity."""
    for parameter in module.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def assert_close(found: object, wanted: object) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def log_sigmoid(u: Tensor) -> Tensor:
    """log(sigmoid(u + 2) + 1e-3), the scale of nflows' coupling layers and of normflows' MAF."""
    return torch.log(torch.sigmoid(u + 2.0) + 1e-3)


def log_softplus(u: Tensor) -> Tensor:
    """log(softplus(u) + 1e-3), the scale of nflows' MAF."""
    return torch.log(nn.functional.softplus(u) + 1e-3)


def soft_clip(u: Tensor) -> Tensor:
    """zuko's log-scale, within +-log(1000)."""
    return u / (1.0 + (u / math.log(1e-3)).abs())


class Pairs(nn.Module):
    """A peer's autoregressive network, d -> 2 d or (d, 2), as (d, 2) with the shift in front."""

    def __init__(self, net: Callable[[Tensor], Tensor], shift: int) -> None:
        super().__init__()
        self.net, self.shift = net, shift

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.net(x).reshape(*x.shape, 2)
        return torch.stack([pairs[..., self.shift], pairs[..., 1 - self.shift]], dim=-1)


class Interleaved(nn.Module):
    """A peer's conditioner with (shift, scale) side by side, reordered: all shifts, then all scales."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return torch.cat([out[:, 0::2], out[:, 1::2]], dim=1)


def ours(transform: Transform, event: int | tuple[int, ...] = DIMS) -> Flow:
    return Flow(transform, event)


# nflows: transforms go from data to noise -----------------------------------------------------------------


def against_nflows(theirs: nn.Module, transform: Transform, *event: int) -> None:
    flow = peer("nflows.flows").Flow(theirs, peer("nflows.distributions").StandardNormal(event))
    x = torch.randn(BATCH, *event)
    assert_close(ours(transform, event).log_prob(x), flow.log_prob(x))


def test_nflows_maf() -> None:
    transforms = peer("nflows.transforms")
    theirs = moved_away(transforms.MaskedAffineAutoregressiveTransform(DIMS, 16))
    net = Pairs(theirs.autoregressive_net, shift=1)
    transform = Inverse(InverseAutoregressiveFlow(net, log_scale=log_softplus))
    against_nflows(theirs, transform, DIMS)
    z = torch.randn(BATCH, DIMS)
    assert_close(transform(z), theirs.inverse(z))


def test_nflows_affine_and_additive_coupling() -> None:
    transforms, nets = peer("nflows.transforms"), peer("nflows.nn.nets")
    mask = half_mask(DIMS)  # True passes; nflows moves where it is positive
    kinds = [
        (transforms.AffineCouplingTransform, lambda net: AffineCoupling(mask, net, log_scale=log_sigmoid)),
        (transforms.AdditiveCouplingTransform, lambda net: AdditiveCoupling(mask, net)),
    ]
    for kind, build in kinds:
        theirs = moved_away(kind((~mask).long(), lambda a, b: nets.ResidualNet(a, b, hidden_features=8)))
        against_nflows(theirs, Inverse(build(theirs.transform_net)), DIMS)


@pytest.mark.parametrize("event", [(DIMS,), (DIMS, 3, 4)])
def test_nflows_actnorm(event: tuple[int, ...]) -> None:
    theirs = peer("nflows.transforms").ActNorm(DIMS).eval()  # in training mode the first call fits it
    layer = ActNorm(DIMS, event_dims=len(event))
    layer.shift.copy_(theirs.shift.normal_())
    layer.log_scale.copy_(theirs.log_scale.normal_())
    against_nflows(theirs, Inverse(layer), *event)


def test_nflows_lu_convolution() -> None:
    theirs = moved_away(peer("nflows.transforms").OneByOneConvolution(DIMS, identity_init=False))
    theirs.bias.zero_()
    layer = InvertibleConv1x1(DIMS, lu=False)
    layer.dense.copy_(theirs.weight() @ torch.eye(DIMS)[theirs.permutation._permutation])
    against_nflows(theirs, layer, DIMS, 3, 4)


# normflows: flows go from noise to data -------------------------------------------------------------------


def against_normflows(theirs: nn.Module, transform: Transform, *event: int) -> None:
    x = torch.randn(BATCH, *event)
    z, log_det = theirs.inverse(x)
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(event), 1.0), len(event))
    assert_close(ours(transform, event).log_prob(x), base.log_prob(z) + log_det)
    ours_forward, their_forward = transform(z), theirs(z)
    assert_close(ours_forward[0], their_forward[0])
    assert_close(ours_forward[1], their_forward[1].expand(BATCH))


def test_normflows_planar() -> None:
    theirs = moved_away(peer("normflows").flows.Planar((DIMS,)))
    u, w = theirs.u[0], theirs.w[0]
    along = u @ w
    u = u + (nn.functional.softplus(along) - 1.0 - along) * w / w.square().sum()  # their constraint
    z = torch.randn(BATCH, DIMS)
    assert_close(planar(z, u, w, theirs.b), theirs(z))


def test_normflows_radial() -> None:
    theirs = moved_away(peer("normflows").flows.Radial((DIMS,)))
    alpha = theirs.alpha.abs()
    beta = nn.functional.softplus(theirs.beta) - alpha
    z = torch.randn(BATCH, DIMS)
    wanted = theirs(z)
    assert_close(radial(z, theirs.z_0[0], alpha, beta), wanted)
    layer = RadialFlow(DIMS)
    layer.z0.copy_(theirs.z_0[0])
    layer.log_alpha.copy_(alpha.log().squeeze())
    layer.raw_beta.copy_(theirs.beta.squeeze())
    assert_close(layer(z), wanted)


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_normflows_affine_coupling(scale_map: str) -> None:
    normflows = peer("normflows")
    net = moved_away(normflows.nets.MLP([DIMS // 2, 8, DIMS]))
    theirs = normflows.flows.AffineCouplingBlock(net, scale_map=scale_map)
    log_scale = {
        "exp": lambda u: u,
        "sigmoid": lambda u: -nn.functional.logsigmoid(u + 2.0),
        "sigmoid_inv": lambda u: nn.functional.logsigmoid(u + 2.0),
    }[scale_map]
    mask = torch.arange(DIMS) < DIMS // 2
    against_normflows(theirs, AffineCoupling(mask, Interleaved(net), log_scale=log_scale), DIMS)


def test_normflows_iaf() -> None:
    """What normflows calls MAF samples in one pass: an inverse autoregressive flow."""
    theirs = moved_away(peer("normflows").flows.MaskedAffineAutoregressive(DIMS, 16))
    net = Pairs(theirs.autoregressive_net, shift=1)
    against_normflows(theirs, InverseAutoregressiveFlow(net, log_scale=log_sigmoid), DIMS)


@pytest.mark.parametrize("event", [(DIMS,), (DIMS, 3, 4)])
def test_normflows_actnorm(event: tuple[int, ...]) -> None:
    theirs = peer("normflows").flows.ActNorm((DIMS,) + (1,) * (len(event) - 1))
    theirs.data_dep_init_done.fill_(1.0)
    layer = ActNorm(DIMS, event_dims=len(event))
    layer.shift.copy_(theirs.t.normal_().flatten())
    layer.log_scale.copy_(theirs.s.normal_().flatten())
    against_normflows(theirs, layer, *event)


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated:UserWarning")  # normflows calls it
@pytest.mark.parametrize("lu", [True, False])
def test_normflows_convolution(lu: bool) -> None:
    theirs = moved_away(peer("normflows").flows.Invertible1x1Conv(DIMS, use_lu=lu))
    layer = InvertibleConv1x1(DIMS, lu=lu)
    if lu:
        pairs = ("permutation", "P"), ("sign", "sign_S"), ("log_s", "log_S"), ("lower", "L"), ("upper", "U")
        for name, their_name in pairs:
            getattr(layer, name).copy_(getattr(theirs, their_name))
    else:
        layer.dense.copy_(theirs.W)
    against_normflows(theirs, layer, DIMS, 3, 4)


# zuko: transforms go from data to noise -------------------------------------------------------------------


def test_zuko_maf() -> None:
    zuko = peer("zuko")
    flow = moved_away(zuko.flows.MAF(DIMS, transforms=1, hidden_features=(16, 20)))
    hyper = flow.transform.transforms[0].hyper
    transform = Inverse(InverseAutoregressiveFlow(Pairs(hyper, shift=0), log_scale=soft_clip))
    x = torch.randn(BATCH, DIMS)
    assert_close(ours(transform).log_prob(x), flow().log_prob(x))
    assert_close(transform(x)[0], flow().transform.inv(x))


def test_zuko_real_nvp() -> None:
    coupling = peer("zuko.flows.coupling")
    mask = half_mask(DIMS)
    theirs = moved_away(coupling.GeneralCouplingTransform(DIMS, mask=mask, hidden_features=(16,)))
    layer = AffineCoupling(mask, Interleaved(theirs.hyper), log_scale=soft_clip)
    x = torch.randn(BATCH, DIMS)
    assert_close(Inverse(layer).inverse(x), theirs().call_and_ladj(x))


def test_zuko_lu() -> None:
    factors = torch.randn(DIMS, DIMS)
    theirs = peer("zuko").transforms.LULinearTransform(factors)
    layer = InvertibleConv1x1(DIMS, lu=False, event_dims=1)
    layer.dense.copy_(theirs.L @ theirs.U)
    x = torch.randn(BATCH, DIMS)
    assert_close(layer.inverse(x), theirs.call_and_ladj(x))


# our network, their inversion -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nflows", "normflows", "zuko"])
def test_the_peers_invert_our_network_as_we_do(name: str) -> None:
    net = MaskedMLP(DIMS, [16, 20], 2, generator=torch.Generator().manual_seed(1)).double()
    z = torch.randn(BATCH, DIMS)
    if name == "zuko":
        zuko = peer(name)
        theirs = zuko.flows.MaskedAutoregressiveTransform(DIMS)
        theirs.hyper = nn.Sequential(net, nn.Flatten(-2))
        found, log_scale = theirs().inv(z), soft_clip
    else:
        if name == "nflows":
            kind, log_scale = peer("nflows.transforms").MaskedAffineAutoregressiveTransform, log_softplus
        else:
            kind, log_scale = peer(name).flows.MaskedAffineAutoregressive, log_sigmoid
        theirs = kind(DIMS, 16)
        theirs.autoregressive_net = WithContext(net)
        found = theirs.inverse(z)[0]
    value, _ = InverseAutoregressiveFlow(net, log_scale=log_scale).inverse(z)
    assert_close(value, found)
    # and the same map with sigma and mu of the other direction is a MAF: Ledger F5
    maf = MaskedAutoregressiveFlow(Reciprocal(net, log_scale), log_scale=lambda u: u)
    assert_close(maf(z)[0], found)


class WithContext(nn.Module):
    """Called with a context, None; (scale, shift) side by side."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x).flip(-1).flatten(-2)


class Reciprocal(nn.Module):
    """Shift and log-scale of the map the other way round."""

    def __init__(self, net: nn.Module, log_scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.log_scale = net, log_scale

    def forward(self, x: Tensor) -> Tensor:
        shift, raw = self.net(x).unbind(-1)
        return torch.stack(iaf_parameters(shift, self.log_scale(raw)), dim=-1)
