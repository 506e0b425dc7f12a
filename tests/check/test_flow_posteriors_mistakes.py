"""Lecture 06: likely mistakes are recognised however they are written, and shown on an input that tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from dgm_course import check
from dgm_course.gaussian import gaussian_kl, gaussian_log_prob
from dgm_course.numerics import log_mean_exp

from .students import expect_hint, failed
from .test_flow_posteriors_answers import RIGHT, Density, Map, Pair, changed


def chain(combine: Callable[[Tensor, Tensor], Tensor], *, at_end: bool = False) -> Callable[..., Tensor]:
    """What a student makes of the encoder's log-density (B,) and the log-determinants (K, B)."""

    def answer(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
        normal = Normal(mean, torch.exp(0.5 * log_var))
        return combine(normal.log_prob(zk if at_end else z0).sum(-1), log_dets)

    return answer


def start(log_q: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Another log-density of z0."""
    return lambda z0, zk, mean, log_var, log_dets: log_q(z0, mean, log_var) - torch.sum(log_dets, 0)


def step_by_step(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
    """The loop ends one step too early."""
    log_q = gaussian_log_prob(z0, mean, log_var)
    for k in range(1, len(log_dets)):
        log_q = log_q - log_dets[k - 1]
    return log_q


def base(z: Tensor) -> Tensor:
    dims = z.shape[-1]
    return MultivariateNormal(z.new_zeros(dims), torch.eye(dims, dtype=z.dtype)).log_prob(z)


def bound(
    combine: Callable[..., Tensor], finish: Callable[[Tensor], Tensor] = lambda v: v.mean(0)
) -> Callable[..., Tensor]:
    """What a student makes of a likelihood and z0, zK, mean, log_var and the log-determinant."""

    def answer(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        z, log_det = flow(z0)
        return finish(combine(likelihood, z0, z, Normal(mean, (log_var / 2).exp()), log_det))

    return answer


def log_q(normal: Normal, z: Tensor) -> Tensor:
    return normal.log_prob(z).sum(-1)


def integrand(r: Density, u: Tensor, z: Tensor, q: Normal, d: Tensor) -> Tensor:
    return r(z) + base(z) - (log_q(q, u) - d)


def with_gaussian_kl(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    z = flow(z0)[0]
    return (likelihood(z) - gaussian_kl(mean, log_var)).mean(0)


def two_models(first: Callable[..., Tensor], second: Callable[..., Tensor]) -> Callable[..., Pair]:
    """What a student makes of both likelihoods, q, z, e and f's log-determinant."""

    def answer(likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
        e, log_det = f(z)
        decoder = lambda v: likelihood(g(v)[0])  # noqa: E731
        return first(likelihood, log_q, z, e, log_det), second(decoder, log_q, z, e, log_det)

    return answer


def first(r: Density, q: Density, z: Tensor, e: Tensor, d: Tensor) -> Tensor:
    return r(z) + base(e) + d - q(z)


def second(r: Density, q: Density, z: Tensor, e: Tensor, d: Tensor) -> Tensor:
    return r(e) + base(e) - (q(z) - d)


def gap_by_g(likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
    """The log-determinant of g at e in place of that of f at z."""
    e, _ = f(z)
    again, log_det = g(e)
    return likelihood(z) + base(e) + log_det - log_q(z), likelihood(again) + base(e) - log_q(z) + log_det


def gap_without_g(likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
    e, log_det = f(z)
    return likelihood(z) + base(e) + log_det - log_q(z), likelihood(e) + base(e) - log_q(z) + log_det


DENSITY, BOUND, STEP = "flow_posterior_log_prob", "flow_elbo", "iaf_step"
TURNED, GAP = "maf_to_iaf", "prior_posterior_gap"
UNKNOWN, NOT_FINITE = "it computes the", "it is finite for every finite input"
STILL, DOUBLED, ONE = "Where no step changes", "Where every step doubles", "With a single step"
IDENTITY, SHIFT, ONTO = "Where the flow changes nothing", "Where the flow only shifts", "into the prior"
ONLY_SHIFTS, ONLY_SCALES, BACK = "only shifts", "only scales", "every number comes back"
EQUAL, ITSELF = "The two are equal", "Where q is the flow prior itself"

#: What students wrote, the misconception that it is, and what the verdict has to show.
WRITTEN: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "plus": (DENSITY, "added", chain(lambda q, d: q + d.sum(0)), DOUBLED),
    "at zK": (DENSITY, "at_end", chain(lambda q, d: q - d.sum(0), at_end=True), STILL),
    "at zK, plus": (DENSITY, "at_end_added", chain(lambda q, d: q + d.sum(0), at_end=True), STILL),
    "no volume": (DENSITY, "base_alone", chain(lambda q, d: q), DOUBLED),
    "last step": (DENSITY, "last_step", chain(lambda q, d: q - d[-1]), DOUBLED),
    "first step": (DENSITY, "first_step", chain(lambda q, d: q - d[0]), DOUBLED),
    "loop too short": (DENSITY, "without_last", step_by_step, DOUBLED),
    "average step": (DENSITY, "mean_of_steps", chain(lambda q, d: q - d.mean(dim=0)), DOUBLED),
    "product of logs": (DENSITY, "product", chain(lambda q, d: q - torch.prod(d, 0)), DOUBLED),
    "determinant": (DENSITY, "determinant", chain(lambda q, d: q - d.sum(0).exp()), NOT_FINITE),
    "determinants, then log": (DENSITY, "by_determinants", chain(lambda q, d: q - torch.exp(d).prod(0).log()),
                               NOT_FINITE),
    "density, then log": (DENSITY, "by_densities", chain(lambda q, d: torch.log(q.exp() / d.exp().prod(0))),
                          NOT_FINITE),
    "absolute": (DENSITY, "sizes", chain(lambda q, d: q - torch.abs(d).sum(0)), ONE),
    "prior": (DENSITY, "standard", start(lambda z, m, s: base(z)), STILL),
    "noise": (DENSITY, "standardised", start(lambda z, m, s: base((z - m) / (s / 2).exp())), STILL),
    "log std": (DENSITY, "log_std", start(lambda z, m, s: Normal(m, s.exp()).log_prob(z).sum(-1)), STILL),
    "log_var as std": (DENSITY, "log_std_distribution",
                       start(lambda z, m, s: Normal(m, s).log_prob(z).sum(-1)), "Expected parameter scale"),
    "no 2 pi": (DENSITY, "no_constant",
                start(lambda z, m, s: -(((z - m) ** 2) / s.exp() + s).sum(-1) / 2), STILL),
    "no sum": (DENSITY, "per_dimension_broadcast",
               start(lambda z, m, s: Normal(m, (s / 2).exp()).log_prob(z)), "must match"),
    "whole batch": (DENSITY, "all_rows", chain(lambda q, d: q - d.sum()), DOUBLED),
    "volume turned": (BOUND, "log_det_sign", bound(
        lambda r, u, z, q, d: r(z) + base(z) - log_q(q, u) - d), ONTO),
    "no log-det": (BOUND, "no_log_det", bound(lambda r, u, z, q, d: r(z) + base(z) - log_q(q, u)), ONTO),
    "prior at z0": (BOUND, "prior_at_start", bound(
        lambda r, u, z, q, d: r(z) + base(u) - log_q(q, u) + d), SHIFT),
    "likelihood at z0": (BOUND, "likelihood_at_start",
                         bound(lambda r, u, z, q, d: r(u) + base(z) - log_q(q, u) + d), SHIFT),
    "q at zK": (BOUND, "base_at_end", bound(
        lambda r, u, z, q, d: r(z) + base(z) - (log_q(q, z) - d)), SHIFT),
    "q at zK alone": (BOUND, "base_at_end_alone", bound(
        lambda r, u, z, q, d: r(z) + base(z) - log_q(q, z)), SHIFT),
    "Gaussian KL": (BOUND, "closed_kl", with_gaussian_kl, SHIFT),
    "q added": (BOUND, "log_q_added", bound(
        lambda r, u, z, q, d: r(z) + base(z) + (log_q(q, u) - d)), IDENTITY),
    "no flow": (BOUND, "no_flow", bound(lambda r, u, z, q, d: r(u) + base(u) - log_q(q, u)), SHIFT),
    "no prior": (BOUND, "no_prior", bound(lambda r, u, z, q, d: r(z) - log_q(q, u) + d), IDENTITY),
    "no 2 pi in the prior": (BOUND, "prior_without_constant", bound(
        lambda r, u, z, q, d: r(z) - (z * z).sum(-1) / 2 - log_q(q, u) + d), IDENTITY),
    "average dimension": (BOUND, "dimension_mean", bound(
        lambda r, u, z, q, d: r(z) + Normal(0.0, 1.0).log_prob(z).mean(-1) - q.log_prob(u).mean(-1) + d),
                          IDENTITY),
    "importance weighted": (BOUND, "log_of_mean", bound(integrand, lambda v: log_mean_exp(v, 0)), IDENTITY),
    "sum": (BOUND, "sum_of_samples", bound(integrand, sum), IDENTITY),
    "batch": (BOUND, "over_batch", bound(integrand, lambda v: v.mean(-1)), "of shape"),
    "one number": (BOUND, "everything", bound(integrand, torch.mean), "got a tensor of shape ()"),
    "tuple decoded": (BOUND, "pair_unpacked", lambda r, f, u, m, s: r(f(u)).mean(0), "'tuple' object"),
    "reparametrised again": (BOUND, "noise_again", lambda r, f, u, m, s: RIGHT[BOUND][0](
        r, lambda v: f(m + (s / 2).exp() * v), u, m, s), IDENTITY),
    "MAF": (STEP, "inverse", lambda z, m, s: ((z - m) / s.exp(), -s.sum(-1)), ONLY_SHIFTS),
    "MAF, log-det of IAF": (STEP, "inverse_positive", lambda z, m, s: ((z - m) / s.exp(), s.sum(-1)),
                            ONLY_SHIFTS),
    "minus": (STEP, "negative", lambda z, m, s: (s.exp() * z + m, -torch.sum(s, 1)), "log_det: at"),
    "log as scale": (STEP, "log_in_map", lambda z, m, s: (z * s + m, s.sum(1)), "changes nothing"),
    "log as scale, logged": (STEP, "scale_is_no_log", lambda z, m, s: (m + s * z, torch.log(abs(s)).sum(1)),
                             "changes nothing"),
    "average": (STEP, "dimension_mean", lambda z, m, s: (m + s.exp() * z, s.mean(dim=1)), ONLY_SCALES),
    "product": (STEP, "determinant", lambda z, m, s: (m + s.exp() * z, s.exp().prod(1)), NOT_FINITE),
    "product, then log": (STEP, "by_determinant", lambda z, m, s: (m + s.exp() * z, s.exp().prod(1).log()),
                          NOT_FINITE),
    "shift scaled": (STEP, "shift_first", lambda z, m, s: ((z + m) * s.exp(), s.sum(1)), "z_new: at"),
    "over the batch": (STEP, "over_batch", lambda z, m, s: (m + s.exp() * z, s.sum(0)), "of shape"),
    "pair turned": (STEP, "order", lambda z, m, s: (s.sum(1), m + z * s.exp()), "of shape"),
    "the paper's gate": (STEP, "sigmoid_gate", lambda z, m, s: (
        torch.sigmoid(s) * z + (1 - torch.sigmoid(s)) * m, torch.sigmoid(s).log().sum(1)), "changes nothing"),
    "minus mu": (TURNED, "not_divided", lambda m, s: (-m, -s), BACK),
    "plus mu": (TURNED, "shift_sign", lambda m, s: (m / s.exp(), -s), ONLY_SHIFTS),
    "times sigma": (TURNED, "multiplied", lambda m, s: (-m * torch.exp(s), -s), BACK),
    "same scale": (TURNED, "scale_kept", lambda m, s: (-m / s.exp(), s.clone()), ONLY_SCALES),
    "one over the log": (TURNED, "reciprocal", lambda m, s: (-m / s.exp(), 1 / s), "got inf"),
    "sigma": (TURNED, "scale", lambda m, s: (-m / s.exp(), 1 / s.exp()), "expected 0, got 1"),
    "as they were": (TURNED, "unchanged", lambda m, s: (m * 1, s * 1), ONLY_SHIFTS),
    "turned round": (TURNED, "exchanged", lambda m, s: (-s, -m / s.exp()), ONLY_SHIFTS),
    "the slide": (GAP, "slide", two_models(lambda r, q, z, e, d: r(z) + base(z) + d - q(z),
                                           lambda r, q, z, e, d: r(e) + base(e) - (q(e) - d)), SHIFT),
    "prior at z": (GAP, "prior_at_z", two_models(
        lambda r, q, z, e, d: r(z) + base(z) + d - q(z), second), SHIFT),
    "posterior at e": (GAP, "posterior_at_e",
                       two_models(first, lambda r, q, z, e, d: r(e) + base(e) - (q(e) - d)), SHIFT),
    "first sign": (GAP, "prior_log_det_sign", two_models(
        lambda r, q, z, e, d: r(z) + base(e) - d - q(z), second), ITSELF),
    "second sign": (GAP, "posterior_log_det_sign",
                    two_models(first, lambda r, q, z, e, d: r(e) + base(e) - (q(z) + d)), ITSELF),
    "no volumes": (GAP, "no_log_det", two_models(lambda r, q, z, e, d: r(z) + base(e) - q(z),
                                                 lambda r, q, z, e, d: r(e) + base(e) - q(z)), ITSELF),
    "g's volume": (GAP, "log_det_sign", gap_by_g, ITSELF),
    "e decoded": (GAP, "posterior_decodes_e", gap_without_g, SHIFT),
    "samples averaged": (GAP, "sample_mean", changed(two_models(first, second), lambda v: v.mean(0)),
                         "of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_likely_mistake_is_recognised_however_it_is_written(name: str) -> None:
    expect_hint(*WRITTEN[name])


def test_an_unknown_mistake_earns_no_hint() -> None:
    unknown: dict[str, Callable[..., Any]] = {
        DENSITY: chain(lambda q, d: q - 3 * d.sum(0)),
        BOUND: bound(lambda r, u, z, q, d: 3 * r(z) + base(z) - log_q(q, u) + d),
        STEP: lambda z, m, s: (3 * m + s.exp() * z, s.sum(-1)),
        TURNED: lambda m, s: (-3 * m / s.exp(), -s),
        GAP: two_models(first, lambda r, q, z, e, d: 3 * r(e) + base(e) - q(z) + d),
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
