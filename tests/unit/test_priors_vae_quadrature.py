"""A VAE with a prior of its own: samples and quadrature against sums over a grid."""

from __future__ import annotations

import math

import pytest
import small_vaes
import torch
from prior_zoo import (
    CLOSE,
    F64,
    PICTURES,
    members_or_not,
    priors,
    seeded,
    small_vae,
)
from torch import Tensor
from torch.distributions import Independent, Normal

from dgm_course.nets import member
from dgm_course.numerics import gauss_legendre
from dgm_course.priors import MixturePrior
from dgm_course.vae import (
    VAE,
    quadrature_elbo,
    quadrature_log_prob,
)

KINDS = ["autoregressive", "bernoulli", "categorical", "gaussian"]


def q_of(mean: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


# samples ----------------------------------------------------------------------------------------------------


@priors
@members_or_not
def test_samples_of_the_model_come_from_its_prior(name: str, members: int | None) -> None:
    """The frequencies of all 32 pictures in 20 000 against their exact probability, 5 standard errors."""
    vae = small_vae(name, members)
    x = vae.sample(7, seeded())
    assert x.shape == ((7, 5) if members is None else (3, 7, 5)) and not x.requires_grad and x.dtype == F64
    assert torch.equal(x, vae.sample(7, seeded()))
    assert (off_the_frequencies(vae, seed=20).abs() < 5).all()


def off_the_frequencies(vae: VAE, seed: int) -> Tensor:
    x = vae.sample(20_000, seeded(seed))
    numbers = (x @ (2.0 ** torch.arange(4, -1, -1, dtype=F64))).long()  # ([E,] n): the row in PICTURES
    counts = torch.nn.functional.one_hot(numbers, 32).double().mean(-2)
    p = quadrature_log_prob(vae, PICTURES, 96).exp().detach()
    return (counts - p) / (p * (1 - p) / 20_000).sqrt()


def test_a_prior_that_a_stack_shares_gives_every_member_latents_of_its_own() -> None:
    stack = small_vaes.small_vae(seeded(1), 3, 2, "gaussian")
    prior = MixturePrior(3, 2, generator=seeded()).double()
    with torch.no_grad():
        prior.means.add_(50.0)  # no N(0, I)
    vae = VAE(stack.encoder, stack.decoder, 2, prior=prior)
    seen = []
    vae.decoder.sample = lambda z, generator=None: seen.append(z) or z  # type: ignore[method-assign]
    vae.sample(4, seeded())
    assert seen[0].shape == (3, 4, 2) and len(seen[0].flatten(0, 1).unique(dim=0)) == 12
    assert (seen[0] > 30).all()
    x = PICTURES[:3]
    terms = quadrature_elbo(vae, x, 8)
    for e in range(3):
        alone = quadrature_elbo(member(vae, e), x, 8)
        torch.testing.assert_close(terms.elbo[e], alone.elbo, **CLOSE)


# quadrature -------------------------------------------------------------------------------------------------

GRIDS = {1: gauss_legendre(-13.0, 13.0, 500), 2: gauss_legendre(-9.0, 9.0, 180, num_dims=2)}


@priors
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quadrature_against_sums_over_another_grid(name: str, latent_dim: int) -> None:
    """ELBO and evidence from ``log_joint`` and ``log q`` on one wide grid of z."""
    vae, x = small_vae(name, latent_dim=latent_dim), PICTURES[::9]
    z, weights = GRIDS[latent_dim]
    log_joint = vae.log_joint(x, z.unsqueeze(1))  # (N, B)
    mean, log_var = vae.encode(x)
    log_q = q_of(mean, log_var).log_prob(z.unsqueeze(1))
    elbo = (weights[:, None] * log_q.exp() * (log_joint - log_q)).sum(0)
    terms = quadrature_elbo(vae, x, 64)
    assert terms.kl_per_dim.shape == (4, 1)
    torch.testing.assert_close(terms.elbo, elbo, rtol=1e-6, atol=1e-6)
    log_p = torch.logsumexp(weights.log()[:, None] + log_joint, 0)
    torch.testing.assert_close(quadrature_log_prob(vae, x), log_p, rtol=1e-6, atol=1e-6)
    assert (terms.elbo < log_p).all()


@priors
@members_or_not
def test_the_probabilities_of_all_pictures_add_up(name: str, members: int | None) -> None:
    total = quadrature_log_prob(small_vae(name, members), PICTURES, 96).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_quadrature_takes_further_batch_dimensions(kind: str, with_prior: bool) -> None:
    """As many nodes as rows, too: no shape hides a mix-up."""
    if with_prior:
        vae = small_vae("mixture", latent_dim=1, kind=kind)
    else:
        vae = small_vaes.small_vae(seeded(1), None, 1, kind)
    x = PICTURES[:12].reshape(3, 4, 5)
    for num_nodes in (3, 4, 7):
        many = quadrature_elbo(vae, x, num_nodes)
        assert many.log_likelihood.shape == (3, 4) and many.kl_per_dim.shape == (3, 4, 1)
        for row, elbo in zip(x, many.elbo, strict=True):
            torch.testing.assert_close(elbo, quadrature_elbo(vae, row, num_nodes).elbo, **CLOSE)


def test_quadrature_is_differentiable_in_the_prior() -> None:
    """The slope of the mean ELBO along a random direction of the prior, against central differences."""
    vae, x = small_vae("maf"), PICTURES[:6]
    parameters = list(vae.prior.parameters())
    generator = seeded(7)
    directions = [torch.randn(p.shape, dtype=F64, generator=generator) for p in parameters]
    gradients = torch.autograd.grad(quadrature_elbo(vae, x, 12).elbo.mean(), parameters)
    slope = sum((g * v).sum() for g, v in zip(gradients, directions, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
            values.append(quadrature_elbo(vae, x, 12).elbo.mean())
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_the_evidence_of_a_wider_prior_needs_a_wider_grid() -> None:
    """``radius``: two thirds of this prior lie beyond 8, and are missed by the default."""
    vae = small_vae("mixture", latent_dim=1)
    with torch.no_grad():
        vae.prior.means.copy_(torch.tensor([[-12.0], [0.0], [12.0]], dtype=F64))
        vae.prior.log_vars.zero_()
        vae.prior.logits.zero_()
        found = [quadrature_log_prob(vae, PICTURES, 200, radius=r).exp().sum().item() for r in (8.0, 20.0)]
    outside = 2 / 3 * 0.5 * math.erfc(-4 / 2**0.5)  # two components' mass beyond 4 standard deviations
    assert found == pytest.approx([1 - outside, 1.0], rel=1e-9)
