"""Lecture 05's exercise about the flow prior: its log-density by the inverse of its transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributions import Normal

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.priors_and_surgery.densities import log_prior
from dgm_course.gaussian import LOG_2PI, gaussian_log_prob

# ---- flow_prior_log_prob: (m, d), transform -> (m,)

Pair = tuple[Tensor, Tensor]


class Bent:
    """A coupling and a scale: ``forward`` makes latents of noise, ``inverse`` is the way back.

    The second part is ``b exp(s) + t``, with ``s = tanh(a @ scales)`` and ``t = a @ shifts`` from the first
    part a; then each dimension is multiplied by ``exp(log_scale)`` and moved by ``offset``.
    """

    def __init__(self, name: str, log_scale: Tensor, offset: Tensor, scales: Tensor, shifts: Tensor) -> None:
        self.name, self.kept = name, len(scales)
        self.given = log_scale, offset, scales, shifts

    def __repr__(self) -> str:
        return self.name

    def __call__(self, noise: Tensor) -> Pair:
        """``z`` and the log-determinant of this direction, ``(m, d)`` and ``(m,)``."""
        log_scale, offset, scales, shifts = (v.to(noise.dtype) for v in self.given)
        a, b = noise[..., : self.kept], noise[..., self.kept :]
        bend = torch.tanh(a @ scales)
        z = torch.cat([a, b * torch.exp(bend) + a @ shifts], -1) * torch.exp(log_scale) + offset
        return z, bend.sum(-1) + log_scale.sum()

    forward = __call__

    def inverse(self, z: Tensor) -> Pair:
        """``noise`` and the log-determinant of this direction, ``(m, d)`` and ``(m,)``."""
        log_scale, offset, scales, shifts = (v.to(z.dtype) for v in self.given)
        straight = (z - offset) * torch.exp(-log_scale)
        a, b = straight[..., : self.kept], straight[..., self.kept :]
        bend = torch.tanh(a @ scales)
        noise = torch.cat([a, (b - a @ shifts) * torch.exp(-bend)], -1)
        return noise, -bend.sum(-1) - log_scale.sum()


@exercise("the log-density of each z under the flow prior, in nats", library=("FlowPrior", "Flow"))
def flow_prior_log_prob(z: Tensor, transform: Bent) -> Tensor:
    noise, log_det = transform.inverse(z)
    return log_prior(noise) + log_det


@flow_prior_log_prob.magnitude
def _(z: Tensor, transform: Bent) -> Tensor:
    log_scale, offset, _, shifts = transform.given
    straight = ((z.abs() + offset.abs()) * torch.exp(-log_scale)).sum(-1)
    return 3 * z.shape[1] + (3 * straight * (1 + shifts.abs().sum())) ** 2 + log_scale.abs().sum()


@flow_prior_log_prob.inputs
def _(draw: Draw) -> Iterator[Case]:
    z = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    one, zero, none = torch.ones(2, dtype=torch.float64), z.new_zeros(2), z.new_zeros(1, 1)
    yield case("Where the transform changes nothing, the prior is the base itself.",
               z=z, transform=Bent("the identity", zero, zero, none, none))
    yield case("Where the transform only shifts, the prior is the base, moved: no volume changes.",
               z=z, transform=Bent("a shift by 1", zero, one, none, none))
    yield case("Where the transform doubles everything, the base is spread out, and lower.",
               z=z, transform=Bent("a scaling by 2", math.log(2.0) * one, zero, none, none))
    for _ in range(draw.count):
        rows, dims = draw.integer(2, 4), draw.integer(2, 5)
        kept = draw.integer(1, dims - 1)
        scales, shifts = (size * draw.normal(kept, dims - kept) for size in (1.0, 0.5))
        stretch = draw.choose([-1, 1]) * draw.uniform(dims, low=0.4, high=0.8)
        name = f"a flow of {dims} dimensions"
        transform = Bent(name, stretch, draw.choose([0.0, 0.5]) * draw.normal(dims), scales, shifts)
        yield case(z=transform(draw.normal(rows, dims))[0], transform=transform)


def _with(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Bent], Tensor]:
    """The right noise and log-determinant, put together in another way."""
    return lambda z, t: combine(*t.inverse(z))


def _terms(z: Tensor) -> Tensor:
    return -0.5 * (LOG_2PI + z**2)


flow_prior_log_prob.misconceptions(
    minus=(_with(lambda u, d: log_prior(u) - d),
           "The log-determinant has the wrong sign: it is that of the inverse already. Where sampling "
           "stretches, the density has to become lower."),
    forward=(lambda z, t: log_prior(t(z)[0]) + t(z)[1],
             "The transform was applied once more. z is what it makes: the way back to the base is its "
             "inverse."),
    forward_minus=(lambda z, t: log_prior(t(z)[0]) - t(z)[1],
                   "The transform was applied to z, as if z came from the base. Go back with its inverse, "
                   "and take the log-determinant of that direction."),
    forward_log_det=(lambda z, t: log_prior(t.inverse(z)[0]) + t(z)[1],
                     "The noise is right, but the log-determinant is that of the sampling direction, and "
                     "taken at z."),
    forward_log_det_minus=(lambda z, t: log_prior(t.inverse(z)[0]) - t(z)[1],
                           "The log-determinant of the sampling direction was taken at z. It belongs at "
                           "the noise: the inverse gives the fitting one by itself."),
    base_at_z=(lambda z, t: log_prior(z) + t.inverse(z)[1],
               "The base's log-density was taken at z. It is a density of the noise that z was "
               "made of."),
    base_at_z_minus=(lambda z, t: log_prior(z) - t.inverse(z)[1],
                     "The base's log-density was taken at z, and the log-determinant has the wrong sign. "
                     "The base is a density of the noise."),
    base_alone=(lambda z, t: log_prior(z),
                "This is the base's log-density at z, as if there were no flow."),
    no_log_det=(_with(lambda u, d: log_prior(u)),
                "The log-determinant is left out. How much of the base's space is there for a small cell "
                "around z?"),
    log_det_alone=(_with(lambda u, d: d),
                   "This is the change of volume alone. How likely is the noise that z comes from?"),
    per_dimension=(_with(lambda u, d: _terms(u) + d[:, None]),
                   "The sum over the dimensions is missing: there is still one number for each. What do "
                   "independent ones give together?"),
    per_dimension_broadcast=(_with(lambda u, d: _terms(u) + d),
                             "The base's log-density was not summed over the dimensions before the "
                             "log-determinant joined it."),
    dimension_mean=(_with(lambda u, d: _terms(u).mean(1) + d),
                    "The dimensions of the noise were averaged. What do independent ones give together?"),
    base_summed=(_with(lambda u, d: _terms(u).sum() + d),
                 "The base's log-density was summed over the batch, too. Each row has one of its own."),
    no_constant=(_with(lambda u, d: -0.5 * u.square().sum(1) + d),
                 "The base's constant is missing, the one with 2 pi: a density has to integrate to 1."),
    constant_once=(_with(lambda u, d: -0.5 * (u.square().sum(1) + LOG_2PI) + d),
                   "The base's constant was counted once. Each dimension brings its own."),
    constant_not_halved=(_with(lambda u, d: (_terms(u) - 0.5 * LOG_2PI).sum(1) + d),
                         "The base's constant is twice as large as it should be: is its half, or the root in "
                         "the density, lost?"),
    square_not_halved=(_with(lambda u, d: (_terms(u) - 0.5 * u**2).sum(1) + d),
                       "The squared distance counts twice as much as it should in a Gaussian."),
    square_positive=(_with(lambda u, d: (_terms(u) + u**2).sum(1) + d),
                     "The squared distance has the wrong sign: far from 0 the base is less dense."),
    abs_of_log_det=(_with(lambda u, d: log_prior(u) + d.abs()),
                    "The absolute value was taken of the logarithm. Where the inverse shrinks volumes it "
                    "has to stay negative."),
    log_of_log_det=(_with(lambda u, d: log_prior(u) + d.log()),
                    "A logarithm was taken of what is one already, and may be negative."),
    log_of_abs_log_det=(_with(lambda u, d: log_prior(u) + d.abs().log()),
                        "A logarithm was taken of the log-determinant. It is one already."),
    determinant=(_with(lambda u, d: log_prior(u) + d.exp()),
                 "The determinant itself was added. A density is multiplied by it: what becomes of that in "
                 "logarithms?"),
    times=(_with(lambda u, d: log_prior(u) * d),
           "Two logarithms were multiplied. It is the density that is multiplied by the determinant."),
    log_det_twice=(_with(lambda u, d: log_prior(u) + 2 * d), "The log-determinant was counted twice."),
    log_det_summed=(_with(lambda u, d: log_prior(u) + d.sum()),
                    "The log-determinants were summed over the batch. Each row has one of its own."),
    pair_unpacked=(lambda z, t: log_prior(t.inverse(z)),
                   "The inverse gives two things: noise, and a log-determinant. Take them apart first."),
    pair_to_gaussian=(lambda z, t: gaussian_log_prob(t.inverse(z), 0.0, 0.0),
                      "The inverse gives two things. Only the first of them is noise, with a density."),
    pair_to_distribution=(lambda z, t: Normal(0.0, 1.0).log_prob(t.inverse(z)),
                          "What the inverse gives was handed on whole. It is a pair: noise, and a "
                          "log-determinant."),
    broadcast=(_with(lambda u, d: log_prior(u)[:, None] + d),
               "A column met a row, and every base density every determinant. Which axis was kept?"),
    axis_kept=(_with(lambda u, d: (log_prior(u) + d)[:, None]),
               "The axis that was summed over is still there, with one entry. Let the sum drop it."),
    density=(_with(lambda u, d: (log_prior(u) + d).exp()),
             "This is the density itself. Its logarithm is asked for."),
    batch_mean=(_with(lambda u, d: (log_prior(u) + d).mean()),
                "The batch was averaged. Keep one number for each z."),
    batch_sum=(_with(lambda u, d: (log_prior(u) + d).sum()),
               "The batch was summed. Keep one number for each z."),
    as_loss=(_with(lambda u, d: -log_prior(u) - d),
             "This is a loss, to be made small. The log-density has the other sign."),
)  # fmt: skip
