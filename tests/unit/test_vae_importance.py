"""The VAE's log-joint and log-weights: values by hand, stacks, the stopped score, and exact likelihoods."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import small_vaes
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

from dgm_course.bounds import (
    dreg_gradient,
    iwae_bound,
    iwae_gradient_estimates,
    normalized_weights,
    streamed_iwae_bound,
)
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.nets import MLP, member
from dgm_course.vae import (
    VAE,
    GaussianDecoder,
    importance_log_weights,
    quadrature_elbo,
    quadrature_log_prob,
)

F64 = torch.float64
KINDS = ["autoregressive", "bernoulli", "categorical", "gaussian"]
PICTURES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=F64)  # (32, 5)


def seeded(seed: int = 3, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def small_vae(kind: str = "bernoulli", members: int | None = None, latent_dim: int = 2) -> VAE:
    return small_vaes.small_vae(seeded(1), members, latent_dim, kind)


def prior(z: Tensor) -> Tensor:
    return Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)


def q_of(mean: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


# values -----------------------------------------------------------------------------------------------------


def test_log_joint_and_log_weights_written_with_torch_distributions() -> None:
    vae, x = small_vae(), PICTURES[:6]
    z = torch.randn(7, 6, 2, dtype=F64, generator=seeded(4))
    log_joint = prior(z) + Bernoulli(logits=vae.decoder.net(z)).log_prob(x).sum(-1)
    torch.testing.assert_close(vae.log_joint(x, z), log_joint, rtol=1e-13, atol=1e-13)
    assert vae.log_joint(x, z[0]).shape == (6,)
    mean, log_var = vae.encode(x)
    q = q_of(mean, log_var)
    z = mean + torch.exp(0.5 * log_var) * torch.randn(7, 6, 2, dtype=F64, generator=seeded())  # (K, B, d)
    expected = prior(z) + Bernoulli(logits=vae.decoder.net(z)).log_prob(x).sum(-1) - q.log_prob(z)
    log_w = vae.log_weights(x, num_samples=7, generator=seeded())
    torch.testing.assert_close(log_w, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_without_members(kind: str) -> None:
    vae = small_vae(kind)
    for num_samples, batch in ((1, 1), (1, 4), (3, 1), (3, 4), (4, 4)):
        log_w = vae.log_weights(PICTURES[:batch], num_samples=num_samples, generator=seeded())
        assert log_w.shape == (num_samples, batch) and log_w.dtype == F64
        assert iwae_bound(log_w, dim=-2).shape == (batch,)


@pytest.mark.parametrize("stop_score", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_member_of_a_stack_is_the_single_model_with_the_same_z(kind: str, stop_score: bool) -> None:
    """Shared x ``(B, m)`` and x of each member ``(E, B, m)``; K = B = E too: no shape shows a mix-up."""
    vae = small_vae(kind, members=3)
    shared, own = PICTURES[[3, 17, 20]], PICTURES[torch.randint(0, 32, (3, 3), generator=seeded())]
    for x, num_samples in itertools.product((shared, own), (1, 3, 4)):
        log_w = vae.log_weights(x, num_samples=num_samples, generator=seeded(), stop_score=stop_score)
        assert log_w.shape == (3, num_samples, 3)
        eps = torch.randn(num_samples, 3, 3, 2, dtype=F64, generator=seeded())  # (K, E, B, d)
        for e in range(3):
            single, mine = member(vae, e), x if x is shared else x[e]
            mean, log_var = single.encode(mine)
            z = mean + torch.exp(0.5 * log_var) * eps[:, e]  # (K, B, d)
            torch.testing.assert_close(
                log_w[e], single.log_joint(mine, z) - q_of(mean, log_var).log_prob(z), rtol=1e-11, atol=1e-11
            )


def test_one_sample_s_mean_is_the_elbo() -> None:
    """The average log-weight against the exact ELBO by quadrature, 5 standard errors; with members too."""
    assert (off_the_elbo(None, seed=20).abs() < 5).all()
    assert (off_the_elbo(2, seed=20).abs() < 5).all()


def off_the_elbo(members: int | None, seed: int) -> Tensor:
    vae, x = small_vae("categorical", members), PICTURES[::7]
    log_w = importance_log_weights(vae, x, num_samples=4000, generator=seeded(seed))
    exact = quadrature_elbo(vae, x, 24).elbo.detach()
    return (log_w.mean(-2) - exact) / log_w.std(-2) * 4000**0.5


# the stopped score ----------------------------------------------------------------------------------------


def test_stopping_the_score_keeps_the_values_and_drops_its_gradient() -> None:
    """The difference of the gradients is that of ``-log q(z|x)`` at fixed z; the decoder's is the same."""
    vae, x = small_vae(), PICTURES[:6]
    full = vae.log_weights(x, num_samples=4, generator=seeded())
    stopped = vae.log_weights(x, num_samples=4, generator=seeded(), stop_score=True)
    assert torch.equal(full, stopped)
    cotangent = torch.randn(4, 6, dtype=F64, generator=seeded(5))
    encoder, decoder = list(vae.encoder.parameters()), list(vae.decoder.parameters())
    grads = [torch.autograd.grad((cotangent * w).sum(), encoder + decoder) for w in (full, stopped)]
    mean, log_var = vae.encode(x)
    eps = torch.randn(4, 6, 2, dtype=F64, generator=seeded())
    z = (mean + torch.exp(0.5 * log_var) * eps).detach()
    score = torch.autograd.grad(-(cotangent * q_of(mean, log_var).log_prob(z)).sum(), encoder)
    for i, part in enumerate(encoder):
        assert (score[i].abs().max() > 1e-3) and part.shape == score[i].shape
        torch.testing.assert_close(grads[0][i] - grads[1][i], score[i], rtol=1e-11, atol=1e-11)
    for a, b in zip(grads[0][len(encoder) :], grads[1][len(encoder) :], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("members", [None, 2])
def test_the_doubly_reparametrised_gradient_of_an_encoder(members: int | None) -> None:
    """The gradient of ``sum w^2 log w`` with stopped w, by (mean, log_var), is that of the path by hand."""
    vae = small_vae(members=members)
    x = PICTURES[[13]]
    captured = []
    encode = vae.encode

    def spy(rows: Tensor) -> tuple[Tensor, Tensor]:
        captured[:] = [part.detach().requires_grad_() for part in encode(rows)]
        return captured[0], captured[1]

    vae.encode = spy  # type: ignore[method-assign]
    log_w = vae.log_weights(x, num_samples=6, generator=seeded(), stop_score=True)  # ([E,] 6, 1)
    share = normalized_weights(log_w, dim=-2).detach()
    found = torch.cat(torch.autograd.grad((share**2 * log_w).sum(), captured), -1)  # ([E,] 1, 2d)
    eps = torch.randn(6, *captured[0].shape, dtype=F64, generator=seeded())  # (K, [E,] 1, d)
    for e in range(members or 1):
        single = vae if members is None else member(vae, e)
        mean, log_var = (part[e, 0] if members else part[0] for part in captured)
        noise = eps[:, e, 0] if members else eps[:, 0]  # (K, d)
        z = (mean + torch.exp(0.5 * log_var) * noise).detach().requires_grad_()
        log_joint = single.log_joint(x.expand(6, 5), z)
        (slope,) = torch.autograd.grad(log_joint.sum(), z)
        through_z = slope + noise * torch.exp(-0.5 * log_var)
        path = torch.cat([through_z, 0.5 * through_z * torch.exp(0.5 * log_var) * noise], -1)
        weights = log_joint - q_of(mean, log_var).log_prob(z)
        expected = dreg_gradient(weights.detach(), path.detach())
        row = found[e, 0] if members else found[0]
        torch.testing.assert_close(row, expected, rtol=1e-11, atol=1e-11)


def test_streamed_and_sampled_gradients_of_a_vae_have_one_mean() -> None:
    """An encoder's output at one x: 4000 streamed draws against 4000 estimates, 5 standard errors."""
    assert (streamed_against_estimates(seed=20).abs() < 5).all()


def streamed_against_estimates(seed: int) -> Tensor:
    vae, x = small_vae(), PICTURES[[13]]
    mean, log_var = (part.detach() for part in vae.encode(x))
    many = [part.expand(4000, 2).clone().requires_grad_() for part in (mean, log_var)]
    bound = streamed_iwae_bound(
        vae.log_joint, x.expand(4000, 5), *many, parameters=vae.decoder.parameters(),
        num_samples=8, generator=seeded(seed), rows=4000,
    )  # fmt: skip
    streamed = torch.cat(torch.autograd.grad(bound.sum(), many), -1)  # (4000, 4)
    sampled = iwae_gradient_estimates(
        lambda z: vae.log_joint(x.expand(len(z), 5), z), mean[0], log_var[0],
        num_samples=8, num_estimates=4000, generator=seeded(seed + 1000),
    )  # fmt: skip
    error = (streamed.var(0) + sampled.var(0)).sqrt() / 4000**0.5
    return (streamed.mean(0) - sampled.mean(0)) / error


# importance_log_weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [None, 3])
def test_blocks_are_drawn_one_after_the_other(members: int | None) -> None:
    """11 samples of 6 pictures: pictures two at a time and 20 samples, all at once, or one by one."""
    vae, x = small_vae(members=members), PICTURES[:6]
    plans = ((40, [(2, 11)] * 3), (10**6, [(6, 11)]), (130, [(6, 11)]), (1, [(1, 1)] * 66))
    for rows, blocks in plans:
        given = rows * (members or 1)
        log_w = importance_log_weights(vae, x, num_samples=11, generator=seeded(), rows=given)
        assert log_w.shape == ((11, 6) if members is None else (3, 11, 6)) and not log_w.requires_grad
        generator, first = seeded(), 0
        for pictures, samples in blocks:
            at, k = divmod(first, 11)
            part = x[at : at + pictures]
            expected = vae.log_weights(part, num_samples=samples, generator=generator)
            assert torch.equal(log_w[..., k : k + samples, at : at + pictures], expected)
            first += samples * pictures


def linear_vae() -> tuple[VAE, LinearGaussian]:
    """An affine decoder; the encoder's mean is the posterior's plus 0.1, its variance 1.4 times that."""
    W = torch.tensor([[1.0, 0.0], [0.0, 1.5], [0.0, 0.0]], dtype=F64)  # a diagonal posterior
    b = torch.tensor([0.5, -1.0, 0.2], dtype=F64)
    model = LinearGaussian(W, b, 0.5)
    variance = model.posterior(torch.zeros(1, 3, dtype=F64))[1][0].diagonal()
    decoder = GaussianDecoder(MLP([2, 3]), math.log(0.5)).double()
    encoder = MLP([3, 4]).double()
    with torch.no_grad():
        decoder.log_var.fill_(math.log(0.5))  # in float64
        decoder.net.layers[0].weight.copy_(W.T)
        decoder.net.layers[0].bias.copy_(b)
        matrix = model.encoder()  # (d, m)
        encoder.layers[0].weight.copy_(torch.cat([matrix.T, torch.zeros(3, 2, dtype=F64)], 1))
        encoder.layers[0].bias.copy_(torch.cat([0.1 - matrix @ b, (1.4 * variance).log()]))
    return VAE(encoder, decoder, 2), model


def off_the_evidence(seed: int, num_samples: int = 5000) -> tuple[Tensor, Tensor, Tensor]:
    """``log p(x)`` minus a draw; how many standard errors the mean weight and that are off: (6,) each."""
    vae, model = linear_vae()
    x = model.sample(6, seeded(seed))[0]
    log_w = importance_log_weights(vae, x, num_samples=num_samples, generator=seeded(seed))
    ratio = (log_w - model.log_prob(x)).exp()  # w / p(x), mean 1
    gap = model.log_prob(x) - iwae_bound(log_w, dim=-2)
    error = ratio.std(0) / num_samples**0.5
    return gap, (ratio.mean(0) - 1) / error, gap / error


def test_the_bound_of_a_linear_vae_is_near_its_exact_evidence() -> None:
    """K = 5000: five standard errors, which are below 1 % of p(x); and an encoder that is not exact."""
    gap, weight_off, gap_off = off_the_evidence(seed=20)
    assert (weight_off.abs() < 5).all() and (gap_off.abs() < 5).all() and gap.abs().max() < 0.05
    vae, model = linear_vae()
    x = model.sample(6, seeded(20))[0]
    mean, log_var = vae.encode(x)
    assert (model.log_prob(x) - model.elbo(x, mean, torch.diag_embed(log_var.exp())) > 0.03).all()


def test_the_bound_of_a_nonlinear_vae_is_near_quadrature() -> None:
    """With members, K = 5000: five standard errors."""
    assert (off_the_quadrature(seed=20).abs() < 5).all()


def off_the_quadrature(seed: int) -> Tensor:
    vae, x = small_vae("autoregressive", members=2), PICTURES[::9]
    log_w = importance_log_weights(vae, x, num_samples=5000, generator=seeded(seed))
    ratio = (log_w - quadrature_log_prob(vae, x, 64).detach()[:, None]).exp()
    return (ratio.mean(1) - 1) / ratio.std(1) * 5000**0.5


@pytest.mark.parametrize("members", [None, 2])
def test_dtype_and_device_follow_and_gradients_are_kept_or_not(
    members: int | None, device: torch.device
) -> None:
    vae = small_vae(members=members).to(device=device, dtype=torch.float32)
    x = PICTURES[:4].to(device=device, dtype=torch.float32)
    kept = vae.log_weights(x, num_samples=3, generator=seeded(device=device))
    free = importance_log_weights(vae, x, num_samples=3, generator=seeded(device=device))
    assert kept.requires_grad and not free.requires_grad and torch.equal(kept.detach(), free)
    assert free.dtype == torch.float32 and free.device.type == device.type
    assert importance_log_weights(vae, x[:1], num_samples=2).shape[-2:] == (2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.log_weights(PICTURES, num_samples=0), "num_samples must be at least 1, got 0"),
        (lambda vae: importance_log_weights(vae, PICTURES, num_samples=0), r"at least 1, got 0 and"),
        (lambda vae: importance_log_weights(vae, PICTURES[:0]), r"B >= 1, got \(0, 5\)"),
        (lambda vae: importance_log_weights(vae, PICTURES[0]), r"got \(5,\): use x.unsqueeze\(0\)"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call: Callable[[VAE], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small_vae())
