"""Lecture 05's exercise about the aggregated posterior: the log-density of a mixture of n posteriors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.priors_and_surgery.densities import (
    aggregate,
    draw_gaussians,
    log_mean,
    log_normal,
    mixture_size,
    normal_table,
    table,
    term_table,
)
from dgm_course.gaussian import LOG_2PI

# ---- aggregated_posterior_log_prob: (m, d), (n, d), (n, d) -> (m,)


@exercise("the log-density of each z under the mixture of all posteriors, in nats",
          library=("mixture_log_prob", "mixture_responsibilities", "AggregatedPosterior", "elbo_surgery",
                   "streamed_log_prob", "log_terms"))
def aggregated_posterior_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return aggregate(z, mean, log_var)


aggregated_posterior_log_prob.magnitude(mixture_size)


@aggregated_posterior_log_prob.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*rows: list[float]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    z, mean, log_var = given([1.0, -0.5], [0.0, 2.0]), given([0.5, 0.5]), given([-1.5, 0.5])
    yield case("With a single data point, it is the log-density of that point's posterior.",
               z=z, mean=mean, log_var=log_var)
    yield case("Where all posteriors are the same, their mixture is that one, too.",
               z=z, mean=mean.expand(3, 2).clone(), log_var=log_var.expand(3, 2).clone())
    mean, log_var = given([0.0, 0.0], [2.0, 2.0]), given([-1.0, 1.0], [0.5, -1.0])
    yield case(z=given([0.0, 2.0]), mean=mean, log_var=log_var)
    yield case(z=given([60.0, -80.0]), mean=mean, log_var=log_var)
    for index in range(draw.count):
        rows, count, dims = draw.integer(2, 4), draw.integer(2, 5), draw.integer(2, 4)
        mean, log_var = draw_gaussians(draw, count, dims)
        yield case(z=(100.0 if index % 5 == 4 else 1.5) * draw.normal(rows, dims), mean=mean, log_var=log_var)


@aggregated_posterior_log_prob.holds("The mixture is nowhere denser than its densest posterior there.")
def _(log_prob: np.ndarray, z: Tensor, mean: Tensor, log_var: Tensor) -> bool:
    return bool((log_prob <= table(z, mean, log_var).amax(1).numpy() + 1e-6).all())


@aggregated_posterior_log_prob.holds("Any one posterior alone gives the mixture an n-th of its density.")
def _(log_prob: np.ndarray, z: Tensor, mean: Tensor, log_var: Tensor) -> bool:
    least = table(z, mean, log_var).amax(1) - math.log(len(mean))
    return bool((log_prob >= least.numpy() - 1e-6).all())


def _sum(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return torch.logsumexp(table(z, mean, log_var), 1)


aggregated_posterior_log_prob.misconceptions(
    per_dimension=(lambda z, m, s: log_mean(term_table(z, m, s), 1).sum(1),
                   "The mixture was formed in each dimension by itself: a product of mixtures, in which "
                   "every dimension may come from another data point. A mixture of products is asked for: "
                   "which of the two sums comes first?"),
    per_dimension_n_once=(lambda z, m, s: term_table(z, m, s).logsumexp(1).sum(1) - math.log(len(m)),
                          "Logsumexp was taken in each dimension by itself: a product of mixtures. A density "
                          "of one data point needs all of its dimensions first."),
    per_dimension_no_n=(lambda z, m, s: term_table(z, m, s).logsumexp(1).sum(1),
                        "Logsumexp was taken in each dimension by itself (a product of mixtures), and the "
                        "number of data points is missing. First put each data point's dimensions together, "
                        "then average over the data."),
    not_summed=(lambda z, m, s: log_mean(term_table(z, m, s), 1),
                "There is still one number for each dimension. Put the dimensions together, and do so before "
                "the mixture is formed."),
    no_n=(_sum,
          "The densities were added up. An average is needed: the number n of data points is missing."),
    n_added=(lambda z, m, s: _sum(z, m, s) + math.log(len(m)),
             "The number of data points has the wrong sign: an average is smaller than a sum."),
    n_not_logged=(lambda z, m, s: _sum(z, m, s) - len(m),
                  "The number of data points was subtracted as it is. What becomes of a division in "
                  "logarithms?"),
    log_divided=(lambda z, m, s: _sum(z, m, s) / len(m),
                 "The logarithm was divided by the number of data points. Divide what is inside it."),
    points_counted=(lambda z, m, s: _sum(z, m, s) - math.log(len(z)),
                    "The z's were counted. The average runs over the data points: how many posteriors are "
                    "there?"),
    log_of_int=(lambda z, m, s: _sum(z, m, s) - torch.log(len(m)),
                "The number of data points is a plain number, no tensor: Python has a logarithm for those."),
    mean_of_logs=(lambda z, m, s: table(z, m, s).mean(1),
                  "The log-densities were averaged. By Jensen's inequality that is too low: the densities "
                  "are averaged first, and the logarithm comes last."),
    sum_of_logs=(lambda z, m, s: table(z, m, s).sum(1),
                 "The log-densities were added up: that is a product of all posteriors, not their mixture."),
    underflow=(lambda z, m, s: table(z, m, s).exp().mean(1).log(),
               "Far from all posteriors the densities are too small for a float: their logarithm becomes "
               "minus infinity. Is there a way that never leaves the logarithms?"),
    product_of_dimensions=(lambda z, m, s: term_table(z, m, s).exp().mean(1).log().sum(1),
                           "The densities were averaged in each dimension by itself (a product of mixtures), "
                           "and far away they are too small for a float."),
    largest=(lambda z, m, s: table(z, m, s).amax(1),
             "This is the densest posterior alone. The others belong to the mixture, too."),
    largest_less_n=(lambda z, m, s: table(z, m, s).amax(1) - math.log(len(m)),
                    "Only the densest posterior is counted. Where posteriors overlap, the others add to it."),
    density=(lambda z, m, s: aggregate(z, m, s).exp(),
             "This is the density itself. Its logarithm is asked for."),
    one_gaussian=(lambda z, m, s: log_normal(z, m.mean(0), s.mean(0)),
                  "The parameters were averaged: that gives one Gaussian in the middle. It is the densities "
                  "that are averaged."),
    one_gaussian_variance=(lambda z, m, s: log_normal(z, m.mean(0), s.exp().mean(0).log()),
                           "Means and variances were averaged: that gives one Gaussian in the middle. It is "
                           "the densities that are averaged."),
    paired=(lambda z, m, s: log_normal(z, m, s),
            "Each z met the posterior of its own row only. Every z has to meet every posterior: an axis is "
            "missing."),
    paired_then_summed=(lambda z, m, s: log_mean(log_normal(z, m, s), 0),
                        "Each z met the posterior of its own row. Give the z's and the posteriors an axis "
                        "each, so that all pairs meet."),
    log_std=(lambda z, m, s: aggregate(z, m, 2 * s),
             "log_var was read as the logarithm of a standard deviation. It is the variance's."),
    variance=(lambda z, m, s: aggregate(z, m, s.log()),
              "log_var was read as the variance. It is a logarithm, and may be negative."),
    variance_of_distribution=(lambda z, m, s: log_mean(normal_table(z, m, s.sqrt())),
                              "A root was taken of log_var. It is a logarithm: which standard deviation "
                              "belongs to it?"),
    scale_of_distribution=(lambda z, m, s: log_mean(normal_table(z, m, s)),
                           "log_var was used as a standard deviation, which is never negative. It is a "
                           "variance's logarithm."),
    times_variance=(lambda z, m, s: log_mean(-0.5 * (LOG_2PI + s + (z[:, None] - m) ** 2 * s.exp()).sum(2)),
                    "A step away from the mean costs more where a posterior is wide. It has to cost less "
                    "there."),
    no_log_var=(lambda z, m, s: log_mean((term_table(z, m, s) + 0.5 * s).sum(2)),
                "A wide Gaussian is also a low one: the widths do not yet lower the densities."),
    no_constant=(lambda z, m, s: log_mean((term_table(z, m, s) + 0.5 * LOG_2PI).sum(2)),
                 "The Gaussian's constant is missing, the one with 2 pi: a density has to integrate to 1."),
    constant_once=(lambda z, m, s: aggregate(z, m, s) + 0.5 * LOG_2PI * (z.shape[1] - 1),
                   "The Gaussian's constant was counted once. Each dimension brings its own."),
    no_half=(lambda z, m, s: log_mean(2 * table(z, m, s)),
             "A half is missing: a Gaussian's log-density has one in front."),
    dimension_mean=(lambda z, m, s: log_mean(term_table(z, m, s).mean(2)),
                    "The dimensions were averaged. What do independent ones give together?"),
    over_points=(lambda z, m, s: log_mean(table(z, m, s), 0),
                 "The average runs over the z's. It has to run over the data points, whose posteriors are "
                 "mixed."),
    over_points_n=(lambda z, m, s: table(z, m, s).logsumexp(0) - math.log(len(m)),
                   "Logsumexp runs over the z's. It has to run over the posteriors, and leave one number for "
                   "each z."),
    every_pair=(table, "There is still one number for each posterior. Mix them: one number for each z."),
    everything=(lambda z, m, s: log_mean(table(z, m, s).flatten()),
                "All z's were taken together. Keep one number for each z."),
    batch_mean=(lambda z, m, s: aggregate(z, m, s).mean(),
                "The z's were averaged. Keep one number for each z."),
    axis_kept=(lambda z, m, s: aggregate(z, m, s)[:, None],
               "An axis that was summed over is still there, with one entry. Let it be dropped."),
    negative=(lambda z, m, s: -aggregate(z, m, s),
              "Only the sign is wrong: this is a loss, to be made small."),
)  # fmt: skip
