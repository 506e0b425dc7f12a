"""Every kind of prior trained at several sizes on one frozen encoder: what the choice of a prior is made of.

Ledger S5.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgm_course.priors import (
    AggregatedPosterior,
    FlowPrior,
    MixturePrior,
    Prior,
    StandardNormalPrior,
    VampPrior,
    cross_entropy,
)
from dgm_course.train import fit

NORMAL, MIXTURE, VAMP, REALNVP, MAF, AGGREGATED = "N(0, I)", "mixture", "VampPrior", "RealNVP", "MAF", "q_agg"
#: sizes of each kind, small to large; the last one is for the 1497 training digits
SIZES = {MIXTURE: (1, 5, 20, 100), VAMP: (3, 10, 50, 200), REALNVP: (1, 2, 4, 6), MAF: (1, 2, 3, 4),
         AGGREGATED: (10, 100, 500, 1497)}  # fmt: skip
_RATES = {MIXTURE: 3e-2, VAMP: 2e-1, REALNVP: 1e-2, MAF: 1e-2}


class Fitted(NamedTuple):
    """A frozen encoder, what it makes of the training data, and the priors of every kind and size."""

    encoder: nn.Module
    mean: Tensor  # (n, 2)
    log_var: Tensor  # (n, 2)
    sizes: dict[str, tuple[int, ...]]
    priors: dict[str, tuple[Prior, ...]]  # small to large


def fit_priors(
    encoder: nn.Module,
    x: Tensor,
    *,
    sizes: Mapping[str, Sequence[int]] = SIZES,
    steps: int = 300,
    batch_size: int = 128,
    seed: int = 0,
) -> Fitted:
    """Train every kind of prior at every size on a frozen encoder's latents. Ledger S5.

    ``encoder`` maps ``x (n, m)``, values from 0 to 1, to ``(n, 4)``: means and log-variances of a
    two-dimensional latent; a copy of it is frozen. ``sizes`` names as many sizes for each kind of ``SIZES``.
    The smaller aggregated posteriors hold the first of the larger ones' data points. Raises ``ValueError``
    for another latent or other kinds, or sizes that do not fit the data.
    """
    encoder = copy.deepcopy(encoder).requires_grad_(False)
    mean, log_var = encode(encoder, x)
    wanted = {kind: tuple(sizes[kind]) for kind in SIZES if kind in sizes}
    _check(wanted, sizes, len(x))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    priors: dict[str, tuple[Prior, ...]] = {
        NORMAL: (StandardNormalPrior(2).to(mean.device, mean.dtype),) * len(wanted[MIXTURE])
    }
    for kind, counts in wanted.items():
        made = [_start(kind, count, encoder, x[order], mean[order], log_var[order], seed) for count in counts]
        for prior in made if kind in _RATES else []:

            def loss(_: int, generator: torch.Generator, prior: Prior = prior) -> Tensor:
                return cross_entropy(prior, mean, log_var, batch_size=batch_size, generator=generator)

            fit(loss, prior.own_parameters(), steps=steps, lr=_RATES[kind], lr_decay_from=0.3, seed=seed,
                progress=False)  # fmt: skip
        priors[kind] = tuple(made)
    return Fitted(encoder, mean, log_var, wanted, priors)


@torch.no_grad()
def encode(encoder: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance ``(n, 2)`` of ``x (n, m)``; ``ValueError`` for another latent than a plane."""
    parameters = encoder(x)
    if x.dim() != 2 or parameters.shape != (len(x), 4):
        raise ValueError(
            f"the demo shows a latent of two dimensions: the encoder must map x (n, m) to (n, 4), got x "
            f"{tuple(x.shape)} and {tuple(parameters.shape)}: train with latent_dim=2, take one member"
        )
    mean, log_var = parameters.chunk(2, dim=-1)
    return mean, log_var


def _check(wanted: dict[str, tuple[int, ...]], sizes: Mapping[str, Sequence[int]], n: int) -> None:
    if wanted.keys() != SIZES.keys() or len(sizes) != len(wanted) or len(set(map(len, wanted.values()))) != 1:
        raise ValueError(
            f"sizes must name equally many sizes for each of {list(SIZES)}, got {dict(sizes)}: change SIZES"
        )
    for kind, counts in wanted.items():
        largest = max(counts) if kind in (MIXTURE, VAMP, AGGREGATED) else 1
        if min(counts) < 1 or list(counts) != sorted(set(counts)) or largest > n:
            raise ValueError(
                f"the sizes of {kind} must ascend from 1 or more, with components of their own among the "
                f"{n} data points, got {counts}: pass sizes="
            )


def _start(
    kind: str, size: int, encoder: nn.Module, x: Tensor, mean: Tensor, log_var: Tensor, seed: int
) -> Prior:
    """A prior before training, where its kind starts well."""
    generator = torch.Generator().manual_seed(seed)
    if kind == VAMP:
        return VampPrior(encoder, x[:size], 2, bounds=(0.0, 1.0))
    if kind == AGGREGATED:
        return AggregatedPosterior(mean[:size], log_var[:size])
    if kind == MIXTURE:
        mixture = MixturePrior(size, 2, generator=generator).to(mean.device, mean.dtype)
        mixture.start_from(mean, log_var, torch.Generator(mean.device).manual_seed(seed))
        return mixture
    make = FlowPrior.realnvp if kind == REALNVP else FlowPrior.maf
    return make(2, num_layers=size, hidden=64, generator=generator).to(mean.device, mean.dtype)
