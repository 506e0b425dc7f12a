"""What is particular to each prior: where it starts, what it shares, what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from prior_zoo import (
    CLOSE,
    F64,
    FLOWS,
    SHARED,
    ZOO,
    build,
    lead,
    members_or_not,
    randn,
    seeded,
)
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.flows import ActNorm, FixedAffine
from dgm_course.nets import MLP, member
from dgm_course.priors import (
    AggregatedPosterior,
    FlowPrior,
    MixturePrior,
    StandardNormalPrior,
    VampPrior,
    cross_entropy,
)

# flows and mixtures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
@members_or_not
def test_flow_priors_start_as_the_standard_normal(name: str, members: int | None) -> None:
    prior = ZOO[name](3, members, seeded()).double()
    z = 3 * randn(*lead(members), 50, 3)
    torch.testing.assert_close(prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1), rtol=1e-14, atol=0)
    noise = torch.randn(*lead(members), 6, 3, dtype=F64, generator=seeded())
    sample = prior.sample(6, seeded())
    assert torch.equal(sample, noise if name == "realnvp" else noise.flip(-1))


@pytest.mark.parametrize("name", FLOWS)
def test_a_single_layer_will_do(name: str) -> None:
    prior = getattr(FlowPrior, name)(2, num_layers=1, hidden=4, generator=seeded())
    assert prior.log_prob(torch.zeros(5, 2)).shape == (5,) and prior.sample(3).shape == (3, 2)


def test_a_flow_prior_of_a_transform_without_parameters() -> None:
    shift, scale = torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([2.0, 0.5], dtype=F64)
    prior, z = FlowPrior(FixedAffine(shift, scale), 2), randn(6, 2)
    torch.testing.assert_close(prior.log_prob(z), Normal(shift, scale).log_prob(z).sum(-1), **CLOSE)
    expected = shift + scale * torch.randn(4, 2, dtype=F64, generator=seeded())
    torch.testing.assert_close(prior.sample(4, seeded()), expected, **CLOSE)


@members_or_not
def test_a_mixture_is_torch_s_mixture(members: int | None) -> None:
    prior, z = build("mixture", members), randn(*lead(members), 5, 2)
    for e in range(members or 1):
        part, at = (prior, ...) if members is None else (member(prior, e), e)
        components = Independent(Normal(part.means, torch.exp(0.5 * part.log_vars)), 1)
        expected = MixtureSameFamily(Categorical(logits=part.logits), components).log_prob(z[at])
        torch.testing.assert_close(prior.log_prob(z)[at], expected, **CLOSE)


def test_a_new_mixture_has_spread_means_unit_variances_and_equal_weights() -> None:
    z = randn(8, 2)
    flat = MixturePrior(5, 2, spread=0.0).double()
    torch.testing.assert_close(flat.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1), **CLOSE)
    wide, plain = (MixturePrior(5, 2, spread=s, members=2, generator=seeded()) for s in (3.0, 1.0))
    assert torch.equal(wide.means, 3 * plain.means) and not wide.log_vars.any() and not wide.logits.any()


@members_or_not
def test_a_mixture_starts_on_data_points_with_the_width_of_their_heaps(members: int | None) -> None:
    """Member by member: K different points, each component with 1/K of the code's volume."""
    mean, log_var = 2 * randn(*lead(members), 30, 2), randn(*lead(members), 30, 2, seed=2) - 2
    prior = MixturePrior(4, 2, members=members).double()
    prior.start_from(mean, log_var, seeded())
    assert prior.means.requires_grad
    for e in range(members or 1):
        at = e if members else ...
        m, s, means, log_vars = mean[at], log_var[at], prior.means[at], prior.log_vars[at]
        rows = (means.unsqueeze(1) == m).all(-1).nonzero()[:, 1]
        assert len(rows) == len(rows.unique()) == 4
        total = (m - m.mean(0)).square().mean(0) + s.exp().mean(0)  # the variance of q_agg
        volume = total.prod().sqrt() / 4
        torch.testing.assert_close((0.5 * log_vars).exp().prod(-1), volume.expand(4), **CLOSE)
        torch.testing.assert_close(log_vars[0] - log_vars[0, 0], total.log() - total[0].log(), **CLOSE)


def test_a_mixture_does_not_start_narrower_than_the_posteriors() -> None:
    """100 heaps of the line would be narrower; and what was learned before is forgotten."""
    mean, log_var = 2 * randn(200, 1), randn(200, 1, seed=2) - 2
    prior = MixturePrior(100, 1).double()
    with torch.no_grad():
        prior.logits.copy_(randn(100))
    prior.start_from(mean, log_var, seeded())
    torch.testing.assert_close(prior.log_vars, log_var.exp().mean().log().expand(100, 1), **CLOSE)
    assert not prior.logits.any()


# VampPrior and aggregated posterior -------------------------------------------------------------------------


@members_or_not
def test_a_vamp_prior_is_the_aggregated_posterior_of_its_pseudo_inputs(members: int | None) -> None:
    for name in ("vamp", "bounded vamp"):
        prior, z = build(name, members), randn(*lead(members), 5, 2)
        same = AggregatedPosterior(*prior.encoder(prior.pseudo_inputs).chunk(2, -1))
        torch.testing.assert_close(prior.log_prob(z), same.log_prob(z), **CLOSE)
        assert torch.equal(prior.sample(4, seeded()), same.sample(4, seeded()))


def test_one_encoder_may_serve_a_stack_of_vamp_priors() -> None:
    encoder = MLP([SHARED, 4], generator=seeded()).double()
    stack = VampPrior(encoder, randn(3, 5, SHARED), 2, members=3)
    z = randn(3, 6, 2)
    for e in range(3):
        single = VampPrior(encoder, stack.raw[e], 2)
        torch.testing.assert_close(stack.log_prob(z)[e], single.log_prob(z[e]), **CLOSE)
        torch.testing.assert_close(member(stack, e).log_prob(z[e]), single.log_prob(z[e]), **CLOSE)


def test_pseudo_inputs_start_where_they_are_put_and_keep_their_bounds() -> None:
    encoder, low, high = MLP([SHARED, 4], generator=seeded()), -1.0, 3.0
    start = torch.linspace(low, high, 20).reshape(5, SHARED)
    free, bounded = VampPrior(encoder, start, 2), VampPrior(encoder, start, 2, bounds=(low, high))
    assert torch.equal(free.pseudo_inputs, start) and free.raw.data_ptr() != start.data_ptr()
    torch.testing.assert_close(bounded.pseudo_inputs, start.clamp(low + 0.2, high - 0.2))
    encoder.requires_grad_(False)
    optimiser = torch.optim.SGD(bounded.own_parameters(), lr=300.0)
    for _ in range(20):
        optimiser.zero_grad()
        cross_entropy(bounded, 5 * torch.ones(3, 2), torch.zeros(3, 2), generator=seeded()).backward()
        optimiser.step()
    inputs = bounded.pseudo_inputs
    assert (inputs - start).abs().max() > 1 and (inputs >= low).all() and (inputs <= high).all()


def test_an_aggregated_posterior_holds_copies() -> None:
    mean, log_var = randn(5, 2), randn(5, 2, seed=2)
    before = mean.clone()
    AggregatedPosterior(mean, log_var).mean.zero_()
    assert torch.equal(mean, before)


@members_or_not
def test_an_aggregated_posterior_without_one_of_its_points(members: int | None) -> None:
    prior, z = build("aggregated", members), randn(*lead(members), 4, 9, 2)
    index = torch.arange(z[..., 0].numel()).reshape(z.shape[:-1]) % 8 - 1  # -1, ..., 6 in turn
    log_p = prior.log_prob(z, exclude=index)
    assert log_p.shape == z.shape[:-1]
    for at in map(tuple, torch.ones_like(index).nonzero().tolist()):
        rest = [j for j in range(7) if j != index[at]]
        own = (at[0], rest) if members else (rest,)
        alone = AggregatedPosterior(prior.mean[own], prior.log_var[own])
        torch.testing.assert_close(log_p[at], alone.log_prob(z[at]), **CLOSE)


# refusals ---------------------------------------------------------------------------------------------------

ENCODER = MLP([SHARED, 4], generator=seeded())
INPUTS = torch.zeros(5, SHARED)
Z = torch.zeros(5, 2)
TWO = StandardNormalPrior(2)
REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: StandardNormalPrior(0), "latent_dim must be at least 1, got 0: pass the VAE's"),
    (lambda: StandardNormalPrior(2, members=0), "members must be None or at least 1"),
    (lambda: MixturePrior(0, 2), "num_components >= 1 and spread >= 0, got 0 and 1.0"),
    (lambda: MixturePrior(3, 2, spread=-1.0), "got 3 and -1.0.*spread=0 for a start at"),
    (lambda: MixturePrior(3, 0), "latent_dim must be at least 1"),
    (lambda: MixturePrior(6, 2).start_from(Z, Z), "6 components need as many data points, got 5: use fewer"),
    (lambda: MixturePrior(3, 2).start_from(Z, Z[:4]), r"must both be \(n, 2\), got \(5, 2\) and \(4, 2\)"),
    (lambda: MixturePrior(3, 2).start_from(Z[:, :1], Z[:, :1]), r"must both be \(n, 2\), got \(5, 1\)"),
    (lambda: MixturePrior(3, 2).start_from(Z[None], Z[None]), r"must both be \(n, 2\), got \(1, 5, 2\)"),
    (lambda: MixturePrior(3, 2, members=2).start_from(Z, Z), r"must both be \(2, n, 2\), got \(5, 2\)"),
    (lambda: VampPrior(ENCODER, INPUTS[0], 2), r"must be \(K, m\).*got shape \(4,\)"),
    (lambda: VampPrior(ENCODER, INPUTS[:0], 2), r"K >= 1, got shape \(0, 4\)"),
    (lambda: VampPrior(ENCODER, INPUTS, 2, members=5), r"got shape \(5, 4\) and members=5"),
    (lambda: VampPrior(ENCODER, INPUTS[None], 2, members=3), r"got shape \(1, 5, 4\) and members=3"),
    (lambda: VampPrior(ENCODER, INPUTS[None], 2), r"got shape \(1, 5, 4\) and members=None: one row"),
    (lambda: VampPrior(MLP([4, 4], members=3), INPUTS, 2), "3 encoders and members=None: pass members=3"),
    (lambda: VampPrior(MLP([4, 4], members=3), INPUTS.expand(2, 5, 4), 2, members=2), "3 encoders and membe"),
    (lambda: VampPrior(ENCODER, INPUTS, 2, bounds=(1.0, 2.0)), "values from 0 to 0: widen the bounds"),
    (lambda: VampPrior(ENCODER, INPUTS + 3, 2, bounds=(1.0, 2.0)), "values from 3 to 3: widen the bounds"),
    (lambda: VampPrior(ENCODER, INPUTS, 2, bounds=(0.0, 0.0)), "low < high"),
    (lambda: VampPrior(ENCODER, INPUTS * float("nan"), 2, bounds=(0.0, 1.0)), "values from nan"),
    (lambda: VampPrior(ENCODER, INPUTS.long(), 2), "got torch.int64: convert them to float"),
    (lambda: VampPrior(ENCODER, INPUTS, 1).log_prob(Z[:, :1]), r"2 \* latent_dim = 2.*got 4: pass the VAE's"),
    (lambda: FlowPrior.realnvp(2, num_layers=0), "num_layers must be at least 1, got 0: a flow needs"),
    (lambda: FlowPrior.maf(2, num_layers=-1), "num_layers must be at least 1, got -1"),
    (lambda: FlowPrior.iaf(2, num_layers=0), "num_layers must be at least 1, got 0"),
    (lambda: FlowPrior.maf(5, hidden=4), r"at least num_inputs=5 units, got hidden=\[4, 4\]: widen it"),
    (lambda: FlowPrior(FixedAffine(0.0, 1.0), 0), "latent_dim must be at least 1"),
    (lambda: FlowPrior(ActNorm(2, event_dims=3), 2), "events have 3 dimension"),
    (lambda: AggregatedPosterior(Z, Z[:3]), r"got \(5, 2\) and \(3, 2\): pass what the encoder makes"),
    (lambda: AggregatedPosterior(Z[0], Z[0]), r"\(n, d\), or \(E, n, d\)"),
    (lambda: AggregatedPosterior(Z[:0], Z[:0]), r"n >= 1, got \(0, 2\)"),
    (lambda: cross_entropy(TWO, Z, Z[:3]), r"got \(5, 2\) and \(3, 2\): pass what the encoder makes"),
    (lambda: cross_entropy(TWO, Z[0], Z[0]), r"n >= 1, got \(2,\)"),
    (lambda: cross_entropy(TWO, Z[:0], Z[:0]), r"n >= 1, got \(0, 2\)"),
    (lambda: cross_entropy(TWO, Z, Z, batch_size=0), "batch_size must be at least 1, got 0: use None"),
    (lambda: cross_entropy(TWO, Z[:, :1], Z[:, :1]), r"z must be \(..., 2\)"),
    (lambda: cross_entropy(StandardNormalPrior(2, members=5), Z, Z), r"use mean.expand\(5, -1, -1\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
