"""Lecture 05: other right algorithms pass, over hundreds of inputs, whatever form they give the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from dgm_course import check
from dgm_course.gaussian import gaussian_log_prob

from .students import expect_right

Three = tuple[Tensor, Tensor, Tensor]
Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]


def mixture_by_library(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    log_q = gaussian_log_prob(z.unsqueeze(-2), mean, log_var)
    return torch.logsumexp(log_q, dim=-1) - math.log(mean.shape[0])


def mixture_by_same_family(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    posteriors = Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)
    return MixtureSameFamily(Categorical(torch.ones_like(mean[:, 0])), posteriors).log_prob(z)


def mixture_by_multivariate(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    posteriors = MultivariateNormal(mean, torch.diag_embed(log_var.exp()))
    return (posteriors.log_prob(z[:, None]) - math.log(len(mean))).logsumexp(1)


def mixture_by_loops(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    out = torch.zeros(len(z))  # of the session's default type, float64 in the notebook
    for i in range(len(z)):
        logs = []
        for m, s in zip(mean, log_var, strict=True):
            total = 0.0
            for j in range(len(m)):
                total -= 0.5 * (math.log(2 * math.pi) + s[j] + (z[i, j] - m[j]) ** 2 / torch.exp(s[j]))
            logs.append(total)
        largest = max(logs)
        out[i] = largest + torch.log(sum(torch.exp(v - largest) for v in logs) / len(logs))
    return out


def mixture_one_by_one(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    total = torch.full((len(z),), -math.inf)
    for m, s in zip(mean, log_var, strict=True):
        total = torch.logaddexp(total, gaussian_log_prob(z, m, s))
    return total - torch.tensor(len(mean)).log()


def mixture_in_chunks(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    chunks = [table_by_normal(z, m, s).logsumexp(1)
              for m, s in zip(mean.split(2), log_var.split(2), strict=True)]  # fmt: skip
    return torch.stack(chunks, 1).logsumexp(1) - math.log(mean.size(0))


def mixture_by_einsum(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    precision = torch.exp(-log_var)
    squares = torch.einsum("md,nd->mn", z**2, precision) - 2 * torch.einsum("md,nd->mn", z, mean * precision)
    constants = (mean**2 * precision + log_var + math.log(2 * math.pi)).sum(1)
    return torch.logsumexp(-0.5 * (squares + constants), 1) - math.log(len(mean))


def mixture_other_way_round(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    standard = (mean.flip(0)[:, None] - z) / (log_var.flip(0) / 2).exp()[:, None]  # (n, m, d)
    log_q = -(standard**2).flip(-1).sum(-1) / 2 - log_var.flip(0).sum(1, keepdim=True) / 2
    largest = log_q.max(dim=0).values
    return largest + (log_q - largest).exp().mean(0).log() - z.shape[1] / 2 * math.log(2 * math.pi)


def table_by_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return Normal(mean, log_var.exp().sqrt()).log_prob(z.unsqueeze(-2)).sum(-1)


def information_by_diagonal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    log_q = gaussian_log_prob(z.unsqueeze(-2), mean, log_var)
    own = torch.diagonal(log_q, dim1=-2, dim2=-1)
    return (own - torch.logsumexp(log_q, -1) + math.log(len(mean))).mean()


def information_by_softmax(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    log_r = torch.log_softmax(table_by_normal(z, mean, log_var), dim=-1)
    return math.log(len(mean)) + torch.einsum("sii->si", log_r).mean()


def information_by_cross_entropy(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    logits = table_by_normal(z, mean, log_var).flatten(0, 1)
    own = torch.arange(len(mean)).repeat(len(z))
    return math.log(len(mean)) - torch.nn.functional.cross_entropy(logits, own)


def information_by_distributions(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    q = Independent(Normal(mean, (log_var / 2).exp()), 1)
    aggregate = MixtureSameFamily(Categorical(logits=torch.zeros(len(mean), dtype=z.dtype)), q)
    return (q.log_prob(z) - aggregate.log_prob(z)).mean()


def information_by_loops(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    total = torch.zeros(())
    for i in range(len(mean)):
        for sample in z:
            log_q = torch.stack([gaussian_log_prob(sample[i], m, s)
                                 for m, s in zip(mean, log_var, strict=True)])  # fmt: skip
            total = total + log_q[i] - mixture_by_library(sample[i : i + 1], mean, log_var)[0]
    return total / (len(z) * len(mean))


def information_point_by_point(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    rows = [gaussian_log_prob(z[:, i], mean[i], log_var[i]) - mixture_in_chunks(z[:, i], mean, log_var)
            for i in range(len(mean))]  # fmt: skip
    return torch.stack(rows).mean(1).mean()


def surgery_by_library(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
    log_q = gaussian_log_prob(z, mean, log_var)
    log_agg = gaussian_log_prob(z.unsqueeze(-2), mean, log_var).logsumexp(-1) - math.log(len(mean))
    log_prior = gaussian_log_prob(z, 0.0, 0.0)
    return ll.mean(), (log_q - log_agg).mean(), (log_agg - log_prior).mean()


def surgery_by_distributions(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
    q = Independent(Normal(mean, torch.exp(log_var / 2)), 1)
    aggregate = MixtureSameFamily(Categorical(torch.ones(len(mean), dtype=z.dtype)), q)
    marginal = aggregate.log_prob(z) - Normal(0.0, 1.0).log_prob(z).sum(-1)
    return ll.mean(), (q.log_prob(z) - aggregate.log_prob(z)).mean(), marginal.mean()


def surgery_by_subtraction(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
    kl = (gaussian_log_prob(z, mean, log_var) - gaussian_log_prob(z, 0.0, 0.0)).mean()
    information = information_by_softmax(z, mean, log_var)
    return ll.sum() / ll.numel(), information, kl - information


def surgery_without_constants(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
    """Every log-density here lacks the same constant, so that the differences are right."""
    square = (z.unsqueeze(-2) - mean).square() / log_var.exp()
    log_q = -0.5 * (square + log_var).sum(-1)
    log_agg = log_q.logsumexp(-1) - math.log(len(mean))
    own, log_prior = log_q.diagonal(dim1=-2, dim2=-1), -0.5 * z.square().sum(-1)
    return ll.mean(), (own - log_agg).mean(), (log_agg - log_prior).mean()


def surgery_by_loops(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> list[Tensor]:
    sums = torch.zeros(3)
    for s in range(z.shape[0]):
        for i in range(z.shape[1]):
            log_agg = mixture_one_by_one(z[s, i][None], mean, log_var)[0]
            sums[0] += ll[s, i]
            sums[1] += gaussian_log_prob(z[s, i], mean[i], log_var[i]) - log_agg
            sums[2] += log_agg - gaussian_log_prob(z[s, i], 0.0, 0.0)
    return list(sums / ll.numel())


def mog_by_library(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    log_p = gaussian_log_prob(z.unsqueeze(-2), means, log_vars)
    return torch.logsumexp(torch.log_softmax(logits, -1) + log_p, -1)


def mog_by_same_family(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    components = Independent(Normal(means, (0.5 * log_vars).exp()), 1)
    return MixtureSameFamily(Categorical(logits=logits), components).log_prob(z)


def mog_by_two_sums(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    log_p = table_by_normal(z, means, log_vars)
    return (log_p + logits).logsumexp(1) - logits.logsumexp(0)


def mog_by_log_of_softmax(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    weights = torch.softmax(logits, 0)
    log_p = table_by_normal(z, means, log_vars)
    largest = log_p.amax(1, keepdim=True)
    return (torch.exp(log_p - largest) @ weights).log() + largest.squeeze(1)


def mog_by_loops(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    out = torch.full((len(z),), -math.inf)
    log_weights = logits - torch.logsumexp(logits, 0)
    for k in range(len(logits)):
        log_p = torch.zeros(len(z))
        for j in range(z.shape[1]):
            log_p += Normal(means[k, j], (log_vars[k, j] / 2).exp()).log_prob(z[:, j])
        out = torch.logaddexp(out, log_weights[k] + log_p)
    return out


def vamp_by_library(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
    mean, log_var = encoder(pseudo_inputs)
    return gaussian_log_prob(z.unsqueeze(-2), mean, log_var).logsumexp(-1) - math.log(len(pseudo_inputs))


def vamp(mixture: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Encoder], Tensor]:
    """The VampPrior by one of the mixtures above."""

    def answer(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
        return mixture(z, *encoder(pseudo_inputs))

    answer.__name__ = mixture.__name__.replace("mixture", "vamp")
    return answer


def vamp_by_largest_detached(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
    log_q = table_by_normal(z, *encoder(pseudo_inputs))
    largest = log_q.detach().amax(1, keepdim=True)  # a shift changes nothing: its gradient may be left out
    return (log_q - largest).exp().mean(1).log() + largest[:, 0]


def vamp_one_by_one(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
    logs = [gaussian_log_prob(z, *encoder(u)) for u in pseudo_inputs]
    return torch.stack(logs, 1).logsumexp(1) - math.log(len(logs))


def vamp_into_zeros(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
    out = torch.zeros(len(z))
    for i, row in enumerate(z):
        out[i] = vamp_by_library(row[None], pseudo_inputs, encoder)[0]
    return out


def vamp_by_vmap(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
    mean, log_var = torch.vmap(encoder)(pseudo_inputs)
    return mixture_in_chunks(z, mean, log_var)


def flow_by_library(z: Tensor, transform: Any) -> Tensor:  # noqa: ANN401
    noise, log_det = transform.inverse(z)
    return gaussian_log_prob(noise, 0.0, 0.0) + log_det


def flow_by_normal(z: Tensor, transform: Any) -> Tensor:  # noqa: ANN401
    noise, log_det = transform.inverse(z)
    return Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1).log_prob(noise) + log_det


def flow_by_the_way_there(z: Tensor, transform: Any) -> Tensor:  # noqa: ANN401
    noise = transform.inverse(z)[0]
    return -0.5 * (noise**2 + math.log(2 * math.pi)).sum(1) - transform.forward(noise)[1]


def flow_by_jacobian(z: Tensor, transform: Any) -> Tensor:  # noqa: ANN401
    jacobian = torch.vmap(torch.func.jacrev(lambda row: transform.inverse(row)[0]))(z)
    return Normal(0.0, 1.0).log_prob(transform.inverse(z)[0]).sum(-1) + torch.slogdet(jacobian).logabsdet


def flow_by_loops(z: Tensor, transform: Any) -> Tensor:  # noqa: ANN401
    out = torch.zeros(len(z))
    for i, row in enumerate(z):
        noise, log_det = transform.inverse(row)
        out[i] = log_det + sum(-0.5 * e * e - 0.5 * math.log(2 * math.pi) for e in noise)
    return out


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "aggregated_posterior_log_prob": [
        mixture_by_library, mixture_by_same_family, mixture_by_multivariate, mixture_by_loops,
        mixture_one_by_one, mixture_in_chunks, mixture_by_einsum, mixture_other_way_round],
    "mutual_information": [
        information_by_diagonal, information_by_softmax, information_by_cross_entropy,
        information_by_distributions, information_by_loops, information_point_by_point],
    "elbo_surgery": [surgery_by_library, surgery_by_distributions, surgery_by_subtraction,
                     surgery_without_constants, surgery_by_loops],
    "mog_log_prob": [mog_by_library, mog_by_same_family, mog_by_two_sums, mog_by_log_of_softmax,
                     mog_by_loops],
    "vamp_prior_log_prob": [
        vamp_by_library, vamp_by_largest_detached, vamp_one_by_one, vamp_into_zeros, vamp_by_vmap,
        vamp(mixture_by_same_family), vamp(mixture_by_loops), vamp(mixture_in_chunks),
        vamp(mixture_by_einsum), vamp(mixture_other_way_round)],
    "flow_prior_log_prob": [flow_by_library, flow_by_normal, flow_by_the_way_there, flow_by_jacobian,
                            flow_by_loops],
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


@pytest.mark.parametrize("name", [name for name in RIGHT if name != "vamp_prior_log_prob"])
def test_arrays_and_lists_pass_with_a_note(name: str) -> None:
    plain = "plain number" if name in ("mutual_information", "elbo_surgery") else "list"
    for change, words in ((Tensor.numpy, "NumPy array"), (Tensor.tolist, plain)):
        verdict = getattr(check, name).check(changed(RIGHT[name][0], change))
        assert verdict.passed and words in verdict.note, verdict.text


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_in_another_dtype_fails_for_its_dtype(name: str) -> None:
    verdict = getattr(check, name).check(changed(RIGHT[name][0], Tensor.float))
    assert verdict.claim == "its dtype follows the input's", verdict.text
    assert not verdict.hint


@pytest.mark.parametrize("name", RIGHT)
def test_a_small_error_is_found(name: str) -> None:
    for factor in (1 + 1e-6, 1 - 1e-6):
        verdict = getattr(check, name).check(changed(RIGHT[name][0], lambda v, f=factor: f * v))
        assert verdict.status == "FAIL" and not verdict.hint, verdict.text
