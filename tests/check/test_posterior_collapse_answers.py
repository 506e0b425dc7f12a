"""Lecture 01: other right algorithms pass, over thousands of inputs, whatever form they give the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from dgm_course import check

from .students import expect_right


def kl_by_distributions(mean: Tensor, log_var: Tensor) -> Tensor:
    q = Normal(mean, torch.exp(0.5 * log_var))
    return kl_divergence(q, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(-1)


def kl_by_independent(mean: Tensor, log_var: Tensor) -> Tensor:
    q = Independent(Normal(mean, log_var.exp().sqrt()), 1)
    return kl_divergence(q, Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1))


def kl_by_multivariate(mean: Tensor, log_var: Tensor) -> Tensor:
    eye = torch.eye(mean.shape[1], dtype=mean.dtype)
    q = MultivariateNormal(mean, scale_tril=torch.diag_embed(torch.exp(log_var / 2)))
    return kl_divergence(q, MultivariateNormal(torch.zeros_like(mean), eye))


def kl_by_loops(mean: Tensor, log_var: Tensor) -> Tensor:
    rows = []
    for m, s in zip(mean, log_var, strict=True):
        rows.append(sum(0.5 * (a * a + b.exp() - b - 1) for a, b in zip(m, s, strict=True)))
    return torch.stack(rows)


def kl_by_einsum(mean: Tensor, log_var: Tensor) -> Tensor:
    ones = torch.ones_like(mean)
    return torch.einsum("bd,bd->b", mean**2 + log_var.exp() - log_var - 1, ones) / 2


def kl_with_gradient(mean: Tensor, log_var: Tensor) -> Tensor:
    scale = torch.ones((), dtype=mean.dtype, requires_grad=True)
    return scale * kl_by_einsum(mean, log_var)


def elbo_by_stack(log_px_given_z: Tensor, log_pz: Tensor, log_qz_given_x: Tensor) -> Tensor:
    signs = torch.tensor([1, 1, -1], dtype=log_pz.dtype)[:, None]
    return (torch.stack([log_px_given_z, log_pz, log_qz_given_x]) * signs).sum(0)


def elbo_in_place_of_a_copy(log_px_given_z: Tensor, log_pz: Tensor, log_qz_given_x: Tensor) -> Tensor:
    bound = log_px_given_z.clone()
    bound -= log_qz_given_x - log_pz
    return bound


def weight_by_tensors(step: int, warmup_steps: int) -> Tensor:
    if warmup_steps == 0:
        return torch.tensor(1.0)
    return torch.clamp(torch.tensor(step / warmup_steps), 0.0, 1.0)


def weight_by_numpy(step: int, warmup_steps: int) -> np.float64:
    return np.minimum(1.0, np.float64(step) / max(warmup_steps, 1)) if warmup_steps else np.float64(1)


def weight_by_interpolation(step: int, warmup_steps: int) -> float:
    return float(np.interp(step, [0, warmup_steps], [0, 1])) if warmup_steps else 1


def bits_by_maximum(log_likelihood: Tensor, kl_per_dim: Tensor, free_nats: float) -> Tensor:
    paid = torch.maximum(kl_per_dim.mean(dim=0), torch.tensor(free_nats, dtype=kl_per_dim.dtype))
    return (log_likelihood - paid.sum()).mean()


def bits_by_relu(log_likelihood: Tensor, kl_per_dim: Tensor, free_nats: float) -> Tensor:
    mean_kl = kl_per_dim.sum(0) / len(kl_per_dim)
    return log_likelihood.mean() - (free_nats + torch.relu(mean_kl - free_nats)).sum()


def bits_by_loops(log_likelihood: Tensor, kl_per_dim: Tensor, free_nats: float) -> Tensor:
    total = log_likelihood.mean()
    for column in kl_per_dim.T:
        total = total - max(column.mean(), torch.as_tensor(free_nats, dtype=column.dtype))
    return total


def units_by_var(means: Tensor, threshold: float = 0.01) -> Tensor:
    return (torch.var(means, dim=0, unbiased=False) > threshold).sum()


def units_by_numpy(means: Tensor, threshold: float = 0.01) -> int:
    return np.count_nonzero(means.numpy().var(axis=0) > threshold)


def units_by_moments(means: Tensor, threshold: float = 0.01) -> int:
    means = means.double()
    return len([1 for v in (means**2).mean(0) - means.mean(0) ** 2 if v > threshold])


def units_by_covariance(means: Tensor, threshold: float = 0.01) -> int:
    covariance = torch.atleast_2d(torch.cov(means.T, correction=0))
    return sum((covariance.diagonal() > threshold).tolist())


def mask_by_loops(num_pixels: int, window: int) -> Tensor:
    mask = torch.zeros(num_pixels, num_pixels)
    for j in range(num_pixels):
        for i in range(max(0, j - window), j):
            mask[i, j] = 1
    return mask


def mask_by_triangles(num_pixels: int, window: int) -> Tensor:
    ones = torch.ones(num_pixels, num_pixels, dtype=torch.int64)
    return ones.triu(1) - ones.triu(window + 1)


def mask_by_columns(num_pixels: int, window: int) -> Tensor:
    i, j = torch.meshgrid(torch.arange(num_pixels), torch.arange(num_pixels), indexing="ij")
    return torch.logical_and(i < j, j - window <= i)


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "gaussian_kl": [kl_by_distributions, kl_by_independent, kl_by_multivariate, kl_by_loops, kl_by_einsum,
                    kl_with_gradient],
    "elbo": [elbo_by_stack, elbo_in_place_of_a_copy],
    "kl_weight": [weight_by_tensors, weight_by_numpy, weight_by_interpolation],
    "free_bits": [bits_by_maximum, bits_by_relu, bits_by_loops],
    "active_units": [units_by_var, units_by_numpy, units_by_moments, units_by_covariance],
    "causal_mask": [mask_by_loops, mask_by_triangles, mask_by_columns],
}
ANSWERS = [pytest.param(name, f, id=f.__name__) for name, answers in RIGHT.items() for f in answers]


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
def test_another_right_algorithm_passes(name: str, answer: Callable[..., Any]) -> None:
    expect_right(name, answer)


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
def test_arrays_and_lists_pass_with_a_note(name: str, answer: Callable[..., Any]) -> None:
    exercise = getattr(check, name)
    want = exercise.wants[""]
    if want not in ("tensor", "mask"):
        return

    def as_array(*arguments: object) -> np.ndarray:
        return answer(*arguments).detach().numpy()

    def as_list(*arguments: object) -> object:  # a scalar becomes a plain number
        return answer(*arguments).tolist()

    plain = "plain number" if name == "free_bits" else "list"
    for other, words in ((as_array, "NumPy array"), (as_list, plain)):
        verdict = exercise.check(other)
        assert verdict.passed and words in verdict.note, verdict.text


def test_a_count_as_a_float_passes_with_a_note() -> None:
    verdict = check.active_units.check(lambda means, threshold=0.01: float(units_by_var(means, threshold)))
    assert verdict.passed and "int" in verdict.note


def test_a_right_answer_in_another_dtype_fails_for_its_dtype() -> None:
    for change in (Tensor.double, Tensor.float, Tensor.bfloat16):
        verdict = check.elbo.check(lambda a, b, c, change=change: change(elbo_by_stack(a, b, c)))
        assert verdict.claim == "its dtype follows the input's", verdict.text
        assert not verdict.hint


def test_a_small_error_is_found() -> None:
    for factor in (1 + 1e-3, 1 - 1e-3):
        for name, f in (("gaussian_kl", kl_by_einsum), ("free_bits", bits_by_relu)):
            verdict = getattr(check, name).check(lambda *a, f=f, factor=factor: f(*a) * factor)
            assert verdict.status == "FAIL"
    assert check.kl_weight.check(lambda t, n: min(1.0, t / n) + 1e-9 if n else 1.0).status == "FAIL"


def test_a_float32_computation_of_float64_inputs_fails() -> None:
    def imprecise(mean: Tensor, log_var: Tensor) -> Tensor:
        return kl_by_einsum(mean.float(), log_var.float()).to(mean.dtype)

    assert check.gaussian_kl.check(imprecise).status == "FAIL"


def test_an_error_that_also_overshoots_earns_the_hint() -> None:
    verdict = check.kl_weight.check(lambda step, warmup_steps: step / warmup_steps)
    assert verdict.gap.startswith("ZeroDivisionError")
    assert verdict.hint == "The weight keeps growing after the warm-up."


def test_a_mistake_with_the_edge_case_handled_earns_the_hint() -> None:
    hints = {mistake.name: mistake.hint for mistake in check.kl_weight.mistakes}
    answers = {
        "one_step_late": lambda t, n: min(1.0, t / (n + 1)) if n else 1.0,
        "falls": lambda t, n: max(0.0, 1.0 - t / n) if n else 1.0,
    }
    for name, answer in answers.items():
        assert check.kl_weight.check(answer).hint == hints[name]


def test_an_unknown_mistake_earns_no_hint() -> None:
    verdict = check.gaussian_kl.check(lambda mean, log_var: math.pi * kl_by_einsum(mean, log_var))
    assert verdict.status == "FAIL" and not verdict.hint
