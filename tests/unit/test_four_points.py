"""The toy of four data points: exact probabilities, the bound, samples, stacks, refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from prior_zoo import F64, seeded
from torch import Tensor

from dgm_course.nets import member
from dgm_course.numerics import gauss_legendre
from dgm_course.vae import (
    VAE,
    FlowPosteriorVAE,
    QuadrantDecoder,
    dreg_loss,
    four_point_vae,
    grid_terms,
    importance_log_weights,
    quadrature_log_prob,
    vae_loss,
)

POINTS = torch.eye(4, dtype=F64)
CORNERS = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=F64)
GRID = gauss_legendre(-8.0, 8.0, 120, num_dims=2)
steps = pytest.mark.parametrize("num_steps", [0, 1, 2])


def toy(num_steps: int, members: int | None = None, log_var: float = -1.0, **kind: float) -> VAE:
    """In float64, its parameters off their initial values; a soft border, which a grid resolves.

    At ``log_var=-1`` all of the posteriors lies on the grid.
    """
    kind = {"sharpness": 3.0, "hidden": 6, "context_dim": 3, **kind}
    vae = four_point_vae(num_steps, members=members, generator=seeded(), **kind).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=F64, generator=seeded(1)))
        vae.encoder.bias[..., 2:4] += log_var
    return vae


# the decoder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.5, 20.0, 1e3])
def test_the_four_probabilities(sharpness: float) -> None:
    """A product of two sigmoids each; they sum to one at every z, far out too."""
    decoder = QuadrantDecoder(sharpness)
    z = torch.cat([torch.randn(200, 2, dtype=F64, generator=seeded()), 1e3 * CORNERS, torch.zeros(1, 2)])
    log_p = decoder.log_probs(z)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(205, dtype=F64), rtol=1e-14, atol=1e-14)
    one, two = torch.sigmoid(sharpness * z).T
    product = torch.stack([one * two, (1 - one) * two, (1 - one) * (1 - two), one * (1 - two)], -1)
    torch.testing.assert_close(log_p.exp(), product, rtol=1e-12, atol=1e-14)
    for i, corner in enumerate(CORNERS):  # point i owns the quadrant of corner i, anticlockwise
        assert decoder.log_probs(3.0 * corner).argmax() == i
        found = decoder.log_prob(POINTS[i], z)
        torch.testing.assert_close(found, log_p[:, i], rtol=0.0, atol=0.0)
    torch.testing.assert_close(log_p[-1], torch.full((4,), -math.log(4.0), dtype=F64))
    assert log_p.isfinite().all()


def test_shapes_broadcast_as_in_every_decoder() -> None:
    decoder, z = QuadrantDecoder(), torch.randn(5, 3, 2, dtype=F64, generator=seeded())
    assert decoder.log_prob(POINTS[:3], z).shape == (5, 3)
    assert decoder.log_prob(POINTS[0], z).shape == (5, 3)
    assert decoder.log_prob(POINTS.long(), z[:, :1]).shape == (5, 4)
    assert decoder.sample(z, seeded()).shape == (5, 3, 4)
    assert decoder.sample(z[0, 0], seeded()).shape == (4,)
    assert not list(decoder.parameters())


def test_in_a_stack_each_member_s_x_meets_its_own_z() -> None:
    """As many members as samples: x (E, B, 4) beside z (E, S, B, 2) must not be taken for samples."""
    decoder = QuadrantDecoder(members=3)
    z = torch.randn(3, 3, 4, 2, dtype=F64, generator=seeded())  # (E, S, B, 2)
    x = POINTS[torch.randint(4, (3, 4), generator=seeded())]  # (E, B, 4)
    found = decoder.log_prob(x, z)
    alone = member(decoder, 0)
    assert alone.members is None
    for e in range(3):
        torch.testing.assert_close(found[e], alone.log_prob(x[e], z[e]), rtol=0.0, atol=0.0)


def test_a_sample_follows_the_probabilities() -> None:
    """20 000 at one z each: frequencies within 5 standard errors."""
    decoder = QuadrantDecoder(1.0)
    for z in torch.tensor([[0.3, -0.8], [2.0, 1.0], [0.0, 0.0]], dtype=F64):
        x = decoder.sample(z.expand(20_000, 2), seeded(20))
        p = decoder.log_probs(z).exp()
        assert x.dtype == F64 and bool(((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all())
        assert ((x.mean(0) - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()


# the model --------------------------------------------------------------------------------------------------


@steps
@pytest.mark.parametrize("members", [None, 3], ids=["single", "stack"])
def test_the_evidence_is_a_quarter_and_the_bound_below_it(num_steps: int, members: int | None) -> None:
    """Whatever the posteriors: log p(x) = -log 4, ELBO <= -log 4. With a sharp border as well."""
    vae = toy(num_steps, members)
    terms = grid_terms(vae, POINTS, *GRID)
    shape = (4,) if members is None else (3, 4)
    quarter = torch.full(shape, -math.log(4.0), dtype=F64)
    torch.testing.assert_close(terms.log_px, quarter, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(terms.mass, torch.ones(shape, dtype=F64), rtol=1e-9, atol=1e-9)
    assert (terms.elbo < -math.log(4.0)).all() and (terms.marginal_kl > 0).all()
    found = quadrature_log_prob(vae, POINTS, 200)
    torch.testing.assert_close(found, quarter[0].expand_as(found), rtol=1e-9, atol=1e-9)
    # half the nodes are on either side of the border, so even a sharp one costs nothing
    sharp = grid_terms(toy(num_steps, members, sharpness=20.0), POINTS, *GRID).log_px
    torch.testing.assert_close(sharp, quarter, rtol=1e-6, atol=1e-6)


def test_the_exact_posteriors_tile_the_prior() -> None:
    """p(z|x = i) = 4 p(x = i|z) p(z): normalised, and their mixture is N(0, I)."""
    decoder, (nodes, weights) = QuadrantDecoder(3.0), GRID
    prior = -0.5 * nodes.square().sum(-1) - math.log(2 * math.pi)
    posteriors = math.log(4.0) + decoder.log_probs(nodes) + prior[:, None]  # (N, 4)
    mass = weights @ posteriors.exp()
    torch.testing.assert_close(mass, torch.ones(4, dtype=F64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posteriors.exp().mean(-1), prior.exp(), rtol=1e-12, atol=1e-12)


@steps
def test_terms_and_weights_against_the_grid(num_steps: int) -> None:
    """4000 draws, 5 standard errors: the ELBO, and E[w] = 1/4 (of a q as wide as the prior)."""
    assert all((gap.abs() < 5).all() for gap in off_the_grid(num_steps, seed=20))


def off_the_grid(num_steps: int, seed: int) -> tuple[Tensor, Tensor]:
    vae = toy(num_steps, log_var=0.5)
    exact = grid_terms(vae, POINTS, *gauss_legendre(-12.0, 12.0, 200, num_dims=2)).elbo
    with torch.no_grad():
        elbo = vae.terms(POINTS.expand(4000, 4, 4), generator=seeded(seed)).elbo
    ratio = 4.0 * importance_log_weights(vae, POINTS, num_samples=4000, generator=seeded(seed + 99)).exp()
    pairs = ((elbo, exact), (ratio, torch.ones(4, dtype=F64)))
    return tuple((drawn.mean(0) - value) / drawn.std(0) * 4000**0.5 for drawn, value in pairs)


def test_samples_of_the_model_are_the_four_points_evenly() -> None:
    """20 000: each a quarter, within 5 standard errors."""
    for vae in (toy(0), toy(1)):
        x = vae.sample(20_000, seeded(20))
        assert ((x.mean(0) - 0.25).abs() < 5 * (0.25 * 0.75 / 20_000) ** 0.5).all()
    x = toy(1, members=3).sample(7, seeded())
    assert x.shape == (3, 7, 4) and not x.requires_grad and (x.sum(-1) == 1).all()


@steps
def test_the_encoder_is_a_table(num_steps: int) -> None:
    """Gaussian or flow by the number of steps; moving one point's row moves that point alone."""
    vae = toy(num_steps)
    assert isinstance(vae, FlowPosteriorVAE) == (num_steps > 0) and vae.latent_dim == 2
    before, _ = vae.posterior_sample(POINTS, num_samples=3, generator=seeded())
    with torch.no_grad():
        vae.encoder.weight[2] += 0.5
    after, _ = vae.posterior_sample(POINTS, num_samples=3, generator=seeded())
    moved = (after - before).abs().sum((0, 2)) > 0
    assert moved.tolist() == [False, False, True, False]


def test_without_context_one_flow_is_shared() -> None:
    vae = toy(2, context_dim=0)
    assert isinstance(vae, FlowPosteriorVAE) and vae.context(POINTS) is None
    assert (grid_terms(vae, POINTS, *GRID).elbo < -math.log(4.0)).all()


@steps
def test_a_stack_is_its_members_side_by_side(num_steps: int) -> None:
    """Shared points, and each member's own four in another order."""
    vae = toy(num_steps, members=3)
    assert vae.members == vae.decoder.members == 3
    own = POINTS[torch.stack([torch.randperm(4, generator=seeded(e)) for e in range(3)])]  # (3, 4, 4)
    for x in (POINTS, own):
        log_w = vae.log_weights(x, num_samples=3, generator=seeded())  # S = E = 3
        z, log_q = vae.posterior_sample(x, num_samples=3, generator=seeded())
        terms = vae.terms(x, num_samples=3, generator=seeded())
        exact = grid_terms(vae, x, *GRID)
        assert vae_loss(terms).shape == dreg_loss(vae, x, num_samples=2, generator=seeded()).shape == (3,)
        for e in range(3):
            single, mine = member(vae, e), x if x is POINTS else x[e]
            expected = single.log_joint(mine, z[e]) - log_q[e]
            torch.testing.assert_close(log_w[e], expected, rtol=1e-12, atol=1e-12)
            alone = single.decoder.log_prob(mine, z[e]).mean(0)
            torch.testing.assert_close(terms.log_likelihood[e], alone, rtol=1e-12, atol=1e-12)
            elbo = grid_terms(single, mine, *GRID).elbo
            torch.testing.assert_close(exact.elbo[e], elbo, rtol=1e-10, atol=1e-10)


@steps
def test_training_is_possible_and_seeds_hold(num_steps: int) -> None:
    """40 steps on the ELBO raise the exact one; two models of one seed are one model."""
    vae = toy(num_steps)
    before = grid_terms(vae, POINTS, *GRID).elbo.mean()
    optimiser, generator = torch.optim.Adam(vae.parameters(), 0.05), seeded()
    for _ in range(40):
        optimiser.zero_grad()
        vae_loss(vae.terms(POINTS, num_samples=16, generator=generator)).backward()
        optimiser.step()
    after = grid_terms(vae, POINTS, *GRID)
    assert after.elbo.mean() > before + 0.5 and (after.elbo < -math.log(4.0)).all()
    first, second = (four_point_vae(num_steps, generator=seeded(8)).state_dict() for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@steps
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_and_device_follow(num_steps: int, dtype: torch.dtype, device: torch.device) -> None:
    vae = toy(num_steps)
    z = torch.randn(3, 4, 2, dtype=F64, generator=seeded())
    expected = vae.log_joint(POINTS, z)
    there, x = copy.deepcopy(vae).to(device, dtype), POINTS.to(device, dtype)
    own = torch.Generator(device).manual_seed(0)
    found = there.log_joint(x, z.to(device, dtype))
    close = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.double().cpu(), expected, rtol=close, atol=close)
    values = (found, there.terms(x, generator=own).elbo, there.sample(5, own))
    assert all(v.dtype == dtype and v.device.type == device.type for v in values)


Z = torch.zeros(4, 2, dtype=F64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: four_point_vae(-1), r"num_steps must be 0 \(Gaussian posteriors\) or more, got -1"),
        (lambda: four_point_vae(1, sharpness=0.0), "sharpness must be positive and finite, got 0.0"),
        (lambda: four_point_vae(0, sharpness=math.inf), "positive and finite, got inf"),
        (lambda: QuadrantDecoder(math.nan), "positive and finite, got nan"),
        (lambda: QuadrantDecoder(-1.0), "positive and finite, got -1.0"),
        (lambda: four_point_vae(1, hidden=1), "at least num_inputs=2 units, got hidden"),
        (lambda: four_point_vae(1, members=0), "members must be None or at least 1"),
        (lambda: QuadrantDecoder().log_prob(POINTS[:, :3], Z), r"as many entries.*x \(4, 3\)"),
        (lambda: QuadrantDecoder().log_prob(POINTS[:, :1], Z), r"as many entries.*x \(4, 1\)"),
        (lambda: QuadrantDecoder().log_probs(Z[:, :1]), r"latents \(..., 2\).*got \(4, 1\): build the VAE"),
        (lambda: QuadrantDecoder().sample(torch.zeros(4, 3)), r"got \(4, 3\)"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
