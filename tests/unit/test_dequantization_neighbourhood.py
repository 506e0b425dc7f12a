"""Noise from a pixel's neighbourhood: what it sees, that it starts uniform, and that it is a density."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from dequantizer_zoo import CLOSE, F64, LEVELS, dtypes, lead, levels, members_or_not, moved, seeded
from torch import Tensor

from dgm_course.dequantization import VariationalDequantizer, variational_bound
from dgm_course.dequantization.neighbourhood import ContextAffine, Neighbourhood
from dgm_course.flows import soft_clamp
from dgm_course.nets import member

Shape = tuple[int, int, int]
every_shape = pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 4), (3, 1, 1), (1, 1, 2)], ids=str)


def build(shape: Shape, members: int | None = None, *, spread: float = 0.1) -> VariationalDequantizer:
    noise = VariationalDequantizer.neighbourhood(
        shape, LEVELS, hidden=8, members=members, generator=seeded(0)
    )
    return moved(noise, spread)


def pictures(*batch: int, shape: Shape) -> Tensor:
    return levels(*batch, math.prod(shape))


# as a dequantizer -----------------------------------------------------------------------------------------


@every_shape
@members_or_not
def test_starts_exactly_uniform(shape: Shape, members: int | None) -> None:
    noise, y = build(shape, members, spread=0.0), pictures(5, shape=shape)
    u, log_q = noise.rsample(y, 6, generator=seeded())
    zeros = torch.zeros(*lead(members), 6, 5, dtype=F64)
    torch.testing.assert_close(log_q, zeros, rtol=0, atol=1e-12)
    torch.testing.assert_close(noise.log_prob(u, y), zeros, rtol=0, atol=1e-12)
    raw = torch.rand(u.shape, generator=seeded(), dtype=F64)
    torch.testing.assert_close(u, raw, rtol=1e-9, atol=1e-12)


@every_shape
@members_or_not
def test_log_q_is_the_density_at_the_sample(shape: Shape, members: int | None) -> None:
    noise, y = build(shape, members), pictures(6, shape=shape)
    u, log_q = noise.rsample(y, 4, generator=seeded())
    assert u.shape == (*lead(members), 4, 6, math.prod(shape)) and log_q.shape == u.shape[:-1]
    torch.testing.assert_close(noise.log_prob(u, y), log_q, rtol=1e-8, atol=1e-8)
    assert float(log_q.detach().std()) > 1e-3, "it is not uniform"


@every_shape
@pytest.mark.parametrize("own", [False, True], ids=["shared y", "a y for each"])
def test_a_stack_is_its_members_side_by_side(shape: Shape, own: bool) -> None:
    """Threes everywhere: no shape shows a mix-up of members, samples, rows and channels."""
    stack = build(shape, members=3)
    y = pictures(3, 3, shape=shape) if own else pictures(3, shape=shape)
    u, log_q = stack.rsample(y, 3, generator=seeded())
    context = stack.context(y)
    for e in range(3):
        single, own_y = member(stack, e), y[e] if own else y
        assert stack.members == 3 and single.members is None
        torch.testing.assert_close(single.log_prob(u[e], own_y), log_q[e], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(single.context(own_y), context[e], **CLOSE)
    assert not torch.allclose(context[0], context[1])


@every_shape
@dtypes
def test_it_will_do_in_a_bound(shape: Shape, dtype: torch.dtype) -> None:
    """Finite, in the networks' dtype, with gradients for all parameters, and for levels in bytes."""
    noise, y = build(shape).to(dtype), pictures(5, shape=shape)

    def log_prob(x: Tensor) -> Tensor:
        return -(x - 2).square().sum(-1)

    for given in (y.to(dtype), y.to(torch.uint8)):
        bound = variational_bound(log_prob, noise, given, num_samples=3, generator=seeded())
        assert bound.dtype == dtype and bound.shape == (5,) and bool(bound.isfinite().all())
        gradients = torch.autograd.grad(bound.sum(), list(noise.parameters()))
        assert all(bool((g != 0).any()) for g in gradients)


# what it sees ---------------------------------------------------------------------------------------------


def near(shape: Shape) -> Tensor:
    """Whether two entries are neighbours, in whatever channels: ``(C H W, C H W)``."""
    channels, height, width = shape
    place = torch.arange(height * width)
    row, column = place // width, place % width
    distance = torch.maximum((row - row[:, None]).abs(), (column - column[:, None]).abs())
    return (distance <= 1).repeat(channels, channels)


@every_shape
@members_or_not
def test_numbers_depend_on_the_neighbourhood_only(shape: Shape, members: int | None) -> None:
    """By the Jacobian of the context: on all channels within 3 x 3 places, and on nothing else."""
    network = build(shape, members).context
    y = (pictures(1, shape=shape) + 0.5) * (2 / LEVELS) - 1
    jacobian = torch.autograd.functional.jacobian(network, y).squeeze(-2)  # ([E,] 1, 2 m, m)
    m = math.prod(shape)
    strength = jacobian.reshape(-1, 2, m, m).abs().amin(0)  # of the shifts and of the raw log-scales
    seen = near(shape)
    assert bool((strength[:, seen] > 0).all())
    assert bool((jacobian.reshape(-1, 2, m, m)[..., ~seen] == 0).all())


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 4)], ids=str)
def test_a_change_of_one_entry_moves_the_noise_of_its_neighbours_only(shape: Shape) -> None:
    noise, y = build(shape), pictures(2, shape=shape)
    before = noise.rsample(y, 3, generator=seeded())[0]
    for entry in (0, 6, math.prod(shape) - 1):
        changed = y.clone()
        changed[:, entry] = (changed[:, entry] + 2) % LEVELS
        after = noise.rsample(changed, 3, generator=seeded())[0]
        moves = (after != before).flatten(0, 1)
        assert bool(moves[:, near(shape)[entry]].all()) and not bool(moves[:, ~near(shape)[entry]].any())


def test_features_one_by_one() -> None:
    """Channel by channel the nine steps to the neighbours, asinh of levels; the entry; its channel."""
    shape, y = (3, 3, 4), levels(2, 36)
    network = Neighbourhood(shape, LEVELS).double()
    scaled = (y + 0.5) * (2 / LEVELS) - 1
    found = network.features(scaled).unflatten(1, shape)
    picture = y.unflatten(1, shape)
    assert found.shape == (2, 3, 3, 4, 31)
    for c, i, j in ((0, 0, 0), (1, 1, 2), (2, 2, 3), (0, 2, 1)):
        steps = [
            picture[:, d, min(max(i + di, 0), 2), min(max(j + dj, 0), 3)] - picture[:, c, i, j]
            for d in range(3) for di in (-1, 0, 1) for dj in (-1, 0, 1)
        ]  # fmt: skip
        expected = torch.stack(steps, -1).asinh()
        torch.testing.assert_close(found[:, c, i, j, :27], expected, **CLOSE)
        torch.testing.assert_close(found[:, c, i, j, 27], scaled.unflatten(1, shape)[:, c, i, j], **CLOSE)
        assert found[:, c, i, j, 28:].tolist() == [[float(c == d) for d in range(3)]] * 2


def test_equal_neighbourhoods_have_equal_noise() -> None:
    """One network for all places: stripes of two rows repeat."""
    network = build((1, 8, 4)).context
    y = torch.tensor([0.0, 3.0, 1.0, 1.0, 5.0, 2.0, 0.0, 4.0], dtype=F64).reshape(2, 4).repeat(4, 1)
    shift, raw = network(y.flatten()).reshape(2, 8, 4)
    for numbers in (shift, raw):
        torch.testing.assert_close(numbers[1:3], numbers[3:5], **CLOSE)
        assert not torch.allclose(numbers[1], numbers[2])


# shift and scale ------------------------------------------------------------------------------------------


def test_shift_and_scale() -> None:
    """Against the formula; back and forth; the log-determinant is that of the Jacobian."""
    context, z = torch.randn(4, 6, generator=seeded(1), dtype=F64), levels(5, 4, 3) - 2.3
    transform = ContextAffine()
    x, log_det = transform(z, context)
    shift, raw = context[:, :3], context[:, 3:]
    torch.testing.assert_close(x, shift + soft_clamp(raw).exp() * z, **CLOSE)
    back, log_det_back = transform.inverse(x, context)
    torch.testing.assert_close(back, z, **CLOSE)
    torch.testing.assert_close(log_det_back, -log_det, **CLOSE)
    jacobian = torch.autograd.functional.jacobian(lambda z: transform(z, context[1])[0], z[2, 1])
    torch.testing.assert_close(log_det[2, 1], torch.linalg.slogdet(jacobian).logabsdet, **CLOSE)
    assert log_det.shape == (5, 4)


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: VariationalDequantizer.neighbourhood((4, 4), 6), r"\(C, H, W\), got \(4, 4\): add the channels"),
    (lambda: VariationalDequantizer.neighbourhood((1, 2, 2), 1), "at least two levels"),
    (lambda: build((1, 2, 2)).rsample(torch.zeros(5, 3)), r"flat pictures .* \(1, 2, 2\), got \(5, 3\)"),
    (lambda: build((1, 2, 2)).rsample(torch.zeros(5, 1, 2, 2)), r"use y\.flatten\(1\)"),
    (lambda: build((1, 2, 2)).rsample(torch.full((5, 4), 6)), "levels 0, ..., 5, got values from 6 to 6"),
    (lambda: build((1, 2, 2), 3).rsample(torch.zeros(2, 5, 4)), "stack of 3 takes y"),
    (lambda: ContextAffine()(torch.zeros(4, 3)), r"needs a context \(\.\.\., 2 m\)"),
    (lambda: ContextAffine().inverse(torch.zeros(4, 3), torch.zeros(4, 5)), r"needs a context \(\.\.\., 2 m"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
