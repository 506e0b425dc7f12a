"""Lecture 01: likely mistakes are recognised however they are written, and shown on an input that tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dgm_course import check
from dgm_course.check.cases import Case

from .students import expect_hint


def mask_in_lists_past_the_last(num_pixels: int, window: int) -> list[list[int]]:
    mask = [[0] * num_pixels for _ in range(num_pixels)]
    for i in range(num_pixels):
        for j in range(i + 1, i + window + 1):
            mask[i][j] = 1
    return mask


def mask_before_the_first(num_pixels: int, window: int) -> Tensor:
    mask = torch.zeros(num_pixels, num_pixels)
    for j in range(num_pixels):
        for i in range(j - window, j):
            mask[i, j] = 1
    return mask


#: What students wrote, the misconception that it is, and what the verdict has to show.
WRITTEN: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "log twice": ("gaussian_kl", "log_of_log",
                  lambda m, s: (m**2 + s.exp() - s.log() - 1).sum(-1) / 2, "[[0.3, -0.7]]"),
    "axis kept": ("gaussian_kl", "axis_kept",
                  lambda m, s: 0.5 * (m**2 + s.exp() - s - 1).sum(-1, keepdim=True), "of shape (2, 1)"),
    "tril": ("causal_mask", "lower_with_diagonal", lambda m, w: torch.ones(m, m).tril(), "expected 0, got 1"),
    "triu": ("causal_mask", "upper_triangle", lambda m, w: torch.ones(m, m).triu(), "expected 0, got 1"),
    "band": ("causal_mask", "both_sides_with_diagonal",
             lambda m, w: torch.ones(m, m).tril(w).triu(-w), "expected 0, got 1"),
    "past the end": ("causal_mask", "past_the_last", mask_in_lists_past_the_last, "list assignment"),
    "before the start": ("causal_mask", "before_the_first", mask_before_the_first, "index -2 is out of"),
    "one variance": ("active_units", "whole_matrix_sample",
                     lambda means, threshold=0.01: int(means.var() > threshold), "expected 0, got 1"),
    "rows left": ("free_bits", "per_row_clamped",
                  lambda x, kl, c: x - torch.clamp(kl, min=c).sum(-1), "expected a scalar, got a tensor"),
    "each sample": ("free_bits", "clamp_per_sample",
                    lambda x, kl, c: (x - kl.clamp(min=c).sum(1)).mean(), "expected -9, got -11"),
    "max of a number": ("free_bits", "max_with_number",
                        lambda x, kl, c: x.mean() - torch.max(kl, c).mean(0).sum(), "got (Tensor, float)"),
    "Python's max": ("free_bits", "builtin_max",
                     lambda x, kl, c: x.mean() - sum(max(kl.mean(0), c)), "Boolean value of Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_likely_mistake_is_recognised_however_it_is_written(name: str) -> None:
    expect_hint(*WRITTEN[name])


def test_an_error_of_another_kind_earns_no_hint() -> None:
    def one_axis(num_pixels: int, window: int) -> Tensor:
        mask = torch.zeros(num_pixels)
        for j in range(num_pixels):
            mask[j, j - 1] = window
        return mask

    assert not check.causal_mask.check(one_axis).hint
    assert not check.free_bits.check(lambda log_likelihood, kl_per_dim: log_likelihood).hint


def objective(log_likelihood: Tensor, kl_per_dim: Tensor, free_nats: float) -> Tensor:
    return log_likelihood.mean() - kl_per_dim.mean(0).clamp(min=free_nats).sum()


def test_a_gap_seen_on_no_plain_input_is_shown_where_it_is_largest() -> None:
    def slightly_off(log_likelihood: Tensor, kl_per_dim: Tensor, free_nats: float) -> Tensor:
        return objective(log_likelihood, kl_per_dim, free_nats) - 0.01

    def gap(case: Case) -> float:
        return 0.01 / abs(float(objective(*case.fresh())))

    verdict = check.free_bits.check(slightly_off)
    titled = [case for case in check.free_bits.draw(20) if case.title]
    assert verdict.claim == max(titled, key=gap).title, verdict.text
