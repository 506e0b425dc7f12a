"""Flows of four kinds and several depths fitted to unnormalised targets: what lecture 06's depth is made of.

All depths, targets and starts of one kind are trained as one stack as deep as the deepest: a member leaves
out the layers beyond its own depth. Ledger V2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from dgm_course.data import UnnormalisedTarget, banana_target, two_peaks_target, wave_target
from dgm_course.flows import (
    Compose,
    FixedAffine,
    Flow,
    PlanarFlow,
    RadialFlow,
    Transform,
    autoregressive_transform,
    constrained_u,
    planar,
    radial,
    realnvp_transform,
)
from dgm_course.nets import member
from dgm_course.train import fit_many

PLANAR, RADIAL, COUPLING, IAF = "planar", "radial", "coupling", "IAF"
KINDS = (PLANAR, RADIAL, COUPLING, IAF)
DEPTHS = (0, 1, 2, 4, 8)
_RATES = {PLANAR: 5e-2, RADIAL: 5e-2, COUPLING: 1.5e-2, IAF: 1.5e-2}
_HIDDEN = 16  # of each network
_WARM = 0.3  # share of the steps in which the weight of the target rises to 1, in every other start

Step = Callable[[Tensor], tuple[Tensor, Tensor]]


class Fits(NamedTuple):
    """A flow of every kind and depth for every target; its base is N(0, I), its first map an affine one."""

    targets: tuple[UnnormalisedTarget, ...]
    kinds: tuple[str, ...]
    depths: tuple[int, ...]
    flows: dict[tuple[str, str, int], Flow]  # (target's name, kind, depth)


def fit_default(
    *,
    kinds: Sequence[str] = KINDS,
    depths: Sequence[int] = DEPTHS,
    targets: Sequence[UnnormalisedTarget] | None = None,
    steps: int = 500,
    num_samples: int = 64,
    starts: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Fits:
    """Maximise the ELBO ``E_q[log density(z) - log q(z)]`` of every kind, depth and target; about 15 s.

    Depth 0 is a diagonal Gaussian, and what the layers of deeper flows push. Of ``starts`` runs, from other
    parameters and half of them with a target that is flat at first, the one with the best ELBO stays. By
    default the targets are a wave, a banana and two peaks. Ledger V2; Rezende & Mohamed 2015. Raises
    ``ValueError`` for unknown kinds, depths that do not ascend from 0 or more, and no starts.
    """
    depths, kinds = tuple(depths), tuple(kinds)
    if list(depths) != sorted(set(depths)) or not depths or depths[0] < 0 or depths[-1] < 1:
        raise ValueError(f"depths must ascend from 0 or more to 1 or more, got {depths}: such as {DEPTHS}")
    if not kinds or set(kinds) - set(KINDS) or starts < 1:
        raise ValueError(
            f"kinds are some of {KINDS} and starts at least 1, got {kinds} and {starts}: pick from these"
        )
    chosen = tuple([wave_target(), banana_target(), two_peaks_target()] if targets is None else targets)
    flows = {}
    for kind in kinds:
        flows |= _fit_kind(kind, depths, chosen, steps, num_samples, starts, seed, progress)
    return Fits(chosen, kinds, depths, flows)


def _fit_kind(
    kind: str,
    depths: tuple[int, ...],
    targets: tuple[UnnormalisedTarget, ...],
    steps: int,
    num_samples: int,
    starts: int,
    seed: int,
    progress: bool,
) -> dict[tuple[str, str, int], Flow]:
    shape = (len(targets), starts, len(depths))
    members = len(targets) * starts * len(depths)  # in this order, the depth last
    generator = Generator().manual_seed(seed)
    first = torch.arange(members) // len(depths) % starts  # the number of each member's start
    mean = 1.5 * torch.randn(members, 1, 2, generator=generator) * (first > 0)[:, None, None]
    stack = _STACKS[kind](max(depths), members, generator)
    mean, log_sd = nn.Parameter(mean), nn.Parameter(torch.zeros(members, 1, 2))
    depth = torch.tensor(depths).repeat(len(targets) * starts)
    used = [(depth > k)[:, None] for k in range(max(depths))]  # (E, 1)
    flat = torch.where(first % 2 == 0, 0.9, 0.0)[:, None]  # what the first weight of the target lacks, to 1

    def push(noise: Tensor) -> tuple[Tensor, Tensor]:
        """``noise (S, 2)`` to z ``(E, S, 2)`` and log target + log|det J| there, ``(E, S)`` each."""
        z, log_det = mean + log_sd.exp() * noise, log_sd.sum(-1)
        for step, on in zip(stack.steps(), used, strict=True):
            moved, more = step(z)
            z, log_det = torch.where(on.unsqueeze(-1), moved, z), log_det + more * on
        parts = zip(targets, z.chunk(len(targets)), strict=True)
        return torch.cat([target.log_density(part) for target, part in parts]), log_det

    def loss(step: int, generator: Generator) -> Tensor:
        log_target, log_det = push(torch.randn(num_samples, 2, generator=generator))
        weight = 1.0 - flat * max(0.0, 1.0 - step / (_WARM * steps))
        return -(weight * log_target + log_det).mean(-1)  # up to the base's entropy

    fit_many(loss, [*stack.parameters(), mean, log_sd], steps=steps, lr=_RATES[kind], lr_decay_from=0.5,
             clip_norm=10.0, seed=seed, progress=progress)  # fmt: skip
    with torch.no_grad():
        log_target, log_det = push(torch.randn(4096, 2, generator=generator))
        best = (log_target + log_det).mean(-1).reshape(shape).argmax(1)  # (T, D)
    flows = {}
    for t, target in enumerate(targets):
        for d, count in enumerate(depths):
            index = (t * starts + int(best[t, d])) * len(depths) + d
            base = FixedAffine(mean[index, 0].detach().clone(), log_sd[index, 0].detach().exp())
            flow = Flow(Compose([base, *stack.take(index, count)]), 2)
            flows[target.name, kind, count] = flow.requires_grad_(False)
    return flows


class _Planar(nn.Module):
    """Planar layers ``(E, L, ...)``: members first."""

    def __init__(self, num_layers: int, members: int, generator: Generator) -> None:
        super().__init__()
        shape = (members, num_layers, 1)
        self.u = nn.Parameter(0.1 * torch.randn(*shape, 2, generator=generator))
        self.w = nn.Parameter(torch.randn(*shape, 2, generator=generator))
        self.b = nn.Parameter(torch.randn(shape, generator=generator))

    def steps(self) -> list[Step]:
        """What each layer does to ``z (E, S, 2)``."""
        layers = zip(*(p.unbind(1) for p in (constrained_u(self.u, self.w), self.w, self.b)), strict=True)
        return [lambda z, layer=layer: planar(z, *layer) for layer in layers]

    def take(self, index: int, depth: int) -> list[Transform]:
        """One member's first layers."""
        return _filled(PlanarFlow, depth, index, u=self.u, w=self.w, b=self.b)


class _Radial(nn.Module):
    """Radial layers ``(E, L, ...)``: members first."""

    def __init__(self, num_layers: int, members: int, generator: Generator) -> None:
        super().__init__()
        shape = (members, num_layers, 1)
        self.z0 = nn.Parameter(1.5 * torch.randn(*shape, 2, generator=generator))
        self.log_alpha = nn.Parameter(torch.zeros(shape))
        self.raw_beta = nn.Parameter(RadialFlow(2).raw_beta.detach().expand(shape).clone())

    def steps(self) -> list[Step]:
        """What each layer does to ``z (E, S, 2)``."""
        alpha = self.log_alpha.exp()
        beta = nn.functional.softplus(self.raw_beta) - alpha
        layers = zip(*(p.unbind(1) for p in (self.z0, alpha, beta)), strict=True)
        return [lambda z, layer=layer: radial(z, *layer) for layer in layers]

    def take(self, index: int, depth: int) -> list[Transform]:
        """One member's first layers."""
        parts = {"z0": self.z0, "log_alpha": self.log_alpha, "raw_beta": self.raw_beta}
        return _filled(RadialFlow, depth, index, **parts)


def _filled(make: type[Transform], depth: int, index: int, **stacked: Tensor) -> list[Transform]:
    """Layers with one member's parameters; the stack's ``(E, L, 1, ...)`` have a place for samples."""
    layers = []
    for k in range(depth):
        layer = make(2, generator=Generator())
        layer.load_state_dict({name: value[index, k, 0] for name, value in stacked.items()})
        layers.append(layer)
    return layers


class _Networks(nn.Module):
    """Layers with stacked networks; a permutation belongs to the layer behind it."""

    def __init__(self, layers: Sequence[Transform]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def steps(self) -> list[Step]:
        """What each layer does to ``z (E, S, 2)``."""
        return list(self.layers)

    def take(self, index: int, depth: int) -> list[Transform]:
        """One member's first layers."""
        return [member(layer, index) for layer in self.layers[:depth]]


def _coupling(num_layers: int, members: int, generator: Generator) -> _Networks:
    kind = {"hidden": (_HIDDEN,), "members": members, "generator": generator}
    return _Networks(list(realnvp_transform(2, num_layers=num_layers, **kind)))


def _iaf(num_layers: int, members: int, generator: Generator) -> _Networks:
    kind = {"hidden": (_HIDDEN,), "members": members, "generator": generator}
    first, *rest = autoregressive_transform("iaf", 2, num_layers=num_layers, **kind)
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return _Networks([first, *(Compose(pair) for pair in pairs)])


_STACKS = {PLANAR: _Planar, RADIAL: _Radial, COUPLING: _coupling, IAF: _iaf}
