"""Toy densities: they integrate to one, and what they sample is what their log_prob says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from dgm_course import data
from dgm_course.data import Density

BIMODAL = {"weights": (0.2, 0.5, 0.3), "means": (-3.0, 0.5, 2.0), "sds": (0.4, 1.0, 0.2)}
ALL: dict[str, Callable[[], Density]] = {
    "bimodal": data.bimodal,
    "three modes": lambda: data.bimodal(**BIMODAL),
    "ring": data.ring,
    "grid": data.grid,
    "two_moons": data.two_moons,
    "wide moons": lambda: data.two_moons(noise=0.3),
    "pinwheel": data.pinwheel,
    "three arms": lambda: data.pinwheel(num_arms=3, twist=-1.0),
    "checkerboard": data.checkerboard,
    "small board": lambda: data.checkerboard(num_squares=3, half_width=1.5),
}
HALF_WIDTH = 6.0


@pytest.fixture(params=ALL)
def density(request: pytest.FixtureRequest) -> Density:
    return ALL[request.param]()


def quadrature(num_dims: int) -> tuple[Tensor, float]:
    """Midpoint rule on a box: exact to rounding for smooth densities wider than the step, and for boards."""
    step = 0.025
    axis = torch.arange(-HALF_WIDTH + step / 2, HALF_WIDTH, step, dtype=torch.float64)
    nodes = torch.cartesian_prod(*[axis] * num_dims).reshape(-1, num_dims)
    return nodes, step**num_dims


def test_integrates_to_one(density: Density) -> None:
    nodes, weight = quadrature(density.num_dims)
    total = density.log_prob(nodes).exp().sum() * weight
    assert abs(total.item() - 1.0) < 1e-6


def test_samples_follow_the_log_prob(density: Density) -> None:
    nodes, weight = quadrature(density.num_dims)
    log_p = density.log_prob(nodes)
    p = log_p.exp() * weight
    x = density.sample(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_p_of_x = density.log_prob(x)
    assert bool(log_p_of_x.isfinite().all())
    direction = torch.linspace(0.7, 1.9, density.num_dims, dtype=torch.float64)
    functions = {
        "log p": (log_p_of_x, torch.where(p > 0, log_p, 0.0)),
        "x_1": (x[:, 0], nodes[:, 0]),
        "x_1^2": (x[:, 0] ** 2, nodes[:, 0] ** 2),
        "x_1 x_d": (x[:, 0] * x[:, -1] ** 2, nodes[:, 0] * nodes[:, -1] ** 2),
        "wave": ((x @ direction).sin(), (nodes @ direction).sin()),
        "fine wave": ((9.0 * x @ direction).cos(), (9.0 * nodes @ direction).cos()),
    }
    for name, (of_x, of_nodes) in functions.items():
        exact = (p * of_nodes).sum()
        standard_error = of_x.std() / math.sqrt(len(x))
        assert (of_x.mean() - exact).abs() <= 5.0 * standard_error + 1e-6, name


def test_same_generator_same_sample(density: Density) -> None:
    first, second, other = (density.sample(50, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.shape == (50, density.num_dims) and first.dtype == torch.float32


def test_the_global_seed_rules_without_a_generator(density: Density) -> None:
    torch.manual_seed(5)
    first = density.sample(4)
    torch.manual_seed(5)
    assert torch.equal(first, density.sample(4))


def test_shapes_dtypes_devices(density: Density, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        x = density.sample(12, generator=generator, dtype=dtype)
        assert x.device.type == device.type and x.dtype == dtype
        log_p = density.log_prob(x.reshape(3, 4, -1))
        assert log_p.shape == (3, 4) and log_p.dtype == dtype and log_p.device.type == device.type
        assert torch.equal(log_p.flatten(), density.log_prob(x))
        assert density.log_prob(x[0]).shape == ()
        assert density.log_prob(x[:0]).shape == (0,)
    drawn_on_cpu = density.sample(5, generator=torch.Generator().manual_seed(0), device=device)
    assert drawn_on_cpu.device.type == device.type


def test_float32_agrees_with_float64(density: Density) -> None:
    x = density.sample(500, generator=torch.Generator().manual_seed(2))
    exact = density.log_prob(x.double())
    torch.testing.assert_close(density.log_prob(x).double(), exact, atol=2e-3, rtol=1e-4)


def test_gradients_are_finite(density: Density) -> None:
    x = density.sample(100, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    log_p = density.log_prob(x)
    if isinstance(density, data.Checkerboard):
        assert not log_p.requires_grad  # flat where it is not zero
        return
    assert bool(torch.autograd.grad(log_p.sum(), x)[0].isfinite().all())


def test_bimodal_is_the_formula() -> None:
    x = np.linspace(-5, 5, 11)
    normal = [
        w * np.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
        for w, m, s in zip(*BIMODAL.values(), strict=True)
    ]
    got = data.bimodal(**BIMODAL).log_prob(torch.from_numpy(x)[:, None])
    np.testing.assert_allclose(got.numpy(), np.log(sum(normal)), rtol=1e-12)


def test_log_prob_stays_finite_far_away() -> None:
    far = torch.full((1, 2), 1e3, dtype=torch.float64)
    for density in (data.ring(), data.grid(), data.two_moons(), data.pinwheel()):
        assert bool(density.log_prob(far).isfinite().all())


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("point", [(0.0, 0.0), (1.0, 0.5), (-1.1, 0.05), (2.3, 1.5), (0.5, 0.25)])
def test_two_moons_against_adaptive_quadrature(noise: float, point: tuple[float, float]) -> None:
    def on_arc(t: float) -> float:
        arcs = [(math.cos(t), math.sin(t)), (1.0 - math.cos(t), 0.5 - math.sin(t))]
        squares = [sum((a - b) ** 2 for a, b in zip(point, c, strict=True)) for c in arcs]
        kernel = sum(math.exp(-0.5 * s / noise**2) for s in squares)
        return kernel / (2.0 * math.pi) / (2.0 * math.pi * noise**2)

    exact = sum(
        scipy.integrate.quad(on_arc, k * math.pi / 32, (k + 1) * math.pi / 32, epsabs=0, epsrel=1e-12)[0]
        for k in range(32)
    )
    got = data.two_moons(noise).log_prob(torch.tensor(point, dtype=torch.float64))
    assert abs(got.item() - math.log(exact)) < 1e-9


def test_modes_lie_where_they_should() -> None:
    ring, grid = data.ring(), data.grid()
    assert ring.means.shape == (8, 2) and grid.means.shape == (25, 2)
    torch.testing.assert_close(ring.means.norm(dim=-1), torch.full((8,), 2.0, dtype=torch.float64))
    assert sorted(grid.means[:, 0].unique().tolist()) == [-4.0, -2.0, 0.0, 2.0, 4.0]
    torch.testing.assert_close(ring.log_prob(ring.means), ring.log_prob(ring.means)[:1].expand(8))


def test_checkerboard_is_half_open() -> None:
    board = data.checkerboard()
    corners = torch.tensor([[-4.0, -4.0], [-2.0, -2.0], [-2.0, -4.0], [4.0, 4.0], [3.9, 3.9], [0.0, -0.1]])
    assert board.log_prob(corners).isfinite().tolist() == [True, True, False, False, True, False]
    assert board.log_prob(corners.double())[0].item() == -math.log(32.0)


def test_checkerboard_never_samples_off_the_board() -> None:
    for half_width in (4.0, 0.3, 1e4):
        board = data.checkerboard(num_squares=7, half_width=half_width)
        for dtype in (torch.float16, torch.float32) if half_width < 100 else (torch.float32,):
            x = board.sample(100_000, generator=torch.Generator().manual_seed(0), dtype=dtype)
            assert bool(board.log_prob(x).isfinite().all())


def one(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.bimodal(weights=(0.5, 0.6)), "divide them by their sum"),
        (lambda: data.bimodal(weights=(1.5, -0.5)), "non-negative"),
        (lambda: data.bimodal(sds=(0.5, -1.0)), "not its logarithm"),
        (lambda: data.bimodal(weights=(0.5, 0.3, 0.2)), "one weight, one mean"),
        (lambda: data.GaussianMixture(one(1.0), one(0.0), one(1.0)), r"means \(K, d\)"),
        (lambda: data.ring(num_modes=0), "at least one mode"),
        (lambda: data.ring(sd=0.0), "positive"),
        (lambda: data.grid(side=0), "at least one mode"),
        (lambda: data.two_moons(noise=0.0), "at least 0.01"),
        (lambda: data.two_moons(noise=math.nan), "at least 0.01"),
        (lambda: data.pinwheel(num_arms=0), "at least one mode"),
        (lambda: data.Pinwheel(radial_sd=0.0), "positive"),
        (lambda: data.checkerboard(num_squares=0), "num_squares >= 1"),
        (lambda: data.ring().sample(0), "n >= 1"),
        (lambda: data.ring().log_prob(torch.zeros(4, 3)), r"shape \(\.\.\., 2\)"),
        (lambda: data.bimodal().log_prob(torch.zeros(4)), "unsqueeze"),
        (lambda: data.pinwheel().log_prob(torch.zeros(4, 2, dtype=torch.long)), "floating point"),
        (lambda: data.checkerboard().log_prob(torch.zeros(())), "coordinates last"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
