"""The bound's terms, the loss and the exact small cases, against independent computations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from small_vaes import small_vae
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.nets import MLP, member
from dgm_course.vae import (
    VAE,
    BernoulliDecoder,
    ELBOTerms,
    GaussianDecoder,
    active_units,
    free_bits_kl,
    kl_weight,
    quadrature_elbo,
    quadrature_log_prob,
    vae_loss,
)

F64 = torch.float64


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def everything(m: int, levels: int) -> Tensor:
    """All levels ** m pictures."""
    return torch.tensor(list(itertools.product(range(levels), repeat=m)), dtype=F64)


def test_terms_are_the_elbo_written_with_torch_distributions(generator: torch.Generator) -> None:
    vae = small_vae(generator, kind="bernoulli")
    x = everything(5, 2)
    for num_samples in (1, 3):
        terms = vae.terms(x, generator=torch.Generator().manual_seed(3), num_samples=num_samples)
        mean, log_var = vae.encode(x)
        q = Normal(mean, (0.5 * log_var).exp())
        eps = torch.randn(num_samples, *mean.shape, dtype=F64, generator=torch.Generator().manual_seed(3))
        log_p = Bernoulli(logits=vae.decoder.net(q.mean + q.stddev * eps)).log_prob(x).sum(-1).mean(0)
        kl = kl_divergence(q, Normal(torch.zeros(2, dtype=F64), 1.0))
        torch.testing.assert_close(terms.log_likelihood, log_p)
        torch.testing.assert_close(terms.kl_per_dim, kl)
        torch.testing.assert_close(terms.kl, kl.sum(-1))
        torch.testing.assert_close(terms.elbo, log_p - kl.sum(-1))


def test_sampled_terms_agree_with_quadrature(generator: torch.Generator) -> None:
    for kind in ("autoregressive", "bernoulli", "categorical", "gaussian"):
        vae = small_vae(generator, kind=kind)
        x = everything(5, 2)[:7]
        exact = quadrature_elbo(vae, x, 24)
        draws = torch.stack([vae.terms(x, generator=generator).log_likelihood for _ in range(400)]).detach()
        band = 5 * draws.std(0) / math.sqrt(400)
        assert ((draws.mean(0) - exact.log_likelihood).abs() < band).all()


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quadrature_equals_the_exact_model(latent_dim: int, generator: torch.Generator) -> None:
    decoder = GaussianDecoder(MLP([latent_dim, 3], generator=generator), math.log(0.4))
    vae = VAE(MLP([3, 2 * latent_dim], generator=generator), decoder, latent_dim).double()
    layer = decoder.net.layers[0]
    model = LinearGaussian(layer.weight.detach().mT, layer.bias.detach(), decoder.log_var.exp())
    x = randn(6, 3)
    torch.testing.assert_close(quadrature_log_prob(vae, x), model.log_prob(x), rtol=1e-10, atol=1e-10)
    mean, log_var = vae.encode(x)
    terms = quadrature_elbo(vae, x, 8)
    torch.testing.assert_close(
        terms.elbo, model.elbo(x, mean, torch.diag_embed(log_var.exp())), rtol=1e-10, atol=1e-10
    )
    assert (terms.elbo < quadrature_log_prob(vae, x)).all()


@pytest.mark.parametrize("kind", ["autoregressive", "bernoulli", "categorical", "gaussian"])
def test_stacked_members_equal_the_same_models_one_by_one(kind: str, generator: torch.Generator) -> None:
    vae = small_vae(generator, members=3, kind=kind)
    shared = everything(5, 2)[:6]
    own = everything(5, 2)[torch.randint(0, 32, (3, 6), generator=generator)]  # (3, 6, 5)
    for x in (shared, own):
        many = quadrature_elbo(vae, x, 6)
        log_p = quadrature_log_prob(vae, x, 12)
        sampled = [vae.terms(x, generator=generator, num_samples=s) for s in (1, 4)]
        assert many.kl_per_dim.shape == (3, 6, 2) and log_p.shape == (3, 6)
        assert all(t.log_likelihood.shape == (3, 6) and t.kl_per_dim.shape == (3, 6, 2) for t in sampled)
        for e in range(3):
            single, mine = member(vae, e), x if x is shared else x[e]
            alone = quadrature_elbo(single, mine, 6)
            torch.testing.assert_close(many.log_likelihood[e], alone.log_likelihood)
            torch.testing.assert_close(many.kl_per_dim[e], alone.kl_per_dim)
            torch.testing.assert_close(log_p[e], quadrature_log_prob(single, mine, 12))


def test_several_samples_of_a_stack_average_over_the_sample_dimension(generator: torch.Generator) -> None:
    vae = small_vae(generator, members=3)
    x = everything(5, 2)
    exact = quadrature_elbo(vae, x, 24).log_likelihood  # (3, 32)
    draws = torch.stack(
        [vae.terms(x, generator=generator, num_samples=20).log_likelihood for _ in range(40)]
    ).detach()
    assert ((draws.mean(0) - exact).abs() < 6 * draws.std(0) / math.sqrt(40)).all()


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("kind", ["autoregressive", "bernoulli", "categorical", "gaussian"])
def test_samples_of_the_model(kind: str, members: int | None, generator: torch.Generator) -> None:
    vae = small_vae(generator, members, kind=kind)
    x = vae.sample(11, generator)
    assert x.shape == ((11, 5) if members is None else (3, 11, 5)) and x.dtype == F64
    assert not x.requires_grad
    shared = vae.decoder.sample(randn(7, 2), generator)
    assert shared.shape == ((7, 5) if members is None else (3, 7, 5))
    if members:
        assert not torch.equal(x[0], x[1])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("members", [None, 2])
def test_dtype_and_device_follow_the_parameters(
    dtype: torch.dtype, members: int | None, device: torch.device, generator: torch.Generator
) -> None:
    own = torch.Generator(device).manual_seed(0)
    for kind in ("autoregressive", "bernoulli", "categorical", "gaussian"):
        vae = small_vae(generator, members, kind=kind).to(device=device, dtype=dtype)
        x = everything(5, 2).to(device=device, dtype=dtype)
        loss = vae_loss(vae.terms(x, generator=own, num_samples=2), free_bits=0.1)
        exact, log_p = quadrature_elbo(vae, x, 8), quadrature_log_prob(vae, x, 32)
        for value in (loss, exact.elbo, log_p, vae.sample(3, own)):
            assert value.dtype == dtype and value.device.type == device.type


def test_loss_is_minus_the_objective() -> None:
    terms = ELBOTerms(randn(6), randn(6, 3, seed=2).abs())
    torch.testing.assert_close(vae_loss(terms), -terms.elbo.mean())
    torch.testing.assert_close(
        vae_loss(terms, beta=0.3), -(terms.log_likelihood.mean() - 0.3 * terms.kl.mean())
    )
    floor = terms.kl_per_dim.mean(0).clamp(min=0.8).sum()
    expected = 2 * floor - terms.log_likelihood.mean()
    torch.testing.assert_close(vae_loss(terms, beta=2.0, free_bits=0.8), expected)
    weights = torch.softmax(randn(6, seed=3), 0)
    torch.testing.assert_close(vae_loss(terms, weights=weights), -(weights * terms.elbo).sum())
    torch.testing.assert_close(vae_loss(terms, weights=torch.full((6,), 1 / 6, dtype=F64)), vae_loss(terms))


def test_loss_of_a_stack_has_one_entry_a_member() -> None:
    terms = ELBOTerms(randn(4, 6), randn(4, 6, 3, seed=2).abs())
    beta = torch.tensor([0.0, 0.5, 1.0, 4.0], dtype=F64)
    together = vae_loss(terms, beta=beta, free_bits=0.7)
    for e in range(4):
        own = ELBOTerms(terms.log_likelihood[e], terms.kl_per_dim[e])
        torch.testing.assert_close(together[e], vae_loss(own, beta=float(beta[e]), free_bits=0.7))


def test_free_bits_take_the_batch_s_mean_first() -> None:
    kl = torch.tensor([[0.0, 2.0], [1.0, 4.0]], dtype=F64)  # means .5 and 3
    assert float(free_bits_kl(kl, 0.0)) == 3.5
    assert float(free_bits_kl(kl, 0.75)) == 3.75
    assert float(free_bits_kl(kl, 5.0)) == 10.0
    assert float(free_bits_kl(kl, 0.75, weights=torch.tensor([0.0, 1.0]))) == 5.0


def test_kl_weight_rises_linearly_and_stays_at_one() -> None:
    assert [kl_weight(s, 10) for s in (0, 3, 10, 11, 10_000)] == [0.0, 0.3, 1.0, 1.0, 1.0]
    assert kl_weight(0, 0) == kl_weight(7, 0) == 1.0
    assert isinstance(kl_weight(5, 2), float)


def test_active_units_use_the_population_variance() -> None:
    means = torch.tensor([[0.0, 1.0, 5.0], [0.19, 1.3, 5.0]], dtype=F64)  # variances .009, .0225, 0
    assert active_units(means).tolist() == [False, True, False]
    assert active_units(means, 0.009).tolist() == [True, True, False]
    assert active_units(means.expand(4, 2, 3)).shape == (4, 3)


def tiny(encoder_out: int = 2, latent_dim: int = 1, **members: int) -> VAE:
    """Two pixels; the keywords stack encoder and decoder."""
    encoder = MLP([2, encoder_out], members=members.get("encoder"))
    return VAE(encoder, BernoulliDecoder(MLP([3, 2], members=members.get("decoder"))), latent_dim)


X = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny(latent_dim=0), "latent_dim"),
        (lambda: tiny(encoder_out=3).encode(X), "2 \\* latent_dim"),
        (lambda: tiny(encoder=2, decoder=3), "same number of members"),
        (lambda: tiny().terms(X, num_samples=0), "num_samples"),
        (lambda: tiny().sample(0), "n must"),
        (lambda: quadrature_elbo(tiny(6, 3), X), "latent_dim <= 2"),
        (lambda: quadrature_elbo(tiny(6, 1), X[0]), r"x must be \(..., B, m\)"),
        (lambda: quadrature_log_prob(tiny(6, 3), X), "latent_dim <= 2"),
        (lambda: free_bits_kl(torch.zeros(2, 2), -0.1), "free_nats"),
        (lambda: free_bits_kl(torch.zeros(2, 2), 0.1, weights=torch.ones(3)), "weights"),
        (lambda: kl_weight(-1, 3), "step"),
        (lambda: kl_weight(1, -3), "warmup_steps"),
        (lambda: active_units(torch.zeros(3)), "n, d"),
        (lambda: active_units(torch.zeros(0, 3)), "n >= 1"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
