"""Lecture 02's exercises about gradients: their signal-to-noise ratio, and the weights of a better one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.importance.draws import FAR, NEAR, draw_log_weights, rounded, shares_by_exp

# ---- snr: (R, P) -> (P,)


@exercise("the signal-to-noise ratio of each entry of the gradient", library=("signal_to_noise",))
def snr(gradients: Tensor) -> Tensor:
    return gradients.mean(0).abs() / gradients.std(0)


@snr.inputs
def _(draw: Draw) -> Iterator[Case]:
    yield case("Estimates that average to 0 carry no signal.",
               gradients=torch.tensor([[1.0, -3.0], [-1.0, 3.0], [2.0, 1.0], [-2.0, -1.0]]))
    yield case(gradients=torch.tensor([[1.0, -20.0], [2.0, -30.0], [3.0, -70.0]]))
    for _ in range(draw.count):
        estimates, entries, dtype = draw.integer(3, 9), draw.integer(2, 5), draw.dtype()
        noise = draw.normal(estimates, entries)
        noise = (noise - noise.mean(0)) / noise.std(0)  # so that the ratio is exactly that of the next line
        signal = torch.tensor([draw.choose([-3.0, -0.5, 0.2, 1.0]) for _ in range(entries)])
        size = 10 ** draw.uniform(entries, low=-3, high=3)
        yield case(gradients=((signal + noise) * size).to(dtype))


@snr.holds("A ratio of sizes is never negative.")
def _(ratio: np.ndarray, gradients: Tensor) -> bool:
    return bool((ratio >= 0).all())


snr.misconceptions(
    signed=(lambda g: g.mean(0) / g.std(0),
            "A negative mean is as good a signal as a positive one: only its size counts."),
    variance=(lambda g: g.mean(0).abs() / g.var(0),
              "A variance is measured in squared units. Which measure of noise has the unit of the signal?"),
    standard_error=(lambda g: g.mean(0).abs() / (g.std(0) / math.sqrt(len(g))),
                    "This is the noise of the average of all estimates. Take the noise of a single one."),
    population=(lambda g: g.mean(0).abs() / g.std(0, correction=0),
                "The squares were divided by R. These estimates are a sample: divide by R - 1."),
    over_entries=(lambda g: g.mean(1).abs() / g.std(1),
                  "Averages run over the entries of one gradient. They have to run over the estimates."),
    one_number=(lambda g: g.mean().abs() / g.std(),
                "All entries were taken together. Each has a signal and a noise of its own."),
    batch_mean=(lambda g: (g.mean(0).abs() / g.std(0)).mean(),
                "The entries' ratios were averaged. Keep one number for each entry."),
    norms=(lambda g: g.mean(0).norm() / g.std(0).norm(),
           "This compares the lengths of two vectors. Keep one ratio for each entry."),
    inverse=(lambda g: g.std(0) / g.mean(0).abs(), "This is noise over signal: the wrong way round."),
    inverse_signed=(lambda g: g.std(0) / g.mean(0),
                    "This is noise over signal, and it has a sign. Which of the two belongs on top?"),
    mean_of_sizes=(lambda g: g.abs().mean(0) / g.std(0),
                   "The sizes were averaged, so that opposite estimates no longer cancel. The signal is the "
                   "size of what is left on average."),
    sizes_first=(lambda g: g.abs().mean(0) / g.abs().std(0),
                 "The signs were dropped at once, before signal and noise were told apart."),
    squared=(lambda g: g.mean(0).square() / g.var(0), "This is the square of the ratio."),
    not_centred=(lambda g: g.mean(0).abs() / g.square().mean(0).sqrt(),
                 "This divides by the size of the estimates. Noise is how they scatter around their mean."),
    full_range=(lambda g: g.mean(0).abs() / (g.amax(0) - g.amin(0)),
                "The range grows with the number of estimates. Take their standard deviation."),
    no_noise=(lambda g: g.mean(0).abs(), "This is the signal alone. How does it compare with the noise?"),
    axis_kept=(lambda g: (g.mean(0).abs() / g.std(0))[None],
               "The axis of the estimates is still there, with one entry. Let it be dropped."),
)

# ---- dreg_weights: (K, B) -> (K, B), constant


@exercise("the weights of the doubly reparametrised gradient", returns="constant",
          library=("dreg_gradient",))
def dreg_weights(log_w: Tensor) -> Tensor:
    return _shares(log_w.detach()).square()


def _shares(log_w: Tensor) -> Tensor:
    return torch.softmax(log_w, 0)


@dreg_weights.magnitude
def _(log_w: Tensor) -> Tensor:
    return _shares(log_w.detach()).square() * rounded(log_w.detach())


@dreg_weights.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(log_w: Tensor) -> Tensor:
        return log_w.clone().requires_grad_()

    yield case("With a single sample, its weight is 1.", log_w=given(torch.tensor([[0.5, -3.0, 2.0]])))
    yield case("Where four weights are equal, each squared share is a sixteenth.",
               log_w=given(torch.full((4, 2), -1000.0)))
    yield case(log_w=given(NEAR))
    yield case(log_w=given(FAR))
    for _ in range(draw.count):
        yield case(log_w=given(draw_log_weights(draw, draw.integer(2, 8), draw.integer(2, 5))))
    yield case(log_w=NEAR)  # without a gradient, as when a trained model is looked at


@dreg_weights.holds("A square is never negative.")
def _(squares: np.ndarray, log_w: Tensor) -> bool:
    return bool((squares >= 0).all())


dreg_weights.misconceptions(
    not_detached=(lambda w: _shares(w).square(),
                  "The numbers are right, but a backward pass would go on through them. Here they have to be "
                  "plain numbers, cut off from the graph."),
    not_squared=(lambda w: _shares(w).detach(),
                 "These are the weights of the plain gradient. In the doubly reparametrised one they come "
                 "squared."),
    squared_first=(lambda w: _shares(2 * w).detach(),
                   "The squares were made to sum to 1. They need not: it is the weights that do, before they "
                   "are squared."),
    over_batch=(lambda w: torch.softmax(w, 1).square().detach(),
                "The weights were normalised over the batch. Normalise them over the samples of each x."),
    over_everything=(lambda w: torch.softmax(w.flatten(), 0).view_as(w).square().detach(),
                     "The weights of all x's were added up. Each x has a total of its own."),
    unnormalised=(lambda w: w.exp().square().detach(),
                  "The weights were squared as they are. They have to be normalised first."),
    logs_squared=(lambda w: torch.log_softmax(w, 0).square().detach(),
                  "Logarithms were squared. The weights themselves have to be."),
    input_squared=(lambda w: _shares(w.square()).detach(),
                   "The log-weights were squared. Square what comes out in the end."),
    overflow=(lambda w: shares_by_exp(w).square().detach(),
              "Log-weights may lie near -1000 or 1000: in floats their exponentials are 0 or infinite. What "
              "can be added to all log-weights of an x without changing its shares?"),
    requires_grad_off=(lambda w: _shares(w.requires_grad_(False)).square(),
                       "That would change the input itself, which others still need. Make another tensor of "
                       "its numbers, cut off from the graph."),
    global_max=(lambda w: shares_by_exp(w, w.max()).square().detach(),
                "One shift was used for all x's, so that some x's weights all underflow. Shift each x by "
                "itself."),
    sum_to_k=(lambda w: (_shares(w) * len(w)).square().detach(),
              "The weights were divided by their mean, so that they sum to the number of samples. Let them "
              "sum to 1, then square."),
    times_rest=(lambda w: (_shares(w) * (1 - _shares(w))).detach(),
                "This is how a share changes with its own log-weight. The doubly reparametrised gradient has "
                "simpler weights."),
    times_logs=(lambda w: (_shares(w).square() * w).detach(),
                "The squares were multiplied by the log-weights. A loss may do that; here they alone are "
                "asked for."),
    doubled=(lambda w: (2 * _shares(w)).detach(), "The weights were doubled. Squares are asked for."),
    root=(lambda w: _shares(w).sqrt().detach(), "A root was taken. The square is asked for."),
    negative=(lambda w: -_shares(w).square().detach(), "Only the sign is wrong: a square is never negative."),
    summed=(lambda w: _shares(w).square().sum(0).detach(),
            "The squares were summed over the samples. Keep one for each sample."),
    batch_mean=(lambda w: _shares(w).square().mean(1).detach(),
                "The batch was averaged. Keep one number for each sample and each x."),
)
