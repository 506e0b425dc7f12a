"""Which prior, and how large: its density on the latent plane and what the ELBO gains by it. Ledger S4, S5.

The encoder is frozen and its latent two-dimensional. Every kind of prior is trained once at every size; the
demo holds its exact density on a square and the change of the ELBO when it replaces N(0, I), on training and
on held-out data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dgm_course import plots
from dgm_course.demos import latent_plane
from dgm_course.demos.engine import Artists, LiveDemo, choice_buttons, int_slider
from dgm_course.demos.fitted_priors import (
    AGGREGATED,
    MAF,
    MIXTURE,
    NORMAL,
    REALNVP,
    SIZES,
    VAMP,
    Fitted,
    encode,
    fit_priors,
)
from dgm_course.gaussian import gaussian_log_prob, gaussian_sample
from dgm_course.priors import AggregatedPosterior
from dgm_course.surgery import Estimate

__all__ = ["SIZES", "Fitted", "fit_priors", "show", "tabulate"]

#: what a kind's size counts
COUNTED = {NORMAL: "", MIXTURE: "components K", VAMP: "pseudo-inputs K", REALNVP: "layers", MAF: "layers",
           AGGREGATED: "data points in q_agg"}  # fmt: skip
TRAIN, HELD_OUT = plots.BLUE, plots.ORANGE
_FADED = 0.35


class Row(NamedTuple):
    """One kind of prior at its P sizes; nats."""

    sizes: tuple[int, ...]  # none for N(0, I)
    parameters: tuple[int, ...]  # trained numbers
    stored: tuple[int, ...]  # numbers kept besides
    train: Estimate  # (P,) change of the training ELBO against N(0, I)
    held_out: Estimate  # (P,)
    marginal_kl: Estimate  # (P,) KL(q_agg || p), what is left of it
    density: NDArray[np.float32]  # (P, N, N)


class Table(NamedTuple):
    """Every kind's numbers."""

    rows: dict[str, Row]
    most: float  # KL(q_agg || N(0, I)), nats: no prior gains more on the training data
    points: NDArray[np.float64]  # (n', 2) the held-out data's posterior means
    num_sizes: int  # P


class Choice(NamedTuple):
    """What the controls point at: a kind, and the place of its size."""

    table: Table
    kind: str
    index: int


@torch.no_grad()
def tabulate(fitted: Fitted, held_out: Tensor, *, num_samples: int = 8, seed: int = 0) -> Table:
    """Measure every prior on the training data and on ``held_out (n', m)``, at the same samples of z.

    Each training point has ``num_samples`` samples, each held-out one four times as many.
    """
    mean, log_var = encode(fitted.encoder, held_out)
    generator = torch.Generator(mean.device).manual_seed(seed)
    z = gaussian_sample(fitted.mean, fitted.log_var, generator=generator, sample_shape=(num_samples,))
    z_out = gaussian_sample(mean, log_var, generator=generator, sample_shape=(4 * num_samples,))
    whole = AggregatedPosterior(fitted.mean, fitted.log_var).log_prob(z)  # (S, n)
    normal, normal_out = (gaussian_log_prob(each, 0.0, 0.0) for each in (z, z_out))
    rows = {}
    for kind, priors in fitted.priors.items():
        columns = []
        for prior in dict.fromkeys(priors):  # N(0, I) once
            log_p, log_p_out = prior.log_prob(z), prior.log_prob(z_out)
            columns.append((
                [Estimate.of(each.double().cpu()) for each in (log_p - normal, log_p_out - normal_out,
                                                               whole - log_p)],
                latent_plane.density_map(prior.log_prob, mean),
            ))  # fmt: skip
        columns *= len(priors) // len(columns)
        estimates, maps = zip(*columns, strict=True)
        rows[kind] = Row(
            fitted.sizes.get(kind, ()),
            tuple(sum(p.numel() for p in prior.own_parameters()) for prior in priors),
            tuple(2 * prior.mean.numel() if kind == AGGREGATED else 0 for prior in priors),
            *(
                Estimate(torch.stack([one.mean for one in some]),
                         torch.stack([one.standard_error for one in some]))
                for some in zip(*estimates, strict=True)
            ),
            density=np.stack(maps),
        )  # fmt: skip
    most = float((whole - normal).double().mean())
    return Table(rows, most, mean.double().cpu().numpy(), len(fitted.priors[NORMAL]))


def compute(table: Table, kind: str, size: int) -> Choice:
    """Look up the prior of this kind at its ``size``-th size, 1 the smallest; ``ValueError`` if none is."""
    if kind not in table.rows or not 1 <= size <= table.num_sizes:
        raise ValueError(
            f"the kinds are {list(table.rows)} and sizes 1 to {table.num_sizes}, got {kind!r} and {size}: "
            "pick from these"
        )
    return Choice(table, kind, size - 1)


def build(figure: Figure, choice: Choice) -> Artists:
    """Draw the density with the held-out means, and the gains of one kind at all sizes; return what moves."""
    table = choice.table
    panels = figure.subplot_mosaic([["plane", "gain"]], width_ratios=[1.0, 1.0])
    ax = panels["plane"]
    title = "Prior p(z); dots: held-out posterior means"
    image = latent_plane.heat_map(ax, table.rows[choice.kind].density[choice.index], title=title)
    (dots,) = ax.plot(*table.points.T, "o", color="white", markersize=2.2, markeredgewidth=0, alpha=0.75)
    circles = latent_plane.prior_circles(ax, name="N(0, I)")

    ax, places = panels["gain"], np.arange(table.num_sizes)
    most = max(table.most, 0.01)
    ax.set(title="ELBO against that with N(0, I)", ylabel="gain (nats)", ylim=(-0.9 * most, 1.5 * most),
           xlim=(-0.55, table.num_sizes - 0.45))  # fmt: skip
    ax.grid(False)  # the numbers stand at the bars
    ax.axhline(0.0, color=plots.INK, linewidth=1.0)
    plots.reference_line(ax, "KL(q_agg ‖ N(0, I))", y=table.most, at_start=True)
    bars = [
        ax.bar(places + shift, 0.0, 0.4, color=colour, label=name, linewidth=0)
        for shift, colour, name in ((-0.23, TRAIN, "training data"), (0.23, HELD_OUT, "held-out data"))
    ]
    ax.legend(loc="upper left", ncols=2, borderaxespad=0, columnspacing=1.2)
    errors = [ax.plot([], [], color=plots.INK, linewidth=1.8)[0] for _ in range(2 * table.num_sizes)]
    values = [ax.annotate("", (0, 0), (0, 0), textcoords="offset points", ha="center")
              for _ in range(2 * table.num_sizes)]  # fmt: skip
    # What stands under the axis changes with the kind: clear texts hold its place in the layout.
    ax.set_xticks(places, ["0"] * len(places), color="none")
    ax.set_xlabel("size", color="none")
    below = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    below |= {"ha": "center", "va": "top"}
    ticks = [ax.annotate("", (place, 0), (0, -5), **below) for place in places]
    counted = ax.annotate("", (places.mean(), 0), (0, -24), **below)
    return {"image": image, "dots": dots, "circles": circles, "train": bars[0].patches,
            "held_out": bars[1].patches, "errors": errors, "values": values, "ticks": ticks,
            "counted": counted}  # fmt: skip


def draw(artists: Artists, choice: Choice) -> None:
    """Put the density on the plane and the kind's gains into the bars, the chosen size in full colour."""
    table, row = choice.table, choice.table.rows[choice.kind]
    artists["image"].set_data(row.density[choice.index])
    floor = 0.82 * artists["train"][0].axes.get_ylim()[0]  # bars end there, with room for a number below
    for k in range(table.num_sizes):
        chosen = k == choice.index
        for j, (name, estimate) in enumerate((("train", row.train), ("held_out", row.held_out))):
            value, error = float(estimate.mean[k]), 2 * float(estimate.standard_error[k])
            bar, line, text = artists[name][k], artists["errors"][2 * k + j], artists["values"][2 * k + j]
            bar.set_height(max(value, floor))
            bar.set_alpha(1.0 if chosen else _FADED)
            middle, whole = bar.get_x() + 0.5 * bar.get_width(), value - error > floor
            line.set_data([middle] * 2, [value - error, value + error] if whole else [np.nan] * 2)
            up = value >= 0
            text.xy = (middle, value + error if up else max(value - error, floor))
            text.set_position((0, 3 if up else -3))
            text.set_verticalalignment("bottom" if up else "top")
            text.set_text(_short(value))
        artists["ticks"][k].set_text(f"{row.sizes[k]}" if row.sizes else "")
        artists["ticks"][k].set_weight("bold" if chosen else "normal")
    artists["counted"].set_text(COUNTED[choice.kind])


def _short(value: float) -> str:
    """At most two digits, so that neighbours have room: ``.05``, ``−.94``, ``1.6``, ``−29``."""
    size = abs(value)
    digits = 2 if size < 0.995 else 1 if size < 9.95 else 0
    text = f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
    return text.replace("0.", ".", 1) if size < 0.995 and round(size, 2) else text


def numbers(choice: Choice) -> dict[str, str]:
    """What is printed beside the picture; gains and KL with their standard errors."""
    row, k = choice.table.rows[choice.kind], choice.index
    size = {COUNTED[choice.kind]: f"{row.sizes[k]}"} if row.sizes else {}
    stored = f" ({row.stored[k]} stored)" if row.stored[k] else ""
    return {
        "prior": choice.kind,
        **size,
        "trained numbers": f"{row.parameters[k]}{stored}",
        "gain on training data": _said(row.train, k, "+"),
        "on held-out data": _said(row.held_out, k, "+"),
        "KL(q_agg ‖ p)": _said(row.marginal_kl, k),
    }


def _said(estimate: Estimate, k: int, sign: str = "") -> str:
    """With a true minus, and none before zero."""
    mean, error = round(float(estimate.mean[k]), 3) + 0.0, float(estimate.standard_error[k])
    return f"{mean:{sign}.3f} ± {error:.3f} nats".replace("-", "−")


def describe(choice: Choice) -> str:
    """The picture in words."""
    said, row = numbers(choice), choice.table.rows[choice.kind]
    size = f" with {row.sizes[choice.index]} {COUNTED[choice.kind]}" if row.sizes else ""
    return (
        f"The prior {choice.kind}{size} as a heat map on the latent plane, with the held-out posterior means "
        f"as dots. Against N(0, I) the ELBO gains {said['gain on training data']} on training data, at most "
        f"{choice.table.most:.3f}, and {said['on held-out data']} on held-out data; KL(q_agg ‖ p) is "
        f"{said['KL(q_agg ‖ p)']}."
    )


TRY_THIS = (
    "**Try:** choose q_agg and its largest size. On training data nothing gains more (dashed line), on "
    "held-out data much of it is gone: the price of one component for every training point. Keep only a few "
    "points and the prior is worse than N(0, I). So is a VampPrior with few pseudo-inputs, whose components "
    "must be posteriors, narrow as they are; a mixture with one component contains N(0, I). Which prior, and "
    "which size, would you take by the orange bars? (Whiskers: two standard errors of the draws of z.)"
)


def show(
    fitted: Fitted, held_out: Tensor, *, kind: str = VAMP, size: int = 3, num_samples: int = 8
) -> LiveDemo:
    """Show the demo for fitted priors and held-out images ``(n', m)``, from this kind and size on.

    Sizes count from 1, the smallest. Errors as in :func:`tabulate` and :func:`compute`.
    """
    table = tabulate(fitted, held_out, num_samples=num_samples)
    return LiveDemo(
        name="prior_choice",
        controls={
            "kind": choice_buttons("Prior", kind, list(table.rows)),
            "size": int_slider("Size, small to large", size, 1, table.num_sizes),
        },
        compute=lambda kind, size: compute(table, kind, size),
        build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS, figsize=(9.6, 4.3),
    ).show()
