"""One discretized logistic, live: the mass of each bin, and the rule that opens the outermost two.

Level y gets the mass of the logistic between ``y - 1/2`` and ``y + 1/2``. With the edge rule the bins of the
first and of the last level reach to infinity and the probabilities sum to 1; without it the tails are lost.
Ledger D2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from numpy.typing import NDArray
from torch import Tensor

from dgm_course import plots
from dgm_course.demos.engine import Artists, LiveDemo, choice_buttons, linear_slider, log_slider
from dgm_course.logistic_mixture import discretized_logistic_log_prob, logistic_log_prob

Array = NDArray[np.float64]

RULES = ("on", "off")
LEVELS = (5, 9, 17)
MEANS = (-6.0, 22.0)  # levels, in steps of 0.25
SCALES = (0.1, 10**0.6)  # levels
INSIDE, OPEN, LOST = plots.BLUE, plots.ORANGE, plots.PINK
_VIEW = (-8.0, 24.0)  # of x, levels
_TOPS = (0.1, 0.2, 0.5, 1.0)  # the axis of P(y) ends at the first that holds all bars
_PER_LEVEL = 20  # points of the density's curve: bin edges are among them


class Bins(NamedTuple):
    """The mass of every bin at one setting of the controls."""

    mean: float  # levels
    scale: float  # levels
    num_levels: int  # L
    rule: bool  # whether the outermost bins are open
    probs: Tensor  # (L,) P(y)
    left: float  # mass below -1/2
    right: float  # mass above L - 1/2
    density: Tensor  # (X,) at the places of :func:`places`, per level


def places() -> Tensor:
    """Where the density is drawn: ``(X,)``, levels."""
    count = round(_PER_LEVEL * (_VIEW[1] - _VIEW[0])) + 1
    return torch.linspace(*_VIEW, count, dtype=torch.float64)


def compute(mean: float, scale: float, num_levels: int | str, rule: str) -> Bins:
    """``P(y)`` of every level and the mass to the left and to the right of all levels. Ledger D2.

    A discretized logistic with one more level at either end has closed bins at all levels of this one; its
    own outermost bins are this one's tails. Raises ``ValueError`` for what the buttons do not offer.
    """
    num_levels = int(num_levels)
    if rule not in RULES or num_levels not in LEVELS:
        raise ValueError(
            f"the edge rule is one of {RULES} and the number of levels one of {LEVELS}, got {rule!r} and "
            f"{num_levels}: pick from these"
        )
    where, log_scale = torch.tensor([mean, math.log(scale)], dtype=torch.float64)
    y = torch.arange(num_levels + 2)
    wider = discretized_logistic_log_prob(y, where + 1.0, log_scale, num_levels=num_levels + 2).exp()
    ruled = discretized_logistic_log_prob(y[:-2], where, log_scale, num_levels=num_levels).exp()
    return Bins(
        mean, scale, num_levels, rule == "on",
        probs=ruled if rule == "on" else wider[1:-1],
        left=float(wider[0]),
        right=float(wider[-1]),
        density=logistic_log_prob(places(), where, log_scale).exp(),
    )


def build(figure: Figure, bins: Bins) -> Artists:
    """Draw the density over its bins, and the bars of P(y) below on the same axis; return what moves."""
    panels = figure.subplot_mosaic([["density"], ["probability"]], height_ratios=[1.0, 1.1])
    ax = panels["density"]
    ax.set(xlim=_VIEW, ylim=(0, 1.5), xticks=range(0, 17, 4), yticks=[], ylabel="density")
    ax.set_title("A logistic density, cut into bins")
    ax.grid(False)
    ax.tick_params(labelbottom=False)
    areas = [ax.add_patch(Polygon([[0, 0]], closed=True, linewidth=0, alpha=0.5)) for _ in range(3)]
    (edges,) = ax.plot([], [], color=plots.INK, linewidth=1.0, alpha=0.6)
    (curve,) = ax.plot(places().numpy(), bins.density.numpy(), color=plots.INK)
    high = {"transform": ax.transAxes, "va": "top", "weight": "bold"}
    tails = [ax.text(0.005, 0.97, "", ha="left", **high), ax.text(0.995, 0.97, "", ha="right", **high)]

    ax = panels["probability"]
    ax.set(xlim=_VIEW, ylim=(0, 1.08), xlabel="level y")
    ax.set_ylabel("P(y)", labelpad=8)
    ax.set_xticks(range(0, 17, 4))
    ax.set_yticks([0.0, 0.5, 1.0], ["0.05"] * 3, color="none")  # they hold the place of labels that change
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    ticks = [ax.annotate("", (0, at), (-4, 0), va="center", **beside) for at in (0.0, 0.5, 1.0)]
    bars = ax.bar(range(LEVELS[-1]), 0.0, 0.86, linewidth=0).patches
    hollow = {"facecolor": "none", "edgecolor": LOST, "hatch": "////", "linewidth": 1.3}
    lost = ax.bar([0, 1], 0.0, 0.86, **hollow).patches
    ax.set_title("Mass of each bin")
    figure.align_ylabels(list(panels.values()))
    total = ax.text(1.0, 1.03, "", transform=ax.transAxes, ha="right", va="bottom", size=19, weight="bold")
    return {"areas": areas, "edges": edges, "curve": curve, "tails": tails, "ticks": ticks, "bars": bars,
            "lost": lost, "total": total}  # fmt: skip


def draw(artists: Artists, bins: Bins) -> None:
    """Move the curve and the bins, colour their areas and bars by what becomes of them, and write the sum."""
    levels = bins.num_levels
    x, height = places().numpy(), (bins.density / bins.density.max()).numpy()
    artists["curve"].set_ydata(height)
    at = np.arange(levels + 1) - 0.5
    if bins.rule:
        at = at[1:-1]
    ones = np.ones(len(at))
    lines = np.stack([at, at, np.nan * at], 1), np.stack([0.0 * ones, 1.12 * ones, ones], 1)
    artists["edges"].set_data(lines[0].ravel(), lines[1].ravel())
    low, high = at[0], at[-1]  # between the open, or lost, parts
    spans, outer = ((_VIEW[0], low), (low, high), (high, _VIEW[1])), OPEN if bins.rule else LOST
    for area, span, colour in zip(artists["areas"], spans, (outer, INSIDE, outer), strict=True):
        area.set_xy(_under(x, height, *span))
        area.set_facecolor(colour)

    top = _top(bins)
    for tick, fraction in zip(artists["ticks"], (0.0, 0.5, 1.0), strict=True):
        tick.set_text(f"{fraction * top:g}")
    shown = bins.probs.tolist() + [0.0] * (LEVELS[-1] - levels)
    for y, (bar, value) in enumerate(zip(artists["bars"], shown, strict=True)):
        bar.set_height(value / top)
        bar.set_facecolor(OPEN if bins.rule and y in (0, levels - 1) else INSIDE)
    for bar, place, value in zip(artists["lost"], (-1, levels), (bins.left, bins.right), strict=True):
        bar.set_x(place - 0.43)
        bar.set_height(value / top)
        bar.set_visible(not bins.rule and value > 0.005 * top)  # an empty bar would still have its outline
    for text, value, level in zip(artists["tails"], (bins.left, bins.right), (0, levels - 1), strict=True):
        said = f"tail {_mass(value)}"
        text.set_text(f"{said} counts for y = {level}" if bins.rule else f"{said} is lost")
        text.set_color(outer)
    total = float(bins.probs.sum())
    artists["total"].set_text(f"Σ P(y) = {total:.6f}")
    artists["total"].set_color(LOST if f"{total:.6f}" < "1" else plots.INK)


def _under(x: Array, height: Array, low: float, high: float) -> Array:
    """Outline of the area under the curve from ``low`` to ``high``."""
    inside = (x > low - 1e-9) & (x < high + 1e-9)
    return np.concatenate([[[low, 0.0]], np.stack([x[inside], height[inside]], 1), [[high, 0.0]]])


def _top(bins: Bins) -> float:
    highest = max(float(bins.probs.max()), 0.0 if bins.rule else max(bins.left, bins.right))
    return next((top for top in _TOPS if top >= highest), _TOPS[-1])


def _mass(value: float) -> str:
    return f"{value:.4f}" if value >= 5e-5 else "< 0.0001"


def numbers(bins: Bins) -> dict[str, str]:
    """What is printed beside the picture."""
    outside = "counted" if bins.rule else "lost"
    first, last = float(bins.probs[0]), float(bins.probs[-1])
    return {
        "Σ P(y)": f"{float(bins.probs.sum()):.6f}",
        f"left tail, {outside}": f"{bins.left:.3g}",
        f"right tail, {outside}": f"{bins.right:.3g}",
        "P(0)": f"{first:.4g}",
        f"P({bins.num_levels - 1})": f"{last:.4g}",
    }


def describe(bins: Bins) -> str:
    """The picture in words."""
    last = bins.num_levels - 1
    if bins.rule:
        rest = (
            f"The outer bins are open: the left tail of {_mass(bins.left)} counts for y = 0, the right one "
            f"of {_mass(bins.right)} for y = {last}"
        )
    else:
        lost = _mass(bins.left), _mass(bins.right)
        rest = f"All bins are closed: {lost[0]} is lost on the left, {lost[1]} on the right"
    mean = f"{bins.mean:.3g}".replace("-", "−")
    return (
        f"A logistic density with mean {mean} and scale {bins.scale:.3g} over the levels 0 to {last}, cut "
        f"into bins one level wide, and the mass of each bin as a bar P(y). {rest}. The probabilities sum to "
        f"{float(bins.probs.sum()):.6f}."
    )


TRY_THIS = (
    "**Try:** put the mean in the middle: the rule hardly matters. Now think of a pixel that is always "
    "black, y = 0. Switch the rule on and move the mean to −3: P(0) is 0.971, and further left it goes to 1. "
    "Switch it off there: 0.924 of the mass is given to levels that do not exist, and P(0) is 0.047. Where "
    "is P(0) largest without the rule? Only a scale near 0 would bring it to 1. Do the same at the white "
    "end, with the mean beyond the last level."
)


def show(
    *, mean: float = -1.0, scale: float = 1.0, num_levels: int = 17, rule: str = "off"
) -> LiveDemo:
    """Show the demo, from these values of its controls on; ``rule`` is "on" or "off"."""
    return LiveDemo(
        name="discretized_logistic",
        controls={
            "mean": linear_slider("Mean (levels)", mean, *MEANS, step=0.25),
            "scale": log_slider("Scale s (levels)", scale, *SCALES),
            "num_levels": choice_buttons("Levels", str(num_levels), [str(one) for one in LEVELS]),
            "rule": choice_buttons("Edge rule", rule, RULES),
        },
        compute=compute, build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS,
        figsize=(9.6, 4.3),
    ).show()
