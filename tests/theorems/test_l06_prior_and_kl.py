"""Lecture 06: V4 (four points), V5 (flow prior and flow posterior), V6 (forward and reverse KL)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from ledger import proves
from torch import Tensor, nn

from dgm_course import data
from dgm_course.divergences import kl_divergence
from dgm_course.flows import Flow, Inverse, Transform, autoregressive_transform, realnvp_transform, reverse_kl
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.nets import MLP, Linear
from dgm_course.numerics import gauss_legendre
from dgm_course.priors import FlowPrior
from dgm_course.train import fit
from dgm_course.vae import (
    VAE,
    BernoulliDecoder,
    Decoder,
    FlowPosteriorVAE,
    GridTerms,
    four_point_vae,
    grid_terms,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# V4 -------------------------------------------------------------------------------------------------------

POINTS, CEILING = torch.eye(4, dtype=torch.float64), -math.log(4)


@cache
def four_points(num_steps: int) -> GridTerms:
    """Posteriors fitted by the bound, judged on a grid."""
    model = four_point_vae(num_steps, generator=seeded(1)).double()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return -model.terms(POINTS, num_samples=32, generator=generator).elbo.mean()

    fit(loss, model.parameters(), steps=800, lr=2e-2, lr_decay_from=0.5, clip_norm=10.0, progress=False)
    return grid_terms(model, POINTS, *gauss_legendre(-5.5, 5.5, 300, num_dims=2))


def gaussian_posterior_passed_off_as_flow(num_steps: int) -> GridTerms:
    return four_points(0)


@proves("V4", right=four_points,
        wrong={"gaussian_posterior_passed_off_as_flow": gaussian_posterior_passed_off_as_flow})  # fmt: skip
def test_flows_tile_the_prior_where_gaussians_leave_holes(variant: Callable[[int], GridTerms]) -> None:
    """By quadrature: ELBO <= -log 4, and gap and marginal KL fall from Gaussians to two and four steps."""
    terms = [four_points(0), variant(2), variant(4)]
    for found in terms:
        torch.testing.assert_close(found.log_px, torch.full_like(found.log_px, CEILING), rtol=0, atol=1e-6)
        torch.testing.assert_close(found.mass, torch.ones_like(found.mass), rtol=0, atol=1e-3)
        assert float(found.elbo.mean()) < CEILING
    gaps = [CEILING - float(found.elbo.mean()) for found in terms]
    holes = [float(found.marginal_kl) for found in terms]
    assert gaps[0] > 0.3 and gaps[1] < 0.7 * gaps[0] and gaps[2] < 0.5 * gaps[1]
    assert holes[0] > 0.2 and holes[1] < 0.7 * holes[0] and holes[2] < 0.6 * holes[1]


def test_v4_the_gap_is_the_mean_kl_from_the_true_posteriors() -> None:
    """log p(x) - ELBO against KL(q(z|x) || 4 p(x|z) p(z)), the second on another grid."""
    model = four_point_vae(3, sharpness=5.0, generator=seeded(4)).double()
    found = grid_terms(model, POINTS, *gauss_legendre(-7.0, 7.0, 260, num_dims=2))
    other_nodes, other_weights = gauss_legendre(-6.5, 6.5, 280, num_dims=2)
    with torch.no_grad():
        log_q = model.posterior_log_prob(other_nodes.unsqueeze(1), POINTS).mT  # (4, N)
    true = model.decoder.log_probs(other_nodes).mT + gaussian_log_prob(other_nodes, 0.0, 0.0) + math.log(4)
    gap = kl_divergence(log_q, true, other_weights)
    torch.testing.assert_close(CEILING - found.elbo, gap, rtol=1e-4, atol=1e-4)


# V5 -------------------------------------------------------------------------------------------------------


class Behind(nn.Module):
    """A decoder's network that reads g(e) in place of z."""

    def __init__(self, net: nn.Module, flow: Transform) -> None:
        super().__init__()
        self.net, self.flow = net, flow

    def forward(self, e: Tensor) -> Tensor:
        return self.net(self.flow(e)[0])


def both_models(flow: Transform) -> tuple[VAE, FlowPosteriorVAE]:
    """The flow in the prior; the same flow turned round in the posterior, and absorbed by the decoder."""
    encoder = MLP([6, 16, 4], generator=seeded(1)).double()
    net = MLP([2, 16, 6], generator=seeded(2)).double()
    with_prior = VAE(encoder, BernoulliDecoder(net), 2, prior=FlowPrior(flow, 2))
    with_posterior = FlowPosteriorVAE(encoder, BernoulliDecoder(Behind(net, flow)), 2, Inverse(flow))
    return with_prior, with_posterior


def stirred_realnvp(context: int = 0) -> Transform:
    flow = realnvp_transform(2, num_layers=3, hidden=(16,), context=context, generator=seeded(3)).double()
    with torch.no_grad():
        for k, parameter in enumerate(flow.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(k), dtype=torch.float64))
    return flow


def flow_turned_round(flow: Transform) -> tuple[VAE, FlowPosteriorVAE]:
    """z and e swapped, as the slide has it: the posterior moved by g where f belongs."""
    with_prior, with_posterior = both_models(flow)
    return with_prior, FlowPosteriorVAE(with_posterior.encoder, with_posterior.decoder, 2, flow)


@proves("V5", right=both_models, wrong={"z_and_base_swapped": flow_turned_round})
def test_flow_prior_and_flow_posterior_have_one_bound(
    variant: Callable[[Transform], tuple[VAE, FlowPosteriorVAE]],
) -> None:
    """The same noise, sample by sample: log p(x, z) - log q(z|x) agree to 1e-10."""
    x = (torch.rand(5, 6, generator=seeded(6)) > 0.5).double()
    with_prior, with_posterior = variant(stirred_realnvp())
    with torch.no_grad():
        settings = {"num_samples": 50}
        first = with_prior.log_weights(x, **settings, generator=seeded(8))
        second = with_posterior.log_weights(x, **settings, generator=seeded(8))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


class Bananas(Decoder):
    """p(x|z) p(z) is a normalised band, bent up for x = (1, 0) and down for (0, 1): log p(x) = 0."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        bands = [data.banana_target(bend=bend) for bend in (0.8, -0.8)]
        log_p = torch.stack([band.log_density(z) - band.log_normaliser for band in bands], -1)
        return (x * log_p).sum(-1) - gaussian_log_prob(z, 0.0, 0.0)


def gap_of_bananas(num_steps: int, context_dim: int) -> float:
    """log p(x) - ELBO, averaged over both x, by quadrature."""
    pair = torch.eye(2, dtype=torch.float64)
    settings = {"num_layers": num_steps, "hidden": (64,), "context": context_dim}
    flow = autoregressive_transform("iaf", 2, **settings, generator=seeded(1))
    encoder = Linear(2, 4 + context_dim, generator=seeded(2))
    model = FlowPosteriorVAE(encoder, Bananas(), 2, flow, context_dim=context_dim).double()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return -model.terms(pair, num_samples=64, generator=generator).elbo.mean()

    fit(loss, model.parameters(), steps=800, lr=2e-2, lr_decay_from=0.5, clip_norm=10.0, progress=False)
    found = grid_terms(model, pair, *gauss_legendre(-9.0, 9.0, 300, num_dims=2))
    return -float(found.elbo.mean())


def test_v5_a_flow_that_reads_x_is_strictly_richer() -> None:
    """Two bands that cross: one step that reads x bends either way, four shared steps cannot do both."""
    assert gap_of_bananas(1, context_dim=8) < 0.05
    assert gap_of_bananas(4, context_dim=0) > 0.15


# V6 -------------------------------------------------------------------------------------------------------

TARGET = data.two_peaks_target(distance=6.0, sd=0.5)


def log_pi(x: Tensor) -> Tensor:
    return TARGET.log_density(x) - TARGET.log_normaliser


def sample_pi(n: int, generator: torch.Generator) -> Tensor:
    side = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1.0
    noise = 0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return noise + torch.cat([3.0 * side, torch.zeros_like(side)], -1)


def fit_forward() -> Flow:
    """A single MAF layer by maximum likelihood on samples of pi."""
    settings = {"num_layers": 1, "hidden": (16,), "generator": seeded()}
    flow = Flow(autoregressive_transform("maf", 2, **settings).double(), 2)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return -flow.log_prob(sample_pi(256, generator)).mean()

    fit(loss, flow.parameters(), steps=400, lr=2e-2, lr_decay_from=0.5, progress=False)
    return flow.requires_grad_(False)


def fit_reverse() -> Flow:
    """A single IAF layer by its own samples and the unnormalised density, started nearer to one peak."""
    settings = {"num_layers": 1, "hidden": (16,), "generator": seeded()}
    flow = Flow(autoregressive_transform("iaf", 2, **settings).double(), 2)
    with torch.no_grad():
        flow.transform[0].net.layers[-1].bias[0] = 2.0  # the shift of the first dimension

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return reverse_kl(flow, TARGET.log_density, 256, generator=generator).mean()

    fit(loss, flow.parameters(), steps=400, lr=2e-2, lr_decay_from=0.5, progress=False)
    return flow.requires_grad_(False)


Fits = tuple[Flow, Flow]


def directions_swapped() -> Fits:
    forward, reverse = fit_forward(), fit_reverse()
    return reverse, forward


@proves("V6", right=lambda: (fit_forward(), fit_reverse()),
        wrong={"kl_directions_swapped": directions_swapped})  # fmt: skip
def test_forward_covers_and_reverse_seeks(variant: Callable[[], Fits]) -> None:
    """Masses at either peak, and both KLs, by quadrature: each fit is best by its own."""
    forward, reverse = variant()
    nodes, weights = gauss_legendre(-30.0, 30.0, 900, num_dims=2)
    truth = log_pi(nodes)
    right = nodes[:, 0] > 0
    table = {}
    for name, flow in (("forward", forward), ("reverse", reverse)):
        log_p = flow.log_prob(nodes)
        mass = weights * log_p.exp()
        torch.testing.assert_close(mass.sum(), torch.ones(()).double(), rtol=0, atol=1e-6)
        share = float(mass[right].sum())
        table[name] = (
            float(kl_divergence(truth, log_p, weights)), float(kl_divergence(log_p, truth, weights)), share,
        )  # fmt: skip
    assert table["forward"][0] < table["reverse"][0] and table["reverse"][1] < table["forward"][1]
    assert 0.4 < table["forward"][2] < 0.6  # both peaks
    assert not 0.02 < table["reverse"][2] < 0.98  # one of them
    assert abs(table["reverse"][1] - math.log(2)) < 0.05  # the price of leaving the other out
