"""Lecture 02's exercises about the weights: their logarithms, and their shares."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.importance.draws import FAR, NEAR, draw_log_weights, rounded, shares_by_exp
from dgm_course.gaussian import LOG_2PI

# ---- log_weights: (B, d), (K, B, d), (B, d), (B, d) -> (K, B)


@exercise("the logarithm of each sample's importance weight, in nats")
def log_weights(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    return _terms(x, z, q_mean, q_log_var).sum(-1)


def _terms(x: Tensor, z: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return _prior(z) + _likelihood(x, z) - _q(z, m, s)  # (K, B, d)


def _prior(z: Tensor) -> Tensor:
    return -0.5 * (LOG_2PI + z**2)


def _likelihood(x: Tensor, z: Tensor) -> Tensor:
    return -0.5 * (LOG_2PI + (x - z) ** 2)


def _q(z: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return -0.5 * (LOG_2PI + s + _distance(z, m, s))


def _distance(z: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return (z - m) ** 2 * torch.exp(-s)


@log_weights.magnitude
def _(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    return (3 + z**2 + (x - z) ** 2 + q_log_var.abs() + _distance(z, q_mean, q_log_var)).sum(-1)


@log_weights.inputs
def _(draw: Draw) -> Iterator[Case]:
    x, z = torch.tensor([[2.0, -1.0]]), torch.tensor([[[1.0, 0.5]], [[-1.0, 0.0]]])
    yield case("Where q(z|x) is the exact posterior, every sample of z has the same weight: p(x).",
               x=x, z=z, q_mean=x / 2, q_log_var=torch.full((1, 2), -math.log(2.0)))
    yield case("Where q(z|x) is the prior, the weight is the likelihood.",
               x=torch.tensor([[1.0]]), z=torch.tensor([[[0.5]], [[-1.0]]]),
               q_mean=torch.zeros(1, 1), q_log_var=torch.zeros(1, 1))
    for low, high in ((-2.0, 1.0), (0.2, 1.0)):  # log-variances of both signs, and positive ones
        for _ in range(draw.count // 2):
            dtype, (samples, rows, dims) = draw.dtype(), (draw.integer(least, 5) for least in (1, 1, 2))
            mean, log_var = draw.normal(rows, dims), draw.uniform(rows, dims, low=low, high=high)
            log_var[0, 0] = log_var[0, 0] if low > 0 else -log_var[0, 0].abs()
            z = mean + torch.exp(log_var / 2) * draw.normal(samples, rows, dims)
            x = 2 * draw.normal(rows, dims)
            yield case(x=x.to(dtype), z=z.to(dtype), q_mean=mean.to(dtype), q_log_var=log_var.to(dtype))


log_weights.misconceptions(
    no_prior=(lambda x, z, m, s: (_likelihood(x, z) - _q(z, m, s)).sum(-1),
              "The prior is missing: z has to be likely before any x is seen, too."),
    no_likelihood=(lambda x, z, m, s: (_prior(z) - _q(z, m, s)).sum(-1),
                   "The likelihood is missing: how well a z explains x is not asked."),
    no_q=(lambda x, z, m, s: (_prior(z) + _likelihood(x, z)).sum(-1),
          "The density of q is missing: where q draws often, each draw has to count for less."),
    q_added=(lambda x, z, m, s: (_prior(z) + _likelihood(x, z) + _q(z, m, s)).sum(-1),
             "The density of q has the wrong sign: should a z that q draws often count more, or less?"),
    negative=(lambda x, z, m, s: -_terms(x, z, m, s).sum(-1),
              "Only the sign is wrong: this is the logarithm of one over the weight."),
    swapped=(lambda x, z, m, s: (_likelihood(x, z) - _prior(z) + _q(z, m, s)).sum(-1),
             "The prior and q have changed places: which of the two did the samples come from?"),
    log_std=(lambda x, z, m, s: _terms(x, z, m, 2 * s).sum(-1),
             "The last argument was read as a standard deviation's logarithm. It is the variance's."),
    variance=(lambda x, z, m, s: _terms(x, z, m, s.log()).sum(-1),
              "The last argument was read as the variance. It is a logarithm, and may be negative."),
    ones_for_log_var=(lambda x, z, m, s: (_q(z, 0 * z, 0 * z + 1) + _q(x, z, 0 * z + 1)
                                          - _q(z, m, s)).sum(-1),
                      "A variance of 1 was handed over where its logarithm is expected."),
    variance_of_distribution=(lambda x, z, m, s: (_terms(x, z, m, s) + _q(z, m, s)
                                                  - Normal(m, s.sqrt()).log_prob(z)).sum(-1),
                              "A root was taken of the last argument. It is a logarithm: which variance "
                              "belongs to it?"),
    scale_of_distribution=(lambda x, z, m, s: (_terms(x, z, m, s) + _q(z, m, s)
                                               - Normal(m, s).log_prob(z)).sum(-1),
                           "The last argument was used as a standard deviation, which is never negative. "
                           "It is a variance's logarithm."),
    times_variance=(lambda x, z, m, s: (_prior(z) + _likelihood(x, z) - _q(z, m, s)
                                        + 0.5 * (_distance(z, m, -s) - _distance(z, m, s))).sum(-1),
                    "In q a step away from the mean costs more where q is wide. It has to cost less there."),
    no_log_var=(lambda x, z, m, s: (_terms(x, z, m, s) - 0.5 * s).sum(-1),
                "A wide Gaussian is also a low one: the width of q does not yet lower its density."),
    q_of_x=(lambda x, z, m, s: (_prior(z) + _likelihood(x, z) - _q(x, m, s)).sum(-1),
            "The density of q was taken at x. It is a density of z."),
    likelihood_without_z=(lambda x, z, m, s: (_prior(z) + _prior(x) - _q(z, m, s)).sum(-1),
                          "The likelihood does not depend on z: where is the Gaussian of x centred?"),
    no_constants=(lambda x, z, m, s: (_terms(x, z, m, s) + 0.5 * LOG_2PI).sum(-1),
                  "The constants of the Gaussians are missing. There are three in each dimension: do all "
                  "of them cancel?"),
    constants_once=(lambda x, z, m, s: _terms(x, z, m, s).sum(-1) + 0.5 * LOG_2PI * (z.shape[-1] - 1),
                    "The constant of a Gaussian was counted once. Each dimension brings its own."),
    no_half=(lambda x, z, m, s: 2 * _terms(x, z, m, s).sum(-1),
             "Every answer is twice what it should be: a Gaussian's log-density has a half in front."),
    no_half_of_squares=(lambda x, z, m, s: (_terms(x, z, m, s) - 0.5 * (
                            z**2 + (x - z) ** 2 - _distance(z, m, s))).sum(-1),
                        "The squared distances count twice as much as they should."),
    over_samples=(lambda x, z, m, s: _terms(x, z, m, s).sum(0),
                  "The sum runs over the samples. It has to run over the dimensions of one z."),
    over_batch=(lambda x, z, m, s: _terms(x, z, m, s).sum(1),
                "The sum runs over the batch. It has to run over the dimensions of one z."),
    per_dimension=(lambda x, z, m, s: _terms(x, z, m, s),
                   "These are the single dimensions' terms. What do independent ones give together?"),
    dimension_mean=(lambda x, z, m, s: _terms(x, z, m, s).mean(-1),
                    "The dimensions were averaged. What do independent ones give together?"),
    axis_kept=(lambda x, z, m, s: _terms(x, z, m, s).sum(-1, keepdim=True),
               "The axis that was summed over is still there, with one entry. Let the sum drop it."),
    sample_mean=(lambda x, z, m, s: _terms(x, z, m, s).sum(-1).mean(0),
                 "The samples were averaged. Keep one number for each of them."),
    bound=(lambda x, z, m, s: _terms(x, z, m, s).sum(-1).logsumexp(0) - math.log(len(z)),
           "This is already the bound. First the single log-weights are asked for, one for each sample."),
    batch_mean=(lambda x, z, m, s: _terms(x, z, m, s).sum(-1).mean(1),
                "The batch was averaged. Keep one number for each x and each sample."),
    everything=(lambda x, z, m, s: _terms(x, z, m, s).sum(), "Everything was summed, samples and batch too."),
    everything_mean=(lambda x, z, m, s: _terms(x, z, m, s).mean(),
                     "Everything was averaged. Sum over the dimensions of z, and keep samples and batch."),
    weights=(lambda x, z, m, s: _terms(x, z, m, s).sum(-1).exp(),
             "These are the weights themselves. In a larger model they would underflow: keep the logarithm."),
)

# ---- normalized_weights: (K, B) -> (K, B)


@exercise("each sample's share of the total weight of its x")
def normalized_weights(log_w: Tensor) -> Tensor:
    return torch.softmax(log_w, 0)


@normalized_weights.magnitude
def _(log_w: Tensor) -> Tensor:
    return torch.softmax(log_w, 0) * rounded(log_w)


@normalized_weights.inputs
def _(draw: Draw) -> Iterator[Case]:
    yield case("With a single sample, its share is 1.", log_w=torch.tensor([[0.5, -3.0, 2.0]]))
    yield case("Equal weights have equal shares, which sum to 1.", log_w=torch.full((4, 2), -1000.0))
    yield case(log_w=NEAR)
    yield case(log_w=FAR)
    for _ in range(draw.count):
        yield case(log_w=draw_log_weights(draw, draw.integer(2, 8), draw.integer(2, 5)))


@normalized_weights.holds("A share is never negative.")
def _(shares: np.ndarray, log_w: Tensor) -> bool:
    return bool((shares >= 0).all())


@normalized_weights.holds("For each x (a column) the shares sum to 1.")
def _(shares: np.ndarray, log_w: Tensor) -> bool:
    return np.allclose(shares.sum(0), 1, atol=1e-3)


normalized_weights.misconceptions(
    over_batch=(lambda w: torch.softmax(w, 1),
                "The shares sum to 1 over the batch. They have to do so over the samples of each x."),
    over_everything=(lambda w: torch.softmax(w.flatten(), 0).view_as(w),
                     "The weights of all x's were added up. Each x has a total of its own."),
    overflow=(shares_by_exp,
              "Log-weights may lie near -1000 or 1000: in floats their exponentials are 0 or infinite. What "
              "can be added to all log-weights of an x without changing its shares?"),
    overflow_of_all=(lambda w: w.exp() / w.exp().sum(),
                     "One total was taken for all x's, and it may be 0 or infinite. Each x has a total of "
                     "its own, and its weights must not overflow."),
    max_pair=(lambda w: shares_by_exp(w, w.max(0)),
              "Along an axis this function gives two things: the largest entries, and where they are. Take "
              "the first."),
    global_max=(lambda w: shares_by_exp(w, w.max()),
                "One shift was used for all x's, so that some x's weights all underflow. Shift each x by "
                "itself."),
    mean_subtracted=(lambda w: shares_by_exp(w, w.mean(0)),
                     "A shift by the mean is not safe: the largest log-weight may be hundreds above it."),
    min_subtracted=(lambda w: shares_by_exp(w, w.min(0).values),
                    "A shift by the smallest log-weight lets the largest overflow. Which shift does not?"),
    unnormalised=(torch.exp, "These are the weights. They are not yet divided by their total."),
    relative_to_largest=(lambda w: torch.exp(w - w.max(0).values),
                         "The largest weight was made 1. It is the total that has to be 1."),
    sum_to_k=(lambda w: torch.softmax(w, 0) * len(w),
              "The shares of each x sum to the number of samples: divided by the mean, not by the total."),
    divided_twice=(lambda w: torch.softmax(w, 0) / len(w),
                   "The number of samples was divided by on top: the total contains it already."),
    logarithm=(lambda w: torch.log_softmax(w, 0),
               "These are the logarithms of the shares. One step is left."),
    logs_divided=(lambda w: w / w.sum(0),
                  "The log-weights were divided by their sum. It is the weights that are shared out."),
    softmax_of_weights=(lambda w: torch.softmax(w.exp(), 0),
                        "The exponential was taken twice: this function takes the logarithms themselves."),
    one_hot=(lambda w: torch.nn.functional.one_hot(w.argmax(0), len(w)).T.to(w.dtype),
             "The largest weight takes all. The others have a share, too."),
    reversed=(lambda w: torch.softmax(-w, 0), "The sign is wrong: large weights have small shares."),
    uniform=(lambda w: torch.full_like(w, 1 / len(w)),
             "Every sample has the same share. Better samples have to count more."),
    squared=(lambda w: torch.softmax(2 * w, 0), "The weights were squared before they were shared out."),
    batch_mean=(lambda w: torch.softmax(w, 0).mean(1),
                "The batch was averaged. Keep one number for each sample and each x."),
)
