"""The unnormalised targets: their evidence and extent by quadrature, gradients far out, refusals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgm_course.data import UnnormalisedTarget, banana_target, two_peaks_target, wave_target
from dgm_course.numerics import gauss_legendre

F64 = torch.float64
#: each with the half-width of its z_1, and where the mass of z_2 lies for a given z_1: centre and sd
Column = Callable[[Tensor], Tensor]
CASES: dict[str, tuple[UnnormalisedTarget, float, Column, float]] = {
    "wave": (wave_target(), 12.0, lambda z1: torch.sin(0.5 * math.pi * z1), 0.4),
    "wave, flat": (wave_target(sd=2.0, width=0.1), 0.8, lambda z1: torch.sin(0.5 * math.pi * z1), 2.0),
    "banana": (banana_target(), 8.0, lambda z1: 0.8 * (z1.square() - 1), 0.5),
    "banana, down": (banana_target(bend=-0.3, sd=3.0), 8.0, lambda z1: -0.3 * (z1.square() - 1), 3.0),
    "banana, straight": (banana_target(bend=0.0), 8.0, torch.zeros_like, 0.5),
    "two peaks": (two_peaks_target(), 6.8, torch.zeros_like, 0.6),
    "two peaks, apart": (two_peaks_target(distance=12.0, sd=0.2), 7.6, torch.zeros_like, 0.2),
}
every = pytest.mark.parametrize("name", CASES)


def columns(name: str) -> tuple[Tensor, Tensor]:
    """Nodes ``(N, n, 2)`` and weights that follow the band, in z_2 within 9 sd of its centre."""
    _, reach, centre, sd = CASES[name]
    z1, weights1 = gauss_legendre(-reach, reach, 400)
    t, weights2 = gauss_legendre(-9.0, 9.0, 120)
    z2 = centre(z1) + sd * t.T  # (N, n)
    return torch.stack([z1.expand_as(z2), z2], -1), weights1[:, None] * sd * weights2


@every
def test_the_normaliser_is_the_integral(name: str) -> None:
    target = CASES[name][0]
    nodes, weights = columns(name)
    integral = (weights * target.log_density(nodes).exp()).sum()
    assert math.log(integral) == pytest.approx(target.log_normaliser, abs=1e-11)


@pytest.mark.parametrize("name", ["wave", "two peaks"])
def test_a_plain_grid_over_the_extent_finds_the_normaliser_too(name: str) -> None:
    """As a lecture integrates it: one square, one density."""
    target = CASES[name][0]
    nodes, weights = gauss_legendre(-target.half_width, target.half_width, 300, num_dims=2)
    integral = (weights * target.log_density(nodes).exp()).sum()
    assert math.log(integral) == pytest.approx(target.log_normaliser, abs=1e-9)


@every
def test_the_square_holds_all_but_1e_12(name: str) -> None:
    """What the columns hold of z_2 beyond the square, and of z_1, whose law is known, beyond it."""
    target, _, centre, sd = CASES[name]
    half, z1 = target.half_width, columns(name)[0][:, :1, 0]  # (N, 1)
    weights1 = gauss_legendre(-CASES[name][1], CASES[name][1], 400)[1]
    above = torch.special.ndtr(-(half - centre(z1)) / sd) + torch.special.ndtr(-(half + centre(z1)) / sd)
    outside_z2 = (weights1 * marginal(name, z1.squeeze(-1)) * above.squeeze(-1)).sum()
    assert 0 <= outside_z2 < 5e-13
    beyond = torch.linspace(half, half + 60.0, 200_001, dtype=F64)
    outside_z1 = 2 * torch.trapezoid(marginal(name, beyond), beyond)
    assert 0 <= outside_z1 < 5e-13


def marginal(name: str, z1: Tensor) -> Tensor:
    """The normalised density of z_1: that of the whole at z_2 in the band's middle, over that of z_2."""
    target, _, centre, sd = CASES[name]
    middle = target.log_density(torch.stack([z1, centre(z1)], -1)) - target.log_normaliser
    return (middle + math.log(sd * math.sqrt(2 * math.pi))).exp()


def test_the_marginals_are_what_they_are_said_to_be() -> None:
    z1 = torch.linspace(-3.0, 3.0, 7, dtype=F64)
    normal = torch.distributions.Normal
    for name, sd in (("wave", 1.5), ("wave, flat", 0.1), ("banana", 1.0), ("banana, down", 1.0)):
        expected = normal(torch.zeros(7, dtype=F64), sd).log_prob(z1).exp()
        torch.testing.assert_close(marginal(name, z1), expected, rtol=1e-12, atol=1e-12)
    two = [normal(torch.full((7,), at, dtype=F64), 0.6).log_prob(z1).exp() for at in (-2.0, 2.0)]
    torch.testing.assert_close(marginal("two peaks", z1), 0.5 * (two[0] + two[1]), rtol=1e-12, atol=1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_are_finite_far_out_and_the_dtype_is_kept(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    """A thousand away in each direction, where both peaks are far below the smallest number; shapes."""
    target = CASES[name][0]
    ends = torch.tensor([-1e3, -30.0, 0.0, 30.0, 1e3], dtype=dtype, device=device)
    z = torch.cartesian_prod(ends, ends).reshape(5, 5, 2).requires_grad_()
    value = target.log_density(z)
    assert value.shape == (5, 5) and value.dtype == dtype and value.device.type == device.type
    assert value.isfinite().all() and (value <= math.log(2.0)).all()
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert gradient.isfinite().all() and gradient.dtype == dtype
    assert target.log_density(z[0, 0]).shape == ()


def test_a_target_is_a_value() -> None:
    target = wave_target()
    assert [t.name for t in (target, banana_target(), two_peaks_target())] == ["wave", "banana", "two peaks"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.half_width = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wave_target(sd=0.0), "sd must be positive and finite, got 0.0"),
        (lambda: wave_target(width=-1.0), "width must be positive and finite, got -1.0"),
        (lambda: banana_target(sd=math.inf), "sd must be positive and finite, got inf"),
        (lambda: banana_target(bend=math.nan), "bend must be finite, got nan"),
        (lambda: banana_target(bend=math.inf), "bend must be finite, got inf"),
        (lambda: two_peaks_target(distance=0.0), "distance must be positive and finite, got 0.0"),
        (lambda: two_peaks_target(sd=math.nan), "sd must be positive and finite, got nan"),
        (lambda: wave_target().log_density(torch.zeros(5, 3)), r"z must be \(..., 2\), got \(5, 3\)"),
        (lambda: banana_target().log_density(torch.zeros(())), r"z must be \(..., 2\), got \(\)"),
        (lambda: two_peaks_target().log_density(torch.zeros(2, 1)), r"got \(2, 1\): these targets live"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
