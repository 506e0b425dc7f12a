"""Dequantizers by law: noise inside the bin, a density, its samples, its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dequantizer_zoo import (
    F64,
    LEVELS,
    ZOO,
    build,
    dtypes,
    every,
    lead,
    learned,
    levels,
    members_or_not,
    seeded,
    unit_cube,
)
from torch import Tensor

from dgm_course.dequantization import (
    Dequantizer,
    UniformDequantizer,
    VariationalDequantizer,
    dequantize,
)
from dgm_course.flows import FixedAffine

# inside the bin -------------------------------------------------------------------------------------------


@every
@members_or_not
@dtypes
@pytest.mark.parametrize("spread", [0.3, 3.0, 1e3], ids=lambda s: f"spread {s:g}")
def test_noise_is_strictly_inside_the_unit_cube(
    name: str, members: int | None, dtype: torch.dtype, spread: float
) -> None:
    """Of saturated networks too (the last spread moves sigmoid's argument by thousands)."""
    noise, y = build(name, members, spread=spread).to(dtype), levels(50, ZOO[name][1]).to(dtype)
    u, log_q = noise.rsample(y, 40, generator=seeded())
    assert bool(((u > 0) & (u < 1)).all()) and bool(log_q.isfinite().all())
    x = dequantize(y, u)
    assert torch.equal(x.floor(), y.expand_as(x))


@dtypes
def test_the_end_points_of_the_generator_are_no_outliers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 is one of the values of torch.rand: its logit is as far out as that of the largest, up to log 2."""
    eps = torch.finfo(dtype).eps

    def ends(shape: tuple[int, ...], **settings: object) -> Tensor:
        return torch.tensor([0.0, 1.0 - eps / 2], dtype=dtype).expand(shape).clone()

    monkeypatch.setattr(torch, "rand", ends)
    u, _ = UniformDequantizer().rsample(torch.zeros(1, 2, dtype=dtype))
    low, high = torch.logit(u).flatten().tolist()
    assert low < 0 < high and abs(low + high) < 0.7


@dtypes
@pytest.mark.parametrize("level", [0, 1, 7, 16, 255, 65_535])
def test_dequantized_values_stay_in_their_bin(dtype: torch.dtype, level: int) -> None:
    """Where the sum rounds up to the next level, too; and the gradient reaches u everywhere."""
    limits = torch.finfo(dtype)
    start = torch.tensor([0.0, limits.tiny, limits.eps, 0.25, 0.5, 1 - limits.eps, 1 - limits.eps / 2])
    u = start.to(dtype).requires_grad_()
    y = torch.full((7,), level)
    x = dequantize(y, u)
    assert x.dtype == dtype and torch.equal(x.detach().floor(), y.to(dtype))
    assert bool((x.detach().diff() >= 0).all()), "the order is kept"
    assert float(x[3].detach()) == level + 0.25
    (slope,) = torch.autograd.grad(x.sum(), u)
    assert torch.equal(slope, torch.ones(7, dtype=dtype))


def test_float32_needs_the_mending_at_255() -> None:
    """The plain sum is the next level: what the test above would catch."""
    u = torch.tensor(1.0) - torch.finfo(torch.float32).eps / 2
    assert float(255 + u) == 256.0 and float(dequantize(torch.tensor(255), u)) == 256 - 2.0**-16


@every
@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32, F64], ids=str)
def test_levels_of_any_dtype_are_left_alone(name: str, kind: torch.dtype) -> None:
    """The noise has the networks' dtype; uniform noise has y's, or the default one if y is whole numbers."""
    noise, y = build(name), levels(5, ZOO[name][1]).to(kind)
    before = y.clone()
    u, log_q = noise.rsample(y, 2, generator=seeded())
    wanted = F64 if name != "uniform" else kind if kind.is_floating_point else torch.float32
    assert u.dtype == log_q.dtype == noise.log_prob(u, y).dtype == dequantize(y, u).dtype == wanted
    assert torch.equal(y, before) and y.dtype == kind
    if name != "uniform":
        assert torch.equal(u, noise.rsample(levels(5, ZOO[name][1]), 2, generator=seeded())[0])


# a density and its samples --------------------------------------------------------------------------------


@every
@members_or_not
def test_log_q_is_the_density_at_the_sample(name: str, members: int | None) -> None:
    noise, y = build(name, members), levels(7, ZOO[name][1])
    u, log_q = noise.rsample(y, 4, generator=seeded())
    torch.testing.assert_close(noise.log_prob(u, y), log_q, rtol=1e-8, atol=1e-8)
    assert name == "uniform" or float(log_q.detach().std()) > 1e-3


@every
@members_or_not
def test_the_density_integrates_to_one(name: str, members: int | None) -> None:
    """Gauss-Legendre over the unit interval and square, but for the mass between the last float and 1."""
    m = ZOO[name][1]
    noise, y = build(name, members, spread=0.03), levels(4, m)
    u, weights = unit_cube(m)
    with torch.no_grad():
        log_q = noise.log_prob(u.unsqueeze(1).expand(*lead(members), -1, 4, m), y)  # ([E,] N, B)
    total = (weights.unsqueeze(-1) * log_q.exp()).sum(-2)
    torch.testing.assert_close(total, torch.ones(*lead(members), 4, dtype=F64), rtol=0, atol=1e-7)


@learned
def test_the_density_is_that_of_the_samples(name: str) -> None:
    """Moments of 20 000 draws against quadrature: 5 standard errors of the sample, for two y."""
    m = ZOO[name][1]
    noise, y = build(name), levels(2, m, seed=4)
    nodes, weights = unit_cube(m)
    with torch.no_grad():
        mass = weights.unsqueeze(-1) * noise.log_prob(nodes.unsqueeze(1).expand(-1, 2, m), y).exp()
        u = noise.rsample(y, 20_000, generator=seeded(5))[0]  # (n, B, m)

    def moments(u: Tensor) -> Tensor:
        return torch.stack([u[..., 0], u[..., -1], u[..., 0] * u[..., -1], (5 * u.sum(-1)).cos()], -1)

    expected = torch.einsum("nb,nk->bk", mass, moments(nodes))
    found = moments(u)
    assert bool(((found.mean(0) - expected).abs() < 5 * found.std(0) / 20_000**0.5).all())


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
@members_or_not
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_starts_exactly_uniform(kind: str, members: int | None, num_layers: int) -> None:
    make = getattr(VariationalDequantizer, kind)
    noise = make(3, LEVELS, num_layers=num_layers, members=members, generator=seeded(0)).double()
    y = levels(5, 3)
    u, log_q = noise.rsample(y, 6, generator=seeded())
    zeros = torch.zeros(*lead(members), 6, 5, dtype=F64)
    torch.testing.assert_close(log_q, zeros, rtol=0, atol=1e-12)
    torch.testing.assert_close(noise.log_prob(u, y), zeros, rtol=0, atol=1e-12)
    raw = torch.rand(*lead(members), 6, 5, 3, generator=seeded(), dtype=F64)
    reversed_order = kind == "autoregressive" and num_layers % 2 == 0
    torch.testing.assert_close(u, raw.flip(-1) if reversed_order else raw, rtol=1e-9, atol=1e-12)


def test_a_given_transform_without_parameters_will_do() -> None:
    """Against the closed form: u = sigmoid(1 + 2 epsilon), epsilon standard logistic."""
    noise = VariationalDequantizer(FixedAffine(1.0, 2.0), torch.nn.Identity(), 4)
    y = torch.tensor([[0.0, 3.0]], dtype=F64)
    u, log_q = noise.rsample(y, 5, generator=seeded())
    assert u.dtype == F64
    epsilon = (torch.logit(u) - 1) / 2
    density = torch.sigmoid(epsilon) * torch.sigmoid(-epsilon) / 2 / (u * (1 - u))
    torch.testing.assert_close(log_q, density.log().sum(-1), rtol=1e-9, atol=1e-9)
    assert noise.rsample(y.long(), generator=seeded())[0].dtype == torch.float32


# gradients ------------------------------------------------------------------------------------------------


@learned
@members_or_not
def test_gradients_reach_every_parameter(name: str, members: int | None) -> None:
    noise, y = build(name, members), levels(6, ZOO[name][1])
    reached = [p for key, p in noise.named_parameters() if ZOO[name][1] > 1 or "input.weight" not in key]
    u, log_q = noise.rsample(y, 3, generator=seeded())
    for value in (u.square().sum(), log_q.sum(), noise.log_prob(u.detach(), y).sum()):
        gradients = torch.autograd.grad(value, reached, retain_graph=True)
        assert all(bool(g.isfinite().all()) and bool((g != 0).any()) for g in gradients)


@learned
def test_gradients_are_those_of_differences(name: str) -> None:
    """Of the sample and of both densities, in all parameters along one direction, and in u."""
    noise, y = build(name), levels(2, ZOO[name][1])
    parameters = dict(noise.named_parameters())
    directions = {key: torch.randn(p.shape, generator=seeded(9), dtype=F64) for key, p in parameters.items()}

    def at(amount: Tensor) -> dict[str, Tensor]:
        return {key: p + amount * directions[key] for key, p in parameters.items()}

    def sampled(amount: Tensor) -> tuple[Tensor, Tensor]:
        call = _Call(noise, lambda q: q.rsample(y, 2, generator=seeded()))
        return torch.func.functional_call(call, {f"noise.{k}": p for k, p in at(amount).items()}, ())

    def density(amount: Tensor, u: Tensor) -> Tensor:
        call = _Call(noise, lambda q: q.log_prob(u, y))
        return torch.func.functional_call(call, {f"noise.{k}": p for k, p in at(amount).items()}, ())

    amount = torch.zeros((), dtype=F64, requires_grad=True)
    u = noise.rsample(y, 2, generator=seeded())[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(sampled, (amount,), atol=1e-5, rtol=1e-5)
    assert torch.autograd.gradcheck(density, (amount, u), atol=1e-5, rtol=1e-5)


class _Call(torch.nn.Module):
    def __init__(self, noise: Dequantizer, function: Callable[[Dequantizer], object]) -> None:
        super().__init__()
        self.noise, self.function = noise, function

    def forward(self) -> object:
        return self.function(self.noise)
