"""A VAE with a prior of its own: terms, weights, losses, state, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

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
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.bounds import iwae_bound
from dgm_course.nets import MLP, member
from dgm_course.priors import MixturePrior, Prior, StandardNormalPrior
from dgm_course.vae import (
    VAE,
    BernoulliDecoder,
    dreg_loss,
    importance_log_weights,
    quadrature_elbo,
    quadrature_log_prob,
    vae_loss,
)

KINDS = ["autoregressive", "bernoulli", "categorical", "gaussian"]


def q_of(mean: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


# terms ------------------------------------------------------------------------------------------------------


@priors
@pytest.mark.parametrize("num_samples", [1, 4])
def test_terms_at_one_draw(name: str, num_samples: int) -> None:
    """The KL is one term: the entropy of q in closed form, log p(z) at the samples of the likelihood."""
    vae, x = small_vae(name), PICTURES[:6]
    terms = vae.terms(x, num_samples=num_samples, generator=seeded())
    mean, log_var = vae.encode(x)
    z = mean + torch.exp(0.5 * log_var) * torch.randn(num_samples, 6, 2, dtype=F64, generator=seeded())
    kl = -q_of(mean, log_var).entropy() - vae.prior.log_prob(z).mean(0)
    log_p = Bernoulli(logits=vae.decoder.net(z)).log_prob(x).sum(-1).mean(0)
    assert terms.kl_per_dim.shape == (6, 1)
    torch.testing.assert_close(terms.kl, kl, **CLOSE)
    torch.testing.assert_close(terms.log_likelihood, log_p, **CLOSE)
    torch.testing.assert_close(terms.elbo, log_p - kl, **CLOSE)


@priors
def test_the_terms_and_the_log_weights_have_the_elbo_as_their_mean(name: str) -> None:
    """4000 samples of each picture against quadrature, 5 standard errors."""
    assert all((gap.abs() < 5).all() for gap in off_the_elbo(name, seed=20))


def off_the_elbo(name: str, seed: int) -> tuple[Tensor, Tensor]:
    vae, x = small_vae(name), PICTURES[::7]
    exact = quadrature_elbo(vae, x, 32).elbo.detach()
    with torch.no_grad():
        repeated = vae.terms(x.expand(4000, *x.shape), generator=seeded(seed)).elbo  # (4000, B)
    log_w = importance_log_weights(vae, x, num_samples=4000, generator=seeded(seed + 1000))
    return tuple((v.mean(0) - exact) / v.std(0) * 4000**0.5 for v in (repeated, log_w))


@priors
@members_or_not
def test_log_joint_and_log_weights_by_hand(name: str, members: int | None) -> None:
    vae, x = small_vae(name, members), PICTURES[[3, 17, 20]]
    for stop_score in (False, True):
        log_w = vae.log_weights(x, num_samples=3, generator=seeded(), stop_score=stop_score)
        mean, log_var = vae.encode(x)  # ([E,] B, d)
        z = mean + torch.exp(0.5 * log_var) * torch.randn(3, *mean.shape, dtype=F64, generator=seeded())
        for e in range(members or 1):
            at = ... if members is None else e
            single = vae if members is None else member(vae, e)
            points = z if members is None else z[:, e]
            log_joint = single.prior.log_prob(points) + single.decoder.log_prob(x, points)
            expected = log_joint - q_of(mean[at], log_var[at]).log_prob(points)
            torch.testing.assert_close(log_w[at], expected, **CLOSE)
            torch.testing.assert_close(single.log_joint(x, points), log_joint, **CLOSE)
            torch.testing.assert_close(single.prior_log_prob(points), single.prior.log_prob(points), **CLOSE)


@priors
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_equals_its_members_one_by_one(name: str, kind: str) -> None:
    """Shared x and each member's own; exact terms, sampled shapes, losses."""
    vae = small_vae(name, members=3, kind=kind)
    shared = PICTURES[[3, 17, 20]]
    own = PICTURES[torch.randint(0, 32, (3, 3), generator=seeded())]
    for x in (shared, own):
        many, log_p = quadrature_elbo(vae, x, 6), quadrature_log_prob(vae, x, 12)
        assert many.kl_per_dim.shape == (3, 3, 1) and log_p.shape == (3, 3)
        for e in range(3):
            single, mine = member(vae, e), x if x is shared else x[e]
            alone = quadrature_elbo(single, mine, 6)
            torch.testing.assert_close(many.log_likelihood[e], alone.log_likelihood, **CLOSE)
            torch.testing.assert_close(many.kl_per_dim[e], alone.kl_per_dim, **CLOSE)
            torch.testing.assert_close(log_p[e], quadrature_log_prob(single, mine, 12), **CLOSE)
        for num_samples in (1, 3):
            terms = vae.terms(x, num_samples=num_samples, generator=seeded())
            eps = torch.randn(num_samples, 3, 3, 2, dtype=F64, generator=seeded())  # (S, E, B, d)
            assert terms.log_likelihood.shape == (3, 3) and terms.kl_per_dim.shape == (3, 3, 1)
            for e in range(3):
                single = member(vae, e)
                mean, log_var = single.encode(x if x is shared else x[e])
                z = mean + torch.exp(0.5 * log_var) * eps[:, e]
                kl = -q_of(mean, log_var).entropy() - single.prior.log_prob(z).mean(0)
                torch.testing.assert_close(terms.kl[e], kl, **CLOSE)
        assert vae_loss(terms).shape == (3,)


def test_free_bits_take_the_whole_kl_for_one_term() -> None:
    vae = small_vae("mixture")
    terms = quadrature_elbo(vae, PICTURES)
    kl = terms.kl.mean().item()
    torch.testing.assert_close(vae_loss(terms), -terms.elbo.mean(), **CLOSE)
    torch.testing.assert_close(vae_loss(terms, free_bits=0.9 * kl), -terms.elbo.mean(), **CLOSE)
    floor = vae_loss(terms, beta=0.5, free_bits=1.1 * kl)
    torch.testing.assert_close(floor, 0.55 * kl - terms.log_likelihood.mean(), **CLOSE)
    below = torch.autograd.grad(floor, list(vae.prior.parameters()))
    assert kl > 0 and not any(gradient.any() for gradient in below), "the prior is at peace below the floor"


# the same model in other words ------------------------------------------------------------------------------


@members_or_not
@pytest.mark.parametrize("kind", KINDS)
def test_a_standard_normal_prior_changes_nothing(members: int | None, kind: str) -> None:
    bare = small_vaes.small_vae(seeded(1), members, 2, kind)
    prior = StandardNormalPrior(2, members=members).double()
    vae, x = VAE(bare.encoder, bare.decoder, 2, prior=prior), PICTURES[:6]
    draw = [{"num_samples": 5, "generator": seeded()} for _ in range(6)]
    torch.testing.assert_close(vae.log_weights(x, **draw[0]), bare.log_weights(x, **draw[1]), **CLOSE)
    losses = [dreg_loss(model, x, **d) for model, d in ((vae, draw[2]), (bare, draw[3]))]
    torch.testing.assert_close(*losses, **CLOSE)
    gradients = (torch.autograd.grad(loss.sum(), list(bare.parameters())) for loss in losses)
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
    blocks = [importance_log_weights(m, x, **d) for m, d in ((vae, draw[4]), (bare, draw[5]))]
    torch.testing.assert_close(*blocks, **CLOSE)
    exact, known = quadrature_elbo(vae, x, 8), quadrature_elbo(bare, x, 8)
    torch.testing.assert_close(exact.log_likelihood, known.log_likelihood, **CLOSE)
    torch.testing.assert_close(exact.kl, known.kl, **CLOSE)  # the rule is exact for squares
    torch.testing.assert_close(quadrature_log_prob(vae, x, 16), quadrature_log_prob(bare, x, 16), **CLOSE)
    assert torch.equal(vae.sample(7, seeded()), bare.sample(7, seeded()))
    terms = [model.terms(x, generator=seeded()).log_likelihood for model in (vae, bare)]
    assert torch.equal(*terms)


# losses and bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 5])
def test_dreg_weights_the_path_twice_and_a_shared_encoder_in_the_prior_once(num_samples: int) -> None:
    """Two surrogates by hand: ``w^2`` along z with everything else fixed, ``w`` at fixed z for p(x, z)."""
    vae, x = small_vae("vamp"), PICTURES[:6]
    loss = dreg_loss(vae, x, num_samples=num_samples, generator=seeded())
    parameters = list(vae.parameters())
    found = torch.autograd.grad(loss, parameters)
    mean, log_var = vae.encode(x)
    z = mean + torch.exp(0.5 * log_var) * torch.randn(num_samples, 6, 2, dtype=F64, generator=seeded())
    pseudo = vae.encoder(torch.sigmoid(vae.prior.raw)).chunk(2, -1)

    def log_w(z: Tensor, components: tuple[Tensor, Tensor], net: Callable[[Tensor], Tensor]) -> Tensor:
        p = MixtureSameFamily(Categorical(logits=torch.zeros(3, dtype=F64)), q_of(*components))
        likelihood = Bernoulli(logits=net(z)).log_prob(x).sum(-1)
        return p.log_prob(z) + likelihood - q_of(mean.detach(), log_var.detach()).log_prob(z)

    frozen = copy.deepcopy(vae.decoder.net).requires_grad_(False)
    path = log_w(z, (pseudo[0].detach(), pseudo[1].detach()), frozen)
    still = log_w(z.detach(), pseudo, vae.decoder.net)
    weights = torch.softmax(still.detach(), 0)
    surrogate = -((weights**2 * path).sum(0) + (weights * still).sum(0)).mean()
    expected = torch.autograd.grad(surrogate, parameters)
    assert loss.item() == pytest.approx(-iwae_bound(still, dim=0).mean().item(), rel=1e-12)
    for mine, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@priors
def test_the_importance_weights_average_to_the_evidence(name: str) -> None:
    """K = 5000, two members, against quadrature: 5 standard errors."""
    assert (off_the_evidence(name, seed=20).abs() < 5).all()


def off_the_evidence(name: str, seed: int) -> Tensor:
    vae, x = small_vae(name, members=2), PICTURES[::9]
    log_w = importance_log_weights(vae, x, num_samples=5000, generator=seeded(seed))
    assert log_w.shape == (2, 5000, 4) and not log_w.requires_grad
    ratio = (log_w - quadrature_log_prob(vae, x, 96).detach()[:, None]).exp()
    return (ratio.mean(1) - 1) / ratio.std(1) * 5000**0.5


# modules ----------------------------------------------------------------------------------------------------


@priors
@members_or_not
def test_parameters_are_counted_once_and_state_makes_the_round_trip(name: str, members: int | None) -> None:
    vae, x = small_vae(name, members), PICTURES[:6]
    parts = [*vae.encoder.parameters(), *vae.decoder.parameters(), *vae.prior.own_parameters()]
    assert {id(p) for p in parts} == {id(p) for p in vae.parameters()}
    assert len(parts) == len(list(vae.parameters()))
    other = small_vae(name, members)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-0.5)
    wanted = quadrature_elbo(vae, x, 6).elbo
    assert not torch.allclose(quadrature_elbo(other, x, 6).elbo, wanted)
    other.load_state_dict(vae.state_dict())
    assert torch.equal(quadrature_elbo(other, x, 6).elbo, wanted)
    if name == "vamp":
        assert other.prior.encoder is other.encoder


def test_copies_and_members_keep_the_encoder_shared() -> None:
    vae = small_vae("vamp", members=3)
    for model in (copy.deepcopy(vae), member(vae, 1)):
        assert model.prior.encoder is model.encoder and model.encoder is not vae.encoder
    alone = member(vae, 1)
    torch.testing.assert_close(alone.encode(PICTURES)[0], vae.encode(PICTURES)[0][1], **CLOSE)
    parts = alone.prior.components()
    for mine, stacked in zip(parts, vae.prior.components(), strict=True):
        torch.testing.assert_close(mine, stacked[1], **CLOSE)


@priors
@members_or_not
def test_training_jointly_moves_all_parts(name: str, members: int | None) -> None:
    """A few steps on the sampled ELBO: its quadrature rises, and every parameter has changed."""
    vae, x = small_vae(name, members), PICTURES[::5]
    optimiser, generator = torch.optim.Adam(vae.parameters(), lr=0.01), seeded()
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    start = quadrature_elbo(vae, x, 12).elbo.mean(-1)
    for _ in range(40):
        optimiser.zero_grad()
        vae_loss(vae.terms(x, num_samples=4, generator=generator)).sum().backward()
        optimiser.step()
    assert (quadrature_elbo(vae, x, 12).elbo.mean(-1) > start).all()
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


@priors
@members_or_not
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_and_device_follow(
    name: str, members: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    vae = small_vae(name, members).to(device=device, dtype=dtype)
    x, own = PICTURES[:4].to(device=device, dtype=dtype), seeded(device=device)
    values = [
        vae.terms(x, generator=own).elbo,
        vae.log_weights(x, num_samples=2, generator=own),
        dreg_loss(vae, x, num_samples=2, generator=own),
        importance_log_weights(vae, x, num_samples=2, generator=own),
        quadrature_elbo(vae, x, 6).elbo,
        quadrature_log_prob(vae, x, 12),
        vae.sample(3, own),
    ]
    for value in values:
        assert value.dtype == dtype and value.device.type == device.type and value.isfinite().all()


def tiny(prior: Prior, members: int | None = None) -> VAE:
    make = {"members": members, "generator": seeded()}
    return VAE(MLP([5, 4], **make), BernoulliDecoder(MLP([2, 5], **make)), 2, prior=prior)


X = PICTURES[:2].float()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny(MixturePrior(2, 2, members=3)), "stack of 3 decoders or priors needs an encoder"),
        (lambda: tiny(MixturePrior(2, 2, members=3), members=2), "same number of members"),
        (lambda: tiny(StandardNormalPrior(3)), "latent_dim=2, its prior 3: build both with the same"),
        (lambda: tiny(StandardNormalPrior(2)).sample(0), "n must be at least 1, got 0"),
        (lambda: tiny(StandardNormalPrior(2)).terms(X, num_samples=0), "num_samples must be at least 1"),
        (lambda: quadrature_elbo(tiny(StandardNormalPrior(2)), X[0]), r"x must be \(\.\.\., B, m\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
