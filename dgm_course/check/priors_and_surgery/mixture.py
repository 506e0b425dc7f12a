"""Lecture 05's exercise about the mixture-of-Gaussians prior: its log-density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.priors_and_surgery.densities import (
    draw_gaussians,
    log_normal,
    mixture_size,
    normal_table,
    table,
    term_table,
)
from dgm_course.gaussian import LOG_2PI

# ---- mog_log_prob: (m, d), (K, d), (K, d), (K,) -> (m,)

Mixture = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@exercise("the log-density of each z under the mixture, in nats",
          library=("mixture_log_prob", "mixture_responsibilities", "MixturePrior", "streamed_log_prob",
                   "log_terms"))
def mog_log_prob(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    return _mixed(z, means, log_vars, logits)


def _mixed(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    return torch.logsumexp(table(z, means, log_vars) + _log_weights(logits), 1)


def _log_weights(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, 0)


@mog_log_prob.magnitude
def _(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    return mixture_size(z, means, log_vars) + logits.abs().max()


@mog_log_prob.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*rows: object) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    z, means, log_vars = given([1.0, -0.5], [0.0, 2.0]), given([0.5, 0.5]), given([-1.5, 0.5])
    yield case("A single component has all of the weight, whatever its logit.",
               z=z, means=means, log_vars=log_vars, logits=given(2.0))
    yield case("Where all components are the same, the mixture is one of them, whatever the logits.",
               z=z, means=means.expand(2, 2).clone(), log_vars=log_vars.expand(2, 2).clone(),
               logits=given(1.0, 0.5))
    means, log_vars = given([0.0, 0.0], [2.0, 2.0]), given([-1.0, 1.0], [0.5, -1.0])
    yield case(z=given([0.0, 2.0]), means=means, log_vars=log_vars, logits=given(2.0, -1.0))
    yield case(z=given([0.0, 2.0]), means=means, log_vars=log_vars, logits=given(1002.0, 999.0))
    yield case(z=given([60.0, -80.0]), means=means, log_vars=0.5 * log_vars, logits=given(-1.0, 1.0))
    for index in range(draw.count):
        rows, count, dims = draw.integer(2, 4), draw.integer(2, 5), draw.integer(2, 4)
        means, log_vars = draw_gaussians(draw, count, dims)
        z = (100.0 if index % 5 == 4 else 1.5) * draw.normal(rows, dims)
        logits = draw.choose([-2.0, 0.0, 2.0]) + 1.5 * draw.normal(count)
        yield case(z=z, means=means, log_vars=log_vars, logits=logits)


@mog_log_prob.holds("The mixture is nowhere denser than its densest component there.")
def _(log_prob: np.ndarray, z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> bool:
    return bool((log_prob <= table(z, means, log_vars).amax(1).numpy() + 1e-6).all())


@mog_log_prob.holds("The mixture is nowhere less dense than its least dense component there.")
def _(log_prob: np.ndarray, z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> bool:
    return bool((log_prob >= table(z, means, log_vars).amin(1).numpy() - 1e-6).all())


def _with(log_weights: Callable[[Tensor], Tensor]) -> Mixture:
    """The mixture with other log-weights."""
    return lambda z, m, s, a: torch.logsumexp(table(z, m, s) + log_weights(a), 1)


def _by_normal(scale: Callable[[Tensor], Tensor]) -> Mixture:
    """The mixture of torch's own Gaussians, with another scale."""
    return lambda z, m, s, a: torch.logsumexp(normal_table(z, m, scale(s)) + _log_weights(a), 1)


def _dimensions(z: Tensor, means: Tensor, log_vars: Tensor, log_weights: Tensor) -> Tensor:
    return term_table(z, means, log_vars) + log_weights[:, None]  # (m, K, d)


def _uniform(logits: Tensor) -> Tensor:
    return torch.full_like(logits, -math.log(len(logits)))


mog_log_prob.misconceptions(
    not_normalised=(_with(lambda a: a),
                    "The logits were taken as logarithms of weights. The weights have to sum to 1 first."),
    less_count=(_with(lambda a: a + _uniform(a)),
                "The logits were taken as they are and the number of components taken off. The weights have "
                "to sum to 1: which function makes them do so?"),
    count_on_top=(_with(lambda a: _log_weights(a) + _uniform(a)),
                  "The number of components was divided by on top. Weights that sum to 1 make an average "
                  "already."),
    ignored=(_with(_uniform),
             "All components have the same weight. What do the logits say?"),
    no_weights=(_with(torch.zeros_like),
                "The components were added up without weights. What do the logits say?"),
    not_logged=(_with(lambda a: torch.softmax(a, 0)),
                "The weights were added to log-densities as they are. A density is multiplied by its weight: "
                "what becomes of that in logarithms?"),
    weights_times_logs=(lambda z, m, s, a: torch.logsumexp(torch.softmax(a, 0) * table(z, m, s), 1),
                        "A weight multiplies a density. In logarithms its logarithm is added, inside the "
                        "logsumexp."),
    log_of_logits=(_with(lambda a: a.log()),
                   "A logarithm was taken of the logits. They are logarithms already, but for a constant, "
                   "and may be negative."),
    logits_divided=(_with(lambda a: (a / a.sum()).log()),
                    "The logits were divided by their sum. They may be negative: which function of them "
                    "gives positive numbers that sum to 1?"),
    probs_of_distribution=(_with(lambda a: Categorical(probs=a).logits),
                           "The logits were handed over as probabilities, which are never negative. They "
                           "are free numbers: their softmax is the weights."),
    softmax_twice=(_with(lambda a: _log_weights(torch.softmax(a, 0))),
                   "A softmax was taken of the weights, which were one already: that makes them almost "
                   "equal."),
    exponentials=(_with(torch.exp),
                  "The exponentials of the logits were added to log-densities. What is to be added are the "
                  "logarithms of weights that sum to 1."),
    sigmoid=(_with(torch.nn.functional.logsigmoid),
             "Each logit went through a sigmoid by itself. The components compete: their weights sum to 1."),
    overflow=(_with(lambda a: (a.exp() / a.exp().sum()).log()),
              "Logits may lie near 1000: in floats their exponentials are infinite. What can be added to all "
              "logits without changing the weights?"),
    overflow_of_total=(_with(lambda a: a - a.exp().sum().log()),
                       "Logits may lie near 1000: the sum of their exponentials is infinite in floats. Is "
                       "there a function that takes the logarithm of such a sum safely?"),
    inside_the_sum=(lambda z, m, s, a: _dimensions(z, m, s, _log_weights(a)).sum(2).logsumexp(1),
                    "The log-weight was added in each dimension, so that it counts d times. A component is "
                    "chosen once, for all dimensions."),
    per_dimension=(lambda z, m, s, a: _dimensions(z, m, s, _log_weights(a)).logsumexp(1).sum(1),
                   "The mixture was formed in each dimension by itself: a product of mixtures, in which "
                   "every dimension may come from another component. A mixture of products is asked for: "
                   "which of the two sums comes first?"),
    per_dimension_no_weights=(lambda z, m, s, a: term_table(z, m, s).logsumexp(1).sum(1),
                              "Logsumexp was taken in each dimension by itself (a product of mixtures), and "
                              "the weights are missing."),
    per_dimension_raw=(lambda z, m, s, a: _dimensions(z, m, s, a).logsumexp(1).sum(1),
                       "Logsumexp was taken in each dimension by itself (a product of mixtures), and the "
                       "weights do not sum to 1."),
    not_summed=(lambda z, m, s, a: _dimensions(z, m, s, _log_weights(a)).logsumexp(1),
                "There is still one number for each dimension. Put the dimensions together, and do so before "
                "the components are mixed."),
    mean_of_logs=(lambda z, m, s, a: table(z, m, s) @ torch.softmax(a, 0),
                  "The log-densities were averaged. By Jensen's inequality that is too low: the densities "
                  "are averaged, and the logarithm comes last."),
    underflow=(lambda z, m, s, a: (table(z, m, s).exp() @ torch.softmax(a, 0)).log(),
               "Far from all components the densities are too small for a float: their logarithm becomes "
               "minus infinity. Is there a way that never leaves the logarithms?"),
    heaviest=(lambda z, m, s, a: table(z, m, s)[:, a.argmax()],
              "This is the component of the largest weight alone. The others belong to the mixture, too."),
    largest=(lambda z, m, s, a: (table(z, m, s) + _log_weights(a)).amax(1),
             "Only the component that counts most at each z is left. The others add to it."),
    density=(lambda z, m, s, a: _mixed(z, m, s, a).exp(),
             "This is the density itself. Its logarithm is asked for."),
    one_gaussian=(lambda z, m, s, a: log_normal(z, torch.softmax(a, 0) @ m, torch.softmax(a, 0) @ s),
                  "The parameters were averaged: that gives one Gaussian in the middle. It is the densities "
                  "that are averaged."),
    log_std=(lambda z, m, s, a: _mixed(z, m, 2 * s, a),
             "log_vars was read as the logarithm of a standard deviation. It is the variance's."),
    variance=(lambda z, m, s, a: _mixed(z, m, s.log(), a),
              "log_vars was read as the variance. It is a logarithm, and may be negative."),
    variance_of_distribution=(_by_normal(torch.sqrt),
                              "A root was taken of log_vars. It is a logarithm: which standard deviation "
                              "belongs to it?"),
    scale_of_distribution=(_by_normal(lambda s: s),
                           "log_vars was used as a standard deviation, which is never negative. It is a "
                           "variance's logarithm."),
    no_log_var=(lambda z, m, s, a: (table(z, m, s) + 0.5 * s.sum(1) + _log_weights(a)).logsumexp(1),
                "A wide Gaussian is also a low one: the widths do not yet lower the densities."),
    no_constant=(lambda z, m, s, a: _mixed(z, m, s, a) + 0.5 * LOG_2PI * z.shape[1],
                 "The Gaussian's constant is missing, the one with 2 pi: a density has to integrate to 1."),
    constant_once=(lambda z, m, s, a: _mixed(z, m, s, a) + 0.5 * LOG_2PI * (z.shape[1] - 1),
                   "The Gaussian's constant was counted once. Each dimension brings its own."),
    dimension_mean=(lambda z, m, s, a: torch.logsumexp(term_table(z, m, s).mean(2) + _log_weights(a), 1),
                    "The dimensions were averaged. What do independent ones give together?"),
    paired=(lambda z, m, s, a: torch.logsumexp(log_normal(z, m, s) + _log_weights(a), 0),
            "Each z met the component of its own row. Every z has to meet every component: an axis is "
            "missing."),
    over_points=(lambda z, m, s, a: torch.logsumexp(table(z, m, s) + _log_weights(a), 0),
                 "Logsumexp runs over the z's. It has to run over the components, and leave one number for "
                 "each z."),
    every_pair=(lambda z, m, s, a: table(z, m, s) + _log_weights(a),
                "There is still one number for each component. Mix them: one number for each z."),
    everything=(lambda z, m, s, a: torch.logsumexp((table(z, m, s) + _log_weights(a)).flatten(), 0),
                "All z's were taken together. Keep one number for each z."),
    batch_mean=(lambda z, m, s, a: _mixed(z, m, s, a).mean(),
                "The z's were averaged. Keep one number for each z."),
    axis_kept=(lambda z, m, s, a: _mixed(z, m, s, a)[:, None],
               "An axis that was summed over is still there, with one entry. Let it be dropped."),
    negative=(lambda z, m, s, a: -_mixed(z, m, s, a),
              "Only the sign is wrong: this is a loss, to be made small."),
)  # fmt: skip
