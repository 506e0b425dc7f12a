"""Lecture 06: other right algorithms pass, over hundreds of inputs, whatever form they give the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
)

from dgm_course import check
from dgm_course.bounds import elbo
from dgm_course.gaussian import gaussian_kl, gaussian_log_prob

from .students import expect_right, failed

Pair = tuple[Tensor, Tensor]
Density = Callable[[Tensor], Tensor]
Map = Callable[[Tensor], Pair]


def posterior_by_library(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
    return gaussian_log_prob(z0, mean, log_var) - log_dets.sum(0)


def posterior_by_normal(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1).log_prob(z0) - torch.sum(log_dets, dim=0)


def posterior_by_noise(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
    epsilon = (z0 - mean) / log_var.exp().sqrt()
    volume = 0.5 * log_var.sum(1) + log_dets.sum(0)  # the reparametrisation is a step, too
    return -0.5 * epsilon.square().sum(1) - z0.shape[1] / 2 * math.log(2 * math.pi) - volume


def posterior_by_steps(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
    log_q = -((z0 - mean) ** 2 / log_var.exp() + log_var + math.log(2 * math.pi)).sum(-1) / 2
    for log_det in log_dets:
        log_q = log_q - log_det
    return log_q


def posterior_by_loops(z0: Tensor, zk: Tensor, mean: Tensor, log_var: Tensor, log_dets: Tensor) -> Tensor:
    rows = [MultivariateNormal(m, torch.diag(s.exp())).log_prob(z) for z, m, s in
            zip(z0, mean, log_var, strict=True)]  # fmt: skip
    return torch.stack(rows) + log_dets.neg().T.sum(1)


def elbo_by_library(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    z, log_det = flow(z0)
    log_q = gaussian_log_prob(z0, mean, log_var) - log_det
    return elbo(likelihood(z) + gaussian_log_prob(z, 0.0, 0.0), log_q).mean(0)


def elbo_by_normal(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    z, log_det = flow(z0)
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_q = Normal(mean, (0.5 * log_var).exp()).log_prob(z0).sum(-1) - log_det
    return likelihood(z).mean(0) - (log_q - log_prior).mean(0)


def elbo_no_constants(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    z, log_det = flow(z0)
    squares = ((z0 - mean) ** 2 * torch.exp(-log_var) + log_var - z**2).sum(2)  # 2 pi stands in both
    return torch.mean(likelihood(z) + squares / 2 + log_det, dim=0)


def elbo_by_loops(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    total = z0.new_zeros(len(mean))
    for sample in z0:
        for b, start in enumerate(sample):
            z, log_det = flow(start)
            log_q = gaussian_log_prob(start, mean[b], log_var[b]) - log_det
            total[b] += (likelihood(z) + gaussian_log_prob(z, 0.0, 0.0) - log_q) / len(z0)
    return total


def elbo_by_rows(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    samples, _, dims = z0.shape
    z, log_det = flow(z0.reshape(-1, dims))
    prior = MultivariateNormal(z.new_zeros(dims), torch.eye(dims, dtype=z.dtype))
    log_q = gaussian_log_prob(z0.reshape(-1, dims), mean.repeat(samples, 1), log_var.repeat(samples, 1))
    return (likelihood(z) + prior.log_prob(z) - log_q + log_det).view(samples, -1).sum(0) / samples


def elbo_by_jacobian(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    def one(start: Tensor, m: Tensor, s: Tensor) -> Tensor:
        jacobian = torch.func.jacrev(lambda v: flow(v)[0])(start)
        log_q = Normal(m, torch.exp(s / 2)).log_prob(start).sum() - torch.linalg.slogdet(jacobian).logabsdet
        return likelihood(flow(start)[0]) + gaussian_log_prob(flow(start)[0], 0.0, 0.0) - log_q

    return torch.vmap(torch.vmap(one), in_dims=(0, None, None))(z0, mean, log_var).mean(0)


def elbo_by_correction(likelihood: Density, flow: Map, z0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The closed form of the Gaussians' KL, and what the samples say beside it."""
    z, log_det = flow(z0)
    q = Independent(Normal(mean, torch.exp(log_var / 2)), 1)
    closed = kl_divergence(q, Independent(Normal(0 * mean, 1.0), 1)) - gaussian_kl(mean, log_var)
    sampled = q.log_prob(z0) - log_det + (z.pow(2).sum(-1) + z.shape[-1] * np.log(2 * np.pi)) / 2
    return (likelihood(z) - sampled).mean(0) - closed


def step_by_formula(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Pair:
    return mu + torch.exp(log_sigma) * z, log_sigma.sum(1)


def step_by_distribution(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Pair:
    step = AffineTransform(mu, log_sigma.exp(), event_dim=1)
    moved = step(z)
    return moved, step.log_abs_det_jacobian(z, moved)


def step_by_addcmul(z: Tensor, mu: Tensor, log_sigma: Tensor) -> list[Tensor]:
    sigma = torch.pow(torch.tensor(math.e, dtype=torch.float64), log_sigma.double())
    moved = torch.addcmul(mu.double(), sigma, z.double())
    return [moved.to(z.dtype), torch.einsum("bd->b", sigma.log()).to(z.dtype)]


def step_by_loops(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Pair:
    moved, log_det = torch.empty_like(z), z.new_zeros(len(z))
    for j in range(z.shape[1]):
        sigma = log_sigma[:, j].exp()
        moved[:, j] = sigma * z[:, j] + mu[:, j]
        log_det += torch.log(sigma)
    return moved, log_det


def step_by_jacobian(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Pair:
    return mu + z / torch.exp(-log_sigma), torch.stack([torch.slogdet(s.exp().diag())[1] for s in log_sigma])


def turned_by_formula(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    return -mu_hat / log_sigma_hat.exp(), -log_sigma_hat


def turned_by_sigma(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    sigma = 1 / torch.exp(log_sigma_hat)
    return -sigma * mu_hat, torch.log(sigma)


def turned_by_points(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    """Where the way back sends x = 0, and how fast."""
    start = -mu_hat * torch.exp(-log_sigma_hat)
    slope = torch.func.jvp(lambda x: (x - mu_hat) / log_sigma_hat.exp(), (0 * mu_hat,), (1 + 0 * mu_hat,))[1]
    return start, slope.log()


def turned_by_distribution(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    back = AffineTransform(mu_hat, log_sigma_hat.exp()).inv
    zero = torch.zeros_like(mu_hat)
    return back(zero), back.log_abs_det_jacobian(zero, back(zero))


def turned_by_loops(mu_hat: Tensor, log_sigma_hat: Tensor) -> list[Tensor]:
    mu, log_sigma = mu_hat.clone(), log_sigma_hat.clone()
    for i in range(len(mu)):
        for j in range(len(mu[i])):
            mu[i, j] *= -math.exp(-log_sigma_hat[i, j])
            log_sigma[i, j] *= -1
    return [mu, log_sigma]


def gap_as_asked(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
    e, log_det = f(z)
    prior = log_likelihood(z) + gaussian_log_prob(e, 0.0, 0.0) + log_det - log_q(z)
    return prior, log_likelihood(g(e)[0]) + gaussian_log_prob(e, 0.0, 0.0) - (log_q(z) - log_det)


def gap_through_g(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
    """Every density by the way from e to z."""
    e = f(z)[0]
    again, log_det = g(e)
    base = Normal(torch.zeros_like(e), torch.ones_like(e)).log_prob(e).sum(-1)
    posterior = log_likelihood(again) + base - (log_q(again) + log_det)
    return log_likelihood(z) + base - log_det - log_q(z), posterior


def gap_by_transformed(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> list[Tensor]:
    e, log_det = f(z)
    unit = Independent(Normal(0 * e, 1.0), 1)
    scaled = TransformedDistribution(unit, [AffineTransform(0.0, 1.0, event_dim=1)])
    kl = log_q(z) - log_det - scaled.log_prob(e)
    return [log_likelihood(z) - kl, log_likelihood(g(e)[0]) - kl]


def gap_by_loops(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
    out = z.new_zeros(2, *z.shape[:2])
    for s in range(len(z)):
        for b, row in enumerate(z[s]):
            e, log_det = f(row)
            base = -0.5 * (e @ e + len(e) * math.log(2 * math.pi))
            out[0, s, b] = log_likelihood(row) + base + log_det - log_q(row)
            out[1, s, b] = log_likelihood(g(e)[0]) + base + log_det - log_q(row)
    return out[0], out[1]


def gap_by_jacobian(log_likelihood: Density, log_q: Density, f: Map, g: Map, z: Tensor) -> Pair:
    rows = z.flatten(0, 1)
    jacobian = torch.vmap(torch.func.jacrev(lambda v: f(v)[0]))(rows)
    log_det = torch.linalg.slogdet(jacobian).logabsdet.view(z.shape[:-1])
    base = gaussian_log_prob(f(z)[0], 0.0, 0.0)
    decoded = log_likelihood(g(f(z)[0])[0])
    return log_likelihood(z) + base + log_det - log_q(z), decoded + base - log_q(z) + log_det


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "flow_posterior_log_prob": [
        posterior_by_library, posterior_by_normal, posterior_by_noise, posterior_by_steps,
        posterior_by_loops],
    "flow_elbo": [
        elbo_by_library, elbo_by_normal, elbo_no_constants, elbo_by_loops, elbo_by_rows,
        elbo_by_jacobian, elbo_by_correction],
    "iaf_step": [step_by_formula, step_by_distribution, step_by_addcmul, step_by_loops, step_by_jacobian],
    "maf_to_iaf": [turned_by_formula, turned_by_sigma, turned_by_points, turned_by_distribution,
                   turned_by_loops],
    "prior_posterior_gap": [
        gap_as_asked, gap_through_g, gap_by_transformed, gap_by_loops, gap_by_jacobian],
}  # fmt: skip
ANSWERS = [pytest.param(name, f, id=f.__name__) for name, answers in RIGHT.items() for f in answers]


def changed(answer: Callable[..., Any], change: Callable[[Tensor], object]) -> Callable[..., Any]:
    """The answer with ``change`` applied to each tensor that it gives."""

    def other(*arguments: object) -> object:
        given = answer(*arguments)
        return change(given) if isinstance(given, Tensor) else tuple(change(part) for part in given)

    return other


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
def test_another_right_algorithm_passes(name: str, answer: Callable[..., Any]) -> None:
    expect_right(name, answer)


@pytest.mark.parametrize("seeds", [range(100, 103), pytest.param(range(103, 225), marks=pytest.mark.long)])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes_every_hidden_test(name: str, seeds: range) -> None:
    for seed in seeds:
        for answer in RIGHT[name]:
            verdict = getattr(check, name).check(answer, seed=seed)
            assert verdict.passed, verdict.text


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


@pytest.mark.parametrize("name", ["iaf_step", "maf_to_iaf", "prior_posterior_gap"])
def test_one_part_of_two_is_named(name: str) -> None:
    exercise = getattr(check, name)
    for part in (0, 1):
        verdict = failed(lambda *a, part=part: RIGHT[name][0](*a)[part], "it returns a tuple", exercise)
        assert verdict.claim == f"it returns a tuple ({', '.join(exercise.wants)})" and not verdict.hint
    verdict = failed(lambda *a: [*RIGHT[name][0](*a), 0], "it returns a tuple", exercise)
    assert not verdict.hint


def test_the_gap_alone_is_no_answer() -> None:
    def difference(*arguments: Any) -> Tensor:  # noqa: ANN401
        prior, posterior = gap_as_asked(*arguments)
        return prior - posterior

    failed(difference, "it returns a tuple (flow_prior, flow_posterior)", check.prior_posterior_gap)
