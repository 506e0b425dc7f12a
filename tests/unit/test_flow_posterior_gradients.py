"""Path gradients of a flow posterior: sticking the landing, DReG, importance weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from prior_zoo import CLOSE, F64, seeded
from small_flow_posteriors import CONTEXT, build, every, pictures
from torch import Tensor

from dgm_course.bounds import iwae_bound, normalized_weights
from dgm_course.flows import InvertibleConv1x1
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.nets import Linear
from dgm_course.vae import FlowPosteriorVAE, GaussianDecoder, dreg_loss, importance_log_weights

NEAR = {"rtol": 1e-7, "atol": 1e-8}  # the inverses that are found by bisection


def own(vae: FlowPosteriorVAE) -> list[Tensor]:
    """The parameters of q: encoder and flow."""
    return [*vae.encoder.parameters(), *vae.flow.parameters()]


def gradients(value: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


# stop_score -------------------------------------------------------------------------------------------------


@every
def test_stop_score_keeps_the_value_and_drops_the_score(name: str, context_dim: int) -> None:
    """The path gradient is the whole one less that of log q at fixed z, of any weighting of the samples."""
    vae, x = build(name, context_dim), pictures()
    weights = torch.randn(3, 4, dtype=F64, generator=seeded(9))
    draw = {"num_samples": 3}
    whole = vae.log_weights(x, **draw, generator=seeded())
    path = vae.log_weights(x, **draw, generator=seeded(), stop_score=True)
    torch.testing.assert_close(path, whole, **NEAR)
    z, _ = vae.posterior_sample(x, **draw, generator=seeded())
    score = vae.posterior_log_prob(z.detach(), x)
    parts = [gradients((weights * value).sum(), own(vae)) for value in (path, whole, score)]
    for found, total, fixed in zip(*parts, strict=True):
        torch.testing.assert_close(found, total + fixed, **NEAR)
    assert max(g.abs().max() for g in parts[2]) > 0.1  # there was a score to drop
    theirs = list(vae.decoder.parameters())
    decoder = [gradients((weights * value).sum(), theirs) for value in (path, whole)]  # not touched
    for mine, other in zip(*decoder, strict=True):
        torch.testing.assert_close(mine, other, **NEAR)


@pytest.mark.parametrize("name", ["planar", "IAF", "MAF"])
def test_stop_score_does_as_a_frozen_copy_of_the_posterior(name: str) -> None:
    """In a stack as well; nothing of the model is left frozen, and no state is moved."""
    for members in (None, 3):
        vae, x = build(name, 0 if name == "planar" else CONTEXT, members), pictures(members)
        before = copy.deepcopy(vae.state_dict())
        frozen = copy.deepcopy(vae).requires_grad_(False)
        z, log_q = vae.posterior_sample(x, num_samples=3, generator=seeded(), stop_score=True)
        mine = gradients(log_q.cos().sum(), own(vae))
        z, _ = vae.posterior_sample(x, num_samples=3, generator=seeded())
        other = gradients(frozen.posterior_log_prob(z, x).cos().sum(), own(vae))
        for found, expected in zip(mine, other, strict=True):
            torch.testing.assert_close(found, expected, **NEAR)
        assert all(p.requires_grad for p in vae.parameters())
        after = vae.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def exact_model() -> tuple[FlowPosteriorVAE, LinearGaussian]:
    """A linear-Gaussian model whose posterior is correlated: N(0, 1) rotated and scaled by a trained map."""
    W = torch.tensor([[1.0, 0.5], [-0.5, 1.5], [0.7, 0.7]], dtype=F64)
    b = torch.tensor([0.5, -1.0, 0.2], dtype=F64)
    model = LinearGaussian(W, b, 0.5)
    decoder = GaussianDecoder(Linear(2, 3).double(), math.log(0.5))
    encoder, flow = Linear(3, 4).double(), InvertibleConv1x1(2, lu=False, event_dims=1).double()
    scale = torch.linalg.cholesky(torch.linalg.inv(model.posterior_precision()))
    to_z0 = torch.linalg.inv(scale) @ model.encoder()  # (2, 3): the mean of z_0
    with torch.no_grad():
        decoder.log_var.fill_(math.log(0.5))
        decoder.net.weight.copy_(W.T)
        decoder.net.bias.copy_(b)
        flow.dense.copy_(torch.linalg.inv(scale))
        encoder.weight.copy_(torch.cat([to_z0.T, torch.zeros(3, 2, dtype=F64)], 1))
        encoder.bias.copy_(torch.cat([-to_z0 @ b, torch.zeros(2, dtype=F64)]))
    return FlowPosteriorVAE(encoder, decoder, 2, flow), model


def test_sticking_the_landing() -> None:
    """At the exact posterior every weight is p(x) and the path gradient zero, the whole one only on average.

    Roeder, Wu & Duvenaud 2017.
    """
    vae, model = exact_model()
    x = model.sample(4, seeded(5))[0]
    log_w = vae.log_weights(x, num_samples=200, generator=seeded(), stop_score=True)
    torch.testing.assert_close(log_w, model.log_prob(x).expand(200, 4), rtol=1e-12, atol=1e-12)
    quiet = gradients(log_w.sum(), own(vae))
    assert max(g.abs().max() for g in quiet) < 1e-9
    rows = []
    for k in range(200):
        value = vae.log_weights(x, num_samples=1, generator=seeded(k)).sum()
        rows.append(torch.cat([g.flatten() for g in gradients(value, own(vae))]))
    noise = torch.stack(rows)
    assert (noise.std(0) > 0.1).all()  # each entry is loud
    assert (noise.mean(0).abs() < 5 * noise.std(0) / 200**0.5).all()


# DReG -------------------------------------------------------------------------------------------------------


@every
def test_dreg_by_hand(name: str, context_dim: int) -> None:
    """Squared weights on the path for the posterior, the plain gradient for the decoder. I7."""
    vae, x = build(name, context_dim), pictures()
    loss = dreg_loss(vae, x, num_samples=5, generator=seeded())
    plain = vae.log_weights(x, num_samples=5, generator=seeded())
    torch.testing.assert_close(loss, -iwae_bound(plain, dim=-2).mean(), **NEAR)
    weights = normalized_weights(plain.detach(), dim=-2)
    path = vae.log_weights(x, num_samples=5, generator=seeded(), stop_score=True)
    expected = gradients(-(weights**2 * path).sum(0).mean(), own(vae))
    theirs = gradients(-(weights * plain).sum(0).mean(), list(vae.decoder.parameters()))
    found = gradients(loss, [*own(vae), *vae.decoder.parameters()])
    for mine, other in zip(found, [*expected, *theirs], strict=True):
        torch.testing.assert_close(mine, other, **NEAR)


@pytest.mark.parametrize("name", ["planar", "IAF"])
def test_dreg_is_unbiased(name: str) -> None:
    """4000 paired draws, K = 4: each entry's difference from the plain gradient within 5 standard errors."""
    vae, x = build(name, 0 if name == "planar" else CONTEXT), pictures()[:2]
    wide = x.repeat(100, 1)  # one backward pass gives the mean over 100 draws; 40 of those give its spread
    rows = []
    for seed in range(40):
        draw = {"num_samples": 4}
        loss = dreg_loss(vae, wide, **draw, generator=seeded(seed))
        plain = -iwae_bound(vae.log_weights(wide, **draw, generator=seeded(seed)), dim=-2).mean()
        parts = [torch.cat([g.flatten() for g in gradients(v, own(vae))]) for v in (loss, plain)]
        rows.append(parts[0] - parts[1])
    difference = torch.stack(rows)
    assert (difference.mean(0).abs() <= 5 * difference.std(0) / 40**0.5 + 1e-12).all()


@pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])
def test_a_stack_s_losses_are_its_members_own(members: int | None) -> None:
    """Gradients reach the member alone; without gradients the value is the same."""
    vae, x = build("IAF", CONTEXT, members), pictures(members)
    loss = dreg_loss(vae, x, num_samples=5, generator=seeded())
    assert loss.shape == (() if members is None else (3,))
    with torch.no_grad():
        again = dreg_loss(vae, x, num_samples=5, generator=seeded())
    torch.testing.assert_close(again, loss.detach(), **CLOSE)
    if members:
        found = gradients(loss[1], own(vae))
        assert not any(gradient[[0, 2]].any() for gradient in found)
        assert all(gradient[1].any() for gradient in found)


@pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])
def test_importance_weights_in_blocks(members: int | None) -> None:
    vae, x = build("IAF", CONTEXT, members), pictures()
    log_w = importance_log_weights(vae, x, num_samples=11, generator=seeded(), rows=40 * (members or 1))
    assert log_w.shape == (*(() if members is None else (3,)), 11, 4) and not log_w.requires_grad
    generator = seeded()
    for first in (0, 2):  # two pictures at a time
        part = vae.log_weights(x[first : first + 2], num_samples=11, generator=generator)
        assert torch.equal(log_w[..., first : first + 2], part)
