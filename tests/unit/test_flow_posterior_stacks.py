"""Stacks of VAEs with flow posteriors against their members; shapes, dtypes, state, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from prior_zoo import CLOSE, F64, PICTURES, seeded
from small_flow_posteriors import CONTEXT, build, by_hand, every, pictures
from small_vaes import small_vae
from torch import nn

from dgm_course import flows
from dgm_course.nets import MLP, Linear, member
from dgm_course.numerics import gauss_legendre
from dgm_course.priors import FlowPrior, MixturePrior
from dgm_course.surgery import vae_surgery
from dgm_course.vae import VAE, FlowPosteriorVAE, dreg_loss, grid_terms, quadrature_elbo, vae_loss

KINDS = ["autoregressive", "bernoulli", "categorical", "gaussian"]


def prior_of(kind: str, members: int | None) -> nn.Module | None:
    if kind == "mixture":
        return MixturePrior(3, 2, members=members, generator=seeded(7)).double()
    if kind == "flow":
        return FlowPrior.maf(2, hidden=8, members=members, generator=seeded(7)).double()
    return None


# stacks -----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_stack_equals_its_members_one_by_one(name: str, context_dim: int, num_samples: int) -> None:
    """Shared x and each member's own; with E = B = S = 3 no shape would show a mix-up."""
    vae = build(name, context_dim, members=3)
    assert vae.members == 3
    for x in (pictures()[:3], pictures(3)[:, :3]):
        z, log_q = vae.posterior_sample(x, num_samples=num_samples, generator=seeded())
        terms = vae.terms(x, num_samples=num_samples, generator=seeded())
        assert z.shape == (3, num_samples, 3, 2) and log_q.shape == z.shape[:-1]
        assert terms.log_likelihood.shape == (3, 3) and terms.kl_per_dim.shape == (3, 3, 1)
        eps = torch.randn(num_samples, 3, 3, 2, dtype=F64, generator=seeded())  # (S, E, B, d)
        there = vae.posterior_log_prob(z, x)
        everywhere = vae.posterior_log_prob(z[0], x)  # points that all members share
        for e in range(3):
            single, mine = member(vae, e), x if x.dim() == 2 else x[e]
            assert single.members is None
            mean, log_var = single.encode(mine)
            context = single.context(mine)
            moved, _ = single.flow(mean + torch.exp(0.5 * log_var) * eps[:, e], context)
            torch.testing.assert_close(z[e], moved, **CLOSE)
            alone = single.posterior_log_prob(z[e], mine)
            torch.testing.assert_close(log_q[e], alone, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(there[e], alone, **CLOSE)
            torch.testing.assert_close(everywhere[e], single.posterior_log_prob(z[0], mine), **CLOSE)
            torch.testing.assert_close(
                terms.elbo[e], (single.log_joint(mine, z[e]) - alone).mean(0), rtol=1e-8, atol=1e-8
            )
        assert vae_loss(terms).shape == (3,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", ["N(0, I)", "mixture", "flow"])
def test_every_decoder_and_prior_in_a_stack(kind: str, prior: str) -> None:
    vae = build("IAF", CONTEXT, members=3, kind=kind, prior=prior_of(prior, 3))
    for x in (pictures()[:3], pictures(3)[:, :3]):
        log_w = vae.log_weights(x, num_samples=3, generator=seeded())
        z, log_q = vae.posterior_sample(x, num_samples=3, generator=seeded())
        loss = dreg_loss(vae, x, num_samples=3, generator=seeded())
        assert loss.shape == (3,)
        for e in range(3):
            single, mine = member(vae, e), x if x.dim() == 2 else x[e]
            torch.testing.assert_close(log_w[e], single.log_joint(mine, z[e]) - log_q[e], **CLOSE)
    samples = vae.sample(6, seeded())
    assert samples.shape == (3, 6, 5) and not samples.requires_grad


def test_terms_take_further_batch_dimensions_as_the_vae_s_do() -> None:
    for members in (None, 3):
        vae = build("IAF", CONTEXT, members)
        x = PICTURES[torch.randint(32, (*(() if members is None else (3,)), 2, 4), generator=seeded())]
        shape = x.shape[:-1]
        for num_samples in (1, 3):
            terms = vae.terms(x, num_samples=num_samples, generator=seeded())
            assert terms.elbo.shape == shape and terms.kl_per_dim.shape == (*shape, 1)
            if members is None:
                _, z, log_q = by_hand(vae, x, num_samples)
                torch.testing.assert_close(terms.elbo, (vae.log_joint(x, z) - log_q).mean(0), **CLOSE)


def test_one_point_without_batch() -> None:
    """As the VAE: terms of an x ``(m,)``."""
    vae = build("coupling", CONTEXT)
    one = vae.terms(PICTURES[3], num_samples=2, generator=seeded())
    batch = vae.terms(PICTURES[[3]], num_samples=2, generator=seeded())
    torch.testing.assert_close(one.elbo, batch.elbo[0], **CLOSE)


# dtype, device, state ---------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_and_device_follow(
    name: str, context_dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    """CUDA's values are the CPU's, but for rounding: at the same z, since the two draw other noise."""
    vae = build(name, context_dim).to(dtype)
    x = pictures().to(dtype)
    z, log_q = vae.posterior_sample(x, num_samples=3, generator=seeded())
    joint = vae.log_joint(x, z)
    there = copy.deepcopy(vae).to(device)
    own, x = torch.Generator(device).manual_seed(0), x.to(device)
    torch.testing.assert_close(there.posterior_log_prob(z.to(device), x).cpu(), log_q, **tolerance(dtype))
    torch.testing.assert_close(there.log_joint(x, z.to(device)).cpu(), joint, **tolerance(dtype))
    terms = there.terms(x, num_samples=2, generator=own)
    loss = dreg_loss(there, x, num_samples=2, generator=own)
    loss.backward()
    values = [terms.elbo, terms.kl_per_dim, loss, there.sample(3, own), *there.posterior_sample(
        x, num_samples=2, generator=own, stop_score=True
    )]  # fmt: skip
    for value in [*values, *(p.grad for p in there.flow.parameters())]:
        assert value.dtype == dtype and value.device.type == device.type and value.isfinite().all()


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-8, "atol": 1e-8} if dtype == F64 else {"rtol": 1e-3, "atol": 1e-3}


@every
def test_state_dict_copies_and_seeds(name: str, context_dim: int) -> None:
    vae, other = build(name, context_dim), build(name, context_dim, seed=1)
    x, draw = pictures(), {"num_samples": 2}
    log_w = vae.log_weights(x, **draw, generator=seeded())
    assert torch.equal(log_w, vae.log_weights(x, **draw, generator=seeded()))
    assert not torch.equal(log_w, vae.log_weights(x, **draw, generator=seeded(4)))
    assert not torch.equal(log_w, other.log_weights(x, **draw, generator=seeded()))
    other.load_state_dict(vae.state_dict())
    copied = copy.deepcopy(vae)
    assert torch.equal(log_w, other.log_weights(x, **draw, generator=seeded()))
    with torch.no_grad():
        for parameter in copied.flow.parameters():
            parameter.add_(0.1)
    assert torch.equal(log_w, vae.log_weights(x, **draw, generator=seeded()))
    assert not torch.equal(log_w, copied.log_weights(x, **draw, generator=seeded()))
    assert any(key.startswith("flow.") for key in vae.state_dict())


# refusals ---------------------------------------------------------------------------------------------------

X = PICTURES[:2]
IAF = flows.autoregressive_transform("iaf", 2, hidden=[8]).double()
GLOW = flows.glow_transform((1, 4, 4), steps_per_scale=1, hidden=4)


def made(
    flow: flows.Transform = IAF, outputs: int = 4, context_dim: int = 0, members: int | None = None
) -> FlowPosteriorVAE:
    decoder = small_vae(seeded(), kind="bernoulli").decoder
    encoder = MLP([5, outputs], members=members).double()
    return FlowPosteriorVAE(encoder, decoder, 2, flow, context_dim=context_dim)


STACKED = flows.autoregressive_transform("iaf", 2, hidden=[8], members=3).double()
READS = flows.autoregressive_transform("iaf", 2, hidden=[8], context=2).double()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made(GLOW), "acts on vectors.*got event_dims=3 and context_dim=0"),
        (lambda: made(context_dim=-1), "0 or more numbers.*context_dim=-1"),
        (lambda: made(STACKED), "a stack of 3 flows needs an encoder for each.*members=3"),
        (lambda: made(STACKED, members=2), "same number of members"),
        (lambda: made(outputs=5).terms(X), r"2 \* latent_dim \+ context_dim = 4 numbers.*got 5"),
        (lambda: made(outputs=5).encode(X), r"= 4 numbers.*got 5: change its last size"),
        (lambda: made(READS, 5, 2).context(X), r"= 6 numbers.*got 5"),
        (lambda: made(READS).terms(X), r"context=2: call it with \(x\) or \(x, context\)"),
        (lambda: made(outputs=6, context_dim=2).terms(X), "built without context"),
        (lambda: made(READS, 7, 3).terms(X), "in_features=2"),
        (lambda: made().terms(X, num_samples=0), "num_samples must be at least 1, got 0: ask for some"),
        (lambda: made().log_weights(X, num_samples=0), "num_samples must be at least 1, got 0: ask for some"),
        (lambda: made().posterior_sample(X[0], num_samples=2), r"x must be \(B, m\).*got \(5,\): flatten"),
        (lambda: made().log_weights(X[None], num_samples=2), r"got \(1, 2, 5\): flatten its batch"),
        (lambda: made().posterior_log_prob(torch.zeros(3, 2, 1), X), r"latent_dim = 2.*got \(3, 2, 1\)"),
        (lambda: made().posterior_log_prob(torch.zeros(()), X), r"latent_dim = 2.*got \(\)"),
        (lambda: quadrature_elbo(made(), X), "has a flow: use grid_terms"),
        (lambda: vae_surgery(made(), X), "has a flow: see vae.grid_terms"),
        (lambda: small_vae(seeded()).log_weights(X[0], num_samples=2), r"x must be \(B, m\)"),
        (lambda: small_vae(seeded()).posterior_sample(X, num_samples=0), "ask for some samples"),
        (lambda: small_vae(seeded()).posterior_log_prob(torch.zeros(3, 2, 1).double(), X), "last dimension"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_gaussian_posteriors_say_so() -> None:
    """What works on Gaussian posteriors alone is still open to them."""
    gaussian = VAE(Linear(5, 4).double(), small_vae(seeded(), kind="bernoulli").decoder, 2)
    assert gaussian.gaussian_posterior and not made().gaussian_posterior
    assert quadrature_elbo(gaussian, X, 8).elbo.shape == (2,)
    assert vae_surgery(gaussian, X, num_samples=3).elbo.shape == (3, 2)
    nodes, weights = gauss_legendre(-8.0, 8.0, 4, num_dims=2)
    for vae in (gaussian, made()):
        assert grid_terms(vae, X, nodes, weights).elbo.shape == (2,)
