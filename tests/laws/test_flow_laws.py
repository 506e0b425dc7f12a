"""The laws of every transform of the library (``flow_zoo``): what makes it a flow. Ledger F1."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from flow_zoo import ZOO, Entry
from torch import Tensor

from dgm_course import flows
from dgm_course.flows import Flow, Transform

every_transform = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
in_two_dimensions = pytest.mark.parametrize(
    "entry", [entry for entry in ZOO if entry.event == (2,)], ids=lambda entry: entry.name
)
both_ways = pytest.mark.parametrize("way", ["forward", "inverse"])


def go(transform: Transform, way: str, value: Tensor) -> tuple[Tensor, Tensor]:
    return getattr(transform, way)(value)


def start(entry: Entry, transform: Transform, way: str, *batch: int, seed: int = 0) -> Tensor:
    """Points where ``way`` starts: of the base, or images of such."""
    z = entry.points(*batch, seed=seed)
    return z if way == "forward" else transform(z)[0].detach()


def test_the_zoo_is_complete() -> None:
    kinds = {type(part) for entry in ZOO for part in entry.build().modules() if isinstance(part, Transform)}
    public = {kind for _, kind in inspect.getmembers(flows, inspect.isclass) if issubclass(kind, Transform)}
    assert public - {Transform} <= kinds


@every_transform
@both_ways
def test_inverse_undoes(entry: Entry, way: str) -> None:
    transform = entry.build()
    other = "inverse" if way == "forward" else "forward"
    at = start(entry, transform, way, 40)
    there, log_det = go(transform, way, at)
    back, log_det_back = go(transform, other, there)
    torch.testing.assert_close(back, at, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-9, atol=1e-9)
    if sum(p.numel() for p in transform.parameters()):  # not the identity
        assert float((there - at).abs().max().detach()) > 0.05


@every_transform
@both_ways
def test_log_det_is_the_jacobians(entry: Entry, way: str) -> None:
    transform = entry.build()
    for at in start(entry, transform, way, 5, seed=1):
        jacobian = torch.autograd.functional.jacobian(lambda value: go(transform, way, value)[0], at)
        expected = torch.linalg.slogdet(jacobian.reshape(at.numel(), at.numel())).logabsdet
        torch.testing.assert_close(go(transform, way, at)[1], expected, rtol=1e-10, atol=1e-10)


@every_transform
@both_ways
def test_batch_dimensions(entry: Entry, way: str) -> None:
    """None, one, two, and an empty one: the same numbers, the log-determinant in the batch shape."""
    transform = entry.build()
    at = start(entry, transform, way, 6)
    value, log_det = go(transform, way, at)
    assert value.shape == at.shape and log_det.shape == (6,)
    two = go(transform, way, at.reshape(2, 3, *entry.event))
    assert two[0].shape == (2, 3, *entry.event) and two[1].shape == (2, 3)
    one = go(transform, way, at[4])
    assert one[0].shape == entry.event and one[1].shape == ()
    for found, expected in ((two[0].flatten(0, 1), value), (two[1].flatten(), log_det),
                            (one[0], value[4]), (one[1], log_det[4])):  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    none = go(transform, way, at[:0])
    assert none[0].shape == (0, *entry.event) and none[1].shape == (0,)


@every_transform
@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_and_device_are_kept_and_no_input_is_changed(
    entry: Entry, way: str, dtype: torch.dtype, device: torch.device
) -> None:
    transform = entry.build(dtype=dtype).to(device)
    z = entry.points(3, dtype=dtype).to(device)
    at = z if way == "forward" else transform(z)[0].detach()
    before = at.clone()
    value, log_det = go(transform, way, at)
    assert value.dtype == log_det.dtype == dtype
    assert value.device == log_det.device == at.device
    assert torch.equal(at, before)
    assert value.data_ptr() != at.data_ptr()  # the answer can be changed without changing the input
    expected = go(entry.build(), way, before.double().cpu())
    loose = 2e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(value.double().cpu(), expected[0], rtol=loose, atol=loose)
    torch.testing.assert_close(log_det.double().cpu(), expected[1], rtol=loose, atol=loose)


def mass(flow: Flow, unit: bool) -> float:
    """The integral of the density over the plane: the trapezoidal rule on a fine grid."""
    count, low, high = (1200, 0.0, 1.0) if unit else (1200, -30.0, 30.0)
    axis = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    with torch.no_grad():
        total = sum(
            float(flow.log_prob(torch.cartesian_prod(part, axis)).exp().sum()) for part in axis.split(100)
        )
    return total * ((high - low) / count) ** 2


@in_two_dimensions
def test_density_integrates_to_one(entry: Entry) -> None:
    """Up to 1e-6; where the density has a kink (around a radial flow's centre), up to the grid's 1e-3."""
    transform = entry.build()
    kinked = any(isinstance(part, flows.RadialFlow) for part in transform.modules())
    assert mass(Flow(transform, 2), entry.unit) == pytest.approx(1.0, abs=1e-3 if kinked else 1e-6)


@every_transform
def test_state_dict_round_trip(entry: Entry) -> None:
    transform, other = entry.build(seed=0), entry.build(seed=7)
    other.load_state_dict(transform.state_dict())
    z = entry.points(4)
    for found, expected in zip(other(z), transform(z), strict=True):
        assert torch.equal(found, expected)


@every_transform
@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-30, 30.0, 1e6], ids=lambda size: f"{size:g}")
def test_extreme_inputs_stay_finite(entry: Entry, way: str, dtype: torch.dtype, size: float) -> None:
    """Values, log-determinants and gradients; a sigmoid's inverse starts at the ends of (0, 1)."""
    transform = entry.build(dtype=dtype)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=dtype)
    at = size * entry.points(5, dtype=dtype).sign() * signs.reshape(5, *[1] * len(entry.event))
    if entry.unit and way == "inverse":
        at = (at > 0).to(dtype)
    at.requires_grad_()
    value, log_det = go(transform, way, at)
    assert bool(value.isfinite().all()) and bool(log_det.isfinite().all())
    wanted = [at, *transform.parameters()]
    gradients = torch.autograd.grad(value.sum() + log_det.sum(), wanted, allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)


@every_transform
@both_ways
def test_gradients_are_those_of_differences(entry: Entry, way: str) -> None:
    """Numeric inverses too, and with respect to the parameters too (one combined direction)."""
    transform = entry.build()
    at = start(entry, transform, way, 2, seed=3).requires_grad_()
    parameters = list(transform.parameters())
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]

    def along(at: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
        moved = {
            name: p + amount * v
            for (name, p), v in zip(transform.named_parameters(), directions, strict=True)
        }
        moved |= dict(transform.named_buffers())
        names = _Way(transform, way), {f"transform.{name}": value for name, value in moved.items()}
        return torch.func.functional_call(*names, (at,))

    amount = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (at, amount), eps=1e-6, atol=1e-5, rtol=1e-5)


@every_transform
@both_ways
def test_second_derivatives_are_right_or_refused(entry: Entry, way: str) -> None:
    """The slow direction of an autoregressive flow has none, and says so; all others have them."""
    transform = entry.build()
    at = start(entry, transform, way, 1, seed=3).requires_grad_()
    slow = {flows.MaskedAutoregressiveFlow: "forward", flows.InverseAutoregressiveFlow: "inverse"}
    if slow.get(type(transform)) == way or (entry.name == "composition" and way == "inverse"):
        value, log_det = go(transform, way, at)
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(value.sum() + log_det.sum(), at, create_graph=True)
        return
    kind = {"atol": 1e-4, "rtol": 1e-4, "check_undefined_grad": False}
    if all(p.requires_grad for p in go(transform, way, at)[:1]):
        assert torch.autograd.gradgradcheck(lambda value: go(transform, way, value)[0], (at,), **kind)
    if go(transform, way, at)[1].requires_grad and not isinstance(transform, _CONSTANT):
        assert torch.autograd.gradgradcheck(lambda value: go(transform, way, value)[1], (at,), **kind)


_CONSTANT = (flows.ActNorm, flows.InvertibleConv1x1)  # their log-determinants do not depend on the input


class _Way(torch.nn.Module):
    """One direction of a transform as a module's forward, for ``functional_call``."""

    def __init__(self, transform: Transform, way: str) -> None:
        super().__init__()
        self.transform, self.way = transform, way

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return go(self.transform, self.way, value)


@pytest.mark.usefixtures("double")
@every_transform
def test_a_flow_is_a_distribution(entry: Entry) -> None:
    """Samples, their density in one pass, and the density again from the samples alone."""
    transform = entry.build()
    flow = Flow(transform, entry.event)
    assert isinstance(flow, torch.distributions.Distribution)
    x, log_prob = flow.rsample_with_log_prob((2, 3), generator=torch.Generator().manual_seed(1))
    assert x.shape == (2, 3, *entry.event) and log_prob.shape == (2, 3)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-8, atol=1e-8)
    assert log_prob.dtype == torch.float64
    again = flow.sample((2, 3), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again, x.detach(), rtol=1e-12, atol=1e-12)
    assert not again.requires_grad
    z = transform.inverse(x)[0]
    by_hand = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(2).sum(-1)
    jacobians = torch.stack([
        torch.autograd.functional.jacobian(lambda value: transform.inverse(value)[0], one)
        .reshape(one.numel(), -1) for one in x.detach().flatten(0, 1)
    ])  # fmt: skip
    by_hand = by_hand + torch.linalg.slogdet(jacobians).logabsdet.reshape(2, 3)
    torch.testing.assert_close(log_prob, by_hand, rtol=1e-8, atol=1e-8)
