"""Noise within a bin, live and exact: what uniform, hand-made and fitted noise leave of log P(y).

A mixture of logistics, some narrower than a bin, gives a model of the levels 0 to 7. The noise of level y is
``u = sigmoid(a + b logit(U))``, U uniform: uniform itself at a = 0, b = 1. The bounds of ``log P(y)`` with
uniform noise, with these a and b, and with the best ones are integrals, for any number K of samples. Ledger
D4, D5, D6.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray
from torch import Tensor

from dgm_course import plots
from dgm_course.demos.bin_noise import (
    BETWEEN,
    COUNTS,
    NUM_LEVELS,
    Level,
    counts,
    gaps,
    levels,
    model,
    noise_log_prob,
)
from dgm_course.demos.engine import (
    Artists,
    LiveDemo,
    choice_buttons,
    choice_slider,
    int_slider,
    linear_slider,
    log_slider,
)
from dgm_course.logistic_mixture import logistic_mixture_log_prob

SHIFT_RANGE, SCALE_RANGE = (-3.0, 3.0), (0.1, 10**0.5)
SHOWING = ("hidden", "shown")
NAMES = ("uniform", "yours", "best")
COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN)
IDEAL = plots.VIOLET
_DEEPEST = 1.0  # of a bound below log P(y), nats


class Noise(NamedTuple):
    """The bounds at one level and one noise."""

    level: int  # y
    shift: float  # a
    scale: float  # b
    num_samples: int  # K
    shown: bool  # whether the best noise is
    of_level: Level
    gaps: Tensor  # (3, C) log P(y) - L_K along the curve: uniform, yours, best; nats

    @property
    def here(self) -> list[float]:
        """The three gaps at this K."""
        return self.gaps[:, BETWEEN * COUNTS.index(self.num_samples)].tolist()


def compute(level: int, shift: float, scale: float, num_samples: int, best: str) -> Noise:
    """The exact gaps to ``log P(y)`` of the bounds with uniform, with this and with the best noise.

    Ledger D4, D5, D6. Raises ``ValueError`` for what the controls do not offer.
    """
    if level not in range(NUM_LEVELS) or num_samples not in COUNTS or best not in SHOWING:
        raise ValueError(
            f"the levels are 0 to {NUM_LEVELS - 1}, K is one of {COUNTS} and the best noise {SHOWING}, got "
            f"level {level}, K={num_samples} and {best!r}: pick from these"
        )
    of_level = levels()[level]
    mine = gaps(of_level.log_joint, shift, scale)
    return Noise(
        level, shift, scale, num_samples, best == "shown", of_level,
        gaps=torch.stack([of_level.uniform, mine, of_level.best]),
    )


@cache
def places() -> Tensor:
    """Where densities of the noise are drawn, ``(U,)``."""
    return torch.linspace(0.0, 1.0, 243, dtype=torch.float64)[1:-1]


def build(figure: Figure, noise: Noise) -> Artists:
    """Draw the model, the noise within the bin, and the bounds along K; return what moves."""
    panels = figure.subplot_mosaic([["model", "noise", "bounds"]], width_ratios=[1.1, 1.0, 1.2])
    ax, x = panels["model"], torch.linspace(0, NUM_LEVELS, 40 * NUM_LEVELS + 1, dtype=torch.float64)
    ax.fill_between(x, logistic_mixture_log_prob(x, *model()).exp(), color=plots.INK, alpha=0.28, linewidth=0)
    area = ax.add_patch(Polygon([[0, 0]], closed=True, color=IDEAL, alpha=0.75, linewidth=0))
    ax.set(title="Model p(x)", xlabel="x = y + u", ylabel="density", xlim=(0, NUM_LEVELS), ylim=(0, 1.25))
    ax.set(xticks=range(NUM_LEVELS + 1), yticks=[0.0, 0.5, 1.0])
    ax.grid(False)
    ax.vlines(range(1, NUM_LEVELS + 1), 0.0, 1.08, color=plots.INK, linewidth=0.8, alpha=0.28)
    mass = ax.text(0.98, 0.98, "", color=IDEAL, weight="bold", transform=ax.transAxes, ha="right", va="top")

    ax = panels["noise"]
    ideal = ax.add_patch(Polygon([[0, 0]], closed=True, color=IDEAL, alpha=0.4, linewidth=0))
    ax.axhline(1.0, color=COLOURS[0])
    (best,) = ax.plot([], [], color=COLOURS[2], linestyle=(0, (4, 2)))
    (mine,) = ax.plot([], [], color=COLOURS[1])
    ax.set(title="Noise in this bin", xlabel="u", ylabel="density", xlim=(0, 1), ylim=(0, 5.2))
    ax.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    ax.set_yticks(range(5))
    for line in (best, mine):
        line.set_clip_path(Rectangle((0, 0), 1, 4.3, transform=ax.transData))
    high = {"transform": ax.transAxes, "va": "top", "weight": "bold"}
    ax.text(0.03, 0.98, "p(u|y), ideal", color=IDEAL, **high)
    ax.text(0.03, 0.915, "q(u|y), yours", color=COLOURS[1], **high)

    ax = panels["bounds"]
    ax.set_yscale("function", functions=(_root, _square))
    ax.set_xscale("log", base=2)
    ax.minorticks_off()
    ax.set_xticks(COUNTS, [str(k) for k in COUNTS])
    ax.set_yticks([0.0, -0.01, -0.1, -0.3, -1.0], ["0", "−0.01", "−0.1", "−0.3", "−1"])
    ax.set(title="Bounds rise to log P(y)", xlabel="samples K", ylabel="bound − log P(y) (nats)")
    ax.set(xlim=(0.9, 72.0), ylim=(-_DEEPEST, 0.2))
    ax.grid(False, axis="x")
    ax.axhline(0.0, color=plots.INK, linestyle=(0, (4, 2)), linewidth=1.6)
    curves = [ax.plot(counts().numpy(), -gap.numpy(), color=colour)[0]
              for gap, colour in zip(noise.gaps, COLOURS, strict=True)]  # fmt: skip
    curves[2].set_linestyle((0, (4, 2)))
    (here,) = ax.plot([1, 1], [-_DEEPEST, 0.0], color=plots.INK, linewidth=1.0, linestyle=(0, (2, 2)))
    points = [ax.plot([], [], "o", color=colour, markersize=9)[0] for colour in COLOURS]
    right = {"transform": ax.transAxes, "ha": "right", "va": "top"}
    ax.text(0.03, 0.995, "gap (nats)", transform=ax.transAxes, va="top")
    ax.text(0.62, 0.995, "K = 1", **right)
    count = ax.text(0.99, 0.995, "", **right)
    table = []
    for k, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
        bold, at = {"color": colour, "weight": "bold"}, 0.925 - 0.07 * k
        table += [ax.text(0.03, at, name, transform=ax.transAxes, va="top", **bold)]
        table += [ax.text(0.62, at, "", **right, **bold), ax.text(0.99, at, "", **right, **bold)]
    return {"area": area, "mass": mass, "ideal": ideal, "best": best, "mine": mine, "curves": curves,
            "here": here, "points": points, "count": count, "table": table}  # fmt: skip


def _root(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(y) * np.sqrt(np.abs(y))


def _square(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(y) * np.square(y)


def draw(artists: Artists, noise: Noise) -> None:
    """Mark the bin, move the densities within it, and redraw bounds, points and gaps."""
    u, level = places(), noise.of_level
    p = logistic_mixture_log_prob(noise.level + u, *model())
    _fill(artists["area"], noise.level + u, p.exp())
    _fill(artists["ideal"], u, (p - level.log_prob).exp())
    artists["mass"].set_text(f"P({noise.level}) = {math.exp(level.log_prob):.3f}")
    artists["mine"].set_data(u.numpy(), noise_log_prob(u, noise.shift, noise.scale).exp().numpy())
    fitted = noise_log_prob(u, level.best_shift, level.best_scale).exp()
    artists["best"].set_data(u.numpy(), fitted.numpy())
    artists["here"].set_xdata([noise.num_samples] * 2)
    artists["count"].set_text(f"K = {noise.num_samples}")
    for k in range(3):
        artists["curves"][k].set_ydata(-noise.gaps[k].numpy())
        artists["points"][k].set_data([noise.num_samples], [-noise.here[k]])
        artists["table"][3 * k + 1].set_text(_gap(float(noise.gaps[k, 0])))
        artists["table"][3 * k + 2].set_text(_gap(noise.here[k]))
    for artist in (artists["best"], artists["curves"][2], artists["points"][2], *artists["table"][6:]):
        artist.set_visible(noise.shown)


def _fill(area: Polygon, x: Tensor, height: Tensor) -> None:
    x, height = x.numpy(), height.numpy()
    outline = [np.stack([x, height], 1), [[x[-1], 0.0], [x[0], 0.0]]]
    area.set_xy(np.concatenate(outline))


def _gap(value: float) -> str:
    return f"{max(value, 0.0):.4f}"


def numbers(noise: Noise) -> dict[str, str]:
    """What is printed beside the picture."""
    level = noise.of_level
    said = {
        "log P(y)": _nats(level.log_prob),
        "KL(U ‖ p(u|y))": f"{_gap(float(noise.gaps[0, 0]))} nats",
        "KL(q ‖ p(u|y))": f"{_gap(float(noise.gaps[1, 0]))} nats",
        "L_K, uniform": _nats(level.log_prob - noise.here[0]),
        "L_K, yours": _nats(level.log_prob - noise.here[1]),
    }
    if noise.shown:
        said["best a, b"] = f"{level.best_shift:.2f}, {level.best_scale:.2f}".replace("-", "−")
    return said


def _nats(value: float) -> str:
    return f"{value:.4f} nats".replace("-", "−")


def describe(noise: Noise) -> str:
    """The picture in words."""
    said, here = numbers(noise), [_gap(value) for value in noise.here]
    rest = ""
    if noise.shown:
        rest = (f" The best noise of the family, a and b = {said['best a, b']}, leaves "
                f"{_gap(float(noise.gaps[2, 0]))} and {here[2]} nats.")  # fmt: skip
    shift = f"{noise.shift:.2g}".replace("-", "−")
    return (
        f"Level {noise.level} has log P(y) = {said['log P(y)']}. With K = 1 the bound with uniform noise "
        f"lacks {said['KL(U ‖ p(u|y))']}, that with a = {shift} and b = {noise.scale:.2g} lacks "
        f"{said['KL(q ‖ p(u|y))']}; with K = {noise.num_samples} they lack {here[0]} and {here[1]} nats."
        f"{rest}"
    )


TRY_THIS = (
    "**Try:** level 1, where the model is narrower than the bin: uniform noise lacks 0.709 nats. Move a and "
    "b until q lies on p(u|y); how low do you get? Then show the best. Now K: with a = −1 and b = 0.316 "
    "yours lacks only 0.109 nats at K = 1, but at K = 64 more than uniform noise, since it hardly ever "
    "visits the right half of the bin. Level 6 has two humps: the best q leaves 0.380 of 0.397 nats, so what "
    "would help there? And why does noise matter so little at level 2? (a = 0, b = 1 is uniform.)"
)


def show(
    *, level: int = 1, shift: float = 0.0, scale: float = 0.6, num_samples: int = 8, best: str = "hidden"
) -> LiveDemo:
    """Show the demo, from these values of its controls on; ``best`` is "hidden" or "shown"."""
    return LiveDemo(
        name="dequantization_noise",
        controls={
            "level": int_slider("Level y", level, 0, NUM_LEVELS - 1),
            "shift": linear_slider("Shift a", shift, *SHIFT_RANGE, step=0.1),
            "scale": log_slider("Scale b", scale, *SCALE_RANGE),
            "num_samples": choice_slider("Samples K", num_samples, COUNTS),
            "best": choice_buttons("Best a and b", best, SHOWING),
        },
        compute=compute, build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS,
        figsize=(9.6, 4.3),
    ).show()
