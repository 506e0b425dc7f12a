"""Lecture 06's exercise about one flow in two places: moved from the prior into posterior and decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.flow_posteriors.models import (
    DENSITIES,
    Back,
    Bell,
    Bend,
    Density,
    Map,
    Moved,
    Pair,
    Pixels,
    draw_flow,
    draw_gaussians,
    draw_pixels,
    draw_sizes,
    log_prior,
    plain,
    prior_terms,
)
from dgm_course.gaussian import LOG_2PI

# ---- prior_posterior_gap: log_likelihood, log_q, f, g, (S, B, d) -> (S, B), (S, B)

Answer = Callable[[Density, Density, Map, Map, Tensor], Pair]


class _Terms(NamedTuple):
    """What the two models are made of; with ``log_det`` that of f at z."""

    log_likelihood: Density
    log_q: Density
    f: Map
    g: Map
    z: Tensor
    e: Tensor
    log_det: Tensor

    @property
    def decoded(self) -> Tensor:
        """``log p(x|g(e))``."""
        return self.log_likelihood(self.g(self.e)[0])


Side = Callable[[_Terms], Tensor]


def _terms(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> _Terms:
    return _Terms(log_likelihood, log_q, f, g, z, *f(z))


def _flow_prior(t: _Terms) -> Tensor:
    return t.log_likelihood(t.z) + log_prior(t.e) + t.log_det - t.log_q(t.z)


def _flow_posterior(t: _Terms) -> Tensor:
    return t.decoded + log_prior(t.e) - (t.log_q(t.z) - t.log_det)


@exercise("the two models' integrands at these samples, in nats",
          returns={"flow_prior": "tensor", "flow_posterior": "tensor"}, library=DENSITIES)
def prior_posterior_gap(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
    terms = _terms(log_likelihood, log_q, f, g, z)
    return _flow_prior(terms), _flow_posterior(terms)


@prior_posterior_gap.magnitude
def _(log_likelihood: Pixels, log_q: Bell | Moved, f: Back, g: Bend, z: Tensor) -> Pair:
    away = g.reach_back(z)
    again = g.reach(away)  # what rounding on the way there and back is as large as
    size = log_likelihood.size(again) + (2 + away**2).sum(-1) + log_q.size(again) + g.most
    return size, size


@prior_posterior_gap.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*rows: object) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    def both(title: str, pixels: Pixels, log_q: Bell | Moved, flow: Bend, z: Tensor) -> Case:
        return case(title, log_likelihood=pixels, log_q=log_q, f=Back(flow), g=flow, z=z)

    for _ in range(draw.count):
        dtype, (samples, rows, dims) = draw.dtype(), draw_sizes(draw)
        mean, log_var = draw_gaussians(draw, dims)
        z = mean + torch.exp(log_var / 2) * draw.normal(samples, rows, dims)
        yield both("", draw_pixels(draw, dims), Bell(mean, log_var), draw_flow(draw, dims), z.to(dtype))
    z = given([[0.5, -1.0], [1.5, 0.3], [-0.4, 0.8]], [[-0.7, 0.2], [0.1, -1.4], [0.9, 0.6]])
    pixels = Pixels(given([2.0, -1.0, 4.0], [1.0, 3.0, -2.0]), given([0.2, -0.4, 0.1])[0])
    bell, double = Bell(given([0.5, -0.5])[0], given([-0.6, 0.4])[0]), [math.log(2.0)] * 2
    yield both("Where the flow changes nothing, both are what a plain VAE averages.",
               pixels, bell, plain("the identity", [0.0, 0.0], [0.0, 0.0]), z)
    yield both("Where the flow only shifts, no volume changes.",
               pixels, bell, plain("a shift by 1", [0.0, 0.0], [1.0, 1.0]), z)
    flow = plain("a scaling by 2, then a shift by 1", double, [1.0, 1.0])
    yield both("Where q is the flow prior itself, there is nothing to pay: both are the log-likelihood.",
               pixels, Moved(flow), flow, z)


@prior_posterior_gap.holds("The two are equal, sample by sample.")
def _(flow_prior: np.ndarray, flow_posterior: np.ndarray, log_likelihood: Density, log_q: Density, f: Map,
      g: Map, z: Tensor) -> bool:  # fmt: skip
    return bool(np.allclose(flow_prior, flow_posterior, rtol=1e-3, atol=1e-2))


def _with(flow_prior: Side = _flow_prior, flow_posterior: Side = _flow_posterior) -> Answer:
    """One of the two, or both, otherwise."""

    def answer(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
        terms = _terms(log_likelihood, log_q, f, g, z)
        return flow_prior(terms), flow_posterior(terms)

    return answer


def _both(side: Side) -> Answer:
    """Both otherwise, and equal."""
    return _with(side, side)


def _of(change: Callable[[Tensor], Tensor]) -> Answer:
    """The right two, changed."""
    return _with(lambda t: change(_flow_prior(t)), lambda t: change(_flow_posterior(t)))


def _noise(log_p: Callable[[Tensor], Tensor]) -> Answer:
    """Another log-density of e, in both."""
    return _both(lambda t: t.log_likelihood(t.z) + log_p(t.e) + t.log_det - t.log_q(t.z))


def _volume(log_det: Callable[[_Terms], Tensor]) -> Answer:
    """Something else added for the log-determinant, in both."""
    return _both(lambda t: t.log_likelihood(t.z) + log_prior(t.e) - t.log_q(t.z) + log_det(t))


def _sent_through_g(t: _Terms) -> Tensor:
    moved, log_det = t.g(t.z)
    return t.log_likelihood(t.g(moved)[0]) + log_prior(moved) - (t.log_q(t.z) - log_det)


def _other_way(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
    return _with()(log_likelihood, log_q, g, f, z)


prior_posterior_gap.misconceptions(
    # ---- the model with the flow prior
    prior_at_z=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.z) + t.log_det - t.log_q(t.z)),
                "The first has the standard normal at z. It is the density of e, which the flow prior makes "
                "its z of."),
    prior_at_z_alone=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.z) - t.log_q(t.z)),
                      "The first has no flow: this is a VAE whose prior is the standard normal."),
    prior_no_log_det=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.e) - t.log_q(t.z)),
                      "In the first, the density of e was taken for that of z. Between the two, f changes "
                      "the volume."),
    prior_log_det_sign=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.e) - t.log_det - t.log_q(t.z)),
                        "In the first, the log-determinant has the wrong sign: from g, or subtracted."),
    prior_log_det_at_z=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.e) + t.g(t.z)[1] - t.log_q(t.z)),
                        "In the first, the log-determinant is that of g, and taken at z. z is what g makes."),
    prior_q_at_e=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.e) + t.log_det - t.log_q(t.e)),
                  "In the first, q was taken at e. It is a density of z, which it has drawn."),
    prior_decodes_e=(_with(lambda t: t.log_likelihood(t.e) + log_prior(t.e) + t.log_det - t.log_q(t.z)),
                     "In the first, the decoder was given e. There it sees z itself."),
    prior_decodes_g=(_with(lambda t: t.log_likelihood(t.g(t.z)[0]) + log_prior(t.e) + t.log_det
                           - t.log_q(t.z)),
                     "In the first, the decoder was given what g makes of z. There it sees z itself."),
    prior_wrong_way=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.g(t.z)[0]) + t.g(t.z)[1]
                           - t.log_q(t.z)),
                     "The first went through g. z is what g makes of e: which map leads back?"),
    prior_q_added=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.e) + t.log_det + t.log_q(t.z)),
                   "In the first, q was added. A point that q draws often has to count for less."),
    # ---- the model with the flow posterior
    posterior_at_e=(_with(flow_posterior=lambda t: t.decoded + log_prior(t.e) - t.log_q(t.e) + t.log_det),
                    "In the second, q was taken at e. How dense is the moved q there? It has moved z."),
    posterior_at_e_alone=(_with(flow_posterior=lambda t: t.decoded + log_prior(t.e) - t.log_q(t.e)),
                          "In the second, q was taken at e, as if f had left it as it was."),
    posterior_at_e_sign=(
        _with(flow_posterior=lambda t: t.decoded + log_prior(t.e) - t.log_q(t.e) - t.log_det),
        "In the second, q was taken at e, and the log-determinant has the wrong sign."),
    posterior_prior_at_z=(
        _with(flow_posterior=lambda t: t.decoded + log_prior(t.z) - t.log_q(t.z) + t.log_det),
        "In the second, the prior was taken at z. There e is the latent."),
    posterior_no_flow=(_with(flow_posterior=lambda t: t.decoded + log_prior(t.z) - t.log_q(t.z)),
                       "The second has prior and posterior at z, without a flow. There e is the latent."),
    posterior_no_log_det=(_with(flow_posterior=lambda t: t.decoded + log_prior(t.e) - t.log_q(t.z)),
                          "In the second, the density of z was taken for that of e. Between the two, f "
                          "changes the volume."),
    posterior_through_g=(
        _with(flow_posterior=_sent_through_g),
        "In the second, z was sent through g. The samples of q are codes: which of the two maps leads from a "
        "code to e?"),
    posterior_log_det_sign=(
        _with(flow_posterior=lambda t: t.decoded + log_prior(t.e) - t.log_q(t.z) - t.log_det),
        "In the second, the log-determinant has the wrong sign: it is that of g, or the minus in front of q "
        "does not reach it."),
    posterior_log_det_at_z=(
        _with(flow_posterior=lambda t: t.decoded + log_prior(t.e) - t.log_q(t.z) + t.g(t.z)[1]),
        "In the second, the log-determinant is that of g, and taken at z. z is what g makes."),
    posterior_decodes_e=(
        _with(flow_posterior=lambda t: t.log_likelihood(t.e) + log_prior(t.e) - t.log_q(t.z) + t.log_det),
        "In the second, the decoder was given e itself. There g is its first layer."),
    posterior_decodes_g=(
        _with(flow_posterior=lambda t: (t.log_likelihood(t.g(t.z)[0]) + log_prior(t.e) - t.log_q(t.z)
                                        + t.log_det)),
        "In the second, g was given z. The latent of that model is e."),
    posterior_q_added=(_with(flow_posterior=lambda t: t.decoded + log_prior(t.e) + t.log_q(t.z) - t.log_det),
                       "In the second, q was added. A point that q draws often has to count for less."),
    # ---- both
    slide=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.z) + t.log_det - t.log_q(t.z),
                 lambda t: t.decoded + log_prior(t.e) - t.log_q(t.e) + t.log_det),
           "z and e have changed places, in the prior of the first and in the posterior of the second: the "
           "slip of the lecture's slide. Which of the two has which density?"),
    slide_alone=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.z) - t.log_q(t.z),
                       lambda t: t.decoded + log_prior(t.e) - t.log_q(t.e)),
                 "Each has both of its densities at one point, and no volume: neither has a flow."),
    slide_with_decoders=(_with(lambda t: t.log_likelihood(t.z) + log_prior(t.z) + t.log_det - t.log_q(t.z),
                               lambda t: t.log_likelihood(t.e) + log_prior(t.e) - t.log_q(t.e) + t.log_det),
                         "The first has everything at z, the second everything at e. Each model needs both "
                         "points."),
    at_z=(_both(lambda t: t.log_likelihood(t.z) + log_prior(t.z) + t.log_det - t.log_q(t.z)),
          "Both have the standard normal at z. In both models it is the density of e."),
    no_flow=(_both(lambda t: t.log_likelihood(t.z) + log_prior(t.z) - t.log_q(t.z)),
             "Neither has a flow: both are a VAE whose prior is the standard normal."),
    q_at_e=(_both(lambda t: t.log_likelihood(t.z) + log_prior(t.e) + t.log_det - t.log_q(t.e)),
            "q was taken at e, in both. It is a density of z."),
    decodes_e=(_both(lambda t: t.log_likelihood(t.e) + log_prior(t.e) + t.log_det - t.log_q(t.z)),
               "Both decoders were given e. The data are explained by z, in either model."),
    no_log_det=(_volume(lambda t: 0 * t.log_det),
                "No log-determinant is in either, so that they are equal but no bounds: e has another "
                "density than z."),
    log_det_sign=(_volume(lambda t: -t.log_det),
                  "The log-determinant has the wrong sign in both: it is that of g."),
    log_det_at_z=(_volume(lambda t: t.g(t.z)[1]),
                  "Both have the log-determinant of g, taken at z. z is what g makes."),
    log_det_twice=(_volume(lambda t: 2 * t.log_det), "The log-determinant was counted twice, in both."),
    determinant=(_volume(lambda t: t.log_det.exp()),
                 "The determinant was used in place of its logarithm."),
    size=(_volume(lambda t: t.log_det.abs()),
          "The log-determinant lost its sign. It is negative where f shrinks."),
    log_of_log_det=(_volume(lambda t: t.log_det.log()),
                    "A logarithm was taken of what is one already, and may be negative."),
    log_det_summed=(_volume(lambda t: t.log_det.sum()),
                    "The log-determinants were summed over samples and batch. Each sample has its own."),
    other_way=(_other_way, "f and g have changed places."),
    q_added=(_both(lambda t: t.log_likelihood(t.z) + log_prior(t.e) + t.log_det + t.log_q(t.z)),
             "q was added, in both. A point that q draws often has to count for less."),
    no_q=(_both(lambda t: t.log_likelihood(t.z) + log_prior(t.e) + t.log_det),
          "q is left out, in both: these are the joint densities alone."),
    no_prior=(_both(lambda t: t.log_likelihood(t.z) + t.log_det - t.log_q(t.z)),
              "The prior of e is left out, in both."),
    no_likelihood=(_both(lambda t: log_prior(t.e) + t.log_det - t.log_q(t.z)),
                   "The likelihood is left out, in both."),
    signs=(_both(lambda t: t.log_likelihood(t.z) - (log_prior(t.e) + t.log_det - t.log_q(t.z))),
           "The KL term has the wrong sign, in both: it is a price, to be paid by the likelihood."),
    no_constant=(_noise(lambda e: -0.5 * e.square().sum(-1)),
                 "The standard normal's constant is missing, the one with 2 pi, and q has one of its own."),
    constant_once=(_noise(lambda e: -0.5 * (e.square().sum(-1) + LOG_2PI)),
                   "The standard normal's constant was counted once. Each dimension brings its own."),
    square_not_halved=(_noise(lambda e: (prior_terms(e) - 0.5 * e**2).sum(-1)),
                       "The square counts twice as much as it should in the standard normal."),
    dimension_mean=(_noise(lambda e: prior_terms(e).mean(-1)),
                    "The dimensions of e were averaged. What do independent ones give together?"),
    base_summed=(_noise(lambda e: prior_terms(e).sum()),
                 "The standard normal was summed over samples and batch, too."),
    per_dimension=(_noise(prior_terms),
                   "The standard normal still has one number for each dimension, and met what has not."),
    pair_unpacked=(lambda r, q, f, g, z: (r(z) + log_prior(f(z)) - q(z), r(g(f(z)))),
                   "f and g each give two things: a point, and a log-determinant. Take them apart first."),
    sample_mean=(_of(lambda v: v.mean(0)), "The samples were averaged. Keep one number for each sample."),
    batch_mean=(_of(lambda v: v.mean(1)), "The batch was averaged. Keep one number for each sample."),
    everything=(_of(torch.mean), "Everything was averaged. Keep one number for each sample."),
    sample_sum=(_of(lambda v: v.sum(0)), "The samples were added up. Keep one number for each sample."),
    difference=(lambda *given: (_with()(*given)[0], _with()(*given)[0] - _with()(*given)[1]),
                "The second number is the gap between the two. It is 0: what are the two themselves?"),
    axis_kept=(_of(lambda v: v[..., None]), "The axis of the dimensions is still there, with one entry."),
    as_loss=(_of(torch.neg), "These are losses, to be made small. The bounds have the other sign."),
    bits=(_of(lambda v: v / math.log(2)), "These are bits. Nats are asked for."),
)  # fmt: skip
