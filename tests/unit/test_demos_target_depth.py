"""Lecture 06's demo of a flow's depth: its gaps by closed forms and samples, its stacks layer by layer."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from small_demos import small_fits, small_target_depth

from dgm_course.data import banana_target, wave_target
from dgm_course.demos import latent_plane, target_depth, target_fits
from dgm_course.flows import Compose, FixedAffine, Flow

TARGETS = ("wave", "banana", "two peaks")
DEPTHS = (0, 1, 2)


@pytest.fixture(scope="module")
def table() -> target_depth.Table:
    return target_depth.tabulate(small_fits())


def gaussian(mean: tuple[float, float], sd: tuple[float, float]) -> Flow:
    return Flow(FixedAffine(torch.tensor(mean).double(), torch.tensor(sd).double()), 2)


@pytest.mark.parametrize(("mean", "sd"), [((0.0, 0.0), (0.5, 0.6)), ((0.3, -0.4), (0.6, 0.7))])
def test_the_gap_of_a_gaussian_to_the_banana_is_a_polynomial_of_its_moments(
    mean: tuple[float, float], sd: tuple[float, float]
) -> None:
    (m1, m2), (s1, s2), bend, width = mean, sd, 0.8, 0.5
    second = m1**2 + s1**2
    fourth = m1**4 + 6 * m1**2 * s1**2 + 3 * s1**4
    residual = (m2**2 + s2**2) - 2 * m2 * bend * (second - 1) + bend**2 * (fourth - 2 * second + 1)
    cross = -0.5 * second - 0.5 * residual / width**2 - math.log(2 * math.pi * width)
    exact = -(1 + math.log(2 * math.pi) + math.log(s1 * s2)) - cross
    assert target_depth.exact_gap(gaussian(mean, sd), banana_target()) == pytest.approx(exact, abs=5e-4)


def test_a_gap_is_never_negative_and_zero_for_the_target_itself() -> None:
    flat = wave_target(sd=0.4, width=1e-3)  # the sine is a straight line there, and small
    flow = gaussian((0.0, 0.0), (1e-3, 0.4))
    assert 0 <= target_depth.exact_gap(flow, flat) + 1e-6 < 1e-4


def test_gaps_are_those_of_samples(table: target_depth.Table) -> None:
    """``log q`` on the way forward, where the quadrature goes back through the inverse."""
    fits, generator = small_fits(), torch.Generator().manual_seed(8)
    for t, k, d in np.ndindex(*table.gap.shape):
        target = fits.targets[t]
        flow = fits.flows[target.name, fits.kinds[k], fits.depths[d]]
        with torch.no_grad():
            z, log_q = flow.rsample_with_log_prob(10_000, generator=generator)
            lack = log_q.double() - target.log_density(z.double()) + target.log_normaliser
        error = float(lack.std()) / math.sqrt(len(lack))
        assert abs(float(table.gap[t, k, d] - lack.mean())) < 5 * error + 1e-3, (t, k, d)
    assert (table.gap > 0).all()


def test_more_cells_change_nothing(table: target_depth.Table) -> None:
    for kind in target_fits.KINDS:
        flow = small_fits().flows["two peaks", kind, 2]
        coarse, fine = (target_depth.exact_gap(flow, small_fits().targets[2], n) for n in (200, 300))
        assert coarse == pytest.approx(fine, abs=1e-3), kind


@pytest.mark.parametrize("kind", target_fits.KINDS)
def test_a_member_of_the_stack_is_the_flow_taken_from_it(kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    stack = target_fits._STACKS[kind](3, 4, generator)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        z = torch.randn(4, 5, 2, generator=generator)
        for depth in (1, 2, 3):
            x, log_det = z, torch.zeros(4, 5)
            for step in stack.steps()[:depth]:
                x, more = step(x)
                log_det = log_det + more
            for index in range(4):
                one, one_log_det = Compose(stack.take(index, depth))(z[index])
                assert torch.allclose(one, x[index], atol=1e-5)
                assert torch.allclose(one_log_det, log_det[index], atol=1e-5)


def test_depth_zero_is_a_gaussian_whatever_the_layers_would_be(table: target_depth.Table) -> None:
    for name in TARGETS:
        for one, other in (("planar", "radial"), ("coupling", "IAF")):  # trained at one rate
            one, other = (small_fits().flows[name, kind, 0].transform[0] for kind in (one, other))
            assert torch.allclose(one.scale, other.scale, atol=1e-4)
            assert torch.allclose(one.shift, other.shift, atol=1e-4)
    assert (table.parameters[:, :, 0] == 0).all()
    assert table.parameters[0, :, 1].tolist() == [5, 4, 66, 116]
    assert (table.parameters[:, :, 2] == 2 * table.parameters[:, :, 1]).all()


def test_depth_narrows_the_gap_of_the_banana() -> None:
    """No Gaussian with independent entries is nearer than by the search; one layer of couplings is."""
    def gap(m2: float, s1: float, s2: float) -> float:
        residual = m2**2 + s2**2 - 1.6 * m2 * (s1**2 - 1) + 0.64 * (3 * s1**4 - 2 * s1**2 + 1)
        return 0.5 * s1**2 + 2 * residual + math.log(0.5) - 1 - math.log(s1 * s2)

    searched = [np.linspace(low, high, 41) for low, high in ((-0.8, 0.4), (0.3, 1.0), (0.3, 0.8))]
    best = min(itertools.starmap(gap, itertools.product(*searched)))
    fits = target_depth.fit_default(
        kinds=("coupling",), depths=(0, 1), targets=[banana_target()], steps=150, starts=1, progress=False
    )
    wide, narrow = target_depth.tabulate(fits).gap[0, 0].tolist()
    assert wide > best - 1e-2  # the search's own step
    assert narrow < best - 0.1


def test_maps_are_the_flows_and_the_targets(table: target_depth.Table) -> None:
    at = latent_plane.centres(torch.zeros(()))
    z = at[[70, 40]]
    for t, k, d in np.ndindex(*table.gap.shape):
        with torch.no_grad():
            flow = small_fits().flows[TARGETS[t], small_fits().kinds[k], DEPTHS[d]]
            density = float(flow.log_prob(z).exp())
        assert float(table.density[t, k, d][40, 70]) == pytest.approx(density, rel=1e-3, abs=1e-6)
    for t, target in enumerate(small_fits().targets):
        density = math.exp(float(target.log_density(z)) - target.log_normaliser)
        assert float(table.target[t][40, 70]) == pytest.approx(density, rel=1e-4)
        assert latent_plane.CELL * table.target[t].sum() == pytest.approx(1, abs=0.03)


def test_target_depth_shows_the_state(table: target_depth.Table) -> None:
    demo = small_target_depth()
    assert demo.values == {"target": "wave", "kind": "planar", "depth": 1}
    for (t, name), (k, kind), (d, depth) in itertools.product(
        enumerate(TARGETS), enumerate(target_fits.KINDS), enumerate(DEPTHS)
    ):
        demo.set(target=name, kind=kind, depth=depth)
        artists, gap = demo.artists, table.gap[t]
        assert (artists["image"].get_array() == table.density[t, k, d]).all()
        assert (artists["truth"].get_array() == table.target[t]).all()
        assert [contour.get_visible() for contour in artists["contours"]] == [j == t for j in range(3)]
        for j, curve in enumerate(artists["curves"]):
            assert curve.get_ydata() == pytest.approx((-gap[j]).numpy())
            assert (curve.get_alpha() == 1) == (j == k)
        assert artists["here"].get_xydata()[0] == pytest.approx([d, -float(gap[k, d])])
        assert [text.get_text() for text in artists["values"]] == [f"{value:.3f}" for value in gap[:, d]]
        said = target_depth.numbers(demo.result)
        assert said["log Z − ELBO = KL(q ‖ p)"] == f"{float(gap[k, d]):.3f} nats"
        assert not re.search(r"\bnan\b", demo.describe(demo.result) + " ".join(said.values()))


def test_fitting_is_repeatable_and_leaves_nothing_to_train() -> None:
    kind = {"kinds": ("IAF",), "depths": (1,), "steps": 3, "starts": 1, "progress": False, "seed": 3}
    first, again = (target_depth.fit_default(**kind) for _ in range(2))
    for key, flow in first.flows.items():
        assert all(map(torch.equal, flow.state_dict().values(), again.flows[key].state_dict().values()))
        assert not any(parameter.requires_grad for parameter in flow.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depths": (2, 1)}, "ascend"),
        ({"depths": (0,)}, "1 or more"),
        ({"depths": (-1, 1)}, "ascend"),
        ({"kinds": ("MAF",)}, "kinds are some of"),
        ({"kinds": ()}, "kinds are some of"),
        ({"starts": 0}, "starts at least 1"),
    ],
)
def test_fit_default_refuses(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        target_depth.fit_default(**{"steps": 1, "progress": False} | change)


def test_only_flows_of_the_plane_with_a_normal_base() -> None:
    based = Flow(FixedAffine(0.0, 1.0), torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1))  # fmt: skip
    for flow in (based, Flow(FixedAffine(0.0, 1.0), 3)):
        with pytest.raises(ValueError, match="first FixedAffine"):
            target_depth.exact_gap(flow, banana_target())


def test_only_fits_that_there_are(table: target_depth.Table) -> None:
    for target, kind, depth in (("moons", "IAF", 1), ("wave", "MAF", 1), ("wave", "IAF", 3)):
        with pytest.raises(ValueError, match="pick from these"):
            target_depth.compute(table, target, kind, depth)


@pytest.mark.usefixtures("default_dtype")
def test_fits_in_every_precision() -> None:
    fits = target_depth.fit_default(depths=(0, 1), steps=2, starts=1, num_samples=4, progress=False)
    wanted = torch.get_default_dtype()
    assert {p.dtype for flow in fits.flows.values() for p in flow.parameters()} == {wanted}
    demo = target_depth.show(fits, target="banana", kind="IAF", depth=1)
    assert demo.result.table.gap.isfinite().all()
    demo.close()
