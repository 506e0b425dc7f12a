"""Lecture 02's exercises about the bound: the bound of K samples, and how far it is from log p(x)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.importance.draws import FAR, NEAR, draw_log_weights, rounded

# ---- iwae_bound: (K, B) -> (B,)


@exercise("the bound of K samples for each x, in nats", library=("log_mean_exp", "streamed_iwae_bound"))
def iwae_bound(log_w: Tensor) -> Tensor:
    return _log_mean(log_w)


def _log_mean(log_w: Tensor, dim: int = 0) -> Tensor:
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


@iwae_bound.inputs
def _(draw: Draw) -> Iterator[Case]:
    yield case("With a single sample, the bound is its log-weight.", log_w=torch.tensor([[0.5, -3.0, 2.0]]))
    yield case("The bound of equal log-weights is that same number.", log_w=torch.full((4, 2), -2.0))
    yield case(log_w=NEAR)
    yield case(log_w=FAR)
    for _ in range(draw.count):
        yield case(log_w=draw_log_weights(draw, draw.integer(2, 8), draw.integer(2, 5)))


@iwae_bound.holds("The bound is not above the largest log-weight.")
def _(bound: np.ndarray, log_w: Tensor) -> bool:
    return bool((bound <= log_w.amax(0).numpy()).all())


@iwae_bound.holds("The bound is not below the average log-weight.")
def _(bound: np.ndarray, log_w: Tensor) -> bool:
    return bool((bound >= log_w.mean(0).numpy()).all())


def _shifted(log_w: Tensor, shift: Tensor) -> Tensor:
    return shift + torch.log(torch.exp(log_w - shift).mean(0))


iwae_bound.misconceptions(
    elbo=(lambda w: w.mean(0),
          "The logarithms were averaged: that is the ELBO. Here the weights are averaged first."),
    no_division=(lambda w: torch.logsumexp(w, 0),
                 "The weights were added up. Their average is needed: the number of samples is missing."),
    overflow=(lambda w: w.exp().mean(0).log(),
              "Log-weights may lie near -1000 or 1000: in floats their exponentials are 0 or infinite. Is "
              "there a way that never leaves the logarithms?"),
    in_doubles=(lambda w: w.double().exp().mean(0).log().to(w.dtype),
                "Double precision only moves the limit: at -1000 or 1000 its exponentials are 0 or infinite, "
                "too."),
    log_of_logs=(lambda w: w.mean(0).log(),
                 "A logarithm was taken of what is one already, and may be negative."),
    log_of_int=(lambda w: w.logsumexp(0) - torch.log(len(w)),
                "The number of samples is a plain number, no tensor: Python has a logarithm for those."),
    max_pair=(lambda w: _shifted(w, w.max(0)),
              "Along an axis this function gives two things: the largest entries, and where they are. Take "
              "the first."),
    global_max=(lambda w: _shifted(w, w.max()),
                "One shift was used for all x's, so that some x's weights all underflow. Shift each x by "
                "itself."),
    mean_subtracted=(lambda w: _shifted(w, w.mean(0)),
                     "A shift by the mean is not safe: the largest log-weight may be hundreds above it."),
    shift_lost=(lambda w: _shifted(w, w.max(0).values) - w.max(0).values,
                "What was subtracted to keep the exponentials small has to come back in the end."),
    over_batch=(lambda w: _log_mean(w, 1),
                "The average runs over the batch. It has to run over the samples of each x."),
    everything=(lambda w: _log_mean(w.flatten()),
                "The weights of all x's were averaged together. Keep one bound for each x."),
    batch_mean=(lambda w: _log_mean(w).mean(), "The batch was averaged. Keep one bound for each x."),
    axis_kept=(lambda w: _log_mean(w)[None],
               "The axis of the samples is still there, with one entry. Let it be dropped."),
    k_added=(lambda w: torch.logsumexp(w, 0) + math.log(len(w)),
             "The number of samples has the wrong sign: an average is smaller than a sum."),
    k_not_logged=(lambda w: torch.logsumexp(w, 0) - len(w),
                  "The number of samples was subtracted as it is. What becomes of a division in logarithms?"),
    log_divided=(lambda w: torch.logsumexp(w, 0) / len(w),
                 "The logarithm was divided by the number of samples. Divide what is inside it."),
    batch_counted=(lambda w: torch.logsumexp(w, 0) - math.log(w.shape[1]),
                   "The number of x's was divided by. How many samples does each x have?"),
    one_less=(lambda w: torch.logsumexp(w, 0) - torch.tensor(len(w) - 1.0).log(),
              "This divides by one less than the number of samples. A plain average is asked for."),
    largest=(lambda w: w.max(0).values,
             "This is the largest log-weight alone. The bound averages over all samples."),
    log_missing=(lambda w: w.exp().mean(0), "This is an estimate of p(x). Its logarithm is asked for."),
    summed_logs=(lambda w: w.sum(0),
                 "The logarithms were added up: that multiplies the weights. They have to be averaged."),
    as_loss=(lambda w: -_log_mean(w), "This is a loss, to be made small. The bound has the other sign."),
    self_weighted=(lambda w: (torch.softmax(w, 0) * w).sum(0),
                   "The log-weights were averaged by their own shares. That is how the gradient weighs the "
                   "samples, not the bound."),
)

# ---- iwae_gap: (N, B), K -> (B,)


@exercise("the predicted gap between log p(x) and the bound of K samples, in nats",
          library=("chi2_from_log_weights", "effective_sample_size"))
def iwae_gap(log_w: Tensor, num_samples: int) -> Tensor:
    return _chi2(log_w) / (2 * num_samples)


def _chi2(log_w: Tensor, dim: int = 0) -> Tensor:
    w = torch.exp(log_w - log_w.amax(dim, keepdim=True))
    return (w / w.mean(dim, keepdim=True) - 1).square().mean(dim)


@iwae_gap.magnitude
def _(log_w: Tensor, num_samples: int) -> Tensor:
    return (1 + _chi2(log_w)) / (2 * num_samples) * (1 + rounded(log_w))


@iwae_gap.inputs
def _(draw: Draw) -> Iterator[Case]:
    yield case("Where all weights are equal, the bound is exact: there is no gap.",
               log_w=torch.full((4, 2), -1000.0), num_samples=1)
    yield case("Where one of N weights is far above the others, chi-squared is N - 1.",
               log_w=torch.tensor([[0.0], [-1000.0], [-1100.0], [-1200.0]]), num_samples=2)
    yield case(log_w=NEAR, num_samples=2)
    yield case(log_w=FAR, num_samples=3)
    for _ in range(draw.count):
        log_w = draw_log_weights(draw, draw.integer(3, 12), draw.integer(2, 5))
        yield case(log_w=log_w, num_samples=draw.choose([1, 2, 5, 10]))


@iwae_gap.holds("A gap is never negative.")
def _(gap: np.ndarray, log_w: Tensor, num_samples: int) -> bool:
    return bool((gap >= 0).all())


def _raw_chi2(log_w: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    w = torch.exp(log_w - shift)
    return w.square().mean(0) / w.mean(0).square() - 1


iwae_gap.misconceptions(
    no_half=(lambda w, k: _chi2(w) / k, "Every answer is twice what it should be: look again "
                                        "at the second-order term of a logarithm."),
    no_k=(lambda w, k: _chi2(w) / 2,
          "The gap does not depend on the bound's number of samples. More samples have to make it smaller."),
    n_for_k=(lambda w, k: _chi2(w) / (2 * len(w)),
             "The log-weights were counted: they only serve as an estimate. The number of samples of the "
             "bound is passed in."),
    chi2_alone=(lambda w, k: _chi2(w),
                "This is chi-squared itself. How much of it is left, as a gap, with this many samples?"),
    first_k=(lambda w, k: _chi2(w[:k]) / (2 * k),
             "Only the first few log-weights were used. All of them help to estimate chi-squared."),
    no_n=(lambda w, k: (torch.softmax(w, 0).square().sum(0) - 1) / (2 * k),
          "Chi-squared has to be 0 where all weights are equal: what do the squares of their shares sum to "
          "there?"),
    k_for_n=(lambda w, k: (k * torch.softmax(w, 0).square().sum(0) - 1) / (2 * k),
             "The average has to run over all N log-weights. The number of samples of the bound is another "
             "number."),
    k_multiplied=(lambda w, k: _chi2(w) / 2 * k,
                  "The gap grows with the number of samples of the bound. Are brackets missing?"),
    root_k=(lambda w, k: _chi2(w) / (2 * math.sqrt(k)),
            "The gap is no standard error: it falls faster with the number of samples."),
    no_one=(lambda w, k: (_chi2(w) + 1) / (2 * k),
            "A constant is missing in chi-squared: it has to be 0 where all weights are equal."),
    one_at_the_end=(lambda w, k: (_chi2(w) + 1) / (2 * k) - 1,
                    "The constant was subtracted from the gap. It belongs to chi-squared."),
    standard_deviation=(lambda w, k: _chi2(w).sqrt() / (2 * k),
                        "A root was taken: chi-squared is a variance, not a standard deviation."),
    sample_variance=(lambda w, k: _chi2(w) * len(w) / (len(w) - 1) / (2 * k),
                     "The variance of a sample (N - 1) was taken. Here both averages divide by N."),
    overflow=(lambda w, k: _raw_chi2(w) / (2 * k),
              "Log-weights may lie near -1000 or 1000: in floats their exponentials are 0 or infinite. What "
              "can be added to all log-weights of an x without changing chi-squared?"),
    global_max=(lambda w, k: _raw_chi2(w, w.max()) / (2 * k),
                "One shift was used for all x's, so that some x's weights all underflow. Shift each x by "
                "itself."),
    not_relative=(lambda w, k: w.exp().var(0, correction=0) / (2 * k),
                  "This is the variance of the weights. It has to be compared with the size of their mean."),
    not_relative_sample=(lambda w, k: w.exp().var(0) / (2 * k),
                         "This is the variance of the weights, as of a sample (N - 1). Divide by N, and "
                         "compare it with the size of their mean."),
    relative_to_largest=(lambda w, k: (w - w.amax(0)).exp().var(0, correction=0) / (2 * k),
                         "Dividing by the largest weight is safe, but what is left still has to be compared "
                         "with its mean."),
    of_shares=(lambda w, k: torch.softmax(w, 0).var(0, correction=0) / (2 * k),
               "This is the variance of weights that sum to 1. Chi-squared is that of weights with mean 1."),
    mean_not_squared=(lambda w, k: ((2 * w).logsumexp(0) - w.logsumexp(0) - w.amax(0)).expm1() / (2 * k),
                      "Mean square and mean scale differently: if all weights double, chi-squared must "
                      "not change."),
    log_variance=(lambda w, k: w.var(0, correction=0) / (2 * k),
                  "This is the variance of the log-weights. The weights themselves are needed."),
    log_variance_sample=(lambda w, k: w.var(0) / (2 * k),
                         "This is the variance of the log-weights, as of a sample (N - 1). The weights "
                         "themselves are needed."),
    over_batch=(lambda w, k: _chi2(w, 1) / (2 * k),
                "The averages run over the batch. They have to run over the samples of each x."),
    everything=(lambda w, k: _chi2(w.flatten()) / (2 * k),
                "The weights of all x's were taken together. Keep one gap for each x."),
    batch_mean=(lambda w, k: _chi2(w).mean() / (2 * k), "The batch was averaged. Keep one gap for each x."),
    negative=(lambda w, k: -_chi2(w) / (2 * k), "The sign is wrong: the bound is below log p(x), not above."),
    effective_samples=(lambda w, k: len(w) / (1 + _chi2(w)),
                       "This is how many samples are effective. The gap of the bound is asked for."),
    seen_gap=(lambda w, k: _log_mean(w) - w.mean(0),
              "This is how far these N samples are above the ELBO. A prediction for the bound of K samples "
              "is asked for."),
)
