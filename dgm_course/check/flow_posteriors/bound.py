"""Lecture 06's exercise about the ELBO of a flow posterior, estimated from samples of z0 alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributions import Normal

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.flow_posteriors.models import (
    DENSITIES,
    Bend,
    Density,
    Map,
    Pixels,
    Same,
    draw_flow,
    draw_gaussians,
    draw_pixels,
    draw_sizes,
    log_mean,
    log_normal,
    log_prior,
    normal_size,
    normal_terms,
    plain,
    prior_terms,
)
from dgm_course.gaussian import LOG_2PI

# ---- flow_elbo: log_likelihood, flow, (S, B, d), (B, d), (B, d) -> (B,)

Answer = Callable[[Density, Map, Tensor, Tensor, Tensor], Tensor]


@exercise("the ELBO of each x at these samples, in nats", library=DENSITIES)
def flow_elbo(log_likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    z, log_det = flow(z0)
    return (log_likelihood(z) + log_prior(z) - log_normal(z0, mean, log_var) + log_det).mean(0)


@flow_elbo.magnitude
def _(log_likelihood: Pixels | Same, flow: Bend, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    reach = flow.reach(z0)
    prior = (2 + reach**2).sum(-1)
    return (log_likelihood.size(reach) + prior + normal_size(z0, mean, log_var) + flow.most).amax(0)


@flow_elbo.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*rows: object) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    for _ in range(draw.count):
        dtype, (samples, rows, dims) = draw.dtype(), draw_sizes(draw)
        mean, log_var = draw_gaussians(draw, rows, dims)
        z0 = mean + torch.exp(log_var / 2) * draw.normal(samples, rows, dims)
        yield case(log_likelihood=draw_pixels(draw, dims), flow=draw_flow(draw, dims), z0=z0.to(dtype),
                   mean=mean.to(dtype), log_var=log_var.to(dtype))
    mean, log_var = given([1.0, -0.5], [0.5, 0.0], [-1.0, 2.0]), given([0.4, -0.8], [-1.2, 0.6], [0.9, -0.5])
    noise = given([[0.5, -1.0], [1.5, 0.3], [-0.4, 0.8]], [[-0.7, 0.2], [0.1, -1.4], [0.9, 0.6]])
    z0, double = mean + torch.exp(log_var / 2) * noise, [math.log(2.0)] * 2
    pixels = Pixels(given([2.0, -1.0, 4.0], [1.0, 3.0, -2.0]), given([0.2, -0.4, 0.1])[0])
    for title, flow in (
        ("Where the flow changes nothing, this is the plain ELBO at these samples.",
         plain("the identity", [0.0, 0.0], [0.0, 0.0])),
        ("Where the flow only shifts, it changes no volume.", plain("a shift by 1", [0.0, 0.0], [1.0, 1.0])),
    ):  # fmt: skip
        yield case(title, log_likelihood=pixels, flow=flow, z0=z0, mean=mean, log_var=log_var)
    yield case("Where the flow turns the encoder's Gaussian into the prior, and z tells nothing about x, the "
               "bound is log p of x, whatever the samples.",
               log_likelihood=Same(-2.0), flow=plain("a scaling by 2, then a shift by 1", double, [1.0, 1.0]),
               z0=-0.5 + 0.5 * noise, mean=torch.full_like(mean, -0.5),
               log_var=torch.full_like(mean, -2 * math.log(2.0)))  # fmt: skip


def _with(combine: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """log p(x|zK), log p(zK), log q_0(z0) and the log-determinant (each (S, B)), otherwise combined."""

    def answer(log_likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        z, log_det = flow(z0)
        return combine(log_likelihood(z), log_prior(z), log_normal(z0, mean, log_var), log_det)

    return answer


def _each(combine: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """The same, averaged over the samples."""
    return _with(lambda r, p, q, d: combine(r, p, q, d).mean(0))


def _of(change: Callable[[Tensor], Tensor]) -> Answer:
    """The right integrand (S, B), put together in another way."""
    return _with(lambda r, p, q, d: change(r + p - q + d))


def _prior(log_p: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """Another log-density in the prior's place, of z0, zK, mean and log_var."""

    def answer(log_likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        z, log_det = flow(z0)
        log_q = log_normal(z0, mean, log_var)
        return (log_likelihood(z) + log_p(z0, z, mean, log_var) - log_q + log_det).mean(0)

    return answer


def _less(log_q: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """The right joint density, less another log q, of z0, zK, mean, log_var and the log-determinant."""

    def answer(log_likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        z, log_det = flow(z0)
        return (log_likelihood(z) + log_prior(z) - log_q(z0, z, mean, log_var, log_det)).mean(0)

    return answer


def _base(log_q: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """Another log q_0, of z0, mean and log_var."""
    return _less(lambda u, z, m, s, d: log_q(u, m, s) - d)


def _kl(mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(-1)


def _flowed(points: Callable[[Map, Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """The right terms, with something else sent through the flow."""

    def answer(log_likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        z, log_det = flow(points(flow, z0, mean, log_var))
        return (log_likelihood(z) + log_prior(z) - log_normal(z0, mean, log_var) + log_det).mean(0)

    return answer


def _dimensions(combine: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """log p(x|zK), the Gaussian terms of zK and of z0 (each (S, B, d)) and the log-determinant, combined."""

    def answer(log_likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        z, log_det = flow(z0)
        terms = prior_terms(z), normal_terms(z0, mean, log_var)
        return combine(log_likelihood(z), *terms, log_det).mean(0)

    return answer


flow_elbo.misconceptions(
    log_det_sign=(_each(lambda r, p, q, d: r + p - q - d),
                  "The log-determinant has the wrong sign, or is that of the inverse. Where the flow "
                  "stretches, zK's density is lower than z0's, and it is that density which is subtracted."),
    no_log_det=(_each(lambda r, p, q, d: r + p - q),
                "The density of z0 was taken for that of zK. Between the two, the flow changes the volume."),
    log_det_at_end=(lambda r, f, u, m, s: (r(f(u)[0]) + log_prior(f(u)[0]) - log_normal(u, m, s)
                                           + f(f(u)[0])[1]).mean(0),
                    "The log-determinant was taken at zK, by a second run of the flow. It belongs to the "
                    "step from z0."),
    log_det_twice=(_each(lambda r, p, q, d: r + p - q + 2 * d), "The log-determinant was counted twice."),
    determinant=(_each(lambda r, p, q, d: r + p - q + d.exp()),
                 "The determinant was used in place of its logarithm."),
    log_of_log_det=(_each(lambda r, p, q, d: r + p - q + d.log()),
                    "A logarithm was taken of what is one already, and may be negative."),
    log_of_size=(_each(lambda r, p, q, d: r + p - q + d.abs().log()),
                 "A logarithm was taken of the log-determinant's size. It is a logarithm already."),
    size=(_each(lambda r, p, q, d: r + p - q + d.abs()),
          "The log-determinant lost its sign. It is negative where the flow shrinks."),
    log_det_summed=(_each(lambda r, p, q, d: r + p - q + d.sum()),
                    "The log-determinants were summed over samples and batch. Each sample has its own."),
    log_det_summed_samples=(_each(lambda r, p, q, d: r + p - q + d.sum(0)),
                            "The log-determinants were summed over the samples. Each sample has its own, and "
                            "they are averaged like the rest."),
    log_det_averaged=(_each(lambda r, p, q, d: r + p - q + d.mean()),
                      "The log-determinants were averaged over the batch, too. Each x has samples of its "
                      "own."),
    log_det_per_dimension=(_dimensions(lambda r, p, q, d: r + (p - q + d[..., None]).sum(-1)),
                           "The log-determinant was added in each dimension. It is that of all dimensions "
                           "together."),
    prior_at_start=(_prior(lambda u, z, m, s: log_prior(u)),
                    "The prior was taken at z0. The model's latent, which the decoder sees, is zK."),
    likelihood_at_start=(lambda r, f, u, m, s: (r(u) + log_prior(f(u)[0]) - log_normal(u, m, s)
                                                + f(u)[1]).mean(0),
                         "The likelihood was taken at z0. The model's latent is zK."),
    model_at_start=(lambda r, f, u, m, s: (r(u) + log_prior(u) - log_normal(u, m, s) + f(u)[1]).mean(0),
                    "Prior and likelihood were taken at z0: the flow moves nothing, and only its volume is "
                    "there."),
    model_at_start_sign=(lambda r, f, u, m, s: (r(u) + log_prior(u) - log_normal(u, m, s) - f(u)[1]).mean(0),
                         "Prior and likelihood were taken at z0, and the log-determinant has the wrong "
                         "sign."),
    no_flow=(lambda r, f, u, m, s: (r(u) + log_prior(u) - log_normal(u, m, s)).mean(0),
             "The flow was not used: this is the ELBO of the encoder's Gaussian."),
    base_at_end=(_less(lambda u, z, m, s, d: log_normal(z, m, s) - d),
                 "The encoder's Gaussian was taken at zK. It has drawn z0."),
    base_at_end_alone=(_less(lambda u, z, m, s, d: log_normal(z, m, s)),
                       "The encoder's Gaussian was taken at zK, as if the flow had left it a Gaussian."),
    base_at_end_sign=(_less(lambda u, z, m, s, d: log_normal(z, m, s) + d),
                      "The encoder's Gaussian was taken at zK, and the log-determinant has the wrong sign: "
                      "that is how a flow on data is written, whose base lies at the other end."),
    closed_kl=(lambda r, f, u, m, s: r(f(u)[0]).mean(0) - _kl(m, s),
               "The KL is that of two Gaussians in closed form. The posterior is no Gaussian after the flow: "
               "its KL has to be estimated."),
    closed_kl_and_log_det=(lambda r, f, u, m, s: (r(f(u)[0]) + f(u)[1]).mean(0) - _kl(m, s),
                           "The log-determinant was added to the closed form of two Gaussians' KL. That one "
                           "compares z0 with the prior: where is the prior needed?"),
    closed_kl_minus_log_det=(lambda r, f, u, m, s: (r(f(u)[0]) - f(u)[1]).mean(0) - _kl(m, s),
                             "The log-determinant was subtracted from an ELBO with the closed form of two "
                             "Gaussians' KL, in which the prior sees z0."),
    closed_kl_no_flow=(lambda r, f, u, m, s: r(u).mean(0) - _kl(m, s),
                       "The flow was not used: this is the ELBO of the encoder's Gaussian, with its KL in "
                       "closed form."),
    log_q_added=(_each(lambda r, p, q, d: r + p + q - d),
                 "The density of zK under q was added. A point that q draws often has to count for less."),
    base_sign=(_each(lambda r, p, q, d: r + p + q + d),
               "The density of z0 has the wrong sign: it is a part of q, which is divided by."),
    no_log_q=(_each(lambda r, p, q, d: r + p),
              "q's density is left out: a posterior that shrinks onto the best z would look best."),
    no_base=(_each(lambda r, p, q, d: r + p + d),
             "Of q's density only the change of volume is there. How likely was z0?"),
    no_prior=(_each(lambda r, p, q, d: r - q + d),
              "The prior is left out: how likely is zK before x is seen?"),
    prior_sign=(_each(lambda r, p, q, d: r - p - q + d),
                "The prior was subtracted. In the ELBO it stands beside the likelihood."),
    no_likelihood=(_each(lambda r, p, q, d: p - q + d),
                   "This is the KL term alone, with its sign. How well does zK explain x?"),
    kl_added=(_each(lambda r, p, q, d: r - p + q - d),
              "The KL term has the wrong sign: it is a price, to be paid by the likelihood."),
    prior_of_encoder=(_prior(lambda u, z, m, s: log_normal(z, m, s)),
                      "The encoder's Gaussian was used as the prior of zK. The prior is the same for all x."),
    prior_of_encoder_at_start=(_prior(lambda u, z, m, s: log_normal(u, m, s)),
                               "The encoder's Gaussian was used as the prior, at z0: the two cancel."),
    standard_base=(_base(lambda u, m, s: log_prior(u)),
                   "A standard normal was taken for z0's density. z0 was drawn from the encoder's Gaussian."),
    standardised=(_base(lambda u, m, s: log_prior((u - m) * torch.exp(-s / 2))),
                  "z0 was standardised, and the change of volume of that forgotten: a narrow Gaussian is a "
                  "high one."),
    log_std=(_base(lambda u, m, s: log_normal(u, m, 2 * s)),
             "log_var was read as the logarithm of the standard deviation. It is that of the variance."),
    log_std_distribution=(_base(lambda u, m, s: Normal(m, s).log_prob(u).sum(-1)),
                          "The Gaussian was given log_var as its standard deviation. It may be negative: "
                          "which positive number belongs to it?"),
    precision=(_base(lambda u, m, s: log_normal(u, m, -s)),
               "The variance was turned upside down: where log_var is large the Gaussian is wide."),
    no_log_var=(_base(lambda u, m, s: -0.5 * (LOG_2PI + s + (u - m) ** 2).sum(-1)),
                "The squared distance from the encoder's mean is not measured in units of its variance."),
    no_mean=(_base(lambda u, m, s: log_normal(u, 0 * m, s)),
             "The encoder's mean is not used: where is its Gaussian centred?"),
    noise_again=(_flowed(lambda f, u, m, s: m + torch.exp(s / 2) * u),
                 "z0 was treated as standard noise, and scaled and shifted before the flow. It comes from "
                 "the encoder's Gaussian already."),
    flow_of_mean=(_flowed(lambda f, u, m, s: m.expand_as(u)),
                  "The flow was given the encoder's mean. It is samples that it moves."),
    flow_of_average=(_flowed(lambda f, u, m, s: u.mean(0).expand_as(u)),
                     "The samples were averaged before the flow. What has to be averaged?"),
    flow_twice=(_flowed(lambda f, u, m, s: f(u)[0]), "The flow was run twice, one run after the other."),
    averaged_latents=(lambda r, f, u, m, s: (r(f(u)[0].mean(0)) + log_prior(f(u)[0]) - log_normal(u, m, s)
                                             + f(u)[1]).mean(0),
                      "The likelihood was taken at the average of the zK. Each sample has its own."),
    pair_unpacked=(lambda r, f, u, m, s: (r(f(u)) - log_normal(u, m, s)).mean(0),
                   "The flow gives two things: zK, and a log-determinant. Take them apart first."),
    prior_without_constant=(_prior(lambda u, z, m, s: -0.5 * z.square().sum(-1)),
                            "The prior's constant is missing, the one with 2 pi, but q has one: the two "
                            "cancel only if both are there, or both are not."),
    base_without_constant=(_base(lambda u, m, s: (normal_terms(u, m, s) + 0.5 * LOG_2PI).sum(-1)),
                           "The constant of z0's Gaussian is missing, the one with 2 pi, but the prior has "
                           "one."),
    prior_constant_once=(_prior(lambda u, z, m, s: -0.5 * (z.square().sum(-1) + LOG_2PI)),
                         "The prior's constant was counted once. Each dimension brings its own."),
    base_constant_once=(_base(lambda u, m, s: log_normal(u, m, s) + 0.5 * (u.shape[-1] - 1) * LOG_2PI),
                        "The constant of z0's Gaussian was counted once. Each dimension brings its own."),
    prior_square_not_halved=(_prior(lambda u, z, m, s: (prior_terms(z) - 0.5 * z**2).sum(-1)),
                             "The square counts twice as much as it should in the prior."),
    base_square_not_halved=(
        _base(lambda u, m, s: (normal_terms(u, m, s) - 0.5 * (u - m) ** 2 * torch.exp(-s)).sum(-1)),
        "The square counts twice as much as it should in z0's Gaussian."),
    base_log_var_not_halved=(_base(lambda u, m, s: (normal_terms(u, m, s) - 0.5 * s).sum(-1)),
                             "The log-variance counts twice as much as it should: the standard deviation "
                             "belongs in front of a Gaussian."),
    dimension_mean=(_dimensions(lambda r, p, q, d: r + p.mean(-1) - q.mean(-1) + d),
                    "Both Gaussians were averaged over the dimensions. What do independent ones give "
                    "together?"),
    prior_dimension_mean=(_dimensions(lambda r, p, q, d: r + p.mean(-1) - q.sum(-1) + d),
                          "The prior was averaged over the dimensions. What do independent ones give "
                          "together?"),
    base_dimension_mean=(_dimensions(lambda r, p, q, d: r + p.sum(-1) - q.mean(-1) + d),
                         "z0's Gaussian was averaged over the dimensions. What do independent ones give "
                         "together?"),
    per_dimension=(_dimensions(lambda r, p, q, d: (r + d)[..., None] + p - q),
                   "There is still one number for each dimension. What do independent ones give together?"),
    per_dimension_broadcast=(_dimensions(lambda r, p, q, d: r + p - q + d),
                             "The Gaussians still have one number for each dimension, and met the "
                             "likelihood, which has not."),
    log_of_mean=(_of(log_mean), "The weights were averaged inside of the logarithm. That is the "
                                "importance-weighted bound: here the logarithms are averaged."),
    log_of_sum=(_of(lambda v: v.logsumexp(0)),
                "The weights were added up inside of the logarithm. Here the logarithms are averaged."),
    sum_of_samples=(_of(lambda v: v.sum(0)), "The samples were added up. An average estimates the bound."),
    over_batch=(_of(lambda v: v.mean(1)),
                "The average runs over the batch. It has to run over the samples of each x."),
    everything=(_of(torch.mean), "Everything was averaged, the batch too. Keep one bound for each x."),
    one_sample=(_of(lambda v: v[0]), "Only the first sample was used. Average over all of them."),
    best=(_of(lambda v: v.amax(0)), "This is the best sample alone. Average over all of them."),
    every_sample=(_of(torch.clone), "There is still one number for each sample. Average over them."),
    axis_kept=(_of(lambda v: v.mean(0, keepdim=True)),
               "The axis of the samples is still there, with one entry. Let it be dropped."),
    as_loss=(_of(lambda v: -v.mean(0)), "This is a loss, to be made small. The bound has the other sign."),
    bits=(_of(lambda v: v.mean(0) / math.log(2)), "These are bits. Nats are asked for."),
)  # fmt: skip
