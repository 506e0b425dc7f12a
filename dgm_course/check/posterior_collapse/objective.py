"""Lecture 01's exercises about the objective: the divergence, the bound, the warm-up, the free bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

# ---- gaussian_kl: (B, d), (B, d) -> (B,)


@exercise("the divergence of each row's Gaussian from N(0, I), in nats", library=("gaussian_kl_per_dim",))
def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    return _terms(mean, log_var).sum(1)


def _terms(mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean**2 + torch.expm1(log_var) - log_var)  # (B, d)


@gaussian_kl.inputs
def _(draw: Draw) -> Iterator[Case]:
    still = torch.zeros(2, 3)
    yield case("The divergence of N(0, I) from itself is 0.", mean=still, log_var=still)
    for mean, log_var in (([1.0, 0.5], [0.3, -0.7]), ([-0.5, 2.0], [0.4, 0.7])):
        yield case(mean=torch.tensor([mean]), log_var=torch.tensor([log_var]))
    for size in (1.0, 1e3):  # means and variances as extreme as float32 holds
        for sign in (-1.0, 1.0):
            yield case(mean=torch.tensor([[size * sign, 0.5]]), log_var=torch.tensor([[0.3, 40.0 * sign]]))
    for _ in range(draw.count):
        dtype, shape = draw.dtype(), (draw.integer(1, 5), draw.integer(1, 6))
        spread = draw.choose([0.1, 1.0, 3.0])
        mean, log_var = draw.normal(*shape, dtype=dtype), draw.normal(*shape, dtype=dtype)
        yield case(mean=spread * mean, log_var=spread * log_var)


@gaussian_kl.holds("A divergence is never negative.")
def _(kl: np.ndarray, mean: Tensor, log_var: Tensor) -> bool:
    return bool((kl >= 0).all())


gaussian_kl.misconceptions(
    log_std=(lambda m, s: 0.5 * (m**2 + torch.exp(2 * s) - 2 * s - 1).sum(1),
             "The second argument was read as a standard deviation's logarithm. It is the variance's."),
    variance=(lambda m, s: 0.5 * (m**2 + s - torch.log(s) - 1).sum(1),
              "The second argument was read as the variance. It is a logarithm, and may be negative."),
    log_of_log=(lambda m, s: 0.5 * (m**2 + torch.exp(s) - torch.log(s) - 1).sum(1),
                "A logarithm was taken of what is one already, and may be negative."),
    no_half=(lambda m, s: 2 * _terms(m, s).sum(1),
             "Every answer is twice what it should be: look again at the constants of a Gaussian density."),
    batch_mean=(lambda m, s: _terms(m, s).sum(1).mean(), "The batch was averaged. Keep one number a row."),
    batch_sum=(lambda m, s: _terms(m, s).sum(), "Everything was summed. Keep one number for each row."),
    wrong_axis=(lambda m, s: _terms(m, s).sum(0),
                "The sum runs over the batch. It has to run over the dimensions of one row."),
    per_dimension=(lambda m, s: _terms(m, s),
                   "These are the single dimensions' divergences. What do independent ones give together?"),
    axis_kept=(lambda m, s: _terms(m, s).sum(1, keepdim=True),
               "The axis that was summed over is still there, with one entry. Let the sum drop it."),
    dimension_mean=(lambda m, s: _terms(m, s).mean(1),
                    "The dimensions were averaged. What do independent ones give together?"),
    reversed_order=(lambda m, s: _terms(m * torch.exp(-s / 2), -s).sum(1),
                    "This is the divergence of N(0, I) from the row's Gaussian: the wrong way round."),
    wrong_sign=(lambda m, s: -_terms(m, s).sum(1), "Only the sign is wrong."),
    no_constant=(lambda m, s: (_terms(m, s) + 0.5).sum(1),
                 "A constant is missing in each dimension: try your function on N(0, I) itself."),
    mean_not_squared=(lambda m, s: (_terms(0 * m, s) + 0.5 * m).sum(1),
                      "Moving the mean to the left has to cost as much as moving it to the right."),
)

# ---- elbo: (B,), (B,), (B,) -> (B,)


@exercise("the single-sample bound of each row", library=("elbo_from_kl", "elbo_from_evidence"))
def elbo(log_px_given_z: Tensor, log_pz: Tensor, log_qz_given_x: Tensor) -> Tensor:
    return log_px_given_z + log_pz - log_qz_given_x


@elbo.magnitude
def _(log_px_given_z: Tensor, log_pz: Tensor, log_qz_given_x: Tensor) -> Tensor:
    return log_px_given_z.abs() + log_pz.abs() + log_qz_given_x.abs()


@elbo.inputs
def _(draw: Draw) -> Iterator[Case]:
    names = ("log_px_given_z", "log_pz", "log_qz_given_x")
    for _ in range(draw.count):
        dtype, rows = draw.dtype(), draw.integer(1, 5)
        scale = draw.choose([1.0, 10.0, 1e6])  # as large as in a model of a photograph
        terms = [scale * (draw.normal(rows, dtype=dtype) - shift) for shift in (4.0, 2.0, 1.0)]
        yield case(**dict(zip(names, terms, strict=True)))
    likelihood, prior = torch.tensor([-3.0, -50.0]), torch.tensor([-1.5, -2.0])
    yield case("Where q(z|x) equals the prior at z, the bound is the log-likelihood.",
               log_px_given_z=likelihood, log_pz=prior, log_qz_given_x=prior)


elbo.misconceptions(
    q_added=(lambda x, p, q: x + p + q,
             "The density q(z|x) has the wrong sign. Does a wider q raise the bound, or lower it?"),
    no_q=(lambda x, p, q: x + p, "The density q(z|x) is missing: without it this is no bound."),
    no_prior=(lambda x, p, q: x - q, "The prior is missing: what is q(z|x) to be compared with?"),
    no_likelihood=(lambda x, p, q: p - q, "The likelihood is missing: this only compares q with the prior."),
    swapped=(lambda x, p, q: x - p + q,
             "Straying from the prior is rewarded: the two densities of z have changed places."),
    negative=(lambda x, p, q: q - x - p, "This is a loss, to be made small. The bound has the other sign."),
    both_paid=(lambda x, p, q: x - p - q, "Both densities of z are paid for: that is right for one of them."),
    batch_mean=(lambda x, p, q: (x + p - q).mean(), "The batch was averaged. Keep one number for each row."),
    batch_sum=(lambda x, p, q: (x + p - q).sum(), "The batch was summed. Keep one number for each row."),
)

# ---- kl_weight: step, warmup_steps -> number


@exercise("the weight of the divergence at this step", returns="number")
def kl_weight(step: int, warmup_steps: int) -> float:
    return 1.0 if step >= warmup_steps else step / warmup_steps


@kl_weight.inputs
def _(draw: Draw) -> Iterator[Case]:
    yield case("The weight starts at 0.", step=0, warmup_steps=10)
    yield case("Half-way through the warm-up the weight is one half.", step=5, warmup_steps=10)
    yield case("The weight is 1 when the warm-up ends.", step=10, warmup_steps=10)
    yield case("The weight stays 1 after the warm-up.", step=25, warmup_steps=10)
    for step in (0, 7):
        yield case("Without a warm-up the weight is always 1.", step=step, warmup_steps=0)
    for _ in range(draw.count):
        warmup = draw.choose([1, 3, 100, 2500])
        yield case(step=draw.integer(0, 3 * warmup), warmup_steps=warmup)


@kl_weight.holds("The weight is never above 1.")
def _(weight: np.ndarray, step: int, warmup_steps: int) -> bool:
    return bool(weight <= 1)


kl_weight.misconceptions(
    overshoots=(lambda t, n: t / n if n else 1.0, "The weight keeps growing after the warm-up."),
    divides_by_zero=(lambda t, n: min(1.0, t / n), "What if there is no warm-up at all?"),
    zero_without_warmup=(lambda t, n: min(1.0, t / n) if n else 0.0, "No warm-up: nothing is held back."),
    falls=(lambda t, n: max(0.0, 1 - t / n) if n else 0.0, "The schedule runs backwards: the weight falls."),
    starts_at_one=(lambda t, n: 1.0, "The weight is always 1: nothing is annealed."),
    one_step_ahead=(lambda t, n: min(1.0, (t + 1) / n) if n else 1.0,
                    "The weight is one step ahead: what should it be at step 0?"),
    one_step_late=(lambda t, n: min(1.0, t / (n + 1)),
                   "The weight arrives one step late: what should it be when the warm-up ends?"),
    jumps=(lambda t, n: float(t >= n), "The weight jumps. It should rise evenly, step by step."),
    starts_over=(lambda t, n: t % n / n if n else 1.0,
                 "The weight starts over after each warm-up. It should rise once, and stay."),
)

# ---- free_bits: (B,), (B, d), free_nats -> scalar


@exercise("the objective with free bits, averaged over the batch", library=("free_bits_kl", "vae_loss"))
def free_bits(log_likelihood: Tensor, kl_per_dim: Tensor, free_nats: float) -> Tensor:
    return log_likelihood.mean() - _paid(kl_per_dim, free_nats).sum()


def _paid(kl_per_dim: Tensor, free_nats: float) -> Tensor:
    return kl_per_dim.mean(0).clamp(min=free_nats)  # (d,)


@free_bits.magnitude
def _(log_likelihood: Tensor, kl_per_dim: Tensor, free_nats: float) -> Tensor:
    return log_likelihood.abs().mean() + _paid(kl_per_dim, free_nats).sum()


@free_bits.inputs
def _(draw: Draw) -> Iterator[Case]:
    log_p, kl = torch.tensor([-5.0, -7.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    known = {
        "Without free nats the objective is the mean bound.": (kl, 0.0),
        "A collapsed dimension pays the free nats.": (0 * kl, 1.0),
        "A dimension above the free nats pays what it uses.": (kl, 1.0),
    }
    for title, (used, free_nats) in known.items():
        yield case(title, log_likelihood=log_p, kl_per_dim=used, free_nats=free_nats)
    yield case("A sample may use less than the free nats where another makes up for it.",
               log_likelihood=log_p / 2, kl_per_dim=torch.tensor([[0.0, 6.0], [6.0, 0.0]]), free_nats=2.0)
    for _ in range(draw.count):
        dtype, rows, dims = draw.dtype(), draw.integer(2, 5), draw.integer(1, 6)
        free_nats = draw.choose([0.05, 0.5, 2.0])
        level = free_nats * torch.exp(draw.normal(1, dims, dtype=dtype))  # (1, d), on both sides of it
        yield case(
            log_likelihood=20 * draw.normal(rows, dtype=dtype) - 60,
            kl_per_dim=level * draw.uniform(rows, dims, low=0.0, high=2.0, dtype=dtype),
            free_nats=free_nats,
        )


free_bits.misconceptions(
    clamp_per_sample=(lambda x, kl, c: x.mean() - kl.clamp(min=c).mean(0).sum(),
                      "Each sample was compared with the free nats. Compare a dimension's batch average."),
    upper_limit=(lambda x, kl, c: x.mean() - kl.mean(0).clamp(max=c).sum(),
                 "Here a dimension pays nothing above the free nats. Which side of them should be free?"),
    clamp_total=(lambda x, kl, c: x.mean() - kl.mean(0).sum().clamp(min=c),
                 "The dimensions were added before the comparison. Each has free nats of its own."),
    plain_bound=(lambda x, kl, c: x.mean() - kl.mean(0).sum(), "The free nats change nothing here."),
    discount=(lambda x, kl, c: x.mean() - (kl.mean(0) - c).clamp(min=0).sum(),
              "The free nats were taken off the price. Here a dimension above them pays for all it uses."),
    rewarded=(lambda x, kl, c: x.mean() + _paid(kl, c).sum(), "The divergence is rewarded. It is a price."),
    as_loss=(lambda x, kl, c: _paid(kl, c).sum() - x.mean(),
             "This is a loss, to be made small. The objective has the other sign."),
    dimension_mean=(lambda x, kl, c: x.mean() - _paid(kl, c).mean(), "The dimensions were averaged."),
    summed_likelihood=(lambda x, kl, c: x.sum() - _paid(kl, c).sum(),
                       "The log-likelihood was summed over the batch: average it, as the price is."),
    axes_swapped=(lambda x, kl, c: x.mean() - kl.mean(1).clamp(min=c).sum(), "Axes are the wrong way round."),
    per_row=(lambda x, kl, c: x - _paid(kl, c).sum(),
             "There is still one number a row. One number for the whole batch is asked for."),
    per_row_clamped=(lambda x, kl, c: x - kl.clamp(min=c).sum(1),
                     "Each row was compared with the free nats by itself, and one number a row is left. The "
                     "comparison is for a dimension's batch average, and one number is asked for."),
    max_with_number=(lambda x, kl, c: x.mean() - torch.max(kl.mean(0), c).sum(),
                     "This function takes the larger of two tensors, but the free nats are a plain number."),
    maximum_with_number=(lambda x, kl, c: x.mean() - torch.maximum(kl.mean(0), c).sum(),
                         "The free nats are a plain number: make a tensor of them, or look for a function "
                         "that takes a number as its limit."),
    builtin_max=(lambda x, kl, c: x.mean() - max(kl.mean(0), c).sum(),
                 "Python's own comparison is for single numbers. Compare a whole tensor entry by entry."),
)
