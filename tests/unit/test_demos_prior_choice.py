"""Lecture 05's demo of the prior's choice: its numbers by quadrature, closed forms and other seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small_latents import (
    SIZES,
    aggregate,
    bell,
    small_encoder,
    small_fit,
    small_pictures,
    small_prior_choice,
    within,
)

from dgm_course.demos import fitted_priors, latent_plane, prior_choice
from dgm_course.surgery import Estimate, elbo_surgery, marginal_kl

AT = latent_plane.centres(torch.zeros((), dtype=torch.float64)).numpy()
KINDS = ["N(0, I)", *SIZES]


@pytest.fixture(scope="module")
def table() -> prior_choice.Table:
    return prior_choice.tabulate(small_fit(), small_pictures()[1])


def test_gains_are_integrals_over_the_plane(table: prior_choice.Table) -> None:
    fitted, held_out = small_fit(), small_pictures()[1]
    z = torch.tensor(np.stack(np.meshgrid(AT, AT), -1), dtype=torch.float32)
    with torch.no_grad():
        train = aggregate(AT, fitted.mean, fitted.log_var)
        test = aggregate(AT, *fitted.encoder(held_out).chunk(2, -1))
    log_normal = np.log(np.outer(bell(AT, 0.0, 0.0), bell(AT, 0.0, 0.0)))
    for kind, k in itertools.product(KINDS, range(3)):
        row = table.rows[kind]
        with torch.no_grad():
            log_p = fitted.priors[kind][k].log_prob(z).double().numpy()
        # What the square cuts off, and float32, are worth less than a thousandth of a nat.
        for density, gain in ((train, row.train), (test, row.held_out)):
            exact = latent_plane.CELL * (density * (log_p - log_normal)).sum()
            assert within(gain, k, exact, rounding=1e-3), (kind, k)
        left = latent_plane.CELL * (train * (np.log(train) - log_p)).sum()
        assert within(row.marginal_kl, k, left, rounding=1e-3), (kind, k)
        assert latent_plane.CELL * row.density[k].sum() == pytest.approx(1, abs=5e-3), (kind, k)


def test_maps_are_the_priors(table: prior_choice.Table) -> None:
    z = torch.tensor(AT[[70, 20]], dtype=torch.float32)
    for kind, k in itertools.product(KINDS, range(3)):
        with torch.no_grad():
            density = small_fit().priors[kind][k].log_prob(z).exp()
        assert float(table.rows[kind].density[k][20, 70]) == pytest.approx(float(density), rel=1e-4)


def test_nothing_gains_more_on_training_data_than_q_agg(table: prior_choice.Table) -> None:
    """And what a prior gains and what it leaves add up to the marginal KL of N(0, I), sample by sample."""
    fitted = small_fit()
    seeded = torch.Generator().manual_seed(77)
    other = marginal_kl(fitted.mean, fitted.log_var, num_samples=64, generator=seeded)
    best = table.rows["q_agg"]
    assert within(best.train, 2, float(other.mean), float(other.standard_error))
    assert abs(float(best.marginal_kl.mean[2])) < 1e-6
    for kind in KINDS:
        row = table.rows[kind]
        total = row.train.mean + row.marginal_kl.mean
        assert torch.allclose(total, torch.full_like(total, table.most), atol=1e-5)
        assert (row.marginal_kl.mean > -5 * row.marginal_kl.standard_error - 1e-6).all()
    assert torch.equal(table.rows["N(0, I)"].train.mean, torch.zeros(3).double())


def test_held_out_gain_of_q_agg_is_the_surgery_of_other_points(table: prior_choice.Table) -> None:
    fitted, held_out = small_fit(), small_pictures()[1]
    with torch.no_grad():
        codes = fitted.encoder(held_out).chunk(2, -1)
        terms = elbo_surgery(
            *codes, components=(fitted.mean, fitted.log_var), num_samples=200,
            generator=torch.Generator().manual_seed(5),
        )  # fmt: skip
    other = Estimate.of(terms.marginal_kl)
    assert within(table.rows["q_agg"].held_out, 2, float(other.mean), float(other.standard_error))


def test_too_few_narrow_components_are_worse_than_a_normal() -> None:
    """At its optimum a mixture is not: one Gaussian with the code's moments, whose gain is a closed form."""
    fitted = small_fit(steps=150, log_var=-5.0)
    narrow = prior_choice.tabulate(fitted, small_pictures()[1], num_samples=64)
    vamp, few, mixture = (narrow.rows[kind] for kind in ("VampPrior", "q_agg", "mixture"))
    for row in (vamp, few):
        assert float(row.train.mean[0]) < -1 and float(row.held_out.mean[0]) < -1
    variance = fitted.mean.var(0, correction=0) + fitted.log_var.exp().mean(0)
    best = 0.5 * (fitted.mean.mean(0) ** 2 + variance - 1 - variance.log()).sum()
    gain, error = float(mixture.train.mean[0]), float(mixture.train.standard_error[0])
    assert 0 < gain < float(best) + 5 * error
    for kind in ("mixture", "RealNVP", "MAF"):
        assert (narrow.rows[kind].train.mean > 0).all()
    assert float(few.train.mean[2] - few.held_out.mean[2]) > 5 * float(few.held_out.standard_error[2])


def test_fitting_lets_the_encoder_alone_and_is_repeatable() -> None:
    encoder, x = small_encoder(), small_pictures()[0]
    before = [parameter.clone() for parameter in encoder.parameters()]
    first, again = (fitted_priors.fit_priors(encoder, x, sizes=SIZES, steps=3, seed=1) for _ in range(2))
    for parameter, old in zip(encoder.parameters(), before, strict=True):
        assert torch.equal(parameter, old) and parameter.grad is None and parameter.requires_grad
    for kind in SIZES:
        for one, other in zip(first.priors[kind], again.priors[kind], strict=True):
            assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    vamp = first.priors["VampPrior"][1]
    assert ((vamp.pseudo_inputs > 0) & (vamp.pseudo_inputs < 1)).all()
    ten, all_points = first.priors["q_agg"][1:]
    assert torch.equal(ten.mean, all_points.mean[:10])
    assert torch.equal(all_points.mean.sort(0).values, first.mean.sort(0).values)


def test_every_size_is_counted(table: prior_choice.Table) -> None:
    assert table.rows["mixture"].parameters == tuple(5 * k for k in SIZES["mixture"])
    assert table.rows["VampPrior"].parameters == tuple(6 * k for k in SIZES["VampPrior"])
    assert table.rows["N(0, I)"].parameters == table.rows["q_agg"].parameters == (0, 0, 0)
    assert table.rows["q_agg"].stored == (8, 40, 160)
    one, two, three = table.rows["MAF"].parameters
    assert 0 < one == two - one == three - two
    said = prior_choice.numbers(prior_choice.compute(table, "q_agg", 3))
    assert said["trained numbers"] == "0 (160 stored)" and said["data points in q_agg"] == "40"


def test_prior_choice_shows_the_state(table: prior_choice.Table) -> None:
    demo = small_prior_choice()
    assert demo.values == {"kind": "VampPrior", "size": 2}
    points = small_fit().encoder(small_pictures()[1])[:, :2].detach().double()
    assert demo.artists["dots"].get_xydata() == pytest.approx(points.numpy())
    for kind, size in itertools.product(KINDS, (1, 3)):
        demo.set(kind=kind, size=size)
        assert (demo.frame() == demo.full_frame()).all()
        row, artists = table.rows[kind], demo.artists
        assert (artists["image"].get_array() == row.density[size - 1]).all()
        low = artists["train"][0].axes.get_ylim()[0]
        for name, gain in (("train", row.train), ("held_out", row.held_out)):
            heights = [bar.get_height() for bar in artists[name]]
            assert heights == pytest.approx([max(float(value), 0.82 * low) for value in gain.mean])
            assert [bar.get_alpha() == 1 for bar in artists[name]] == [k == size - 1 for k in range(3)]
        counts = [str(count) for count in row.sizes or [""] * 3]
        assert [tick.get_text() for tick in artists["ticks"]] == counts
        assert artists["counted"].get_text() == prior_choice.COUNTED[kind]
        shown = [float(text.get_text().replace("−", "-")) for text in artists["values"]]
        exact = torch.stack([row.train.mean, row.held_out.mean], -1).flatten().tolist()
        assert shown == pytest.approx(exact, abs=0.51)
        assert "nan" not in demo.describe(demo.result) + "".join(demo.numbers(demo.result).values())


def test_the_numbers_at_the_bars_are_short_and_never_lose_a_sign() -> None:
    values = (-29.1, -9.96, -1.64, -0.999, -0.94, -0.049, -0.001, 0.0, 0.2, 10.4)
    said = ["−29", "−10", "−1.6", "−1.0", "−.94", "−.05", "0.00", "0.00", ".20", "10"]
    assert [prior_choice._short(value) for value in values] == said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sizes": SIZES | {"mixture": (1, 2)}}, "equally many"),
        ({"sizes": {"mixture": (1,)}}, "equally many"),
        ({"sizes": SIZES | {"VampPrior": (1, 4, 41)}}, "VampPrior.*40 data points"),
        ({"sizes": SIZES | {"MAF": (2, 1, 3)}}, "MAF must ascend"),
        ({"encoder": torch.nn.Linear(6, 6)}, r"\(n, 4\).*latent_dim=2"),
        ({"encoder": small_encoder(members=2)}, "take one member"),
    ],
)
def test_prior_choice_refuses(change: dict[str, object], says: str) -> None:
    arguments = {"encoder": small_encoder(), "x": small_pictures()[0], "sizes": SIZES, "steps": 1} | change
    with pytest.raises(ValueError, match=says):
        fitted_priors.fit_priors(**arguments)


def test_only_kinds_and_sizes_that_there_are(table: prior_choice.Table) -> None:
    for kind, size in (("IAF", 1), ("MAF", 0), ("MAF", 4)):
        with pytest.raises(ValueError, match="sizes 1 to 3"):
            prior_choice.compute(table, kind, size)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_encoders_in_every_precision(dtype: torch.dtype) -> None:
    x, held_out, _ = small_pictures(dtype)
    fitted = fitted_priors.fit_priors(small_encoder(dtype=dtype), x, sizes=SIZES, steps=2)
    assert {p.dtype for kind in SIZES for prior in fitted.priors[kind] for p in prior.parameters()} == {dtype}
    demo = prior_choice.show(fitted, held_out, kind="MAF", size=1)
    assert demo.result.table.rows["MAF"].train.mean.isfinite().all()
    demo.close()
