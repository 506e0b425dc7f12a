"""The collapse phase diagram of the linear VAE, live: which latents survive at KL weight β and noise σ²."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dgm_course import plots
from dgm_course.demos.engine import Artists, LiveDemo, log_slider
from dgm_course.linear_gaussian import mutual_information
from dgm_course.linear_vae import CollapseSpectrum, collapse_spectrum, optimal_linear_vae

#: eigenvalues of the data's covariance: m = 6 directions
EIGENVALUES = (20.0, 8.0, 3.0, 1.0, 0.3, 0.1)
BETA_RANGE = (0.1, 10.0)
SIGMA2_RANGE = (0.05, 5.0)
ACTIVE, COLLAPSED = plots.BLUE, plots.ORANGE


class Phase(NamedTuple):
    """The linear VAE's optimum at one (β, σ²)."""

    beta: float
    sigma2: float
    eigenvalues: torch.Tensor  # (m,), descending
    spectrum: CollapseSpectrum  # fields (d,)
    mutual_information: float  # I_q[x, z], nats

    @property
    def threshold(self) -> float:
        """The line βσ² that an eigenvalue must exceed."""
        return self.beta * self.sigma2


def compute(
    beta: float, sigma2: float, eigenvalues: Sequence[float] = EIGENVALUES, num_latents: int = 5
) -> Phase:
    """Closed form: the optimum's spectrum and mutual information, for eigenvalues ``(m,)``. Ledger C5, C9."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64).sort(descending=True).values
    covariance = torch.diag(values)
    vae = optimal_linear_vae(covariance, num_latents, sigma2, beta)
    information = mutual_information(vae.V, torch.diag(vae.log_var.exp()), covariance)
    spectrum = collapse_spectrum(values, sigma2, beta, num_latents=num_latents)
    return Phase(beta, sigma2, values, spectrum, float(information))


def build(figure: Figure, phase: Phase) -> Artists:
    """Draw the three panels; return what moves: bars, the line βσ², the point."""
    panels = figure.subplot_mosaic([["spectrum", "phase", "kl"], ["spectrum", "phase", "var"]])
    num_latents, values = len(phase.spectrum.active), phase.eigenvalues.numpy()
    latents = np.arange(1, num_latents + 1)

    ax = plots.log_axes(panels["spectrum"], "y")
    low, high = BETA_RANGE[0] * SIGMA2_RANGE[0] / 1.5, BETA_RANGE[1] * SIGMA2_RANGE[1]  # of the line
    high = 10 * max(high, values[0])  # the legend stands above the highest line
    heights = np.maximum(values - low, 0)
    spectrum = ax.bar(np.arange(1, len(values) + 1), heights, 0.7, bottom=low, color=plots.INK)
    ax.set(title="Spectrum and the line βσ²", xlabel="direction j", ylabel="eigenvalue λⱼ", ylim=(low, high))
    ax.set_xticks(np.arange(1, len(values) + 1))
    ax.grid(False, axis="x")
    ax.legend(
        handles=[Patch(color=ACTIVE, label="active"), Patch(color=COLLAPSED, label="collapsed")],
        loc="upper right", borderaxespad=0,
    )
    line = ax.axhline(phase.threshold, color=plots.GREEN)
    line_name = ax.text(len(values) + 0.5, phase.threshold, "βσ²", color=plots.GREEN, va="bottom", ha="right")

    ax = plots.log_axes(panels["phase"])
    betas, colours = np.array(BETA_RANGE), colormaps["viridis"](np.linspace(0.05, 0.95, num_latents + 1))
    edges = [1e9, *np.maximum(values[:num_latents], 1e-9), 1e-9]  # of βσ², from no active latent to all
    for colour, (above, below) in zip(colours, pairwise(edges), strict=True):
        ax.fill_between(betas, below / betas, above / betas, color=colour, linewidth=0)
    norm = BoundaryNorm(np.arange(-0.5, num_latents + 1), num_latents + 1)
    scale = ScalarMappable(norm, ListedColormap(colours))
    bar = figure.colorbar(scale, ax=ax, label="active latents", ticks=range(num_latents + 1))
    bar.outline.set_visible(False)
    ax.grid(False)
    ax.set(title="Phase diagram", xlabel="KL weight β", ylabel="noise σ²", xlim=BETA_RANGE, ylim=SIGMA2_RANGE)
    (equal,) = ax.plot([], [], color="white", linestyle=(0, (4, 2)), linewidth=1.6)
    point_style = {"color": "white", "markeredgecolor": "black", "markersize": 11, "markeredgewidth": 2}
    (point,) = ax.plot([], [], "o", clip_on=False, **point_style)

    most = 0.5 * np.log(values.max() / (BETA_RANGE[0] * SIGMA2_RANGE[0]))
    kl = panels["kl"].bar(latents, np.zeros(num_latents), 0.7)
    panels["kl"].set(title="KL of each latent", ylabel="nats", ylim=(0, 1.05 * most))
    var = panels["var"].bar(latents, np.zeros(num_latents), 0.7)
    panels["var"].set(title="Posterior variance", xlabel="latent j", ylabel="variance", ylim=(0, 1.05))
    for name in ("kl", "var"):
        panels[name].set_xticks(latents)
        panels[name].grid(False, axis="x")
    return {
        "spectrum": list(spectrum), "line": line, "name": line_name, "equal": equal, "point": point,
        "kl": list(kl), "var": list(var),
    }


def draw(artists: Artists, phase: Phase) -> None:
    """Move the line, the point and the bars, and colour each direction by its fate."""
    active = phase.spectrum.active.tolist()
    colours = [ACTIVE if alive else COLLAPSED for alive in active]
    for bar, colour in zip(artists["spectrum"], colours, strict=False):  # directions beyond d stay grey
        bar.set_facecolor(colour)
    artists["line"].set_ydata([phase.threshold] * 2)
    artists["name"].set_y(1.05 * phase.threshold)
    artists["point"].set_data([phase.beta], [phase.sigma2])
    betas = np.array(BETA_RANGE)  # a straight line on log axes
    artists["equal"].set_data(betas, phase.threshold / betas)
    for name, heights in (("kl", phase.spectrum.kl_per_dim), ("var", phase.spectrum.posterior_var)):
        for bar, height, colour in zip(artists[name], heights.tolist(), colours, strict=True):
            bar.set_height(height)
            bar.set_facecolor(colour)


def numbers(phase: Phase) -> dict[str, str]:
    """What is printed beside the picture."""
    active = phase.spectrum.active
    return {
        "Active latents": f"{int(active.sum())} of {len(active)}",
        "βσ²": f"{phase.threshold:.3g}",
        "KL(q(z|x) ‖ p(z))": f"{float(phase.spectrum.kl_per_dim.sum()):.3f} nats",
        "I[x, z]": f"{phase.mutual_information:.3f} nats",
    }


def describe(phase: Phase) -> str:
    """The picture in words."""
    said = numbers(phase)
    return (
        f"At β = {phase.beta:.3g} and σ² = {phase.sigma2:.3g} the line βσ² stands at {said['βσ²']}: "
        f"{said['Active latents']} latent directions have an eigenvalue above it and are active, with a "
        f"total KL of {said['KL(q(z|x) ‖ p(z))']}. The phase diagram's point lies in the band of that number."
    )


TRY_THIS = (
    "**Try:** focus a slider and press the arrow keys. Raise β until the third bar of the spectrum changes "
    "colour, then lower σ² by the same factor: only the product βσ² counts. Just before a direction "
    "collapses, its KL is nearly 0 and its posterior variance nearly 1: collapse comes gradually, one by one."
)


def show(
    eigenvalues: Sequence[float] | torch.Tensor = EIGENVALUES,
    num_latents: int = 5,
    *,
    beta: float = 1.0,
    sigma2: float = 0.5,
) -> LiveDemo:
    """Show the demo for data with these covariance eigenvalues ``(m,)``, from ``beta`` and ``sigma2`` on."""

    def at(beta: float, sigma2: float) -> Phase:
        return compute(beta, sigma2, eigenvalues, num_latents)

    demo = LiveDemo(
        name="phase_diagram",
        controls={
            "beta": log_slider("KL weight β", beta, *BETA_RANGE),
            "sigma2": log_slider("Noise σ²", sigma2, *SIGMA2_RANGE),
        },
        compute=at, build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS,
        figsize=(9.6, 3.9),
    )
    return demo.show()
