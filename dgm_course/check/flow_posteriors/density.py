"""Lecture 06's warm-up: the log-density of what a chain of flow steps makes of the encoder's sample."""

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
    draw_gaussians,
    draw_sizes,
    log_normal,
    log_prior,
    normal_size,
    normal_terms,
)
from dgm_course.gaussian import LOG_2PI

# ---- flow_posterior_log_prob: (B, d), (B, d), (B, d), (B, d), (K, B) -> (B,)

Answer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@exercise("the log-density of each row's zK given x, in nats", library=DENSITIES)
def flow_posterior_log_prob(
    z0: Tensor, zK: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor
) -> Tensor:
    return log_normal(z0, mean, log_var) - log_dets.sum(0)


@flow_posterior_log_prob.magnitude
def _(z0: Tensor, z_last: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
    return normal_size(z0, mean, log_var) + log_dets.abs().sum(0)


@flow_posterior_log_prob.inputs
def _(draw: Draw) -> Iterator[Case]:
    def given(*rows: object) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    def moved(z0: Tensor, mean: Tensor, log_var: Tensor, log_scale: Tensor, shift: Tensor,
              dtype: torch.dtype, title: str = "") -> Case:  # fmt: skip
        z = z0
        for s, t in zip(log_scale, shift, strict=True):  # K steps of scales and shifts (B, d)
            z = torch.exp(s) * z + t
        values = {"z0": z0, "zK": z, "mean": mean, "log_var": log_var, "log_dets": log_scale.sum(-1)}
        return case(title, **{name: value.to(dtype) for name, value in values.items()})


    def drawn(rows: int, dims: int) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = draw_gaussians(draw, rows, dims)
        return mean + torch.exp(log_var / 2) * draw.normal(rows, dims), mean, log_var

    for _ in range(draw.count):
        dtype, (steps, rows, dims) = draw.dtype(), draw_sizes(draw)
        log_scale = draw.choose([-0.5, 0.0, 0.5]) + 0.5 * draw.normal(steps, rows, dims)
        yield moved(*drawn(rows, dims), log_scale, draw.normal(steps, rows, dims), dtype)
    for dtype in (torch.float32, torch.float64):  # the determinants themselves leave the range of floats
        for level in (-1.5, 1.5):
            log_scale = level + 0.1 * draw.normal(3, 2, 300)
            yield moved(*drawn(2, 300), log_scale, draw.normal(3, 2, 300), dtype)
    z0, mean = given([2.0, -1.0], [0.5, 2.0], [-1.5, 0.5]), given([0.5, 0.0], [1.5, 1.0], [-0.5, -1.0])
    log_var, steps = given([1.3, -0.5]).expand(3, 2), torch.ones(2, 3, 2, dtype=torch.float64)
    for title, log_scale in (
        ("Where no step changes a volume, zK is as likely as z0.", 0 * steps),
        ("Where every step doubles every dimension, the density falls, by as much with each step.",
         math.log(2.0) * steps),
    ):  # fmt: skip
        yield moved(z0, mean, log_var, log_scale, 1 + 0 * log_scale, torch.float64, title)
    z0, mean, log_var = (torch.cat([v, v.flip(1)]) for v in (z0, mean, log_var))
    yield moved(z0, mean, log_var, given([-0.5, -0.7]).expand(1, 6, 2), 0 * z0[None], torch.float64,
                "With a single step, only that one's volume counts.")


def _base(log_q: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """The right volumes, and another log-density of z0."""
    return lambda z, _, m, s, d: log_q(z, m, s) - d.sum(0)


def _square(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return (z - mean) ** 2 * torch.exp(-log_var)


def _less(volume: Callable[[Tensor], Tensor]) -> Answer:
    """The right log-density of z0, less something else made of the log-determinants (K, B)."""
    return lambda z, _, m, s, d: log_normal(z, m, s) - volume(d)


def _of(change: Callable[[Tensor], Tensor]) -> Answer:
    """The right answer, changed."""
    return lambda z, _, m, s, d: change(log_normal(z, m, s) - d.sum(0))


flow_posterior_log_prob.misconceptions(
    added=(_less(lambda d: -d.sum(0)),
           "The log-determinants have the wrong sign. Where a step stretches, the same mass fills more "
           "space: is its density higher then, or lower?"),
    base_alone=(_less(lambda d: 0 * d.sum(0)),
                "This is the density before the flow: no step's change of volume is in it."),
    log_dets_alone=(lambda z, _, m, s, d: -d.sum(0),
                    "This is the change of volume alone. How likely was the z0 that it started from?"),
    at_end=(lambda _, z, m, s, d: log_normal(z, m, s) - d.sum(0),
            "The encoder's Gaussian was taken at zK. Which of the two did it draw?"),
    at_end_added=(lambda _, z, m, s, d: log_normal(z, m, s) + d.sum(0),
                  "The encoder's Gaussian was taken at zK, and the log-determinants have the wrong sign: "
                  "that is how a flow on data is written, whose base lies at the other end."),
    at_end_alone=(lambda _, z, m, s, d: log_normal(z, m, s),
                  "The encoder's Gaussian was taken at zK, as if the flow had left it a Gaussian."),
    last_step=(_less(lambda d: d[-1]), "Only the last step was counted. Every step changes volumes."),
    first_step=(_less(lambda d: d[0]), "Only the first step was counted. Every step changes volumes."),
    without_last=(_less(lambda d: d[:-1].sum(0)), "The last step is missing: where does the loop end?"),
    without_first=(_less(lambda d: d[1:].sum(0)), "The first step is missing: where does the loop begin?"),
    mean_of_steps=(_less(lambda d: d.mean(0)),
                   "The steps were averaged. What becomes of volumes that are changed one after the other?"),
    largest_step=(_less(lambda d: d.amax(0)), "Only the step that stretches most was counted."),
    product=(_less(lambda d: d.prod(0)),
             "Logarithms were multiplied. It is determinants that multiply: what becomes of their "
             "logarithms?"),
    determinant=(_less(lambda d: d.sum(0).exp()),
                 "The determinant itself was subtracted. A density is divided by it: what becomes of that in "
                 "logarithms?"),
    determinants=(_less(lambda d: d.exp().sum(0)),
                  "The steps' determinants themselves were subtracted, one by one."),
    by_determinants=(_less(lambda d: d.exp().prod(0).log()),
                     "The determinants were multiplied before the logarithm was taken. With many dimensions "
                     "they are no floats any more: stay with logarithms."),
    by_densities=(lambda z, _, m, s, d: (log_normal(z, m, s).exp() / d.exp().prod(0)).log(),
                  "The density itself was computed, and the logarithm taken last. With many dimensions it "
                  "is no float any more: stay with logarithms."),
    log_of_logs=(_less(lambda d: d.log().sum(0)),
                 "A logarithm was taken of what is one already, and may be negative."),
    log_of_sizes=(_less(lambda d: d.abs().log().sum(0)),
                  "A logarithm was taken of the log-determinants' sizes. They are logarithms already."),
    sizes=(_less(lambda d: d.abs().sum(0)),
           "The log-determinants lost their signs. The absolute value is inside of the logarithm: a step "
           "that shrinks has a negative one."),
    size_of_sum=(_less(lambda d: d.sum(0).abs()),
                 "The sum of the log-determinants lost its sign. It is negative where the steps shrink."),
    twice=(_less(lambda d: 2 * d.sum(0)), "The log-determinants were counted twice."),
    each_dimension=(lambda z, _, m, s, d: (normal_terms(z, m, s) - d.sum(0)[:, None]).sum(-1),
                    "The log-determinants were taken off in each dimension. They are those of all dimensions "
                    "together."),
    divided_by_dims=(lambda z, _, m, s, d: log_normal(z, m, s) - d.sum(0) / z.shape[-1],
                     "The log-determinants were divided by the number of dimensions. They count whole."),
    all_rows=(_less(lambda d: d.sum()),
              "The log-determinants were summed over the batch, too. Each row has its own."),
    over_batch=(_less(lambda d: d.sum(1)),
                "The log-determinants were summed over the batch. Which axis holds the steps?"),
    each_step=(_less(lambda d: d), "There is still one number for each step. All steps lead to one zK."),
    running=(_less(lambda d: d.cumsum(0)),
             "These are the log-densities after every step. That of the last one is asked for."),
    standard=(_base(lambda z, m, s: log_prior(z)),
              "A standard normal was taken for z0's density. That is the prior: z0 came from the encoder."),
    standard_at_end=(lambda _, z, m, s, d: log_prior(z) - d.sum(0),
                     "The prior was taken at zK. What is asked for is the posterior: how likely was z0, and "
                     "what did the steps do?"),
    standard_at_end_added=(lambda _, z, m, s, d: log_prior(z) + d.sum(0),
                           "The prior was taken at zK, and the volumes were added: these are terms of the "
                           "ELBO, not the posterior's density."),
    standardised=(_base(lambda z, m, s: log_prior((z - m) * torch.exp(-s / 2))),
                  "z0 was standardised, and the change of volume of that forgotten: a narrow Gaussian is a "
                  "high one."),
    log_std=(_base(lambda z, m, s: log_normal(z, m, 2 * s)),
             "log_var was read as the logarithm of the standard deviation. It is that of the variance."),
    log_std_distribution=(_base(lambda z, m, s: Normal(m, s).log_prob(z).sum(-1)),
                          "The Gaussian was given log_var as its standard deviation. It may be negative: "
                          "which positive number belongs to it?"),
    variance_distribution=(_base(lambda z, m, s: Normal(m, s.sqrt()).log_prob(z).sum(-1)),
                           "A root was taken of log_var, as if it were the variance. It is its logarithm."),
    variance=(_base(lambda z, m, s: -0.5 * (LOG_2PI + s.log() + (z - m) ** 2 / s).sum(-1)),
              "log_var was read as the variance. It is its logarithm, and may be negative."),
    precision=(_base(lambda z, m, s: log_normal(z, m, -s)),
               "The variance was turned upside down: where log_var is large the Gaussian is wide."),
    square_multiplied=(_base(lambda z, m, s: -0.5 * (LOG_2PI + s + (z - m) ** 2 * s.exp()).sum(-1)),
                       "The squared distance was multiplied by the variance. How far is far for a wide "
                       "Gaussian?"),
    log_var_sign=(_base(lambda z, m, s: -0.5 * (LOG_2PI - s + _square(z, m, s)).sum(-1)),
                  "The log-variance itself has the wrong sign: a wide Gaussian is a low one."),
    no_log_var=(_base(lambda z, m, s: -0.5 * (LOG_2PI + s + (z - m) ** 2).sum(-1)),
                "The squared distance is not measured in units of the variance."),
    no_mean=(_base(lambda z, m, s: log_normal(z, 0 * m, s)),
             "The encoder's mean is not used: where is its Gaussian centred?"),
    no_constant=(_base(lambda z, m, s: -0.5 * (s + _square(z, m, s)).sum(-1)),
                 "The Gaussian's constant is missing, the one with 2 pi: a density has to integrate to 1."),
    constant_once=(_base(lambda z, m, s: -0.5 * (LOG_2PI + (s + _square(z, m, s)).sum(-1))),
                   "The Gaussian's constant was counted once. Each dimension brings its own."),
    constant_not_halved=(_base(lambda z, m, s: (normal_terms(z, m, s) - 0.5 * LOG_2PI).sum(-1)),
                         "The Gaussian's constant is twice as large as it should be: is its half, or the "
                         "root in the density, lost?"),
    square_not_halved=(_base(lambda z, m, s: (normal_terms(z, m, s) - 0.5 * _square(z, m, s)).sum(-1)),
                       "The squared distance counts twice as much as it should in a Gaussian."),
    log_var_not_halved=(_base(lambda z, m, s: (normal_terms(z, m, s) - 0.5 * s).sum(-1)),
                        "The log-variance counts twice as much as it should: the standard deviation belongs "
                        "in front of a Gaussian."),
    square_positive=(_base(lambda z, m, s: (normal_terms(z, m, s) + _square(z, m, s)).sum(-1)),
                     "The squared distance has the wrong sign: far from its mean a Gaussian is less dense."),
    nothing_halved=(_base(lambda z, m, s: 2 * log_normal(z, m, s)),
                    "The Gaussian's half is lost: all of its terms count twice."),
    dimension_mean=(_base(lambda z, m, s: normal_terms(z, m, s).mean(-1)),
                    "The dimensions of z0 were averaged. What do independent ones give together?"),
    per_dimension=(lambda z, _, m, s, d: normal_terms(z, m, s) - d.sum(0)[:, None],
                   "There is still one number for each dimension. What do independent ones give together?"),
    per_dimension_broadcast=(_base(normal_terms),
                             "The Gaussian still has one number for each dimension, and met the "
                             "log-determinants, which have not."),
    base_summed=(_base(lambda z, m, s: normal_terms(z, m, s).sum()),
                 "The Gaussian was summed over the batch, too. Each row has a density of its own."),
    axis_kept=(_of(lambda v: v[:, None]),
               "An axis that was summed over is still there, with one entry. Let the sum drop it."),
    column=(lambda z, _, m, s, d: log_normal(z, m, s)[:, None] - d.sum(0),
            "A column met a row, and every Gaussian every volume. Which axis was kept?"),
    batch_mean=(_of(torch.mean), "The batch was averaged. Keep one number for each row."),
    batch_sum=(_of(torch.sum), "The batch was summed. Keep one number for each row."),
    density=(_of(torch.exp), "This is the density itself. Its logarithm is asked for."),
    as_loss=(_of(torch.neg), "The whole has the wrong sign: that is a loss, or an entropy."),
)  # fmt: skip
