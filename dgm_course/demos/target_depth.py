"""What a flow's depth is worth, live and exact: an ELBO that climbs to log Z of an unnormalised target.

Flows of four kinds and several depths were fitted to targets whose normaliser is known. What their ELBO
lacks, ``log Z - ELBO = KL(q || p)``, is an integral over the plane, without sampling noise. Ledger V2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dgm_course import plots
from dgm_course.data import UnnormalisedTarget
from dgm_course.demos import latent_plane
from dgm_course.demos.engine import Artists, LiveDemo, choice_buttons, choice_slider
from dgm_course.demos.flow_depth import mass_level
from dgm_course.demos.target_fits import DEPTHS, KINDS, PLANAR, Fits, fit_default
from dgm_course.divergences import kl_divergence
from dgm_course.flows import Flow
from dgm_course.gaussian import gaussian_log_prob

__all__ = ["DEPTHS", "KINDS", "Fits", "fit_default", "show", "tabulate"]

#: shares of the target's mass inside its contours
SHARES = (0.9, 0.5)
COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.VIOLET)
#: cells of the quadrature along each axis
NUM_CELLS = 200
BEYOND = 1e-5  # mass of the base that it leaves out
_CHUNK = 1 << 14
_FADED = 0.4


class Table(NamedTuple):
    """Every fit's numbers; targets, kinds and depths in the order of the fits."""

    fits: Fits
    gap: Tensor  # (T, K, D) log Z - ELBO = KL(q || p), nats
    density: NDArray[np.float32]  # (T, K, D, N, N), rows along z_2
    target: NDArray[np.float32]  # (T, N, N)
    parameters: NDArray[np.int64]  # (T, K, D) trained numbers in the layers


class Choice(NamedTuple):
    """What the controls point at, by its places in the table."""

    table: Table
    t: int
    k: int
    d: int

    @property
    def target(self) -> UnnormalisedTarget:
        """The target itself."""
        return self.table.fits.targets[self.t]


@torch.no_grad()
def exact_gap(flow: Flow, target: UnnormalisedTarget, num_cells: int = NUM_CELLS) -> float:
    """``log Z - ELBO = KL(q || p)`` in nats, by quadrature over the plane: no sampling noise.

    Over the image of the disc that holds all but 1e-5 of the base: training's some ten thousand samples
    hardly knew what lies beyond, where a flow may throw single points very far. A bijection keeps inside
    what is inside, so that the box around the circle's image holds it all. There are more cells if these
    miss 1e-3 of the mass. Ledger V2. Raises ``ValueError`` unless the flow pushes N(0, I) of the plane.
    """
    if flow.base is not None or flow.event_shape != (2,):
        raise ValueError(
            "the demo shows flows of the plane with the base N(0, I), got a flow with the event shape "
            f"{tuple(flow.event_shape)} and the base {flow.base}: put the base's mean and scale into a "
            "first FixedAffine, Flow(Compose([affine, ...]), 2)"
        )
    turn = torch.linspace(0.0, 2.0 * math.pi, 721, dtype=torch.float64)
    radius, reference = latent_plane.radius(1.0 - BEYOND), _reference(flow)
    circle = radius * torch.stack([turn.cos(), turn.sin()], -1)
    rim = flow.transform(circle.to(reference))[0].double().cpu()
    low, high = rim.amin(0), rim.amax(0)  # (2,)
    at = (torch.arange(num_cells, dtype=torch.float64) + 0.5) / num_cells
    z = low + (high - low) * torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
    back = [flow.transform.inverse(part) for part in z.to(reference).split(_CHUNK)]
    z0, log_det = (torch.cat(parts).double().cpu() for parts in zip(*back, strict=True))
    log_q = gaussian_log_prob(z0, 0.0, 0.0) + log_det
    log_q = log_q.masked_fill(z0.square().sum(-1) > radius**2, -math.inf)
    weights = (high - low).prod() / num_cells**2 * torch.ones_like(log_q)
    if abs(float((weights * log_q.exp()).sum()) - 1.0) > 1e-3 and num_cells < 4 * NUM_CELLS:
        return exact_gap(flow, target, 2 * num_cells)
    return float(kl_divergence(log_q, target.log_density(z) - target.log_normaliser, weights))


def _reference(flow: Flow) -> Tensor:
    """A tensor of the flow's dtype, on its device."""
    tensors = [*flow.parameters(), *flow.buffers()]
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))


@torch.no_grad()
def tabulate(fits: Fits) -> Table:
    """The exact gap and the density of every fit, and its target's; errors as in :func:`exact_gap`."""
    shape = (len(fits.targets), len(fits.kinds), len(fits.depths))
    gaps, maps, counts = [], [], []
    for target in fits.targets:
        for kind in fits.kinds:
            for depth in fits.depths:
                flow = fits.flows[target.name, kind, depth]
                gaps.append(exact_gap(flow, target))
                maps.append(latent_plane.density_map(flow.log_prob, _reference(flow)))
                counts.append(sum(parameter.numel() for parameter in flow.parameters()))
    kind = torch.zeros((), dtype=torch.float64)
    return Table(
        fits,
        gap=torch.tensor(gaps, dtype=torch.float64).reshape(shape),
        density=np.stack(maps).reshape(*shape, *maps[0].shape),
        target=np.stack([
            latent_plane.density_map(lambda z, one=one: one.log_density(z) - one.log_normaliser, kind)
            for one in fits.targets
        ]),
        parameters=np.array(counts).reshape(shape),
    )  # fmt: skip


def compute(table: Table, target: str, kind: str, depth: int) -> Choice:
    """Look up the fit of this kind and depth to this target; ``ValueError`` if there is none."""
    fits, names = table.fits, [one.name for one in table.fits.targets]
    if target not in names or kind not in fits.kinds or depth not in fits.depths:
        raise ValueError(
            f"the targets are {names}, the kinds {fits.kinds} and the depths {fits.depths}, got {target!r}, "
            f"{kind!r} and {depth}: pick from these"
        )
    return Choice(table, names.index(target), fits.kinds.index(kind), fits.depths.index(depth))


def build(figure: Figure, choice: Choice) -> Artists:
    """Draw the target, the flow with the target's contours, and the gap against depth; return what moves."""
    table, fits = choice.table, choice.table.fits
    panels = figure.subplot_mosaic([["target", "flow", "gap"]], width_ratios=[1.0, 1.0, 1.2])
    density = table.density[choice.t, choice.k, choice.d]
    image = latent_plane.heat_map(panels["flow"], density, title="Flow q(z)")
    ax = panels["target"]
    truth = ax.imshow(table.target[choice.t], norm=image.norm, origin="lower", extent=image.get_extent(),
                      interpolation="bilinear")  # fmt: skip
    ax.autoscale(False)
    ticks = [-2, 0, 2]
    ax.set(title="Target p(z)", xlabel="z₁", ylabel="z₂", xticks=ticks, yticks=ticks)
    ax.grid(False)
    at = latent_plane.centres(torch.zeros((), dtype=torch.float64)).numpy()
    contours = []
    for density in table.target:
        levels = sorted(mass_level(torch.from_numpy(density), share) for share in SHARES)
        contours.append(panels["flow"].contour(at, at, density, levels, colors="white", linewidths=1.4))

    ax, places = panels["gap"], np.arange(len(fits.depths))
    lowest = 1.6 * float(table.gap.max())
    ax.set_yscale("function", functions=(_root, _square))
    ax.set(title="ELBO rises to log Z", xlabel="layers", ylabel="ELBO − log Z (nats)")
    ax.set(xlim=(-0.4, len(places) - 0.6), ylim=(-lowest, 0.002 * lowest))
    ax.set_xticks(places, [str(depth) for depth in fits.depths])
    marks = [mark for mark in (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0) if mark < lowest]
    ax.set_yticks([-mark for mark in marks], [f"−{mark:g}" if mark else "0" for mark in marks])
    ax.grid(False, axis="x")
    ax.axhline(0.0, color=plots.INK, linestyle=(0, (4, 2)), linewidth=1.6)
    colours = COLOURS[: len(fits.kinds)]
    curves = [ax.plot(places, -table.gap[choice.t, k].numpy(), marker="o", color=colour)[0]
              for k, colour in enumerate(colours)]  # fmt: skip
    ring = {"marker": "o", "markersize": 13, "markeredgewidth": 2.4, "markerfacecolor": "none"}
    (here,) = ax.plot([], [], color=plots.INK, **ring)
    low = {"transform": ax.transAxes, "va": "bottom"}
    names, values = [], []
    for k, (kind, colour) in enumerate(zip(fits.kinds, colours, strict=True)):
        left, row = 0.02 + 0.52 * (k // 2), 0.1 - 0.08 * (k % 2)
        names.append(ax.text(left, row, kind, color=colour, **low))
        values.append(ax.text(left + 0.46, row, "", color=colour, ha="right", **low))
    for one in panels.values():
        one.set_anchor("N")
    return {"truth": truth, "image": image, "contours": contours, "curves": curves, "here": here,
            "names": names, "values": values}  # fmt: skip


def _root(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(y) * np.sqrt(np.abs(y))


def _square(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(y) * np.square(y)


def draw(artists: Artists, choice: Choice) -> None:
    """Put both densities on the plane, redraw the curves of this target, and mark the fit."""
    table, t, k, d = choice
    gap = table.gap[t].numpy()
    artists["truth"].set_data(table.target[t])
    artists["image"].set_data(table.density[t, k, d])
    for index, contour in enumerate(artists["contours"]):
        contour.set_visible(index == t)
    for index, curve in enumerate(artists["curves"]):
        mine = index == k
        curve.set_ydata(-gap[index])
        curve.set_alpha(1.0 if mine else _FADED)
        curve.set_linewidth(2.6 if mine else 1.8)
        for text in (artists["names"][index], artists["values"][index]):
            text.set_weight("bold" if mine else "normal")
        artists["values"][index].set_text(f"{max(gap[index, d], 0.0):.3f}")
    artists["here"].set_data([d], [-gap[k, d]])


def numbers(choice: Choice) -> dict[str, str]:
    """What is printed beside the picture."""
    table, t, k, d = choice
    return {
        "ELBO": _nats(choice.target.log_normaliser - float(table.gap[t, k, d])),
        "log Z": _nats(choice.target.log_normaliser),
        "log Z − ELBO = KL(q ‖ p)": _nats(max(float(table.gap[t, k, d]), 0.0)),
        "trained numbers in the layers": f"{table.parameters[t, k, d]}",
    }


def _nats(value: float) -> str:
    """With a true minus, and none before zero."""
    if not math.isfinite(value):
        return "infinite"
    return f"{round(value, 3) + 0.0:.3f} nats".replace("-", "−")


def describe(choice: Choice) -> str:
    """The picture in words."""
    said, fits = numbers(choice), choice.table.fits
    depth = fits.depths[choice.d]
    gaps = ", ".join(f"{value:.3f}" for value in choice.table.gap[choice.t, choice.k].clamp(min=0.0).tolist())
    return (
        f"The {choice.target.name} target beside a flow of {depth} {fits.kinds[choice.k]} "
        f"layer{'' if depth == 1 else 's'} fitted to it. The ELBO is {said['ELBO']}, below "
        f"log Z = {said['log Z']} by {said['log Z − ELBO = KL(q ‖ p)']}. With {_listed(fits.depths)} layers "
        f"of this kind the gap is {gaps} nats."
    )


def _listed(depths: tuple[int, ...]) -> str:
    return ", ".join(map(str, depths))


TRY_THIS = (
    "**Try:** the wave with planar layers: press the right arrow from 0 to 8 and watch q bend into the "
    "contours while the ELBO climbs to log Z, which training never saw. Then the banana: one coupling or IAF "
    "layer does what eight planar ones do not. Why? (Given z₁, z₂ is Gaussian with a mean that bends.) Now "
    "two peaks: a Gaussian takes one and lacks log 2 = 0.693 nats, and one or two IAF layers do no better, "
    "but a single planar layer tears q in two. Does the gap fall at every step? A deeper flow contains the "
    "shallower one: where its gap is wider, training has not found it. (Below the curves: the "
    "four gaps KL(q ‖ p) at this depth, by quadrature.)"
)


def show(fits: Fits, *, target: str = "wave", kind: str = PLANAR, depth: int = 2) -> LiveDemo:
    """Show the demo for fitted flows, from this target, kind and depth on. Errors as in :func:`compute`."""
    table = tabulate(fits)
    return LiveDemo(
        name="target_depth",
        controls={
            "target": choice_buttons("Target", target, [one.name for one in fits.targets]),
            "kind": choice_buttons("Layers", kind, fits.kinds),
            "depth": choice_slider("Number of layers", depth, fits.depths),
        },
        compute=lambda target, kind, depth: compute(table, target, kind, depth),
        build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS, figsize=(9.6, 3.2),
    ).show()
