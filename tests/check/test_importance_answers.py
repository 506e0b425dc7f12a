"""Lecture 02: other right algorithms pass, over hundreds of inputs, whatever form they give the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.nn import functional

from dgm_course import check
from dgm_course.gaussian import gaussian_log_prob

from .students import expect_right


def weights_by_library(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    log_q = gaussian_log_prob(z, q_mean, q_log_var)
    return gaussian_log_prob(x, z, 0.0) + gaussian_log_prob(z, 0.0, 0.0) - log_q


def weights_by_normal(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    zero, one = torch.zeros_like(z), torch.ones_like(z)
    terms = Normal(zero, one).log_prob(z) + Normal(z, one).log_prob(x)
    return (terms - Normal(q_mean, torch.exp(q_log_var / 2)).log_prob(z)).sum(dim=2)


def weights_by_independent(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    prior = Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1)
    likelihood = Independent(Normal(z, torch.ones_like(z)), 1)
    q = Independent(Normal(q_mean, q_log_var.exp().sqrt()), 1)
    return prior.log_prob(z) + likelihood.log_prob(x) - q.log_prob(z)


def weights_by_multivariate(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    q = MultivariateNormal(q_mean, covariance_matrix=torch.diag_embed(torch.exp(q_log_var)))
    prior = MultivariateNormal(torch.zeros_like(x), eye)
    return prior.log_prob(z) + MultivariateNormal(z, eye).log_prob(x) - q.log_prob(z)


def weights_by_loops(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
    rows = []
    for sample in z:
        log_p = -0.5 * (sample**2 + (x - sample) ** 2).sum(-1) - x.shape[1] * math.log(2 * math.pi)
        standard = (sample - q_mean) / (q_log_var / 2).exp()
        log_q = -0.5 * (standard**2 + q_log_var + math.log(2 * math.pi)).sum(-1)
        rows.append(log_p - log_q)
    return torch.stack(rows)


def bound_by_logsumexp(log_w: Tensor) -> Tensor:
    return torch.logsumexp(log_w, dim=0) - math.log(log_w.size(0))


def bound_by_hand(log_w: Tensor) -> Tensor:
    largest, _ = log_w.max(dim=0)
    return largest + torch.log(torch.mean(torch.exp(log_w - largest), dim=0))


def bound_by_addition(log_w: Tensor) -> Tensor:
    total = log_w[0]
    for row in log_w[1:]:
        total = torch.logaddexp(total, row)
    return total - torch.tensor(len(log_w), dtype=log_w.dtype).log()


def bound_of_shifted_logs(log_w: Tensor) -> Tensor:
    return (log_w - math.log(log_w.shape[0])).logsumexp(0)


def bound_from_columns(log_w: Tensor) -> Tensor:
    return torch.stack([column.logsumexp(0) for column in log_w.T]) - math.log(len(log_w))


def bound_in_doubles(log_w: Tensor) -> Tensor:
    return bound_by_hand(log_w.double()).to(log_w.dtype)


def shares_by_functional(log_w: Tensor) -> Tensor:
    return functional.softmax(log_w, dim=0)


def shares_by_hand(log_w: Tensor) -> Tensor:
    w = torch.exp(log_w - log_w.amax(0, keepdim=True))
    return w / w.sum(0, keepdim=True)


def shares_by_logarithm(log_w: Tensor) -> Tensor:
    return (log_w - torch.logsumexp(log_w, 0)).exp()


def shares_by_bound(log_w: Tensor) -> Tensor:
    return torch.exp(log_w - bound_by_logsumexp(log_w)) / len(log_w)


def shares_by_log_softmax(log_w: Tensor) -> Tensor:
    return log_w.log_softmax(-2).exp()


def shares_by_gradient(log_w: Tensor) -> Tensor:
    log_w = log_w.detach().requires_grad_()
    return torch.autograd.grad(torch.logsumexp(log_w, 0).sum(), log_w)[0]


def shares_from_columns(log_w: Tensor) -> Tensor:
    return torch.stack([torch.softmax(column, 0) for column in log_w.T], dim=1)


def gap_of_shares(log_w: Tensor, num_samples: int) -> Tensor:
    return (len(log_w) * torch.softmax(log_w, 0).square().sum(0) - 1) / (2 * num_samples)


def gap_in_logarithms(log_w: Tensor, num_samples: int) -> Tensor:
    log_ratio = bound_by_logsumexp(2 * log_w) - 2 * bound_by_logsumexp(log_w)
    return torch.expm1(log_ratio) / num_samples / 2


def gap_in_sums(log_w: Tensor, num_samples: int) -> Tensor:
    log_ratio = torch.logsumexp(2 * log_w, 0) - 2 * torch.logsumexp(log_w, 0) + math.log(len(log_w))
    return (log_ratio.exp() - 1) / (2 * num_samples)


def gap_by_the_largest(log_w: Tensor, num_samples: int) -> Tensor:
    w = torch.exp(log_w - log_w.max(dim=0).values)
    return ((w**2).mean(0) / w.mean(0) ** 2 - 1) / (2 * num_samples)


def gap_by_the_variance(log_w: Tensor, num_samples: int) -> Tensor:
    w = torch.exp(log_w - log_w.max(dim=0).values)
    return w.var(0, correction=0) / w.mean(0) ** 2 / (2 * num_samples)


def gap_by_the_mean(log_w: Tensor, num_samples: int) -> Tensor:
    w = torch.exp(log_w - bound_by_logsumexp(log_w))  # the mean is 1
    return w.var(0, unbiased=False) / (2 * num_samples)


def gap_by_numpy(log_w: Tensor, num_samples: int) -> Tensor:
    w = np.exp((log_w - log_w.max(0).values).double().numpy())
    return torch.from_numpy(w.var(0) / w.mean(0) ** 2 / (2 * num_samples)).to(log_w.dtype)


def snr_by_variance(gradients: Tensor) -> Tensor:
    return gradients.mean(0).abs() / gradients.var(0).sqrt()


def snr_by_hand(gradients: Tensor) -> Tensor:
    mean = gradients.sum(0) / len(gradients)
    return torch.abs(mean) / torch.sqrt(((gradients - mean) ** 2).sum(0) / (len(gradients) - 1))


def snr_by_moments(gradients: Tensor) -> Tensor:
    count, mean = len(gradients), gradients.mean(0)
    variance = (gradients.square().mean(0) - mean.square()) * count / (count - 1)
    return (mean.square() / variance).sqrt()


def snr_by_numpy(gradients: Tensor) -> Tensor:
    g = gradients.numpy()
    return torch.from_numpy(np.abs(g.mean(axis=0)) / g.std(axis=0, ddof=1))


def snr_by_std_mean(gradients: Tensor) -> Tensor:
    std, mean = torch.std_mean(gradients, dim=0)
    return (mean / std).abs()


def snr_by_loops(gradients: Tensor) -> Tensor:
    return torch.stack([column.mean().abs() / column.std() for column in gradients.T])


def dreg_detached_at_once(log_w: Tensor) -> Tensor:
    return torch.softmax(log_w.detach(), 0) ** 2


def dreg_detached_at_the_end(log_w: Tensor) -> Tensor:
    w = shares_by_hand(log_w)
    return (w * w).detach()


def dreg_without_grad(log_w: Tensor) -> Tensor:
    with torch.no_grad():
        return shares_by_functional(log_w).pow(2)


@torch.no_grad()
def dreg_decorated(log_w: Tensor) -> Tensor:
    return torch.exp(2 * (log_w - log_w.logsumexp(0)))


def dreg_in_inference_mode(log_w: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.exp(2 * (log_w - bound_by_logsumexp(log_w) - math.log(len(log_w))))


def dreg_of_data(log_w: Tensor) -> Tensor:
    return torch.softmax(log_w.data, 0).square()


def dreg_by_numpy(log_w: Tensor) -> Tensor:
    w = log_w.detach().numpy()
    w = np.exp(w - w.max(0))
    return torch.from_numpy((w / w.sum(0)) ** 2)


def dreg_by_gradient(log_w: Tensor) -> Tensor:
    return shares_by_gradient(log_w).square()


def dreg_in_place_of_a_copy(log_w: Tensor) -> Tensor:
    w = log_w.detach().clone()
    w -= w.max(0).values
    w.exp_()
    w /= w.sum(0)
    return w.square_()


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "log_weights": [weights_by_library, weights_by_normal, weights_by_independent, weights_by_multivariate,
                    weights_by_loops],
    "iwae_bound": [bound_by_logsumexp, bound_by_hand, bound_by_addition, bound_of_shifted_logs,
                   bound_from_columns, bound_in_doubles],
    "normalized_weights": [shares_by_functional, shares_by_hand, shares_by_logarithm, shares_by_bound,
                           shares_by_log_softmax, shares_by_gradient, shares_from_columns],
    "iwae_gap": [gap_of_shares, gap_in_logarithms, gap_in_sums, gap_by_the_largest, gap_by_the_variance,
                 gap_by_the_mean, gap_by_numpy],
    "snr": [snr_by_variance, snr_by_hand, snr_by_moments, snr_by_numpy, snr_by_std_mean, snr_by_loops],
    "dreg_weights": [dreg_detached_at_once, dreg_detached_at_the_end, dreg_without_grad, dreg_decorated,
                     dreg_in_inference_mode, dreg_of_data, dreg_by_numpy, dreg_by_gradient,
                     dreg_in_place_of_a_copy],
}  # fmt: skip
ANSWERS = [pytest.param(name, f, id=f.__name__) for name, answers in RIGHT.items() for f in answers]


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
def test_another_right_algorithm_passes(name: str, answer: Callable[..., Any]) -> None:
    expect_right(name, answer)


@pytest.mark.parametrize("name", RIGHT)
def test_arrays_and_lists_pass_with_a_note(name: str) -> None:
    answer = RIGHT[name][0]
    for other, words in ((Tensor.numpy, "NumPy array"), (Tensor.tolist, "list")):
        verdict = getattr(check, name).check(lambda *a, other=other: other(answer(*a)))
        assert verdict.passed and words in verdict.note, verdict.text


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_in_another_dtype_fails_for_its_dtype(name: str) -> None:
    for change in (Tensor.double, Tensor.float):
        verdict = getattr(check, name).check(lambda *a, change=change: change(RIGHT[name][0](*a)))
        assert verdict.claim == "its dtype follows the input's", verdict.text
        assert not verdict.hint


@pytest.mark.parametrize("name", RIGHT)
def test_a_small_error_is_found(name: str) -> None:
    for factor in (1 + 1e-3, 1 - 1e-3):
        verdict = getattr(check, name).check(lambda *a, factor=factor: RIGHT[name][0](*a) * factor)
        assert verdict.status == "FAIL" and not verdict.hint, verdict.text


def test_what_underflows_in_one_column_is_found() -> None:
    """An answer that is safe near 0, or for one x at a time, but not for a batch like a real model's."""
    def gap(w: Tensor, k: int) -> Tensor:
        return torch.nan_to_num(w.exp().var(0, correction=0) / w.exp().mean(0) ** 2) / (2 * k)

    unsafe = {
        "iwae_bound": lambda w: w.double().exp().mean(0).log().to(w.dtype),
        "normalized_weights": lambda w: torch.nan_to_num(w.exp() / w.exp().sum(0)),
        "iwae_gap": gap,
        "dreg_weights": lambda w: torch.nan_to_num(w.exp() / w.exp().sum(0)).square().detach(),
    }
    for name, answer in unsafe.items():
        assert getattr(check, name).check(answer).status == "FAIL", name
