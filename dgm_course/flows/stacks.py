"""Usual flows of vectors, built in one call: layers of couplings, or of autoregressive flows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator, nn

from dgm_course.flows.autoregressive import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from dgm_course.flows.base import Compose, Transform
from dgm_course.flows.coupling import AffineCoupling
from dgm_course.flows.elementwise import Permutation
from dgm_course.flows.masks import alternating_mask
from dgm_course.nets import MLP, MaskedMLP

AUTOREGRESSIVE = {"maf": MaskedAutoregressiveFlow, "iaf": InverseAutoregressiveFlow}


def realnvp_transform(
    num_dims: int,
    *,
    num_layers: int = 4,
    hidden: Sequence[int] = (64, 64),
    context: int = 0,
    members: int | None = None,
    generator: Generator | None = None,
) -> Compose:
    """Affine couplings of vectors ``(..., d)`` with alternating masks; starts as the identity.

    ``hidden`` are the widths of each conditioner's layers, ``context`` the size of what they read beside the
    kept entries, ``members`` the number of stacked flows. Ledger F3; Dinh et al. 2017. Raises ``ValueError``
    without layers and for ``d < 2``.
    """
    _check_layers(num_layers)
    layers = []
    for index in range(num_layers):
        mask = alternating_mask(num_dims, first=index % 2 == 0)
        kept = int(mask.sum())
        sizes = [kept + context, *hidden, 2 * (num_dims - kept)]
        net = MLP(sizes, members=members, generator=generator)
        layers.append(AffineCoupling(mask, _silent(net)))
    return Compose(layers)


def autoregressive_transform(
    kind: str,
    num_dims: int,
    *,
    num_layers: int = 2,
    hidden: Sequence[int] = (64, 64),
    context: int = 0,
    members: int | None = None,
    generator: Generator | None = None,
) -> Compose:
    """MAF or IAF layers (``kind`` "maf" or "iaf") of vectors ``(..., d)``, the order reversed between them.

    Starts as the identity, but that an even number of layers leaves the entries in reversed order: the
    density of a base with exchangeable entries is at the start what it was. Arguments as in
    :func:`realnvp_transform`; each width of ``hidden`` is at least d. Ledger F5; Papamakarios et al. 2017,
    Kingma et al. 2016. Raises ``ValueError`` without layers, for narrower ones and for another kind.
    """
    _check_layers(num_layers)
    if kind not in AUTOREGRESSIVE:
        raise ValueError(
            f"kind must be one of {sorted(AUTOREGRESSIVE)}, got {kind!r}: MAF is fast for densities, IAF for "
            "samples"
        )
    layers: list[Transform] = []
    for index in range(num_layers):
        net = MaskedMLP(num_dims, list(hidden), 2, context=context, members=members, generator=generator)
        if index:
            layers.append(Permutation.reverse(num_dims))
        layers.append(AUTOREGRESSIVE[kind](_silent(net)))
    return Compose(layers)


def _silent(net: MLP | MaskedMLP) -> nn.Module:
    """A conditioner that starts by saying nothing: no shift, log-scale 0."""
    for parameter in net.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return net


def _check_layers(num_layers: int) -> None:
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}: a flow needs a layer")
