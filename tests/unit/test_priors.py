"""Every prior by law: a density, its samples, its stack, its state, its gradients, its refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from prior_zoo import (
    CLOSE,
    F64,
    SHARED,
    ZOO,
    build,
    density_on_grid,
    every,
    lead,
    members_or_not,
    randn,
    seeded,
)
from torch import Tensor

from dgm_course.nets import MLP, member
from dgm_course.priors import (
    AggregatedPosterior,
    Prior,
    VampPrior,
    cross_entropy,
)


def test_the_zoo_has_every_prior() -> None:
    assert {type(build(name)) for name in ZOO} == set(Prior.__subclasses__())


# a density and its samples ----------------------------------------------------------------------------------


@every
@members_or_not
@pytest.mark.parametrize("d", [1, 2])
def test_the_density_integrates_to_one(name: str, members: int | None, d: int) -> None:
    if name == "realnvp" and d == 1:
        with pytest.raises(ValueError, match="at least two entries"):
            build(name, members, d)
        return
    total = density_on_grid(build(name, members, d))[1].sum(-1)
    torch.testing.assert_close(total, torch.ones(lead(members), dtype=F64), rtol=1e-6, atol=1e-6)


@every
@members_or_not
def test_samples_come_from_the_density(name: str, members: int | None) -> None:
    """Seven moments of 20 000 samples against quadrature, 5 standard errors, each member its own."""
    assert (off_the_moments(name, members, seed=20).abs() < 5).all()


def moments(z: Tensor) -> Tensor:
    """``(..., 2) -> (..., 7)``."""
    a, b = z.unbind(-1)
    return torch.stack([a, b, a * a, a * b, b * b, (a + 2 * b).cos(), (2 * a - b).sin()], -1)


def off_the_moments(name: str, members: int | None, seed: int) -> Tensor:
    prior = build(name, members)
    z, mass = density_on_grid(prior)
    found = moments(prior.sample(20_000, seeded(seed)))
    return (found.mean(-2) - mass @ moments(z)) / found.std(-2) * 20_000**0.5


# shapes, stacks, state --------------------------------------------------------------------------------------


@every
def test_any_leading_dimensions_will_do(name: str) -> None:
    prior = build(name)
    for batch in ((), (1,), (3,), (3, 3), (2, 1, 5)):
        z = randn(*batch, 2)
        log_p = prior.log_prob(z)
        assert log_p.shape == batch
        rows = torch.stack([prior.log_prob(row) for row in z.reshape(-1, 2)])
        torch.testing.assert_close(log_p.flatten(), rows, **CLOSE)
    assert prior.sample(1, seeded()).shape == (1, 2) and prior.sample(6, seeded()).shape == (6, 2)


@every
def test_a_stack_is_its_members_side_by_side(name: str) -> None:
    """Batches of three, too: no shape shows a mix-up of members and points."""
    stack = build(name, members=3)
    singles = [member(stack, e) for e in range(3)]
    assert stack.members == 3 and all(single.members is None for single in singles)
    for batch in ((), (1,), (3,), (3, 3), (2, 5)):
        z = randn(3, *batch, 2)
        rows = torch.stack([single.log_prob(z[e]) for e, single in enumerate(singles)])
        assert rows.shape == (3, *batch)
        torch.testing.assert_close(stack.log_prob(z), rows, **CLOSE)
    assert stack.sample(4, seeded()).shape == (3, 4, 2)
    assert singles[1].sample(4, seeded()).shape == (4, 2)
    if name != "normal":
        z = randn(5, 2)
        assert not torch.allclose(singles[0].log_prob(z), singles[1].log_prob(z))


@every
@members_or_not
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_and_device_follow(
    name: str, members: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    prior = build(name, members).to(device=device, dtype=dtype)
    z = prior.sample(4, seeded(device=device))
    loss = cross_entropy(prior, z, torch.zeros_like(z), batch_size=3, generator=seeded(device=device))
    for value in (z, prior.log_prob(z), loss):
        assert value.dtype == dtype and value.device.type == device.type
    assert not z.requires_grad and loss.shape == lead(members)


@every
@members_or_not
def test_state_dict_and_deepcopy_keep_the_density(name: str, members: int | None) -> None:
    prior, other, z = build(name, members), build(name, members, seed=5), randn(*lead(members), 6, 2)
    log_p = prior.log_prob(z)
    twin = copy.deepcopy(prior)
    assert name == "normal" or not torch.allclose(other.log_prob(z), log_p)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.log_prob(z), log_p) and torch.equal(twin.log_prob(z), log_p)
    assert torch.equal(twin.sample(3, seeded()), prior.sample(3, seeded()))
    with torch.no_grad():
        for tensor in [*twin.parameters(), *twin.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(1.0)
    assert torch.equal(prior.log_prob(z), log_p), "a copy shares nothing"


@every
@members_or_not
def test_the_generator_decides_and_the_global_random_state_rests(name: str, members: int | None) -> None:
    before = torch.get_rng_state()
    prior, twin = build(name, members), build(name, members)
    z, again, other = (prior.sample(5, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(z, again) and not torch.equal(z, other)
    assert torch.equal(twin.log_prob(z), prior.log_prob(z)), "construction is drawn from the generator"
    mean = z.detach()
    zeros = torch.zeros_like(mean)
    losses = [cross_entropy(prior, mean, zeros, batch_size=2, generator=seeded(s)) for s in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    assert torch.equal(before, torch.get_rng_state())


# gradients --------------------------------------------------------------------------------------------------


@every
@members_or_not
def test_gradients_reach_z_and_every_parameter(name: str, members: int | None) -> None:
    """The slope along z against central differences; the encoder of a VampPrior is reached as well."""
    prior = build(name, members)
    z = randn(*lead(members), 4, 2).requires_grad_()
    weights = randn(*lead(members), 4, seed=2)
    (weights * prior.log_prob(z)).sum().backward()
    for parameter in prior.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.flatten(1 if members else 0).any(-1).all()
    step = 1e-5 * torch.eye(2, dtype=F64)
    with torch.no_grad():
        slope = torch.stack(
            [weights * (prior.log_prob(z + h) - prior.log_prob(z - h)) / 2e-5 for h in step], -1
        )
    torch.testing.assert_close(z.grad, slope, rtol=1e-6, atol=1e-6)


@every
def test_the_slope_of_one_parameter_entry_is_the_density_s(name: str) -> None:
    """Along a random direction of all parameters, against central differences."""
    prior, z, weights = build(name), randn(6, 2), randn(6, seed=2)
    parameters = list(prior.parameters())
    if not parameters:
        assert name in ("normal", "aggregated")
        return
    directions = [randn(*p.shape, seed=i) for i, p in enumerate(parameters)]
    gradients = torch.autograd.grad((weights * prior.log_prob(z)).sum(), parameters)
    found = sum((g * v).sum() for g, v in zip(gradients, directions, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
            values.append((weights * prior.log_prob(z)).sum())
    torch.testing.assert_close(found, (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-5)


def test_own_parameters_leave_a_shared_encoder_out() -> None:
    for name in ZOO:
        prior = build(name)
        own = {id(parameter) for parameter in prior.own_parameters()}
        encoder = prior.encoder.parameters() if isinstance(prior, VampPrior) else []
        assert own == {id(p) for p in prior.parameters()} - {id(p) for p in encoder}
        assert own or name in ("normal", "aggregated")


def test_an_aggregated_posterior_trains_the_encoder_that_it_was_made_with() -> None:
    encoder = MLP([SHARED, 4], generator=seeded()).double()
    with torch.no_grad():
        frozen = AggregatedPosterior(*encoder(randn(5, SHARED)).chunk(2, -1))
    joint = AggregatedPosterior(*encoder(randn(5, SHARED)).chunk(2, -1))
    z = randn(6, 2)
    assert not frozen.log_prob(z).requires_grad and list(joint.parameters()) == []
    joint.log_prob(z).sum().backward()
    assert all(parameter.grad.any() for parameter in encoder.parameters())


@every
def test_every_prior_refuses_other_points_and_counts(name: str) -> None:
    single, stack = build(name), build(name, members=3)
    for prior in (single, stack):
        for n in (0, -1):
            with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
                prior.sample(n)
    for shape in ((), (3,), (4, 1)):
        with pytest.raises(ValueError, match=r"z must be \(\.\.\., 2\), got shape"):
            single.log_prob(torch.zeros(shape, dtype=F64))
    for shape in ((2,), (4, 2), (3, 5, 1), (1, 5, 2)):
        with pytest.raises(ValueError, match=r"z must be \(3, \.\.\., 2\), got shape.*the members of"):
            stack.log_prob(torch.zeros(shape, dtype=F64))
