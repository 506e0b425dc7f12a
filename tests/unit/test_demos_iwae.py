"""Lecture 02's demos: their numbers by other means, and what their pictures hold."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgm_course.bounds import exact_iwae_bound, iwae_gradient_estimates
from dgm_course.demos import gradient_noise, importance_bound
from dgm_course.demos.engine import LiveDemo, choice_slider, linear_slider
from dgm_course.gaussian_toy import GaussianToy

NARROWEST, WIDEST = importance_bound.SD_RANGE
CORNERS = list(itertools.product((1, 1000), importance_bound.MEAN_RANGE, importance_bound.SD_RANGE))


# importance_bound, against plain sums over a fine even grid and against samples ----------------------------


def normal(z: NDArray[np.float64], mean: float, sd: float) -> NDArray[np.float64]:
    return np.exp(-0.5 * ((z - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))


def posterior(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.7 * normal(z, -1.1, 0.75) + 0.3 * normal(z, 1.6, 0.4)


@pytest.mark.parametrize(("mean", "sd"), [(1.0, 1.0), (-2.0, NARROWEST), (1.6, 0.7)])
def test_bounds_of_one_and_two_samples_are_double_sums(mean: float, sd: float) -> None:
    z, step = np.linspace(-8, 8, 2001, retstep=True)
    q, p = normal(z, mean, sd) * step, posterior(z) * step
    ratio = p / q
    one = importance_bound.compute(1, mean, sd)
    assert one.bound == pytest.approx(-3 + (q * np.log(ratio)).sum(), abs=1e-8)
    assert one.elbo_implicit == pytest.approx(one.bound, abs=1e-8)
    two = importance_bound.compute(2, mean, sd)
    average = (ratio[:, None] + ratio) / 2  # (z_1, z_2)
    assert two.bound == pytest.approx(-3 + q @ np.log(average) @ q, abs=1e-7)
    implicit = (p[:, None] / average) @ q  # one sample at z, kept by its weight
    assert implicit.sum() == pytest.approx(1, abs=1e-9)
    elbo = -3 + (implicit * np.log(p / implicit)).sum()
    assert two.elbo_implicit == pytest.approx(elbo, abs=1e-7)
    assert two.bound < two.elbo_implicit < -3


def test_bound_of_many_samples_is_the_mean_of_draws() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, size=(20_000, 50))
    bounds = -3 + np.log((posterior(draws) / normal(draws, 1.0, 1.0)).mean(1))
    error = bounds.std() / len(bounds) ** 0.5
    assert abs(importance_bound.compute(50, 1.0, 1.0).bound - bounds.mean()) < 5 * error
    assert error < 3e-3


def chi2_closed_form(mean: float, sd: float) -> float:
    """Each pair of components gives a Gaussian integral of p_i p_j / q."""
    total = 0.0
    for (w_i, m_i, s_i), (w_j, m_j, s_j) in itertools.product([(0.7, -1.1, 0.75), (0.3, 1.6, 0.4)], repeat=2):
        precision = s_i**-2 + s_j**-2 - sd**-2
        linear = m_i / s_i**2 + m_j / s_j**2 - mean / sd**2
        constant = (m_i / s_i) ** 2 + (m_j / s_j) ** 2 - (mean / sd) ** 2
        size = sd / (s_i * s_j * math.sqrt(precision))
        total += w_i * w_j * size * math.exp(0.5 * (linear**2 / precision - constant))
    return total - 1


@pytest.mark.parametrize("mean", [-2.0, -1.1, 0.3, 2.0])
def test_chi2_is_the_closed_form_or_infinite(mean: float) -> None:
    for sd in (10**-0.25, 0.7, 1.0, WIDEST):  # the first is the narrowest position with a finite value
        bound = importance_bound.compute(10, mean, sd)
        assert bound.chi2 == pytest.approx(chi2_closed_form(mean, sd), rel=1e-6)
    for sd in (NARROWEST, 10**-0.3):
        bound = importance_bound.compute(10, mean, sd)
        assert bound.chi2 == math.inf and importance_bound.numbers(bound)["χ²/(2K)"] == "infinite"
        assert -8 < bound.bound < -3  # the bound is there nevertheless


@pytest.mark.parametrize(("num_samples", "mean", "sd"), CORNERS)
def test_every_corner_is_exact(num_samples: int, mean: float, sd: float) -> None:
    """The nodes hold every q of the sliders, and are close enough: as good as fifty times as many."""
    bound = importance_bound.compute(num_samples, mean, sd)
    z = torch.linspace(-20, 20, 8001, dtype=torch.float64)
    log_q = -0.5 * ((z - mean) / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))
    log_joint = -3 + importance_bound.POSTERIOR.log_prob(z.unsqueeze(-1))
    fine = exact_iwae_bound(log_joint, log_q, torch.full_like(z, 0.005), num_samples)
    assert bound.bound == pytest.approx(float(fine), abs=1e-5)
    assert bound.bound <= bound.elbo_implicit < -3
    weights = importance_bound.ground().weights
    assert float((weights * bound.log_implicit.exp()).sum()) == pytest.approx(1, abs=1e-6)
    assert (bound.curve.diff() > 0).all() and bound.curve[-1] < -3


def test_the_draw_keeps_its_noise_and_weighs_it() -> None:
    first, other = importance_bound.compute(10, 1.0, 1.0), importance_bound.compute(300, -1.1, 0.5)
    assert torch.allclose(first.samples - 1.0, (other.samples[:10] + 1.1) / 0.5)
    z = other.samples.numpy()
    w = posterior(z) / normal(z, -1.1, 0.5)
    assert np.allclose(other.sample_weights, w / w.sum(), rtol=1e-10)
    assert other.effective == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_what_the_caption_promises() -> None:
    """High ESS, low bound: no sample has seen the other mode. Ten times the samples, a tenth of the gap."""
    fooled = importance_bound.compute(100, -1.1, 10**-0.2)
    assert round(fooled.effective) == 97 and "ESS 97 of 100" in importance_bound.TRY_THIS
    assert -3.3 < fooled.bound < -3.22
    assert (fooled.samples < 0.6).all()
    gaps = [-3 - importance_bound.compute(k, 1.0, 1.0).bound for k in (100, 1000)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.15)


def test_importance_bound_shows_the_state() -> None:
    demo = importance_bound.show()
    demo.set(num_samples=20, mean=1.0, sd=WIDEST)
    artists, bound = demo.artists, demo.result
    z = artists["q"].get_xdata()
    assert artists["q"].get_ydata() == pytest.approx(normal(z, 1.0, WIDEST))
    expected = bound.log_implicit.exp()[importance_bound.ground().seen]
    assert artists["implicit"].get_ydata() == pytest.approx(expected.numpy())
    assert artists["area"].get_xy()[: len(z), 1] == pytest.approx(expected.numpy())
    assert z[0] < -4.2 and z[-1] > 4.2
    assert artists["here"].get_xydata().tolist() == [[20.0, bound.bound]]
    assert np.interp(20, *artists["curve"].get_data()) == pytest.approx(bound.bound, abs=5e-3)
    law = np.interp(1000, *artists["law"].get_data())
    assert law == pytest.approx(-3 - chi2_closed_form(1.0, WIDEST) / 2000, abs=1e-9)
    assert list(artists["dots"].get_xdata()) == bound.samples.tolist()
    assert bound.sample_weights.clamp(min=1e-5).tolist() == list(artists["dots"].get_ydata())
    assert list(artists["even"].get_ydata()) == [0.05, 0.05]
    demo.set(sd=NARROWEST)  # no law where chi^2 is infinite: far below the panel
    assert artists["law"].get_ydata().max() < artists["law"].axes.get_ylim()[0] - 10


# gradient_noise, against closed forms at K = 1 and autograd at K = 10 --------------------------------------


@pytest.fixture(scope="module")
def table() -> gradient_noise.Table:
    return gradient_noise.tabulate()


@pytest.fixture(scope="module")
def toy() -> GaussianToy:
    return GaussianToy.near_optimum(0.05)


def test_ratios_of_one_sample_are_closed_forms(table: gradient_noise.Table, toy: GaussianToy) -> None:
    """At K = 1 every estimate is Gaussian: its mean and the noise of one eps, times a number."""
    s, pull = math.sqrt(2 / 3), float((2 * (toy.posterior_mean - toy.q_mean)).norm())
    means = np.array([float(toy.q_mean.norm()), pull, pull])
    sds = np.array([s, 2 * s, 2 * s - 1 / s])
    root = gradient_noise.NUM_ESTIMATES**0.5
    for m in (1, 10, 50):
        noise = gradient_noise.compute(table, 1, m)
        error = np.array([sds[0] / means[0], sds[2] / pull, sds[2] / pull]) / root + 1 / (root * 2**0.5)
        assert np.allclose(noise.snr[:, 0].numpy() / (means / sds * m**0.5), 1, atol=5 * error.max())
    assert noise.mean_phi == pytest.approx(pull, abs=5 * sds[2] / root)


def test_estimates_of_ten_samples_are_autograds(table: gradient_noise.Table, toy: GaussianToy) -> None:
    log_var = torch.full_like(toy.q_mean, math.log(2 / 3))
    along = (toy.posterior_mean - toy.q_mean) / (toy.posterior_mean - toy.q_mean).norm()
    for row, estimator in ((1, "plain"), (2, "dreg")):
        kind = {"num_samples": 10, "num_estimates": 8000, "estimator": estimator}
        seeded = torch.Generator().manual_seed(1)
        drawn = iwae_gradient_estimates(toy.log_joint, toy.q_mean, log_var, **kind, generator=seeded)[:, :20]
        by_autograd = drawn @ along  # (8000,)
        ours = table.estimates[row, 3].double()
        error = (by_autograd.var() / 8000 + ours.var() / len(ours)).sqrt()
        assert abs(by_autograd.mean() - ours.mean()) < 5 * error
        assert float(ours.std() / by_autograd.std()) == pytest.approx(1, abs=0.07)


def test_phi_is_shifted_by_no_more_than_its_error(table: gradient_noise.Table) -> None:
    toy = GaussianToy.near_optimum(0.05, dtype=torch.float32)
    drawn = toy.projected(toy.gradients(1, 4096, generator=torch.Generator().manual_seed(0)))
    shift = table.estimates[1, 0] - drawn.phi
    assert float(shift.std()) < 1e-5 and float(shift.mean().abs()) < 5 * float(drawn.phi.std()) / 64
    assert torch.equal(table.estimates[0, 0], drawn.theta) and torch.equal(table.estimates[2, 0], drawn.dreg)
    assert torch.allclose(table.estimates[1].mean(-1), table.means[1], atol=1e-6)


def slope(counts: tuple[int, ...], snr: Tensor) -> float:
    return float(np.polyfit(np.log(counts), np.log(snr.numpy()), 1)[0])


def test_the_laws_hold(table: gradient_noise.Table) -> None:
    noise, counts = gradient_noise.compute(table, 10, 4), gradient_noise.COUNTS
    assert slope(counts, noise.snr[0]) == pytest.approx(0.5, abs=0.1)
    assert slope(counts, noise.snr[1]) == pytest.approx(-0.5, abs=0.1)
    assert slope(counts[3:], noise.snr[2, 3:]) == pytest.approx(0.5, abs=0.1)
    assert torch.allclose(noise.snr, 2 * gradient_noise.compute(table, 10, 1).snr)  # sqrt(M)


def test_averages_of_m_are_m_times_less_spread(table: gradient_noise.Table) -> None:
    assert torch.equal(table.order.sort(1).values, torch.arange(4096).expand(50, -1))
    for m, k in itertools.product((1, 10, 50), (1, 50)):
        noise = gradient_noise.compute(table, k, m)
        assert torch.allclose(noise.ratios.mean(-1), torch.ones(3), atol=1e-3)
        assert torch.allclose(noise.ratios.std(-1) * noise.snr[:, noise.index], torch.ones(3), atol=0.06)
    by_hand = [table.estimates[:, 5, table.order[j]] / table.means[:, 5, None] for j in range(8)]
    ratios = gradient_noise.compute(table, 50, 8).ratios
    assert torch.allclose(ratios, torch.stack(by_hand).mean(0), rtol=1e-3, atol=1e-4)


def test_gradient_noise_shows_the_state(table: gradient_noise.Table) -> None:
    demo = gradient_noise.show()
    demo.set(num_samples=5, num_averaged=20)
    noise, artists = demo.result, demo.artists
    for k in range(3):
        values, edges, _ = artists["right"][k].get_data()
        counted, _ = np.histogram(noise.ratios[k].numpy(), edges)
        assert np.abs(values - counted / counted.max()).max() < 0.01
        assert counted.sum() > 0.995 * 4096
        assert np.allclose(artists["wrong"][k].get_data().values, values)
        share = float((noise.ratios[k] < 0).double().mean())
        assert artists["shares"][k].get_text() == f"{share:.0%} wrong sign"
        assert np.allclose(artists["curves"][k].get_ydata(), noise.snr[k])
        assert artists["points"][k].get_xydata() == pytest.approx(np.array([[5.0, float(noise.snr[k, 2])]]))
        steepness = np.diff(np.log(artists["laws"][k].get_ydata())) / np.diff(np.log(gradient_noise.COUNTS))
        assert np.allclose(steepness, [0.5, -0.5, 0.5][k])
        assert artists["laws"][k].get_ydata()[-1] == pytest.approx(float(noise.snr[k, -1]))


@pytest.mark.parametrize(("k", "m"), [(7, 1), (10, 0), (10, 65)])
def test_only_what_is_in_the_table(table: gradient_noise.Table, k: int, m: int) -> None:
    with pytest.raises(ValueError, match="pick from these"):
        gradient_noise.compute(table, k, m)


# the engine's two new controls ----------------------------------------------------------------------------


def test_linear_slider_starts_on_a_position_and_holds_small_errors() -> None:
    slider = linear_slider("Mean", 0.93, -2.0, 2.0, 0.25)
    assert (slider.value, slider.min, slider.max, slider.step) == (1.0, -2.0, 2.0, 0.25)
    demo = importance_bound.show(mean=0.04)
    assert demo.values["mean"] == 0.0
    result = demo.result
    demo.controls["mean"].value = 1e-16  # as a page may send it back
    assert demo.result is result


def test_choice_slider_gives_whole_numbers() -> None:
    slider = choice_slider("K", 60, (1, 10, 50, 100))
    assert slider.value == 50 and json.dumps(slider.value) == "50"
    slider.index = 3  # what the page sends
    assert slider.value == 100 and slider.label == "100"


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("module", [importance_bound, gradient_noise])
def test_the_ends_of_all_sliders(module: object) -> None:
    demo: LiveDemo = module.show()
    ends = {
        name: [control.options[0][1], control.options[-1][1]] if hasattr(control, "options")
        else [control.min, control.max] if name == "mean"
        else [10**control.min, 10**control.max]
        for name, control in demo.controls.items()
    }  # fmt: skip
    for values in itertools.product(*ends.values()):
        demo.set(**dict(zip(ends, values, strict=True)))
        assert (demo.frame() == demo.full_frame()).all()
        assert "nan" not in "".join(demo.numbers(demo.result).values())
        assert "nan" not in demo.describe(demo.result)
    demo.close()
