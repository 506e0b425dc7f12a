"""Standard errors that are those of the mean; the mutual information in both of its forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_posteriors import CLOSE, F64, draws, laplace, normal, posteriors, seeded, stacks
from torch import Tensor
from torch.distributions import Categorical

from dgm_course import surgery
from dgm_course.surgery import (
    Estimate,
    elbo_surgery,
    index_information,
    marginal_kl,
    mutual_information,
)

# estimates --------------------------------------------------------------------------------------------------


def error_ratio(num_samples: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Squared error of the mean over the squared standard error, both averaged; and that ratio's own error.

    20 000 repetitions of five points with centred exponential noise of scales 0.5 to 2.5, the points'
    means ``spread`` apart.
    """
    scale = torch.linspace(0.5, 2.5, 5, dtype=F64)
    noise = torch.empty(20_000, num_samples, 5, dtype=F64).exponential_(generator=seeded(seed)) - 1.0
    centre = spread * torch.arange(5, dtype=F64)
    estimate = Estimate.of(centre + scale * noise)
    square, claimed = (estimate.mean - centre.mean()).square(), estimate.standard_error.square()
    ratio = square.mean() / claimed.mean()
    return ratio, (square - ratio * claimed).std() / claimed.mean() / 20_000**0.5


@pytest.mark.parametrize(("num_samples", "spread"), [(2, 3.0), (7, 3.0), (1, 0.0)])
def test_the_standard_error_is_that_of_the_mean(num_samples: int, spread: float) -> None:
    """Squares against squares, 5 standard errors; one sample of points with one mean counts as well."""
    ratio, error = error_ratio(num_samples, spread, seed=20)
    assert error < 0.02 and abs(ratio - 1) < 5 * error


def test_with_one_sample_the_standard_error_errs_on_the_large_side() -> None:
    """Its square is then that of points and noise: here (22.5 + mean scale^2) / (mean scale^2) too large."""
    ratio, error = error_ratio(1, 3.0, seed=20)
    scale = torch.linspace(0.5, 2.5, 5, dtype=F64).square().mean()
    assert ratio < 1 and abs(ratio - scale / (22.5 + scale)) < 5 * error


@pytest.mark.parametrize("form", [mutual_information, index_information, marginal_kl])
def test_the_errors_of_the_terms_are_as_claimed(form: Callable[..., Estimate]) -> None:
    """A stack of 4000 equal members is 4000 repetitions; variances within 5 standard errors."""
    assert abs(claims(form, seed=20)) < 5


def claims(form: Callable[..., Estimate], seed: int) -> Tensor:
    mean, log_var = posteriors(n=5)
    many = form(mean.expand(4000, 5, 2), log_var.expand(4000, 5, 2), num_samples=3, generator=seeded(seed))
    gap = (many.mean - many.mean.mean()).square() * (4000 / 3999) - many.standard_error.square()
    return gap.mean() / gap.std() * 4000**0.5


def test_estimates_of_constants_and_of_stacks() -> None:
    estimate = Estimate.of(torch.arange(4.0, dtype=F64).expand(3, 2, 6, 4))
    assert estimate.mean.shape == estimate.standard_error.shape == (3, 2)
    assert (estimate.mean == 1.5).all() and (estimate.standard_error == 0).all()
    values = torch.tensor([[1.0], [3.0]], dtype=F64)  # one point: variance 2, two samples
    assert Estimate.of(values) == Estimate(torch.tensor(2.0, dtype=F64), torch.tensor(1.0, dtype=F64))


@stacks
def test_the_short_forms_average_the_terms(stack: tuple[int, ...]) -> None:
    mean, log_var = posteriors(*stack)
    terms = elbo_surgery(mean, log_var, log_prior=laplace, num_samples=4, generator=seeded())
    found = mutual_information(mean, log_var, num_samples=4, generator=seeded())
    assert torch.equal(found.mean, terms.mutual_information.mean((-2, -1))) and found.mean.shape == stack
    found = marginal_kl(mean, log_var, laplace, num_samples=4, generator=seeded())
    assert torch.equal(found.mean, terms.marginal_kl.mean((-2, -1)))
    assert torch.equal(found.standard_error, Estimate.of(terms.marginal_kl).standard_error)


# the information in its other form --------------------------------------------------------------------------


@stacks
def test_index_information_is_the_mutual_information(stack: tuple[int, ...]) -> None:
    """Independent draws: 5 joint standard errors."""
    assert (forms_apart(stack, seed=20).abs() < 5).all()


def forms_apart(stack: tuple[int, ...], seed: int) -> Tensor:
    mean, log_var = posteriors(*stack, n=8)
    direct = mutual_information(mean, log_var, num_samples=500, generator=seeded(seed))
    index = index_information(mean, log_var, num_samples=500, generator=seeded(seed + 1000))
    joint = (direct.standard_error.square() + index.standard_error.square()).sqrt()
    return (direct.mean - index.mean) / joint


@stacks
def test_every_sample_s_index_information_is_an_entropy_deficit(
    stack: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``log n`` minus the entropy of Bayes' rule, between 0 and log n, some of it near either end."""
    seen = []
    monkeypatch.setattr(surgery.Estimate, "of", seen.append)
    mean, log_var = posteriors(*stack, n=6)
    mean, log_var = mean * torch.tensor([9.0, 0.0], dtype=F64), log_var.clone()
    mean[..., :2, :] = 0.0  # the first two points coincide, the others lie far apart
    log_var[..., :2, :] = 0.0
    index_information(mean, log_var, num_samples=4, generator=seeded())
    z = draws(mean, log_var, 4)
    log_joint = normal(mean.unsqueeze(-3).unsqueeze(-3), log_var.unsqueeze(-3).unsqueeze(-3)).log_prob(
        z.unsqueeze(-2)
    )  # ([E,] S, n, n)
    expected = math.log(6) - Categorical(logits=log_joint).entropy()
    torch.testing.assert_close(seen[0], expected, **CLOSE)
    assert (seen[0] >= -1e-12).all() and (seen[0] <= math.log(6) + 1e-12).all()
    assert seen[0].min() < math.log(3) + 1e-3 and seen[0].max() > math.log(6) - 1e-3


@stacks
@pytest.mark.parametrize("table", [1, 200, 300, 1 << 22])
def test_blocks_of_any_size_give_one_result(
    stack: tuple[int, ...], table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean, log_var = posteriors(*stack, n=7)
    whole = index_information(mean, log_var, num_samples=4, generator=seeded())
    sizes = []
    responsibilities = surgery.mixture_responsibilities

    def spy(points: Tensor, *args: Tensor) -> Tensor:
        sizes.append(points.numel() * 7)  # points times components times dimensions
        return responsibilities(points, *args)

    monkeypatch.setattr(surgery, "_TABLE", table)
    monkeypatch.setattr(surgery, "mixture_responsibilities", spy)
    blocks = index_information(mean, log_var, num_samples=4, generator=seeded())
    torch.testing.assert_close(blocks.mean, whole.mean, **CLOSE)
    torch.testing.assert_close(blocks.standard_error, whole.standard_error, **CLOSE)
    one = mean.numel() * 4  # a single point's share, for all members and samples
    assert sum(sizes) == 7 * one and max(sizes) <= max(table, one)
