"""Lecture 05's exercise about the mutual information of data points and latents."""

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

# ---- mutual_information: (S, n, d), (n, d), (n, d) -> ()


@exercise("the mutual information of data and latents at these samples, in nats",
          library=("elbo_surgery", "index_information", "marginal_kl", "mixture_log_prob",
                   "mixture_responsibilities", "AggregatedPosterior", "streamed_log_prob", "log_terms"))
def mutual_information(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return _ratios(z, mean, log_var).mean()


def _ratios(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return log_normal(z, mean, log_var) - aggregate(z, mean, log_var)  # (S, n)


@mutual_information.magnitude
def _(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return (size(z, mean, log_var) + mixture_size(z, mean, log_var)).mean()


@mutual_information.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*rows: object) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    mean, log_var = given([0.5, -1.0]), given([-1.0, 0.5])
    yield case("A single data point cannot be mistaken for another: z has 0 nats to tell.",
               z=given([[1.0, 0.0]], [[0.0, -2.0]]), mean=mean, log_var=log_var)
    yield case("Where all posteriors are the same, z says nothing about x: 0 nats.",
               z=given([[1.0, 0.0], [0.5, 1.0], [0.0, -2.0]]),
               mean=mean.expand(3, 2).clone(), log_var=log_var.expand(3, 2).clone())
    yield case("Where no two posteriors overlap, z gives its x away: log n nats, the most there is.",
               z=given([[1.0, 0.5], [39.5, 1.0], [0.5, 41.0]]),
               mean=given([0.0, 0.0], [40.0, 0.0], [0.0, 40.0]),
               log_var=given([0.0, 0.5], [0.5, 0.0], [0.0, 0.0]))
    yield case(z=given([[0.5, -0.5], [1.5, 2.0]]), mean=given([0.0, 0.0], [1.0, 2.0]),
               log_var=given([-1.0, 0.5], [0.5, -1.0]))
    for level in (8.0, -8.0):  # the densities themselves leave the range of floats
        log_var = level + draw.uniform(3, 300, low=-0.1, high=0.1)
        mean = 0.05 * math.exp(level / 2) * draw.normal(3, 300)
        yield case(z=draw_samples(draw, 1, mean, log_var), mean=mean, log_var=log_var)
    for _ in range(draw.count):
        samples, count, dims = draw.integer(2, 4), draw.integer(2, 5), draw.integer(2, 4)
        mean, log_var = draw_gaussians(draw, count, dims)
        yield case(z=draw_samples(draw, samples, mean, log_var), mean=mean, log_var=log_var)


@mutual_information.holds("It is at most log n: there are only n data points to tell apart.")
def _(information: np.ndarray, z: Tensor, mean: Tensor, log_var: Tensor) -> bool:
    return bool(information <= math.log(len(mean)) + 1e-6)


def _with(other: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The own log-density less what ``other`` makes of the table of all of them, averaged."""
    return lambda z, m, s: (log_normal(z, m, s) - other(table(z, m, s))).mean()


def _per_dimension(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return log_normal(z, mean, log_var) - log_mean(term_table(z, mean, log_var), -2).sum(-1)


def _by_normal(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    own = normal_table(z, mean, scale)
    return (own.diagonal(dim1=-2, dim2=-1) - log_mean(own)).mean()


def _others(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    own = torch.eye(len(mean), dtype=torch.bool)
    rest = table(z, mean, log_var).masked_fill(own, -math.inf).logsumexp(-1) - math.log(len(mean) - 1)
    return (log_normal(z, mean, log_var) - rest).mean()


def _by_index(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    log_r = torch.log_softmax(table(z, mean, log_var), -1)
    return math.log(len(mean)) + (log_r.exp() * log_r).sum(-1).mean()


mutual_information.misconceptions(
    no_n=(_with(lambda t: t.logsumexp(-1)),
          "The posteriors were added up, not averaged: the number n of data points is missing, and the "
          "result can only be negative. Where all posteriors are the same, the two densities are equal."),
    n_twice=(_with(lambda t: log_mean(t) - math.log(t.shape[-1])),
             "The number n of data points was divided by twice: the average over the data has it already."),
    n_added=(_with(lambda t: t.logsumexp(-1) + math.log(t.shape[-1])),
             "The number of data points has the wrong sign in the aggregated posterior: an average is "
             "smaller than a sum."),
    n_not_logged=(_with(lambda t: t.logsumexp(-1) - t.shape[-1]),
                  "The number of data points was subtracted as it is. What becomes of a division in "
                  "logarithms?"),
    samples_counted=(_with(lambda t: t.logsumexp(-1) - math.log(len(t))),
                     "The samples of each x were counted. The aggregated posterior averages over the data."),
    sum_over_data=(lambda z, m, s: _ratios(z, m, s).mean(0).sum(),
                   "The data points were summed, so that the result is n times too large and may exceed "
                   "log n. Average over them."),
    sum_over_samples=(lambda z, m, s: _ratios(z, m, s).sum(0).mean(),
                      "The samples of each x were summed. Average over them, too."),
    everything_summed=(lambda z, m, s: _ratios(z, m, s).sum(),
                       "Everything was summed. Average over the data and over the samples of each x."),
    all_posteriors=(lambda z, m, s: (table(z, m, s).mean(-1) - aggregate(z, m, s)).mean(),
                    "Every z was scored by all posteriors. The first term asks for its own one alone, that "
                    "of the x which it was drawn for."),
    all_posteriors_no_n=(lambda z, m, s: (table(z, m, s).mean(-1) - table(z, m, s).logsumexp(-1)).mean(),
                         "Every z was scored by all posteriors, not by that of its own x, and the number of "
                         "data points is missing in the aggregated posterior."),
    itself=(lambda z, m, s: 0 * _ratios(z, m, s).mean(),
            "The two densities are the same everywhere. The first is that of the own posterior, the second "
            "the mixture of all."),
    per_dimension=(lambda z, m, s: _per_dimension(z, m, s).mean(),
                   "The aggregated posterior was formed in each dimension by itself: a product of mixtures. "
                   "A mixture of products is asked for: which of the two sums comes first?"),
    per_dimension_n_once=(lambda z, m, s: (_per_dimension(z, m, s)
                                           - (z.shape[-1] - 1) * math.log(len(m))).mean(),
                          "Logsumexp was taken in each dimension by itself: a product of mixtures. A density "
                          "of one data point needs all of its dimensions first."),
    per_dimension_no_n=(lambda z, m, s: (_per_dimension(z, m, s) - z.shape[-1] * math.log(len(m))).mean(),
                        "Logsumexp was taken in each dimension by itself (a product of mixtures), and the "
                        "number of data points is missing."),
    negative=(lambda z, m, s: -_ratios(z, m, s).mean(),
              "The sign is wrong: where z says much about x, its own posterior is denser than the mixture."),
    negative_no_n=(lambda z, m, s: math.log(len(m)) - _ratios(z, m, s).mean(),
                   "The sign is wrong, and the number of data points is missing: this is how much about x is "
                   "left open once z is known."),
    mean_of_logs=(_with(lambda t: t.mean(-1)),
                  "The log-densities were averaged. By Jensen's inequality that is too low, so that the "
                  "result is too large: the densities are averaged first."),
    underflow=(lambda z, m, s: (table(z, m, s).diagonal(dim1=1, dim2=2).exp()
                                / table(z, m, s).exp().mean(-1)).log().mean(),
               "In many dimensions densities are too small or too large for a float. Is there a way that "
               "never leaves the logarithms?"),
    underflow_of_aggregate=(_with(lambda t: t.exp().mean(-1).log()),
                            "In many dimensions densities are too small or too large for a float, and so is "
                            "their average. Is there a way to its logarithm that never leaves logarithms?"),
    others=(_others, "The own posterior was left out of the mixture. The aggregated posterior holds all n."),
    one_gaussian=(lambda z, m, s: (log_normal(z, m, s) - log_normal(z, m.mean(0), s.mean(0))).mean(),
                  "The parameters were averaged: that puts one Gaussian in the aggregate's place. It is the "
                  "densities that are averaged."),
    one_gaussian_variance=(lambda z, m, s: (log_normal(z, m, s)
                                            - log_normal(z, m.mean(0), s.exp().mean(0).log())).mean(),
                           "Means and variances were averaged: that puts one Gaussian in the aggregate's "
                           "place. It is the densities that are averaged."),
    over_points=(_with(lambda t: log_mean(t, 1)),
                 "The average in the aggregated posterior runs over the z's. It has to run over the "
                 "posteriors, at each z."),
    over_samples=(_with(lambda t: log_mean(t, 0)),
                  "The average in the aggregated posterior runs over the samples. It has to run over the "
                  "posteriors, at each z."),
    largest=(_with(lambda t: t.amax(-1)),
             "The densest posterior stands for the mixture. All n of them belong to it, with equal weights."),
    whole_kl=(lambda z, m, s: (log_normal(z, m, s) - log_prior(z)).mean(),
              "This is the whole KL term, from the posteriors to the prior. For the mutual information "
              "they are compared with their own mixture."),
    marginal=(lambda z, m, s: (aggregate(z, m, s) - log_prior(z)).mean(),
              "This is the marginal KL, from the aggregated posterior to the prior. The other part of the KL "
              "term is asked for."),
    entropy=(lambda z, m, s: -aggregate(z, m, s).mean(),
             "This is the entropy of the aggregated posterior. What the posteriors themselves have of it "
             "has to be taken off."),
    negative_entropy=(lambda z, m, s: log_normal(z, m, s).mean(),
                      "This scores each z by its own posterior. It has to be compared with the mixture of "
                      "all."),
    by_index=(_by_index,
              "This measures how well z tells the index, by its entropy: the same number on average, but "
              "not at these samples. Here the two log-densities of each z are asked for."),
    log_std=(lambda z, m, s: _ratios(z, m, 2 * s).mean(),
             "log_var was read as the logarithm of a standard deviation. It is the variance's."),
    variance=(lambda z, m, s: _ratios(z, m, s.log()).mean(),
              "log_var was read as the variance. It is a logarithm, and may be negative."),
    variance_of_distribution=(lambda z, m, s: _by_normal(z, m, s.sqrt()),
                              "A root was taken of log_var. It is a logarithm: which standard deviation "
                              "belongs to it?"),
    scale_of_distribution=(_by_normal,
                           "log_var was used as a standard deviation, which is never negative. It is a "
                           "variance's logarithm."),
    no_log_var=(lambda z, m, s: (log_normal(z, m, s) + 0.5 * s.sum(-1)
                                 - log_mean(table(z, m, s) + 0.5 * s.sum(-1))).mean(),
                "A wide Gaussian is also a low one: the widths differ, and do not cancel."),
    dimension_mean=(lambda z, m, s: (log_normal(z, m, s) / z.shape[-1]
                                     - log_mean(table(z, m, s) / z.shape[-1])).mean(),
                    "The dimensions were averaged. What do independent ones give together?"),
    bits=(lambda z, m, s: _ratios(z, m, s).mean() / math.log(2), "These are bits. Nats are asked for."),
    share=(lambda z, m, s: _ratios(z, m, s).mean() / math.log(len(m)),
           "This is the share of log n, the most there can be. The number itself is asked for, in nats."),
    per_sample=(_ratios, "There is still one number for each z. Average over samples and data."),
    per_point=(lambda z, m, s: _ratios(z, m, s).mean(0),
               "There is still one number for each x. Average over the data, too."),
    per_draw=(lambda z, m, s: _ratios(z, m, s).mean(1),
              "There is still one number for each round of samples. Average over them, too."),
)  # fmt: skip
