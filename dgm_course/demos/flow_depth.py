"""A trained flow layer by layer, live and exact: how each layer bends the plane and what it makes of p_0.

For every number k of layers, from none to all, the demo holds a polar grid of z pushed through the first k,
the exact density of x = g_k(... g_1(z)), and its divergence from the target by quadrature. Ledger F1, F2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dgm_course import plots
from dgm_course.data import Density
from dgm_course.demos import bent_grid
from dgm_course.demos.engine import Artists, LiveDemo, int_slider
from dgm_course.divergences import kl_divergence
from dgm_course.flows import Compose, FixedAffine, Flow, Transform

#: cells of the quadrature and of the heat map, along each axis
NUM_CELLS = 128
#: shares of the target's mass inside its contours
SHARES = (0.9, 0.5)
RADIUS = 2.5  # of the grid of z: 96 % of a standard normal lie inside
_CHUNK = 1 << 16  # points that pass through the flow at once


class Table(NamedTuple):
    """The first k layers for k = 0, ..., K; the picture's square has ``NUM_CELLS = N`` cells a side."""

    axes: tuple[Tensor, Tensor]  # centres of the cells along x_1 and x_2: (N,) each
    lines: Tensor  # (K + 1, L, P, 2) the bent grid
    log_det: Tensor  # (K + 1, L, P) log|det J| of the first k layers there, nats
    density: Tensor  # (K + 1, N, N) p_k at the cells' centres, rows along x_2
    target: Tensor  # (N, N)
    kl: Tensor  # (K + 1,) KL(target || p_k), nats
    mass: Tensor  # (K + 1,) of p_k in the square
    limit: float  # of the colours of log|det J|

    @property
    def num_layers(self) -> int:
        """K."""
        return len(self.kl) - 1


class Depth(NamedTuple):
    """The number of layers that the slider points at, in its table."""

    table: Table
    k: int


def prefixes(flow: Flow) -> list[Flow]:
    """The flows of the first 0, 1, ..., K layers, with the given one's base and parameters. Ledger F1.

    A layer is what stands at the top of the flow's ``Compose``, a nested ``Compose`` as one. Raises
    ``ValueError`` unless events are points of the plane.
    """
    if flow.event_shape != (2,) or flow.batch_shape:
        raise ValueError(
            "the demo shows one flow of the plane, with event shape (2,) and no batch shape, got event shape "
            f"{tuple(flow.event_shape)} and batch shape {tuple(flow.batch_shape)}: pass one flow of two "
            "dimensions"
        )
    layers = flow.transform if isinstance(flow.transform, Compose) else Compose([flow.transform])
    first_layers: list[Transform] = [FixedAffine(0.0, 1.0)]
    first_layers += [layers[:k] for k in range(1, len(layers) + 1)]
    base = flow.base if flow.base is not None else flow.event_shape
    return [Flow(transform, base) for transform in first_layers]


@torch.no_grad()
def tabulate(flow: Flow, target: Density) -> Table:
    """Push the grid through the first k layers and evaluate their density on the square, for every k.

    The square holds 4096 samples of the target with a margin, and the grid of z. Raises ``ValueError`` for
    a flow or a target that is not of the plane.
    """
    flows = prefixes(flow)
    if target.num_dims != 2:
        raise ValueError(f"the target must be a density of the plane, got num_dims={target.num_dims}")
    tensors = [*flow.parameters(), *flow.buffers()]
    reference = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))
    kind = {"dtype": reference.dtype, "device": reference.device}

    x1, x2, cell = _square(target)
    points = torch.stack(torch.meshgrid(x1, x2, indexing="xy"), -1).reshape(-1, 2)  # (N^2, 2)
    log_target = target.log_prob(points)
    chunks = points.to(**kind).split(_CHUNK)
    log_p = torch.stack([torch.cat([one.log_prob(part) for part in chunks]) for one in flows]).double().cpu()
    # The target has mass 1 in the square: this mends the rule where it jumps from cell to cell.
    weights = torch.full_like(log_target, cell) / (cell * log_target.exp().sum())

    z = bent_grid.polar_lines(RADIUS, 5, 24, 181).to(**kind)
    bent = [one.transform(z) for one in flows]
    log_det = torch.stack([step.expand(z.shape[:-1]) for _, step in bent]).double().cpu()
    side = (NUM_CELLS, NUM_CELLS)
    return Table(
        (x1, x2),
        lines=torch.stack([x for x, _ in bent]).double().cpu(),
        log_det=log_det,
        density=log_p.exp().reshape(-1, *side),
        target=log_target.exp().reshape(side),
        kl=kl_divergence(log_target, log_p, weights),
        mass=cell * log_p.exp().sum(-1),
        limit=max(float(log_det.abs().quantile(0.98)), 0.1),
    )


def _square(target: Density) -> tuple[Tensor, Tensor, float]:
    """Centres of the cells along both axes ``(N,)``, and the area of a cell."""
    samples = target.sample(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = samples.amin(0), samples.amax(0)  # (2,)
    margin = 0.15 * (high - low).max()
    low, high = (low - margin).clamp(max=-RADIUS), (high + margin).clamp(min=RADIUS)
    half, centre = 0.5 * float((high - low).max()), 0.5 * (high + low)
    step = 2 * half / NUM_CELLS
    at = step * (torch.arange(NUM_CELLS, dtype=torch.float64) + 0.5) - half
    return centre[0] + at, centre[1] + at, step**2


def compute(table: Table, k: int) -> Depth:
    """Look up the first ``k`` layers; ``ValueError`` if there are not as many."""
    if not 0 <= k <= table.num_layers:
        raise ValueError(f"the flow has {table.num_layers} layers, got k={k}: pick 0 to {table.num_layers}")
    return Depth(table, k)


def build(figure: Figure, depth: Depth) -> Artists:
    """Draw the bent grid, the density with the target's contours, and the divergence; return what moves."""
    table = depth.table
    panels = figure.subplot_mosaic([["grid", "density", "kl"]], width_ratios=[1.15, 1.15, 0.9])
    (low1, high1), (low2, high2) = (_ends(at) for at in table.axes)
    for name in ("grid", "density"):
        panels[name].set(xlim=(low1, high1), ylim=(low2, high2), aspect="equal", xlabel="x₁")
        panels[name].set_anchor("N")
        panels[name].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels[name].yaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels["grid"].set(title="Grid of z after k layers", ylabel="x₂")
    grid = bent_grid.empty_grid(panels["grid"])
    bent_grid.colour_bar(panels["grid"], table.limit)

    ax = panels["density"]
    # One scale for all k, so that p_k can be compared; narrow peaks may go beyond it.
    style = {"vmin": 0.0, "vmax": 1.1 * float(table.target.max()), "interpolation": "bilinear"}
    style |= {"origin": "lower", "extent": (low1, high1, low2, high2)}
    image = ax.imshow(table.density[depth.k].numpy(), **style)
    levels = sorted(mass_level(table.target, share) for share in SHARES)
    x1, x2 = (at.numpy() for at in table.axes)
    contours = ax.contour(x1, x2, table.target.numpy(), levels, colors="white", linewidths=1.4)
    bar = figure.colorbar(image, ax=ax, label="density", location="bottom", extend="max", shrink=0.9,
                          aspect=26, pad=0.03)  # fmt: skip
    bar.outline.set_visible(False)
    ax.grid(False)
    ax.set_title("Density p_k; contours: target")

    ax = panels["kl"]
    counts, kl = np.arange(table.num_layers + 1), table.kl.numpy()
    if kl.min() > 0 and kl.max() > 30 * kl.min():
        plots.log_axes(ax, "y")
    else:
        ax.set_ylim(min(0.0, 1.1 * kl.min()), 1.1 * max(kl.max(), 0.01))
    plots.curve(ax, counts, kl, marker="o", color=plots.BLUE)
    ax.set(title="KL(target ‖ p_k)", xlabel="layers k", ylabel="nats", xlim=(-0.5, table.num_layers + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ring = {"marker": "o", "markersize": 13, "markeredgewidth": 2.4, "markerfacecolor": "none"}
    (here,) = ax.plot([], [], color=plots.ORANGE, **ring)
    return {"grid": grid, "image": image, "contours": contours, "here": here}


def mass_level(density: Tensor, share: float) -> float:
    """The density above which this share of the mass lies, for a density at cells of one size."""
    falling = density.flatten().sort(descending=True).values
    return float(falling[torch.searchsorted(falling.cumsum(0), share * falling.sum())])


def _ends(centres: Tensor) -> tuple[float, float]:
    half = 0.5 * float(centres[1] - centres[0])
    return float(centres[0]) - half, float(centres[-1]) + half


def draw(artists: Artists, depth: Depth) -> None:
    """Put the lines, the density and the ring where the first k layers have them."""
    table, k = depth
    bent_grid.bend(artists["grid"], table.lines[k].numpy(), table.log_det[k].numpy(), limit=table.limit)
    artists["image"].set_data(table.density[k].numpy())
    artists["here"].set_data([k], [float(table.kl[k])])


def numbers(depth: Depth) -> dict[str, str]:
    """What is printed beside the picture."""
    table, k = depth
    low, high = (_signed(float(end)) for end in torch.aminmax(table.log_det[k]))
    return {
        "KL(target ‖ p_k)": f"{_signed(float(table.kl[k]), 3)} nats",
        "log|det J|": f"{low} to {high} nats",
        "mass of p_k in the square": f"{float(table.mass[k]):.3f}",
    }


def _signed(value: float, digits: int = 2) -> str:
    """With a true minus, and none before zero."""
    if not math.isfinite(value):
        return "infinite"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def describe(depth: Depth) -> str:
    """The picture in words."""
    said = numbers(depth)
    return (
        f"After {depth.k} of {depth.table.num_layers} layers log|det J| runs from {said['log|det J|']} over "
        f"the bent grid. The density p_k has a divergence KL(target ‖ p_k) of {said['KL(target ‖ p_k)']} and "
        f"{said['mass of p_k in the square']} of its mass in the square."
    )


TRY_THIS = (
    "**Try:** put k to 0 (circles, log|det J| = 0, p₀ as it is), then press the right arrow to the end. "
    "Where lines turn orange, z is pulled apart and the density drops; where they turn blue, it is pressed "
    "together and the density rises: p_k(x) = p₀(z)/|det J|. Circles stay nested, and the mass stays 1: "
    "what is missing has left the square. Training looked at the last KL only: does it fall at every layer?"
)


def show(flow: Flow, target: Density, *, k: int | None = None) -> LiveDemo:
    """Show the demo for a flow of the plane and its target, from ``k`` layers on (half of them)."""
    table = tabulate(flow, target)
    start = table.num_layers // 2 if k is None else k
    return LiveDemo(
        name="flow_depth",
        controls={"k": int_slider("Layers k", start, 0, table.num_layers)},
        compute=lambda k: compute(table, k),
        build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS, figsize=(9.6, 4.0),
    ).show()
