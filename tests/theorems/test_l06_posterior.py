"""Lecture 06: V1 (density of a flow posterior), V2 (its bound), V3 (which direction is fast)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from ledger import proves
from torch import Tensor, nn

from dgm_course import data
from dgm_course.flows import (
    Compose,
    Flow,
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    PlanarFlow,
    RadialFlow,
    Transform,
    autoregressive_transform,
    realnvp_transform,
    reverse_kl,
    solve_sequentially,
)
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.nets import MLP, MaskedMLP
from dgm_course.numerics import gauss_legendre
from dgm_course.train import fit
from dgm_course.vae import BernoulliDecoder, FlowPosteriorVAE


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stir(module: nn.Module, scale: float = 0.3, seed: int = 1) -> nn.Module:
    """Away from the identity, where the flows start."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def with_iaf(context_dim: int = 3, scale: float = 0.3) -> FlowPosteriorVAE:
    flow = autoregressive_transform(
        "iaf", 2, num_layers=3, hidden=(16,), context=context_dim, generator=seeded()
    )
    encoder = MLP([6, 16, 4 + context_dim], generator=seeded(2))
    decoder = BernoulliDecoder(MLP([2, 16, 6], generator=seeded(3)))
    return stir(FlowPosteriorVAE(encoder, decoder, 2, flow, context_dim=context_dim), scale)


X = (torch.rand(3, 6, generator=seeded(4)) > 0.5).double()

# V1 -------------------------------------------------------------------------------------------------------

Sampler = Callable[..., tuple[Tensor, Tensor]]


def log_det_added(model: FlowPosteriorVAE, x: Tensor, **settings: object) -> tuple[Tensor, Tensor]:
    """log q_0(z_0) + sum log|det|: the density of the map run the other way."""
    z, log_q = model.posterior_sample(x, **settings)
    _, log_det_back = model.flow.inverse(z, model.context(x).unsqueeze(0))
    return z, log_q - 2 * log_det_back  # log_det of forward is minus that of inverse


def gaussian_at_the_end(model: FlowPosteriorVAE, x: Tensor, **settings: object) -> tuple[Tensor, Tensor]:
    """The encoder's Gaussian evaluated at z_K in place of z_0."""
    z, log_q = model.posterior_sample(x, **settings)
    mean, log_var = model.encode(x)
    z0, log_det_back = model.flow.inverse(z, model.context(x).unsqueeze(0))
    right = gaussian_log_prob(z0, mean, log_var) + log_det_back
    assert torch.allclose(right, log_q)
    return z, gaussian_log_prob(z, mean, log_var) + log_det_back


@proves("V1", right=FlowPosteriorVAE.posterior_sample,
        wrong={"log_det_added": log_det_added, "gaussian_at_the_end": gaussian_at_the_end})  # fmt: skip
def test_density_of_the_last_step(variant: Sampler) -> None:
    """Against log q_0 at the same noise and the autograd Jacobian of the whole chain, to 1e-10."""
    model = with_iaf()
    with torch.no_grad():
        z, log_q = variant(model, X, num_samples=4, generator=seeded(7))  # (4, 3, 2), (4, 3)
        mean, log_var = model.encode(X)
        noise = torch.randn(4, 3, 2, generator=seeded(7), dtype=torch.float64)
        z0, context = mean + torch.exp(0.5 * log_var) * noise, model.context(X)
    for k in range(4):
        for i in range(3):
            start, row = z0[k, i], context[i]
            torch.testing.assert_close(z[k, i], model.flow(start, row)[0], rtol=0, atol=1e-10)
            jacobian = torch.autograd.functional.jacobian(lambda z, row=row: model.flow(z, row)[0], start)
            base = torch.distributions.Normal(mean[i], torch.exp(0.5 * log_var[i])).log_prob(start).sum()
            exact = base - torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(log_q[k, i], exact, rtol=0, atol=1e-10)


def test_v1_the_posterior_integrates_to_one() -> None:
    model = with_iaf(scale=0.1)
    nodes, weights = gauss_legendre(-12.0, 12.0, 300, num_dims=2)
    with torch.no_grad():
        log_q = model.posterior_log_prob(nodes.unsqueeze(1), X)  # (N, 3)
    torch.testing.assert_close(weights @ log_q.exp(), torch.ones(3).double(), rtol=0, atol=1e-6)


# V2 -------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[int], Transform]] = {
    "planar": lambda depth: Compose([PlanarFlow(2, generator=seeded(k)) for k in range(depth)]),
    "radial": lambda depth: Compose([RadialFlow(2, generator=seeded(k)) for k in range(depth)]),
    "coupling": lambda depth: realnvp_transform(2, num_layers=depth, hidden=(16,), generator=seeded()),
    "iaf": lambda depth: autoregressive_transform(
        "iaf", 2, num_layers=depth, hidden=(16,), generator=seeded()
    ),
}
TARGET = data.banana_target()


def fitted(kind: str, depth: int, steps: int) -> Flow:
    """A flow on a standard normal base, fitted to the banana by its bound."""
    flow = Flow(KINDS[kind](depth).double(), 2)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return reverse_kl(flow, TARGET.log_density, 128, generator=generator).mean()

    fit(loss, flow.parameters(), steps=steps, lr=2e-2, lr_decay_from=0.5, progress=False)
    return flow.requires_grad_(False)


def without_log_det(
    flow: Flow, log_target: Callable[[Tensor], Tensor], num_samples: int, *, generator: torch.Generator
) -> Tensor:
    """log q_0(z_0) in place of log q_K(z_K)."""
    z0 = torch.randn(num_samples, 2, generator=generator, dtype=torch.float64)
    return gaussian_log_prob(z0, 0.0, 0.0) - log_target(flow.transform(z0)[0])


@proves("V2", right=reverse_kl, wrong={"without_log_det": without_log_det})
def test_the_bound_misses_log_z_by_the_kl(variant: Callable[..., Tensor]) -> None:
    """40 000 samples of z_0 against log Z - KL(q_K || p) by quadrature of the flow's density."""
    flow = fitted("coupling", 4, 200)
    nodes, weights = gauss_legendre(-7.0, 7.0, 400, num_dims=2)
    log_q = flow.log_prob(nodes)
    gap = (weights * log_q.exp() * (log_q - (TARGET.log_density(nodes) - TARGET.log_normaliser))).sum()
    elbo = -variant(flow, TARGET.log_density, 40_000, generator=seeded(11))
    error = float(elbo.std()) / 200
    assert abs(float(elbo.mean()) - (TARGET.log_normaliser - float(gap))) < 5 * error
    assert 0 < gap < 10


@pytest.mark.parametrize("kind", KINDS)
def test_v2_deeper_flows_come_closer_to_log_z(kind: str) -> None:
    """ELBO <= log Z at every depth (5 standard errors), and a smaller gap for the deep flow."""
    gaps = []
    for depth in (1, 8):
        loss = reverse_kl(fitted(kind, depth, 400), TARGET.log_density, 20_000, generator=seeded(3))
        gap, error = float(loss.mean()) + TARGET.log_normaliser, float(loss.std()) / 20_000**0.5
        assert gap > -5 * error
        gaps.append(gap)
    assert gaps[1] < 0.8 * gaps[0]


# V3 -------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A network that counts its passes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.passes += 1
        return self.net(*inputs)


def maf_sampled_in_one_pass(net: Counting, z: Tensor) -> Tensor:
    """Shift and scale read off at the noise: not the MAF's map."""
    shift, raw = net(z).unbind(-1)
    return shift + z * torch.exp(3.0 * torch.tanh(raw / 3.0))


def maf_sampled_in_sequence(net: Counting, z: Tensor) -> Tensor:
    layer = MaskedAutoregressiveFlow(net)
    return solve_sequentially(net, layer.step, z)[0]


@proves("V3", right=maf_sampled_in_sequence, wrong={"maf_sampled_in_one_pass": maf_sampled_in_one_pass})
def test_maf_samples_in_d_passes(variant: Callable[[Counting, Tensor], Tensor]) -> None:
    """d passes, and the result is mapped back to the noise in one."""
    net = Counting(stir(MaskedMLP(6, [24], 2, generator=seeded())))
    z = torch.randn(5, 6, generator=seeded(1), dtype=torch.float64)
    with torch.no_grad():
        x = variant(net, z)
        passes, net.passes = net.passes, 0
        back, _ = MaskedAutoregressiveFlow(net).inverse(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
    assert net.passes == 1 and passes in (6, 7)  # a last pass may read off the scales


def test_v3_iaf_samples_and_scores_its_samples_in_one_pass_a_step() -> None:
    nets = [Counting(stir(MaskedMLP(6, [24], 2, generator=seeded(k)))) for k in range(3)]
    flow = Flow(Compose([InverseAutoregressiveFlow(net) for net in nets]), 6)
    with torch.no_grad():
        x, log_q = flow.rsample_with_log_prob((50,), generator=seeded(1))
    assert [net.passes for net in nets] == [1, 1, 1]
    torch.testing.assert_close(log_q, flow.log_prob(x), rtol=0, atol=1e-9)
    assert math.isfinite(float(log_q.sum()))
