"""What the latent carries as an autoregressive decoder sees more of the past, live and exact. Ledger C6.

The data are all 256 binary vectors of eight pixels with ``pi = 1/2 Bern(.8)^8 + 1/2 Bern(.2)^8``, the models
VAEs with one latent whose decoder reads the last r pixels, one stacked member for each r. Every number is a
sum over all x and a quadrature over z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from dgm_course import plots
from dgm_course.data import entropy, enumerable_binary
from dgm_course.demos.engine import Artists, LiveDemo, int_slider
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.nets import MLP, MaskedMLP, causal_mask
from dgm_course.train import fit_many
from dgm_course.vae import VAE, AutoregressiveDecoder, quadrature_elbo, quadrature_log_prob, vae_loss

NUM_PIXELS = 8
#: few ones to many ones, through the ink
ONES_COLOURS = LinearSegmentedColormap.from_list("ones", [plots.BLUE, plots.INK, plots.ORANGE])


class Table(NamedTuple):
    """The exact numbers of every member: E receptive fields, averages over the data."""

    fields: Tensor  # (E,) receptive field of each member
    nll: Tensor  # (E,) -E_pi log p(x), nats
    kl: Tensor  # (E,) E_pi KL(q(z|x) || p(z)), nats
    elbo: Tensor  # (E,) E_pi ELBO, nats
    entropy: float  # H(pi), nats
    z: Tensor  # (Z,) grid of the latent
    aggregate: Tensor  # (E, m + 1, Z) q(z|x) averaged over the x with that many ones


class Field(NamedTuple):
    """The member that the slider points at, in its table."""

    table: Table
    index: int


def train_default(*, steps: int = 2000, seed: int = 0, progress: bool = True) -> VAE:
    """Train the eight VAEs of lecture 01, r = 0, ..., 7, at once: about 8 s on one core.

    Every step sums over all 256 x, with a quadrature over z that changes from step to step: on one coarse
    rule the decoder would learn to hide its errors between the nodes.
    """
    x, log_pi = enumerable_binary(NUM_PIXELS, dtype=torch.get_default_dtype())
    generator, windows = torch.Generator().manual_seed(seed), list(range(NUM_PIXELS))
    kind = {"members": NUM_PIXELS, "generator": generator, "activation": torch.tanh}
    decoder = AutoregressiveDecoder(MaskedMLP(NUM_PIXELS, 16, window=windows, context=1, **kind))
    vae = VAE(MLP([NUM_PIXELS, 16, 2], **kind), decoder, latent_dim=1)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        terms = quadrature_elbo(vae, x, num_nodes=5 + step % 4)
        return vae_loss(terms, weights=log_pi.exp())  # (E,)

    fit_many(loss, vae.parameters(), steps=steps, lr=4e-2, lr_decay_from=0.3, seed=seed, progress=progress)
    return vae


@torch.no_grad()
def tabulate(vae: VAE, fields: Sequence[int] = range(NUM_PIXELS), *, num_nodes: int = 64) -> Table:
    """Compute the exact numbers of stacked VAEs with one latent; member e has receptive field ``fields[e]``.

    The sign of z means nothing, so each member's axis is turned until more ones mean larger z. Raises
    ``ValueError`` unless the VAE has one latent and as many members as ``fields``.
    """
    if vae.latent_dim != 1 or vae.members != len(fields):
        raise ValueError(
            f"the demo needs a stacked VAE with one latent and {len(fields)} members, one for each receptive "
            f"field, got latent_dim={vae.latent_dim} and members={vae.members}: build it with "
            f"latent_dim=1 and members={len(fields)}, or name its fields"
        )
    reference = next(vae.parameters())
    kind = {"dtype": reference.dtype, "device": reference.device}
    x, log_pi = enumerable_binary(NUM_PIXELS, **kind)
    pi = log_pi.exp()  # (256,)
    terms = quadrature_elbo(vae, x, num_nodes)
    nll = -(pi * quadrature_log_prob(vae, x, 4 * num_nodes)).sum(-1)  # (E,)
    mean, log_var = vae.encode(x)  # (E, 256, 1)
    ones = x.sum(-1)  # (256,)
    sign = torch.sign((pi * (ones - NUM_PIXELS / 2) * mean[..., 0]).sum(-1))  # (E,)
    z = torch.linspace(-3.6, 3.6, 181, **kind)
    turned = (mean * sign[:, None, None])[:, :, None]  # (E, 256, 1, 1)
    density = gaussian_log_prob(z[:, None], turned, log_var[:, :, None]).exp()  # (E, 256, Z)
    groups = torch.nn.functional.one_hot(ones.long()).to(x)  # (256, m + 1); pi is even within a group
    aggregate = torch.einsum("exz,xk->ekz", density, groups / groups.sum(0))
    results = (nll, (pi * terms.kl).sum(-1), (pi * terms.elbo).sum(-1))
    nll, kl, elbo = (value.double().cpu() for value in results)
    return Table(
        torch.tensor(list(fields)), nll, kl, elbo, float(entropy(log_pi.double())), z.cpu(), aggregate.cpu()
    )


def compute(table: Table, r: int) -> Field:
    """Look up the member with receptive field ``r``; ``ValueError`` if there is none."""
    (found,) = torch.nonzero(table.fields == r, as_tuple=True)
    if len(found) != 1:
        raise ValueError(f"no single model has receptive field {r}, only {table.fields.tolist()}: pick one")
    return Field(table, int(found))


def build(figure: Figure, field: Field) -> Artists:
    """Draw the mask, the two curves against r and the aggregate posteriors; return what moves."""
    panels = figure.subplot_mosaic(
        [["mask", "nll", "q"], ["mask", "kl", "q"]], width_ratios=[1.0, 1.15, 1.25]
    )
    table, fields = field.table, field.table.fields.tolist()
    ax = plots.mask_cells(panels["mask"], causal_mask(NUM_PIXELS, fields[field.index]))
    ax.set(title="Who reads whom", xlabel="output pixel j", ylabel="input pixel i")
    (cells,) = ax.collections

    nll = plots.curve(panels["nll"], table.fields, table.nll, marker="o", color=plots.ORANGE)
    plots.reference_line(nll, "H(π)", y=table.entropy, at_start=True)
    room = max(float(table.nll.max()) - table.entropy, 0.01)
    nll.set(title="Negative log-likelihood", ylabel="nats")
    nll.set_ylim(table.entropy - 0.15 * room, table.entropy + 1.15 * room)
    kl = plots.curve(panels["kl"], table.fields, table.kl, marker="o", color=plots.BLUE)
    kl.set(title="KL(q(z|x) ‖ p(z))", xlabel="receptive field r (pixels)", ylabel="nats")
    kl.set_ylim(-0.08 * float(table.kl.max()), 1.15 * float(table.kl.max()) + 0.01)
    for ax in (nll, kl):
        ax.set_xticks(fields, fields if ax is kl else [])
    here = {"marker": "o", "markersize": 13, "markeredgewidth": 2.4, "markerfacecolor": "none"}
    (nll_here,) = nll.plot([], [], color=plots.ORANGE, **here)
    (kl_here,) = kl.plot([], [], color=plots.BLUE, **here)

    q = panels["q"]
    counts = range(NUM_PIXELS + 1)
    colours = ONES_COLOURS(np.linspace(0, 1, len(counts)))
    curves = [q.plot(table.z, 0 * table.z, color=colours[k], linewidth=1.8)[0] for k in counts]
    zero = table.z.new_zeros(1)
    prior = gaussian_log_prob(table.z[:, None], zero, zero).exp()
    q.plot(table.z, prior, color=plots.INK, linestyle=(0, (4, 2)), label="prior p(z)")
    q.set(title="q(z|x), by the number of ones in x", xlabel="latent z", ylabel="density")
    q.set_ylim(0, 1.08 * float(table.aggregate.max()))
    q.legend(loc="upper left", borderaxespad=0)
    norm = BoundaryNorm(np.arange(-0.5, NUM_PIXELS + 1), len(counts))
    scale = ScalarMappable(norm, ListedColormap(colours))
    bar = figure.colorbar(scale, ax=q, ticks=[0, 4, 8], label="ones in x")
    bar.outline.set_visible(False)
    return {"cells": cells, "nll": nll_here, "kl": kl_here, "curves": curves}


def draw(artists: Artists, field: Field) -> None:
    """Fill the mask for this r, ring its points, and draw its aggregate posteriors."""
    table, e = field.table, field.index
    r = int(table.fields[e])
    artists["cells"].set_facecolors(plots.mask_colours(causal_mask(NUM_PIXELS, r)))
    artists["nll"].set_data([r], [float(table.nll[e])])
    artists["kl"].set_data([r], [float(table.kl[e])])
    for curve, density in zip(artists["curves"], table.aggregate[e].numpy(), strict=True):
        curve.set_ydata(density)


def numbers(field: Field) -> dict[str, str]:
    """What is printed beside the picture."""
    table, e = field.table, field.index
    return {
        "NLL": f"{float(table.nll[e]):.4f} nats",
        "entropy H(π)": f"{table.entropy:.4f} nats",
        "KL(q(z|x) ‖ p(z))": f"{float(table.kl[e]):.3f} nats",
        "−ELBO": f"{-float(table.elbo[e]):.4f} nats",
    }


def describe(field: Field) -> str:
    """The picture in words."""
    said = numbers(field)
    return (
        f"A decoder that reads the last r = {int(field.table.fields[field.index])} pixels: negative "
        f"log-likelihood {said['NLL']} against an entropy of {said['entropy H(π)']}, and a KL of "
        f"{said['KL(q(z|x) ‖ p(z))']}. The less the KL, the closer all q(z|x) lie to the prior."
    )


TRY_THIS = (
    "**Try:** press the right arrow from r = 0 to r = 7 and watch the curves on the right. With little past, "
    "z tells few ones (blue) from many (orange). With r = 7 the decoder needs no z: the curves merge into "
    "the prior, the KL is nearly 0, the likelihood is the best of all. Does the KL fall all the way?"
)


def show(vae: VAE | None = None, *, r: int = 3) -> LiveDemo:
    """Show the demo for stacked VAEs, r = 0, ..., 7 (``train_default()`` if none are given), from r on."""
    table = tabulate(vae if vae is not None else train_default())
    return LiveDemo(
        name="receptive_field",
        controls={"r": int_slider("Receptive field r", r, 0, NUM_PIXELS - 1)},
        compute=lambda r: compute(table, r),
        build=build, draw=draw, numbers=numbers, describe=describe, try_this=TRY_THIS, figsize=(9.6, 3.9),
    ).show()
