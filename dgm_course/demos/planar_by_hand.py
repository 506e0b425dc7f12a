"""A planar flow by hand, live and exact: what ``x = z + u tanh(w.z + b)`` does until it is no bijection.

In the plane, with u parallel to w, so that all happens along w. The map is a bijection iff ``w.u >= -1``;
beyond it folds, and the density of x is a sum over up to three preimages. Ledger F4; Rezende & Mohamed 2015.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from torch import Tensor

from dgm_course import plots
from dgm_course.demos import bent_grid
from dgm_course.demos.engine import Artists, LiveDemo, linear_slider
from dgm_course.demos.planar_fold import distribution, fold_at, fold_masses, mean_log_det
from dgm_course.flows import planar

ANGLES = (0.0, 180.0)  # of w, degrees
STEEPNESSES = (0.5, 4.0)  # |w|
PUSHES = (-2.0, 4.0)  # w.u, in steps of 0.1: -1 is one of them
SHIFTS = (-3.0, 3.0)  # b
NUM_CELLS = 120
_VIEW = 4.0  # of x, to each side
_CELL, _FINE = 2 * _VIEW / NUM_CELLS, 8  # width, and places along w in a cell
_ALONG = 6.0  # of w.z in the profile
_LIMIT = math.log(5.0)  # of log|det J|: the largest determinant of the sliders
_BRIGHTEST = 0.5  # density


class Bend(NamedTuple):
    """The map at one setting of the controls; t is ``w.z + b``."""

    w: Tensor  # (2,)
    u: Tensor  # (2,)
    push: float  # w.u
    shift: float  # b
    fold: float  # the determinant is negative where |t| is below; 0 for a bijection
    lines: Tensor  # (L, P, 2) the bent grid
    log_det: Tensor  # (L, P)
    negative: Tensor  # (L, P) whether the determinant is
    density: Tensor  # (N, N) of x at the cells, rows along x_2
    one_preimage: float  # integral over x of p_0(z) / |det J| at the preimage farthest along w
    mean_log_det: float  # E log|det J|, nats
    mass_negative: float  # probability that z lies where the determinant is negative


@cache
def ground() -> tuple[Tensor, Tensor, Tensor]:
    """What no control changes: the lines of the grid of z ``(L, P, 2)``, the cells' centres ``(N, N, 2)``,
    and distances along w ``(R,)``, eight to a cell, that reach over the picture's corners.
    """
    at = _CELL * (torch.arange(NUM_CELLS, dtype=torch.float64) + 0.5) - _VIEW
    reach = math.ceil((math.sqrt(2.0) * _VIEW / _CELL + 1) * _FINE)
    distances = _CELL / _FINE * torch.arange(-reach, reach + 1, dtype=torch.float64)
    cells = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)
    return bent_grid.square_lines(3.0, 21, 73), cells, distances


def density(u: Tensor, w: Tensor, push: float, shift: float) -> Tensor:
    """The density of x at the cells ``(N, N)``, averaged over a cell's width along w.

    All preimages count. The average is exact, a difference of the distribution function, and finite where
    the density is not: where the determinant is 0.
    """
    _, x, distance = ground()
    below = distribution(distance, u, w, push, shift)  # (R,)
    mean = (below[_FINE:] - below[:-_FINE]) / _CELL  # (R - _FINE,) around distance[_FINE / 2], ...
    along = w / w.norm()
    index = torch.round(((x * along).sum(-1) - distance[_FINE // 2]) * (_FINE / _CELL)).long()
    across = x[..., 1] * along[0] - x[..., 0] * along[1]
    return mean[index] * torch.exp(-0.5 * across.square()) / math.sqrt(2.0 * math.pi)


def compute(angle: float, steepness: float, push: float, shift: float) -> Bend:
    """Bend the grid and find the density, for ``w`` at this angle (degrees) with ``|w| = steepness``.

    ``u = push w / |w|^2``, so that ``w.u = push``. Ledger F4.
    """
    push = round(push, 9)  # a page's -1 may be off by a rounding error, which would be a fold
    turn = math.radians(angle)
    along = torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    w, u = steepness * along, push / steepness * along
    z, _, _ = ground()
    lines, log_det = planar(z, u, w, shift)
    fold = fold_at(push)
    one, negative = fold_masses(steepness, push, shift)
    return Bend(
        w, u, push, shift, fold, lines, log_det,
        negative=((w * z).sum(-1) + shift).abs() < fold,
        density=density(u, w, push, shift),
        one_preimage=one,
        mean_log_det=mean_log_det(steepness, push, shift),
        mass_negative=negative,
    )


def build(figure: Figure, bend: Bend) -> Artists:
    """Draw the bent grid, the profile along w, and the density of x; return what moves."""
    panels = figure.subplot_mosaic([["grid", "profile", "density"]], width_ratios=[1.0, 1.0, 1.0])
    ticks = [-4, -2, 0, 2, 4]
    for name in ("grid", "density"):
        panels[name].set(xlim=(-_VIEW, _VIEW), ylim=(-_VIEW, _VIEW), aspect="equal", xlabel="x₁")
        panels[name].set(xticks=ticks, yticks=ticks)
    panels["grid"].set(title="Grid of z, bent", ylabel="x₂")
    grid = bent_grid.empty_grid(panels["grid"])
    bent_grid.colour_bar(panels["grid"], _LIMIT)
    shade = {"closed": True, "color": bent_grid.MARKED, "linewidth": 0}
    strip = panels["grid"].add_patch(Polygon([[0, 0]], alpha=0.18, zorder=0.5, **shade))

    ax = panels["profile"]
    ax.axline((0, 0), slope=1, color=plots.INK, linestyle=(0, (4, 2)), linewidth=1.6)
    mass = ax.add_patch(Polygon([[0, 0]], closed=True, color=plots.INK, alpha=0.28, linewidth=0))
    lost = ax.add_patch(Polygon([[0, 0]], alpha=0.6, **shade))
    (profile,) = ax.plot([], [], color=plots.BLUE)
    (falling,) = ax.plot([], [], color=bent_grid.MARKED, linewidth=4.0)
    share = ax.text(0.03, 0.97, "", color=bent_grid.MARKED, weight="bold", transform=ax.transAxes, va="top")
    (at_bend,) = ax.plot([], [], "o", color=plots.BLUE, markersize=8)
    ax.set(title="Profile along w", xlabel="a = w·z", ylabel="a + (w·u) tanh(a + b)")
    ax.set(xlim=(-_ALONG, _ALONG), ylim=(-_ALONG, _ALONG), aspect="equal", xticks=ticks, yticks=ticks)

    ax = panels["density"]
    norm = PowerNorm(0.5, 0.0, _BRIGHTEST)
    image = ax.imshow(bend.density.numpy(), origin="lower", extent=(-_VIEW, _VIEW, -_VIEW, _VIEW), norm=norm,
                      interpolation="bilinear")  # fmt: skip
    title = ax.set_title(_density_title(bend))
    bar = figure.colorbar(ScalarMappable(norm), ax=ax, label="density", location="bottom", extend="max",
                          ticks=[0.0, 0.05, 0.2, 0.5], shrink=0.9, aspect=26, pad=0.03)  # fmt: skip
    bar.outline.set_visible(False)
    ax.grid(False)
    for ax in panels.values():
        ax.set_anchor("N")
    return {
        "grid": grid, "strip": strip, "profile": profile, "falling": falling, "at_bend": at_bend,
        "mass": mass, "lost": lost, "share": share, "image": image, "title": title,
    }


def _density_title(bend: Bend) -> str:
    return "Density of x: all preimages" if bend.fold else "Density of x"


def draw(artists: Artists, bend: Bend) -> None:
    """Bend the grid, shade where x has three preimages, and redraw profile and density."""
    arrays = bend.lines.numpy(), bend.log_det.numpy()
    bent_grid.bend(artists["grid"], *arrays, limit=_LIMIT, marked=bend.negative.numpy())
    artists["strip"].set_xy(_strip(bend))
    a = np.linspace(-_ALONG, _ALONG, 241)
    artists["profile"].set_data(a, _profile(a, bend))
    inside = np.linspace(-bend.fold, bend.fold, 61) - bend.shift
    artists["falling"].set_data(inside, _profile(inside, bend))
    artists["falling"].set_visible(bend.fold > 0)
    artists["at_bend"].set_data([-bend.shift], [_profile(-bend.shift, bend)])
    for name, at in (("mass", a), ("lost", inside)):
        height = 2.5 * np.exp(-0.5 * (at / float(bend.w.norm())) ** 2)
        outline = [*zip(at, height - _ALONG, strict=True), (at[-1], -_ALONG), (at[0], -_ALONG)]
        artists[name].set_xy(outline)
    artists["share"].set_text(f"det J < 0: {bend.mass_negative:.0%} of z" if bend.fold else "")
    artists["image"].set_data(bend.density.numpy())
    artists["title"].set_text(_density_title(bend))


def _profile(a: np.ndarray | float, bend: Bend) -> np.ndarray | float:
    return a + bend.push * np.tanh(a + bend.shift)


def _strip(bend: Bend) -> np.ndarray:
    """Corners of the strip of x with three preimages; empty for a bijection."""
    if not bend.fold:
        return np.zeros((1, 2))
    steepness = float(bend.w.norm())
    along = bend.w.numpy() / steepness
    across = 2 * _VIEW * np.array([-along[1], along[0]])
    low, high = (
        (sign * (bend.fold + bend.push * math.tanh(bend.fold)) - bend.shift) / steepness * along
        for sign in (1, -1)
    )
    return np.stack([low - across, low + across, high + across, high - across])


def numbers(bend: Bend) -> dict[str, str]:
    """What is printed beside the picture."""
    verdict = "no: it folds" if bend.fold else "at the edge" if bend.push == -1.0 else "yes"
    u1, u2 = (_signed(part) for part in bend.u.tolist())
    return {
        "w·u": _signed(bend.push, 1),
        "u": f"({u1}, {u2})",
        "smallest det J": _signed(min(1.0, 1.0 + bend.push), 1),
        "bijection": verdict,
        "∫ p₀(z)/|det J| dx, one preimage": f"{bend.one_preimage:.3f}",
        "E log|det J|": f"{_signed(bend.mean_log_det, 3)} nats",
    }


def _signed(value: float, digits: int = 2) -> str:
    """With a true minus, and none before zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def describe(bend: Bend) -> str:
    """The picture in words."""
    said = numbers(bend)
    if bend.fold:
        rest = (
            f"It folds: in a strip every x has three preimages, {bend.mass_negative:.0%} of z lie where "
            "the determinant is negative, and the formula at one preimage integrates to "
            f"{bend.one_preimage:.3f} instead of 1."
        )
    else:
        edge = bend.push == -1.0
        rest = "It is a bijection" + (", just so: the determinant is 0 on a line." if edge else ".")
    return f"With w·u = {said['w·u']} the smallest determinant is {said['smallest det J']}. {rest}"


TRY_THIS = (
    "**Try:** lower w·u with the left arrow; the slope of the profile is det J. At −1 exactly the smallest "
    "determinant is 0, on one line only, and the map is still a bijection. One step further it folds "
    "(pink): three z share one x, and p₀(z)/|det J| at one preimage, the farthest along w, integrates over "
    "x to 0.751; at w·u = −2 to 0.326. The density that is shown adds up all preimages: it always "
    "integrates to 1. Do the other sliders move the edge? Then go to w·u = 4: one hump becomes two, and the "
    "entropy grows by E log|det J| = 0.905 nats."
)


def show(
    *, angle: float = 30.0, steepness: float = 1.5, push: float = 2.0, shift: float = 0.0
) -> LiveDemo:
    """Show the demo, from these values of its controls on."""
    return LiveDemo(
        name="planar_by_hand",
        controls={
            "angle": linear_slider("Direction of w (°)", angle, *ANGLES, step=5.0),
            "steepness": linear_slider("Steepness |w|", steepness, *STEEPNESSES, step=0.25),
            "push": linear_slider("Push w·u", push, *PUSHES, step=0.1),
            "shift": linear_slider("Shift b", shift, *SHIFTS, step=0.25),
        },
        compute=compute, build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS,
        figsize=(9.6, 4.0),
    ).show()
