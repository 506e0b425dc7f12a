"""Dequantizers by law: shapes, stacks, dtype and device, state, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from dequantizer_zoo import (
    CLOSE,
    LEVELS,
    ZOO,
    build,
    dtypes,
    every,
    levels,
    members_or_not,
    seeded,
)

from dgm_course.dequantization import (
    UniformDequantizer,
    VariationalDequantizer,
    dequantize,
)
from dgm_course.flows import ActNorm, FixedAffine
from dgm_course.nets import MLP, Linear, member

# shapes, stacks, state ------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("batch", [(3,), (1,), (3, 3), (2, 1, 4), (0,)], ids=str)
def test_samples_come_before_the_batch(name: str, batch: tuple[int, ...]) -> None:
    noise, y = build(name), levels(*batch, ZOO[name][1])
    u, log_q = noise.rsample(y, 3, generator=seeded())
    *front, rows = batch
    assert u.shape == (*front, 3, rows, ZOO[name][1]) and log_q.shape == (*front, 3, rows)
    assert noise.log_prob(u, y).shape == log_q.shape
    if rows:
        one = noise.log_prob(u[..., 1:2, :1, :], y[..., :1, :])
        torch.testing.assert_close(one, log_q[..., 1:2, :1], rtol=1e-8, atol=1e-8)


@every
@pytest.mark.parametrize("own", [False, True], ids=["shared y", "a y for each"])
def test_a_stack_is_its_members_side_by_side(name: str, own: bool) -> None:
    """Threes everywhere: no shape shows a mix-up of members, samples and rows."""
    stack = build(name, members=3)
    singles = [member(stack, e) for e in range(3)]
    assert stack.members == 3 and all(single.members is None for single in singles)
    m = ZOO[name][1]
    y = levels(3, 3, m) if own else levels(3, m)
    u, log_q = stack.rsample(y, 3, generator=seeded())
    assert u.shape == (3, 3, 3, m) and log_q.shape == (3, 3, 3)
    for e, single in enumerate(singles):
        own_y = y[e] if own else y
        torch.testing.assert_close(single.log_prob(u[e], own_y), log_q[e], rtol=1e-8, atol=1e-8)
        assert single.rsample(own_y, 3)[0].shape == (3, 3, m)
    for count in (3, 2):  # noise that the members share
        shared = stack.log_prob(u[0, :count], y)
        for e, single in enumerate(singles):
            expected = single.log_prob(u[0, :count], y[e] if own else y)
            torch.testing.assert_close(shared[e], expected, **CLOSE)
        assert name == "uniform" or not torch.allclose(shared[0], shared[1])


def test_one_context_network_for_a_stack_of_flows() -> None:
    stack = VariationalDequantizer.autoregressive(2, LEVELS, context=3, members=3, generator=seeded(0))
    mixed = VariationalDequantizer(stack.transform, MLP([2, 5, 3], generator=seeded(1)), LEVELS).double()
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.add_(0.05)
    for y in (levels(3, 2), levels(3, 3, 2)):
        u, log_q = mixed.rsample(y, 4, generator=seeded())
        assert u.shape == (3, 4, 3, 2)
        torch.testing.assert_close(mixed.log_prob(u, y), log_q, rtol=1e-8, atol=1e-8)


@every
@members_or_not
@dtypes
def test_dtype_and_device_follow(
    name: str, members: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    noise = build(name, members).to(device=device, dtype=dtype)
    y = levels(4, ZOO[name][1]).to(device=device, dtype=dtype)
    u, log_q = noise.rsample(y, 2, generator=seeded(device=device))
    for value in (u, log_q, dequantize(y, u), noise.log_prob(u, y)):
        assert value.dtype == dtype and value.device.type == device.type


@every
@members_or_not
def test_state_dict_and_deepcopy_keep_the_density(name: str, members: int | None) -> None:
    noise, other, y = build(name, members), build(name, members, seed=5), levels(4, ZOO[name][1])
    u, log_q = noise.rsample(y, 2, generator=seeded())
    twin = copy.deepcopy(noise)
    assert name == "uniform" or not torch.allclose(other.log_prob(u, y), log_q)
    other.load_state_dict(noise.state_dict())
    for same in (other, twin):
        assert torch.equal(same.rsample(y, 2, generator=seeded())[0], u)
        assert torch.equal(same.log_prob(u, y), noise.log_prob(u, y))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(noise.rsample(y, 2, generator=seeded())[0], u), "a copy shares nothing"


@every
@members_or_not
def test_the_generator_decides_and_the_global_random_state_rests(name: str, members: int | None) -> None:
    before = torch.get_rng_state()
    y = levels(4, ZOO[name][1])
    noise, twin = build(name, members), build(name, members)
    draws = [noise.rsample(y, 3, generator=seeded(s))[0] for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(twin.rsample(y, 3, generator=seeded(3))[0], draws[0]), "so is construction"
    assert torch.equal(before, torch.get_rng_state())
    noise.rsample(y)
    assert not torch.equal(before, torch.get_rng_state()), "without a generator, torch's own"


# refusals -------------------------------------------------------------------------------------------------


def coupling(members: int | None = None) -> VariationalDequantizer:
    return VariationalDequantizer.coupling(2, LEVELS, members=members)


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: UniformDequantizer().rsample(torch.zeros(3)), r"\(\.\.\., B, m\), got shape \(3,\): use y.unsq"),
    (lambda: UniformDequantizer().rsample(torch.zeros(3, 2), 0), "num_samples must be at least 1, got 0"),
    (lambda: UniformDequantizer().log_prob(torch.ones(1, 3, 2), torch.zeros(3, 2)), "got 1 to 1: subtract"),
    (lambda: UniformDequantizer().log_prob(torch.zeros(1, 3, 2), torch.zeros(3, 2)), "strictly between"),
    (lambda: UniformDequantizer().log_prob(torch.full((1, 1, 2), torch.nan), torch.zeros(1, 2)), "nan"),
    (lambda: coupling().log_prob(torch.full((1, 3, 2), 1.5), torch.zeros(3, 2)), "got 1.5 to 1.5: subtract"),
    (lambda: coupling().rsample(torch.zeros(2)), r"use y\.unsqueeze\(0\)"),
    (lambda: coupling().rsample(torch.zeros(4, 2), -1), "at least 1, got -1"),
    (lambda: coupling().rsample(torch.full((1, 2), 0.5)), "got values from 0.5 to 0.5: pass whole numbers"),
    (lambda: coupling().rsample(torch.full((1, 2), 6)), "levels 0, ..., 5, got values from 6"),
    (lambda: coupling().log_prob(torch.full((1, 1, 2), 0.5), -torch.ones(1, 2)), "from -1 to -1"),
    (lambda: coupling().rsample(torch.full((1, 2), torch.nan)), "got values from nan"),
    (lambda: coupling(3).rsample(torch.zeros(2, 5, 2)), r"stack of 3 takes y \(B, m\), shared, or \(3, B"),
    (lambda: coupling(3).rsample(torch.zeros(3, 1, 5, 2)), r"got \(3, 1, 5, 2\)"),
    (lambda: VariationalDequantizer.coupling(1, 4), "num_dims >= 2, got 1.*autoregressive"),
    (lambda: VariationalDequantizer.autoregressive(2, 1), "two levels .* num_levels=1"),
    (lambda: VariationalDequantizer(ActNorm(2, event_dims=3), MLP([2, 2]), 4), "event_dims=3: flatten"),
    (lambda: VariationalDequantizer.coupling(2, 4, num_layers=0), "num_layers must be at least 1"),
    (lambda: VariationalDequantizer(coupling(2).transform, MLP([2, 3], members=3), 4), "same number of memb"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_wrong_number_of_entries_is_the_networks_error() -> None:
    with pytest.raises(ValueError, match="in_features=2"):
        coupling().rsample(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="in_features=1"):
        VariationalDequantizer(FixedAffine(0.0, 1.0), Linear(1, 1), 4).rsample(torch.zeros(4, 3))
