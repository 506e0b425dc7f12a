"""Lecture 05: likely mistakes are recognised however they are written, and shown on an input that tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course import check
from dgm_course.gaussian import gaussian_kl, gaussian_log_prob

from .students import expect_hint, failed
from .test_priors_and_surgery_answers import RIGHT, changed, vamp
from .test_priors_and_surgery_answers import mixture_by_library as aggregate
from .test_priors_and_surgery_answers import table_by_normal as table

Three = tuple[Tensor, Tensor, Tensor]
Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]
Table = Callable[[Tensor, Tensor, Tensor], Tensor]


def std(log_var: Tensor) -> Tensor:
    return torch.exp(log_var / 2)


def terms(z: Tensor, mean: Tensor, log_var: Tensor, scale: Callable[[Tensor], Tensor] = std) -> Tensor:
    """Each dimension of every z under every Gaussian: (..., n, d)."""
    return Normal(mean, scale(log_var)).log_prob(z[..., None, :])


def mixed(log_p: Tensor) -> Tensor:
    return log_p.logsumexp(-1) - math.log(log_p.size(-1))


def aggregate_of_columns(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    columns = [MixtureSameFamily(Categorical(torch.ones_like(m)), Normal(m, std(s))).log_prob(x)
               for x, m, s in zip(z.unbind(-1), mean.T, log_var.T, strict=True)]  # fmt: skip
    return sum(columns)


def aggregate_by_loops(turn: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Table:
    def answer(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        total = torch.zeros_like(z[:, 0])
        for m, s in zip(mean, log_var, strict=True):
            total += turn(gaussian_log_prob(z, m, s)) / len(mean)
        return back(total)

    return answer


def without_constant(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    square = (z.unsqueeze(-2) - mean) ** 2 / log_var.exp()
    return mixed(-0.5 * (square + log_var).sum(-1))


def information(other: Table, own: Table = gaussian_log_prob) -> Table:
    """The own log-density of each z less another one of the mixture."""
    return lambda z, m, s: (own(z, m, s) - other(z, m, s)).mean()


def information_with_all_posteriors(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    log_q = table(z, mean, log_var)
    return (log_q - mixed(log_q).unsqueeze(-1)).mean()


def surgery(
    where: str = "z", other: Table = aggregate, prior: Callable[[Tensor], Tensor] | None = None
) -> Callable[..., Three]:
    """Surgery with the marginal KL at ``where``, by another aggregate or another prior."""

    def answer(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
        log_q = gaussian_log_prob(z, mean, log_var)
        at = z_prior if where == "z_prior" else z
        log_p = gaussian_log_prob(at, 0.0, 0.0) if prior is None else prior(at)
        marginal = (other(at, mean, log_var) - log_p).mean()
        return ll.mean(), (log_q - other(z, mean, log_var)).mean(), marginal

    return answer


def arranged(change: Callable[[Tensor, Tensor, Tensor, Tensor], Three]) -> Callable[..., Three]:
    """What a student makes of the four log-densities, each (S, n): ll, log q, log q_agg and log p."""

    def answer(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
        log_q = gaussian_log_prob(z, mean, log_var)
        parts = change(ll, log_q, aggregate(z, mean, log_var), gaussian_log_prob(z, 0.0, 0.0))
        return tuple(part.mean() for part in parts)

    return answer


def surgery_in_closed_form(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> Three:
    inside = (gaussian_log_prob(z, mean, log_var) - aggregate(z, mean, log_var)).mean()
    return ll.mean(), inside, gaussian_kl(mean, log_var).mean() - inside


def mog(log_weights: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    return lambda z, m, s, a: torch.logsumexp(table(z, m, s) + log_weights(a), dim=1)


def mog_of_probs(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    components = Independent(Normal(means, std(log_vars)), 1)
    return MixtureSameFamily(Categorical(logits), components).log_prob(z)


def mog_weighted_in_each_dimension(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    log_p = terms(z, means, log_vars) + logits.log_softmax(0).unsqueeze(-1)
    return log_p.sum(2).logsumexp(1)


def vamp_without_grad(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
    with torch.no_grad():
        mean, log_var = encoder(pseudo_inputs)
    return aggregate(z, mean, log_var)


def vamp_of_data(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
    return aggregate(z, *encoder(pseudo_inputs.data))


@torch.no_grad()
def vamp_decorated(z: Tensor, pseudo_inputs: Tensor, encoder: Encoder) -> Tensor:
    return aggregate(z, *encoder(pseudo_inputs))


def base(noise: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(noise).sum(-1)


def flow(use: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    """What a student makes of z and of what the inverse gives."""
    return lambda z, transform: use(z, *transform.inverse(z))


def flow_forward(z: Tensor, transform: Any) -> Tensor:  # noqa: ANN401
    noise, log_det = transform(z)
    return base(noise) + log_det


AGG, INFO, SURGERY = "aggregated_posterior_log_prob", "mutual_information", "elbo_surgery"
MOG, VAMP, FLOW = "mog_log_prob", "vamp_prior_log_prob", "flow_prior_log_prob"
NOT_FINITE = "it is finite for every finite input"

ITSELF, AVERAGED = "is that one, too", "expected 1.099, got 293.4"
SAMPLES, GRADIENT = "is the ELBO at these very samples", "gradient in pseudo_inputs: at"
SCALE = "ValueError: Expected parameter scale"

#: What students wrote, the misconception that it is, and what the verdict has to show.
WRITTEN: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "columns": (AGG, "per_dimension", aggregate_of_columns, "nowhere denser than its densest"),
    "columns, n once": (AGG, "per_dimension_n_once", lambda z, m, s: (
        terms(z, m, s).logsumexp(-2).sum(1) - math.log(len(m))), ITSELF),
    "no average": (AGG, "no_n", lambda z, m, s: table(z, m, s).logsumexp(1), ITSELF),
    "loops of logs": (AGG, "mean_of_logs", aggregate_by_loops(torch.clone, torch.clone),
                      "expected -6073, got -8116"),
    "loops of densities": (AGG, "underflow", aggregate_by_loops(torch.exp, torch.log), "got -inf"),
    "exp(log_var) as scale": (AGG, "log_std", lambda z, m, s: mixed(terms(z, m, s, torch.exp).sum(-1)),
                              "expected -2.201, got -3.533"),
    "log_var as scale": (AGG, "scale_of_distribution",
                         lambda z, m, s: mixed(terms(z, m, s, lambda v: v).sum(-1)), SCALE),
    "root of log_var": (AGG, "variance_of_distribution",
                        lambda z, m, s: mixed(terms(z, m, s, torch.sqrt).sum(-1)), SCALE),
    "no constant": (AGG, "no_constant", without_constant, "expected -2.201, got -0.3635"),
    "averaged": (AGG, "one_gaussian", lambda z, m, s: gaussian_log_prob(z, m.mean(0), s.mean(0)),
                 "nowhere denser"),
    "own row": (AGG, "paired", gaussian_log_prob, "must match the size"),
    "log of an int": (AGG, "log_of_int", lambda z, m, s: (
        torch.logsumexp(table(z, m, s), 1) - torch.log(m.shape[0])), "must be Tensor, not int"),
    "sum of posteriors": (INFO, "no_n", information(lambda *g: table(*g).logsumexp(-1)), "about x: 0 nats"),
    "all posteriors": (INFO, "all_posteriors", information_with_all_posteriors, "expected 1.099, got -597"),
    "aggregate for own": (INFO, "itself", information(aggregate, aggregate), "expected 1.099, got 0 "),
    "product": (INFO, "per_dimension", information(aggregate_of_columns), "expected 1.099, got 1.247"),
    "densities": (INFO, "underflow_of_aggregate",
                  information(lambda *g: table(*g).exp().mean(-1).log()), NOT_FINITE),
    "logs averaged": (INFO, "mean_of_logs", information(lambda *g: table(*g).mean(-1)), "got 598.1"),
    "sum over data": (INFO, "sum_over_data", lambda z, m, s: sum(
        (gaussian_log_prob(z[:, i], m[i], s[i]) - aggregate(z[:, i], m, s)).mean() for i in range(len(m))),
        "expected 1.099, got 3.296"),
    "moments": (INFO, "one_gaussian",
                information(lambda z, m, s: gaussian_log_prob(z, m.mean(0), s.mean(0))), AVERAGED),
    "the prior": (INFO, "whole_kl", information(lambda z, m, s: gaussian_log_prob(z, 0.0, 0.0)),
                  "cannot be mistaken for another"),
    "other sign": (INFO, "negative", information(gaussian_log_prob, aggregate), "expected 1.099, got -1.099"),
    "standard deviations": (INFO, "log_std", lambda z, m, s: information(aggregate)(z, m, 2 * s), "expected"),
    "prior's samples": (SURGERY, "wrong_samples", surgery("z_prior"), SAMPLES),
    "prior's samples, turned": (SURGERY, "reverse_kl", lambda *g: (
        *surgery()(*g)[:2], -surgery("z_prior")(*g)[2]), SAMPLES),
    "prior in both": (SURGERY, "prior_in_reconstruction",
                      arranged(lambda ll, q, a, p: (ll + p, q - a, a - p)), "expected -2.333, got -5.296"),
    "prior moved": (SURGERY, "prior_moved", arranged(lambda ll, q, a, p: (ll + p, q - a, a)),
                    "expected -2.333, got -5.296"),
    "information twice": (SURGERY, "own_for_aggregate",
                          arranged(lambda ll, q, a, p: (ll, q - a, q - p)), SAMPLES),
    "order": (SURGERY, "swapped", arranged(lambda ll, q, a, p: (ll, a - p, q - a)), "got 1.433"),
    "signs": (SURGERY, "both_negative", arranged(lambda ll, q, a, p: (ll, a - q, p - a)), SAMPLES),
    "loss": (SURGERY, "loss", arranged(lambda ll, q, a, p: (-ll, q - a, a - p)), "got 2.333"),
    "elbo first": (SURGERY, "elbo_first", arranged(lambda ll, q, a, p: (ll + p - q, q - a, a - p)), SAMPLES),
    "closed form": (SURGERY, "closed_marginal", surgery_in_closed_form, SAMPLES),
    "no n at all": (SURGERY, "no_n", surgery(other=lambda *g: table(*g).logsumexp(-1)), "got -1.099"),
    "columns in surgery": (SURGERY, "per_dimension", surgery(other=aggregate_of_columns), "information"),
    "logs in surgery": (SURGERY, "mean_of_logs", surgery(other=lambda *g: table(*g).mean(-1)),
                        "expected 0.3606, got 0.6065"),
    "densities in surgery": (SURGERY, "underflow",
                             surgery(other=lambda *g: table(*g).exp().mean(-1).log()), NOT_FINITE),
    "prior's constant": (SURGERY, "prior_without_constant",
                         surgery(prior=lambda z: -0.5 * z.square().sum(-1)), "expected 0, got -1.838"),
    "raw logits": (MOG, "not_normalised", mog(lambda a: a), "whatever its logit"),
    "weights not logged": (MOG, "not_logged", mog(lambda a: a.softmax(0)), "expected -2.201, got -1.201"),
    "twice": (MOG, "softmax_twice", mog(lambda a: a.softmax(0).log_softmax(0)), "log-density of each z"),
    "counted d times": (MOG, "inside_the_sum", mog_weighted_in_each_dimension, "expected -2.201, got -2.836"),
    "probs": (MOG, "probs_of_distribution", mog_of_probs, "ValueError: Expected parameter probs"),
    "exp of logits": (MOG, "overflow", mog(lambda a: torch.log(a.exp() / a.exp().sum())), NOT_FINITE),
    "equal weights": (MOG, "ignored", lambda z, m, s, a: aggregate(z, m, s), "log-density of each z"),
    "on top": (MOG, "count_on_top", lambda z, m, s, a: mixed(table(z, m, s) + a.log_softmax(0)),
               "whatever the logits"),
    "densities of components": (MOG, "underflow", lambda z, m, s, a: (
        a.softmax(0) * table(z, m, s).exp()).sum(1).log(), "got -inf"),
    "weighted logs": (MOG, "mean_of_logs", lambda z, m, s, a: (a.softmax(0) * table(z, m, s)).sum(1),
                      "expected -4913, got -6623"),
    "no_grad": (VAMP, "cut", vamp_without_grad, GRADIENT),
    "data": (VAMP, "cut", vamp_of_data, GRADIENT),
    "decorated": (VAMP, "all_cut", vamp_decorated, "gradient in z"),
    "NumPy": (VAMP, "all_cut", vamp(lambda *g: aggregate(*g).detach().numpy()), "gradient in z"),
    "list": (VAMP, "all_cut", vamp(lambda *g: aggregate(*g).tolist()), "gradient in z"),
    "z detached": (VAMP, "z_cut", vamp(lambda z, m, s: aggregate(z.detach(), m, s)), "reaches z"),
    "means detached": (VAMP, "mean_cut", vamp(lambda z, m, s: aggregate(z, m.detach(), s)), GRADIENT),
    "widths detached": (VAMP, "log_var_cut", vamp(lambda z, m, s: aggregate(z, m, s.detach())), GRADIENT),
    "z encoded": (VAMP, "encoder_at_z", lambda z, u, encoder: aggregate(z, *encoder(z)),
                  "shapes cannot be multiplied"),
    "averaged posteriors": (VAMP, "one_gaussian", vamp(
        lambda z, m, s: gaussian_log_prob(z, m.mean(0), s.mean(0))), "nowhere denser"),
    "averaged inputs": (VAMP, "mean_input", lambda z, u, encoder: gaussian_log_prob(z, *encoder(u.mean(0))),
                        "nowhere denser"),
    "K missing": (VAMP, "no_count", vamp(lambda *g: table(*g).logsumexp(1)), "of that one"),
    "columns of posteriors": (VAMP, "per_dimension", vamp(aggregate_of_columns), "nowhere denser"),
    "sum for mean": (VAMP, "sum_of_logs", vamp(lambda *g: table(*g).sum(1)), "of that one"),
    "root of the output": (VAMP, "scale_of_distribution", vamp(
        lambda z, m, s: mixed(terms(z, m, s, torch.sqrt).sum(-1))), SCALE),
    "sign of the volume": (FLOW, "minus", flow(lambda z, u, d: base(u) - d), "the base is spread out"),
    "forward": (FLOW, "forward", flow_forward, "only shifts"),
    "volume at z": (FLOW, "forward_log_det_minus", lambda z, t: base(t.inverse(z)[0]) - t(z)[1],
                    "log-density of each z"),
    "base at z": (FLOW, "base_at_z", flow(lambda z, u, d: base(z) + d), "only shifts"),
    "no sum": (FLOW, "per_dimension", flow(lambda z, u, d: Normal(0.0, 1.0).log_prob(u) + d.unsqueeze(-1)),
               "of shape (2,), got a tensor of shape"),
    "no sum, no axis": (FLOW, "per_dimension_broadcast", flow(
        lambda z, u, d: Normal(0.0, 1.0).log_prob(u) + d), "must match the size"),
    "no volume": (FLOW, "no_log_det", flow(lambda z, u, d: base(u)), "the base is spread out"),
    "pair to Normal": (FLOW, "pair_to_distribution", lambda z, t: base(t.inverse(z)), "must be a Tensor"),
    "pair to the library": (FLOW, "pair_to_gaussian", lambda z, t: gaussian_log_prob(t.inverse(z), 0, 0),
                            "'tuple' object has no attribute"),
    "constant": (FLOW, "no_constant", flow(lambda z, u, d: d - u.square().sum(1) / 2), "the base itself"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_likely_mistake_is_recognised_however_it_is_written(name: str) -> None:
    expect_hint(*WRITTEN[name])


def test_an_unknown_mistake_earns_no_hint() -> None:
    unknown: dict[str, Callable[..., Any]] = {
        AGG: lambda z, m, s: aggregate(z, 3 * m, s),
        INFO: lambda z, m, s: information(aggregate)(z, 3 * m, s),
        SURGERY: arranged(lambda ll, q, a, p: (3 * ll, q - a, a - p)),
        MOG: mog(lambda a: (3 * a).log_softmax(0)),
        VAMP: lambda z, u, encoder: aggregate(z, *encoder(3 * u)),
        FLOW: flow(lambda z, u, d: base(3 * u) + d),
    }
    for name, answer in unknown.items():
        assert not failed(answer, "", getattr(check, name)).hint, name


@pytest.mark.parametrize("name", RIGHT)
def test_a_constant_answer_fails(name: str) -> None:
    exercise = getattr(check, name)
    for change in (torch.zeros_like, torch.ones_like, lambda part: torch.full_like(part, -3)):
        assert exercise.check(changed(RIGHT[name][0], change)).status == "FAIL"
    for value in (0.0, torch.zeros(2), (torch.zeros(()), torch.zeros(()), torch.zeros(())), True):
        assert exercise.check(lambda *_, value=value: value).status == "FAIL"


@pytest.mark.parametrize("name", RIGHT)
def test_an_input_that_is_changed_in_place_is_named(name: str) -> None:
    def changes(first: Tensor, *others: object) -> object:
        given = RIGHT[name][0](first.clone(), *others)
        first += 1
        return given

    verdict = failed(changes, "it leaves its inputs as they were", getattr(check, name))
    assert "z changed in place" in verdict.gap and not verdict.hint
