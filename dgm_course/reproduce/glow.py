"""Glow on digits and on photo patches: bits/dim, samples, interpolation, class directions. Ledger F10.

``python -m dgm_course reproduce glow``; Kingma & Dhariwal 2018, "Glow", at the size of one CPU. The levels
are dequantized with uniform noise, so bits/dim are ``-E_u log p(y + u) / (m log 2)``, an upper bound of those
of the discrete model P(y) = integral of p over [y, y + 1) (ledger D4). The budgets were fixed beforehand,
that of the digits on a validation cut of their training part; a longer run shows how Glow overfits them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgm_course.data import Split, digits, photo_patches
from dgm_course.flows import FixedAffine, Glow, initialise
from dgm_course.reproduce.baselines import NearestNeighbours, full_gaussian, independent_pixels
from dgm_course.reproduce.measures import (
    bits_per_dim,
    class_means,
    decoded,
    dequantized,
    encoded,
    interpolated,
    over_seeds,
)
from dgm_course.reproduce.provenance import finished
from dgm_course.reproduce.record import Record, Row
from dgm_course.train import fit, minibatch

TEMPERATURES = (1.0, 0.8)
_DATA_SEED, _NOISE_SEED, _PICTURE_SEED = 2018, 6114, 1807


@dataclass(frozen=True)
class Budget:
    """The Glow of one data set and its training: every seed gets the same."""

    num_levels: int
    num_scales: int
    steps_per_scale: int
    hidden: int
    steps: int
    lr: float
    lr_decay_from: float
    num_noises: int
    batch_size: int = 64


@dataclass(frozen=True)
class Settings:
    """The whole experiment: both budgets, and how much data there is."""

    digits: Budget = Budget(17, 2, 8, 48, steps=1200, lr=5e-3, lr_decay_from=0.3, num_noises=16)
    patches: Budget = Budget(256, 3, 6, 48, steps=4000, lr=4e-3, lr_decay_from=0.4, num_noises=4)
    long_steps: int = 3000
    num_seeds: int = 3
    num_digits: int | None = None
    patch_size: int = 16
    num_train_patches: int = 40_000
    num_test_patches: int = 2000

    def __post_init__(self) -> None:
        """Raises ``ValueError`` without a step or a seed."""
        counts = (self.num_seeds, self.digits.steps, self.patches.steps, self.long_steps)
        if min(counts) < 1:
            raise ValueError(f"an experiment needs at least one seed and one step each, got {counts}")

    def with_steps(self, steps: int) -> Settings:
        """Every model trained for ``steps`` steps."""
        digits, patches = replace(self.digits, steps=steps), replace(self.patches, steps=steps)
        return replace(self, digits=digits, patches=patches, long_steps=steps)

    def quick(self) -> Settings:
        """The same path in seconds, for the tests: its numbers mean nothing."""
        small = {"steps_per_scale": 1, "hidden": 4, "steps": 8, "num_noises": 1}
        return replace(
            self, digits=replace(self.digits, **small), patches=replace(self.patches, **small, num_scales=2),
            long_steps=10, num_seeds=2, num_digits=150, patch_size=8, num_train_patches=300,
            num_test_patches=50,
        )  # fmt: skip


def trained(
    levels: Tensor,
    budget: Budget,
    seed: int,
    watch: Callable[[int, Glow], object] | None = None,
) -> Glow:
    """A Glow fitted to images of levels ``(N, C, H, W)``; ``watch(step, glow)`` is called after each step."""
    generator = torch.Generator(levels.device).manual_seed(seed)
    half = budget.num_levels / 2
    glow = Glow(
        levels.shape[1:], num_scales=budget.num_scales, steps_per_scale=budget.steps_per_scale,
        hidden=budget.hidden, pixels=FixedAffine(half, half / 2, event_dims=3), generator=generator,
    ).to(levels.device)  # fmt: skip
    initialise(glow, dequantized(minibatch(levels, 512, generator), generator))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        batch = dequantized(minibatch(levels, budget.batch_size, generator), generator)
        return -glow.log_prob(batch).mean() / levels[0].numel()

    fit(
        loss, glow.parameters(), steps=budget.steps, lr=budget.lr, lr_decay_from=budget.lr_decay_from,
        clip_norm=1.0, seed=seed, progress=False,
        callbacks=[] if watch is None else [lambda step, _: watch(step + 1, glow) and False],
    )  # fmt: skip
    return glow


def run(
    settings: Settings,
    *,
    command: str = "python -m dgm_course reproduce glow",
    device: torch.device | str = "cpu",
    report: Callable[[str], object] = lambda line: None,
) -> Record:
    """Run the experiment and return its record; ``report`` receives a line after each part."""
    start, seeds = time.process_time(), range(settings.num_seeds)
    few = settings.num_digits
    split = digits(binary=False, device=device)
    split = Split(split.train_x[:few], split.test_x[:few], split.train_y[:few], split.test_y[:few], (1, 8, 8))
    tables: dict[str, list[Row]] = {"bits_per_dim": [], "reconstruction": []}
    pictures: dict[str, Tensor] = {}

    def one_data_set(name: str, split: Split, budget: Budget) -> list[Glow]:
        train, test = _images(split)
        glows, rows, train_bits = [], [], train[:2000]
        for seed in seeds:
            before = time.process_time()
            glows.append(trained(train, budget, seed))
            seconds = time.process_time() - before
            rows.append(_bits(glows[-1], train_bits, test, budget) | {"cpu_seconds": seconds})
            found = "{test:.3f} bits/dim held out, {train:.3f} training, {cpu_seconds:.0f} CPU seconds"
            report(f"{name}, seed {seed}: {found.format(**rows[-1])}")
        tables["bits_per_dim"] += _baseline_rows(name, train, train_bits, test, budget.num_levels)
        tables["bits_per_dim"].append({"data": name, "model": "Glow", **over_seeds(rows)})
        x = test + 0.5
        with torch.no_grad():
            errors = [(glow.decode(glow.encode(x)) - x).abs().max().item() for glow in glows]
        tables["reconstruction"].append({"data": name, "largest error (levels)": max(errors)})
        pictures.update(_pictures(name, glows[0], split, budget.num_levels))
        return glows

    glows = one_data_set("digits", split, settings.digits)
    tables |= _judged(glows, split, settings.digits.num_levels)
    longer = replace(settings.digits, steps=settings.long_steps)
    tables["digits_against_steps"] = _against_steps(split, longer)
    report("digits: longer run done")
    generator = torch.Generator().manual_seed(_DATA_SEED)
    patches = photo_patches(
        size=settings.patch_size, gray=False, num_train=settings.num_train_patches,
        num_test=settings.num_test_patches, generator=generator, device=device,
    )  # fmt: skip
    one_data_set("photo patches", patches, settings.patches)
    a, b = settings.digits, settings.patches
    budget = f"digits {a.steps} steps of {a.batch_size}, patches {b.steps} steps of {b.batch_size} a seed"
    return finished(
        "glow", command=command, budget=budget, start=start, num_seeds=settings.num_seeds, device=device,
        tables=tables, pictures=pictures,
    )  # fmt: skip


def _images(split: Split) -> tuple[Tensor, Tensor]:
    return split.train_x.reshape(-1, *split.image_shape), split.test_x.reshape(-1, *split.image_shape)


def _bits(glow: Glow, train: Tensor, test: Tensor, budget: Budget) -> Row:
    """Bits/dim of one Glow, every seed's on the same noise."""
    generator = torch.Generator(test.device).manual_seed(_NOISE_SEED)
    on_test = bits_per_dim(glow, test, num_noises=budget.num_noises, generator=generator)
    on_train = bits_per_dim(glow, train, num_noises=budget.num_noises, generator=generator)
    return _summary(on_test, on_train)


def _summary(on_test: Tensor, on_train: Tensor) -> Row:
    """Means, and of the held-out images their median, standard deviation and largest value."""
    return {
        "test": on_test.mean().item(), "train": on_train.mean().item(),
        "test_median": on_test.median().item(), "test_images_sd": on_test.std().item(),
        "test_largest": on_test.max().item(),
    }  # fmt: skip


def _baseline_rows(name: str, train: Tensor, seen: Tensor, test: Tensor, num_levels: int) -> list[Row]:
    uniform = torch.tensor(float(num_levels)).log2().item()
    rows: list[Row] = [{"data": name, "model": "uniform", "test": uniform, "train": uniform}]
    for model, bits in (
        ("independent pixels", lambda x: independent_pixels(train, x, num_levels)),
        ("Gaussian, full covariance", lambda x: full_gaussian(train, x)),
    ):
        rows.append({"data": name, "model": model, **_summary(bits(test), bits(seen))})
    return rows


def _against_steps(split: Split, budget: Budget) -> list[Row]:
    """Seed 0 again, for longer: bits/dim at ten points on the way, on 300 training and all test images."""
    train, test = _images(split)
    rows: list[Row] = []

    def watch(step: int, glow: Glow) -> None:
        if step % max(budget.steps // 10, 1) == 0:
            bits = _bits(glow, train[:300], test, replace(budget, num_noises=4))
            rows.append({"step": step} | {key: bits[key] for key in ("test", "train", "test_median")})

    trained(train, budget, 0, watch)
    return rows


def _judged(glows: list[Glow], split: Split, num_levels: int) -> dict[str, list[Row]]:
    """What five nearest neighbours say of samples, midpoints and digits moved by class directions."""
    train, test = _images(split)
    labels, own = split.train_y, split.test_y
    judge = NearestNeighbours(train, labels)
    other = test.roll(len(test) // 2, 0)  # each held-out digit's partner for a midpoint
    differ = own != own.roll(len(test) // 2, 0)
    targets = (own + torch.arange(1, 10, device=own.device)[:, None]) % 10  # (9, n): every other class

    def quality(images: Tensor) -> Row:
        _, unanimous, distance = judge(images)
        contrast = images.flatten(1).std(1).mean().item()
        agreed = unanimous.float().mean().item()
        return {"unanimous": agreed, "distance": distance.mean().item(), "contrast": contrast}

    def moves(values: Tensor, means: Tensor, back: Callable[[Tensor], Tensor]) -> tuple[Row, Tensor]:
        moved = back((values + means[targets] - means[own]).flatten(0, 1))
        called = judge(moved)[0].reshape(targets.shape)
        hit = called == targets
        three = (own == 3) & (targets == 8)
        return {"reached": hit.float().mean().item(), "3 to 8": hit[three].float().mean().item()}, moved

    def levels(x: Tensor) -> Tensor:
        return x.round().clamp(0, num_levels - 1)

    in_pixels, moved = moves(test, class_means(train, labels), levels)
    fixed = {
        "held-out digits": quality(test),
        "midpoints, pixels": quality(levels(0.5 * (test + other))[differ]),
        "moved to another class, pixels": quality(moved) | in_pixels,
    }
    per_seed: dict[str, list[Row]] = {}
    for seed, glow in enumerate(glows):
        generator = torch.Generator(test.device).manual_seed(_PICTURE_SEED + seed)
        noise = torch.randn(1000, *test.shape[1:], generator=generator, device=test.device)
        z, z_other = encoded(glow, test), encoded(glow, other)
        latent, moved = moves(
            z, class_means(encoded(glow, train), labels), lambda z, glow=glow: decoded(glow, z, num_levels)
        )
        made = {f"samples at temperature {t}": decoded(glow, t * noise, num_levels) for t in TEMPERATURES}
        for way in ("linear", "spherical"):
            between = interpolated(z, z_other, 0.5, spherical=way == "spherical")[differ]
            made[f"midpoints, latent, {way}"] = decoded(glow, between, num_levels)
        rows = {name: quality(images) for name, images in made.items()}
        rows["moved to another class, latent"] = quality(moved) | latent
        for name, row in rows.items():
            per_seed.setdefault(name, []).append(row)
    seeded = {name: over_seeds(rows) for name, rows in per_seed.items()}
    return {"judged_by_neighbours": [{"images": name, **row} for name, row in (fixed | seeded).items()]}


def _pictures(name: str, glow: Glow, split: Split, num_levels: int) -> dict[str, Tensor]:
    """Pictures of one Glow, levels as uint8, names ``NAME: what``; see the keys."""
    _, test = _images(split)
    first, second, way, columns, count = (3, 8, "3 to 8", 8, 40)
    if name != "digits":
        first, second, way, columns, count = (0, 1, "china to flower", 4, 20)
    generator = torch.Generator(test.device).manual_seed(_PICTURE_SEED)
    noise = torch.randn(count, *test.shape[1:], generator=generator, device=test.device)
    made = {f"samples at temperature {t}": decoded(glow, t * noise, num_levels) for t in TEMPERATURES}
    z = encoded(glow, test[: 2 * columns])
    weights = torch.linspace(0, 1, 7).tolist()
    between = [decoded(glow, interpolated(z[:columns], z[columns:], w), num_levels) for w in weights]
    made["interpolation"] = torch.stack(between, 1)  # (pairs, 7, C, H, W), both ends held-out images
    means = class_means(encoded(glow, _images(split)[0]), split.train_y)
    start = encoded(glow, test[split.test_y == first][:columns])
    direction = means[second] - means[first]
    moved = [decoded(glow, start + step * direction, num_levels) for step in (0.0, 0.5, 1.0, 1.5)]
    made[way] = torch.stack(moved, 1)  # (images, 4 steps, C, H, W)
    made["held out"] = test[: count // 2]
    return {f"{name}: {what}": images.to(torch.uint8).cpu() for what, images in made.items()}
