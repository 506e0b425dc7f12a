"""What is asked of a trained flow of images: bits/dim of levels, codes, images between two codes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from dgm_course.flows import Glow
from dgm_course.numerics import nats_to_bits_per_dim
from dgm_course.reproduce.record import Row

_CHUNK = 1000  # images in one pass


def bits_per_dim(
    model: Distribution,
    levels: Tensor,
    *,
    num_noises: int,
    generator: torch.Generator | None = None,
    chunk: int = _CHUNK,
) -> Tensor:
    """``-log p(y + u) / (m log 2)`` averaged over ``num_noises`` draws of u: levels ``(n, *event)`` -> (n,).

    ``model`` is a density of *levels* (not of data scaled to 1), so nothing has to be added. Ledger D4, D7.
    """
    with torch.no_grad():
        nats = [
            -torch.stack([model.log_prob(dequantized(part, generator)) for _ in range(num_noises)]).mean(0)
            for part in levels.split(chunk)
        ]
    return nats_to_bits_per_dim(torch.cat(nats), levels[0].numel())


def dequantized(levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``y + u`` with u uniform in [0, 1), of the same shape."""
    noise = torch.rand(levels.shape, generator=generator, dtype=levels.dtype, device=levels.device)
    return levels + noise


def encoded(glow: Glow, levels: Tensor) -> Tensor:
    """Latents of the middle of each level's bin, ``f(y + 1/2)``: no noise, so that an image has one code."""
    with torch.no_grad():
        return torch.cat([glow.encode(part + 0.5) for part in levels.split(_CHUNK)])


def decoded(glow: Glow, z: Tensor, num_levels: int) -> Tensor:
    """Levels of latents: the bin in which ``g(z)`` lies, clamped to 0 ... num_levels - 1."""
    with torch.no_grad():
        x = torch.cat([glow.decode(part) for part in z.split(_CHUNK)])
    return x.floor().clamp(0, num_levels - 1)


def interpolated(z_a: Tensor, z_b: Tensor, weight: float, *, spherical: bool = False) -> Tensor:
    """A point between latents ``(n, C, H, W)``: ``z_a`` at weight 0, ``z_b`` at 1.

    Linear, as in the Glow paper, or spherical: along the great circle, with the norm interpolated linearly.
    The linear midpoint of two independent latents of length sqrt(m) has length sqrt(m/2), like a sample at
    temperature .71; the spherical one keeps the length. (Opposite latents have no one great circle.)
    """
    if not spherical:
        return torch.lerp(z_a, z_b, weight)
    a, b = z_a.flatten(1), z_b.flatten(1)
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    angle = ((a / norm_a) * (b / norm_b)).sum(1, keepdim=True).clamp(-1, 1).acos()
    on_sphere = torch.sin((1 - weight) * angle) * a / norm_a + torch.sin(weight * angle) * b / norm_b
    way = torch.where(angle.sin() > 1e-6, on_sphere / angle.sin(), a / norm_a)  # one direction: stay on it
    return (torch.lerp(norm_a, norm_b, weight) * way).reshape(z_a.shape)


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """The mean of each class: ``(N, *event)`` and labels 0, 1, ... to ``(classes, *event)``."""
    return torch.stack([values[labels == label].mean(0) for label in labels.unique()])


def over_seeds(rows: list[Row]) -> Row:
    """Mean and standard error over seeds of each column; the error, ``*_se``, only with several seeds."""
    combined: Row = {}
    for column in rows[0]:
        values = torch.tensor([row[column] for row in rows], dtype=torch.float64)
        combined[column] = values.mean().item()
        if len(rows) > 1:
            combined[f"{column}_se"] = (values.std() / len(rows) ** 0.5).item()
    return combined
