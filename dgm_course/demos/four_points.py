"""Four points share a prior, live and exact: what IAF steps in the posterior gain. Ledger V4, S3.

Each point owns a quadrant of the plane, and its true posterior is the prior there. The demo holds, for every
trained number of steps, the four posteriors on a grid: their mixture q_agg, what it leaves of the prior, and
the gap of the ELBO, which is the sum of two parts::

    mean_x KL(q(z|x) || p(z|x)) = KL(q_agg || p(z)) + E_q_agg KL(q(x|z) || p(x|z))

The first is holes and crowds of q_agg, the second what q takes for the wrong point's part of the plane.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dgm_course import plots
from dgm_course.demos import latent_plane
from dgm_course.demos.engine import Artists, LiveDemo, choice_buttons, choice_slider
from dgm_course.divergences import kl_divergence
from dgm_course.train import fit
from dgm_course.vae import VAE, four_point_vae, grid_terms

NUM_STEPS = (0, 2, 4, 8)
#: the points, by the quadrant that each owns, and all of them
ALL = "all"
POINTS = (ALL, "0", "1", "2", "3")
COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PINK)
HOLES, OWNERS = plots.VIOLET, plots.INK
NUM_SAMPLES = 250  # dots of each point
_RIM = 16  # cells that the quadrature has beyond each side of the picture's square
_FADED = 0.4
_CORNERS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])


class Row(NamedTuple):
    """One number of steps; nats."""

    elbo: Tensor  # (4,) of each point
    gap: Tensor  # (4,) log p(x) - ELBO = KL(q(z|x) || p(z|x))
    marginal_kl: float  # KL(q_agg || p)
    owner_kl: float  # E_q_agg KL(q(x|z) || p(x|z))
    density: NDArray[np.float32]  # (5, N, N) q_agg, and each point's share q(z|i)/4 of it
    samples: NDArray[np.float32]  # (4, S, 2)

    @property
    def mean_gap(self) -> float:
        """What the average ELBO lacks, nats."""
        return float(self.gap.mean())


class Table(NamedTuple):
    """Every number of steps, ascending."""

    rows: dict[int, Row]
    log_px: float  # -log 4, the average ELBO's ceiling, by the same quadrature
    sharpness: float


class Choice(NamedTuple):
    """What the controls point at: a number of steps, and one point or all four."""

    table: Table
    num_steps: int
    point: str

    @property
    def row(self) -> Row:
        """The numbers of these steps."""
        return self.table.rows[self.num_steps]

    @property
    def index(self) -> int | None:
        """The point's number; None for all."""
        return None if self.point == ALL else int(self.point)


def train_default(
    counts: Sequence[int] = NUM_STEPS,
    *,
    steps: int = 1000,
    sharpness: float = 20.0,
    seed: int = 0,
    progress: bool = True,
) -> dict[int, VAE]:
    """Train the four-point VAE with each number of IAF steps: about 10 s. Ledger V4.

    ``steps`` are Adam's. 0 IAF steps are Gaussian posteriors. Raises ``ValueError`` for negative counts.
    """
    models = {}
    for count in counts:
        vae = four_point_vae(count, sharpness=sharpness, generator=torch.Generator().manual_seed(seed))
        x = torch.eye(4, dtype=torch.get_default_dtype())

        def loss(_: int, generator: torch.Generator, vae: VAE = vae, x: Tensor = x) -> Tensor:
            return -vae.terms(x, num_samples=32, generator=generator).elbo.mean(-1)

        fit(loss, vae.parameters(), steps=steps, lr=2e-2, lr_decay_from=0.5, clip_norm=10.0, seed=seed,
            progress=progress)  # fmt: skip
        models[count] = vae
    return models


@torch.no_grad()
def tabulate(models: Mapping[int, VAE], *, seed: int = 0) -> Table:
    """The terms of every model on one grid of cells, and samples of its posteriors from the same noise.

    ``models`` maps numbers of IAF steps to trained :func:`dgm_course.vae.four_point_vae`. The grid reaches
    to 5 along both axes, where N(0, I) has all but 1e-6 of its mass. Raises ``ValueError`` without models
    and for stacked ones.
    """
    if not models or any(vae.members is not None or vae.latent_dim != 2 for vae in models.values()):
        raise ValueError(
            "models must map numbers of IAF steps to VAEs with two latents, not stacked, got "
            f"{ {count: (vae.latent_dim, vae.members) for count, vae in models.items()} } as (latents, "
            "members): take one member with nets.member"
        )
    rows: dict[int, Row] = {}
    for count in sorted(models):
        vae = models[count]
        x = torch.eye(4, dtype=(reference := next(vae.parameters())).dtype, device=reference.device)
        side = latent_plane.NUM_CELLS + 2 * _RIM
        at = latent_plane.CELL**0.5 * (torch.arange(side).to(reference) - 0.5 * (side - 1))
        nodes = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
        weights = torch.full_like(nodes[:, 0], latent_plane.CELL)
        terms = grid_terms(vae, x, nodes, weights)
        q = terms.log_q.exp()  # (4, N)
        log_owner = terms.log_q - math.log(4.0) - terms.log_q_agg  # (4, N): log q(x|z)
        wrong = kl_divergence(log_owner.mT, vae.decoder.log_probs(nodes), torch.ones_like(x[0]))  # (N,)
        maps = torch.cat([q.mean(0, keepdim=True), 0.25 * q]).reshape(5, side, side)
        z, _ = vae.posterior_sample(
            x, num_samples=NUM_SAMPLES, generator=torch.Generator(reference.device).manual_seed(seed)
        )  # (S, 4, 2)
        rows[count] = Row(
            elbo=terms.elbo.double().cpu(),
            gap=(terms.log_px - terms.elbo).double().cpu(),
            marginal_kl=float(terms.marginal_kl),
            owner_kl=float((weights * terms.log_q_agg.exp() * wrong).sum()),
            density=maps[:, _RIM:-_RIM, _RIM:-_RIM].float().cpu().numpy(),
            samples=z.transpose(0, 1).float().cpu().numpy(),
        )
    return Table(rows, float(terms.log_px.mean()), vae.decoder.sharpness)


def compute(table: Table, num_steps: int, point: str) -> Choice:
    """Look up this number of steps and this point, or all; ``ValueError`` for what is not offered."""
    if num_steps not in table.rows or point not in POINTS:
        raise ValueError(
            f"the numbers of steps are {list(table.rows)} and the points {POINTS}, got {num_steps} and "
            f"{point!r}: pick from these"
        )
    return Choice(table, num_steps, point)


def build(figure: Figure, choice: Choice) -> Artists:
    """Draw the aggregated posterior, the posteriors' samples, and the gap by its parts; return what moves."""
    table = choice.table
    panels = figure.subplot_mosaic([["plane", "samples", "gap"]], width_ratios=[1.0, 1.0, 1.05])
    ax = panels["plane"]
    image = latent_plane.heat_map(ax, choice.row.density[0], title=" ")
    # A clear title holds the place of the two that change.
    title = ax.annotate("", (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points",
                        size=12, weight="bold", va="baseline")  # fmt: skip
    borders = [ax.axvline(0.0), ax.axhline(0.0)]
    for line in borders:
        line.set(color="white", linewidth=1.0, alpha=0.6)
    circles = latent_plane.prior_circles(ax, name="p(z)")

    ax, half = panels["samples"], latent_plane.HALF_WIDTH
    ax.set(title="Samples of q(z|x)", xlabel="z₁", xlim=(-half, half), ylim=(-half, half), aspect="equal")
    ax.set(xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    ax.grid(False)
    for line in (ax.axvline, ax.axhline):
        line(0.0, color=plots.INK, linewidth=1.2)
    dots, names = [], []
    for i, (corner, colour) in enumerate(zip(_CORNERS, COLOURS, strict=True)):
        style = {"color": colour, "markersize": 3.6, "markeredgewidth": 0}
        dots += ax.plot([], [], "o", **style)
        names.append(ax.text(*(3.75 * corner), f"x = {i}", color=colour, weight="bold",
                             ha="right" if corner[0] > 0 else "left",
                             va="top" if corner[1] > 0 else "bottom"))  # fmt: skip

    ax, places = panels["gap"], np.arange(len(table.rows))
    holes = np.array([row.marginal_kl for row in table.rows.values()])
    owners = np.array([row.owner_kl for row in table.rows.values()])
    gaps = holes + owners
    most = 1.35 * max(gaps.max(), 0.01)
    ax.set(title="log p(x) − ELBO", xlabel="IAF steps", ylabel="average (nats)", ylim=(0, most))
    ax.set_xticks(places, [str(count) for count in table.rows])
    ax.grid(False)
    bars = [
        ax.bar(places, holes, 0.62, color=HOLES, linewidth=0, label="KL(q_agg ‖ p)").patches,
        ax.bar(places, owners, 0.62, bottom=holes, color=OWNERS, linewidth=0,
               label="KL(q(x|z) ‖ p(x|z))").patches,
    ]  # fmt: skip
    ax.legend(loc="upper right", borderaxespad=0)
    for place, gap in zip(places, gaps, strict=True):
        ax.annotate(f"{gap:.2f}", (place, gap), (0, 3), textcoords="offset points", ha="center")
    for one in panels.values():
        one.set_anchor("N")
    return {"image": image, "borders": borders, "circles": circles, "title": title, "dots": dots,
            "names": names, "holes": bars[0], "owners": bars[1]}  # fmt: skip


def draw(artists: Artists, choice: Choice) -> None:
    """Show the posteriors of these steps, the chosen point's in full colour."""
    row, index = choice.row, choice.index
    artists["image"].set_data(row.density[0 if index is None else index + 1])
    said = "Aggregate q_agg(z)" if index is None else f"Share q(z|x = {index})/4"
    artists["title"].set_text(said)
    for i in range(4):
        alpha = 0.85 if index in (None, i) else 0.12
        artists["dots"][i].set_data(*row.samples[i].T)
        artists["dots"][i].set_alpha(alpha)
        artists["names"][i].set_alpha(1.0 if index in (None, i) else 0.6)
    for count, *bars in zip(choice.table.rows, artists["holes"], artists["owners"], strict=True):
        for bar in bars:
            bar.set_alpha(1.0 if count == choice.num_steps else _FADED)


def numbers(choice: Choice) -> dict[str, str]:
    """What is printed beside the picture: averages, or the chosen point's."""
    row, index = choice.row, choice.index
    elbo, gap = (each.mean() if index is None else each[index] for each in (row.elbo, row.gap))
    return {
        "ELBO": _nats(float(elbo)),
        "log p(x) = −log 4": _nats(choice.table.log_px),
        "KL(q(z|x) ‖ p(z|x))": _nats(float(gap)),
        "KL(q_agg ‖ p)": _nats(row.marginal_kl),
        "KL(q(x|z) ‖ p(x|z))": _nats(row.owner_kl),
    }


def _nats(value: float) -> str:
    """With a true minus, and none before zero."""
    return f"{round(value, 3) + 0.0:.3f} nats".replace("-", "−")


def describe(choice: Choice) -> str:
    """The picture in words."""
    said, count = numbers(choice), choice.num_steps
    kind = "Gaussian posteriors" if count == 0 else f"{count} IAF step{'' if count == 1 else 's'}"
    whose = "The average ELBO" if choice.index is None else f"The ELBO of point {choice.index}"
    return (
        f"The four posteriors with {kind}, as a heat map and as samples over the four quadrants. {whose} is "
        f"{said['ELBO']} of at most {said['log p(x) = −log 4']}. Of the average gap of "
        f"{_nats(choice.row.mean_gap)} KL(q_agg ‖ p) is {said['KL(q_agg ‖ p)']}, and "
        f"KL(q(x|z) ‖ p(x|z)) is {said['KL(q(x|z) ‖ p(x|z))']}."
    )


TRY_THIS = (
    "**Try:** with 0 steps each posterior is a Gaussian: q_agg is four hills, with valleys between them and "
    "nothing far out, where p(z) still has mass. This costs 0.24 of the 0.36 nats. Choose one point: its own "
    "quarter of the circles is what it should fill, up to the straight borders. Press the right arrow: with "
    "2, 4 and 8 steps the four tile the prior, and the gap falls to a few hundredths of a nat. The decoder "
    "is the same throughout: all that was lost, the posterior had lost. Which of the two parts falls faster?"
)


def show(models: Mapping[int, VAE], *, num_steps: int = 0, point: str = ALL) -> LiveDemo:
    """Show the demo for trained four-point VAEs by their number of IAF steps, from these values on.

    ``point`` is "all" or one of "0" to "3". Errors as in :func:`tabulate` and :func:`compute`.
    """
    table = tabulate(models)
    return LiveDemo(
        name="four_points",
        controls={
            "num_steps": choice_slider("IAF steps", num_steps, list(table.rows)),
            "point": choice_buttons("Point x", point, POINTS),
        },
        compute=lambda num_steps, point: compute(table, num_steps, point),
        build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS, figsize=(9.6, 3.2),
    ).show()
