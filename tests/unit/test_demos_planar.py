"""Lecture 03's planar flow by hand: its numbers by numpy on fine grids, and what its picture holds."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from numpy.typing import NDArray

from dgm_course.demos import bent_grid, planar_by_hand, planar_fold
from dgm_course.flows import planar_inverse

Array = NDArray[np.float64]

SETTINGS = [(30.0, 1.5, 2.0, 0.0), (110.0, 2.0, -0.7, 1.0), (60.0, 1.0, -1.0, 0.5), (30.0, 1.5, -2.0, 0.75),
            (170.0, 3.0, -1.3, -1.0)]  # fmt: skip
settings = pytest.mark.parametrize(("angle", "steepness", "push", "shift"), SETTINGS)


@settings
def test_the_bent_grid_and_its_determinant(angle: float, steepness: float, push: float, shift: float) -> None:
    bend = planar_by_hand.compute(angle, steepness, push, shift)
    w = steepness * np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    u = push * w / steepness**2
    assert np.allclose(bend.w, w) and np.allclose(bend.u, u)

    def bent(z: Array) -> Array:
        return z + u * np.tanh(z @ w + shift)[..., None]

    z, h = bent_grid.square_lines(3.0, 21, 73).numpy(), 1e-6
    assert np.allclose(bend.lines, bent(z))
    first, second = ((bent(z + h * e) - bent(z - h * e)) / (2 * h) for e in np.eye(2))
    determinant = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    clear = np.abs(determinant) > 1e-3
    assert np.allclose(bend.log_det[clear], np.log(np.abs(determinant[clear])), atol=1e-5)
    assert (bend.negative.numpy()[clear] == (determinant[clear] < 0)).all()
    assert bool(bend.negative.any()) == (push < -1)


@settings
def test_one_preimage_and_the_mean_log_determinant(
    angle: float, steepness: float, push: float, shift: float
) -> None:
    bend = planar_by_hand.compute(angle, steepness, push, shift)
    a = np.linspace(-8 * steepness, 8 * steepness, 2_000_001) + math.pi * 1e-6  # no pole at a node
    mass = np.exp(-0.5 * (a / steepness) ** 2)
    mass /= mass.sum()
    value, slope = a + push * np.tanh(a + shift), 1 + push / np.cosh(a + shift) ** 2
    least_beyond = np.minimum.accumulate(value[::-1])[::-1]  # no later a goes as low
    nodes = 4 * mass.max()  # of the three ends of intervals, each is a node off
    farthest = value[:-1] < least_beyond[1:]
    assert bend.one_preimage == pytest.approx(mass[:-1][farthest].sum(), abs=nodes)
    assert bend.mass_negative == pytest.approx(mass[slope < 0].sum(), abs=nodes)
    log_size = np.log(np.abs(slope))
    assert bend.mean_log_det == pytest.approx((mass * log_size).sum(), abs=1e-4)
    assert (bend.one_preimage == 1.0) == (push >= -1)


@pytest.mark.parametrize("push", [-1.1, -1.5, -2.0])
def test_preimages_are_all_roots(push: float) -> None:
    y = torch.linspace(-3, 3, 61, dtype=torch.float64)
    t = planar_fold.preimages(y, push)
    there = ~t.isnan()
    assert torch.allclose((t + push * t.tanh())[there], y.expand(3, -1)[there], atol=1e-12)
    fine = np.linspace(-9, 9, 400_002)
    values = fine + push * np.tanh(fine)
    crossings = [(np.diff(np.sign(values - float(one))) != 0).sum() for one in y]
    assert there.sum(0).tolist() == crossings and set(crossings) == {1, 3}
    sizes = 1 + push * (1 - t.tanh() ** 2)
    for branch, sign in enumerate((1, -1, 1)):
        assert (sign * sizes[branch][there[branch]] > 0).all()
    with pytest.raises(ValueError, match="w.u < -1 only"):
        planar_fold.preimages(y, -1.0)


def formula(x: Array, bend: planar_by_hand.Bend) -> Array:
    """The sum of p_0(z) / |det J| over all preimages: of one by the library's inverse, of three by pieces."""
    w, u = bend.w.numpy(), bend.u.numpy()
    if bend.push >= -1:
        z, log_det = planar_inverse(torch.from_numpy(x), bend.u, bend.w, bend.shift)
        return (torch.exp(-0.5 * z.square().sum(-1) + log_det) / (2 * math.pi)).numpy()
    t = np.linspace(-25, 25, 500_001)
    values = t + bend.push * np.tanh(t)
    pieces = np.split(np.arange(len(t)), np.flatnonzero(np.diff(np.sign(np.diff(values)))) + 1)
    assert len(pieces) == 3
    total = np.zeros(x.shape[:-1])
    for piece in pieces:
        order = np.argsort(values[piece])
        kind = {"left": np.nan, "right": np.nan}
        root = np.interp(x @ w + bend.shift, values[piece][order], t[piece][order], **kind)
        z = x - u * np.tanh(root)[..., None]
        size = np.abs(1 + bend.push / np.cosh(root) ** 2)
        total += np.nan_to_num(np.exp(-0.5 * (z**2).sum(-1)) / size / (2 * math.pi))
    return total


@settings
def test_the_density_is_the_sum_over_preimages(
    angle: float, steepness: float, push: float, shift: float
) -> None:
    """Away from where it is infinite, against the formula's mean over a cell; and its mass is 1."""
    bend = planar_by_hand.compute(angle, steepness, push, shift)
    x, cell = planar_by_hand.ground()[1].numpy(), 8 / 120
    along = bend.w.numpy() / steepness
    # A cell takes the nearest of eight places along w: it is off by a sixteenth of a cell at most.
    means = [np.mean([formula(x + (off + k / 8) * cell * along, bend) for k in range(-4, 5)], 0)
             for off in (-1 / 8, 0.0, 1 / 8)]  # fmt: skip
    y = x @ bend.w.numpy() + shift
    pole = abs(bend.fold + push * math.tanh(bend.fold))
    smooth = np.abs(np.abs(y) - pole) > 3 * cell * steepness if push <= -1 else np.full(y.shape, True)
    assert smooth.mean() > 0.5
    density = bend.density.numpy()[smooth]
    low, high = np.min(means, 0)[smooth], np.max(means, 0)[smooth]
    assert (density > 0.98 * low).all() and (density < 1.02 * high).all()
    assert float(bend.density.sum()) * cell**2 == pytest.approx(1, abs=6e-3)  # little lies outside


def test_the_distribution_function_counts_samples() -> None:
    z = np.random.default_rng(0).normal(size=200_000)
    for push in (-2.0, -1.0, 3.0):
        bend = planar_by_hand.compute(0.0, 1.5, push, 0.5)
        x = z + push / 1.5 * np.tanh(1.5 * z + 0.5)
        at = torch.tensor([-1.5, -0.4, -0.1, 0.0, 0.3, 1.2], dtype=torch.float64)
        below = planar_fold.distribution(at, bend.u, bend.w, push, 0.5)
        for point, probability in zip(at.tolist(), below.tolist(), strict=True):
            error = math.sqrt(probability * (1 - probability) / len(x))
            assert abs((x <= point).mean() - probability) < 5 * error


def test_minus_one_is_a_position_and_survives_a_rounding_error() -> None:
    demo = planar_by_hand.show()
    push = demo.controls["push"]
    positions = [push.min + k * push.step for k in range(61)]
    assert min(abs(position + 1) for position in positions) < 1e-12
    assert positions[-1] == pytest.approx(push.max)
    for value in (-1.0, -1.0000000000000004, -0.9999999999999996):
        said = planar_by_hand.numbers(planar_by_hand.compute(30.0, 1.5, value, 0.0))
        assert said["bijection"] == "at the edge" and said["smallest det J"] == "0.0"
    assert planar_by_hand.numbers(planar_by_hand.compute(30.0, 1.5, -0.9, 0.0))["bijection"] == "yes"
    assert planar_by_hand.numbers(planar_by_hand.compute(30.0, 1.5, -1.1, 0.0))["bijection"] == "no: it folds"


def test_what_the_caption_of_the_planar_flow_promises() -> None:
    demo, said = planar_by_hand.show(), planar_by_hand.TRY_THIS
    one = "∫ p₀(z)/|det J| dx, one preimage"
    for push, value in ((-1.0, "1.000"), (-1.1, "0.751"), (-2.0, "0.326")):
        demo.set(push=push)
        assert demo.numbers(demo.result)[one] == value and (value in said or push == -1.0)
    demo.reset()
    demo.set(push=4.0)
    assert demo.numbers(demo.result)["E log|det J|"] == "0.905 nats" and "0.905 nats" in said
    # the entropy, from the density along w on its own grid; across w nothing changes
    a = np.linspace(-12, 12, 400_001)
    x, slope = a + 4 / 1.5 * np.tanh(1.5 * a), 1 + 4 / np.cosh(1.5 * a) ** 2
    density = np.exp(-0.5 * a**2) / math.sqrt(2 * math.pi) / slope
    entropy = -np.trapezoid(density * np.log(density), x)
    assert entropy - 0.5 * math.log(2 * math.pi * math.e) == pytest.approx(0.905, abs=5e-4)

    def humps(push: float) -> int:
        values = planar_by_hand.compute(0.0, 1.5, push, 0.0).density[60].numpy()
        return int(((values[1:-1] > values[:-2]) & (values[1:-1] >= values[2:])).sum())

    assert (humps(0.0), humps(4.0)) == (1, 2)
    for angle, steepness, shift in itertools.product((0.0, 75.0), (0.5, 4.0), (-3.0, 0.0, 2.0)):
        verdicts = [planar_by_hand.numbers(planar_by_hand.compute(angle, steepness, push, shift))["bijection"]
                    for push in (-0.9, -1.0, -1.1)]  # fmt: skip
        assert verdicts == ["yes", "at the edge", "no: it folds"]


def test_planar_by_hand_shows_the_state() -> None:
    demo = planar_by_hand.show()
    artists = demo.artists
    assert artists["title"].get_text() == "Density of x" and not artists["falling"].get_visible()
    assert artists["share"].get_text() == ""
    demo.set(push=-2.0, shift=0.5, angle=90.0, steepness=2.0)
    bend = demo.result
    assert artists["title"].get_text() == "Density of x: all preimages"
    assert artists["share"].get_text() == f"det J < 0: {bend.mass_negative:.0%} of z"
    assert (artists["image"].get_array() == bend.density.numpy()).all()
    a, y = artists["profile"].get_data()
    assert np.allclose(y, a - 2 * np.tanh(a + 0.5))
    a, y = artists["falling"].get_data()
    assert artists["falling"].get_visible() and (np.diff(y) < 0).all()
    assert np.allclose(1 - 2 / np.cosh(a[[0, -1]] + 0.5) ** 2, 0, atol=1e-9)
    assert artists["at_bend"].get_xydata().tolist() == [[-0.5, -0.5]]
    corners = artists["strip"].get_xy()
    ends = np.array([corners[:, 1].min(), corners[:, 1].max()])  # w points upwards
    assert np.allclose(np.sort(y[[0, -1]]) / 2, ends)
    pink = (np.array(artists["grid"].get_colors()) == to_rgba(bent_grid.MARKED)).all(-1)
    both = bend.negative[:, :-1] & bend.negative[:, 1:]
    assert pink.sum() == int(both.sum()) > 0 and pink[-1] and not pink[0]  # the fold lies on top
    height = artists["lost"].get_xy()[:, 1].max() + 6
    assert height == pytest.approx(2.5)  # the middle of the mass of a = w.z lies in the fold


@pytest.mark.usefixtures("default_dtype")
def test_the_ends_of_all_sliders() -> None:
    demo = planar_by_hand.show()
    ends = {name: (control.min, control.max) for name, control in demo.controls.items()}
    for values in itertools.product(*ends.values()):
        demo.set(**dict(zip(ends, values, strict=True)))
        assert (demo.frame() == demo.full_frame()).all()
        assert torch.isfinite(demo.result.density).all() and (demo.result.density >= -1e-12).all()
        said = " ".join(demo.numbers(demo.result).values()) + demo.describe(demo.result)
        assert not re.search(r"\b(nan|inf)", said)
    demo.close()


def test_every_slider_changes_a_number() -> None:
    demo = planar_by_hand.show()
    for name, control in demo.controls.items():
        demo.reset()
        said = demo.numbers(demo.result)
        demo.set(**{name: control.value + control.step})
        assert demo.numbers(demo.result) != said, name
