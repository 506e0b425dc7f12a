"""`dgm_course.reproduce`: what its numbers mean (identities, closed forms), the record, and the command."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from recorded import ROOT, run_on_gpu, run_quickly, shipped
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Uniform

from dgm_course.__main__ import EXPERIMENTS, main
from dgm_course.data import digits
from dgm_course.flows import FixedAffine, Flow
from dgm_course.numerics import gauss_legendre
from dgm_course.reproduce import Record, glow, load, save
from dgm_course.reproduce.baselines import NearestNeighbours, full_gaussian, independent_pixels
from dgm_course.reproduce.measures import (
    bits_per_dim,
    class_means,
    decoded,
    encoded,
    interpolated,
    over_seeds,
)


def random_levels(n: int, num_levels: int, *shape: int, seed: int = 5) -> Tensor:
    """Correlated levels: neighbours share a random walk, so that a full covariance is worth something."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(n, math.prod(shape), generator=generator, dtype=torch.float64)
    return (num_levels / 2 + steps.cumsum(1)).floor().clamp(0, num_levels - 1).reshape(n, *shape)


@pytest.mark.parametrize(("num_levels", "bits"), [(17, math.log2(17)), (256, 8.0)])
def test_the_uniform_model_has_log2_of_the_levels(device: torch.device, num_levels: int, bits: float) -> None:
    """Ledger D7: the uniform density on [0, L)^m, written as a flow of the unit cube; no noise changes it."""
    zero = torch.zeros(1, 8, 8, dtype=torch.float64, device=device)
    cube = Independent(Uniform(zero, zero + 1), 3)
    scale = torch.tensor(float(num_levels), dtype=torch.float64, device=device)
    model = Flow(FixedAffine(0 * scale, scale, event_dims=3), cube)
    levels = random_levels(7, num_levels, 1, 8, 8).to(device)
    generator = torch.Generator(device).manual_seed(1)
    found = bits_per_dim(model, levels, num_noises=3, generator=generator, chunk=2)
    torch.testing.assert_close(found, torch.full_like(found, bits), rtol=1e-12, atol=0.0)


def test_gaussian_bits_are_the_integral_over_the_noise() -> None:
    """Gauss-Legendre is exact for the quadratic log-density; torch's own Gaussian is the oracle."""
    train, levels = random_levels(60, 9, 2), random_levels(5, 9, 2, seed=6)
    mean = train.mean(0) + 0.5
    centred = train + 0.5 - mean
    covariance = centred.mT @ centred / 60 + torch.eye(2, dtype=torch.float64) / 12
    nodes, weights = gauss_legendre(0.0, 1.0, 3, num_dims=2)  # (9, 2), (9,)
    density = MultivariateNormal(mean, covariance)
    expected = -(weights @ density.log_prob(levels + nodes[:, None])) / (2 * math.log(2))
    torch.testing.assert_close(full_gaussian(train, levels), expected, rtol=1e-12, atol=1e-12)


def test_gaussian_bits_agree_with_drawn_noise(generator: torch.Generator) -> None:
    """The same model through `bits_per_dim`, whose noise is drawn: within 5 standard errors of the sample."""
    train = random_levels(60, 9, 1, 2, 2)
    flat = train.flatten(1)
    covariance = torch.cov(flat.mT, correction=0) + torch.eye(4, dtype=torch.float64) / 12
    density = MultivariateNormal(flat.mean(0) + 0.5, covariance)

    class Images:
        def log_prob(self, x: Tensor) -> Tensor:
            return density.log_prob(x.flatten(1))

    image = train[:1]
    draws = bits_per_dim(Images(), image.expand(4000, 1, 2, 2), num_noises=1, generator=generator)
    error = draws.std() / math.sqrt(len(draws))
    assert (draws.mean() - full_gaussian(train, image)[0]).abs() < 5 * error
    averaged = bits_per_dim(Images(), image.expand(400, 1, 2, 2), num_noises=16, generator=generator)
    assert averaged.std() < 0.5 * draws.std()  # the noises are independent: a quarter of the spread


def test_independent_pixels_against_counting() -> None:
    train, levels = random_levels(40, 5, 1, 2, 3), random_levels(6, 5, 1, 2, 3, seed=6)
    columns = [Counter(column.tolist()) for column in train.flatten(1).mT]
    expected = [
        -sum(math.log2((counts[v] + 1) / (40 + 5)) for counts, v in zip(columns, row, strict=True)) / 6
        for row in levels.flatten(1).tolist()
    ]
    found = independent_pixels(train, levels, 5)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_neighbours_are_those_of_scikit_learn(device: torch.device) -> None:
    split = digits(binary=False, dtype=torch.float64)
    oracle = KNeighborsClassifier(5).fit(split.train_x.numpy(), split.train_y.numpy())
    judge = NearestNeighbours(split.train_x.to(device).reshape(-1, 1, 8, 8), split.train_y.to(device))
    label, unanimous, distance = (found.cpu() for found in judge(split.test_x.to(device)))
    nearest = torch.from_numpy(oracle.kneighbors(split.test_x.numpy())[0][:, 0])
    torch.testing.assert_close(distance, nearest, rtol=1e-6, atol=1e-6)
    shares = torch.from_numpy(oracle.predict_proba(split.test_x.numpy()))  # (300, 10)
    assert torch.equal(unanimous, shares.amax(1) == 1)
    clear = shares.topk(2).values.diff().squeeze(1) < -0.01  # one class ahead
    assert clear.sum() > 290 and torch.equal(label[clear], shares.argmax(1)[clear])


@pytest.fixture(scope="module")
def small() -> tuple[glow.Glow, Tensor]:
    """A Glow of a few steps, and held-out digits."""
    split = digits(binary=False)
    train, test = split.train_x[:200].reshape(-1, 1, 8, 8), split.test_x.reshape(-1, 1, 8, 8)
    return glow.trained(train, glow.Settings().quick().digits, 3), test


def test_a_code_leads_back_to_its_levels(small: tuple[glow.Glow, Tensor]) -> None:
    model, levels = small
    assert torch.equal(decoded(model, encoded(model, levels), 17), levels)


def test_temperature_zero_is_one_image(small: tuple[glow.Glow, Tensor], generator: torch.Generator) -> None:
    model, _ = small
    noise = torch.randn(5, 1, 8, 8, generator=generator)
    cold, warm = decoded(model, 0.0 * noise, 17), decoded(model, noise, 17)
    with torch.no_grad():
        middle = model.decode(torch.zeros(1, 1, 8, 8)).floor().clamp(0, 16)
    assert torch.equal(cold, middle.expand_as(cold))
    assert all(not torch.equal(image, cold[0]) for image in warm)


def test_the_seed_decides_the_training_and_the_global_state_is_untouched() -> None:
    levels = digits(binary=False).train_x[:100].reshape(-1, 1, 8, 8)
    budget = replace(glow.Settings().quick().digits, steps=3)
    state = torch.get_rng_state()
    first, again, other = (list(glow.trained(levels, budget, seed).parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("spherical", [False, True])
def test_interpolation_starts_and_ends_at_the_images(generator: torch.Generator, spherical: bool) -> None:
    a, b = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(interpolated(a, b, 0.0, spherical=spherical), a)
    torch.testing.assert_close(interpolated(a, b, 1.0, spherical=spherical), b)
    torch.testing.assert_close(interpolated(a, a, 0.3, spherical=spherical), a)


def test_where_the_midpoints_lie() -> None:
    """Two latents at a right angle, of lengths 3 and 1."""
    a, b = torch.zeros(2, 1, 1, 2, 2, dtype=torch.float64)
    a[..., 0, 0], b[..., 1, 1] = 3.0, 1.0
    linear, spherical = interpolated(a, b, 0.5), interpolated(a, b, 0.5, spherical=True)
    torch.testing.assert_close(linear, (a + b) / 2)
    torch.testing.assert_close(spherical, 2 * (a / 3 + b) / math.sqrt(2))  # on the diagonal, length 2


def test_class_means_and_seeds() -> None:
    values, labels = random_levels(30, 9, 1, 2, 2), torch.arange(30) % 3
    for label, mean in enumerate(class_means(values, labels)):
        torch.testing.assert_close(mean, values[label::3].mean(0))
    combined = over_seeds([{"a": 1.0}, {"a": 2.0}, {"a": 6.0}])
    assert math.isclose(combined["a"], 3.0) and math.isclose(combined["a_se"], math.sqrt(7 / 3))
    assert over_seeds([{"a": 1.0}]) == {"a": 1.0}


def a_record(**changes: object) -> Record:
    picture = torch.randint(256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    values = dict(
        name="toy", command="python -m dgm_course reproduce toy", date="2026-11-25", budget="30 steps of 4",
        cpu_seconds=725.4, seeds=(0, 1, 2), torch_version="2.13.0", machine="CPU, 1 thread",
        tables={"bits": [{"model": "uniform", "test": math.pi, "se": None, "steps": 7}]},
        pictures={"samples": picture, "empty": picture[:0]},
    )  # fmt: skip
    return Record(**{**values, **changes})


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = a_record()
    save(record, tmp_path / "toy.json")
    again = load(tmp_path / "toy.json")
    for field in fields(Record):
        if field.name not in ("tables", "pictures"):
            assert getattr(again, field.name) == getattr(record, field.name)
    assert again.tables == {"bits": [{"model": "uniform", "test": 3.14159, "se": None, "steps": 7}]}
    assert again.pictures.keys() == record.pictures.keys()
    for name, picture in record.pictures.items():
        assert again.pictures[name].dtype == torch.uint8 and torch.equal(again.pictures[name], picture)


def test_the_caption_says_how_it_was_made() -> None:
    assert a_record().provenance() == (
        "recorded 2026-11-25: python -m dgm_course reproduce toy; 3 seeds; 30 steps of 4; 12 CPU minutes, "
        "torch 2.13.0, CPU, 1 thread"
    )
    assert "; 1 seed; 30 steps of 4; 9 CPU seconds," in a_record(seeds=(4,), cpu_seconds=9.2).provenance()


def test_a_record_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8 levels, got torch.float32 for 'samples'"):
        save(a_record(pictures={"samples": torch.zeros(2)}), tmp_path / "toy.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        save(a_record(tables={"t": [{"x": math.nan}]}), tmp_path / "toy.json")
    with pytest.raises(ValueError, match="no record 'glue' .known: .*glow"):
        load("glue")


def test_the_command_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_quickly("glow", tmp_path, capsys)
    assert "4 steps of 64" in record.budget
    uniform = {row["data"]: row["test"] for row in record.tables["bits_per_dim"] if row["model"] == "uniform"}
    assert uniform == {"digits": pytest.approx(math.log2(17), rel=1e-5), "photo patches": 8.0}
    assert [row["step"] for row in record.tables["digits_against_steps"]] == [1, 2, 3, 4]
    ends = record.pictures["digits: interpolation"][:, [0, -1]]  # both ends are held-out images
    held_out = digits(binary=False).test_x[:16].reshape(2, 8, 1, 8, 8).transpose(0, 1).to(torch.uint8)
    assert torch.equal(ends, held_out)


@pytest.mark.cuda
def test_the_experiment_runs_on_a_gpu() -> None:
    run_on_gpu("glow")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_command_refuses_an_empty_experiment(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", name, "--quick", "--seeds", "0"]) == 1
    assert "at least one seed" in capsys.readouterr().err


def test_help_of_the_command_is_instant() -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "dgm_course", "reproduce", "--help"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("usage: python -m dgm_course reproduce")
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "matplotlib", "sklearn"}


def test_the_shipped_record() -> None:
    """It says what the lecture says of it."""
    record, settings = shipped("glow"), glow.Settings()
    assert f"digits {settings.digits.steps} steps of {settings.digits.batch_size}" in record.budget
    assert f"patches {settings.patches.steps} steps of {settings.patches.batch_size}" in record.budget
    bits = {(row["data"], row["model"]): row for row in record.tables["bits_per_dim"]}
    for data in ("digits", "photo patches"):
        ours = bits[data, "Glow"]
        others = [row for (d, model), row in bits.items() if d == data and model != "Glow"]
        assert all(ours["test"] + 5 * ours["test_se"] < row["test"] for row in others)
    for name, picture in record.pictures.items():
        top = 16 if name.startswith("digits") else 255
        assert picture.shape[-3] == (1 if top == 16 else 3) and int(picture.max()) <= top
