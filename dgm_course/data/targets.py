"""Densities known up to a factor, whose factor is known all the same: to hold an ELBO against its limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnnormalisedTarget:
    """``log_density(z) = log p(x, z)`` of some fixed x: ``(..., 2) -> (...)`` in nats, with known evidence.

    ``log_normaliser`` is ``log Z = log int exp(log_density)``, which no fit may use: an ELBO never exceeds
    it. All but 1e-12 of the mass lies in ``[-half_width, half_width]^2``. ``log_density`` keeps the dtype and
    device of z and raises ``ValueError`` unless z ends in two entries. Ledger V2.
    """

    name: str
    log_density: Callable[[Tensor], Tensor]
    log_normaliser: float
    half_width: float


def wave_target(sd: float = 0.4, width: float = 1.5) -> UnnormalisedTarget:
    """A band along a sine: z_1 of standard deviation ``width``, z_2 around ``sin(pi z_1 / 2)`` with ``sd``.

    ``log Z = log(2 pi width sd)`` in closed form. After Rezende & Mohamed 2015, whose band has no end.
    Raises ``ValueError`` unless both are positive and finite.
    """
    _positive(sd=sd, width=width)

    def log_density(z: Tensor) -> Tensor:
        z1, z2 = _coordinates(z)
        return -0.5 * (z1 / width).square() - 0.5 * ((z2 - torch.sin(0.5 * math.pi * z1)) / sd).square()

    half_width = max(8.0 * width, 1.0 + 8.0 * sd)
    return UnnormalisedTarget("wave", log_density, math.log(2 * math.pi * width * sd), half_width)


def banana_target(bend: float = 0.8, sd: float = 0.5) -> UnnormalisedTarget:
    """A bent band: z_1 ~ N(0, 1), z_2 around ``bend (z_1^2 - 1)`` with ``sd``; ``log Z = log(2 pi sd)``.

    Its upper end reaches far out, and so does ``half_width``. Raises ``ValueError`` unless ``sd`` is positive
    and both are finite.
    """
    _positive(sd=sd)
    if not math.isfinite(bend):
        raise ValueError(f"bend must be finite, got {bend}: 0 is a straight band")

    def log_density(z: Tensor) -> Tensor:
        z1, z2 = _coordinates(z)
        return -0.5 * z1.square() - 0.5 * ((z2 - bend * (z1.square() - 1.0)) / sd).square()

    half_width = max(8.0, abs(bend) * 55.0 + 8 * sd)
    return UnnormalisedTarget("banana", log_density, math.log(2 * math.pi * sd), half_width)


def two_peaks_target(distance: float = 4.0, sd: float = 0.6) -> UnnormalisedTarget:
    """Two round peaks, ``distance`` apart along z_1, of equal weight: ``log Z = log(4 pi sd^2)``.

    Raises ``ValueError`` unless both are positive and finite.
    """
    _positive(distance=distance, sd=sd)

    def log_density(z: Tensor) -> Tensor:
        z1, z2 = _coordinates(z)
        left, right = (-0.5 * ((z1 + s * 0.5 * distance) / sd).square() for s in (1.0, -1.0))
        return torch.logaddexp(left, right) - 0.5 * (z2 / sd).square()

    return UnnormalisedTarget(
        "two peaks", log_density, math.log(4 * math.pi * sd**2), 0.5 * distance + 8 * sd
    )


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}: it is a length")


def _coordinates(z: Tensor) -> tuple[Tensor, Tensor]:
    if z.shape[-1:] != (2,):
        raise ValueError(f"z must be (..., 2), got {tuple(z.shape)}: these targets live in the plane")
    z1, z2 = z.unbind(-1)
    return z1, z2
