"""The importance-weighted bound in one dimension, live and exact: what K samples make of a poor q.

The posterior is a skewed mixture of two Gaussians, ``log p(x)`` is -3 nats, and q(z|x) is one Gaussian whose
mean and width are the controls. All numbers but the one draw's are integrals. Ledger I2, I3, I4, I8.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from torch import Tensor

from dgm_course import plots
from dgm_course.bounds import (
    effective_sample_size,
    exact_iwae_bound,
    implicit_posterior_log_prob,
    iwae_gap,
    normalized_weights,
)
from dgm_course.data import bimodal
from dgm_course.demos.engine import Artists, LiveDemo, choice_slider, linear_slider, log_slider
from dgm_course.divergences import chi2_divergence, kl_divergence
from dgm_course.gaussian import gaussian_log_prob

#: log p(x) of the one x of this demo, nats
LOG_PX = -3.0
#: p(z|x)
POSTERIOR = bimodal(weights=(0.7, 0.3), means=(-1.1, 1.6), sds=(0.75, 0.4))
COUNTS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
MEAN_RANGE = (-2.0, 2.0)
SD_RANGE = (10**-0.35, 10**0.2)  # below 0.75 / sqrt 2 = 0.53 the weights have no variance
Q, IMPLICIT, LAW = plots.ORANGE, plots.BLUE, plots.GREEN
_VIEW = (-4.2, 4.2)  # of z
_LIGHTEST = 1e-5  # weight: what is below lies on the foot of the panel


class Ground(NamedTuple):
    """What no control changes."""

    z: Tensor  # (N,) nodes of the quadrature
    weights: Tensor  # (N,)
    log_posterior: Tensor  # (N,)
    counts: Tensor  # (C,) K of the curve, any real number from 1 on
    noise: Tensor  # (1000,) the one draw, as standard normal numbers
    seen: Tensor  # (N,) whether a node lies in the picture


class Bound(NamedTuple):
    """The bound at one K and one q."""

    num_samples: int  # K
    mean: float  # of q
    sd: float
    log_q: Tensor  # (N,) at the nodes
    log_implicit: Tensor  # (N,) q_EW
    curve: Tensor  # (C,) L_K along the curve, nats
    bound: float  # L_K, nats
    elbo_implicit: float  # ELBO(q_EW), nats
    chi2: float  # chi^2(p(z|x) || q), infinite where the weights have no variance
    samples: Tensor  # (K,) z_k ~ q
    sample_weights: Tensor  # (K,) they sum to 1
    effective: float  # effective sample size of this draw, between 1 and K


@cache
def ground() -> Ground:
    """Nodes from -59 to 59 that stand 0.06 apart in the middle and ever wider outside (``z = 2 sinh t``).

    p^2 / q, the integrand of chi^2, peaks far outside where q's width is close to the limit.
    """
    step, scale = 0.03, 2.0
    t = step * torch.arange(-136, 137, dtype=torch.float64)
    z, weights = scale * torch.sinh(t), step * scale * torch.cosh(t)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(COUNTS[-1], generator=generator, dtype=torch.float64)
    counts = torch.logspace(0.0, math.log10(COUNTS[-1]), 61, dtype=torch.float64)
    seen = (z > _VIEW[0] - 0.2) & (z < _VIEW[1] + 0.2)
    return Ground(z, weights, POSTERIOR.log_prob(z.unsqueeze(-1)), counts, noise, seen)


def compute(num_samples: int, mean: float, sd: float) -> Bound:
    """Exact L_K, ELBO(q_EW) and chi^2 at ``q = N(mean, sd^2)``, and one draw of K samples. Ledger I2, I3, I4.

    The draw's noise is always the same, so that its samples move smoothly with q; its effective sample size
    is the warning light of ledger I8.
    """
    z, weights, log_posterior, counts, noise, _ = ground()
    log_q = _log_q(z, mean, sd)
    log_joint = LOG_PX + log_posterior
    all_counts = torch.cat([counts, counts.new_tensor([num_samples])])
    bounds = exact_iwae_bound(log_joint, log_q, weights, all_counts)  # (C + 1,)
    log_implicit = implicit_posterior_log_prob(log_joint, log_q, weights, num_samples)
    samples = mean + sd * noise[:num_samples]
    log_w = LOG_PX + POSTERIOR.log_prob(samples.unsqueeze(-1)) - _log_q(samples, mean, sd)
    finite = sd**2 > 0.5 * float(POSTERIOR.sds.max()) ** 2  # else p^2 / q grows without end in the tails
    return Bound(
        num_samples, mean, sd, log_q, log_implicit,
        curve=bounds[:-1],
        bound=float(bounds[-1]),
        elbo_implicit=LOG_PX - float(kl_divergence(log_implicit, log_posterior, weights)),
        chi2=float(chi2_divergence(log_posterior, log_q, weights)) if finite else math.inf,
        samples=samples,
        sample_weights=normalized_weights(log_w),
        effective=float(effective_sample_size(log_w)),
    )


def _log_q(z: Tensor, mean: float, sd: float) -> Tensor:
    return gaussian_log_prob(z.unsqueeze(-1), mean, 2.0 * math.log(sd))


def build(figure: Figure, bound: Bound) -> Artists:
    """Draw densities above weights over one z axis, and the bound beside them; return what moves."""
    panels = figure.subplot_mosaic(
        [["density", "bound"], ["weights", "bound"]], width_ratios=[1.25, 1.0], height_ratios=[1.5, 1.0]
    )
    z, _, log_posterior, counts, _, seen = ground()

    ax = panels["density"]
    ax.fill_between(z[seen], log_posterior.exp()[seen], color=plots.INK, alpha=0.28, linewidth=0,
                    label="posterior p(z|x)")  # fmt: skip
    (q,) = ax.plot([], [], color=Q, label="q(z|x)")
    (implicit,) = ax.plot([], [], color=IMPLICIT, label="q_EW")
    area = ax.add_patch(Polygon([[0, 0]], closed=True, color=IMPLICIT, alpha=0.16, linewidth=0))
    ax.set(title="K samples turn q into q_EW", ylabel="density", xlim=_VIEW, ylim=(0, 1.2))
    ax.set_yticks([0.0, 0.5, 1.0])
    ax.legend(loc="upper left", borderaxespad=0, ncols=3, columnspacing=1.6)
    ax.tick_params(labelbottom=False)

    ax = panels["weights"]
    ax.set_yscale("log")
    (dots,) = ax.plot([], [], "o", color=Q, alpha=0.6, markeredgewidth=0)
    even = ax.axhline(1.0, color=plots.INK, linestyle=(0, (4, 2)), linewidth=1.6)
    even_name = ax.text(_VIEW[1], 1.0, "1/K", ha="right", va="bottom")
    ax.set(title="Weights of one draw", xlabel="z", ylabel="weight", xlim=_VIEW, ylim=(0.5 * _LIGHTEST, 4.0))
    ax.set_yticks([_LIGHTEST, 1e-3, 1e-1], ["≈ 0", "0.001", "0.1"])
    ax.minorticks_off()
    figure.align_ylabels([panels["density"], ax])

    ax = plots.log_axes(panels["bound"], "x")
    plots.reference_line(ax, f"log p(x) = −{-LOG_PX:g}", y=LOG_PX, at_start=True)
    (curve,) = ax.plot(counts.numpy(), bound.curve.numpy(), color=IMPLICIT, label="L_K, exact")
    dashed = {"linestyle": (0, (4, 2)), "zorder": 1.9, "label": "log p(x) − χ²/(2K)"}
    (law,) = ax.plot(*curve.get_data(), color=LAW, **dashed)
    (here,) = ax.plot([], [], "o", color=IMPLICIT, markersize=10)
    ax.set(title="L_K rises to log p(x)", xlabel="samples K", ylabel="nats")
    ax.set(xlim=(0.85, 1.18 * COUNTS[-1]), ylim=(LOG_PX - 2.2, LOG_PX + 0.7))
    ax.legend(loc="upper right", borderaxespad=0)  # above log p(x), where no bound is
    return {
        "q": q, "implicit": implicit, "area": area, "dots": dots, "even": even, "even_name": even_name,
        "law": law, "curve": curve, "here": here,
    }


def draw(artists: Artists, bound: Bound) -> None:
    """Move the two densities, the dots, both curves and the point."""
    z, _, _, counts, _, seen = ground()
    x, q, implicit = (t[seen].numpy() for t in (z, bound.log_q.exp(), bound.log_implicit.exp()))
    artists["q"].set_data(x, q)
    artists["implicit"].set_data(x, implicit)
    artists["area"].set_xy([*zip(x, implicit, strict=True), (x[-1], 0.0), (x[0], 0.0)])
    artists["dots"].set_data(bound.samples.numpy(), bound.sample_weights.clamp(min=_LIGHTEST).numpy())
    artists["dots"].set_markersize(9.0 - 2.0 * math.log10(bound.num_samples))
    artists["even"].set_ydata([1 / bound.num_samples] * 2)
    artists["even_name"].set_y(1.1 / bound.num_samples)
    artists["curve"].set_ydata(bound.curve.numpy())
    artists["here"].set_data([bound.num_samples], [bound.bound])
    law = LOG_PX - iwae_gap(bound.chi2, counts)
    artists["law"].set_ydata(law.clamp(min=LOG_PX - 100.0).numpy())  # out of sight where it is infinite


def numbers(bound: Bound) -> dict[str, str]:
    """What is printed beside the picture."""
    predicted = iwae_gap(bound.chi2, bound.num_samples)
    return {
        "L_K": f"{bound.bound:.4f} nats".replace("-", "−"),
        "log p(x) − L_K": f"{LOG_PX - bound.bound:.3g} nats",
        "χ²/(2K)": f"{predicted:.3g} nats" if math.isfinite(predicted) else "infinite",
        "ELBO(q_EW)": f"{bound.elbo_implicit:.4f} nats".replace("-", "−"),
        "ESS": f"{bound.effective:.1f} of {bound.num_samples}",
    }


def describe(bound: Bound) -> str:
    """The picture in words."""
    said = numbers(bound)
    return (
        f"With K = {bound.num_samples} samples of q = N({bound.mean:.3g}, {bound.sd:.3g}²) the bound L_K is "
        f"{said['L_K']}, {said['log p(x) − L_K']} below log p(x); χ²/(2K) is {said['χ²/(2K)']}. The implicit "
        f"posterior q_EW has an ELBO of {said['ELBO(q_EW)']}. The effective sample size of one draw is "
        f"{said['ESS']}."
    )


TRY_THIS = (
    "**Try:** raise K: q_EW leaves q for the posterior, and once the blue and the green curve have met, ten "
    "times the samples leave a tenth of the gap. Then put q on the left mode: mean −1.1, width 0.631. At "
    "K = 100 this draw has almost equal weights, ESS 97 of 100, and no sample near the other mode; L_K, the "
    "mean over draws, lacks a quarter of a nat. One step narrower, and another: what becomes of χ², of L_K?"
)


def show(*, num_samples: int = 5, mean: float = 1.0, sd: float = 1.0) -> LiveDemo:
    """Show the demo, from these values of its controls on."""
    return LiveDemo(
        name="importance_bound",
        controls={
            "num_samples": choice_slider("Samples K", num_samples, COUNTS),
            "mean": linear_slider("Mean of q", mean, *MEAN_RANGE, step=0.1),
            "sd": log_slider("Width of q (sd)", sd, *SD_RANGE),
        },
        compute=compute, build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS,
        figsize=(9.6, 4.2),
    ).show()
