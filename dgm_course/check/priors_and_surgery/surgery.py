"""Lecture 05's exercise about ELBO surgery: the three terms of the ELBO at the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.priors_and_surgery.densities import (
    aggregate,
    draw_gaussians,
    draw_samples,
    log_mean,
    log_normal,
    log_prior,
    mixture_size,
    normal_table,
    size,
    table,
    term_table,
)
from dgm_course.gaussian import LOG_2PI

# ---- elbo_surgery: (S, n, d), (S, n, d), (n, d), (n, d), (S, n) -> (), (), ()

Three = tuple[Tensor, Tensor, Tensor]
Answer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Three]
Score = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # z, z_prior, mean, log_var: (S, n) or ()


@exercise("the three terms of the ELBO at these samples, in nats",
          returns={"reconstruction": "tensor", "mutual_information": "tensor", "marginal_kl": "tensor"},
          library=("mutual_information", "index_information", "ELBOSurgery", "mixture_log_prob",
                   "mixture_responsibilities", "AggregatedPosterior", "streamed_log_prob", "log_terms"))
def elbo_surgery(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, log_likelihood: Tensor) -> Three:
    information, marginal = _information(z, z_prior, mean, log_var), _marginal(z, z_prior, mean, log_var)
    return log_likelihood.mean(), information.mean(), marginal.mean()


def _information(z: Tensor, _: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return log_normal(z, mean, log_var) - aggregate(z, mean, log_var)


def _marginal(z: Tensor, _: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return aggregate(z, mean, log_var) - log_prior(z)


def _kl(z: Tensor, _: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return log_normal(z, mean, log_var) - log_prior(z)


def _kl_in_closed_form(z: Tensor, _: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(-1).mean()


@elbo_surgery.magnitude
def _(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, log_likelihood: Tensor) -> Three:
    terms = (size(z, mean, log_var) + mixture_size(z, mean, log_var) + (3 + z**2).sum(-1)).mean()
    return log_likelihood.abs().mean(), terms, terms


@elbo_surgery.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*rows: object) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    z, zero = given([[1.0, -0.5], [0.5, 1.0], [-2.0, 0.5]]), torch.zeros(3, 2, dtype=torch.float64)
    yield case("Where every posterior is the prior, both KL terms are 0: reconstruction is all there is.",
               z=z, z_prior=z.flip(1), mean=zero, log_var=zero.clone(),
               log_likelihood=given([-1.0, -2.0, -4.0]))
    yield case(z=given([[1.0], [3.0]]), z_prior=given([[-0.5], [1.0]]), mean=given([0.0], [2.0]),
               log_var=given([0.5], [-1.0]), log_likelihood=given([-1.0, -2.0]))
    for level in (8.0, -8.0):  # the densities themselves leave the range of floats
        log_var = level + draw.uniform(3, 300, low=-0.1, high=0.1)
        mean = 0.05 * math.exp(level / 2) * draw.normal(3, 300)
        yield case(z=draw_samples(draw, 1, mean, log_var), z_prior=draw.normal(1, 3, 300), mean=mean,
                   log_var=log_var, log_likelihood=draw.uniform(1, 3, low=-4, high=-1))
    for _ in range(draw.count):
        samples, count, dims = draw.integer(2, 4), draw.integer(2, 5), draw.integer(2, 4)
        mean, log_var = draw_gaussians(draw, count, dims)
        yield case(z=draw_samples(draw, samples, mean, log_var), z_prior=draw.normal(samples, count, dims),
                   mean=mean, log_var=log_var, log_likelihood=draw.uniform(samples, count, low=-4, high=-1))


@elbo_surgery.holds("Reconstruction, less mutual information, less marginal KL is the ELBO at these very "
                    "samples, to rounding.")
def _(reconstruction: np.ndarray, mutual_information: np.ndarray, marginal_kl: np.ndarray, *, z: Tensor,
      z_prior: Tensor, mean: Tensor, log_var: Tensor, log_likelihood: Tensor) -> bool:  # fmt: skip
    kl = _kl(z, z_prior, mean, log_var)
    room = 1e-9 * (1 + log_likelihood.abs().mean() + size(z, mean, log_var).mean() + (z**2).sum(-1).mean())
    off = reconstruction - mutual_information - marginal_kl - (log_likelihood - kl).mean().item()
    return bool(np.abs(off) <= room.item())


def _with(information: Score = _information, marginal: Score = _marginal) -> Answer:
    """The surgery with another mutual information or marginal KL."""
    return lambda z, zp, m, s, ll: (ll.mean(), information(z, zp, m, s).mean(), marginal(z, zp, m, s).mean())


def _aggregated_by(other: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """The surgery with another log-density of the aggregated posterior, of ``z, mean, log_var``."""
    return _with(lambda z, _, m, s: log_normal(z, m, s) - other(z, m, s),
                 lambda z, _, m, s: other(z, m, s) - log_prior(z))  # fmt: skip


def _reduced(reduce: Callable[[Tensor], Tensor]) -> Answer:
    """The surgery with another average."""
    return lambda z, zp, m, s, ll: (
        reduce(ll), reduce(_information(z, zp, m, s)), reduce(_marginal(z, zp, m, s)))  # fmt: skip


def _arranged(change: Callable[[Tensor, Tensor, Tensor], Three]) -> Answer:
    """The right three terms, arranged in another way."""
    return lambda *given: change(*_with()(*given))


def _prior_in_reconstruction(z: Tensor, zp: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
    return (ll + log_prior(z)).mean(), *_with()(z, zp, mean, log_var, ll)[1:]


def _mass_lost(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return torch.logsumexp(table(z, mean, log_var), -1)


def _product(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return log_mean(term_table(z, mean, log_var), -2).sum(-1)


def _by_normal(scale: Callable[[Tensor], Tensor]) -> Answer:
    """The surgery by torch's own Gaussian, with another scale."""

    def answer(z: Tensor, zp: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
        every = normal_table(z, mean, scale(log_var))
        own, mixed = every.diagonal(dim1=-2, dim2=-1), log_mean(every)
        return ll.mean(), (own - mixed).mean(), (mixed - log_prior(z)).mean()

    return answer


elbo_surgery.misconceptions(
    reverse_kl=(_with(marginal=lambda z, zp, m, s: log_prior(zp) - aggregate(zp, m, s)),
                "The marginal KL was taken at samples of the prior: that is the reverse direction, from "
                "the prior to the aggregated posterior. The z's of the posteriors are samples of the "
                "aggregate already."),
    wrong_samples=(_with(marginal=lambda z, zp, m, s: aggregate(zp, m, s) - log_prior(zp)),
                   "The marginal KL was averaged over samples of the prior. It is an average over the "
                   "aggregated posterior: which samples come from there?"),
    mixed_samples=(_with(marginal=lambda z, zp, m, s: aggregate(z, m, s) - log_prior(zp)),
                   "In the marginal KL the two log-densities were taken at different samples. Both belong at "
                   "the z's of the posteriors."),
    information_at_prior=(_with(lambda z, zp, m, s: _information(zp, z, m, s)),
                          "The mutual information was averaged over samples of the prior. Each z has to come "
                          "from the posterior that scores it."),
    all_at_prior=(_with(*(lambda z, zp, m, s, f=f: f(zp, z, m, s) for f in (_information, _marginal))),
                  "Both KL terms were averaged over samples of the prior. All terms of the ELBO are averages "
                  "over the posteriors' z's."),
    prior_in_reconstruction=(_prior_in_reconstruction,
                             "The prior's log-density went into the reconstruction, and counts twice: the "
                             "prior belongs to the marginal KL alone."),
    prior_moved=(lambda z, zp, m, s, ll: ((ll + log_prior(z)).mean(), _information(z, zp, m, s).mean(),
                                          aggregate(z, m, s).mean()),
                 "The prior's log-density went from the marginal KL into the reconstruction. The identity "
                 "does not see it, but these are other terms: the decoder's density alone reconstructs."),
    own_for_aggregate=(_with(marginal=_kl),
                       "The own posterior stands where the aggregate belongs: this marginal KL is the "
                       "whole KL term, so that the mutual information is counted twice."),
    whole_kl_for_information=(_with(_kl),
                              "The whole KL term stands where the mutual information belongs, so that the "
                              "marginal KL is counted twice. The prior plays no part in mutual information."),
    closed_marginal=(_with(marginal=lambda *given: _kl_in_closed_form(*given) - _information(*given).mean()),
                     "The Gaussians' KL in closed form was used, less the mutual information. That is "
                     "right in expectation, but here the identity has to hold sample by sample: take both "
                     "log-densities at the same z."),
    closed_information=(_with(lambda *given: _kl_in_closed_form(*given) - _marginal(*given).mean()),
                        "The mutual information was found from the Gaussians' KL in closed form. That is "
                        "right in expectation, but here the identity has to hold sample by sample."),
    closed_kl=(_with(marginal=_kl_in_closed_form),
               "This marginal KL is the whole KL term, in closed form. A part of it is mutual information "
               "already."),
    marginal_negative=(_with(marginal=lambda *given: -_marginal(*given)),
                       "The marginal KL has the wrong sign: at samples of the aggregate, that is the "
                       "denser of the two on average."),
    information_negative=(_with(lambda *given: -_information(*given)),
                          "The mutual information has the wrong sign: at its samples, the own posterior is "
                          "the denser of the two on average."),
    both_negative=(_arranged(lambda r, i, k: (r, -i, -k)),
                   "Both KL terms came with a minus. They are distances, to be subtracted by whoever adds up "
                   "the ELBO."),
    loss=(_arranged(lambda r, i, k: (-r, i, k)),
          "The reconstruction is a loss here, to be made small. The log-likelihood itself is asked for."),
    no_n=(_aggregated_by(_mass_lost),
          "The posteriors were added up, not averaged: the number n of data points is missing in the "
          "aggregate. The identity does not see it, since one KL term gains what the other loses."),
    no_n_in_information=(_with(lambda z, _, m, s: log_normal(z, m, s) - _mass_lost(z, m, s)),
                         "The number n of data points is missing in the mutual information: the posteriors "
                         "were added up, not averaged."),
    no_n_in_marginal=(_with(marginal=lambda z, _, m, s: _mass_lost(z, m, s) - log_prior(z)),
                      "The number n of data points is missing in the marginal KL: the posteriors were "
                      "added up, not averaged."),
    per_dimension=(_aggregated_by(_product),
                   "The aggregate was formed in each dimension by itself: a product of mixtures. A mixture "
                   "of products is asked for, though the identity holds for both."),
    per_dimension_n_once=(_aggregated_by(lambda z, m, s: (term_table(z, m, s).logsumexp(-2).sum(-1)
                                                          - math.log(len(m)))),
                          "In the aggregate logsumexp was taken in each dimension by itself: a product of "
                          "mixtures. A density of one data point needs all of its dimensions first."),
    per_dimension_no_n=(_aggregated_by(lambda z, m, s: term_table(z, m, s).logsumexp(-2).sum(-1)),
                        "In the aggregate logsumexp was taken in each dimension by itself (a product of "
                        "mixtures), and the number of data points is missing."),
    one_gaussian=(_aggregated_by(lambda z, m, s: log_normal(z, m.mean(0), s.mean(0))),
                  "The parameters were averaged: that puts one Gaussian in the aggregate's place. It is the "
                  "densities that are averaged. The identity does not see it."),
    one_gaussian_variance=(_aggregated_by(lambda z, m, s: log_normal(z, m.mean(0), s.exp().mean(0).log())),
                           "Means and variances were averaged: that puts one Gaussian in the aggregate's "
                           "place. It is the densities that are averaged. The identity does not see it."),
    mean_of_logs=(_aggregated_by(lambda z, m, s: table(z, m, s).mean(-1)),
                  "The log-densities were averaged in the aggregate. By Jensen's inequality that is too "
                  "low: the densities are averaged first. The identity does not see it."),
    underflow=(_aggregated_by(lambda z, m, s: table(z, m, s).exp().mean(-1).log()),
               "In many dimensions densities are too small or too large for a float. Is there a way that "
               "never leaves the logarithms?"),
    over_points=(_aggregated_by(lambda z, m, s: log_mean(table(z, m, s), 1)),
                 "The average in the aggregate runs over the z's. It has to run over the posteriors, at "
                 "each z."),
    all_posteriors=(_with(lambda z, _, m, s: table(z, m, s).mean(-1) - aggregate(z, m, s)),
                    "In the mutual information every z was scored by all posteriors. It asks for the own "
                    "one, that of the x which it was drawn for."),
    swapped=(_arranged(lambda r, i, k: (r, k, i)),
             "Mutual information and marginal KL have changed places: the information comes first."),
    reversed=(_arranged(lambda r, i, k: (k, i, r)),
              "The order is turned around: the reconstruction comes first."),
    rotated=(_arranged(lambda r, i, k: (i, k, r)), "The reconstruction came last. It comes first."),
    elbo_first=(_arranged(lambda r, i, k: (r - i - k, i, k)),
                "The first term is the whole ELBO. The reconstruction alone is asked for."),
    entropies=(_with(lambda z, _, m, s: log_normal(z, m, s)),
               "The mutual information lacks the aggregate: the own posterior has to be compared with it."),
    no_prior=(_with(marginal=lambda z, _, m, s: aggregate(z, m, s)),
              "The prior is missing in the marginal KL. It appears nowhere else."),
    prior_without_constant=(_with(marginal=lambda z, *others: (_marginal(z, *others)
                                                               - 0.5 * LOG_2PI * z.shape[-1])),
                            "The prior's constant is missing in the marginal KL, the one with 2 pi."),
    posteriors_without_constant=(_with(marginal=lambda z, *others: (_marginal(z, *others)
                                                                    + 0.5 * LOG_2PI * z.shape[-1])),
                                 "The posteriors' constant is missing in the aggregate, the one with 2 pi. "
                                 "In the mutual information it cancels, in the marginal KL it does not."),
    variance_of_distribution=(_by_normal(torch.sqrt),
                              "A root was taken of log_var. It is a logarithm: which standard deviation "
                              "belongs to it?"),
    scale_of_distribution=(_by_normal(lambda s: s),
                           "log_var was used as a standard deviation, which is never negative. It is a "
                           "variance's logarithm."),
    log_std=(lambda z, zp, m, s, ll: _with()(z, zp, m, 2 * s, ll),
             "log_var was read as the logarithm of a standard deviation. It is the variance's."),
    variance=(lambda z, zp, m, s, ll: _with()(z, zp, m, s.log(), ll),
              "log_var was read as the variance. It is a logarithm, and may be negative."),
    sum_over_data=(_reduced(lambda t: t.mean(0).sum()),
                   "The data points were summed. The terms are averages over the data, n times smaller."),
    kl_summed_over_data=(lambda z, zp, m, s, ll: (ll.mean(), *_reduced(lambda t: t.mean(0).sum())(
                             z, zp, m, s, ll)[1:]),
                         "The KL terms were summed over the data, the reconstruction was averaged. All "
                         "three are averages."),
    reconstruction_summed=(lambda z, zp, m, s, ll: (ll.mean(0).sum(), *_with()(z, zp, m, s, ll)[1:]),
                           "The reconstruction was summed over the data. Like the KL terms it is an "
                           "average."),
    sum_over_samples=(_reduced(lambda t: t.sum(0).mean()),
                      "The samples of each x were summed. Average over them, too."),
    everything_summed=(_reduced(torch.sum),
                       "Everything was summed. Average over the data and over the samples of each x."),
    per_sample=(_reduced(lambda t: t),
                "There is still one number for each z. Average over samples and data."),
    per_point=(_reduced(lambda t: t.mean(0)),
               "There is still one number for each x. Average over the data, too."),
)  # fmt: skip
