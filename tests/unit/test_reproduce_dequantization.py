"""The recorded experiment of ledger D8: its predictions of the gap, its models, its record."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recorded import run_on_gpu, run_quickly, shipped
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from dgm_course.data import photo_patches
from dgm_course.dequantization import UniformDequantizer, VariationalDequantizer, uniform_bound
from dgm_course.numerics import gauss_legendre
from dgm_course.reproduce import Record, dequantization
from dgm_course.reproduce.dequantization import (
    dense_noise,
    local_noise,
    maximise,
    pixel_entropy,
    stacked_flow,
)
from dgm_course.reproduce.gap_predictions import (
    score,
    score_prediction,
    slope_prediction,
    variance_prediction,
)

SMALL = dequantization.Settings().quick()


def grid(n: int) -> Tensor:
    """Midpoints of n equal parts of a bin, as n noises of one image of one pixel: ``(n, 1, 1)``."""
    return ((torch.arange(n, dtype=torch.float64) + 0.5) / n).reshape(n, 1, 1)


def test_the_score_is_the_gradient(generator: torch.Generator) -> None:
    x = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    mean, factor = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    density = MultivariateNormal(mean.double(), scale_tril=factor.double())
    expected = -(x - density.mean) @ density.precision_matrix
    torch.testing.assert_close(score(density.log_prob, x), expected)
    assert not x.requires_grad


@pytest.mark.parametrize("slope", [0.1, 0.5])
def test_predictions_where_log_p_is_straight(slope: float) -> None:
    """log p(y + u) = a + g u: the gap is log(sinh(g/2) / (g/2)) = g^2/24 - g^4/2880 + ..., alternating."""
    u = grid(20_001)

    def log_prob(x: Tensor) -> Tensor:
        return slope * x.sum(-1)

    exact = math.log(math.sinh(slope / 2) / (slope / 2))
    scores = score(log_prob, u)
    by_score, by_slope = score_prediction(scores).mean(), slope_prediction(scores).squeeze()
    by_variance = variance_prediction(log_prob(u)).squeeze()
    for prediction in (by_score, by_slope, by_variance):
        torch.testing.assert_close(prediction.item(), slope**2 / 24, rtol=1e-3, atol=0.0)  # 5e-5: the grid
        assert 0 < prediction - exact < 1.6 * slope**4 / 2880 + 1e-3 * exact


def test_a_gaussian_tends_to_the_ledgers_formula() -> None:
    """Mean gap of N(0, s^2) over its bins, by quadrature: 1/(24 s^2), the error of higher order in 1/s."""

    def mean_gap(s: float) -> tuple[float, float]:
        y = torch.arange(-12 * int(s), 12 * int(s), dtype=torch.float64)
        nodes, weights = gauss_legendre(0.0, 1.0, 20)
        log_p = Normal(torch.zeros((), dtype=torch.float64), s).log_prob(y + nodes)  # (N, B)
        mass = weights @ log_p.exp()
        gap = mass.log() - weights @ log_p
        scores = -(y + nodes).unsqueeze(-1) / s**2
        return (mass * gap).sum().item(), (mass * (weights @ score_prediction(scores))).sum().item()

    errors = []
    for s in (4.0, 8.0):
        gap, predicted = mean_gap(s)
        assert abs(24 * s**2 * predicted - 1) < 2 / s**2  # noise within the bins: the variance is s^2 + 1/12
        errors.append(abs(predicted / gap - 1))
    assert errors[0] < 0.05 and 3.5 < errors[0] / errors[1] < 4.5


def test_predictions_where_the_density_is_as_narrow_as_the_bin() -> None:
    """A Gaussian with the mean and variance of the noise itself: the slope sees nothing, the score too much.

    log p = c - 6 t^2, t = u - 1/2: E g^2 / 24 = 1/2; the variance is 36 (1/80 - 1/144) = 1/5; the gap is
    log(sqrt(pi/6) erf(sqrt(3/2))) + 1/2.
    """
    u = grid(20_001)
    density = Normal(torch.full((), 0.5, dtype=torch.float64), 12**-0.5)

    def log_prob(x: Tensor) -> Tensor:
        return density.log_prob(x).sum(-1)

    gap = 0.5 + math.log(math.sqrt(math.pi / 6) * math.erf(math.sqrt(1.5)))
    scores = score(log_prob, u)
    assert math.isclose(score_prediction(scores).mean().item(), 0.5, rel_tol=1e-3)
    assert math.isclose(variance_prediction(log_prob(u)).item(), 0.1, rel_tol=1e-3)
    assert abs(slope_prediction(scores).item()) < 1e-4 < gap < 0.1


def test_the_slope_leaves_out_each_noise_with_itself(generator: torch.Generator) -> None:
    scores = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)  # (n, B, m)
    products = [scores[i] * scores[j] for i in range(5) for j in range(5) if i != j]
    expected = torch.stack(products).mean(0).sum(-1) / 24
    torch.testing.assert_close(slope_prediction(scores), expected)


def test_entropy_of_a_pixel() -> None:
    levels = photo_patches(bits=3, num_train=200, num_test=1).train_x
    counts = Counter(levels.flatten().tolist())
    expected = -sum(c / levels.numel() * math.log2(c / levels.numel()) for c in counts.values())
    assert math.isclose(pixel_entropy(levels, 8), expected, rel_tol=1e-12) and expected < 3
    assert pixel_entropy(torch.arange(16).expand(3, 16), 16) == pytest.approx(4.0, rel=1e-12)
    assert pixel_entropy(torch.zeros(4, 4), 2) == 0.0


@pytest.fixture
def levels(generator: torch.Generator, double: None) -> Tensor:
    """Patches of 3 bits, float64 as the models built for them."""
    return photo_patches(bits=3, num_train=300, num_test=1, generator=generator, dtype=torch.float64).train_x


def test_every_seed_starts_as_the_gaussian_of_the_data(levels: Tensor, generator: torch.Generator) -> None:
    noise = torch.eye(64, dtype=torch.float64) / 12
    oracle = MultivariateNormal(levels.mean(0), torch.cov(levels.mT, correction=0) + noise)
    found = stacked_flow(levels, SMALL, generator).log_prob(levels[:20])
    torch.testing.assert_close(found, oracle.log_prob(levels[:20]).expand(2, 20))


@pytest.mark.parametrize("make", [local_noise, dense_noise])
def test_models_of_the_same_data_see_the_same_batches(
    levels: Tensor, generator: torch.Generator, make: Callable[..., VariationalDequantizer]
) -> None:
    """A learned noise that still is uniform trains the flow as the uniform noise does; seeds differ."""
    flow = stacked_flow(levels, SMALL, generator)
    other = copy.deepcopy(flow)
    maximise(flow, UniformDequantizer(), flow.parameters(), levels, replace(SMALL, steps=3))
    noise = make(levels, 8, SMALL, generator)
    maximise(other, noise, other.parameters(), levels, replace(SMALL, steps=3))
    for a, b in zip(flow.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-2 * SMALL.lr)
        assert not torch.equal(a[0], a[1])


def test_training_raises_the_bound(levels: Tensor, generator: torch.Generator) -> None:
    flow, noise = stacked_flow(levels, SMALL, generator), UniformDequantizer()
    y = levels.expand(2, -1, -1)

    def bound() -> Tensor:
        fixed = torch.Generator().manual_seed(1)
        with torch.no_grad():
            return uniform_bound(flow.log_prob, y, num_samples=4, generator=fixed).mean(-1)

    before = bound()
    maximise(flow, noise, flow.parameters(), levels, replace(SMALL, steps=100))
    assert bool((bound() > before + 1.0).all())


def check_arithmetic(record: Record) -> None:
    """The gains are differences of the bits; importance weighting lowers every bound's bits."""
    bits = {(r["data"], r["num_levels"], r["model"]): r for r in record.tables["bits_per_dim"]}
    assert all(row["test_iw"] < row["test"] for row in bits.values())
    assert [r["num_levels"] for r in record.tables["gains"]] == [4, 8, 16, 32, 256, 17]
    for row in record.tables["gains"]:
        uniform, joint, later = (
            bits[row["data"], row["num_levels"], model] for model in ("uniform", "variational", "afterwards")
        )
        dense = bits[row["data"], row["num_levels"], "dense"]
        near = dict(rel=0, abs=2e-5)  # six significant digits of numbers below 10
        assert row["gain"] == pytest.approx(uniform["test"] - joint["test"], **near)
        assert row["gain_iw"] == pytest.approx(uniform["test_iw"] - joint["test_iw"], **near)
        assert row["gain_afterwards"] == pytest.approx(uniform["test"] - later["test"], **near)
        assert row["gain_dense"] == pytest.approx(uniform["test"] - dense["test"], **near)
        assert row["gap"] > max(0.0, row["gain_afterwards"])
        assert row["predicted"] == pytest.approx(1 / (24 * row["scale"] ** 2 * math.log(2)), rel=0.05)
    assert all(0 < r["pixel_entropy"] < math.log2(r["num_levels"]) for r in record.tables["data"])


def test_the_shipped_record() -> None:
    """It says what the lecture says of it."""
    record, settings = shipped("dequantization"), dequantization.Settings()
    assert f"photo patches {settings.steps} steps of {settings.batch_size}" in record.budget
    assert f"digits {settings.digits_steps} steps of {settings.batch_size}" in record.budget
    check_arithmetic(record)
    gains = {row["num_levels"]: row for row in record.tables["gains"] if row["data"] == "photo patches"}
    for column in ("gain", "gain_iw"):  # falls from 2 to 8 bits, and is positive all the way
        values = [gains[levels][column] for levels in (4, 8, 16, 32, 256)]
        assert values == sorted(values, reverse=True)
        assert all(row[column] > 32 * row[f"{column}_se"] for row in gains.values())  # t of 3 members, p .001
    for row in gains.values():  # the gap lies below its second cumulant, far below the formula for smooth p
        assert row["gap"] < row["predicted_variance"] < row["predicted"]
        assert row["gain_dense"] < row["gain"]
    digits = record.tables["gains"][-1]
    assert digits["data"] == "digits" and abs(digits["gain"]) < 5 * digits["gain_se"]  # nothing for certain


def test_the_command_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_quickly("dequantization", tmp_path, capsys)
    assert "4 steps of 32" in record.budget
    check_arithmetic(record)


@pytest.mark.cuda
def test_the_experiment_runs_on_a_gpu() -> None:
    run_on_gpu("dequantization")
