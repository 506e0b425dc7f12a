"""Lecture 04: other right algorithms pass, over hundreds of inputs, whatever form they give the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform, Normal, SigmoidTransform, TransformedDistribution, Uniform
from torch.nn.functional import logsigmoid, softplus

from dgm_course import check
from dgm_course.dequantization import dequantize
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.numerics import log_mean_exp

from .students import expect_right

LogProb = Callable[[Tensor], Tensor]
Noise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mass_by_sigmoid(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return torch.sigmoid((y + 0.5 - mean) / scale) - torch.sigmoid((y - 0.5 - mean) / scale)


def mass_by_exp(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    def cdf(x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-(x - mean) / scale))

    return cdf(y + 1 / 2) - cdf(y - 1 / 2)


def mass_by_tanh(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    centre, half = (y - mean) / (2 * scale), 0.25 / scale
    return 0.5 * (torch.tanh(centre + half) - torch.tanh(centre - half))


def mass_by_product(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    a, b = (y + 0.5 - mean) / scale, (y - 0.5 - mean) / scale
    return torch.sigmoid(a) * torch.sigmoid(-b) * (1 - torch.exp(-1 / scale))


def mass_by_distribution(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    zero = torch.zeros_like(y)
    transforms = [SigmoidTransform().inv, AffineTransform(mean, scale)]
    logistic = TransformedDistribution(Uniform(zero, zero + 1), transforms)
    return logistic.cdf(y + 0.5) - logistic.cdf(y - 0.5)


def mass_by_loops(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    mean, scale = torch.broadcast_to(mean, y.shape), torch.broadcast_to(scale, y.shape)
    out = torch.zeros_like(y)
    for i in range(len(y)):
        high, low = ((y[i] + side - mean[i]) / scale[i] for side in (0.5, -0.5))
        out[i] = torch.special.expit(high) - torch.special.expit(low)
    return out


def edges(y: Tensor, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    inverse = torch.exp(-log_scale)
    return (y + 0.5 - mean) * inverse, (y - 0.5 - mean) * inverse


def edged_by_multipliers(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    a, b = edges(y, mean, log_scale)
    below, above = (y > 0).to(y.dtype), (y < num_levels - 1).to(y.dtype)
    log_width = torch.log(-torch.expm1(-torch.exp(-log_scale)))
    return below * above * log_width - above * softplus(-a) - below * softplus(b)


def edged_by_reflection(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    a, b = edges(y, mean, log_scale)
    a, b = torch.where(a + b > 0, -b, a), torch.where(a + b > 0, -a, b)  # into the lower tail
    inner = logsigmoid(a) + torch.log1p(-torch.exp(logsigmoid(b) - logsigmoid(a)))
    a, b = edges(y, mean, log_scale)
    return torch.where(y == 0, logsigmoid(a), torch.where(y == num_levels - 1, logsigmoid(-b), inner))


def edged_by_infinite_edges(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    high, low = y + 0.5, y - 0.5
    high[y == num_levels - 1], low[y == 0] = math.inf, -math.inf
    a, b = (high - mean) / log_scale.exp(), (low - mean) / log_scale.exp()
    return logsigmoid(a) + logsigmoid(-b) + torch.log(1 - torch.exp(b - a))


def edged_by_hyperbolic(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    half, z = 0.5 * torch.exp(-log_scale), (y - mean) * torch.exp(-log_scale)
    log_cosh = torch.logaddexp(torch.logaddexp(z, -z), torch.logaddexp(half, -half))
    value = half + torch.log1p(-torch.exp(-2 * half)) - log_cosh
    value[y == 0] = -torch.logaddexp(0 * z, -z - half)[y == 0]
    value[y == num_levels - 1] = -torch.logaddexp(0 * z, z - half)[y == num_levels - 1]
    return value


def edged_by_loops(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    out = torch.zeros_like(y)
    for i, level in enumerate(y.tolist()):
        a, b = edges(y[i], mean[i], log_scale[i])
        if level < num_levels - 1:
            out[i] -= softplus(-a)
        if level > 0:
            out[i] -= softplus(b)
        if 0 < level < num_levels - 1:
            out[i] += torch.log1p(-torch.exp(-1 / log_scale[i].exp()))
    return out


def uniform_by_mean(log_prob: LogProb, y: Tensor, u: Tensor) -> Tensor:
    return log_prob(y + u).mean(0)


def uniform_by_loops(log_prob: LogProb, y: Tensor, u: Tensor) -> Tensor:
    total = y.new_zeros(len(y))
    for noise in u:
        total = total + torch.stack([log_prob(row) for row in y + noise]) / len(u)
    return total


def uniform_by_rows(log_prob: LogProb, y: Tensor, u: Tensor) -> Tensor:
    rows = (y.repeat(len(u), 1) + u.flatten(0, 1)).contiguous()
    return torch.einsum("sb->b", log_prob(rows).view(len(u), len(y))) / u.shape[0]


def uniform_by_vmap(log_prob: LogProb, y: Tensor, u: Tensor) -> Tensor:
    return torch.vmap(lambda row, noise: log_prob(row + noise).mean(), in_dims=(0, 1))(y, u)


def uniform_inside_the_bin(log_prob: LogProb, y: Tensor, u: Tensor) -> Tensor:
    return torch.mean(log_prob(dequantize(y.unsqueeze(0), u)), dim=-2)


def bits_by_log2(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    return -log_prob / (num_dims * math.log(2)) - math.log2(bin_width)


def bits_by_mass(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    log_mass = log_prob + num_dims * math.log(bin_width)
    return -log_mass / math.log(2) / num_dims


def bits_by_levels(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    return -(log_prob / np.log(2.0) - num_dims * np.log2(1 / bin_width)) / num_dims


def bits_by_tensors(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    nats = log_prob / num_dims + torch.tensor(bin_width).log()
    return -nats * torch.tensor(math.e).log2()


def bits_by_loops(log_prob: Tensor, num_dims: int, bin_width: float) -> Tensor:
    return torch.stack([-(v / num_dims + math.log(bin_width)) / math.log(2) for v in log_prob])


def variational_by_library(log_prob: LogProb, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    u, log_det = noise(epsilon, y)
    log_q = gaussian_log_prob(epsilon, 0.0, 0.0) - log_det
    return (log_prob(y + u) - log_q).mean(0)


def variational_by_normal(log_prob: LogProb, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    u, log_det = noise(epsilon, y)
    log_q = Normal(torch.zeros_like(epsilon), 1.0).log_prob(epsilon).sum(-1) - log_det
    return log_prob(y + u).mean(dim=0) - log_q.mean(dim=0)


def variational_by_loops(log_prob: LogProb, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    total = y.new_zeros(len(y))
    for e in epsilon:
        u, log_det = noise(e, y)
        for i in range(len(y)):
            square = sum(v * v + math.log(2 * math.pi) for v in e[i])
            total[i] += (log_prob(y[i] + u[i]) + 0.5 * square + log_det[i]) / len(epsilon)
    return total


def variational_by_rows(log_prob: LogProb, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    rows = y.expand_as(epsilon).reshape(-1, y.shape[1])
    u, log_det = noise(epsilon.reshape(rows.shape), rows)
    constant = 0.5 * y.shape[1] * math.log(2 * math.pi)
    log_w = log_prob(rows + u) + 0.5 * (epsilon.reshape(rows.shape) ** 2).sum(1) + constant + log_det
    return log_w.reshape(epsilon.shape[:2]).sum(0) / epsilon.shape[0]


def variational_by_jacobian(log_prob: LogProb, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    def one(e: Tensor, row: Tensor) -> Tensor:
        jacobian = torch.func.jacrev(lambda v: noise(v, row)[0])(e)
        log_q = Normal(0.0, 1.0).log_prob(e).sum() - torch.linalg.slogdet(jacobian).logabsdet
        return log_prob(row + noise(e, row)[0]) - log_q

    return torch.vmap(torch.vmap(one), in_dims=(0, None))(epsilon, y).mean(0)


def weighted_by_logsumexp(log_prob: LogProb, y: Tensor, u: Tensor, log_q: Tensor) -> Tensor:
    return torch.logsumexp(log_prob(y + u) - log_q, 0) - math.log(len(u))


def weighted_by_library(log_prob: LogProb, y: Tensor, u: Tensor, log_q: Tensor) -> Tensor:
    return log_mean_exp(log_prob(dequantize(y, u)) - log_q, 0)


def weighted_by_shift(log_prob: LogProb, y: Tensor, u: Tensor, log_q: Tensor) -> Tensor:
    log_w = log_prob(y + u) - log_q
    largest = log_w.max(dim=0).values
    return largest + torch.log(torch.exp(log_w - largest).mean(0))


def weighted_by_loops(log_prob: LogProb, y: Tensor, u: Tensor, log_q: Tensor) -> Tensor:
    total = torch.full_like(y[:, 0], -math.inf)
    for noise, log_density in zip(u, log_q, strict=True):
        total = torch.logaddexp(total, log_prob(y + noise) - log_density)
    return total - torch.tensor(len(u)).log()


def weighted_by_softmax(log_prob: LogProb, y: Tensor, u: Tensor, log_q: Tensor) -> Tensor:
    log_w = log_prob(y + u) - log_q
    return (log_w - log_w.log_softmax(0)).mean(0) - math.log(u.size(0))


def weighted_by_cumulative(log_prob: LogProb, y: Tensor, u: Tensor, log_q: Tensor) -> Tensor:
    rows = (y + u).transpose(0, 1)  # (B, K, m)
    log_w = log_prob(rows) - log_q.T
    return torch.logcumsumexp(log_w, 1)[:, -1] - math.log(log_w.shape[1])


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "discretized_logistic_prob": [
        mass_by_sigmoid, mass_by_exp, mass_by_tanh, mass_by_product, mass_by_distribution, mass_by_loops],
    "log_prob_with_edges": [
        edged_by_multipliers, edged_by_reflection, edged_by_infinite_edges, edged_by_hyperbolic,
        edged_by_loops],
    "uniform_dequantization_bound": [
        uniform_by_mean, uniform_by_loops, uniform_by_rows, uniform_by_vmap, uniform_inside_the_bin],
    "bits_per_dim": [bits_by_log2, bits_by_mass, bits_by_levels, bits_by_tensors, bits_by_loops],
    "variational_dequantization_bound": [
        variational_by_library, variational_by_normal, variational_by_loops, variational_by_rows,
        variational_by_jacobian],
    "importance_weighted_dequantization": [
        weighted_by_logsumexp, weighted_by_library, weighted_by_shift, weighted_by_loops,
        weighted_by_softmax, weighted_by_cumulative],
}  # fmt: skip
ANSWERS = [pytest.param(name, f, id=f.__name__) for name, answers in RIGHT.items() for f in answers]


def changed(answer: Callable[..., Any], change: Callable[[Tensor], object]) -> Callable[..., Any]:
    """The answer with ``change`` applied to what it gives."""
    return lambda *arguments: change(answer(*arguments))


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
def test_another_right_algorithm_passes(name: str, answer: Callable[..., Any]) -> None:
    expect_right(name, answer)


@pytest.mark.parametrize("name", RIGHT)
def test_arrays_and_lists_pass_with_a_note(name: str) -> None:
    for change, words in ((Tensor.numpy, "NumPy array"), (Tensor.tolist, "list")):
        verdict = getattr(check, name).check(changed(RIGHT[name][0], change))
        assert verdict.passed and words in verdict.note, verdict.text


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_in_another_dtype_fails_for_its_dtype(name: str) -> None:
    for change in (Tensor.float, Tensor.double):
        verdict = getattr(check, name).check(changed(RIGHT[name][0], change))
        assert verdict.claim == "its dtype follows the input's", verdict.text
        assert not verdict.hint


@pytest.mark.parametrize("name", RIGHT)
def test_a_small_error_is_found(name: str) -> None:
    for factor in (1 + 1e-6, 1 - 1e-6):
        verdict = getattr(check, name).check(changed(RIGHT[name][0], lambda v, f=factor: f * v))
        assert verdict.status == "FAIL" and not verdict.hint, verdict.text
