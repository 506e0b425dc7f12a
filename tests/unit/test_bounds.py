"""bounds: the forms of the ELBO, and each gradient estimator against autograd written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from dgm_course.bounds import (
    elbo,
    elbo_from_evidence,
    elbo_from_kl,
    reparametrised_gradient,
    score_function_gradient,
)

MEAN = torch.tensor([0.4, -1.1], dtype=torch.float64)
LOG_VAR = torch.tensor([-0.3, 0.5], dtype=torch.float64)


def log_joint(z: Tensor) -> Tensor:
    return -(z**4).sum(-1) / 7 + torch.sin(z[..., 0] * z[..., 1])


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_three_forms_are_differences_and_keep_the_batch_shape() -> None:
    a, b = torch.randn(4, 3, generator=seeded()), torch.randn(3, generator=seeded(1))
    for form in (elbo, elbo_from_kl, elbo_from_evidence):
        assert torch.equal(form(a, b), a - b)


@pytest.mark.parametrize("shapes", [((5,), (5, 1)), ((5,), (4,)), ((1, 5), (5, 1))])
def test_outer_products_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    for form in (elbo, elbo_from_kl, elbo_from_evidence):
        with pytest.raises(ValueError, match="one batch shape"):
            form(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("stop_score", [False, True])
def test_reparametrised_rows_equal_one_backward_pass_each(stop_score: bool) -> None:
    rows = reparametrised_gradient(
        log_joint, MEAN, LOG_VAR, num_samples=6, generator=seeded(), stop_score=stop_score
    )
    assert rows.shape == (6, 4) and not rows.requires_grad
    noise = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    for eps, row in zip(noise, rows, strict=True):
        mean, log_var = MEAN.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
        z = mean + torch.exp(0.5 * log_var) * eps
        inside = (MEAN, LOG_VAR) if stop_score else (mean, log_var)
        q = Independent(Normal(inside[0], torch.exp(0.5 * inside[1])), 1)
        expected = torch.autograd.grad(log_joint(z) - q.log_prob(z), (mean, log_var))
        torch.testing.assert_close(row, torch.cat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("baseline", [0.0, -1.7, torch.linspace(-1, 1, 6, dtype=torch.float64)])
def test_score_function_rows_equal_one_backward_pass_each(baseline: float | Tensor) -> None:
    rows = score_function_gradient(
        log_joint, MEAN, LOG_VAR, num_samples=6, generator=seeded(), baseline=baseline
    )
    assert rows.shape == (6, 4)
    noise = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    levels = torch.as_tensor(baseline, dtype=torch.float64).expand(6)
    for eps, row, level in zip(noise, rows, levels, strict=True):
        z = MEAN + torch.exp(0.5 * LOG_VAR) * eps
        mean, log_var = MEAN.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
        log_q = Independent(Normal(mean, torch.exp(0.5 * log_var)), 1).log_prob(z)
        score = torch.cat(torch.autograd.grad(log_q, (mean, log_var)))
        expected = (log_joint(z) - log_q.detach() - level) * score
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)


def test_estimators_follow_dtype_and_device_and_work_without_grad(device: torch.device) -> None:
    mean, log_var = MEAN.float().to(device), LOG_VAR.float().to(device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for estimator in (reparametrised_gradient, score_function_gradient):
            rows = estimator(log_joint, mean, log_var, num_samples=3, generator=generator)
            assert rows.shape == (3, 4) and rows.dtype == torch.float32 and rows.device.type == device.type


def test_estimators_leave_the_parameters_alone() -> None:
    mean, log_var = MEAN.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    reparametrised_gradient(lambda z: slope * log_joint(z), mean, log_var, num_samples=3)
    score_function_gradient(lambda z: slope * log_joint(z), mean, log_var, num_samples=3)
    assert mean.grad is None and log_var.grad is None and slope.grad is None


def test_bad_shapes_are_refused() -> None:
    for estimator in (reparametrised_gradient, score_function_gradient):
        with pytest.raises(ValueError, match=r"shape \(d,\)"):
            estimator(log_joint, MEAN.expand(3, 2), LOG_VAR, num_samples=2)
        with pytest.raises(ValueError, match="at least 1"):
            estimator(log_joint, MEAN, LOG_VAR, num_samples=0)
        with pytest.raises(ValueError, match="one value a row"):
            estimator(lambda z: log_joint(z).sum(), MEAN, LOG_VAR, num_samples=2)
    with pytest.raises(ValueError, match="one value for each sample"):
        score_function_gradient(log_joint, MEAN, LOG_VAR, num_samples=2, baseline=torch.zeros(2, 1))
