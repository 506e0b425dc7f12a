"""Lecture 05's demo of the KL weight: its numbers by quadrature, closed forms and other seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from small_latents import (
    BETAS,
    aggregate,
    bell,
    small_beta_surgery,
    small_fit,
    small_pictures,
    small_stack,
    within,
)
from torch import Tensor

from dgm_course.demos import beta_surgery, latent_plane
from dgm_course.demos.engine import choice_buttons, choice_slider
from dgm_course.gaussian import gaussian_kl
from dgm_course.nets import member
from dgm_course.surgery import Estimate, elbo_surgery
from dgm_course.vae import VAE, BernoulliDecoder

AT = latent_plane.centres(torch.zeros((), dtype=torch.float64)).numpy()


@pytest.fixture(scope="module")
def surgeries() -> beta_surgery.Table:
    x, _, labels = small_pictures()
    return beta_surgery.tabulate(small_stack(), BETAS, x, labels)


@pytest.fixture(scope="module")
def codes() -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return small_stack().encode(small_pictures()[0])  # (3, 40, 2)


# the plane ------------------------------------------------------------------------------------------------


def test_the_cells_fill_the_square() -> None:
    half, cells = latent_plane.HALF_WIDTH, latent_plane.NUM_CELLS
    assert np.allclose(AT, (np.arange(cells) + 0.5) * 2 * half / cells - half)
    seen = latent_plane.density_map(lambda z: (100 * z[:, 1] + z[:, 0]).log(), torch.ones(1).double())
    assert seen[-1, -2] == pytest.approx(100 * AT[-1] + AT[-2]) and seen.shape == (cells, cells)


def test_circles_hold_their_shares_of_the_prior() -> None:
    draws = np.random.default_rng(0).normal(size=(40_000, 2))
    lines = [artist for artist in latent_plane.prior_circles(Figure().subplots(), name="p")
             if hasattr(artist, "get_xydata")]  # fmt: skip
    for line, share in zip(lines, latent_plane.SHARES, strict=True):
        radii = np.linalg.norm(line.get_xydata(), axis=1)
        assert np.ptp(radii) < 1e-12
        inside = (np.linalg.norm(draws, axis=1) < radii[0]).mean()
        assert abs(inside - share) < 5 * math.sqrt(share * (1 - share) / len(draws))


# beta_surgery ---------------------------------------------------------------------------------------------


def test_terms_are_those_of_another_seed_and_of_closed_forms(
    surgeries: beta_surgery.Table, codes: tuple[Tensor, Tensor]
) -> None:
    x, stack = small_pictures()[0], small_stack()
    with torch.no_grad():
        other = elbo_surgery(
            *codes, log_likelihood=lambda z: stack.decoder.log_prob(x, z), num_samples=64,
            generator=torch.Generator().manual_seed(99),
        )  # fmt: skip
    values = {"loss": -other.elbo, "distortion": -other.reconstruction,
              "information": other.mutual_information, "marginal": other.marginal_kl}  # fmt: skip
    kl = gaussian_kl(*codes).mean(-1)  # (3,)
    for e in range(3):
        for key, samples in values.items():
            expected = Estimate.of(samples[e])
            assert within(surgeries.terms[key], e, float(expected.mean), float(expected.standard_error)), key
        both = Estimate.of(other.kl[e])
        parts = [surgeries.terms[key] for key in ("information", "marginal")]
        assert abs(sum(float(one.mean[e]) for one in parts) - float(kl[e])) < (
            5 * math.sqrt(8) * float(both.standard_error) + 1e-5
        )
    sums = sum(surgeries.terms[key].mean for key in ("distortion", "information", "marginal"))
    assert torch.allclose(surgeries.terms["loss"].mean, sums, atol=1e-5)
    assert surgeries.most == pytest.approx(math.log(40))
    assert float(surgeries.terms["information"].mean.max()) < surgeries.most


def test_aggregated_posteriors_are_densities_with_that_divergence(
    surgeries: beta_surgery.Table, codes: tuple[Tensor, Tensor]
) -> None:
    prior = np.outer(bell(AT, 0.0, 0.0), bell(AT, 0.0, 0.0))
    for e, density in enumerate(surgeries.density):
        exact = aggregate(AT, codes[0][e], codes[1][e])
        assert np.allclose(density, exact, atol=1e-5)
        assert latent_plane.CELL * density.sum() == pytest.approx(1, abs=5e-4)
        kl = latent_plane.CELL * (exact * np.log(exact / prior)).sum()
        assert within(surgeries.terms["marginal"], e, kl)


def test_a_collapsed_member_is_the_prior_and_names_nobody(surgeries: beta_surgery.Table) -> None:
    stack = small_stack()
    with torch.no_grad():
        stack.encoder.layers[-1].bias[1] = 0.0
        stack.encoder.layers[-1].weight[1] = 0.0
    x, _, labels = small_pictures()
    table = beta_surgery.tabulate(stack, torch.tensor(BETAS), x, labels)
    for term in ("information", "marginal"):
        assert abs(float(table.terms[term].mean[1])) < 1e-6
    assert not table.apart[1:].any() and table.apart[0].any()
    assert np.array_equal(table.apart[0], surgeries.apart[0])


def test_digits_stand_at_their_most_central_point(
    surgeries: beta_surgery.Table, codes: tuple[Tensor, Tensor]
) -> None:
    labels = small_pictures()[2]
    assert surgeries.classes == ("0", "1", "2")
    for c in range(3):
        points = codes[0][0][labels == c].double().numpy()
        sums = [np.linalg.norm(points - point, axis=1).sum() for point in points]
        place = surgeries.typical[0, c]
        assert np.linalg.norm(points - place, axis=1).sum() == pytest.approx(min(sums), rel=1e-6)
    places = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [3.9, 0.0]])  # two have room, one is at the rim
    assert beta_surgery._apart(places).tolist() == [True, False, True, False]
    assert not beta_surgery._apart(places[:2]).any()


def test_beta_surgery_shows_the_state(surgeries: beta_surgery.Table) -> None:
    demo = small_beta_surgery()
    assert demo.values == {"beta": 1.0} and demo.controls["beta"].options[0] == ("0.1", 0.1)
    for e, beta in enumerate(BETAS):
        demo.set(beta=beta)
        assert (demo.frame() == demo.full_frame()).all()
        terms = surgeries.terms.values()
        rings = [ring.get_xydata().tolist() for ring in demo.artists["rings"]]
        assert rings == [[[beta, float(term.mean[e])]] for term in terms]
        assert (demo.artists["image"].get_array() == surgeries.density[e]).all()
        for text, place, seen in zip(
            demo.artists["digits"], surgeries.typical[e], surgeries.apart[e], strict=True
        ):
            assert text.get_position() == tuple(place) and text.get_alpha() == seen
        said, marginal = demo.numbers(demo.result), surgeries.terms["marginal"]
        assert said["KL(q_agg ‖ p)"] == (
            f"{float(marginal.mean[e]) + 0.0:.3f} ± {float(marginal.standard_error[e]):.3f} nats"
        ).replace("-0.000", "0.000")
        assert said["ELBO"].startswith("−") and "nan" not in demo.describe(demo.result)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"betas": BETAS[:2]}, "stack of 2 VAEs.*members=3"),
        ({"betas": (1.0, 0.1, 8.0)}, "ascending"),
        ({"betas": (0.0, 1.0, 8.0)}, "positive"),
        ({"labels": torch.zeros(7)}, r"labels \(n,\).*\(7,\)"),
        ({"model": member(small_stack(), 0)}, "members=None"),
    ],
)
def test_beta_surgery_refuses(change: dict[str, object], says: str) -> None:
    x, _, labels = small_pictures()
    arguments = {"model": small_stack(), "betas": BETAS, "x": x, "labels": labels} | change
    with pytest.raises(ValueError, match=says):
        beta_surgery.tabulate(**arguments)


def test_only_weights_that_there_are(surgeries: beta_surgery.Table) -> None:
    with pytest.raises(ValueError, match="beta=2.0, only with"):
        beta_surgery.compute(surgeries, 2.0)


def test_a_prior_of_its_own_is_refused_by_the_demo_of_the_kl_weight() -> None:
    stack, (x, _, labels) = small_stack(), small_pictures()
    owned = VAE(stack.encoder, BernoulliDecoder(stack.decoder.net), 2, prior=small_fit().priors["N(0, I)"][0])
    with pytest.raises(ValueError, match="prior=StandardNormalPrior"):
        beta_surgery.tabulate(owned, BETAS, x, labels)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_models_in_every_precision(dtype: torch.dtype) -> None:
    x, _, labels = small_pictures(dtype)
    demo = beta_surgery.show(small_stack(dtype), BETAS, x, labels, beta=8.0)
    assert demo.values == {"beta": 8.0}
    assert all(term.mean.isfinite().all() for term in demo.result.table.terms.values())
    demo.close()


# the engine's controls -------------------------------------------------------------------------------------


def test_choices_are_named_and_pressed() -> None:
    slider = choice_slider("β", 0.9, (0.1, 1.0, 8.0), names=["a tenth", "one", "eight"])
    assert slider.value == 1.0 and slider.label == "one"
    slider.index = 2
    assert slider.value == 8.0 and slider.label == "eight"
    buttons = choice_buttons("Prior", "b", ["a", "b"])
    assert buttons.value == "b" and tuple(buttons.options) == ("a", "b")
    buttons.index = 0
    assert buttons.value == "a"
    with pytest.raises(ValueError, match="longer|shorter"):
        choice_slider("β", 1.0, (0.1, 1.0), names=["one"])
