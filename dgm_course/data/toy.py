"""Toy densities in one and two dimensions: each one knows its exact log-density and samples from it.

They share one protocol, ``Density``. ``log_prob(x)`` takes ``x (..., num_dims)`` to ``(...)`` in the dtype
and on the device of ``x``; ``sample(n, generator=...)`` returns ``(n, num_dims)``, drawn on the generator's
device. All values are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dgm_course.data.densities import Device, GaussianMixture, as_rows, draw_device
from dgm_course.numerics import gauss_legendre


def bimodal(
    weights: Sequence[float] = (0.5, 0.5),
    means: Sequence[float] = (-2.0, 2.0),
    sds: Sequence[float] = (0.5, 0.5),
) -> GaussianMixture:
    """A one-dimensional mixture of normals, two modes unless more are given; ``x`` is ``(..., 1)``.

    >>> round(bimodal().log_prob(torch.zeros(3, 1))[0].item(), 4)
    -8.2258
    """
    weights_t, means_t, sds_t = (torch.tensor(list(v), dtype=torch.float64) for v in (weights, means, sds))
    return GaussianMixture(weights_t, means_t.unsqueeze(-1), sds_t)


def ring(num_modes: int = 8, radius: float = 2.0, sd: float = 0.1) -> GaussianMixture:
    """Equal Gaussians evenly spaced on a circle; ``.means (num_modes, 2)`` holds the modes."""
    _need_modes(num_modes)
    angle = torch.arange(num_modes, dtype=torch.float64) * (2.0 * math.pi / num_modes)
    return _equal_mixture(radius * torch.stack([angle.cos(), angle.sin()], dim=-1), sd)


def grid(side: int = 5, spacing: float = 2.0, sd: float = 0.05) -> GaussianMixture:
    """``side * side`` equal Gaussians on a square lattice centred at the origin, 25 by default."""
    _need_modes(side)
    axis = (torch.arange(side, dtype=torch.float64) - 0.5 * (side - 1)) * spacing
    return _equal_mixture(torch.cartesian_prod(axis, axis), sd)


def two_moons(noise: float = 0.1) -> GaussianMixture:
    """Two interleaving half circles, blurred by Gaussian noise, with an exact density.

    ``p(x) = 1/2 sum_j 1/pi int_0^pi N(x; c_j(t), noise^2 I) dt`` with the arcs
    ``c_1(t) = (cos t, sin t)`` and ``c_2(t) = (1 - cos t, 1/2 - sin t)``. The integral is done by
    Gauss-Legendre quadrature with nodes much closer than the noise, which makes p a mixture of many
    Gaussians, exact to rounding in float64; the sampler draws from that same mixture.
    Raises ``ValueError`` for a noise below 0.01.
    """
    if not 0.01 <= noise < math.inf:
        raise ValueError(
            f"noise must be at least 0.01 and finite, got {noise}: a density needs arcs of some width; use "
            "0.05 to 0.3"
        )
    nodes, weights = gauss_legendre(0.0, math.pi, max(64, math.ceil(12.0 / noise)))
    t = nodes.squeeze(-1)  # (N,)
    upper = torch.stack([t.cos(), t.sin()], dim=-1)
    lower = torch.stack([1.0 - t.cos(), 0.5 - t.sin()], dim=-1)
    means = torch.cat([upper, lower])  # (2N, 2)
    return GaussianMixture(weights.repeat(2) / (2.0 * math.pi), means, torch.full_like(means[:, 0], noise))


class Pinwheel:
    """Arms of a pinwheel: Gaussian spokes bent by a rotation whose angle grows with the radius.

    Spoke k is ``v = R(2 pi k / num_arms) u``, ``u ~ N((radius, 0), diag(radial_sd^2, tangential_sd^2))``,
    and ``x = R(twist |v|) v``. That rotation keeps the radius, so it is a bijection with Jacobian determinant
    one, and ``p(x) = 1/num_arms sum_k N(R(-2 pi k / num_arms - twist |x|) x; (radius, 0), diag(...))`` is
    exact. (In Johnson et al. 2016 the angle depends on the spoke's first coordinate instead, which is not
    injective and has no such density.) Raises ``ValueError`` for no arms or a standard deviation that is not
    positive.
    """

    num_dims = 2

    def __init__(
        self,
        num_arms: int = 5,
        radius: float = 2.0,
        radial_sd: float = 0.6,
        tangential_sd: float = 0.15,
        twist: float = 0.6,
    ) -> None:
        _need_modes(num_arms)
        angle = torch.arange(num_arms, dtype=torch.float64) * (2.0 * math.pi / num_arms)
        self.angles = angle  # (K,)
        self.twist = twist
        self.spoke = (radius, radial_sd, tangential_sd)
        if not min(radial_sd, tangential_sd) > 0:
            raise ValueError(
                f"standard deviations are positive, got radial_sd={radial_sd} and "
                f"tangential_sd={tangential_sd}: give the standard deviation itself, not its logarithm"
            )

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density: ``(..., 2) -> (...)``."""
        as_rows(x, 2)
        radius, radial_sd, tangential_sd = self.spoke
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        u = _rotate(x.unsqueeze(-2), -self.twist * length - self.angles.to(x))  # (..., K, 2)
        radial, tangential = (u[..., 0] - radius) / radial_sd, u[..., 1] / tangential_sd
        log_scale = math.log(2.0 * math.pi * radial_sd * tangential_sd * len(self.angles))
        return torch.logsumexp(-0.5 * (radial.square() + tangential.square()), dim=-1) - log_scale

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device = None,
    ) -> Tensor:
        """Draw ``n`` points, ``(n, 2)``: a spoke, its Gaussian, the rotation."""
        place = draw_device(n, generator)
        radius, radial_sd, tangential_sd = self.spoke
        arm = torch.randint(len(self.angles), (n,), generator=generator, device=place)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64, device=place)
        u = torch.stack([radius + radial_sd * noise[:, 0], tangential_sd * noise[:, 1]], dim=-1)
        angle = self.angles.to(place)[arm] + self.twist * torch.linalg.vector_norm(u, dim=-1)
        return _rotate(u, angle).to(dtype=dtype, device=device or place)


def pinwheel(num_arms: int = 5, twist: float = 0.6) -> Pinwheel:
    """A :class:`Pinwheel` with ``num_arms`` arms, each turned by ``twist`` radians a unit of radius."""
    return Pinwheel(num_arms=num_arms, twist=twist)


class Checkerboard:
    """Uniform on the dark squares of a board over ``[-half_width, half_width)^2``.

    ``p(x) = 1 / (number of dark squares * area of one)`` on them and 0 (a log-density of ``-inf``) elsewhere.
    The square in the lower left corner is dark; squares are closed below and open above. Raises
    ``ValueError`` for no squares or no width.
    """

    num_dims = 2

    def __init__(self, num_squares: int = 4, half_width: float = 4.0) -> None:
        if num_squares < 1 or not 0 < half_width < math.inf:
            raise ValueError(
                f"a board needs num_squares >= 1 and half_width > 0, got {num_squares} and "
                f"{half_width}: the usual one has 4 and 4.0"
            )
        self.num_squares = num_squares
        self.edges = torch.linspace(-half_width, half_width, num_squares + 1, dtype=torch.float64)
        rows, columns = torch.meshgrid(torch.arange(num_squares), torch.arange(num_squares), indexing="ij")
        self.dark = torch.stack([rows, columns], dim=-1)[(rows + columns) % 2 == 0]  # (D, 2)
        self.log_density = -math.log(len(self.dark) * (2.0 * half_width / num_squares) ** 2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density, ``-inf`` off the dark squares: ``(..., 2) -> (...)``."""
        as_rows(x, 2)
        square = torch.bucketize(x.detach().contiguous(), self.edges.to(x), right=True) - 1  # (..., 2)
        on_board = ((square >= 0) & (square < self.num_squares)).all(-1)
        dark = on_board & (square.sum(-1) % 2 == 0)
        return x.new_full(dark.shape, -math.inf).masked_fill(dark, self.log_density)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: Device = None,
    ) -> Tensor:
        """Draw ``n`` points, ``(n, 2)``: a dark square, then a uniform point in it."""
        place = draw_device(n, generator)
        square = self.dark.to(place)[torch.randint(len(self.dark), (n,), generator=generator, device=place)]
        uniform = torch.rand(n, 2, generator=generator, dtype=dtype, device=place)
        edges = self.edges.to(device=place, dtype=dtype)
        low, high = edges[square], edges[square + 1]  # (n, 2)
        below = torch.nextafter(high, low)  # rounding must not lift a point onto the next square
        return torch.minimum(low + (high - low) * uniform, below).to(device=device or place)


def checkerboard(num_squares: int = 4, half_width: float = 4.0) -> Checkerboard:
    """A :class:`Checkerboard`: ``num_squares x num_squares`` over ``[-half_width, half_width)^2``."""
    return Checkerboard(num_squares, half_width)


def _equal_mixture(means: Tensor, sd: float) -> GaussianMixture:
    count = len(means)
    weights = torch.full((count,), 1.0 / count, dtype=torch.float64)
    return GaussianMixture(weights, means, torch.full((count,), sd, dtype=torch.float64))


def _rotate(v: Tensor, angle: Tensor) -> Tensor:
    """Turn ``v (..., 2)`` by ``angle (...)`` radians, counter-clockwise."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * v[..., 0] - sin * v[..., 1], sin * v[..., 0] + cos * v[..., 1]], dim=-1)


def _need_modes(count: int) -> None:
    if count < 1:
        raise ValueError(f"a density needs at least one mode, got {count}: ask for 1 or more")
