"""Small two-dimensional latents for the tests of lecture 05's demos: forty binary pictures of six pixels."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgm_course.demos import beta_surgery, fitted_priors, prior_choice
from dgm_course.demos.engine import LiveDemo
from dgm_course.nets import MLP
from dgm_course.surgery import Estimate
from dgm_course.vae import VAE, BernoulliDecoder

Array = NDArray[np.float64]

BETAS = (0.1, 1.0, 8.0)
#: sizes for forty data points
SIZES = {"mixture": (1, 2, 5), "VampPrior": (1, 4, 12), "RealNVP": (1, 2, 3), "MAF": (1, 2, 3),
         "q_agg": (2, 10, 40)}  # fmt: skip


def small_pictures(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Training pictures ``(40, 6)``, held-out ones ``(15, 6)`` and the former's labels, 0, 1 or 2."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(55) % 3
    chance = torch.where(torch.arange(6) // 2 == labels[:, None], 0.85, 0.2)
    x = torch.bernoulli(chance, generator=generator).to(dtype)
    return x[:40], x[40:], labels[:40]


def small_encoder(
    members: int | None = None, log_var: float = -1.5, dtype: torch.dtype = torch.float32
) -> MLP:
    """Means about one unit apart, log-variances about ``log_var``: q_agg lies within the square."""
    encoder = MLP([6, 8, 4], members=members, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoder.layers[-1].weight[..., :2] *= 6.0
        encoder.layers[-1].weight[..., 2:] *= 0.5
        encoder.layers[-1].bias.zero_()
        encoder.layers[-1].bias[..., 2:] += log_var
    return encoder.to(dtype)


def small_stack(dtype: torch.dtype = torch.float32) -> VAE:
    """Three stacked VAEs; the last member's posteriors are the prior, as under a large KL weight."""
    encoder = small_encoder(members=3, dtype=dtype)
    with torch.no_grad():
        for tensor in (encoder.layers[-1].weight, encoder.layers[-1].bias):
            tensor[2] = 0.0
    decoder = BernoulliDecoder(MLP([2, 8, 6], members=3, generator=torch.Generator().manual_seed(2)))
    return VAE(encoder, decoder.to(dtype), 2)


@cache
def small_fit(steps: int = 5, log_var: float = -1.5) -> fitted_priors.Fitted:
    """Every prior, trained a little."""
    return fitted_priors.fit_priors(
        small_encoder(log_var=log_var), small_pictures()[0], sizes=SIZES, steps=steps, batch_size=32
    )


def small_beta_surgery() -> LiveDemo:
    """The demo of the KL weight."""
    x, _, labels = small_pictures()
    return beta_surgery.show(small_stack(), BETAS, x, labels)


def small_prior_choice() -> LiveDemo:
    """The demo of the prior's choice."""
    return prior_choice.show(small_fit(), small_pictures()[1], kind="VampPrior", size=2)


def bell(z: Array, mean: Array | float, log_var: Array | float) -> Array:
    """N(z; mean, exp(log_var)) in one dimension, by numpy."""
    return np.exp(-0.5 * ((z - mean) ** 2 / np.exp(log_var) + log_var + math.log(2 * math.pi)))


def aggregate(at: Array, mean: Tensor, log_var: Tensor) -> Array:
    """q_agg on the square of the points ``at (N,)``, as a sum of products of one-dimensional densities."""
    factors = bell(at, mean.double().numpy()[..., None], log_var.double().numpy()[..., None])  # (n, 2, N)
    return factors[:, 1].T @ factors[:, 0] / len(mean)


def within(estimate: Estimate, k: int, value: float, error: float = 0.0, rounding: float = 1e-5) -> bool:
    """Whether an estimate lies within five standard errors of a value that may have an error itself."""
    spread = math.hypot(float(estimate.standard_error[k]), error)
    return abs(float(estimate.mean[k]) - value) < 5 * spread + rounding
