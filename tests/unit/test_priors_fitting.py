"""The objective of a prior under a frozen encoder: its value, its gradient, and where it leads."""

from __future__ import annotations

import math

import pytest
import torch
from prior_zoo import (
    CLOSE,
    F64,
    GRID,
    ZOO,
    build,
    every,
    lead,
    members_or_not,
    randn,
    seeded,
)
from torch import Tensor

from dgm_course.priors import (
    AggregatedPosterior,
    MixturePrior,
    StandardNormalPrior,
    cross_entropy,
)

# the objective ----------------------------------------------------------------------------------------------


@every
@members_or_not
def test_cross_entropy_of_all_points_is_a_mean_at_one_draw(name: str, members: int | None) -> None:
    prior = build(name, members)
    mean, log_var = randn(*lead(members), 9, 2), randn(*lead(members), 9, 2, seed=2)
    loss = cross_entropy(prior, mean, log_var, generator=seeded())
    z = mean + torch.exp(0.5 * log_var) * torch.randn(mean.shape, dtype=F64, generator=seeded())
    assert loss.shape == lead(members)
    torch.testing.assert_close(loss, -prior.log_prob(z).mean(-1), **CLOSE)


def test_a_batch_is_drawn_with_replacement_and_shared_by_the_members() -> None:
    """Posteriors of no width at whole numbers: the loss of a batch tells its rows."""
    prior = StandardNormalPrior(1, members=3).double()
    mean = torch.arange(5, dtype=F64).reshape(5, 1).expand(3, 5, 1)
    log_var = torch.full_like(mean, -200.0)
    losses = torch.stack(
        [cross_entropy(prior, mean, log_var, batch_size=1, generator=seeded(s)) for s in range(200)]
    )
    assert torch.equal(losses, losses[:, :1].expand(200, 3))
    rows = (2 * (losses[:, 0] - 0.5 * math.log(2 * math.pi))).clamp(min=0).sqrt()
    assert set(rows.round().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    torch.testing.assert_close(rows, rows.round(), rtol=0, atol=1e-6)
    assert cross_entropy(prior, mean, log_var, batch_size=50).shape == (3,), "more than there are points"
    shared = cross_entropy(StandardNormalPrior(1).double(), mean, log_var, generator=seeded())
    torch.testing.assert_close(shared, torch.full((3,), 3 + 0.5 * math.log(2 * math.pi), dtype=F64))


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ["mixture", "vamp", "maf"])
def test_the_gradient_is_that_of_the_forward_kl(name: str, d: int) -> None:
    """2000 draws of its gradient against KL(q_agg || p) by quadrature, 5 standard errors an entry."""
    assert (off_the_kl(name, d, seed=20).abs() < 5).all()


def test_the_gradient_of_a_batch_is_that_of_the_forward_kl() -> None:
    """500 draws of three points out of six, with replacement."""
    assert (off_the_kl("mixture", 1, seed=20, batch_size=3).abs() < 5).all()


def off_the_kl(name: str, d: int, seed: int, batch_size: int | None = None) -> Tensor:
    prior = build(name, d=d)
    mean, log_var = randn(6, d), 0.5 * randn(6, d, seed=2) - 1
    own = list(prior.parameters())
    z, weights = GRID[d]
    log_q = AggregatedPosterior(mean, log_var).log_prob(z)
    kl = (weights * log_q.exp() * (log_q - prior.log_prob(z))).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(kl, own)])
    generator = seeded(seed)
    if batch_size is None:  # a stack of equal priors: every member has its own draw
        many = ZOO[name](d, 2000, seeded()).double()
        with torch.no_grad():
            for copies, parameter in zip(many.parameters(), own, strict=True):
                copies.copy_(parameter.expand_as(copies))
        wide = (part.expand(2000, 6, d) for part in (mean, log_var))
        total = cross_entropy(many, *wide, generator=generator).sum()
        found = torch.cat([g.flatten(1) for g in torch.autograd.grad(total, list(many.parameters()))], 1)
    else:
        batch = {"batch_size": batch_size, "generator": generator}
        draws = [cross_entropy(prior, mean, log_var, **batch) for _ in range(500)]
        found = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(x, own)]) for x in draws])
    moving = found.std(0) > 0  # an entry that a mask hides has no gradient at all
    assert (exact[~moving] == 0).all() and moving.sum() > 0.5 * len(moving)
    return ((found.mean(0) - exact) / found.std(0) * len(found) ** 0.5)[moving]


@pytest.mark.parametrize("d", [1, 2])
def test_fitting_approaches_the_entropy_of_the_aggregated_posterior_from_above(d: int) -> None:
    """A mixture of as many components as there are points; cross entropy and entropy by quadrature."""
    mean, log_var = 2 * randn(3, d), 0.3 * randn(3, d, seed=2) - 1
    z, weights = GRID[d]
    log_q = AggregatedPosterior(mean, log_var).log_prob(z)
    entropy = -(weights * log_q.exp() * log_q).sum()
    prior = MixturePrior(3, d, generator=seeded()).double()
    prior.start_from(mean, log_var, seeded())
    with torch.no_grad():
        prior.log_vars.add_(2.0)  # wider than that, or there is nothing left to learn
    optimiser = torch.optim.Adam(prior.own_parameters(), lr=0.05)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, total_iters=300)
    generator, gaps = seeded(), []
    for step in range(301):
        if step % 100 == 0:
            with torch.no_grad():
                gaps.append(float(-(weights * log_q.exp() * prior.log_prob(z)).sum() - entropy))
        optimiser.zero_grad()
        loss = cross_entropy(prior, mean.repeat(50, 1), log_var.repeat(50, 1), generator=generator)
        loss.backward()
        optimiser.step()
        slower.step()
    assert min(gaps) > 0 and gaps[-1] < 0.5 * gaps[0]


@pytest.mark.parametrize("name", ["vamp", "realnvp", "maf"])
def test_other_priors_improve_too_and_a_frozen_encoder_stays(name: str) -> None:
    """Never below the entropy; the encoder of a VampPrior is not touched."""
    mean, log_var = 2 * randn(3, 2), 0.3 * randn(3, 2, seed=2) - 1
    z, weights = GRID[2]
    log_q = AggregatedPosterior(mean, log_var).log_prob(z)
    prior = build(name)
    others = prior.encoder.requires_grad_(False).state_dict() if name == "vamp" else {}
    before = {key: value.clone() for key, value in others.items()}
    optimiser, generator, gaps = torch.optim.Adam(prior.own_parameters(), lr=0.02), seeded(), []
    for step in range(101):
        if step % 50 == 0:
            with torch.no_grad():
                gaps.append(float((weights * log_q.exp() * (log_q - prior.log_prob(z))).sum()))
        optimiser.zero_grad()
        cross_entropy(prior, mean.repeat(50, 1), log_var.repeat(50, 1), generator=generator).backward()
        optimiser.step()
    assert gaps[-1] < gaps[0] and min(gaps) > 0
    assert all(torch.equal(before[key], value) for key, value in others.items())
    if name == "vamp":
        assert all(parameter.grad is None for parameter in prior.encoder.parameters())
