"""The terms of the ELBO, written with torch.distributions; stacks, held-out points, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from small_posteriors import CLOSE, F64, by_hand, draws, laplace, mixture, normal, posteriors, seeded, stacks
from torch import Tensor
from torch.distributions import Laplace

from dgm_course.nets import MLP
from dgm_course.priors import MixturePrior
from dgm_course.surgery import (
    ELBOSurgery,
    Estimate,
    elbo_surgery,
    elbo_surgery_per_dim,
    index_information,
    marginal_kl,
    mutual_information,
    vae_surgery,
)
from dgm_course.vae import VAE, BernoulliDecoder

# the terms --------------------------------------------------------------------------------------------------


@stacks
@pytest.mark.parametrize("size", [(4, 6, 2), (1, 5, 3), (3, 3, 3), (4, 1, 2)], ids=str)
def test_every_term_written_with_torch_distributions(
    stack: tuple[int, ...], size: tuple[int, int, int]
) -> None:
    """``size`` is (S, n, d); at 3 = 3 = 3 = E no shape shows a mix-up."""
    num_samples, n, d = size
    mean, log_var = posteriors(*stack, n=n, d=d)
    terms = elbo_surgery(
        mean, log_var, log_prior=laplace, log_likelihood=lambda z: z.sin().sum(-1),
        num_samples=num_samples, generator=seeded(),
    )  # fmt: skip
    z = draws(mean, log_var, num_samples)
    log_q, log_aggregate = by_hand(mean, log_var, z)
    expected = {
        "log_q": log_q,
        "log_aggregate": log_aggregate,
        "log_prior": laplace(z),
        "log_likelihood": z.sin().sum(-1),
        "kl": log_q - laplace(z),
        "mutual_information": log_q - log_aggregate,
        "marginal_kl": log_aggregate - laplace(z),
        "reconstruction": z.sin().sum(-1),
        "elbo": z.sin().sum(-1) + laplace(z) - log_q,
    }
    for name, value in expected.items():
        assert getattr(terms, name).shape == (*stack, num_samples, n)
        torch.testing.assert_close(getattr(terms, name), value, **CLOSE)


@stacks
def test_the_identity_holds_at_every_sample(stack: tuple[int, ...]) -> None:
    mean, log_var = posteriors(*stack, n=7)
    terms = elbo_surgery(mean, log_var, num_samples=5, generator=seeded())
    torch.testing.assert_close(terms.kl, terms.mutual_information + terms.marginal_kl, **CLOSE)
    assert (terms.mutual_information <= math.log(7) + 1e-12).all()
    standard = normal(torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64))
    torch.testing.assert_close(terms.log_prior, standard.log_prob(draws(mean, log_var, 5)), **CLOSE)


def test_gradients_flow_to_the_posteriors_and_to_the_prior() -> None:
    """Of a random combination of all terms, against autograd through ``torch.distributions``."""
    parts = [part.requires_grad_() for part in posteriors(3, n=4)]
    shift = torch.tensor([0.3, -0.2], dtype=F64, requires_grad=True)
    weights = torch.randn(4, 3, 5, 4, dtype=F64, generator=seeded(9))
    terms = elbo_surgery(
        *parts, log_prior=lambda z: laplace(z - shift), log_likelihood=lambda z: z.sin().sum(-1),
        num_samples=5, generator=seeded(),
    )  # fmt: skip
    names = ("kl", "mutual_information", "marginal_kl", "elbo")
    found = sum((w * getattr(terms, name)).sum() for w, name in zip(weights, names, strict=True))
    z = draws(*parts, 5)
    (log_q, log_aggregate), log_p = by_hand(*parts, z), laplace(z - shift)
    by_name = (log_q - log_p, log_q - log_aggregate, log_aggregate - log_p, z.sin().sum(-1) + log_p - log_q)
    expected = sum((w * value).sum() for w, value in zip(weights, by_name, strict=True))
    pairs = (torch.autograd.grad(value, [*parts, shift]) for value in (found, expected))
    for mine, other in zip(*pairs, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", [mutual_information, index_information, marginal_kl])
def test_gradients_stay_finite_where_posteriors_are_far_apart(form: Callable[..., Estimate]) -> None:
    """Probabilities of the other indices underflow to 0 there."""
    mean = torch.tensor([[-40.0], [0.0], [60.0]], dtype=F64, requires_grad=True)
    log_var = torch.zeros(3, 1, dtype=F64, requires_grad=True)
    estimate = form(mean, log_var, generator=seeded())
    for gradient in torch.autograd.grad(estimate.mean, [mean, log_var]):
        assert gradient.isfinite().all()


# each dimension by itself -----------------------------------------------------------------------------------


@stacks
def test_dimensions_are_the_surgery_of_each_column(stack: tuple[int, ...]) -> None:
    """At the same samples, with a prior of another scale in each dimension."""
    mean, log_var = posteriors(*stack, n=5, d=3)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=F64)[:, None, None]  # (d, 1, 1)

    def prior(z: Tensor) -> Tensor:  # ([E,] d, S, n, 1)
        assert z.shape == (*stack, 3, 4, 5, 1)
        return Laplace(0.0, scale).log_prob(z.squeeze(-1))

    terms = elbo_surgery_per_dim(mean, log_var, log_prior=prior, num_samples=4, generator=seeded())
    columns = [part.mT.unsqueeze(-1).reshape(-1, 5, 1) for part in (mean, log_var)]  # (E d, n, 1)
    z = draws(*columns, 4)  # (E d, S, n, 1)
    for row, (column, values) in enumerate(zip(zip(*columns, strict=True), z, strict=True)):
        log_q, log_aggregate = by_hand(*column, values)  # (S, n)
        log_p = Laplace(0.0, scale[row % 3]).log_prob(values.squeeze(-1))
        e, j = divmod(row, 3)
        at = (e, j) if stack else (j,)
        torch.testing.assert_close(terms.kl[at], log_q - log_p, **CLOSE)
        torch.testing.assert_close(terms.mutual_information[at], log_q - log_aggregate, **CLOSE)
        torch.testing.assert_close(terms.marginal_kl[at], log_aggregate - log_p, **CLOSE)
    assert terms.kl.shape == (*stack, 3, 4, 5)
    torch.testing.assert_close(terms.kl, terms.mutual_information + terms.marginal_kl, **CLOSE)


def test_the_kl_of_the_dimensions_adds_up_and_one_dimension_is_the_whole() -> None:
    """KL: 5 standard errors of the sums' difference; d = 1: sample by sample."""
    mean, log_var = posteriors(n=5, d=3)
    each = Estimate.of(elbo_surgery_per_dim(mean, log_var, num_samples=4000, generator=seeded(5)).kl)
    exact = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean(0)  # (d,)
    assert ((each.mean - exact).abs() < 5 * each.standard_error).all()
    columns = mean[:, :1], log_var[:, :1]
    alone = elbo_surgery_per_dim(*columns, num_samples=4, generator=seeded())
    whole = elbo_surgery(*columns, num_samples=4, generator=seeded())
    torch.testing.assert_close(alone.mutual_information.squeeze(0), whole.mutual_information, **CLOSE)
    torch.testing.assert_close(alone.log_prior.squeeze(0), whole.log_prior, **CLOSE)


# held-out points --------------------------------------------------------------------------------------------


@stacks
def test_held_out_points_see_the_mixture_of_the_training_data(stack: tuple[int, ...]) -> None:
    mean, log_var = posteriors(*stack, n=4)
    train = posteriors(*stack, n=9, seed=2)
    terms = elbo_surgery(mean, log_var, components=train, num_samples=5, generator=seeded())
    z = draws(mean, log_var, 5)
    members = zip(*train, z, strict=True) if stack else [(*train, z)]
    rows = [mixture(m, s).log_prob(points) for m, s, points in members]
    torch.testing.assert_close(terms.log_aggregate, torch.stack(rows).reshape(terms.kl.shape), **CLOSE)
    torch.testing.assert_close(terms.log_q, by_hand(mean, log_var, z)[0], **CLOSE)


@stacks
def test_leave_one_out_is_a_loop_over_removed_points(stack: tuple[int, ...]) -> None:
    mean, log_var = posteriors(*stack, n=5)
    terms = elbo_surgery(mean, log_var, leave_one_out=True, num_samples=4, generator=seeded())
    z = draws(mean, log_var, 4)
    for i in range(5):
        rest = [j for j in range(5) if j != i]
        for e in range(3) if stack else [...]:
            expected = mixture(mean[e][..., rest, :], log_var[e][..., rest, :]).log_prob(z[e][..., i, :])
            torch.testing.assert_close(terms.log_aggregate[e][..., i], expected, **CLOSE)
    torch.testing.assert_close(terms.kl, terms.mutual_information + terms.marginal_kl, **CLOSE)


# dtype, device, refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@stacks
def test_dtype_and_device_follow(dtype: torch.dtype, stack: tuple[int, ...], device: torch.device) -> None:
    parts = [part.to(device=device, dtype=dtype) for part in posteriors(*stack)]
    draw = {"num_samples": 3, "generator": seeded(device=device)}
    results = [
        elbo_surgery(*parts, **draw).kl,
        elbo_surgery(*parts, leave_one_out=True, **draw).marginal_kl,
        elbo_surgery(*parts, components=(parts[0][..., :2, :], parts[1][..., :2, :]), **draw).marginal_kl,
        elbo_surgery_per_dim(*parts, **draw).marginal_kl,
        mutual_information(*parts, **draw).standard_error,
        index_information(*parts, **draw).mean,
        marginal_kl(*parts, **draw).mean,
    ]
    for value in results:
        assert value.dtype == dtype and value.device.type == device.type and value.isfinite().all()


def test_single_precision_has_the_same_terms() -> None:
    """float32 samples, their terms in float32 and by hand in float64: a few roundings of terms below 100."""
    mean, log_var = (part.float() for part in posteriors(n=6))
    terms = elbo_surgery(mean, log_var, num_samples=50, generator=seeded())
    z = draws(mean, log_var, 50)
    log_q, log_aggregate = by_hand(mean.double(), log_var.double(), z.double())
    torch.testing.assert_close(terms.log_q.double(), log_q, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.log_aggregate.double(), log_aggregate, rtol=1e-4, atol=1e-4)


def test_the_generator_decides_and_the_global_random_state_rests() -> None:
    before = torch.get_rng_state()
    for form in (mutual_information, index_information, marginal_kl):
        first, again, other = (form(*posteriors(), generator=seeded(s)).mean for s in (3, 3, 4))
        assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


M = torch.zeros(4, 2)
REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: Estimate.of(torch.zeros(3)), r"\(..., S, n\).*got shape \(3,\): draw more samples"),
    (lambda: Estimate.of(torch.zeros(1, 1)), r"got shape \(1, 1\): draw more samples"),
    (lambda: Estimate.of(torch.zeros(3, 0)), r"got shape \(3, 0\)"),
    (lambda: elbo_surgery(M, M).reconstruction, "pass log_likelihood="),
    (lambda: elbo_surgery(M, M).elbo, "pass log_likelihood="),
    (lambda: elbo_surgery(M, M[:3]), r"got \(4, 2\) and \(3, 2\): pass what the encoder makes"),
    (lambda: elbo_surgery(M[0], M[0]), r"\(n, d\), or \(E, n, d\)"),
    (lambda: elbo_surgery(M[:0], M[:0]), r"n >= 1, got \(0, 2\)"),
    (lambda: elbo_surgery_per_dim(M[0], M[0]), r"\(n, d\), or \(E, n, d\)"),
    (lambda: index_information(M[:0], M[:0]), "n >= 1"),
    (lambda: mutual_information(M, M[:3]), "pass what the encoder makes"),
    (lambda: marginal_kl(M[0], M[0]), "pass what the encoder makes"),
    (lambda: elbo_surgery(M, M, num_samples=0), "num_samples must be at least 1, got 0: ask for some"),
    (lambda: elbo_surgery_per_dim(M, M, num_samples=0), "num_samples must be at least 1, got 0"),
    (lambda: index_information(M, M, num_samples=-1), "num_samples must be at least 1, got -1"),
    (lambda: elbo_surgery(M, M, leave_one_out=True, components=(M, M)), "leave one of the two out"),
    (lambda: elbo_surgery(M[:1], M[:1], leave_one_out=True), "two data points or more, got one"),
    (lambda: elbo_surgery(M, M, components=(M, M[:3])), r"got \(4, 2\) and \(3, 2\): pass what the encoder"),
    (lambda: elbo_surgery(M, M, components=(M[:, :1], M[:, :1])), r"shaped like mean \(4, 2\) but for n"),
    (lambda: elbo_surgery(M, M, components=(M[:0], M[:0])), r"got \(0, 2\)"),
    (lambda: elbo_surgery(M, M, components=(M.expand(8, 4, 2),) * 2), r"got \(8, 4, 2\)"),
    (lambda: elbo_surgery(M, M, log_prior=lambda z: z), r"log_prior must.*\(8, 4\).*got \(8, 4, 2\): sum"),
    (lambda: elbo_surgery(M, M, log_likelihood=lambda z: z.sum()), r"log_likelihood must.*got \(\): sum"),
    (lambda: elbo_surgery_per_dim(M, M, log_prior=lambda z: z), r"got \(2, 8, 4, 1\): it takes the one"),
    (lambda: elbo_surgery_per_dim(M, M, log_prior=lambda z: z.sum()), r"\(2, 8, 4\) for z.*got \(\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_surgery_may_be_put_together_from_its_densities() -> None:
    rows = torch.randn(4, 3, 2, dtype=F64, generator=seeded())
    terms = ELBOSurgery(*rows)
    torch.testing.assert_close(terms.elbo, rows[3] + rows[2] - rows[0], **CLOSE)


@pytest.mark.parametrize("members", [None, 3])
def test_a_whole_vae_is_cut_under_its_own_prior(members: int | None) -> None:
    """``vae_surgery`` at the same noise: encoder, decoder and prior of the model, also for held-out data."""
    kind = {"members": members, "generator": seeded(1)}
    encoder, decoder = MLP([6, 8, 4], **kind), BernoulliDecoder(MLP([2, 8, 6], **kind))
    vae = VAE(encoder, decoder, 2, prior=MixturePrior(3, 2, **kind)).double()
    x, held_out = ((torch.rand(n, 6, generator=seeded(n)) < 0.5).double() for n in (9, 5))
    for data, components in ((x, None), (held_out, vae.encode(x))):
        settings = {"components": components, "num_samples": 4}
        found = vae_surgery(vae, data, generator=seeded(2), **settings)
        by_hand = elbo_surgery(
            *vae.encode(data), log_prior=vae.prior.log_prob, generator=seeded(2), **settings,
            log_likelihood=partial(decoder.log_prob, data),
        )  # fmt: skip
        for name in ("kl", "mutual_information", "marginal_kl", "elbo"):
            assert torch.equal(getattr(found, name), getattr(by_hand, name))
    assert not torch.allclose(vae_surgery(vae, x).log_prior, elbo_surgery(*vae.encode(x)).log_prior)
