"""Lecture 02: likely mistakes are recognised however they are written, and shown on an input that tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from dgm_course.gaussian import gaussian_log_prob

from .students import expect_hint


def without_constants(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    log_p = -0.5 * (z**2).sum(-1) - 0.5 * ((x - z) ** 2).sum(-1)
    log_q = -0.5 * (q_log_var + (z - q_mean) ** 2 / q_log_var.exp()).sum(-1)
    return log_p - log_q


def by_distributions(
    scale: Callable[[Tensor], Tensor], sum_over: int | None = -1
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def answer(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
        terms = Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)
        terms = terms - Normal(q_mean, scale(q_log_var)).log_prob(z)
        return terms if sum_over is None else terms.sum(sum_over)

    return answer


def from_library(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    return gaussian_log_prob(x, z, 0.0) - gaussian_log_prob(z, q_mean, q_log_var)


def from_library_with_variances(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    ones = torch.ones_like(z)
    log_p = gaussian_log_prob(z, torch.zeros_like(z), ones) + gaussian_log_prob(x, z, ones)
    return log_p - gaussian_log_prob(z, q_mean, q_log_var)


def bound_with_both_halves_of_max(log_w: Tensor) -> Tensor:
    largest = log_w.max(dim=0)
    return (log_w - largest).exp().mean(0).log() + largest


def std(log_var: Tensor) -> Tensor:
    return torch.exp(log_var / 2)


def dreg_by_loops(log_w: Tensor) -> list[Tensor]:
    return [torch.stack([w**2 for w in row]) for row in torch.softmax(log_w, 0)]


#: What students wrote, the misconception that it is, and what the verdict has to show.
WRITTEN: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "exp(log_var) as scale": ("log_weights", "log_std", by_distributions(torch.exp), "standard deviation's"),
    "log_var as scale": ("log_weights", "scale_of_distribution", by_distributions(lambda s: s),
                         "ValueError: Expected parameter scale"),
    "root of log_var": ("log_weights", "variance_of_distribution", by_distributions(torch.sqrt),
                        "ValueError: Expected parameter scale"),
    "no sum": ("log_weights", "per_dimension", by_distributions(std, None),
               "of shape (2, 3), got a tensor of shape (2, 3, 2)"),
    "sum over K": ("log_weights", "over_samples", by_distributions(std, 0), "it returns a tensor of shape"),
    "constants": ("log_weights", "no_constants", without_constants, "the weight is the likelihood"),
    "no prior": ("log_weights", "no_prior", from_library, "expected -1.044, got 0"),
    "ones": ("log_weights", "ones_for_log_var", from_library_with_variances, "expected -1.044, got -1.886"),
    "mean of logs": ("iwae_bound", "elbo", lambda log_w: log_w.sum(0) / len(log_w), "expected"),
    "plain exp": ("iwae_bound", "overflow", lambda log_w: torch.log(torch.exp(log_w).sum(0) / len(log_w)),
                  "it is finite for every finite input"),
    "log of K forgotten": ("iwae_bound", "no_division", lambda log_w: log_w.logsumexp(dim=0), "expected"),
    "max of everything": ("iwae_bound", "global_max",
                          lambda log_w: (log_w - log_w.max()).exp().mean(0).log() + log_w.max(), "got -inf"),
    "log of an int": ("iwae_bound", "log_of_int",
                      lambda log_w: torch.logsumexp(log_w, 0) - torch.log(log_w.shape[0]), "must be Tensor"),
    "both halves": ("iwae_bound", "max_pair", bound_with_both_halves_of_max, "torch.return_types.max"),
    "in doubles": ("iwae_bound", "in_doubles", lambda log_w: log_w.double().exp().mean(0).log(), "got -inf"),
    "last axis": ("normalized_weights", "over_batch", lambda log_w: log_w.softmax(-1), "sum to 1"),
    "no axis": ("normalized_weights", "over_batch", torch.nn.functional.softmax, "sum to 1"),
    "bound subtracted": ("normalized_weights", "sum_to_k",
                         lambda w: torch.exp(w - w.logsumexp(0) + math.log(len(w))), "have equal shares"),
    "exp over one sum": ("normalized_weights", "overflow_of_all",
                         lambda log_w: torch.exp(log_w) / torch.exp(log_w).sum(), "got nan"),
    "exp over sum": ("normalized_weights", "overflow",
                     lambda log_w: torch.exp(log_w) / torch.exp(log_w).sum(0, keepdim=True), "got nan"),
    "precedence": ("iwae_gap", "k_multiplied",
                   lambda log_w, num_samples: (len(log_w) * log_w.softmax(0).square().sum(0) - 1)
                   / 2 * num_samples, "expected 0.75, got 3"),
    "shares without N": ("iwae_gap", "no_n",
                         lambda log_w, k: (log_w.softmax(0).pow(2).sum(0) - 1) / (2 * k), "expected"),
    "variance of logs": ("iwae_gap", "log_variance_sample",
                         lambda log_w, k: log_w.var(0) / (2 * k), "expected"),
    "variance of weights": ("iwae_gap", "not_relative_sample",
                            lambda log_w, k: log_w.exp().var(0) / (2 * k), "it is finite"),
    "raw moments": ("iwae_gap", "overflow",
                    lambda log_w, k: ((log_w.exp() ** 2).mean(0) / log_w.exp().mean(0) ** 2 - 1) / (2 * k),
                    "got nan"),
    "no absolute value": ("snr", "signed", lambda g: g.mean(dim=0) / g.std(dim=0), "is never negative"),
    "NumPy's std": ("snr", "population",
                    lambda g: np.abs(g.numpy().mean(0)) / g.numpy().std(0), "expected 2, got 2.449"),
    "averaged": ("snr", "standard_error",
                 lambda g: g.mean(0).abs() * len(g) ** 0.5 / g.std(0), "expected 2, got 3.464"),
    "attached": ("dreg_weights", "not_detached", lambda log_w: torch.softmax(log_w, 0) ** 2,
                 "no gradient flows through it"),
    "attached rows": ("dreg_weights", "not_detached", dreg_by_loops, "still requires grad"),
    "half detached": ("dreg_weights", "not_detached",
                      lambda log_w: log_w.softmax(0) * log_w.softmax(0).detach(), "(requires grad)"),
    "switched off": ("dreg_weights", "requires_grad_off",
                     lambda log_w: log_w.requires_grad_(False).softmax(0) ** 2, "leaf variables"),
    "neither": ("dreg_weights", "not_squared", lambda log_w: torch.softmax(log_w, dim=0), "is a sixteenth"),
    "squares that sum to 1": ("dreg_weights", "squared_first",
                              lambda w: w.softmax(0) ** 2 / (w.softmax(0) ** 2).sum(0), "is a sixteenth"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_likely_mistake_is_recognised_however_it_is_written(name: str) -> None:
    expect_hint(*WRITTEN[name])
