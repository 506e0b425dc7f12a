"""What the KL weight does to the terms of the ELBO and to the aggregated posterior, live. Ledger S1 to S3.

The models are a stack of VAEs with a two-dimensional latent, member e trained with the KL weight
``betas[e]``. For every one the demo holds ELBO surgery's terms, with their standard errors, and the exact
aggregated posterior on a square of the latent plane, under the circles of the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from dgm_course import plots
from dgm_course.demos import latent_plane
from dgm_course.demos.engine import Artists, LiveDemo, choice_slider
from dgm_course.mixtures import mixture_log_prob
from dgm_course.nets import member
from dgm_course.surgery import Estimate, elbo_surgery
from dgm_course.vae import VAE

#: the curves' names and colours; the sum of the last three is the first
NAMES = {"loss": "−ELBO", "distortion": "−reconstruction", "information": "I_q[x, z]",
         "marginal": "KL(q_agg ‖ p)"}  # fmt: skip
COLOURS = {"loss": plots.INK, "distortion": plots.BLUE, "information": plots.GREEN, "marginal": plots.ORANGE}
_ROOM = 0.55  # two digits' names stand at least this far apart


class Table(NamedTuple):
    """Every model's terms and density; averages over the n data points, in nats."""

    betas: tuple[float, ...]  # E weights of the KL term, ascending
    terms: dict[str, Estimate]  # (E,) each, by the keys of NAMES
    most: float  # log n: what I_q[x, z] cannot pass
    density: NDArray[np.float32]  # (E, N, N) q_agg at the cells' centres, rows along z_2
    classes: tuple[str, ...]  # C names
    typical: NDArray[np.float64]  # (E, C, 2) each class's most central posterior mean
    apart: NDArray[np.bool_]  # (E, C) it lies in the square, with room for its name


class Surgery(NamedTuple):
    """The model that the slider points at, in its table."""

    table: Table
    index: int


@torch.no_grad()
def tabulate(
    model: VAE,
    betas: Sequence[float] | Tensor,
    x: Tensor,
    labels: Tensor,
    *,
    num_samples: int = 8,
    seed: int = 0,
) -> Table:
    """Take every model's ELBO on ``x (n, m)`` apart, and evaluate its aggregated posterior on the square.

    ``betas (E,)`` ascending, one for each stacked member; ``labels (n,)`` whole numbers. All members see the
    same noise. Raises ``ValueError`` unless the model is a stack of E with two latents and the prior N(0, I).
    """
    weights = tuple(float(beta) for beta in betas)
    _check(model, weights, x, labels)
    classes = labels.unique(sorted=True).tolist()
    surgeries, maps, typical = [], [], []
    for e in range(len(weights)):
        one = member(model, e)
        mean, log_var = one.encode(x)  # (n, 2)
        surgeries.append(
            elbo_surgery(
                mean, log_var, log_likelihood=lambda z, one=one: one.decoder.log_prob(x, z),
                num_samples=num_samples, generator=torch.Generator(x.device).manual_seed(seed),
            )
        )  # fmt: skip
        maps.append(latent_plane.density_map(lambda z, q=(mean, log_var): mixture_log_prob(z, *q), mean))
        centres = torch.stack([_most_central(mean[labels == c]) for c in classes])
        typical.append(centres.double().cpu().numpy())
    samples = {
        "loss": [-one.elbo for one in surgeries],
        "distortion": [-one.reconstruction for one in surgeries],
        "information": [one.mutual_information for one in surgeries],
        "marginal": [one.marginal_kl for one in surgeries],
    }
    return Table(
        weights,
        terms={key: Estimate.of(torch.stack(values).double().cpu()) for key, values in samples.items()},
        most=math.log(len(x)),
        density=np.stack(maps),
        classes=tuple(map(str, classes)),
        typical=np.stack(typical),
        apart=np.stack([_apart(points) for points in typical]),
    )


def _check(model: VAE, betas: tuple[float, ...], x: Tensor, labels: Tensor) -> None:
    if model.latent_dim != 2 or model.members != len(betas) or model.prior is not None:
        raise ValueError(
            f"the demo needs a stack of {len(betas)} VAEs, one for each beta, with two latents and the prior "
            f"N(0, I), got members={model.members}, latent_dim={model.latent_dim} and "
            f"prior={type(model.prior).__name__}: build it with members={len(betas)} and latent_dim=2, or "
            "name its betas"
        )
    if min(betas) <= 0 or list(betas) != sorted(set(betas)):
        raise ValueError(f"betas must be positive and ascending, got {betas}: sort them, members likewise")
    if x.dim() != 2 or labels.shape != x.shape[:1]:
        raise ValueError(
            f"x must be (n, m) and labels (n,), got {tuple(x.shape)} and {tuple(labels.shape)}: pass one "
            "flattened image and one label a row"
        )


def _most_central(points: Tensor) -> Tensor:
    """The medoid: of the points ``(n, 2)`` the one with the least sum of distances to the others."""
    return points[torch.cdist(points, points).sum(-1).argmin()]


def _apart(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points ``(C, 2)`` have room for a name, the earlier ones first; alone nobody is named."""
    kept: list[int] = []
    for k, point in enumerate(points):
        inside = np.abs(point).max() < latent_plane.HALF_WIDTH - 0.3
        if inside and all(np.linalg.norm(point - points[j]) > _ROOM for j in kept):
            kept.append(k)
    return np.isin(np.arange(len(points)), kept if len(kept) > 1 else [])


def compute(table: Table, beta: float) -> Surgery:
    """Look up the model with this KL weight; ``ValueError`` if there is none."""
    if beta not in table.betas:
        raise ValueError(f"no model was trained with beta={beta}, only with {table.betas}: pick one of these")
    return Surgery(table, table.betas.index(beta))


def build(figure: Figure, surgery: Surgery) -> Artists:
    """Draw the curves against beta in two panels and the aggregated posterior; return what moves."""
    table = surgery.table
    panels = figure.subplot_mosaic([["whole", "plane"], ["parts", "plane"]], width_ratios=[1.0, 1.1],
                                   height_ratios=[1.0, 1.15])  # fmt: skip
    rings = []
    for name, keys in (("whole", ("loss", "distortion")), ("parts", ("information", "marginal"))):
        ax = plots.log_axes(panels[name], "x")
        rings += [_curve(ax, table, key) for key in keys]
        ax.set(ylabel="nats", xlim=(table.betas[0] / 1.15, table.betas[-1] * 1.15))
    panels["whole"].set_title("The ELBO and its terms, by KL weight")
    panels["whole"].tick_params(labelbottom=False)
    low, high = float(table.terms["distortion"].mean.min()), float(table.terms["loss"].mean.max())
    panels["whole"].set_ylim(low - 0.12 * (high - low), high + 0.5 * (high - low))
    panels["whole"].legend(loc="upper left", ncols=2, borderaxespad=0)
    ax = panels["parts"]
    plots.reference_line(ax, f"log n = {table.most:.2f}", y=table.most)
    top = max(table.most, float(table.terms["marginal"].mean.max()))
    ax.set(xlabel="KL weight β", ylim=(-0.06 * top, 1.24 * top))
    ax.legend(loc="upper right", borderaxespad=0, bbox_to_anchor=(1.0, 0.8))

    ax = panels["plane"]
    image = latent_plane.heat_map(ax, table.density[surgery.index], title="Aggregated posterior q_agg(z)")
    circles = latent_plane.prior_circles(ax, name="p(z)")
    style = {"weight": "bold", "fontsize": 12, "ha": "center", "va": "center"}
    digits = [latent_plane.white_text(ax, 0.0, 0.0, name, **style) for name in table.classes]
    return {"rings": rings, "image": image, "circles": circles, "digits": digits}


def _curve(ax: Axes, table: Table, key: str) -> Line2D:
    """One term against beta, with a ring that will move on it."""
    estimate, colour = table.terms[key], COLOURS[key]
    plots.curve(ax, table.betas, estimate.mean, error=2 * estimate.standard_error, marker="o", color=colour,
                label=NAMES[key])  # fmt: skip
    ring = {"marker": "o", "markersize": 13, "markeredgewidth": 2.4, "markerfacecolor": "none"}
    return ax.plot([], [], color=colour, **ring)[0]


def draw(artists: Artists, surgery: Surgery) -> None:
    """Ring the model's terms, and put its density and its classes' names on the plane."""
    table, e = surgery
    for ring, estimate in zip(artists["rings"], table.terms.values(), strict=True):
        ring.set_data([table.betas[e]], [float(estimate.mean[e])])
    artists["image"].set_data(table.density[e])
    for text, place, seen in zip(artists["digits"], table.typical[e], table.apart[e], strict=True):
        text.set_position(tuple(place))
        text.set_alpha(float(seen))


def numbers(surgery: Surgery) -> dict[str, str]:
    """What is printed beside the picture: each term with its standard error."""
    table, e = surgery
    loss, distortion, information, marginal = (
        (float(one.mean[e]), float(one.standard_error[e])) for one in table.terms.values()
    )
    return {
        "ELBO": _said(-loss[0], loss[1]),
        "reconstruction": _said(-distortion[0], distortion[1]),
        NAMES["information"]: _said(*information),
        NAMES["marginal"]: _said(*marginal),
    }


def _said(mean: float, error: float) -> str:
    """With a true minus, and none before zero."""
    return f"{round(mean, 3) + 0.0:.3f} ± {error:.3f} nats".replace("-", "−")


def describe(surgery: Surgery) -> str:
    """The picture in words."""
    table, e = surgery
    said = numbers(surgery)
    return (
        f"At β = {table.betas[e]:.2g} the ELBO of {said['ELBO']} is the reconstruction of "
        f"{said['reconstruction']} minus a mutual information of {said[NAMES['information']]}, at most "
        f"log n = {table.most:.2f}, minus KL(q_agg ‖ p) of {said[NAMES['marginal']]}. A heat map shows the "
        "aggregated posterior on the latent plane under the circles that hold 50 % and 95 % of the prior."
    )


TRY_THIS = (
    "**Try:** start at the left. The posteriors overlap little, I_q[x, z] is at its largest, yet below its "
    "cap log n: two latents are too few for it. And q_agg is dust far beyond the prior's circles: samples of "
    "the prior fall into holes. Raise β: "
    "KL(q_agg ‖ p) falls long before the information does. Where do the digits merge, where does all "
    "collapse? Where is the ELBO best, and is the marginal KL zero there? A better prior gains what is left."
)


def show(
    model: VAE, betas: Sequence[float] | Tensor, x: Tensor, labels: Tensor, *, beta: float = 1.0
) -> LiveDemo:
    """Show the demo for a stack of VAEs trained with these KL weights, from the one nearest to ``beta`` on.

    Arguments and errors as in :func:`tabulate`.
    """
    table = tabulate(model, betas, x, labels)
    start = min(table.betas, key=lambda one: abs(math.log(one / beta)))
    names = [f"{one:.2g}" for one in table.betas]
    return LiveDemo(
        name="beta_surgery",
        controls={"beta": choice_slider("KL weight β", start, table.betas, names=names)},
        compute=lambda beta: compute(table, beta),
        build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS, figsize=(9.6, 4.3),
    ).show()
