"""Flows built in one call, and the fixed linear map: starts, context, members, whitening, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgm_course.flows import (
    Compose,
    FixedLinear,
    Flow,
    Permutation,
    Transform,
    autoregressive_transform,
    realnvp_transform,
)
from dgm_course.nets import member, members_of
from dgm_course.priors import FlowPrior

F64 = torch.float64
KINDS = ["realnvp", "maf", "iaf"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=seeded(seed))


def make(kind: str, num_dims: int = 3, **settings: object) -> Compose:
    settings = {"hidden": [8, 9], "generator": seeded(0)} | settings
    if kind == "realnvp":
        return realnvp_transform(num_dims, **settings)
    return autoregressive_transform(kind, num_dims, **settings)


def moved(transform: Transform) -> Transform:
    transform.double()
    generator = seeded(9)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=F64, generator=generator))
    return transform


# built in one call ----------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("context", [0, 2])
def test_the_start_is_the_identity(kind: str, num_layers: int, context: int) -> None:
    """But for the order: it is reversed between autoregressive layers, an odd number of times if even."""
    transform = make(kind, num_layers=num_layers, context=context).double()
    z, given = randn(5, 3), randn(5, 2, seed=2) if context else None
    expected = z.flip(-1) if kind != "realnvp" and num_layers % 2 == 0 else z
    for value, log_det in (transform(z, given), transform.inverse(z, given)):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
        assert torch.equal(log_det, torch.zeros(5, dtype=F64))
    reversals = [part for part in transform if isinstance(part, Permutation)]
    assert len(transform) - len(reversals) == num_layers
    assert len(reversals) == (0 if kind == "realnvp" else num_layers - 1)


@every_kind
def test_every_entry_is_moved_and_every_layer_learns(kind: str) -> None:
    transform, z = moved(make(kind, num_layers=2)), randn(6, 3)
    x, log_det = transform(z)
    start = z if kind == "realnvp" else z.flip(-1)
    assert bool(((x - start).abs().amax(0) > 0.01).all())
    torch.testing.assert_close(transform.inverse(x)[0], z, rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad(x.square().sum() + log_det.sum(), list(transform.parameters()))
    assert all(bool((g != 0).any()) for g in gradients)


@every_kind
def test_the_context_is_read_and_broadcasts(kind: str) -> None:
    transform = moved(make(kind, context=2))
    z, context = randn(4, 5, 3), randn(5, 2, seed=2)
    x, log_det = transform(z, context)
    assert x.shape == (4, 5, 3) and log_det.shape == (4, 5)
    torch.testing.assert_close(transform.inverse(x, context)[0], z, rtol=1e-9, atol=1e-9)
    one = transform(z[2, 3], context[3])
    torch.testing.assert_close(one[0], x[2, 3])
    torch.testing.assert_close(one[1], log_det[2, 3])
    assert not torch.allclose(transform(z, context + 1)[0], x)


@every_kind
@pytest.mark.parametrize("context", [0, 2])
def test_a_stack_is_its_members_side_by_side(kind: str, context: int) -> None:
    stack = moved(make(kind, context=context, members=3))
    assert members_of(stack) == 3
    z, given = randn(3, 3, 3), randn(3, 3, 2, seed=2) if context else None
    x, log_det = stack(z, given)
    back = stack.inverse(x, given)[0]
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    for e in range(3):
        single = member(stack, e)(z[e], None if given is None else given[e])
        torch.testing.assert_close(single[0], x[e])
        torch.testing.assert_close(single[1], log_det[e])


@every_kind
def test_the_generator_decides(kind: str) -> None:
    before = torch.get_rng_state()
    twins, other = [make(kind, generator=seeded(4)) for _ in range(2)], make(kind, generator=seeded(5))
    states = [list(flow.state_dict().values()) for flow in (*twins, other)]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))
    assert torch.equal(before, torch.get_rng_state())


@every_kind
@pytest.mark.parametrize("members", [None, 2])
def test_they_are_the_priors_flows(kind: str, members: int | None) -> None:
    prior = getattr(FlowPrior, kind)(3, hidden=8, num_layers=3, members=members, generator=seeded(0))
    same = make(kind, num_layers=3, hidden=(8, 8), members=members)
    ours, theirs = same.state_dict(), prior.flow.transform.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    z = torch.randn(2, 5, 3, generator=seeded())
    assert torch.equal(Flow(same, 3).log_prob(z), prior.log_prob(z))


def test_a_flow_of_one_entry_is_autoregressive() -> None:
    for kind in ("maf", "iaf"):
        transform = moved(make(kind, 1, context=2))
        z, context = randn(5, 1), randn(5, 2, seed=2)
        x, _ = transform(z, context)
        torch.testing.assert_close(transform.inverse(x, context)[0], z)


# the fixed linear map -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("num_dims", [1, 2, 7])
def test_whitened_data_have_mean_zero_and_covariance_one(num_dims: int, dtype: torch.dtype) -> None:
    mix = randn(num_dims, num_dims, seed=5)
    data = (randn(500, num_dims) @ mix + 3).to(dtype)
    whitening = FixedLinear.whitening(data)
    white, log_det = whitening.inverse(data)
    assert white.dtype == log_det.dtype == dtype
    white = white.double()
    loose = 1e-4 if dtype == torch.float32 else 1e-9
    covariance = white.mT @ white / 500
    torch.testing.assert_close(white.mean(0), torch.zeros(num_dims, dtype=F64), rtol=0, atol=loose)
    torch.testing.assert_close(covariance, torch.eye(num_dims, dtype=F64), rtol=0, atol=loose)
    exact = torch.atleast_2d(torch.cov(data.double().T, correction=0))
    half = 0.5 * torch.linalg.slogdet(exact).logabsdet
    torch.testing.assert_close(log_det.double(), -half.expand(500), rtol=loose, atol=loose)


def test_the_flow_of_a_whitening_is_the_gaussian_that_fits_the_data_best() -> None:
    """log N(x; mean, covariance), from torch's own."""
    data = randn(300, 3) @ randn(3, 3, seed=5) + 2
    covariance = torch.cov(data.T, correction=0)
    gaussian = torch.distributions.MultivariateNormal(data.mean(0), covariance)
    flow = Flow(FixedLinear.whitening(data), 3)
    torch.testing.assert_close(flow.log_prob(data), gaussian.log_prob(data), rtol=1e-10, atol=1e-10)
    samples = flow.sample(4, generator=seeded())
    assert samples.dtype == F64 and samples.shape == (4, 3)


def test_noise_variance_is_that_of_uniform_noise() -> None:
    """Whole numbers with a constant entry: with the noise that they will get the covariance is I."""
    y = torch.randint(17, (4000, 3), generator=seeded())
    y[:, 1] = 5
    whitening = FixedLinear.whitening(y, noise_variance=1 / 12)
    assert whitening.matrix.dtype == whitening.shift.dtype == torch.float32
    with pytest.raises(ValueError, match="covariance is singular"):
        FixedLinear.whitening(y)
    u = torch.rand(4000, 3, generator=seeded(), dtype=F64)
    expected = torch.cov(y.double().T, correction=0) + torch.eye(3, dtype=F64) / 12
    matrix = whitening.matrix.double()
    torch.testing.assert_close(matrix @ matrix.T, expected, rtol=1e-5, atol=1e-5)
    white = whitening.inverse(y + u)[0]
    products = white.unsqueeze(-1) * white.unsqueeze(-2)
    offset = whitening.inverse(y.double().mean(0) + 0.5)[0]  # the noise has mean 1/2
    error = products.std(0) / 4000**0.5
    gap = products.mean(0) - torch.eye(3, dtype=F64) - torch.outer(offset, offset)
    assert bool((gap.abs() < 5 * error).all())


def test_float32_data_far_from_zero() -> None:
    """An offset of 10^5 standard deviations costs the rounding of the mean (1/256), nothing else."""
    near = torch.randn(2000, 4, generator=seeded())
    data = near + 1e5
    whitening = FixedLinear.whitening(data)
    white = whitening.inverse(data)[0].double()
    spacing = 2.0**-7  # of float32 at 10^5
    assert bool((white.mean(0).abs() < spacing).all())
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(4, dtype=F64), rtol=0, atol=1e-5)
    back = whitening(white.float())[0]
    torch.testing.assert_close(back, data, rtol=0, atol=2 * spacing)
    assert bool(whitening.inverse(data)[1].isfinite().all())


def test_the_map_by_hand_and_its_buffers() -> None:
    matrix, shift = torch.tensor([[2.0, 1.0], [0.0, 0.5]]), torch.tensor([1.0, -1.0])
    linear = FixedLinear(matrix, shift)
    x, log_det = linear(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    assert x.tolist() == [[5.0, 0.0], [1.0, -1.0]] and log_det.tolist() == [0.0, 0.0]
    assert not list(linear.parameters())
    matrix.zero_()
    shift.zero_()
    assert linear(torch.zeros(2))[0].tolist() == [1.0, -1.0], "the arguments were copied"
    assert linear.inverse(x)[0].tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_whole_numbers_are_taken_as_floats() -> None:
    linear = FixedLinear(torch.tensor([[2, 0], [0, 4]]), torch.tensor([1, 1]))
    z, log_det = linear.inverse(torch.tensor([2.0, 2.0]))
    assert z.tolist() == [0.5, 0.25] and float(log_det) == pytest.approx(-math.log(8))
    mixed = FixedLinear(torch.eye(2, dtype=F64), torch.tensor([1, 2]))
    assert mixed.shift.dtype == F64


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_dtype_and_device_follow(dtype: torch.dtype, device: torch.device) -> None:
    linear = FixedLinear.whitening(randn(50, 3)).to(device)
    x = randn(5, 3).to(device, dtype)
    for value in (*linear(x), *linear.inverse(x), *linear.to(dtype).inverse(x)):
        assert value.dtype == dtype and value.device.type == device.type
    made = FixedLinear.whitening(x)
    assert made.matrix.dtype == dtype and made.matrix.device.type == device.type


# refusals -------------------------------------------------------------------------------------------------


I2, O2 = torch.eye(2), torch.zeros(2)
COUNTING = torch.arange(9.0).reshape(3, 3)
REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: realnvp_transform(2, num_layers=0), "num_layers must be at least 1, got 0: a flow needs"),
    (lambda: realnvp_transform(1), "at least two entries"),
    (lambda: autoregressive_transform("maf", 2, num_layers=0), "num_layers must be at least 1, got 0"),
    (lambda: autoregressive_transform("made", 2), r"one of \['iaf', 'maf'\], got 'made': MAF is fast"),
    (lambda: autoregressive_transform("iaf", 5, hidden=[4]), "at least num_inputs=5 units"),
    (lambda: realnvp_transform(2, context=1)(O2), "in_features=2"),
    (lambda: realnvp_transform(2)(O2, O2), "in_features=1"),
    (lambda: autoregressive_transform("maf", 2, context=1).inverse(O2), "with context=1: call it with"),
    (lambda: FixedLinear(torch.ones(2, 3), O2), r"got \(2, 3\) and \(2,\): for one scale"),
    (lambda: FixedLinear(I2, torch.zeros(3)), r"\(d, d\) and a shift \(d,\)"),
    (lambda: FixedLinear(I2, torch.tensor(0.0)), r"got \(2, 2\) and \(\)"),
    (lambda: FixedLinear(torch.ones(2), O2), r"got \(2,\) and \(2,\)"),
    (lambda: FixedLinear(torch.ones(2, 2), O2), "must be invertible"),
    (lambda: FixedLinear(0.1 * COUNTING.double(), torch.zeros(3)), "exact combinations of others"),
    (lambda: FixedLinear(I2 * math.nan, O2), "entries finite"),
    (lambda: FixedLinear(I2 * math.inf, O2), "entries finite"),
    (lambda: FixedLinear(I2, O2 + math.inf), "entries finite"),
    (lambda: FixedLinear(I2, O2)(torch.zeros(5, 3)), r"of 2 dimensions, got shape \(5, 3\)"),
    (lambda: FixedLinear(I2, O2).inverse(torch.zeros(5, 1)), r"of 2 dimensions, got shape \(5, 1\)"),
    (lambda: FixedLinear(I2, O2)(torch.tensor(1.0)), r"events of 1 dimension.* got shape \(\)"),
    (lambda: FixedLinear.whitening(torch.ones(5)), r"data \(n, d\), got shape \(5,\)"),
    (lambda: FixedLinear.whitening(torch.ones(5, 1, 2, 2)), "flatten pictures"),
    (lambda: FixedLinear.whitening(torch.ones(0, 2)), r"got shape \(0, 2\)"),
    (lambda: FixedLinear.whitening(torch.tensor([[1.0, math.nan]])), "with 1 entries that are not finite"),
    (lambda: FixedLinear.whitening(torch.ones(5, 2)), "noise_variance=1/12"),
    (lambda: FixedLinear.whitening(randn(5, 1).expand(5, 2)), "drop constant dimensions"),
    (lambda: FixedLinear.whitening(randn(3, 5)), "covariance is singular"),
    (lambda: FixedLinear.whitening(randn(50, 2), noise_variance=-9.0), "covariance is singular"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
