"""Answers that are the course library's own function, under whatever name."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dgm_course import check
from dgm_course.bounds import elbo as library_elbo
from dgm_course.check.judge import examine
from dgm_course.check.outcome import Outcome, take_out
from dgm_course.gaussian import gaussian_kl as library_kl
from dgm_course.gaussian import gaussian_log_prob

from .students import KL, failed, right


def wrapped(mean: Tensor, log_var: Tensor) -> Tensor:
    return 1.0 * library_kl(mean, log_var)


def imports_late(mean: Tensor, log_var: Tensor) -> Tensor:
    module = __import__("dgm_course.gaussian", fromlist=["x"])
    return getattr(module, "gaussian_" + "kl_per_dim")(mean, log_var).sum(-1)


LIBRARY = {
    "the function itself": library_kl,
    "partial": functools.partial(library_kl, other_mean=0.0),
    "wrapped": wrapped,
    "decorated": torch.no_grad()(library_kl),
    "imported late": imports_late,
    "mapped": torch.vmap(library_kl),
    "same code": types.FunctionType(library_kl.__code__, library_kl.__globals__, "mine", (0.0, 0.0)),
    "the reference": KL.reference,
    "the check": lambda m, s: KL.reference(m, s),
    "caught": lambda m, s: [wrapped(m, s), right(m, s)][1],
}


@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_own_function_is_no_answer(name: str) -> None:
    verdict = failed(LIBRARY[name], "it is your own work")
    assert verdict.hint.startswith("Write it yourself")


def test_every_exercise_knows_its_library_function() -> None:
    vae, masked = pytest.importorskip("dgm_course.vae"), pytest.importorskip("dgm_course.nets.masked")
    answers = {
        "elbo": lambda a, b, c: library_elbo(a + b, c),
        "kl_weight": vae.kl_weight,
        "free_bits": lambda x, kl, c: x.mean() - vae.free_bits_kl(kl, c),
        "active_units": lambda m, t=0.01: int(vae.active_units(m, t).sum()),
        "causal_mask": masked.causal_mask,
    }
    for name, answer in answers.items():
        failed(answer, "it is your own work", getattr(check, name))


def test_every_exercise_of_lecture_02_knows_its_library_function() -> None:
    bounds = pytest.importorskip("dgm_course.bounds")
    numerics = pytest.importorskip("dgm_course.numerics")
    answers = {
        "iwae_bound": [bounds.iwae_bound, lambda w: numerics.log_mean_exp(w, 0)],
        "normalized_weights": [bounds.normalized_weights],
        "iwae_gap": [
            lambda w, k: bounds.iwae_gap(bounds.normalized_weights(w).square().sum(0) * len(w) - 1, k),
            lambda w, k: bounds.chi2_from_log_weights(w) / (2 * k),
            lambda w, k: (len(w) / bounds.effective_sample_size(w) - 1) / (2 * k),
        ],
        "snr": [bounds.signal_to_noise],
        "dreg_weights": [lambda w: bounds.dreg_gradient(w.detach(), torch.ones_like(w)[..., None])],
    }
    for name, functions in answers.items():
        for answer in functions:
            failed(answer, "it is your own work", getattr(check, name))


class Given(torch.nn.Module):
    """A network for the library's layers that does what an exercise's network does."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value)


def test_every_exercise_of_lecture_03_knows_its_library_function() -> None:
    flows, reversible = pytest.importorskip("dgm_course.flows"), pytest.importorskip("dgm_course.reversible")
    masked = pytest.importorskip("dgm_course.nets.masked")

    class Known(flows.Transform):
        def __init__(self, *given: Tensor) -> None:
            super().__init__()
            self.given = given

        def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            raise NotImplementedError

        def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            z, jacobian = self.given
            return z, torch.linalg.slogdet(jacobian).logabsdet

    def coupling(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        half = len(weight)
        turned = torch.cat([weight[:, half:], weight[:, :half]], 1)  # the library's order: shifts first
        layer = flows.AffineCoupling(
            torch.arange(2 * half) < half, Given(lambda x1: x1 @ turned), log_scale=lambda raw: raw
        )
        return layer.inverse(x)

    def convolution(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
        layer = flows.InvertibleConv1x1(len(s), lu=False)
        layer.dense.data = lower @ (upper + torch.diag(s))
        return layer.inverse(torch.zeros(len(s), height, width, dtype=s.dtype))[1].detach()

    def block(a: Tensor, b: Tensor) -> torch.nn.Module:
        return reversible.ReversibleBlock(*(Given(lambda v, m=m: torch.tanh(v @ m)) for m in (a, b)))

    def halves(y1: Tensor, y2: Tensor, b: Tensor) -> Tensor:
        mask = torch.arange(2 * len(b)) < len(b)
        layer = flows.AdditiveCoupling(mask, Given(lambda v: torch.tanh(v @ b)))
        return layer.inverse(torch.cat([y1, y2], 1))[0][:, len(b) :]

    def masks(input_degrees: Tensor, hidden_degrees: Tensor) -> tuple[Tensor, Tensor]:
        before = masked.causal_mask(len(input_degrees) + 1)
        return ~before[hidden_degrees][:, input_degrees].T, before[hidden_degrees][:, input_degrees]

    answers = {
        "change_of_variables_log_prob": [lambda z, j: flows.Flow(Known(z, j), z.shape[1]).log_prob(z)],
        "affine_coupling": [coupling],
        "planar_log_det": [
            lambda z, u, w, b: flows.planar(z, u, w, b)[1],
            lambda z, u, w, b: -flows.planar_inverse(flows.planar(z, u, w, b)[0], u, w, b)[1],
        ],
        "made_masks": [masks],
        "lu_log_det": [convolution],
        "revnet_inverse": [
            lambda y1, y2, a, b: block(a, b).inverse(y1, y2),
            lambda y1, y2, a, b: (y1 - torch.tanh(halves(y1, y2, b) @ a), halves(y1, y2, b)),
        ],
    }
    for name, functions in answers.items():
        for answer in functions:
            failed(answer, "it is your own work", getattr(check, name))


def test_every_exercise_of_lecture_04_knows_its_library_function() -> None:
    """The library's functions give the right values, and are refused all the same."""
    dequantization = pytest.importorskip("dgm_course.dequantization")
    discretized = pytest.importorskip("dgm_course.logistic_mixture").discretized_logistic_log_prob
    mixture = pytest.importorskip("dgm_course.logistic_mixture").discretized_logistic_mixture_log_prob
    nats_to_bits = pytest.importorskip("dgm_course.numerics").nats_to_bits_per_dim

    class Drawn(dequantization.Dequantizer):
        def __init__(self, u: Tensor, log_q: Tensor) -> None:
            super().__init__()
            self.drawn = u, log_q

        def rsample(
            self, y: Tensor, num_samples: int = 1, *, generator: torch.Generator | None = None
        ) -> tuple[Tensor, Tensor]:
            return self.drawn

        def log_prob(self, u: Tensor, y: Tensor) -> Tensor:
            raise NotImplementedError

    def even(u: Tensor) -> Drawn:
        return Drawn(u, u.new_zeros(u.shape[:-1]))

    def learned(noise: Callable[..., tuple[Tensor, Tensor]], y: Tensor, epsilon: Tensor) -> Drawn:
        u, log_det = noise(epsilon, y)
        return Drawn(u, gaussian_log_prob(epsilon, 0.0, 0.0) - log_det)

    bound, weighted = dequantization.variational_bound, dequantization.importance_weighted_bound
    log_weights = dequantization.dequantization_log_weights
    answers = {
        "discretized_logistic_prob": [
            lambda y, m, s: discretized(y, m, s.log(), num_levels=int(y.max()) + 2).exp(),
        ],
        "log_prob_with_edges": [
            lambda y, m, s, n: discretized(y, m, s, num_levels=n),
            lambda y, m, s, n: mixture(y, torch.zeros_like(m)[:, None], m[:, None], s[:, None], num_levels=n),
        ],
        "uniform_dequantization_bound": [
            lambda p, y, u: bound(p, even(u), y, num_samples=len(u)),
            lambda p, y, u: torch.stack([weighted(p, even(v[None]), y, num_samples=1) for v in u]).mean(0),
            lambda p, y, u: log_weights(p, even(u), y, num_samples=len(u)).mean(0),
        ],
        "bits_per_dim": [
            lambda v, m, w: dequantization.bits_per_dim(v, m, bin_width=w),
            lambda v, m, w: nats_to_bits(-v, m) - math.log2(w),
        ],
        "variational_dequantization_bound": [
            lambda p, g, y, e: bound(p, learned(g, y, e), y, num_samples=len(e)),
            lambda p, g, y, e: log_weights(p, learned(g, y, e), y, num_samples=len(e)).mean(0),
        ],
        "importance_weighted_dequantization": [
            lambda p, y, u, q: weighted(p, Drawn(u, q), y, num_samples=len(u)),
            lambda p, y, u, q: (
                log_weights(p, Drawn(u, q), y, num_samples=len(u)).logsumexp(0) - math.log(len(u))
            ),
        ],
    }
    for name, functions in answers.items():
        exercise = getattr(check, name)
        for answer in [*functions, exercise.reference]:
            failed(answer, "it is your own work", exercise)
            for case in exercise.draw(20):
                assert examine(exercise, case, Outcome(take_out(answer(*case.fresh())))) is None, name


def test_every_exercise_of_lecture_05_knows_its_library_function() -> None:
    mixtures = pytest.importorskip("dgm_course.mixtures")
    priors, surgery = pytest.importorskip("dgm_course.priors"), pytest.importorskip("dgm_course.surgery")
    flows = pytest.importorskip("dgm_course.flows")
    log_terms = pytest.importorskip("dgm_course.mixtures.differences").log_terms

    def aggregate(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        return priors.AggregatedPosterior(mean, log_var).log_prob(z)

    def aggregate_by_responsibilities(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        chance = mixtures.mixture_responsibilities(z, mean, log_var)[:, 0]
        return gaussian_log_prob(z, mean[0], log_var[0]) - torch.log(chance * len(mean))

    def information_by_responsibilities(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        chances = mixtures.mixture_responsibilities(z, mean, log_var).diagonal(dim1=1, dim2=2)
        return chances.log().mean() + math.log(len(mean))

    def terms(z: Tensor, z_prior: Tensor, mean: Tensor, log_var: Tensor, ll: Tensor) -> tuple[Tensor, ...]:
        log_q, log_p = gaussian_log_prob(z, mean, log_var), gaussian_log_prob(z, 0.0, 0.0)
        parts = surgery.ELBOSurgery(log_q, mixtures.mixture_log_prob(z, mean, log_var), log_p, ll)
        return parts.reconstruction.mean(), parts.mutual_information.mean(), parts.marginal_kl.mean()

    def mog(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
        prior = priors.MixturePrior(len(means), means.shape[1]).double()
        prior.load_state_dict({"means": means, "log_vars": log_vars, "logits": logits})
        return prior.log_prob(z).detach()

    def vamp(z: Tensor, pseudo_inputs: Tensor, encoder: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
        net = Given(lambda u: torch.cat(encoder(u), -1))
        return priors.VampPrior(net, pseudo_inputs, z.shape[1]).log_prob(z)

    class Known(flows.Transform):
        def __init__(self, transform: Any) -> None:  # noqa: ANN401
            super().__init__()
            self.transform = transform

        def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return self.transform(z)

        def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return self.transform.inverse(x)

    answers = {
        "aggregated_posterior_log_prob": [
            mixtures.mixture_log_prob,
            aggregate,
            aggregate_by_responsibilities,
        ],
        "mutual_information": [
            lambda z, m, s: surgery.mutual_information(m, s).mean,
            lambda z, m, s: surgery.index_information(m, s).mean,
            lambda z, m, s: (gaussian_log_prob(z, m, s) - mixtures.mixture_log_prob(z, m, s)).mean(),
            information_by_responsibilities,
        ],
        "elbo_surgery": [
            terms,
            lambda z, zp, m, s, ll: (ll.mean(), surgery.mutual_information(m, s).mean,
                                     surgery.marginal_kl(m, s).mean),
        ],
        "mog_log_prob": [
            mog,
            lambda z, m, s, a: mixtures.mixture_log_prob(z, m, s, torch.log_softmax(a, 0)),
            lambda z, m, s, a: log_terms(z[None], m[None], s[None], a.log_softmax(0)[None]).logsumexp(2)[0],
        ],
        "vamp_prior_log_prob": [vamp, lambda z, u, encoder: mixtures.mixture_log_prob(z, *encoder(u))],
        "flow_prior_log_prob": [
            lambda z, t: priors.FlowPrior(Known(t), z.shape[1]).log_prob(z),
            lambda z, t: flows.Flow(Known(t), z.shape[1]).log_prob(z),
        ],
    }  # fmt: skip
    for name, functions in answers.items():
        for answer in [*functions, getattr(check, name).reference]:
            failed(answer, "it is your own work", getattr(check, name))


def test_the_librarys_alphabet_may_be_used() -> None:
    def answer(x: Tensor, z: Tensor, q_mean: Tensor, q_log_var: Tensor) -> Tensor:
        log_q = gaussian_log_prob(z, q_mean, q_log_var)
        return gaussian_log_prob(z, 0.0, 0.0) + gaussian_log_prob(x, z, 0.0) - log_q

    verdict = check.log_weights.check(answer)
    assert verdict.passed, verdict.text


def test_switching_the_watch_off_is_no_answer() -> None:
    def unwatched(mean: Tensor, log_var: Tensor) -> Tensor:
        sys.setprofile(None)
        return library_kl(mean, log_var)

    failed(unwatched, "it leaves the check alone")
