"""The VAE with a flow posterior: its density, terms and weights; with priors of its own; flow prior or flow
posterior. Gradients, stacks and refusals are in files of their own."""

from __future__ import annotations

import math

import pytest
import torch
from prior_zoo import CLOSE, F64, PICTURES, randn, seeded
from small_flow_posteriors import CONDITIONAL, CONTEXT, FLOWS, build, by_hand, every, pictures, q_of
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

from dgm_course.flows import Inverse
from dgm_course.numerics import gauss_legendre
from dgm_course.priors import FlowPrior, MixturePrior
from dgm_course.vae import (
    VAE,
    Decoder,
    FlowPosteriorVAE,
    GridTerms,
    grid_terms,
    importance_log_weights,
    quadrature_log_prob,
    vae_loss,
)

GRID = gauss_legendre(-12.0, 12.0, 200, num_dims=2)


def mixture_prior(members: int | None = None) -> MixturePrior:
    prior = MixturePrior(3, 2, members=members, generator=seeded(7)).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=F64, generator=seeded(8)))
    return prior


def flow_prior(members: int | None = None) -> FlowPrior:
    prior = FlowPrior.realnvp(2, hidden=8, num_layers=2, members=members, generator=seeded(7)).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=F64, generator=seeded(8)))
    return prior


PRIORS = {"N(0, I)": lambda: None, "mixture": mixture_prior, "flow": flow_prior}

# the density ------------------------------------------------------------------------------------------------


@every
def test_log_q_is_the_change_of_variables_of_the_whole_chain(name: str, context_dim: int) -> None:
    """Against autograd's Jacobian, and the same density at the same z through the flow's inverse. V1."""
    vae, x = build(name, context_dim), pictures()
    z, log_q = vae.posterior_sample(x, num_samples=3, generator=seeded())
    z0, expected_z, expected = by_hand(vae, x, 3)
    torch.testing.assert_close(z, expected_z, **CLOSE)
    torch.testing.assert_close(log_q, expected, **CLOSE)
    assert (z - z0).abs().max() > 0.1
    torch.testing.assert_close(vae.posterior_log_prob(z, x), log_q, rtol=1e-8, atol=1e-8)
    for b in range(4):
        alone = vae.posterior_log_prob(z[:, [b]], x[[b]])
        torch.testing.assert_close(alone, log_q[:, [b]], rtol=1e-8, atol=1e-8)


@every
def test_q_integrates_to_one_and_has_the_samples_means(name: str, context_dim: int) -> None:
    """On a grid; the mean of z and of |z|^2 under it against 4000 samples, 5 standard errors.

    A radial flow's density has a kink around its centre, which costs the grid digits.
    """
    vae, x = build(name, context_dim), pictures()[:2]
    nodes, weights = GRID
    with torch.no_grad():
        mass = weights[:, None] * vae.posterior_log_prob(nodes.unsqueeze(1), x).exp()  # (N, B)
        z, _ = vae.posterior_sample(x, num_samples=4000, generator=seeded(20))
    missing = (mass.sum(0) - 1.0).abs().max().item()
    assert missing < (1e-3 if name == "radial" else 1e-6)

    def statistics(points: Tensor) -> Tensor:
        return torch.cat([points, points.square().sum(-1, keepdim=True)], -1)

    exact = mass.T @ statistics(nodes)  # (B, 3)
    drawn = statistics(z)
    assert ((drawn.mean(0) - exact).abs() < 5 * drawn.std(0) / 4000**0.5).all()


@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_context_makes_the_flow_depend_on_x(name: str) -> None:
    """From one z_0 two x are sent to different z_K; without context to the same."""
    for context_dim in (0, CONTEXT):
        vae, x = build(name, context_dim), PICTURES[[0, 31]]
        context = vae.context(x)
        z0 = randn(2).expand(2, 2)
        z, _ = vae.flow(z0, context)
        if context_dim:
            assert context.shape == (2, CONTEXT)
            torch.testing.assert_close(context, vae.encoder(x)[:, 4:], rtol=0.0, atol=0.0)
            assert (z[0] - z[1]).abs().max() > 0.01
        else:
            assert context is None and torch.equal(z[0], z[1])
        mean, log_var = vae.encode(x)
        assert torch.equal(mean, vae.encoder(x)[:, :2]) and torch.equal(log_var, vae.encoder(x)[:, 2:4])


# the terms --------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("num_samples", [1, 4])
def test_terms_at_one_draw(name: str, context_dim: int, num_samples: int) -> None:
    vae, x = build(name, context_dim), pictures()
    terms = vae.terms(x, num_samples=num_samples, generator=seeded())
    _, z, log_q = by_hand(vae, x, num_samples)
    log_p = Bernoulli(logits=vae.decoder.net(z)).log_prob(x).sum(-1).mean(0)
    kl = (log_q - Normal(torch.zeros(2, dtype=F64), 1.0).log_prob(z).sum(-1)).mean(0)
    assert terms.kl_per_dim.shape == (4, 1)
    torch.testing.assert_close(terms.kl, kl, **CLOSE)
    torch.testing.assert_close(terms.log_likelihood, log_p, **CLOSE)
    torch.testing.assert_close(terms.elbo, log_p - kl, **CLOSE)
    torch.testing.assert_close(vae_loss(terms), -(log_p - kl).mean(), **CLOSE)
    floor = vae_loss(terms, beta=0.5, free_bits=100.0)
    torch.testing.assert_close(floor, 50.0 - log_p.mean(), **CLOSE)
    log_w = vae.log_weights(x, num_samples=num_samples, generator=seeded())
    torch.testing.assert_close(log_w.mean(0), terms.elbo, **CLOSE)


@every
@pytest.mark.parametrize("prior", PRIORS)
def test_terms_and_weights_have_the_elbo_and_the_evidence_as_their_means(
    name: str, context_dim: int, prior: str
) -> None:
    """4000 draws against the grid, 5 standard errors: ELBO, log p(x|z), KL, and E[w] = p(x)."""
    assert all((gap.abs() < 5).all() for gap in off_the_grid(name, context_dim, prior, seed=20))


def off_the_grid(name: str, context_dim: int, prior: str, seed: int) -> list[Tensor]:
    vae, x = build(name, context_dim, prior=PRIORS[prior]()), pictures()[:2]
    nodes, weights = gauss_legendre(-10.0, 10.0, 120, num_dims=2)
    exact = grid_terms(vae, x, nodes, weights)
    with torch.no_grad():
        mass = weights * exact.log_q.exp()  # (B, N)
        log_likelihood = (mass * vae.decoder.log_prob(x, nodes.unsqueeze(1)).T).sum(-1)
        terms = vae.terms(x.expand(4000, *x.shape), generator=seeded(seed))  # (4000, B)
    log_w = importance_log_weights(vae, x, num_samples=4000, generator=seeded(seed + 1000))
    ratio = (log_w - quadrature_log_prob(vae, x, 80, radius=10.0).detach()).exp()
    pairs = (
        (terms.elbo, exact.elbo),
        (terms.log_likelihood, log_likelihood),
        (terms.kl, log_likelihood - exact.elbo),
        (log_w, exact.elbo),
        (ratio, torch.ones_like(ratio[0])),
    )
    return [(drawn.mean(0) - value) / drawn.std(0) * 4000**0.5 for drawn, value in pairs]


def test_the_bound_holds_and_a_better_posterior_is_closer() -> None:
    """Before and after 60 steps on the ELBO, all from the grid: never above the evidence."""
    vae, x = build("IAF", CONTEXT), pictures()
    gaps = [(terms.log_px - terms.elbo) for terms in trained(vae, x)]
    assert (gaps[0] > 0).all() and (gaps[1] > 0).all() and gaps[1].mean() < 0.5 * gaps[0].mean()


def trained(vae: FlowPosteriorVAE, x: Tensor) -> list[GridTerms]:
    nodes, weights = gauss_legendre(-9.0, 9.0, 100, num_dims=2)
    before = grid_terms(vae, x, nodes, weights)
    posterior = [*vae.encoder.parameters(), *vae.flow.parameters()]
    optimiser, generator = torch.optim.Adam(posterior, 0.03), seeded()
    for _ in range(60):
        optimiser.zero_grad()
        vae_loss(vae.terms(x, num_samples=8, generator=generator)).backward()
        optimiser.step()
    return [before, grid_terms(vae, x, nodes, weights)]


# with a prior of its own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["mixture", "flow"])
@pytest.mark.parametrize("name", ["planar", "IAF"])
def test_a_prior_of_the_model_s_own_enters_terms_weights_and_samples(name: str, prior: str) -> None:
    own = PRIORS[prior]()
    vae, x = build(name, CONTEXT if name == "IAF" else 0, prior=own), pictures()
    _, z, log_q = by_hand(vae, x, 3)
    terms = vae.terms(x, num_samples=3, generator=seeded())
    torch.testing.assert_close(terms.kl, (log_q - own.log_prob(z)).mean(0), **CLOSE)
    log_w = vae.log_weights(x, num_samples=3, generator=seeded())
    torch.testing.assert_close(log_w, vae.decoder.log_prob(x, z) + own.log_prob(z) - log_q, **CLOSE)
    generator = seeded(4)
    z = own.sample(7, generator)
    assert torch.equal(vae.sample(7, seeded(4)), vae.decoder.sample(z, generator))
    assert {id(p) for p in own.parameters()} <= {id(p) for p in vae.parameters()}


# flow prior or flow posterior -------------------------------------------------------------------------------


class Behind(Decoder):
    """p(x|g(e)): a decoder behind a flow."""

    def __init__(self, decoder: Decoder, flow: nn.Module) -> None:
        super().__init__(decoder.net)
        self.decoder, self.flow = decoder, flow

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return self.decoder.log_prob(x, self.flow(z)[0])

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.decoder.sample(self.flow(z)[0], generator)


@pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_prior_is_a_shared_flow_posterior_sample_by_sample(name: str, members: int | None) -> None:
    """The same noise gives the same weight, log-likelihood and picture; g absorbed by the decoder. V5."""
    flow = build(name, members=members).flow
    plain = build("linear", members=members, seed=1)  # for its encoder and decoder
    with_prior = VAE(plain.encoder, plain.decoder, 2, prior=FlowPrior(flow, 2))
    with_posterior = FlowPosteriorVAE(plain.encoder, Behind(plain.decoder, flow), 2, Inverse(flow))
    x, eps = pictures(members), {"num_samples": 5}
    first, second = (v.log_weights(x, **eps, generator=seeded()) for v in (with_prior, with_posterior))
    assert first.shape == ((5, 4) if members is None else (3, 5, 4))
    torch.testing.assert_close(second, first, rtol=1e-10, atol=1e-10)
    first, second = (v.terms(x, **eps, generator=seeded()) for v in (with_prior, with_posterior))
    torch.testing.assert_close(second.log_likelihood, first.log_likelihood, rtol=1e-10, atol=1e-10)
    z, log_q = with_prior.posterior_sample(x, **eps, generator=seeded())
    e, _ = with_posterior.posterior_sample(x, **eps, generator=seeded())
    torch.testing.assert_close(flow(e)[0], z, rtol=1e-10, atol=1e-10)
    # the VAE takes the entropy of q in closed form, the other one at the samples
    entropy = q_of(*with_prior.encode(x)).entropy()
    torch.testing.assert_close(second.kl - log_q.mean(-2), first.kl + entropy, rtol=1e-10, atol=1e-10)
    if not isinstance(members, int):
        pair = (v.sample(6, seeded(5)) for v in (with_prior, with_posterior))
        assert torch.equal(*pair)


def test_gradients_of_the_two_agree_as_well() -> None:
    flow = build("IAF").flow
    plain = build("linear", seed=1)
    with_prior = VAE(plain.encoder, plain.decoder, 2, prior=FlowPrior(flow, 2))
    with_posterior = FlowPosteriorVAE(plain.encoder, Behind(plain.decoder, flow), 2, Inverse(flow))
    parameters = [*plain.encoder.parameters(), *plain.decoder.parameters(), *flow.parameters()]
    gradients = [
        torch.autograd.grad(vae.log_weights(pictures(), num_samples=4, generator=seeded()).sum(), parameters)
        for vae in (with_prior, with_posterior)
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


# the model as a module --------------------------------------------------------------------------------------


def test_samples_of_the_model_do_not_ask_its_posterior() -> None:
    vae = build("IAF", CONTEXT)
    bare = VAE(nn.Linear(5, 4).double(), vae.decoder, 2)
    assert torch.equal(vae.sample(9, seeded()), bare.sample(9, seeded()))
    counts = torch.nn.functional.one_hot(
        (vae.sample(20_000, seeded(20)) @ (2.0 ** torch.arange(4, -1, -1, dtype=F64))).long(), 32
    )
    p = quadrature_log_prob(vae, PICTURES, 64).exp().detach()
    assert ((counts.double().mean(0) - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()
    assert math.isclose(p.sum().item(), 1.0, rel_tol=1e-10)
