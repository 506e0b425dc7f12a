"""The look of the course: one style, drawing functions that take an ``ax`` and return it, one way to show.

A lecture's figure cell reads::

    fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
    plots.curve(axes[0], r, kl, error=kl_error, label="KL")
    axes[0].set(title="KL against receptive field", xlabel="receptive field r (pixels)", ylabel="KL (nats)")
    plots.show(fig, alt="KL falls from 0.84 nats at r = 0 to 0.01 at r = 7.")

Values may be tensors, arrays or lists. Nothing here changes matplotlib's settings at import, reads a model or
calls pyplot's ``show``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike, NDArray

from dgm_course.pictures import notebook_shell, publish

#: The one grey for text, axes and reference lines: contrast 4.4 on white and 4.3 on the dark theme's #111.
INK = "#75797f"
#: Five colours that colour-blind readers can tell apart, each at contrast 3 or more on both grounds.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A6FF0")
BLUE, ORANGE, GREEN, PINK, VIOLET = PALETTE

Values = torch.Tensor | ArrayLike


def use_style() -> None:
    """Apply the course's style sheet and, in a notebook, show figures as plain transparent PNG.

    IPython's own figure output marks a transparent figure as needing a light ground, which puts a white plate
    behind it in the dark theme; here a figure is published without that mark, however a cell shows it.
    """
    matplotlib.style.use(Path(__file__).with_name("dgm.mplstyle"))
    shell = notebook_shell()
    if shell is not None:
        shell.display_formatter.ipython_display_formatter.for_type(Figure, publish)


def show(fig: Figure, alt: str) -> None:
    """Show a finished figure under the cell, with the text that stands for it where it cannot be seen.

    ``alt`` says in a sentence or two what the figure shows, with its numbers: it is the picture's alternative
    text on a web page and its plain-text form. The figure is closed, so that a cell shows it once. Outside
    a notebook there is nowhere to show it and it is only closed. Raises ``ValueError`` on an empty ``alt``.
    """
    if not alt.strip():
        raise ValueError("a figure needs alternative text, got none: show(fig, alt='what a reader sees')")
    publish(fig, alt)
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(fig)


def curve(
    ax: Axes,
    x: Values,
    y: Values,
    *,
    error: Values | None = None,
    low: Values | None = None,
    high: Values | None = None,
    **line: Any,  # noqa: ANN401
) -> Axes:
    """Draw ``y (n,)`` against ``x (n,)`` with a band ``y ± error``, or from ``low`` to ``high``.

    ``line`` goes to ``ax.plot`` (``label``, ``color``, ``marker``, ``linestyle``, ...).
    """
    x, y = _array(x), _array(y)
    (drawn,) = ax.plot(x, y, **line)
    if error is not None:
        low, high = y - _array(error), y + _array(error)
    if low is not None and high is not None:
        ax.fill_between(x, _array(low), _array(high), color=drawn.get_color(), alpha=0.2, linewidth=0)
    return ax


def bars(
    ax: Axes,
    values: Values,
    *,
    groups: Sequence[str],
    series: Sequence[str] | None = None,
    error: Values | None = None,
    colors: Sequence[str] = PALETTE,
) -> Axes:
    """Draw grouped bars of ``values (groups,)`` or ``(series, groups)`` with error bars of the same shape.

    Raises ``ValueError`` when ``values`` has not one column per group and one row per series.
    """
    heights = np.atleast_2d(_array(values))
    rows = len(series) if series is not None else 1
    if heights.shape != (rows, len(groups)):
        raise ValueError(
            f"bars need values of shape (series, groups) = ({rows}, {len(groups)}), got {heights.shape}: "
            "transpose them, or name every group and series"
        )
    errors = np.broadcast_to(_array(error), heights.shape) if error is not None else [None] * rows
    at, width = np.arange(len(groups)), 0.8 / rows
    for k in range(rows):
        offset = (k - (rows - 1) / 2) * width
        label = series[k] if series is not None else None
        ax.bar(
            at + offset, heights[k], 0.92 * width, yerr=errors[k], label=label,
            color=colors[k % len(colors)], error_kw={"ecolor": INK, "elinewidth": 1.6},
        )
    ax.set_xticks(at, groups)
    ax.grid(False, axis="x")
    return ax


def points(ax: Axes, xy: Values, *, size: float = 18.0, **scatter: Any) -> Axes:  # noqa: ANN401
    """Draw points ``xy (n, 2)``; ``scatter`` goes to ``ax.scatter`` (``color``, ``c``, ``label``, ...)."""
    xy = _array(xy)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"points are rows (x, y), shape (n, 2), got {xy.shape}: select or stack two columns")
    ax.scatter(xy[:, 0], xy[:, 1], s=size, **{"alpha": 0.8, "linewidths": 0, **scatter})
    return ax


def covariance_ellipse(
    ax: Axes,
    mean: Values,
    covariance: Values,
    *,
    num_std: float = 2.0,
    color: str = INK,
    label: str | None = None,
) -> Axes:
    r"""Draw the ellipse ``(x - mean)^T covariance^{-1} (x - mean) = num_std^2`` and its centre.

    ``mean (2,)``, ``covariance (2, 2)``. With ``num_std`` 2 a Gaussian has 86 % of its mass inside.
    """
    mean, covariance = _array(mean), _array(covariance)
    if mean.shape != (2,) or covariance.shape != (2, 2):
        raise ValueError(
            f"an ellipse needs mean (2,) and covariance (2, 2), got {mean.shape} and {covariance.shape}: "
            "draw one component, projected to two dimensions"
        )
    values, vectors = np.linalg.eigh(covariance)
    if values[0] <= 0:
        raise ValueError(f"a covariance has positive eigenvalues, got {values}: it is singular or not one")
    width, height = 2 * num_std * np.sqrt(values)
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    outline = {"edgecolor": color, "facecolor": (color, 0.12), "linewidth": 2.2, "label": label}
    ax.add_patch(Ellipse((mean[0], mean[1]), width, height, angle=angle, **outline))
    ax.plot(mean[0], mean[1], marker="+", color=color, markersize=9, markeredgewidth=2.2)
    return ax


def reference_line(
    ax: Axes,
    label: str = "",
    *,
    x: float | None = None,
    y: float | None = None,
    color: str = INK,
    at_start: bool = False,
) -> Axes:
    """Draw a dashed line across the panel at ``x`` (vertical) or ``y`` (horizontal) with its name.

    The name stands at the line's right or upper end, ``at_start`` at the other one.
    """
    if (x is None) == (y is None):
        raise ValueError(f"a reference line stands at one x or one y, got x={x} and y={y}: give exactly one")
    style: dict[str, Any] = {"color": color, "linestyle": (0, (4, 2)), "linewidth": 1.6, "zorder": 1.9}
    end, inward = (0, 1) if at_start else (1, -1)
    if y is not None:
        ax.axhline(float(y), **style)
        place = {"xy": (end, float(y)), "xycoords": ("axes fraction", "data"), "xytext": (3 * inward, 3)}
        align = {"ha": "left" if at_start else "right", "va": "bottom"}
    else:
        ax.axvline(float(x), **style)
        place = {"xy": (float(x), end), "xycoords": ("data", "axes fraction"), "xytext": (4, 3 * inward)}
        align = {"ha": "left", "va": "bottom" if at_start else "top"}
    ax.annotate(label, **place, textcoords="offset points", color=color, **align)
    return ax


def heat_map(
    ax: Axes,
    x: Values,
    y: Values,
    values: Values,
    *,
    label: str,
    levels: Sequence[int] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
) -> Axes:
    """Draw ``values (len(y), len(x))`` as cells centred on ``x``, ``y``; the colour bar is named ``label``.

    Set log scales first (``log_axes``): cell edges are then geometric means. ``levels`` names the whole
    numbers that a count takes and gives each its own colour.
    """
    x, y, values = _array(x), _array(y), _array(values)
    if values.shape != (len(y), len(x)):
        raise ValueError(
            f"a heat map needs values of shape (len(y), len(x)) = ({len(y)}, {len(x)}), got {values.shape}: "
            "transpose them"
        )
    norm: Normalize = Normalize(vmin, vmax)
    colours = colormaps[cmap]
    if levels is not None:
        bounds = np.append(np.asarray(levels) - 0.5, levels[-1] + 0.5)
        colours = ListedColormap(colours(np.linspace(0.05, 0.95, len(levels))))
        norm = BoundaryNorm(bounds, len(levels))
    edges = _edges(x, ax.get_xscale()), _edges(y, ax.get_yscale())
    mesh = ax.pcolormesh(*edges, values, cmap=colours, norm=norm)
    bar = ax.figure.colorbar(mesh, ax=ax, label=label, ticks=levels)
    bar.outline.set_visible(False)
    ax.grid(False)
    return ax


def image_grid(
    ax: Axes,
    images: Values,
    *,
    columns: int | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "gray",
) -> Axes:
    """Draw ``images (n, height, width)`` as one picture of ``columns`` columns with clear gaps, no axes.

    Colour images are ``(n, height, width, 3)``; ``vmin`` and ``vmax`` are their darkest and brightest level.
    """
    images = _array(images).astype(float)
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise ValueError(
            f"images have shape (n, height, width), in colour (n, height, width, 3), got {images.shape}: "
            "reshape rows to squares, move colours last"
        )
    n, height, width = images.shape[:3]
    columns = columns if columns is not None else int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    low = images.min() if vmin is None else vmin
    high = images.max() if vmax is None else vmax
    shape = (rows * (height + 1) - 1, columns * (width + 1) - 1, *images.shape[3:])
    sheet = np.full(shape, np.nan)  # a gap of one pixel: clear
    for k in range(n):
        top, left = (k // columns) * (height + 1), (k % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = images[k]
    if images.ndim == 4:
        colours = np.clip((sheet - low) / (high - low), 0, 1)
        ax.imshow(np.nan_to_num(np.dstack([colours, np.isfinite(colours[..., 0])])))
    else:
        ax.imshow(np.ma.masked_invalid(sheet), cmap=cmap, vmin=low, vmax=high)
    ax.set_axis_off()
    return ax


def mask_cells(ax: Axes, mask: Values, *, color: str = BLUE) -> Axes:
    """Draw a 0/1 matrix ``(rows, columns)`` as cells, filled where it is 1, row 0 at the top."""
    mask = _array(mask).astype(bool)
    rows, columns = mask.shape
    cells = [Rectangle((j - 0.45, i - 0.45), 0.9, 0.9) for i in range(rows) for j in range(columns)]
    ax.add_collection(PatchCollection(cells, facecolors=mask_colours(mask, color=color), linewidths=0))
    ax.set(xlim=(-0.6, columns - 0.4), ylim=(rows - 0.4, -0.6), aspect="equal")
    ax.set(xticks=range(columns), yticks=range(rows))
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def mask_colours(mask: Values, *, color: str = BLUE) -> list[tuple[str, float]]:
    """The fill of each of :func:`mask_cells`'s cells, row by row."""
    return [(color, 1.0) if filled else (INK, 0.16) for filled in _array(mask).ravel()]


def log_axes(ax: Axes, which: str = "xy") -> Axes:
    """Make the ``"x"``, ``"y"`` or both axes logarithmic, with ticks written 0.1, 1, 10 (no small powers)."""
    for name in which:
        getattr(ax, f"set_{name}scale")("log")
        axis = ax.xaxis if name == "x" else ax.yaxis
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    return ax


def _array(values: Values | None) -> NDArray[Any]:
    """Tensors (on any device, with or without gradient), arrays and lists as arrays."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _edges(centres: NDArray[Any], scale: str) -> NDArray[Any]:
    """Cell edges half-way between ``centres (n,)``, in the logarithm on a log axis: ``(n + 1,)``."""
    at = np.log(centres) if scale == "log" else centres
    middle = (at[1:] + at[:-1]) / 2
    edges = np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])
    return np.exp(edges) if scale == "log" else edges
