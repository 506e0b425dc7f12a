"""How the noise of the bound's gradient grows over its signal as K rises, live. Ledger I6, I7.

The model is the Gaussian toy of Rainforth et al. 2018 near its optimum. For each K, thousands of gradient
estimates are drawn once, projected onto the exact gradient's direction: for theta, and for phi with the plain
and with the doubly reparametrised (DReG) estimator. A move looks them up and averages M at a time.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text
from torch import Tensor

from dgm_course import plots
from dgm_course.bounds import signal_to_noise
from dgm_course.demos.engine import Artists, LiveDemo, choice_slider
from dgm_course.gaussian_toy import GaussianToy

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
AVERAGED = (1, 2, 5, 10, 20, 50)
#: q's mean is off by this much in each of 20 dimensions
OFFSET = 0.05
NUM_ESTIMATES = 4096
NAMES = ("θ", "φ, plain", "φ, DReG")
COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN)
WRONG = plots.PINK
SLOPES = (0.5, -0.5, 0.5)  # of log SNR against log K, DReG's for large K
_NAMED = 7  # the curves are named at this K
_VIEW = (-3.2, 5.2)  # of an estimate over its mean
_REACH, _BINS_PER_SD = 5, 4  # bars reach 5 standard deviations, and are a quarter of one wide


class Table(NamedTuple):
    """Projected estimates for each K; the first dimension is theta, phi plain, phi DReG."""

    estimates: Tensor  # (3, C, R) nats per unit of the parameter
    means: Tensor  # (3, C) both of phi's are the mean of the DReG estimates
    order: Tensor  # (50, R) which estimates are averaged together


class Noise(NamedTuple):
    """What the controls point at."""

    num_samples: int  # K
    num_averaged: int  # M
    index: int  # of K
    ratios: Tensor  # (3, R) averages of M estimates over their mean
    snr: Tensor  # (3, C) for M estimates, along K
    mean_phi: float  # phi's gradient, nats per unit


@cache
def tabulate() -> Table:
    """Draw 4096 estimates for each K, about a second on one core, once in a session."""
    toy = GaussianToy.near_optimum(OFFSET, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    rows = [toy.projected(toy.gradients(k, NUM_ESTIMATES, generator=generator)) for k in COUNTS]
    estimates = torch.stack([torch.stack(row) for row in rows], 1)  # (3, C, R)
    means = estimates.mean(-1)[[0, 2, 2]]  # (3, C)
    # The mean of phi's plain estimates is known no better than sd / 64, which hides it from K = 50 on; they
    # are shifted by that error to the same mean's better estimate.
    estimates[1] += (means[1] - estimates[1].mean(-1)).unsqueeze(-1)
    # Each row is a permutation of its own. An average of M has now and then one estimate twice: that adds a
    # hundredth to the spread, while disjoint groups would leave too few averages for a histogram.
    keys = torch.rand(AVERAGED[-1], NUM_ESTIMATES, generator=generator, dtype=torch.float32)
    return Table(estimates, means, keys.argsort(1))


def compute(table: Table, num_samples: int, num_averaged: int) -> Noise:
    """Look up K, average M estimates at a time, and measure the signal-to-noise ratios. Ledger I6, I7.

    Raises ``ValueError`` for a K that is not in the table, or an M beyond 50.
    """
    if num_samples not in COUNTS or not 1 <= num_averaged <= AVERAGED[-1]:
        raise ValueError(
            f"the table holds K in {COUNTS} and averages M = 1 to {AVERAGED[-1]}, got K={num_samples} and "
            f"M={num_averaged}: pick from these"
        )
    index = COUNTS.index(num_samples)
    averages = table.estimates[:, index][:, table.order[:num_averaged]].mean(1)  # (3, R)
    estimates = table.estimates.movedim(-1, 0)  # (R, 3, C)
    return Noise(
        num_samples, num_averaged, index,
        ratios=averages / table.means[:, index, None],
        snr=signal_to_noise(estimates, mean=table.means, num_averaged=num_averaged),
        mean_phi=float(table.means[2, index]),
    )


def build(figure: Figure, noise: Noise) -> Artists:
    """Draw three histograms over one axis and the ratios beside them; return what moves."""
    panels = figure.subplot_mosaic([[0, "snr"], [1, "snr"], [2, "snr"]], width_ratios=[1.2, 1.0])
    histograms = [_histogram_panel(panels[k], NAMES[k], COLOURS[k]) for k in range(3)]
    right, wrong, shares = zip(*histograms, strict=True)
    panels[0].set_title("How estimates scatter about their mean")
    panels[1].set_ylabel("frequency (tallest = 1)")
    panels[2].set_xlabel("gradient estimate / its mean")
    for k in (0, 1):
        panels[k].tick_params(labelbottom=False)

    ax = plots.log_axes(panels["snr"])
    plots.reference_line(ax, "signal = noise", y=1.0)
    curves = [ax.plot(COUNTS, noise.snr[k].numpy(), color=COLOURS[k])[0] for k in range(3)]
    law = {"color": plots.INK, "linestyle": (0, (2, 2)), "linewidth": 1.6, "zorder": 1.9}
    laws = [ax.plot(COUNTS, noise.snr[k].numpy(), **law)[0] for k in range(3)]
    points = [ax.plot([], [], "o", color=COLOURS[k], markersize=10)[0] for k in range(3)]
    names = [
        ax.annotate(
            NAMES[k], (1, 1), (0, 8), textcoords="offset points", color=COLOURS[k], weight="bold",
            ha="left" if SLOPES[k] < 0 else "right",  # on the side where the curve is lower
        )
        for k in range(3)
    ]  # fmt: skip
    ax.legend(laws[:1], ["slope ½ or −½"], loc="lower left", borderaxespad=0)
    ax.set(title="Signal-to-noise ratio", xlabel="samples K", ylabel="|mean| / sd")
    ax.set(xlim=(0.85, 1.18 * COUNTS[-1]), ylim=(4e-3, 2e3))
    return {
        "right": right, "wrong": wrong, "shares": shares,
        "curves": curves, "laws": laws, "points": points, "names": names,
    }


def _histogram_panel(ax: Axes, name: str, colour: str) -> tuple[StepPatch, StepPatch, Text]:
    """Lines at 0 and 1, an empty histogram in two colours that meet at 0, and a place for a share."""
    ax.set(xlim=_VIEW, ylim=(0, 1.5), xticks=[-2, 0, 1, 2, 4], yticks=[])
    ax.axvline(0.0, color=plots.INK, linewidth=1.6)
    ax.axvline(1.0, color=plots.INK, linewidth=1.6, linestyle=(0, (4, 2)))
    ax.text(0.995, 0.95, name, color=colour, weight="bold", transform=ax.transAxes, ha="right", va="top")
    share = ax.text(0.01, 0.95, "", color=WRONG, weight="bold", transform=ax.transAxes, ha="left", va="top")
    halves = []
    for fill, low, high in ((colour, 0.0, _VIEW[1]), (WRONG, _VIEW[0], 0.0)):
        style = {"fill": True, "facecolor": (fill, 0.5), "edgecolor": fill, "linewidth": 1.3}
        halves.append(ax.stairs([0.0], [0.0, 1.0], **style))
        halves[-1].set_clip_path(Rectangle((low, 0), high - low, 2, transform=ax.transData))
    return *halves, share


def draw(artists: Artists, noise: Noise) -> None:
    """Redraw the histograms, name the share with the wrong sign, and move curves, laws and points."""
    relative = np.array(COUNTS) / COUNTS[-1]
    for k, ratios in enumerate(noise.ratios):
        bars = torch.linspace(-_REACH, _REACH, 2 * _REACH * _BINS_PER_SD + 1, dtype=ratios.dtype)
        heights, edges = torch.histogram(ratios, 1.0 + ratios.std() * bars)
        for half in ("right", "wrong"):
            artists[half][k].set_data((heights / heights.max()).numpy(), edges.numpy())
        artists["shares"][k].set_text(f"{_wrong(noise)[k]:.0%} wrong sign")
        snr = noise.snr[k].numpy()
        artists["curves"][k].set_ydata(snr)
        artists["laws"][k].set_ydata(snr[-1] * relative ** SLOPES[k])
        artists["points"][k].set_data([noise.num_samples], [float(snr[noise.index])])
        artists["names"][k].xy = (COUNTS[_NAMED], float(snr[_NAMED]))


def _wrong(noise: Noise) -> list[float]:
    """Share of the averages whose sign is not their mean's."""
    return (noise.ratios < 0).double().mean(-1).tolist()


def numbers(noise: Noise) -> dict[str, str]:
    """What is printed beside the picture."""
    ratios = noise.snr[:, noise.index].tolist()
    named = {f"SNR of {name}": f"{ratio:.3g}" for name, ratio in zip(NAMES, ratios, strict=True)}
    return {**named, "mean of φ's gradient": f"{noise.mean_phi:.3g} nats per unit"}


def describe(noise: Noise) -> str:
    """The picture in words."""
    said = numbers(noise)
    theta, plain, dreg = (said[f"SNR of {name}"] for name in NAMES)
    return (
        f"With K = {noise.num_samples} samples and M = {noise.num_averaged} averaged estimates the signal-to-"
        f"noise ratio of the gradient is {theta} for θ, {plain} for φ and {dreg} for φ with DReG; "
        f"{_wrong(noise)[1]:.0%} of φ's plain estimates have the wrong sign. Along K the ratio rises as √K "
        "for θ, falls as 1/√K for φ, and rises for DReG."
    )


TRY_THIS = (
    "**Try:** raise K with the arrow keys. The estimates of θ close in on their mean; the plain ones of φ "
    "scatter ever wider around theirs, until half of them have the wrong sign. The DReG estimates have the "
    "same mean and far less noise. Then spend 50 samples in two ways: K = 1, M = 50, or K = 50, M = 1. "
    "Which is better for φ, and which for θ? How does M move the three curves?"
)


def show(*, num_samples: int = 10, num_averaged: int = 10) -> LiveDemo:
    """Show the demo, from these values of its controls on."""
    table = tabulate()
    return LiveDemo(
        name="gradient_noise",
        controls={
            "num_samples": choice_slider("Samples K", num_samples, COUNTS),
            "num_averaged": choice_slider("Averaged estimates M", num_averaged, AVERAGED),
        },
        compute=lambda num_samples, num_averaged: compute(table, num_samples, num_averaged),
        build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS, figsize=(9.6, 4.2),
    ).show()
