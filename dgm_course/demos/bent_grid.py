"""A grid of lines in the plane, bent by a map and coloured by its log-determinant: what flow demos share."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from numpy.typing import NDArray
from torch import Tensor

from dgm_course import plots

#: log|det J|: pressed together (below 0), left alone, and pulled apart (above 0)
COLOURS = LinearSegmentedColormap.from_list("log_det", [plots.BLUE, plots.INK, plots.ORANGE])
MARKED = plots.PINK


def square_lines(half_width: float, num_lines: int, num_points: int) -> Tensor:
    """``num_lines`` parallels to each axis over ``[-half_width, half_width]``: ``(2 num_lines, N, 2)``."""
    at = torch.linspace(-half_width, half_width, num_lines, dtype=torch.float64)
    along = torch.linspace(-half_width, half_width, num_points, dtype=torch.float64)
    upright = torch.stack(torch.meshgrid(at, along, indexing="ij"), -1)  # (L, N, 2)
    return torch.cat([upright, upright.flip(-1)])


def polar_lines(radius: float, num_circles: int, num_rays: int, num_points: int) -> Tensor:
    """Concentric circles, the last of this radius, and rays from the centre: ``(circles + rays, N, 2)``."""
    kind = {"dtype": torch.float64}
    radii = torch.linspace(0.0, radius, num_circles + 1, **kind)[1:]
    turn = torch.linspace(0.0, 2 * math.pi, num_points, **kind)
    circles = radii[:, None, None] * torch.stack([turn.cos(), turn.sin()], -1)
    angles = 2 * math.pi / num_rays * torch.arange(num_rays, **kind)
    reach = torch.linspace(0.0, radius, num_points, **kind)
    rays = reach[:, None] * torch.stack([angles.cos(), angles.sin()], -1)[:, None]
    return torch.cat([circles, rays])


def colour_bar(ax: Axes, limit: float) -> None:
    """Draw the colours of log|det J| from ``-limit`` to ``limit`` under a panel."""
    scale = ScalarMappable(Normalize(-limit, limit), COLOURS)
    bar = ax.figure.colorbar(scale, ax=ax, label="log|det J| (nats)", location="bottom", extend="both",
                             shrink=0.9, aspect=26, pad=0.03)  # fmt: skip
    bar.outline.set_visible(False)


def empty_grid(ax: Axes) -> LineCollection:
    """A place for bent lines."""
    return ax.add_collection(LineCollection([], linewidths=1.4, capstyle="round"), autolim=False)


def bend(
    grid: LineCollection,
    lines: NDArray[np.floating],
    log_det: NDArray[np.floating],
    *,
    limit: float,
    marked: NDArray[np.bool_] | None = None,
) -> None:
    """Put the lines ``(L, N, 2)`` here, coloured by ``log_det (L, N)``, those ``marked (L, N)`` on top.

    A piece between two points has the colour of the mean of their log-determinants, cut off at
    ``-limit`` and ``limit``; it is marked if both its ends are.
    """
    pieces = np.stack([lines[:, :-1], lines[:, 1:]], axis=2).reshape(-1, 2, 2)
    ends = np.clip(log_det, -limit, limit)
    colours = COLOURS(Normalize(-limit, limit)(0.5 * (ends[:, :-1] + ends[:, 1:]).ravel()))
    if marked is not None:
        on_top = (marked[:, :-1] & marked[:, 1:]).ravel()
        colours[on_top] = to_rgba(MARKED)
        order = np.argsort(on_top, kind="stable")
        pieces, colours = pieces[order], colours[order]
    grid.set_segments(pieces)
    grid.set_colors(colours)
