"""Lecture 06's demo of the four points: its numbers by other integrals, by samples, and by their identity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from small_demos import small_four_points, small_models

from dgm_course.demos import four_points, latent_plane
from dgm_course.vae import VAE, four_point_vae

COUNTS = (0, 1, 2)
SHARPNESS = 20.0


@pytest.fixture(scope="module")
def table() -> four_points.Table:
    return four_points.tabulate(small_models())


def gap_along_one_axis(mean: float, sd: float) -> float:
    """``KL(N(mean, sd^2) || N(0, 1)) - E log sigmoid(20 z) - log 2``: half of a Gaussian posterior's gap."""
    z = mean + sd * np.linspace(-9, 9, 20_001)
    weight = np.exp(-0.5 * ((z - mean) / sd) ** 2)
    expected = -(weight * np.logaddexp(0.0, -SHARPNESS * z)).sum() / weight.sum()
    return 0.5 * (sd**2 + mean**2 - 1) - math.log(sd) - expected - math.log(2)


def test_gaussian_gaps_are_sums_over_the_axes(table: four_points.Table) -> None:
    signs = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    mean, log_var = (value.detach().double() for value in small_models()[0].encode(torch.eye(4)))
    for i in range(4):
        sd = (0.5 * log_var[i]).exp().tolist()
        halves = [gap_along_one_axis(signs[i][j] * float(mean[i, j]), sd[j]) for j in range(2)]
        assert float(table.rows[0].gap[i]) == pytest.approx(sum(halves), abs=2e-5)
    assert table.log_px == pytest.approx(-math.log(4), abs=1e-5)


def test_elbos_are_those_of_samples(table: four_points.Table) -> None:
    generator = torch.Generator().manual_seed(3)
    for count in COUNTS:
        with torch.no_grad():
            log_w = small_models()[count].log_weights(torch.eye(4), num_samples=20_000, generator=generator)
        error = log_w.double().std(0) / math.sqrt(len(log_w))
        row = table.rows[count]
        assert ((row.elbo - log_w.double().mean(0)).abs() < 5 * error + 1e-5).all()
        assert torch.allclose(row.gap, -math.log(4) - row.elbo, atol=1e-5)
        assert (row.gap > 0).all() and row.marginal_kl > 0 and row.owner_kl > 0


def test_the_gap_is_the_sum_of_its_parts(table: four_points.Table) -> None:
    for row in table.rows.values():
        assert row.mean_gap == pytest.approx(row.marginal_kl + row.owner_kl, abs=1e-4)


def test_maps_are_the_posteriors(table: four_points.Table) -> None:
    at = latent_plane.centres(torch.zeros(()))
    places = [(40, 90), (64, 64), (100, 31)]
    z = torch.stack([torch.stack([at[c], at[r]]) for r, c in places])
    for count in COUNTS:
        with torch.no_grad():
            q = small_models()[count].posterior_log_prob(z.unsqueeze(1), torch.eye(4)).exp()  # (3, 4)
        maps = torch.from_numpy(table.rows[count].density)
        shown = torch.stack([maps[:, r, c] for r, c in places])  # (3, 5)
        assert torch.allclose(shown[:, 1:], q / 4, rtol=1e-3, atol=1e-6)
        assert torch.allclose(shown[:, 0], q.mean(-1), rtol=1e-3, atol=1e-6)
        assert latent_plane.CELL * float(maps[0].sum()) == pytest.approx(1, abs=2e-2)


def test_dots_are_samples_of_the_posteriors(table: four_points.Table) -> None:
    """Of the Gaussian ones whose moments are known; all models move the same noise."""
    mean, log_var = (value.detach() for value in small_models()[0].encode(torch.eye(4)))
    noise = (torch.from_numpy(table.rows[0].samples) - mean[:, None]) / (0.5 * log_var).exp()[:, None]
    flow = small_models()[1]
    with torch.no_grad():
        m, v = flow.encode(torch.eye(4))
        z, _ = flow.flow(m[:, None] + (0.5 * v).exp()[:, None] * noise, flow.context(torch.eye(4))[:, None])
    assert torch.allclose(z, torch.from_numpy(table.rows[1].samples), atol=1e-4)
    n = noise.numel()
    assert abs(float(noise.mean())) < 5 / math.sqrt(n)
    assert abs(float(noise.square().mean()) - 1) < 5 * math.sqrt(2 / n)


def test_two_steps_do_what_no_gaussian_can() -> None:
    """The best Gaussians of all, by a search over mean and standard deviation, leave 0.355 nats."""
    means, sds = np.linspace(0.3, 1.5, 41), np.linspace(0.2, 1.0, 41)
    best = 2 * min(gap_along_one_axis(m, s) for m, s in itertools.product(means, sds))
    table = four_points.tabulate(four_points.train_default((0, 2), steps=250, progress=False))
    assert table.rows[0].mean_gap > best - 1e-3  # the search's own step
    assert table.rows[2].mean_gap < best - 0.05
    assert table.rows[2].marginal_kl < table.rows[0].marginal_kl


def test_training_is_repeatable() -> None:
    first, again = (four_points.train_default((2,), steps=3, seed=4, progress=False)[2] for _ in range(2))
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))


def test_four_points_shows_the_state(table: four_points.Table) -> None:
    demo = small_four_points()
    assert demo.values == {"num_steps": 0, "point": "all"}
    for count, point in itertools.product(COUNTS, four_points.POINTS):
        demo.set(num_steps=count, point=point)
        row, artists = table.rows[count], demo.artists
        index = four_points.POINTS.index(point)
        assert (artists["image"].get_array() == row.density[index]).all()
        for i in range(4):
            assert artists["dots"][i].get_xydata() == pytest.approx(row.samples[i])
            assert (artists["dots"][i].get_alpha() > 0.5) == (point in ("all", str(i)))
        heights = [bar.get_height() for bar in artists["holes"]]
        assert heights == pytest.approx([table.rows[k].marginal_kl for k in COUNTS])
        tops = [bar.get_y() + bar.get_height() for bar in artists["owners"]]
        assert tops == pytest.approx([table.rows[k].mean_gap for k in COUNTS], abs=1e-4)
        assert [bar.get_alpha() == 1 for bar in artists["holes"]] == [k == count for k in COUNTS]
        said = four_points.numbers(demo.result)
        elbo = row.elbo.mean() if point == "all" else row.elbo[index - 1]
        assert said["ELBO"] == f"−{-float(elbo):.3f} nats"
        assert "nan" not in demo.describe(demo.result) + "".join(said.values())


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({}, "not stacked"),
        ({0: four_point_vae(0, members=2)}, "nets.member"),
        ({0: VAE(torch.nn.Linear(4, 2), four_point_vae(0).decoder, 1)}, "two latents"),
    ],
    ids=["none", "stacked", "one latent"],
)
def test_four_points_refuses(models: dict[int, VAE], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        four_points.tabulate(models)


def test_only_steps_and_points_that_there_are(table: four_points.Table) -> None:
    for count, point in ((4, "all"), (0, "4")):
        with pytest.raises(ValueError, match="pick from these"):
            four_points.compute(table, count, point)


@pytest.mark.usefixtures("default_dtype")
def test_models_in_every_precision() -> None:
    models = four_points.train_default((0, 1), steps=2, progress=False)
    assert next(models[1].parameters()).dtype == torch.get_default_dtype()
    demo = four_points.show(models, num_steps=1, point="2")
    assert demo.result.row.gap.isfinite().all()
    demo.close()
