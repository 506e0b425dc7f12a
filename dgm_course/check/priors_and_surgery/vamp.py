"""Lecture 05's exercise about the VampPrior: its log-density, through which the pseudo-inputs learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.priors_and_surgery.densities import (
    aggregate,
    log_mean,
    log_normal,
    log_prior,
    mixture_size,
    normal_table,
    table,
    term_table,
)
from dgm_course.check.priors_and_surgery.slopes import differentiable_exercise
from dgm_course.gaussian import LOG_2PI

# ---- vamp_prior_log_prob: (m, d), (K, p), encoder -> (m,)

Pair = tuple[Tensor, Tensor]


class Encoder:
    """A small nonlinear encoder: ``(..., p)`` to a mean and a log-variance, ``(..., d)`` each."""

    def __init__(self, to_mean: Tensor, to_log_var: Tensor) -> None:
        self.to_mean, self.to_log_var = to_mean, to_log_var

    def __repr__(self) -> str:
        return "an encoder of {} numbers into {} latents".format(*self.to_mean.shape)

    def __call__(self, u: Tensor) -> Pair:
        """Mean and log-variance of q(z|u)."""
        mean = 2 * torch.tanh(u @ self.to_mean.to(u.dtype))
        return mean, 0.8 * torch.tanh(u @ self.to_log_var.to(u.dtype)) - 0.4


class PlainEncoder:
    """The encoder whose posterior is N(u, I)."""

    def __repr__(self) -> str:
        return "the encoder with mean u and log_var 0"

    def __call__(self, u: Tensor) -> Pair:
        """Mean and log-variance of q(z|u)."""
        return 1 * u, 0 * u


AnyEncoder = Callable[[Tensor], Pair]
Answer = Callable[[Tensor, Tensor, AnyEncoder], Tensor]


@differentiable_exercise("the log-density of each z under the VampPrior, in nats", ("z", "pseudo_inputs"),
                         library=("mixture_log_prob", "mixture_responsibilities", "VampPrior",
                                  "AggregatedPosterior", "streamed_log_prob", "log_terms"))
def vamp_prior_log_prob(z: Tensor, pseudo_inputs: Tensor, encoder: AnyEncoder) -> Tensor:
    """The reference: ``z (m, d)``, ``pseudo_inputs (K, p)`` -> ``(m,)``, in nats. Ledger S5."""
    mean, log_var = encoder(pseudo_inputs)
    return aggregate(z, mean, log_var)


def _with(score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """Another function of z and of the mean and log-variance of all pseudo-inputs."""
    return lambda z, u, encoder: score(z, *encoder(u))


vamp_prior_log_prob.magnitude(_with(mixture_size))


@vamp_prior_log_prob.slopes.magnitude
def _(z: Tensor, pseudo_inputs: Tensor, encoder: AnyEncoder) -> Pair:
    with torch.no_grad():
        mean, log_var = encoder(pseudo_inputs)
        sizes = mixture_size(z, mean, log_var).unsqueeze(-1)
        return (sizes**1.5).expand_as(z), (sizes**1.5).sum().expand_as(pseudo_inputs)


@vamp_prior_log_prob.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*rows: list[float]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64).requires_grad_()

    z, plain = given([1.0, -0.5], [0.0, 2.0]), PlainEncoder()
    yield case("With a single pseudo-input, the prior is its posterior.",
               z=z, pseudo_inputs=given([0.5, 0.5]), encoder=plain)
    yield case("Where all pseudo-inputs are the same, the prior is the posterior of that one.",
               z=z, pseudo_inputs=given(*3 * [[0.5, 0.5]]), encoder=plain)
    yield case(z=given([1.0, -0.5]), pseudo_inputs=given([0.0, 0.0], [1.0, 2.0]), encoder=plain)
    yield case(z=given([60.0, -80.0]), pseudo_inputs=given([0.0, 0.0], [1.0, 2.0]), encoder=plain)
    for index in range(draw.count):
        rows, count = draw.integer(2, 4), draw.integer(2, 5)
        inputs, dims = draw.integer(2, 5), draw.integer(2, 4)
        encoder = Encoder(*(draw.normal(inputs, dims) / inputs**0.5 for _ in range(2)))
        z = (100.0 if index % 5 == 4 else 1.5) * draw.normal(rows, dims)
        u = draw.normal(count, inputs)
        yield case(z=z.requires_grad_(), pseudo_inputs=u.requires_grad_(), encoder=encoder)


@vamp_prior_log_prob.holds("The prior is nowhere denser than the densest of its posteriors there.")
def _(log_prob: np.ndarray, z: Tensor, pseudo_inputs: Tensor, encoder: AnyEncoder) -> bool:
    with torch.no_grad():
        densest = table(z, *encoder(pseudo_inputs)).amax(1)
    return bool((log_prob <= densest.numpy() + 1e-6).all())


@vamp_prior_log_prob.slopes.holds("Its gradient reaches the pseudo-inputs: they learn, through the encoder.")
def _(slope_z: np.ndarray, slope_u: np.ndarray, **_: object) -> bool:
    return bool(slope_u.any())


@vamp_prior_log_prob.slopes.holds("Its gradient reaches z: through it, the encoder learns from the prior.")
def _(slope_z: np.ndarray, slope_u: np.ndarray, **_: object) -> bool:
    return bool(slope_z.any())


def _cut(mean: bool, log_var: bool) -> Answer:
    """The right values, without a gradient by way of the mean or the log-variance."""
    return _with(lambda z, m, s: aggregate(z, m.detach() if mean else m, s.detach() if log_var else s))


vamp_prior_log_prob.wrong_slopes(
    cut=(_cut(True, True),
         "The values are right, but no gradient reaches the pseudo-inputs: detach or no_grad cuts it off. "
         "They are parameters of the prior, and learn through the encoder."),
    all_cut=(_with(lambda z, m, s: aggregate(z, m, s).detach()),
             "The values are right, but the result is cut off from its graph: no gradient flows at all, "
             "neither to the pseudo-inputs nor to z."),
    z_cut=(_with(lambda z, m, s: aggregate(z.detach(), m, s)),
           "The values are right, but no gradient reaches z. In the ELBO the encoder learns through its "
           "samples, too."),
    mean_cut=(_cut(True, False),
              "The values are right, but the gradient reaches the pseudo-inputs by way of the "
              "log-variances only. The means depend on them, too."),
    log_var_cut=(_cut(False, True),
                 "The values are right, but the gradient reaches the pseudo-inputs by way of the means "
                 "only. The log-variances depend on them, too."),
)  # fmt: skip

vamp_prior_log_prob.misconceptions(
    no_count=(_with(lambda z, m, s: table(z, m, s).logsumexp(1)),
              "The posteriors were added up. An average is needed: the number K of pseudo-inputs is "
              "missing."),
    count_added=(_with(lambda z, m, s: table(z, m, s).logsumexp(1) + math.log(len(m))),
                 "The number of pseudo-inputs has the wrong sign: an average is smaller than a sum."),
    count_not_logged=(_with(lambda z, m, s: table(z, m, s).logsumexp(1) - len(m)),
                      "The number of pseudo-inputs was subtracted as it is. What becomes of a division in "
                      "logarithms?"),
    points_counted=(_with(lambda z, m, s: table(z, m, s).logsumexp(1) - math.log(len(z))),
                    "The z's were counted. The average runs over the pseudo-inputs."),
    inputs_counted=(lambda z, u, encoder: table(z, *encoder(u)).logsumexp(1) - math.log(u.shape[1]),
                    "The numbers in one pseudo-input were counted. How many pseudo-inputs are there?"),
    one_gaussian=(_with(lambda z, m, s: log_normal(z, m.mean(0), s.mean(0))),
                  "The parameters were averaged: one Gaussian, with the mean of the means. It is the "
                  "densities of the K posteriors that are averaged."),
    mean_input=(lambda z, u, encoder: log_normal(z, *encoder(u.mean(0, keepdim=True))),
                "The pseudo-inputs were averaged before the encoder saw them. Each has a posterior of its "
                "own, and the densities are averaged."),
    per_dimension=(_with(lambda z, m, s: log_mean(term_table(z, m, s), 1).sum(1)),
                   "The mixture was formed in each dimension by itself: a product of mixtures, in which "
                   "every dimension may come from another pseudo-input. A mixture of products is asked "
                   "for: which of the two sums comes first?"),
    per_dimension_count_once=(_with(lambda z, m, s: (term_table(z, m, s).logsumexp(1).sum(1)
                                                     - math.log(len(m)))),
                              "Logsumexp was taken in each dimension by itself: a product of mixtures. A "
                              "density of one posterior needs all of its dimensions first."),
    per_dimension_no_count=(_with(lambda z, m, s: term_table(z, m, s).logsumexp(1).sum(1)),
                            "Logsumexp was taken in each dimension by itself (a product of mixtures), and "
                            "the number of pseudo-inputs is missing."),
    not_summed=(_with(lambda z, m, s: log_mean(term_table(z, m, s), 1)),
                "There is still one number for each dimension. Put the dimensions together, and do so before "
                "the mixture is formed."),
    encoder_at_z=(lambda z, u, encoder: aggregate(z, *encoder(z)),
                  "The encoder was applied to z. It reads inputs, such as the pseudo-inputs, and gives "
                  "posteriors of z."),
    encoder_unused=(lambda z, u, encoder: aggregate(z, u, 0 * u),
                    "The pseudo-inputs were taken as means. They are inputs: the encoder makes means and "
                    "log-variances of them."),
    pair_unpacked=(lambda z, u, encoder: log_normal(z[:, None], encoder(u), 0 * z[:1]),
                   "The encoder gives two things: a mean, and a log-variance. Take them apart first."),
    exchanged=(_with(lambda z, m, s: aggregate(z, s, m)),
               "Mean and log-variance have changed places: which of them comes first?"),
    standard=(lambda z, u, encoder: log_prior(z),
              "This is the standard normal prior. The VampPrior is a mixture of the encoder's posteriors."),
    mean_of_logs=(_with(lambda z, m, s: table(z, m, s).mean(1)),
                  "The log-densities were averaged. By Jensen's inequality that is too low: the densities "
                  "are averaged first, and the logarithm comes last."),
    sum_of_logs=(_with(lambda z, m, s: table(z, m, s).sum(1)),
                 "The log-densities were added up: that is a product of all posteriors, not their mixture."),
    underflow=(_with(lambda z, m, s: table(z, m, s).exp().mean(1).log()),
               "Far from all posteriors the densities are too small for a float: their logarithm becomes "
               "minus infinity. Is there a way that never leaves the logarithms?"),
    largest=(_with(lambda z, m, s: table(z, m, s).amax(1)),
             "This is the densest posterior alone. The others belong to the mixture, too."),
    density=(_with(lambda z, m, s: aggregate(z, m, s).exp()),
             "This is the density itself. Its logarithm is asked for."),
    log_std=(_with(lambda z, m, s: aggregate(z, m, 2 * s)),
             "The encoder's second output was read as the logarithm of a standard deviation. It is the "
             "variance's."),
    variance=(_with(lambda z, m, s: aggregate(z, m, s.log())),
              "The encoder's second output was read as the variance. It is a logarithm, and may be "
              "negative."),
    scale_of_distribution=(_with(lambda z, m, s: log_mean(normal_table(z, m, s))),
                           "The encoder's second output, or its root, was used as a standard deviation, "
                           "which is never negative. It is a variance's logarithm."),
    no_log_var=(_with(lambda z, m, s: log_mean((term_table(z, m, s) + 0.5 * s).sum(2))),
                "A wide Gaussian is also a low one: the widths do not yet lower the densities."),
    no_constant=(_with(lambda z, m, s: aggregate(z, m, s) + 0.5 * LOG_2PI * z.shape[1]),
                 "The Gaussian's constant is missing, the one with 2 pi: a density has to integrate to 1."),
    constant_once=(_with(lambda z, m, s: aggregate(z, m, s) + 0.5 * LOG_2PI * (z.shape[1] - 1)),
                   "The Gaussian's constant was counted once. Each dimension brings its own."),
    dimension_mean=(_with(lambda z, m, s: log_mean(term_table(z, m, s).mean(2))),
                    "The dimensions were averaged. What do independent ones give together?"),
    paired=(_with(lambda z, m, s: log_mean(log_normal(z, m, s), 0)),
            "Each z met the posterior of its own row. Every z has to meet every pseudo-input: an axis is "
            "missing."),
    over_points=(_with(lambda z, m, s: log_mean(table(z, m, s), 0)),
                 "The average runs over the z's. It has to run over the pseudo-inputs, and leave one "
                 "number for each z."),
    every_pair=(_with(table),
                "There is still one number for each pseudo-input. Mix them: one number for each z."),
    batch_mean=(_with(lambda z, m, s: aggregate(z, m, s).mean()),
                "The z's were averaged. Keep one number for each z."),
    axis_kept=(_with(lambda z, m, s: aggregate(z, m, s)[:, None]),
               "An axis that was summed over is still there, with one entry. Let it be dropped."),
    negative=(_with(lambda z, m, s: -aggregate(z, m, s)),
              "Only the sign is wrong: this is a loss, to be made small."),
)  # fmt: skip
