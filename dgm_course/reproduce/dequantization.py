"""Uniform against variational dequantization on real pixels, coarse and fine. Ledger D8.

``python -m dgm_course reproduce dequantization``; Flow++'s finding (Ho et al. 2019) at the size of one CPU.
For each number of levels two flows start from the same parameters and see the same batches: one is trained
with uniform noise, one together with its noise q(u|y), which reads each pixel's neighbours; one more with a
noise of dense couplings. Local noise is also learned for the first flow, which stays as it is: what it wins
is part of that flow's gap KL(U || p(u|y)) (ledger D5). Beside the gains stand three predictions of the gap,
of :mod:`dgm_course.reproduce.gap_predictions`.

Depth and learning rate were set on a validation cut of the training region at 3 and 8 bits, the digits' steps
on one of their training part, by the bounds and not by the gain. (Given as many steps as the photographs, the
flows overfit 1497 digits, and rare held-out pixels cost them hundreds of nats.) Every seed has its own
initial parameters, batches and noise; all have the same images, so that the standard errors say nothing of
others.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dgm_course.bounds import iwae_bound
from dgm_course.data import digits, photo_patches
from dgm_course.data.digits import LEVELS
from dgm_course.dequantization import (
    Dequantizer,
    UniformDequantizer,
    VariationalDequantizer,
    bits_per_dim,
    dequantization_log_weights,
    dequantize,
    variational_bound,
)
from dgm_course.flows import Compose, FixedLinear, Flow, realnvp_transform
from dgm_course.numerics import nats_to_bits_per_dim
from dgm_course.reproduce.baselines import full_gaussian, independent_pixels
from dgm_course.reproduce.gap_predictions import (
    score,
    score_prediction,
    slope_prediction,
    variance_prediction,
)
from dgm_course.reproduce.measures import over_seeds
from dgm_course.reproduce.provenance import finished
from dgm_course.reproduce.record import Record, Row
from dgm_course.train import fit_many, minibatch

_DATA_SEED, _INITIAL_SEED, _TRAINING_SEED, _NOISE_SEED = 2018, 1902, 275, 6114
_CHUNK = 50  # images in one pass, times seeds and draws
_TRAIN_IMAGES = 500  # of the training data, for their bits/dim
_SCORE_DRAWS = 8  # noises an image at which the score is taken


@dataclass(frozen=True)
class Settings:
    """The whole experiment: data, networks, training. The three models of a data set get the same."""

    bits: tuple[int, ...] = (2, 3, 4, 5, 8)
    num_train: int = 20_000
    num_test: int = 2000
    num_layers: int = 6
    hidden: tuple[int, ...] = (128, 128)
    noise_layers: int = 2
    noise_hidden: int = 64
    noise_context: int = 32
    steps: int = 1500
    digits_steps: int = 200
    batch_size: int = 128
    lr: float = 2e-3
    lr_decay_from: float = 0.6
    clip_norm: float = 1.0
    num_samples: int = 64
    num_seeds: int = 3

    def __post_init__(self) -> None:
        """Raises ``ValueError`` without a step or a seed."""
        counts = (self.num_seeds, self.steps, self.digits_steps)
        if min(counts) < 1:
            raise ValueError(f"an experiment needs at least one seed and one step each, got {counts}")

    def with_steps(self, steps: int) -> Settings:
        """Every model trained for ``steps`` steps."""
        return replace(self, steps=steps, digits_steps=steps)

    def quick(self) -> Settings:
        """The same path in seconds, for the tests: its numbers mean nothing."""
        return replace(
            self, num_train=300, num_test=50, num_layers=2, hidden=(8,), noise_hidden=8, noise_context=4,
            steps=8, digits_steps=8, batch_size=32, num_samples=4, num_seeds=2,
        )  # fmt: skip


def stacked_flow(train: Tensor, settings: Settings, generator: torch.Generator) -> Flow:
    """One density of ``x (E, ..., m)`` a seed: a fixed whitening of the data, RealNVP behind it."""
    couplings = realnvp_transform(
        train.shape[1], num_layers=settings.num_layers, hidden=settings.hidden, members=settings.num_seeds,
        generator=generator,
    )  # fmt: skip
    whitening = FixedLinear.whitening(train, noise_variance=1 / 12)
    return Flow(Compose([*couplings, whitening]), train.shape[1]).to(train.device)


def local_noise(
    train: Tensor, num_levels: int, settings: Settings, generator: torch.Generator
) -> VariationalDequantizer:
    """One noise q(u|y) a seed, which starts uniform; each pixel's reads its 3 x 3 neighbourhood."""
    side = math.isqrt(train.shape[1])
    return VariationalDequantizer.neighbourhood(
        (1, side, side), num_levels, hidden=settings.noise_hidden, members=settings.num_seeds,
        generator=generator,
    ).to(train.device)  # fmt: skip


def dense_noise(
    train: Tensor, num_levels: int, settings: Settings, generator: torch.Generator
) -> VariationalDequantizer:
    """Another one: couplings whose networks read a summary of the whole picture, pixel by pixel unaware."""
    return VariationalDequantizer.coupling(
        train.shape[1], num_levels, num_layers=settings.noise_layers, hidden=settings.noise_hidden,
        context=settings.noise_context, members=settings.num_seeds, generator=generator,
    ).to(train.device)  # fmt: skip


def maximise(
    flow: Flow, noise: Dequantizer, parameters: Iterable[nn.Parameter], train: Tensor, settings: Settings
) -> None:
    """Raise every seed's bound over ``parameters``, in place; each has its own batches and noise.

    The draws depend on the settings and the device alone: two models of the same data see the same batches.
    """
    shape = (settings.num_seeds, settings.batch_size, train.shape[1])

    def loss(step: int, generator: torch.Generator) -> Tensor:
        y = minibatch(train, shape[0] * shape[1], generator).reshape(shape)
        return -variational_bound(flow.log_prob, noise, y, generator=generator).mean(-1) / shape[2]

    fit_many(
        loss, parameters, steps=settings.steps, lr=settings.lr, lr_decay_from=settings.lr_decay_from,
        clip_norm=settings.clip_norm, seed=_TRAINING_SEED, progress=False,
    )  # fmt: skip


def pixel_entropy(levels: Tensor, num_levels: int) -> float:
    """Entropy in bits of one pixel's level, all positions counted together: at most log2 of the levels."""
    share = torch.bincount(levels.flatten().long(), minlength=num_levels).double() / levels.numel()
    return torch.special.entr(share).sum().item() / math.log(2)


def run(
    settings: Settings,
    *,
    command: str = "python -m dgm_course reproduce dequantization",
    device: torch.device | str = "cpu",
    report: Callable[[str], object] = lambda line: None,
) -> Record:
    """Run the experiment and return its record; ``report`` receives a line after each data set.

    Tables, all in bits/dim of held-out data unless the name says otherwise: ``data`` (pixel entropy and
    models that need no flow), ``bits_per_dim`` (each model's own bound ``test``, the same on training data,
    the importance-weighted bound ``test_iw``), ``gains`` (uniform minus variational by both, the gain of a
    noise learned for the fixed uniform model, a lower bound ``gap`` of that model's KL(U || p(u|y)), three
    predictions of it, and the scale s in levels, ``(E g^2)^(-1/2)`` for scores g).
    """
    start = time.process_time()
    tables: dict[str, list[Row]] = {"data": [], "bits_per_dim": [], "gains": []}

    def one_data_set(name: str, train: Tensor, test: Tensor, num_levels: int, settings: Settings) -> None:
        key: Row = {"data": name, "num_levels": num_levels}
        tables["data"].append(key | _facts(train, test, num_levels))
        models, gains = _compared(train, test, num_levels, settings)
        for model, rows in models.items():
            tables["bits_per_dim"].append(key | {"model": model} | over_seeds(rows))
        tables["gains"].append(key | over_seeds(gains))
        found = "gain {gain:.4f} bits/dim, importance-weighted {gain_iw:.4f}, predicted gap {predicted:.4f}"
        report(f"{name}, {num_levels} levels: {found.format(**tables['gains'][-1])}")

    for bits in settings.bits:
        generator = torch.Generator().manual_seed(_DATA_SEED)
        split = photo_patches(
            bits=bits, num_train=settings.num_train, num_test=settings.num_test, generator=generator,
            device=device,
        )  # fmt: skip
        one_data_set("photo patches", split.train_x, split.test_x, 2**bits, settings)
    split = digits(binary=False, device=device)
    train, test = split.train_x[: settings.num_train], split.test_x[: settings.num_test]
    one_data_set("digits", train, test, LEVELS, settings.with_steps(settings.digits_steps))
    budget = (
        f"photo patches {settings.steps} steps of {settings.batch_size}, "
        f"digits {settings.digits_steps} steps of {settings.batch_size}, a model and seed"
    )
    return finished(
        "dequantization", command=command, budget=budget, start=start, num_seeds=settings.num_seeds,
        device=device, tables=tables, pictures={},
    )  # fmt: skip


def _facts(train: Tensor, test: Tensor, num_levels: int) -> Row:
    """What the data say without a flow."""
    return {
        "pixel_entropy": pixel_entropy(train, num_levels),
        "independent_pixels": independent_pixels(train, test, num_levels).mean().item(),
        "gaussian": full_gaussian(train, test).mean().item(),
    }


def _compared(
    train: Tensor, test: Tensor, num_levels: int, settings: Settings
) -> tuple[dict[str, list[Row]], list[Row]]:
    """The three models of one data set: their bits/dim and the gains, a row for each seed."""
    generator = torch.Generator().manual_seed(_INITIAL_SEED)
    flow = stacked_flow(train, settings, generator)
    noise = local_noise(train, num_levels, settings, generator)
    uniform = UniformDequantizer()
    joint, joint_noise, other = copy.deepcopy(flow), copy.deepcopy(noise), copy.deepcopy(flow)
    dense = dense_noise(train, num_levels, settings, generator)
    maximise(flow, uniform, flow.parameters(), train, settings)
    maximise(joint, joint_noise, [*joint.parameters(), *joint_noise.parameters()], train, settings)
    maximise(other, dense, [*other.parameters(), *dense.parameters()], train, settings)
    flow.requires_grad_(False)
    maximise(flow, noise, noise.parameters(), train, settings)
    pairs = {"uniform": (flow, uniform), "variational": (joint, joint_noise), "dense": (other, dense),
             "afterwards": (flow, noise)}  # fmt: skip
    found = {model: _bits(*pair, train, test, settings) for model, pair in pairs.items()}
    own, joint_bits, later = found["uniform"], found["variational"], found["afterwards"]
    gains = {
        "gain": own["test"] - joint_bits["test"],
        "gain_iw": own["test_iw"] - joint_bits["test_iw"],
        "gain_dense": own["test"] - found["dense"]["test"],
        "gain_afterwards": own["test"] - later["test"],
        "gap": own["test"] - torch.minimum(own["test_iw"], later["test_iw"]),
    } | _predictions(flow, test, settings)
    gains["scale"] = (24 * math.log(2) * gains["predicted"]).rsqrt()
    return {model: _rows(columns) for model, columns in found.items()}, _rows(gains)


def _rows(columns: dict[str, Tensor]) -> list[Row]:
    """``{column: (E,)}`` to a row for each seed."""
    lists = {name: values.tolist() for name, values in columns.items()}
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _bits(
    flow: Flow, noise: Dequantizer, train: Tensor, test: Tensor, settings: Settings
) -> dict[str, Tensor]:
    """Each seed's bits/dim, ``(E,)``: both bounds from the same draws."""

    def measured(levels: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(levels.device).manual_seed(_NOISE_SEED)
        with torch.no_grad():
            parts = [
                dequantization_log_weights(
                    flow.log_prob, noise, part.expand(settings.num_seeds, -1, -1),
                    num_samples=settings.num_samples, generator=generator,
                )
                for part in levels.split(_CHUNK)
            ]  # fmt: skip
        weights = torch.cat(parts, -1)  # (E, K, n)
        bounds = weights.mean(-2), iwae_bound(weights, dim=-2)  # (E, n) each
        plain, weighted = (
            bits_per_dim(bound.double().mean(-1), levels.shape[1], bin_width=1) for bound in bounds
        )
        return plain, weighted

    test_bits, weighted = measured(test)
    return {"test": test_bits, "test_iw": weighted, "train": measured(train[:_TRAIN_IMAGES])[0]}


def _predictions(flow: Flow, test: Tensor, settings: Settings) -> dict[str, Tensor]:
    """Each seed's predictions of its gap, bits/dim ``(E,)``, in the order of the functions above."""
    generator = torch.Generator(test.device).manual_seed(_NOISE_SEED)
    sums = []
    for part in test.split(_CHUNK):
        y = part.expand(settings.num_seeds, _SCORE_DRAWS, -1, -1)
        x = dequantize(y, torch.rand(y.shape, generator=generator, device=y.device))
        scores = score(flow.log_prob, x).double()
        with torch.no_grad():
            variance = variance_prediction(flow.log_prob(x).double())
        nats = [score_prediction(scores).mean(1), slope_prediction(scores), variance]  # (E, B) each
        sums.append(torch.stack(nats).sum(-1))
    mean = nats_to_bits_per_dim(torch.stack(sums).sum(0) / len(test), test.shape[1])
    return dict(zip(("predicted", "predicted_slope", "predicted_variance"), mean, strict=True))
