"""Lecture 03's demo of a flow's depth: its numbers by closed forms, finite differences and samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from torch import Tensor, nn

from dgm_course.data import GaussianMixture, bimodal, checkerboard, two_moons
from dgm_course.demos import bent_grid, flow_depth
from dgm_course.flows import (
    ActNorm,
    AffineCoupling,
    Compose,
    FixedAffine,
    Flow,
    MaskedAutoregressiveFlow,
    Permutation,
    PlanarFlow,
    half_mask,
)
from dgm_course.nets import MLP, MaskedMLP
from dgm_course.train import fit, minibatch


def normal_below(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))


def couplings(num_layers: int, dtype: torch.dtype = torch.float64) -> Compose:
    kind = {"activation": torch.tanh, "generator": torch.Generator().manual_seed(1)}
    nets = [MLP([1, 16, 2], **kind) for _ in range(num_layers)]
    masks = [half_mask(2, first=k % 2 == 0) for k in range(num_layers)]
    return Compose(map(AffineCoupling, masks, nets)).to(dtype)


@pytest.fixture(scope="module")
def trained() -> Flow:
    flow = Flow(couplings(4, torch.float32), 2)
    data = two_moons().sample(4000, generator=torch.Generator().manual_seed(0))

    def loss(_: int, generator: torch.Generator) -> Tensor:
        return -flow.log_prob(minibatch(data, 128, generator)).mean()

    fit(loss, flow.parameters(), steps=150, lr=2e-2, lr_decay_from=0.3, progress=False)
    return flow


@pytest.fixture(scope="module")
def table(trained: Flow) -> flow_depth.Table:
    return flow_depth.tabulate(trained, two_moons())


def test_numbers_of_a_gaussian_flow_are_closed_forms() -> None:
    shifts, scales = [(0.3, -0.2), (0.1, 0.4)], [(0.5, 1.4), (0.9, 0.4)]
    layers = [FixedAffine(torch.tensor(a), torch.tensor(b)) for a, b in zip(shifts, scales, strict=True)]
    mean, sd = np.array([0.3, 0.2]), 0.35
    one = torch.ones(1, dtype=torch.float64)
    target = GaussianMixture(one, torch.from_numpy(mean)[None], sd * one)
    table = flow_depth.tabulate(Flow(Compose(layers), 2), target)
    mu, sigma = np.zeros(2), np.ones(2)
    (low1, high1), (low2, high2) = (flow_depth._ends(at) for at in table.axes)
    for k in range(3):
        if k:
            mu = np.array(shifts[k - 1]) + np.array(scales[k - 1]) * mu
            sigma = np.array(scales[k - 1]) * sigma
        kl = (np.log(sigma / sd) + (sd**2 + (mean - mu) ** 2) / (2 * sigma**2) - 0.5).sum()
        assert float(table.kl[k]) == pytest.approx(kl, abs=1e-5)
        mass = math.prod(
            normal_below((high - m) / s) - normal_below((low - m) / s)
            for low, high, m, s in zip((low1, low2), (high1, high2), mu, sigma, strict=True)
        )
        assert float(table.mass[k]) == pytest.approx(mass, abs=2e-4)  # its edge cuts the normal's tail
        assert np.allclose(table.log_det[k], np.log(sigma).sum(), atol=1e-6)
        x1, x2 = (at.numpy() for at in table.axes)
        rows = np.exp(-0.5 * ((x2 - mu[1]) / sigma[1]) ** 2) / sigma[1]
        columns = np.exp(-0.5 * ((x1 - mu[0]) / sigma[0]) ** 2) / sigma[0]
        assert np.allclose(table.density[k], np.outer(rows, columns) / (2 * math.pi), atol=1e-5)


def test_the_grid_and_its_log_determinants_are_those_of_the_layers_one_by_one() -> None:
    transform = couplings(3)
    table = flow_depth.tabulate(Flow(transform, 2), two_moons())
    z = bent_grid.polar_lines(2.5, 5, 24, 181)
    step = 1e-5

    @torch.no_grad()
    def first(k: int, z: Tensor) -> Tensor:
        for layer in list(transform)[:k]:
            z = layer(z)[0]
        return z

    for k in range(4):
        assert torch.allclose(table.lines[k], first(k, z), atol=1e-12)
        columns = []
        for d in range(2):
            move = step * torch.eye(2, dtype=torch.float64)[d]
            columns.append((first(k, z + move) - first(k, z - move)) / (2 * step))
        determinant = columns[0][..., 0] * columns[1][..., 1] - columns[0][..., 1] * columns[1][..., 0]
        assert torch.allclose(table.log_det[k], determinant.abs().log(), atol=1e-7)


def test_the_grid_is_circles_and_rays() -> None:
    lines = bent_grid.polar_lines(2.0, 4, 6, 33)
    assert lines.shape == (10, 33, 2)
    radii = torch.tensor([0.5, 1.0, 1.5, 2.0]).double()[:, None].expand(-1, 33)
    assert torch.allclose(lines[:4].norm(dim=-1), radii)
    assert torch.allclose(lines[:4, 0], lines[:4, -1], atol=1e-12)
    assert (lines[4:, 0] == 0).all() and torch.allclose(lines[4:, -1].norm(dim=-1), radii[3, :6])
    square = bent_grid.square_lines(3.0, 7, 13)
    assert square.shape == (14, 13, 2) and square.abs().max() == 3.0
    assert (square[:7, :, 0] == square[:7, :1, 0]).all() and (square[7:, :, 1] == square[7:, :1, 1]).all()


def test_density_and_divergence_are_those_of_samples(trained: Flow, table: flow_depth.Table) -> None:
    x = two_moons().sample(20_000, generator=torch.Generator().manual_seed(5))
    low, high = (torch.tensor(ends) for ends in zip(*map(flow_depth._ends, table.axes), strict=True))
    for k in (1, 4):
        first = Flow(trained.transform[:k], 2)
        ratio = (two_moons().log_prob(x) - first.log_prob(x)).detach().double()
        assert abs(float(table.kl[k] - ratio.mean())) < 5 * float(ratio.std()) / len(x) ** 0.5
        samples = first.sample(20_000, generator=torch.Generator().manual_seed(k))
        inside = ((samples > low) & (samples < high)).all(-1).double()
        error = max(float(inside.std()), 0.01) / len(samples) ** 0.5
        assert abs(float(table.mass[k] - inside.mean())) < 5 * error


def test_what_the_caption_of_the_depths_promises(trained: Flow, table: flow_depth.Table) -> None:
    assert float(table.log_det[0].abs().max()) == 0.0
    z = bent_grid.polar_lines(2.5, 5, 24, 181)
    assert torch.allclose(table.lines[0], z, atol=1e-6)
    log_base = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    for k in range(1, 5):
        with torch.no_grad():
            log_p = Flow(trained.transform[:k], 2).log_prob(table.lines[k].float()).double()
        assert torch.allclose(log_p, log_base - table.log_det[k], atol=2e-3)
        for inner, outer in itertools.pairwise(table.lines[k, :5].numpy()):
            assert Outline(outer).contains_points(inner).all()
    assert table.kl[-1] < 0.7 * table.kl[0]  # what training looked at
    assert (table.kl.diff() > 0).any()  # not at every layer


def test_contours_hold_their_share() -> None:
    at = torch.linspace(-6, 6, 241, dtype=torch.float64)
    density = torch.exp(-0.5 * (at[:, None] ** 2 + at**2)) / (2 * math.pi)
    for share in flow_depth.SHARES:  # a disc has mass 1 - exp(-r^2 / 2), at its rim (1 - mass) / 2 pi
        level = flow_depth.mass_level(density, share)
        assert level == pytest.approx((1 - share) / (2 * math.pi), rel=0.03)


def test_flow_depth_shows_the_state(trained: Flow) -> None:
    demo = flow_depth.show(trained, two_moons())
    assert demo.values == {"k": 2}
    demo.set(k=3)
    artists, table = demo.artists, demo.result.table
    assert (artists["image"].get_array() == table.density[3].numpy()).all()
    assert artists["here"].get_xydata().tolist() == [[3.0, float(table.kl[3])]]
    pieces = np.array(artists["grid"].get_segments()).reshape(29, 180, 2, 2)
    assert np.allclose(pieces[:, :, 0], table.lines[3, :, :-1]) and np.allclose(
        pieces[:, :, 1], table.lines[3, :, 1:]
    )
    middle = 0.5 * (table.log_det[3, :, :-1] + table.log_det[3, :, 1:]).flatten().numpy()
    colours = artists["grid"].get_colors()
    for index in (int(middle.argmin()), int(np.abs(middle).argmin())):
        wanted = bent_grid.COLOURS(0.5 + 0.5 * np.clip(middle[index] / table.limit, -1, 1))
        assert np.abs(colours[index] - wanted).max() < 0.03
    assert demo.numbers(demo.result) == {
        "KL(target ‖ p_k)": f"{float(table.kl[3]):.3f} nats",
        "log|det J|": f"{float(table.log_det[3].min()):.2f} to {float(table.log_det[3].max()):.2f} nats"
        .replace("-", "−"),
        "mass of p_k in the square": f"{float(table.mass[3]):.3f}",
    }  # fmt: skip
    assert demo.describe(demo.result).startswith("After 3 of 4 layers")


def test_a_nested_composition_is_one_layer_and_one_transform_a_flow() -> None:
    pair = couplings(2)
    table = flow_depth.tabulate(Flow(Compose([pair, Permutation.reverse(2), ActNorm(2)]), 2), two_moons())
    assert table.num_layers == 3
    alone = flow_depth.tabulate(Flow(pair, 2), two_moons())
    assert alone.num_layers == 2 and torch.equal(alone.kl[2], table.kl[1])
    assert flow_depth.tabulate(Flow(PlanarFlow(2), 2), two_moons()).num_layers == 1


def test_a_given_base_and_a_target_with_jumps() -> None:
    wide = torch.distributions.MultivariateNormal(torch.zeros(2), 4.0 * torch.eye(2))
    table = flow_depth.tabulate(Flow(FixedAffine(0.0, 0.5), wide), checkerboard())
    (low, high), half_cell = flow_depth._ends(table.axes[0]), 0.5 * float(table.axes[0].diff()[0])
    assert low < -4 and high > 4
    for k, sd in ((0, 2.0), (1, 1.0)):  # uniform over half of [-4, 4]^2: E |x|^2 = 2 * 16 / 3
        quadratic = 16 / 3 / sd**2
        kl = -math.log(32) + math.log(2 * math.pi * sd**2) + quadratic
        # the rule sees the board's rim half a cell off at most: 1/4 of that in length, twice it in the square
        assert float(table.kl[k]) == pytest.approx(kl, abs=2 * half_cell / 4 * quadratic)


@pytest.mark.parametrize(
    ("flow", "target", "says"),
    [
        (Flow(ActNorm(3), 3), two_moons(), "event shape \\(3,\\)"),
        (Flow(ActNorm(2), 2), bimodal(), "num_dims=1"),
    ],
)
def test_only_flows_of_the_plane(flow: Flow, target: GaussianMixture, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        flow_depth.tabulate(flow, target)


def test_only_layers_that_there_are(table: flow_depth.Table) -> None:
    for k in (-1, 5):
        with pytest.raises(ValueError, match="pick 0 to 4"):
            flow_depth.compute(table, k)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_flows_of_every_kind_in_every_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = [
        couplings(2, dtype), Permutation.reverse(2), ActNorm(2), PlanarFlow(2, generator=generator),
        MaskedAutoregressiveFlow(MaskedMLP(2, 8, 2, generator=generator)), FixedAffine(0.5, 0.8),
    ]  # fmt: skip
    demo = flow_depth.show(Flow(Compose(layers).to(dtype), 2), two_moons(), k=1)
    for k in (0, 6):
        demo.set(k=k)
        assert (demo.frame() == demo.full_frame()).all()
        assert "nan" not in "".join(demo.numbers(demo.result).values()) + demo.describe(demo.result)
    assert torch.isfinite(demo.result.table.kl).all()
    demo.close()
