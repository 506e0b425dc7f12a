"""Lecture 04: likely mistakes are recognised however they are written, and shown on an input that tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.nn.functional import logsigmoid, softplus

from dgm_course import check
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.numerics import log_mean_exp

from .students import expect_hint, failed
from .test_discrete_data_answers import RIGHT, LogProb, Noise, changed
from .test_discrete_data_answers import edged_by_multipliers as edged

Scale = Callable[[Tensor], Tensor]


def cdf(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return 1 / (1 + torch.exp((mean - x) / scale))


def mass(low: float, high: float, scale: Scale = torch.clone) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The mass of [y + low, y + high), with another reading of the scale."""
    return lambda y, mean, s: cdf(y + high, mean, scale(s)) - cdf(y + low, mean, scale(s))


def gaussian_mass(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return Normal(mean, scale).cdf(y + 0.5) - Normal(mean, scale).cdf(y - 0.5)


def logistic_density(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    e = torch.exp(-(y - mean) / scale)
    return e / (scale * (1 + e) ** 2)


def port(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
    """The usual port of PixelCNN++, in levels."""
    inverse = torch.exp(-log_scale)
    above, below, middle = (inverse * (y + side - mean) for side in (0.5, -0.5, 0.0))
    difference = torch.sigmoid(above) - torch.sigmoid(below)
    log_density = middle - log_scale - 2 * softplus(middle)
    inner = torch.where(difference > 1e-5, torch.log(difference.clamp(min=1e-12)), log_density)
    top = torch.where(y > num_levels - 1.001, -softplus(below), inner)
    return torch.where(y < 0.001, above - softplus(above), top)


def ends(low: Callable[[Tensor], Tensor], high: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """An answer of differences: conditions say where the lower edge has F = 0 and the upper one F = 1."""

    def answer(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
        upper, lower = (cdf(y + side, mean, log_scale.exp()) for side in (0.5, -0.5))
        upper[high(num_levels - y)], lower[low(y)] = 1.0, 0.0
        return upper - lower

    return answer


def nowhere(y: Tensor) -> Tensor:
    return torch.zeros_like(y).bool()


def at_zero(y: Tensor) -> Tensor:
    return y == 0


def at_top(to_end: Tensor) -> Tensor:
    return to_end == 1


DIFFERENCE = ends(at_zero, at_top)


def with_ends(
    inner: Callable[[Tensor, Tensor], Tensor], *, top: int = 1, scale: Scale = torch.exp
) -> Callable[..., Tensor]:
    """An answer with safe ends, where the top is ``top`` below the number of levels, and other inner bins."""

    def answer(y: Tensor, mean: Tensor, log_scale: Tensor, num_levels: int) -> Tensor:
        a, b = ((y + side - mean) / scale(log_scale) for side in (0.5, -0.5))
        value = torch.where(y == num_levels - top, logsigmoid(-b), inner(a, b))
        return torch.where(y == 0, logsigmoid(a), value)

    return answer


def safe(a: Tensor, b: Tensor) -> Tensor:
    return logsigmoid(a) + logsigmoid(-b) + torch.log1p(-torch.exp(b - a))


def density_at_centre(a: Tensor, b: Tensor) -> Tensor:
    z = (a + b) / 2
    return -z - 2 * softplus(-z) + torch.log(a - b)


def uniform(points: Callable[[Tensor, Tensor], Tensor]) -> Callable[[LogProb, Tensor, Tensor], Tensor]:
    return lambda log_prob, y, u: torch.stack([log_prob(points(y, draw)) for draw in u]).mean(0)


def learned(combine: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a student makes of log p, log_det, u and epsilon, before the average over the draws."""

    def answer(log_prob: LogProb, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
        u, log_det = noise(epsilon, y)
        return combine(log_prob(y.unsqueeze(0) + u), log_det, u, epsilon).mean(0)

    return answer


def base(epsilon: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(epsilon).sum(-1)


def by_multivariate(epsilon: Tensor) -> Tensor:
    dims = epsilon.shape[-1]
    return MultivariateNormal(epsilon.new_zeros(dims), torch.eye(dims, dtype=epsilon.dtype)).log_prob(epsilon)


def learned_with_epsilon(log_prob: LogProb, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    _, log_det = noise(epsilon, y)
    return (log_prob(y + epsilon) - gaussian_log_prob(epsilon, 0.0, 0.0) + log_det).mean(0)


def learned_exchanged(log_prob: LogProb, noise: Noise, y: Tensor, epsilon: Tensor) -> Tensor:
    u, log_det = noise(y, epsilon)
    return (log_prob(y + u) - base(epsilon) + log_det).mean(0)


def weighted(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """What a student makes of log p and log q, both (K, B)."""
    return lambda log_prob, y, u, log_q: combine(torch.stack([log_prob(y + v) for v in u]), log_q)


MASS, EDGES, UNIFORM = "discretized_logistic_prob", "log_prob_with_edges", "uniform_dequantization_bound"
BITS, LEARNED = "bits_per_dim", "variational_dequantization_bound"
WEIGHTED = "importance_weighted_dequantization"
UNKNOWN, NOT_FINITE = "it computes the", "it is finite for every finite input"
TINY, TWO, FALLS = "the bin around the mean has all", "With two levels", "falls by 1 with each scale"
FLAT, ONE, EVEN = "its height is the bound", "With a single draw", "Where g makes uniform noise"

#: What students wrote, the misconception that it is, and what the verdict has to show.
WRITTEN: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "from the level up": (MASS, "bin_above", mass(0, 1), TINY),
    "up to the level": (MASS, "bin_below", mass(-1, 0), TINY),
    "half a bin": (MASS, "half_width", mass(-0.25, 0.25), TINY),
    "upper half": (MASS, "upper_half", mass(0, 0.5), TINY),
    "turned round": (MASS, "negative", mass(0.5, -0.5), "expected 1, got -1"),
    "the density": (MASS, "density", logistic_density, TINY),
    "normal": (MASS, "gaussian", gaussian_mass, UNKNOWN),
    "a variance": (MASS, "variance", mass(-0.5, 0.5, torch.sqrt), TINY),
    "a logarithm": (MASS, "log_scale", mass(-0.5, 0.5, torch.exp), TINY),
    "times the scale": (MASS, "multiplied", mass(-0.5, 0.5, torch.reciprocal), TINY),
    "logged": (MASS, "logarithm", changed(mass(-0.5, 0.5), torch.log), "-inf"),
    "half a bin after the division": (
        MASS, "half_after_division",
        lambda y, m, s: torch.sigmoid((y - m) / s + 0.5) - torch.sigmoid((y - m) / s - 0.5), TINY),
    "the warm-up's logarithm": (EDGES, "underflow_no_edges", changed(ends(nowhere, nowhere), torch.log),
                                NOT_FINITE),
    "difference": (EDGES, "underflow", changed(DIFFERENCE, torch.log), NOT_FINITE),
    "difference, safe ends": (EDGES, "underflow",
                              with_ends(lambda a, b: (a.sigmoid() - b.sigmoid()).log()), NOT_FINITE),
    "difference in doubles": (EDGES, "in_doubles", lambda y, m, s, n: (
        DIFFERENCE(y.double(), m.double(), s.double(), n).log().to(y.dtype)), NOT_FINITE),
    "one tail": (EDGES, "one_tail", with_ends(lambda a, b: (
        logsigmoid(a) + torch.log1p(-(logsigmoid(b) - logsigmoid(a)).exp()))), NOT_FINITE),
    "clamp": (EDGES, "floor", lambda y, m, s, n: torch.log(torch.clamp(DIFFERENCE(y, m, s, n), 1e-12)),
              "got -27.63"),
    "maximum": (EDGES, "floor", lambda y, m, s, n: (
        DIFFERENCE(y, m, s, n).maximum(torch.tensor(1e-12, dtype=y.dtype)).log()), "got -27.63"),
    "clamp without ends": (EDGES, "floor_no_edges",
                           changed(ends(nowhere, nowhere), lambda v: v.clamp_min(1e-12).log()), TWO),
    "density in the middle": (EDGES, "density", with_ends(density_at_centre), "the probabilities sum to 1"),
    "epsilon": (EDGES, "small_added", lambda y, m, s, n: torch.log(DIFFERENCE(y, m, s, n) + 1e-12),
                "got -27.63"),
    "the port": (EDGES, "density_in_tails", port, "expected -27.3, got -50.6"),
    "no ends": (EDGES, "no_edges", lambda y, m, s, n: safe((y + 0.5 - m) / s.exp(), (y - 0.5 - m) / s.exp()),
                TWO),
    "top at the number of levels": (EDGES, "high_closed", with_ends(safe, top=0), TWO),
    "scale as it is": (EDGES, "scale", with_ends(safe, scale=torch.clone), NOT_FINITE),
    "a variance's logarithm": (EDGES, "log_variance", with_ends(safe, scale=lambda s: (s / 2).exp()), FALLS),
    "safe probability": (EDGES, "probability", changed(edged, torch.exp), TWO),
    "base 2": (EDGES, "bits", changed(edged, lambda v: v / np.log(2)), TWO),
    "picture": (EDGES, "total", changed(edged, lambda v: v.sum(-1)), "got a tensor of shape ()"),
    "log of the mean": (UNIFORM, "log_of_mean", lambda p, y, u: log_mean_exp(p(y + u), 0), UNKNOWN),
    "exp, mean, log": (UNIFORM, "log_of_mean", lambda p, y, u: p(y + u).exp().mean(0).log(), UNKNOWN),
    "half the noise": (UNIFORM, "half_noise", uniform(lambda y, u: y + 0.5 * u), ONE),
    "centred noise": (UNIFORM, "centred", uniform(lambda y, u: y + (u - 0.5)), ONE),
    "levels only": (UNIFORM, "no_noise", uniform(lambda y, u: y), ONE),
    "the wrong way": (UNIFORM, "subtracted", uniform(lambda y, u: y - u), ONE),
    "mean of the noise": (UNIFORM, "averaged_noise", lambda p, y, u: p((y + u).mean(0)), UNKNOWN),
    "bytes": (UNIFORM, "byte_scale", uniform(lambda y, u: (y + u) / 256.0), ONE),
    "all averaged": (UNIFORM, "everything", lambda p, y, u: p(y + u).mean(), "got a tensor of shape ()"),
    "last axis": (UNIFORM, "over_batch", lambda p, y, u: p(y + u).mean(-1), "of shape"),
    "summed": (UNIFORM, "sum_of_draws", lambda p, y, u: sum(p(y + v) for v in u), FLAT),
    "nats": (BITS, "nats", lambda v, m, w: -v / m - math.log(w), "8 bits"),
    "log2 of the width, converted": (BITS, "width_converted_twice",
                                     lambda v, m, w: -(v / m + np.log2(w)) / np.log(2), "scaled"),
    "no width": (BITS, "no_width", lambda v, m, w: -v / (m * math.log(2)), "expected 8, got -0"),
    "width added": (BITS, "width_sign", lambda v, m, w: -v / m / math.log(2) + math.log2(w), "got -8"),
    "width once": (BITS, "width_once", lambda v, m, w: -(v / math.log(2) + math.log2(w)) / m, "scaled"),
    "by the batch": (BITS, "batch_counted", lambda v, m, w: -(v / v.shape[0] + math.log(w)) / math.log(2),
                     "256 levels"),
    "likelihood": (BITS, "sign", lambda v, m, w: (v / m + math.log(w)) / math.log(2), "expected 8, got -8"),
    "log of a number": (BITS, "tensor_log", lambda v, m, w: -(v / m + torch.log(w)) / torch.log(2.0),
                        "must be Tensor, not float"),
    "eight": (BITS, "eight_bits", lambda v, m, w: -v / m / math.log(2) + math.log2(256), "got 16"),
    "p alone": (LEARNED, "no_log_q", learned(lambda p, d, u, e: p), UNKNOWN),
    "the slides": (LEARNED, "no_base", learned(lambda p, d, u, e: p + d), EVEN),
    "the slides, exactly": (LEARNED, "determinant_alone", learned(lambda p, d, u, e: p + d.exp()), EVEN),
    "no volume": (LEARNED, "no_log_det", learned(lambda p, d, u, e: p - base(e)), EVEN),
    "volume turned": (LEARNED, "log_det_sign", learned(lambda p, d, u, e: p - (base(e) + d)), EVEN),
    "q turned": (LEARNED, "log_q_added", learned(lambda p, d, u, e: p + (by_multivariate(e) - d)), UNKNOWN),
    "normal u": (LEARNED, "own_gaussian_alone", learned(lambda p, d, u, e: p - base(u)), EVEN),
    "no 2 pi": (LEARNED, "no_constant", learned(lambda p, d, u, e: p + e.pow(2).sum(2) / 2 + d), EVEN),
    "volume not logged": (LEARNED, "determinant", learned(lambda p, d, u, e: p - base(e) + d.exp()), EVEN),
    "epsilon for u": (LEARNED, "epsilon_added", learned_with_epsilon, EVEN),
    "y first": (LEARNED, "arguments_exchanged", learned_exchanged, EVEN),
    "the pair": (LEARNED, "pair_added", lambda p, g, y, e: p(y + g(e, y)).mean(0), "and 'tuple'"),
    "no sum": (LEARNED, "per_dimension", learned(lambda p, d, u, e: p - (Normal(0.0, 1.0).log_prob(e) - d)),
               "must match"),
    "logs averaged": (WEIGHTED, "mean_of_logs", weighted(lambda p, q: (p - q).mean(0)), UNKNOWN),
    "no K": (WEIGHTED, "no_division", weighted(lambda p, q: (p - q).logsumexp(0)), "every draw has the same"),
    "p averaged": (WEIGHTED, "no_log_q", weighted(lambda p, q: log_mean_exp(p, 0)), ONE),
    "times q": (WEIGHTED, "log_q_added", weighted(lambda p, q: log_mean_exp(p + q, 0)), ONE),
    "densities": (WEIGHTED, "by_exp", weighted(lambda p, q: (p.exp() / q.exp()).mean(0).log()), NOT_FINITE),
    "densities in doubles": (WEIGHTED, "in_doubles", weighted(lambda p, q: (
        (p.double().exp() / q.double().exp()).mean(0).log().to(p.dtype))), NOT_FINITE),
    "one shift": (WEIGHTED, "global_max", weighted(lambda p, q: (
        ((p - q) - (p - q).max()).exp().mean(0).log() + (p - q).max())), NOT_FINITE),
    "both averaged": (WEIGHTED, "ratio_of_means", weighted(lambda p, q: (
        log_mean_exp(p, 0) - log_mean_exp(q, 0))), "not below the average"),
    "q averaged": (WEIGHTED, "log_q_averaged", weighted(lambda p, q: (
        log_mean_exp(p, 0) - q.sum(0) / len(q))), "not above the largest"),
    "shares": (WEIGHTED, "self_weighted", weighted(lambda p, q: (torch.softmax(p - q, 0) * (p - q)).sum(0)),
               UNKNOWN),
    "the best": (WEIGHTED, "largest", weighted(lambda p, q: torch.max(p - q, dim=0)[0]), UNKNOWN),
    "the batch": (WEIGHTED, "over_batch", weighted(lambda p, q: log_mean_exp(p - q, 1)), "of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_likely_mistake_is_recognised_however_it_is_written(name: str) -> None:
    expect_hint(*WRITTEN[name])


def test_an_unknown_mistake_earns_no_hint() -> None:
    unknown: dict[str, Callable[..., Any]] = {
        MASS: mass(-0.7, 0.4),
        EDGES: lambda y, m, s, n: edged(y, m + 0.3, s, n),
        UNIFORM: uniform(lambda y, u: y + u**3),
        BITS: lambda v, m, w: -(v / m + 3 * math.log(w)) / math.log(2),
        LEARNED: learned(lambda p, d, u, e: 3 * p - base(e) + d),
        WEIGHTED: weighted(lambda p, q: log_mean_exp(3 * p - q, 0)),
    }
    for name, answer in unknown.items():
        assert not failed(answer, "", getattr(check, name)).hint, name


@pytest.mark.parametrize("name", RIGHT)
def test_a_constant_answer_fails(name: str) -> None:
    exercise = getattr(check, name)
    for change in (torch.zeros_like, torch.ones_like, lambda part: torch.full_like(part, -3)):
        assert exercise.check(changed(RIGHT[name][0], change)).status == "FAIL"
    for value in (0.0, torch.zeros(2), (torch.zeros(()), torch.zeros(())), True):
        assert exercise.check(lambda *_, value=value: value).status == "FAIL"


@pytest.mark.parametrize("name", RIGHT)
def test_an_input_that_is_changed_in_place_is_named(name: str) -> None:
    def changes(*arguments: Any) -> object:  # noqa: ANN401
        first = next(v for v in arguments if isinstance(v, Tensor))
        given = RIGHT[name][0](*(v.clone() if v is first else v for v in arguments))
        first += 1
        return given

    verdict = failed(changes, "it leaves its inputs as they were", getattr(check, name))
    assert verdict.gap.endswith("changed in place") and not verdict.hint
