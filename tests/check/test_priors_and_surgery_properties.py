"""Lecture 05: what its checks ask beyond values: parts of a tuple, gradients, an identity, a limit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgm_course import check

from .students import failed
from .test_priors_and_surgery_answers import mixture_by_library as aggregate
from .test_priors_and_surgery_answers import vamp
from .test_priors_and_surgery_mistakes import NOT_FINITE, Encoder, Three, surgery


def test_one_part_of_three_is_named() -> None:
    for part in range(3):
        verdict = failed(lambda *g, part=part: surgery()(*g)[part], "it returns a tuple", check.elbo_surgery)
        assert verdict.claim == "it returns a tuple (reconstruction, mutual_information, marginal_kl)"
        assert not verdict.hint


def test_a_wrong_gradient_of_right_values_fails_without_a_cut() -> None:
    def half(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        value = aggregate(z, mean, log_var)
        return (value + value.detach()) / 2

    verdict = failed(vamp(half), "and its gradients", check.vamp_prior_log_prob)
    assert not verdict.hint and verdict.exercise == "vamp_prior_log_prob"


def test_the_identity_of_the_surgery_is_asked_to_rounding() -> None:
    (identity,) = check.elbo_surgery.properties
    for case in check.elbo_surgery.draw(20):
        terms_of = [part.values for part in check.elbo_surgery.expected(case)]
        size = 1 + max(abs(float(t)) for t in terms_of)
        assert identity.test(*terms_of, **case.arguments)
        if size < 100:  # not where the densities leave the range of floats
            for k, off in ((0, 1e-5), (1, 1e-5), (2, -1e-5)):
                other = [t + off * size * (i == k) for i, t in enumerate(terms_of)]
                assert not identity.test(*other, **case.arguments)


def test_samples_of_the_prior_are_not_needed() -> None:
    def answer(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
        return surgery()(z, math.nan * z_prior, mean, log_var, ll)

    assert check.elbo_surgery.check(answer).passed


def test_more_than_log_n_is_named() -> None:
    (cap,) = check.mutual_information.properties
    given = check.mutual_information.draw(20)[3].arguments
    assert "at most log n" in cap.text and len(given["mean"]) == 2
    assert cap.test(math.log(2), **given) and not cap.test(math.log(2) + 1e-3, **given)


def test_a_gradient_that_is_nan_or_cannot_be_taken_is_a_verdict() -> None:
    def infinite(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
        return aggregate(z, *encoder(pseudo_inputs)) + 0 * (0 * pseudo_inputs).sum().sqrt()

    def broken(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
        one = torch.exp(0 * pseudo_inputs.sum())
        value = one * aggregate(z, *encoder(pseudo_inputs))
        one.mul_(1)
        return value

    verdict = failed(infinite, NOT_FINITE, check.vamp_prior_log_prob)
    assert verdict.gap.startswith("gradient in pseudo_inputs: at [0, 0]")
    verdict = failed(broken, "it runs without an error", check.vamp_prior_log_prob)
    assert "modified by an inplace operation" in verdict.gap
