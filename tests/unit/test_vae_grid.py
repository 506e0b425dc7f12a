"""grid_terms and posterior_log_prob: linear-Gaussian closed forms, surgery, members one by one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from prior_zoo import F64, PICTURES, seeded
from small_flow_posteriors import CONTEXT, build, pictures, q_of
from small_vaes import small_vae
from torch import Tensor
from torch.distributions import MultivariateNormal

from dgm_course.flows import FixedLinear
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.nets import Linear, member
from dgm_course.numerics import gauss_legendre
from dgm_course.priors import MixturePrior
from dgm_course.surgery import Estimate, vae_surgery
from dgm_course.vae import VAE, FlowPosteriorVAE, GaussianDecoder, grid_terms, quadrature_elbo

EXACT = {"rtol": 1e-10, "atol": 1e-10}
GRID = gauss_legendre(-10.0, 10.0, 160, num_dims=2)
COARSE = gauss_legendre(-8.0, 8.0, 40, num_dims=2)
NAMES = ("log_q", "log_q_agg", "mass", "elbo", "log_px", "marginal_kl")


def linear_model(flow: bool, members: int | None = None) -> tuple[VAE, LinearGaussian]:
    """An affine VAE, its posterior behind a fixed linear map or not; one model for each member."""
    generator = seeded(5)
    encoder = Linear(3, 4, members=members, generator=generator).double()
    net = Linear(2, 3, members=members, generator=generator).double()
    with torch.no_grad():
        net.weight.mul_(2.0)
        encoder.bias[..., 2:] -= 0.7
    decoder = GaussianDecoder(net, math.log(0.4)).double()
    model = LinearGaussian(net.weight.detach().mT, net.bias.detach(), math.exp(decoder.log_var.item()))
    if not flow:
        return VAE(encoder, decoder, 2), model
    map_ = FixedLinear(torch.tensor([[0.8, -0.3], [0.5, 1.1]], dtype=F64), torch.tensor([0.2, -0.4]))
    return FlowPosteriorVAE(encoder, decoder, 2, map_), model


def gaussian_q(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of q(z|x)."""
    mean, log_var = (part.detach() for part in vae.encode(x))
    cov = torch.diag_embed(log_var.exp())
    if isinstance(vae, FlowPosteriorVAE):
        matrix, shift = vae.flow.matrix, vae.flow.shift
        return mean @ matrix.T + shift, matrix @ cov @ matrix.T
    return mean, cov


@pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])
@pytest.mark.parametrize("flow", [False, True], ids=["Gaussian", "flow"])
def test_every_term_of_a_linear_model_in_closed_form(flow: bool, members: int | None) -> None:
    vae, model = linear_model(flow, members)
    x = torch.randn(5, 3, dtype=F64, generator=seeded())
    terms = grid_terms(vae, x, *GRID)
    stack = () if members is None else (members,)
    mean, cov = gaussian_q(vae, x)
    nodes, weights = GRID
    log_q = MultivariateNormal(mean.unsqueeze(-2), cov.unsqueeze(-3)).log_prob(nodes)  # ([E,] B, N)
    log_aggregate = torch.logsumexp(log_q, -2) - math.log(5)
    log_prior = MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)).log_prob(nodes)
    expected = {
        "log_q": log_q,
        "log_q_agg": log_aggregate,
        "mass": torch.ones(*stack, 5, dtype=F64),
        "elbo": model.elbo(x, mean, cov),
        "log_px": model.log_prob(x),
        "marginal_kl": (weights * log_aggregate.exp() * (log_aggregate - log_prior)).sum(-1),
    }
    for name in NAMES:
        assert getattr(terms, name).shape == expected[name].shape and not getattr(terms, name).requires_grad
        torch.testing.assert_close(getattr(terms, name), expected[name], **EXACT)
    gap = model.posterior_kl(x, mean, cov)
    torch.testing.assert_close(terms.log_px - terms.elbo, gap, **EXACT)
    assert (gap > 0.01).all()


def test_one_point_s_marginal_kl_is_its_kl() -> None:
    vae, _ = linear_model(flow=True)
    x = torch.randn(1, 3, dtype=F64, generator=seeded())
    mean, cov = gaussian_q(vae, x)
    standard = MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    kl = torch.distributions.kl_divergence(MultivariateNormal(mean[0], cov[0]), standard)
    torch.testing.assert_close(grid_terms(vae, x, *GRID).marginal_kl, kl, **EXACT)


@pytest.mark.parametrize("own_prior", [False, True], ids=["N(0, I)", "mixture"])
@pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])
def test_against_surgery_and_gauss_hermite(own_prior: bool, members: int | None) -> None:
    """A Gaussian posterior: the ELBO by another quadrature, both estimated, within 5 standard errors."""
    assert (off_the_surgery(own_prior, members, seed=20).abs() < 5).all()


def off_the_surgery(own_prior: bool, members: int | None, seed: int) -> Tensor:
    bare = small_vae(seeded(1), members, kind="bernoulli")
    prior = MixturePrior(3, 2, members=members, generator=seeded(2)).double() if own_prior else None
    vae = VAE(bare.encoder, bare.decoder, 2, prior=prior)
    x = pictures()
    terms = grid_terms(vae, x, *GRID)
    torch.testing.assert_close(terms.elbo, quadrature_elbo(vae, x, 64).elbo, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        surgery = vae_surgery(vae, x, num_samples=4000, generator=seeded(seed))
    gaps = []
    for values, exact in ((surgery.marginal_kl, terms.marginal_kl), (surgery.elbo, terms.elbo.mean(-1))):
        estimate = Estimate.of(values)
        gaps.append((estimate.mean - exact) / estimate.standard_error)
    return torch.stack(gaps)


@pytest.mark.parametrize("kind", ["autoregressive", "bernoulli", "categorical", "gaussian"])
@pytest.mark.parametrize("flow", [False, True], ids=["Gaussian", "flow"])
def test_a_stack_is_its_members_side_by_side(kind: str, flow: bool) -> None:
    """Shared x, and each member's own; with as many members as points no shape would show a mix-up."""
    vae = build("IAF", CONTEXT, 3, kind=kind) if flow else small_vae(seeded(1), 3, kind=kind)
    for x in (pictures()[:3], pictures(3)[:, :3], pictures(3)[:, :2]):
        terms = grid_terms(vae, x, *COARSE)
        for e in range(3):
            alone = grid_terms(member(vae, e), x if x.dim() == 2 else x[e], *COARSE)
            for name in NAMES:
                torch.testing.assert_close(getattr(terms, name)[e], getattr(alone, name), **EXACT)


def test_mass_tells_of_a_grid_that_is_too_small() -> None:
    """What a square holds of a diagonal Gaussian, by its distribution function in each direction."""
    vae, _ = linear_model(flow=False)
    x = torch.randn(3, 3, dtype=F64, generator=seeded())
    mean, cov = gaussian_q(vae, x)
    sd = cov.diagonal(dim1=-2, dim2=-1).sqrt()
    edges = [torch.special.ndtr((side - mean) / sd) for side in (0.5, -0.7)]
    terms = grid_terms(vae, x, *gauss_legendre(-0.7, 0.5, 60, num_dims=2))
    torch.testing.assert_close(terms.mass, (edges[0] - edges[1]).prod(-1), **EXACT)
    assert (terms.mass < 0.9).all()


def test_one_latent_and_one_point() -> None:
    vae = small_vae(seeded(), latent_dim=1, kind="bernoulli")
    terms = grid_terms(vae, PICTURES[:1], *gauss_legendre(-12.0, 12.0, 300))
    torch.testing.assert_close(terms.elbo, quadrature_elbo(vae, PICTURES[:1], 64).elbo.detach(), **EXACT)
    torch.testing.assert_close(terms.mass, torch.ones(1, dtype=F64), **EXACT)


def test_dtype_and_device_follow(device: torch.device) -> None:
    for vae in (build("IAF", CONTEXT), build("planar"), small_vae(seeded(), kind="bernoulli")):
        expected = grid_terms(vae, pictures(), *COARSE)
        for dtype, close in ((torch.float32, 1e-3), (F64, 1e-9)):
            there = copy.deepcopy(vae).to(device=device, dtype=dtype)
            kind, tolerance = {"dtype": dtype, "device": device}, {"rtol": close, "atol": close}
            grid = [part.to(**kind) for part in COARSE]
            terms = grid_terms(there, pictures().to(**kind), *grid)
            for name in NAMES[2:]:
                value = getattr(terms, name)
                assert value.dtype == dtype and value.device.type == device.type
                torch.testing.assert_close(value.double().cpu(), getattr(expected, name), **tolerance)


@pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])
def test_log_prob_of_gaussian_posteriors(members: int | None) -> None:
    """At its samples, at points for each x, and at a grid that all x and all members share."""
    vae = small_vae(seeded(), members, kind="bernoulli")
    stack = () if members is None else (members,)
    for x in [pictures()] if members is None else [pictures(), pictures(members)]:
        z, log_q = vae.posterior_sample(x, num_samples=6, generator=seeded())
        torch.testing.assert_close(vae.posterior_log_prob(z, x), log_q, rtol=0.0, atol=0.0)
        mean, log_var = vae.encode(x)  # ([E,] B, d)
        q = q_of(mean.unsqueeze(-3), log_var.unsqueeze(-3))
        for points in (torch.randn(*stack, 6, 4, 2, dtype=F64, generator=seeded()), COARSE[0].unsqueeze(1)):
            found = vae.posterior_log_prob(points, x)
            assert found.shape == (*stack, points.shape[-3], 4)
            torch.testing.assert_close(found, q.log_prob(points), **EXACT)


NODES, WEIGHTS = COARSE
X = PICTURES[:2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: grid_terms(vae, X, NODES[:, :1], WEIGHTS), r"nodes must be \(N, 2\).*got \(1600, 1\)"),
        (lambda vae: grid_terms(vae, X, NODES[None], WEIGHTS), r"got \(1, 1600, 2\).*num_dims=2"),
        (lambda vae: grid_terms(vae, X, NODES, WEIGHTS[:5]), r"weights \(N,\), got \(1600, 2\) and \(5,\)"),
        (lambda vae: grid_terms(vae, X, NODES, WEIGHTS[:, None]), r"\(1600, 1\): use numerics.gauss_leg"),
        (lambda vae: grid_terms(vae, X, NODES.float(), WEIGHTS), "torch.float64, got torch.float32 and"),
        (lambda vae: grid_terms(vae, X, NODES, WEIGHTS.float()), r"vae.double\(\)"),
        (lambda vae: grid_terms(vae.float(), X.float(), NODES, WEIGHTS), "dtype=torch.float32"),
        (lambda vae: grid_terms(vae, X[0], NODES, WEIGHTS), r"x must be \(B, m\).*got \(5,\)"),
        (lambda vae: grid_terms(vae, X[None], NODES, WEIGHTS), r"x must be \(B, m\).*got \(1, 2, 5\)"),
    ],
)
@pytest.mark.parametrize("flow", [False, True], ids=["Gaussian", "flow"])
def test_bad_input_is_refused_with_a_reason(call: Callable[[VAE], object], message: str, flow: bool) -> None:
    with pytest.raises(ValueError, match=message):
        call(build("IAF") if flow else small_vae(seeded(), kind="bernoulli"))
