"""Lecture 04's demos: their numbers by numpy and by samples, and what their pictures hold."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from dgm_course.demos import bin_noise, dequantization_noise, discretized_logistic
from dgm_course.demos.engine import LiveDemo
from dgm_course.divergences import kl_divergence
from dgm_course.numerics import gauss_legendre

Array = NDArray[np.float64]

SETTINGS = [(-6.0, 0.1, 17), (-1.0, 1.0, 9), (2.0, 3.0, 5), (4.25, 0.3, 17), (22.0, 10**0.6, 17)]
settings = pytest.mark.parametrize(("mean", "scale", "num_levels"), SETTINGS)


def sigmoid(x: Array | float) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, dtype=float)))


# discretized_logistic, against differences of the distribution function ------------------------------------


@settings
def test_the_mass_of_a_bin_with_and_without_the_rule(mean: float, scale: float, num_levels: int) -> None:
    at = sigmoid((np.arange(num_levels + 1) - 0.5 - mean) / scale)
    off = discretized_logistic.compute(mean, scale, num_levels, "off")
    assert np.allclose(off.probs, np.diff(at), atol=1e-15)
    assert off.left == pytest.approx(at[0], abs=1e-15) and off.right == pytest.approx(1 - at[-1], abs=1e-15)
    assert float(off.probs.sum()) + off.left + off.right == pytest.approx(1, abs=1e-14)
    on = discretized_logistic.compute(mean, scale, str(num_levels), "on")
    at[0], at[-1] = 0.0, 1.0
    assert np.allclose(on.probs, np.diff(at), atol=1e-15)
    assert float(on.probs.sum()) == pytest.approx(1, abs=1e-14)
    assert (on.left, on.right) == (off.left, off.right)
    assert torch.equal(on.density, off.density)


def test_the_areas_of_the_picture_are_the_bars() -> None:
    bins = discretized_logistic.compute(3.25, 1.5, 9, "off")
    x, step = discretized_logistic.places().numpy(), 1 / 20
    for y in range(9):
        inside = (x > y - 0.51) & (x < y + 0.51)
        area = np.trapezoid(bins.density.numpy()[inside], dx=step)
        assert area == pytest.approx(float(bins.probs[y]), abs=1e-4)


def test_what_the_caption_of_the_logistic_promises() -> None:
    said = discretized_logistic.TRY_THIS
    on, off = (discretized_logistic.compute(-3.0, 1.0, 17, rule) for rule in ("on", "off"))
    assert f"P(0) is {float(on.probs[0]):.3f}" in said and f"P(0) is {float(off.probs[0]):.3f}" in said
    assert f"{1 - float(off.probs.sum()):.3f} of the mass" in said
    means = np.arange(-6.0, 22.25, 0.25)
    first = {rule: [float(discretized_logistic.compute(mean, 1.0, 17, rule).probs[0]) for mean in means]
             for rule in ("on", "off")}  # fmt: skip
    assert (np.diff(first["on"]) < 0).all() and first["on"][0] > 0.998
    assert means[np.argmax(first["off"])] == 0.0
    assert float(discretized_logistic.compute(0.0, 0.1, 17, "off").probs[0]) > 0.98
    middle = [float(discretized_logistic.compute(8.0, 1.0, 17, rule).probs.sum()) for rule in ("on", "off")]
    assert middle[0] - middle[1] < 1e-3
    white = discretized_logistic.compute(19.0, 1.0, 17, "on").probs[-1]
    assert float(white) == pytest.approx(float(on.probs[0]), abs=1e-14)


def test_discretized_logistic_shows_the_state() -> None:
    demo = discretized_logistic.show()
    artists = demo.artists
    demo.set(mean=2.0, scale=1.0, num_levels="5", rule="off")
    bins = demo.result
    heights = [bar.get_height() for bar in artists["bars"]]
    assert heights[:5] == pytest.approx((bins.probs / 0.5).tolist()) and heights[5:] == [0.0] * 12
    assert [tick.get_text() for tick in artists["ticks"]] == ["0", "0.25", "0.5"]
    colours = [to_hex(bar.get_facecolor()).upper() for bar in artists["bars"][:5]]
    assert colours == [discretized_logistic.INSIDE] * 5
    assert [bar.get_height() for bar in artists["lost"]] == pytest.approx([bins.left / 0.5] * 2)
    assert [bar.get_x() + 0.43 for bar in artists["lost"]] == pytest.approx([-1, 5])
    assert all(bar.get_visible() for bar in artists["lost"])
    assert artists["total"].get_text() == f"Σ P(y) = {math.tanh(1.25):.6f}"
    assert artists["total"].get_color() == discretized_logistic.LOST
    assert [text.get_text() for text in artists["tails"]] == ["tail 0.0759 is lost"] * 2
    assert artists["edges"].get_xdata()[::3].tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5]

    demo.set(rule="on")
    colours = [to_hex(bar.get_facecolor()).upper() for bar in artists["bars"][:5]]
    outer, inside = discretized_logistic.OPEN, discretized_logistic.INSIDE
    assert colours == [outer, inside, inside, inside, outer]
    assert not any(bar.get_visible() for bar in artists["lost"])
    assert artists["total"].get_text() == "Σ P(y) = 1.000000"
    assert artists["total"].get_color() == discretized_logistic.plots.INK
    assert artists["tails"][1].get_text() == "tail 0.0759 counts for y = 4"
    assert artists["edges"].get_xdata()[::3].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert [to_hex(area.get_facecolor()).upper() for area in artists["areas"]] == [outer, inside, outer]
    left, middle, right = (area.get_xy()[:, 0] for area in artists["areas"])
    spans = [(area.min(), area.max()) for area in (left, middle, right)]
    assert np.allclose(spans, [(-8.0, 0.5), (0.5, 3.5), (3.5, 24.0)])
    assert "for y = 4. The probabilities sum to 1.000000" in demo.describe(demo.result)


# dequantization_noise, against the distribution function, other quadratures and samples --------------------


def model_density(x: Array) -> Array:
    scales = np.array(bin_noise.SCALES)
    f = sigmoid((x[..., None] - np.array(bin_noise.MEANS)) / scales)
    return (np.array(bin_noise.WEIGHTS) * f * (1 - f) / scales).sum(-1)


def model_mass(y: int) -> float:
    low, high = (sigmoid((y + k - np.array(bin_noise.MEANS)) / np.array(bin_noise.SCALES)) for k in (0, 1))
    return float((np.array(bin_noise.WEIGHTS) * (high - low)).sum())


def log_slope(t: Array) -> Array:
    """Logarithm of the sigmoid's derivative."""
    return -np.logaddexp(0, t) - np.logaddexp(0, -t)


def log_ratio(y: int, shift: float, scale: float, logit: Array) -> Array:
    """log p(u|y) - log q(u|y) at numbers U with these logits, q by the change of variables from U to u."""
    t = shift + scale * logit
    log_q = log_slope(logit) - math.log(scale) - log_slope(t)  # dU/du
    return np.log(model_density(y + sigmoid(t)) / model_mass(y)) - log_q


NOISES = [(1, 0.0, 1.0), (1, -1.0, 10**-0.5), (3, 1.5, 0.9), (6, 0.5, 2.0), (7, -1.0, 0.6)]
noises = pytest.mark.parametrize(("level", "shift", "scale"), NOISES)


def test_every_level_has_visible_mass_and_its_probability_is_exact() -> None:
    masses = [math.exp(level.log_prob) for level in bin_noise.levels()]
    assert masses == pytest.approx([model_mass(y) for y in range(8)], rel=1e-12)
    assert min(masses) > 0.01 and sum(masses) > 0.95
    assert sum(bin_noise.WEIGHTS) == pytest.approx(1)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-1.0, 0.3), (2.0, 1.5), (0.5, 3.0)])
def test_the_noise_is_the_law_of_its_definition(shift: float, scale: float) -> None:
    """P(sigmoid(a + b logit U) <= u) = P(U <= sigmoid((logit u - a) / b)): its slope is q."""
    u, h = np.linspace(0.05, 0.95, 19), 1e-5
    below = [sigmoid((np.log(v / (1 - v)) - shift) / scale) for v in (u - h, u + h)]
    q = bin_noise.noise_log_prob(torch.from_numpy(u), shift, scale).exp().numpy()
    assert np.allclose(q, (below[1] - below[0]) / (2 * h), rtol=1e-5, atol=1e-8)
    if (shift, scale) == (0.0, 1.0):
        assert np.allclose(q, 1.0, atol=1e-14)


def test_uniform_gap_is_the_divergence_of_the_uniform_from_the_ideal() -> None:
    pieces = [gauss_legendre(k / 40, (k + 1) / 40, 20) for k in range(40)]
    u, weights = torch.cat([node[:, 0] for node, _ in pieces]), torch.cat([weight for _, weight in pieces])
    for y, level in enumerate(bin_noise.levels()):
        log_ideal = torch.from_numpy(np.log(model_density(y + u.numpy()) / model_mass(y)))
        kl = kl_divergence(torch.zeros_like(u), log_ideal, weights)
        noise = dequantization_noise.compute(y, 0.0, 1.0, 1, "hidden")
        assert float(level.uniform[0]) == pytest.approx(float(kl), abs=1e-9)
        assert torch.equal(noise.gaps[0], noise.gaps[1])  # a = 0, b = 1 is uniform noise


@noises
def test_bounds_of_one_and_two_samples_are_double_sums(level: int, shift: float, scale: float) -> None:
    """At K = 1 the gap is KL(q || p(u|y)); the integral is over the logit of U, in even pieces."""
    pieces = [gauss_legendre(low, low + 2, 20) for low in range(-40, 40, 2)]
    logit, weights = (torch.cat(parts).squeeze(-1).numpy() for parts in zip(*pieces, strict=True))
    mass = weights * np.exp(log_slope(logit))
    ratio = log_ratio(level, shift, scale, logit)
    noise = dequantization_noise.compute(level, shift, scale, 2, "shown")
    assert float(noise.gaps[1, 0]) == pytest.approx(-(mass * ratio).sum(), abs=1e-8)
    pairs = np.logaddexp(ratio[:, None], ratio) - math.log(2)
    assert noise.here[1] == pytest.approx(-(mass @ pairs @ mass), abs=1e-6)


@noises
def test_bound_of_many_samples_is_the_mean_of_draws(level: int, shift: float, scale: float) -> None:
    logit = np.random.default_rng(level).logistic(size=(20_000, 64))
    bounds = np.log(np.exp(log_ratio(level, shift, scale, logit)).mean(1))
    error = bounds.std() / len(bounds) ** 0.5
    noise = dequantization_noise.compute(level, shift, scale, 64, "hidden")
    assert abs(noise.here[1] + bounds.mean()) < 5 * error and error < 3e-3


@pytest.mark.parametrize("level", range(8))
def test_uniform_best_weighted_exact_in_this_order(level: int) -> None:
    facts = bin_noise.levels()[level]
    assert facts.best[0] < facts.uniform[0]
    for curve in (facts.uniform, facts.best):
        assert (curve.diff() < 0).all() and curve[-1] > 0
    low, high = dequantization_noise.SHIFT_RANGE, dequantization_noise.SCALE_RANGE
    assert low[0] < facts.best_shift < low[1] and high[0] < facts.best_scale < high[1]
    _, weights = bin_noise.nodes()

    def kl(shift: float, scale: float) -> float:
        return float(bin_noise.gaps(facts.log_joint, shift, scale)[0])

    least, step = kl(facts.best_shift, facts.best_scale), 1e-3
    for da, db in ((step, 1), (-step, 1), (0, 1 + step), (0, 1 - step)):
        assert kl(facts.best_shift + da, facts.best_scale * db) > least
    for shift, scale in itertools.product(np.linspace(*low, 13), np.geomspace(*high, 13)):
        assert kl(shift, scale) >= least - 1e-9
    assert float((weights * facts.log_joint.exp()).sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("shift", "scale"), [*itertools.product((-3.0, 0.0, 3.0), (0.1, 1.0, 10**0.5))])
def test_every_corner_is_exact(shift: float, scale: float) -> None:
    """The nodes hold every noise of the sliders, and are close enough: as good as many times as many."""
    t = torch.linspace(-300, 300, 40_001, dtype=torch.float64)
    weights = torch.full_like(t, 0.015)
    for y in (1, 6):
        x = y + torch.sigmoid(t)
        log_joint = torch.from_numpy(np.log(model_density(x.numpy()) / model_mass(y)))
        log_joint = log_joint - torch.nn.functional.softplus(t) - torch.nn.functional.softplus(-t)
        z = (t - shift) / scale
        log_q = -torch.nn.functional.softplus(z) - torch.nn.functional.softplus(-z) - math.log(scale)
        kl = (weights * log_q.exp() * (log_q - log_joint)).sum()
        fine = -bin_noise.exact_iwae_bound(log_joint, log_q, weights, [1, 8, 64])
        for place, k in enumerate((1, 8, 64)):
            noise = dequantization_noise.compute(y, shift, scale, k, "hidden")
            assert noise.here[1] == pytest.approx(float(fine[place]), abs=1e-6)
        assert float(fine[0]) == pytest.approx(float(kl), abs=1e-8)


def test_what_the_caption_of_the_noise_promises() -> None:
    said = dequantization_noise.TRY_THIS

    def gap(level: int, shift: float, scale: float, num_samples: int) -> list[float]:
        return dequantization_noise.compute(level, shift, scale, num_samples, "shown").here

    uniform, yours, _ = gap(1, -1.0, 10**-0.5, 1)
    assert f"lacks {uniform:.3f} nats" in said and f"lacks only {yours:.3f} nats" in said
    uniform, yours, _ = gap(1, -1.0, 10**-0.5, 64)
    assert yours > 1.3 * uniform
    uniform, _, best = gap(6, 0.0, 1.0, 1)
    assert f"{best:.3f} of {uniform:.3f} nats" in said
    assert gap(6, 0.0, 1.0, 64)[0] < 0.01
    assert gap(2, 0.0, 1.0, 1)[0] == min(gap(y, 0.0, 1.0, 1)[0] for y in range(8)) < 0.01
    right = torch.linspace(0.5, 1, 2001, dtype=torch.float64)[1:-1]
    assert float(bin_noise.noise_log_prob(right, -1.0, 10**-0.5).exp().mean()) / 2 < 0.05


def test_dequantization_noise_shows_the_state() -> None:
    demo = dequantization_noise.show()
    artists = demo.artists
    hidden = [artists["best"], artists["curves"][2], artists["points"][2], *artists["table"][6:]]
    assert not any(artist.get_visible() for artist in hidden) and "best a, b" not in demo.numbers(demo.result)
    demo.set(level=3, shift=1.5, scale=0.9, num_samples=16, best="shown")
    noise, u = demo.result, dequantization_noise.places().numpy()
    assert all(artist.get_visible() for artist in hidden)
    assert "best noise of the family" in demo.describe(noise)
    ideal = model_density(3 + u) / model_mass(3)
    assert artists["ideal"].get_xy()[: len(u), 1] == pytest.approx(ideal, rel=1e-10)
    assert artists["area"].get_xy()[: len(u)] == pytest.approx(np.stack([3 + u, ideal * model_mass(3)], 1))
    assert artists["mass"].get_text() == f"P(3) = {model_mass(3):.3f}"
    q = np.exp(bin_noise.noise_log_prob(torch.from_numpy(u), 1.5, noise.scale).numpy())
    assert artists["mine"].get_ydata() == pytest.approx(q)
    assert artists["here"].get_xdata() == [16, 16] and artists["count"].get_text() == "K = 16"
    for k, curve in enumerate(artists["curves"]):
        assert np.interp(16, *curve.get_data()) == pytest.approx(-noise.here[k])
        assert artists["points"][k].get_xydata().tolist() == [[16.0, -noise.here[k]]]
        shown = [text.get_text() for text in artists["table"][3 * k : 3 * k + 3]]
        name = dequantization_noise.NAMES[k]
        assert shown == [name, f"{float(noise.gaps[k, 0]):.4f}", f"{noise.here[k]:.4f}"]
    said = demo.numbers(noise)
    assert said["log P(y)"] == f"−{-math.log(model_mass(3)):.4f} nats"
    assert said["KL(q ‖ p(u|y))"] == f"{float(noise.gaps[1, 0]):.4f} nats"
    assert said["L_K, yours"] == f"−{noise.here[1] - math.log(model_mass(3)):.4f} nats"


# both ------------------------------------------------------------------------------------------------------

both = pytest.mark.parametrize("module", [discretized_logistic, dequantization_noise])


def ends(control: object) -> list[object]:
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return [values[0], values[-1]]
    low, high = control.min, control.max
    return [10**low, 10**high] if hasattr(control, "base") else [low, high]


@pytest.mark.usefixtures("default_dtype")
@both
def test_the_ends_of_all_controls(module: object) -> None:
    demo: LiveDemo = module.show()
    reach = {name: ends(control) for name, control in demo.controls.items()}
    for values in itertools.product(*reach.values()):
        demo.set(**dict(zip(reach, values, strict=True)))
        assert (demo.frame() == demo.full_frame()).all()
        said = " ".join(demo.numbers(demo.result).values()) + demo.describe(demo.result)
        assert not re.search(r"\b(nan|inf)", said)
    demo.close()


@both
def test_every_control_changes_a_number(module: object) -> None:
    demo: LiveDemo = module.show()
    for name, control in demo.controls.items():
        demo.reset()
        said = demo.numbers(demo.result)
        demo.set(**{name: next(value for value in ends(control) if value != control.value)})
        assert demo.numbers(demo.result) != said, name
    demo.close()


def test_only_what_the_controls_offer() -> None:
    for module, values in [
        (discretized_logistic, (0.0, 1.0, 9, "half")), (discretized_logistic, (0.0, 1.0, 256, "on")),
        (dequantization_noise, (1, 0.0, 1.0, 3, "shown")), (dequantization_noise, (1, 0.0, 1.0, 4, "seen")),
        (dequantization_noise, (-1, 0.0, 1.0, 4, "shown")),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="pick from these"):
            module.compute(*values)
