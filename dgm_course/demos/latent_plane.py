"""The plane of a two-dimensional latent: one square of cells, a density's heat map, the prior's circles.

What the demos of aggregated posteriors and priors share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from numpy.typing import NDArray
from torch import Tensor

#: the square reaches from -HALF_WIDTH to HALF_WIDTH along both axes, in NUM_CELLS cells
HALF_WIDTH, NUM_CELLS = 4.0, 128
#: top of the colours: about three times the peak of N(0, I)
MOST = 0.5
#: shares of the mass of N(0, I) inside its circles
SHARES = (0.5, 0.95)
CELL = (2 * HALF_WIDTH / NUM_CELLS) ** 2  # area
_CHUNK = 1 << 12  # cells whose density is asked for at once


def centres(reference: Tensor) -> Tensor:
    """The cells' centres along one axis, ``(N,)``, in the dtype and on the device of ``reference``."""
    step = 2 * HALF_WIDTH / NUM_CELLS
    steps = torch.arange(NUM_CELLS, dtype=reference.dtype, device=reference.device)
    return step * (steps + 0.5) - HALF_WIDTH


@torch.no_grad()
def density_map(log_density: Callable[[Tensor], Tensor], reference: Tensor) -> NDArray[np.float32]:
    """A density at the cells' centres, ``(N, N)``, rows along z_2.

    ``log_density`` takes ``z (m, 2)``, in the dtype and on the device of ``reference``, to ``(m,)`` nats.
    """
    at = centres(reference)
    z = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)  # (N^2, 2)
    log_p = torch.cat([log_density(part) for part in z.split(_CHUNK)])
    return log_p.exp().reshape(NUM_CELLS, NUM_CELLS).cpu().float().numpy()


def radius(share: float) -> float:
    """Of the circle about 0 with this share of the mass of N(0, I) in the plane inside it."""
    return math.sqrt(-2.0 * math.log1p(-share))


def heat_map(ax: Axes, density: NDArray[np.float32], *, title: str) -> AxesImage:
    """Draw a density on the square with its colour bar, values above ``MOST`` in the last colour.

    Colours go with the square root of the density, so that thin regions and holes can be told apart.
    """
    extent = (-HALF_WIDTH, HALF_WIDTH, -HALF_WIDTH, HALF_WIDTH)
    image = ax.imshow(density, norm=PowerNorm(0.5, 0.0, MOST), origin="lower", extent=extent,
                      interpolation="bilinear")  # fmt: skip
    ax.autoscale(False)  # points drawn later do not widen the square
    ticks = [-2, 0, 2]
    ax.set(title=title, xlabel="z₁", ylabel="z₂", xticks=ticks, yticks=ticks)
    ax.grid(False)
    bar = ax.figure.colorbar(image, ax=ax, label="density", extend="max", aspect=24, pad=0.03,
                             ticks=MOST * np.linspace(0, 1, 6) ** 2, format="{x:.2g}")  # fmt: skip
    bar.outline.set_visible(False)
    return image


def prior_circles(ax: Axes, *, name: str) -> list[Artist]:
    """Draw the circles that hold the shares of N(0, I), each with its share; return lines and texts."""
    turn = np.linspace(0, 2 * math.pi, 181)
    line = {"color": "white", "linewidth": 1.6, "linestyle": (0, (4, 2))}
    drawn: list[Artist] = []
    for share in SHARES:
        r = radius(share)
        drawn += ax.plot(r * np.cos(turn), r * np.sin(turn), **line)
        text = f"{share:.0%} of {name}" if share == SHARES[-1] else f"{share:.0%}"
        drawn.append(white_text(ax, 0.0, -r - 0.1, text, ha="center", va="top"))
    return drawn


def white_text(ax: Axes, x: float, y: float, text: str, **style: Any) -> Text:  # noqa: ANN401
    """Write on a heat map so that it reads on dark and bright cells alike."""
    return ax.text(x, y, text, color="white", path_effects=[withStroke(linewidth=2.2, foreground="#111")],
                   **style)  # fmt: skip
