"""Lecture 06: what its checks ask beyond values, what they do not need, and the library's own functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgm_course import check
from dgm_course.check.judge import examine
from dgm_course.check.outcome import Outcome, take_out
from dgm_course.gaussian import gaussian_log_prob

from .students import failed
from .test_flow_posteriors_answers import Density, Map, Pair, elbo_by_library, gap_as_asked
from .test_flow_posteriors_answers import posterior_by_library as posterior
from .test_library_answers import Given


def test_the_end_of_the_chain_is_not_needed() -> None:
    verdict = check.flow_posterior_log_prob.check(lambda z0, zk, *given: posterior(z0, math.nan * zk, *given))
    assert verdict.passed, verdict.text


def test_the_two_models_agree_by_rounding_and_so_the_property_holds_to_it() -> None:
    (equal,) = check.prior_posterior_gap.properties
    for case in check.prior_posterior_gap.draw(20):
        prior, other = (part.values for part in check.prior_posterior_gap.expected(case))
        np.testing.assert_allclose(prior, other, rtol=1e-10, atol=1e-10)
        assert equal.test(prior, other, **case.arguments)
        assert not equal.test(prior, other + 0.1 * (1 + np.abs(other)), **case.arguments)


def test_the_way_back_is_asked_for_by_the_round_trip() -> None:
    (back,) = check.maf_to_iaf.properties
    for case in check.maf_to_iaf.draw(20):
        mu, log_sigma = (part.values for part in check.maf_to_iaf.expected(case))
        assert back.test(mu, log_sigma, **case.arguments)
        assert not back.test(mu + 0.01, log_sigma, **case.arguments)
        assert not back.test(mu, log_sigma + 0.01, **case.arguments)


def test_the_flows_that_are_handed_out_are_flows() -> None:
    """f and g undo each other, and their log-determinants are those of their Jacobians."""
    for case in check.prior_posterior_gap.draw(20):
        f, g, z = case.arguments["f"], case.arguments["g"], case.arguments["z"].double()[0, 0]
        for there, back, point in ((f, g, z), (g, f, f(z)[0])):
            value, log_det = there(point)
            jacobian = torch.autograd.functional.jacobian(lambda v, there=there: there(v)[0], point)
            torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
            torch.testing.assert_close(back(value)[0], point)


def test_the_determinants_of_many_dimensions_leave_the_range_of_floats() -> None:
    for name, argument, axis in (("flow_posterior_log_prob", "log_dets", 0), ("iaf_step", "log_sigma", 1)):
        lost = {torch.float32: 0, torch.float64: 0}
        for case in getattr(check, name).draw(20):
            determinant = case.arguments[argument].sum(axis).exp()
            lost[case.dtype] += bool((determinant == 0).any() or determinant.isinf().any())
        assert min(lost.values()) >= 2


def test_every_exercise_of_lecture_06_knows_its_library_function() -> None:
    """The library's functions give the right values, and are refused all the same."""
    flows, priors = pytest.importorskip("dgm_course.flows"), pytest.importorskip("dgm_course.priors")
    vae = pytest.importorskip("dgm_course.vae")

    class Known(flows.Transform):
        def __init__(self, back: Map, there: Map | None = None) -> None:
            super().__init__()
            self.maps = there, back

        def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
            return self.maps[0](z)

        def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
            return self.maps[1](x)

    class Decoder(torch.nn.Module):
        def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
            raise NotImplementedError

    def model(back: Map, mean: Tensor, log_var: Tensor) -> Any:  # noqa: ANN401
        encoder = Given(lambda x: torch.cat([mean, log_var], -1))
        return vae.FlowPosteriorVAE(encoder, Decoder(), mean.shape[-1], Known(back))

    def by_vae(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
        posterior = model(lambda z: (z0[None], -log_dets.sum(0)), mean, log_var)
        return posterior.posterior_log_prob(zk[None], mean)[0]

    def by_flow(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
        volume = log_dets.sum(0) + log_var.sum(1) / 2
        back = Known(lambda z: ((z0 - mean) * torch.exp(-log_var / 2), -volume))
        return flows.Flow(back, z0.shape[1]).log_prob(zk)

    def bound(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        z, log_det = flow(z0)
        log_q = model(lambda v: (z0, -log_det), mean, log_var).posterior_log_prob(z, mean)
        return (likelihood(z) + gaussian_log_prob(z, 0.0, 0.0) - log_q).mean(0)

    def layer(kind: str, shift: Tensor, log_scale: Tensor) -> Any:  # noqa: ANN401
        net = Given(lambda z: torch.stack([shift, log_scale], -1))
        return getattr(flows, kind)(net, log_scale=lambda raw: raw)

    def by_rows(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Pair:
        pairs = [flows.FixedAffine(m, s.exp())(row) for row, m, s in zip(z, mu, log_sigma, strict=True)]
        return tuple(map(torch.stack, zip(*pairs, strict=True)))

    def gap(flow: type) -> Callable[..., Pair]:
        def answer(likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
            log_p = flow(Known(f, g), z.shape[-1]).log_prob(z)
            return likelihood(z) + log_p - log_q(z), likelihood(g(f(z)[0])[0]) + log_p - log_q(z)

        return answer

    answers: dict[str, list[Callable[..., Any]]] = {
        "flow_posterior_log_prob": [by_vae, by_flow],
        "flow_elbo": [bound],
        "iaf_step": [
            lambda z, m, s: layer("InverseAutoregressiveFlow", m, s)(z),
            lambda z, m, s: layer("MaskedAutoregressiveFlow", *flows.iaf_parameters(m, s)).inverse(z),
            by_rows,
        ],
        "maf_to_iaf": [
            flows.iaf_parameters,
            lambda m, s: (layer("MaskedAutoregressiveFlow", m, s).inverse(0 * m)[0], -s),
        ],
        "prior_posterior_gap": [gap(priors.FlowPrior), gap(flows.Flow)],
    }
    for name, functions in answers.items():
        exercise = getattr(check, name)
        for answer in [*functions, exercise.reference]:
            failed(answer, "it is your own work", exercise)
            for case in exercise.draw(20):
                outcome = Outcome(take_out(answer(*case.fresh()), len(exercise.wants)))
                assert examine(exercise, case, outcome) is None, name


def test_the_librarys_alphabet_may_be_used() -> None:
    assert check.flow_elbo.check(elbo_by_library).passed
    assert check.prior_posterior_gap.check(gap_as_asked).passed
