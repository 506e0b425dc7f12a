"""Lecture 01, C3: two gradient estimators of the ELBO, one mean, very different variances."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from ledger import proves
from torch import Tensor
from torch.distributions import Normal

from dgm_course.bounds import reparametrised_gradient, score_function_gradient
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.numerics import gauss_hermite

Estimator = Callable[..., Tensor]
LogJoint = Callable[[Tensor], Tensor]
SAMPLES = 40_000


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score_forgets_minus_log_q(
    log_joint: LogJoint, mean: Tensor, log_var: Tensor, *, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Weighs the score with log p(x, z): the gradient of E_q[log p(x, z)], without the entropy's."""

    def log_w(z: Tensor) -> Tensor:  # the library subtracts log q; add it back
        return log_joint(z) + gaussian_log_prob(z, mean, log_var)

    return score_function_gradient(log_w, mean, log_var, num_samples=num_samples, generator=generator)


def path_forgets_minus_log_q(
    log_joint: LogJoint, mean: Tensor, log_var: Tensor, *, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Differentiates log p(x, z) alone along the path z(mean, log_var)."""
    means, log_vars = (p.repeat(num_samples, 1).requires_grad_() for p in (mean, log_var))
    z = means + torch.exp(0.5 * log_vars) * torch.randn(
        means.shape, generator=generator, dtype=mean.dtype, device=mean.device
    )
    return torch.cat(torch.autograd.grad(log_joint(z).sum(), (means, log_vars)), -1)


def check_mean(estimator: Estimator, **options: object) -> None:
    """40 000 rows: for the log-variances the standard errors are below 0.04, the wrong mean 0.5 away."""
    model = LinearGaussian(draw(3, 2, seed=8) / 2, torch.zeros(3, dtype=torch.float64), 1.0)
    x = draw(3, seed=9)
    mean = (model.posterior(x)[0] + 0.3).requires_grad_()
    log_var = torch.tensor([-0.5, -0.9], dtype=torch.float64, requires_grad=True)
    exact = torch.cat(torch.autograd.grad(model.elbo(x, mean, log_var.exp().diag()), (mean, log_var)))
    rows = estimator(
        lambda z: model.log_joint(x, z),
        mean.detach(),
        log_var.detach(),
        num_samples=SAMPLES,
        generator=torch.Generator().manual_seed(10),
        **options,
    )
    error = rows.std(0) / math.sqrt(SAMPLES)
    assert (error[2:] < 0.04).all(), error
    assert ((rows.mean(0) - exact).abs() <= 5 * error + 1e-9).all(), (rows.mean(0) - exact) / error


@proves("C3", right=score_function_gradient, wrong={"forgets_minus_log_q": score_forgets_minus_log_q})
def test_score_function_gradient_has_the_analytic_mean(variant: Estimator) -> None:
    check_mean(variant)


@proves("C3", right=reparametrised_gradient, wrong={"forgets_minus_log_q": path_forgets_minus_log_q})
def test_reparametrised_gradient_has_the_analytic_mean(variant: Estimator) -> None:
    check_mean(variant)


def test_baseline_and_sticking_the_landing_keep_the_mean() -> None:
    check_mean(score_function_gradient, baseline=-3.0)
    check_mean(reparametrised_gradient, stop_score=True)


# The ledger's numbers: W = 1, sigma2 = 0.5, x = 1.5, so that the posterior is N(1, 1/3)

MODEL = LinearGaussian(
    torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0.5
)
X = torch.tensor([1.5], dtype=torch.float64)
LOG_VAR = torch.tensor([math.log(1 / 3)], dtype=torch.float64)


def exact_moments(name: str, shift: float) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment of the mean's gradient estimate, by Gauss-Hermite.

    Written from the derivatives by hand: d log p(x, z)/dz = -3 (z - 1), d log q/d mean = 3 (z - mean).
    """
    nodes, weights = gauss_hermite(40)
    mean, sd = 1.0 + shift, math.sqrt(1 / 3)
    z = mean + sd * nodes[:, 0]
    log_joint = Normal(0.0, 1.0).log_prob(z) + Normal(z, math.sqrt(0.5)).log_prob(X)
    log_w = log_joint - Normal(mean, sd).log_prob(z)
    rows = {
        "reparametrised": -3 * (z - 1),
        "score": log_w * 3 * (z - mean),
        "score with baseline": (log_w - (weights * log_w).sum()) * 3 * (z - mean),
        "sticking the landing": -3 * (z - 1) + 3 * (z - mean),
    }[name]
    average = (weights * rows).sum()
    second, fourth = ((weights * (rows - average) ** k).sum().item() for k in (2, 4))
    return average.item(), second, fourth


@pytest.mark.parametrize(
    ("name", "shift", "variance"),
    [
        ("reparametrised", 0.0, 3.0),
        ("score", 0.0, 10.5),
        ("score with baseline", 0.0, 0.0),
        ("sticking the landing", 0.0, 0.0),
        ("reparametrised", 1.0, 3.0),
        ("score", 1.0, 52.0),
        ("score with baseline", 1.0, 18.0),
        ("sticking the landing", 1.0, 0.0),
    ],
)
def test_variances_of_the_ledger(name: str, shift: float, variance: float) -> None:
    mean = torch.tensor([1.0 + shift], dtype=torch.float64)
    exact_mean, exact_variance, fourth = exact_moments(name, shift)
    assert exact_variance == pytest.approx(variance, rel=0.01, abs=1e-10)
    assert exact_mean == pytest.approx(-3.0 * shift, abs=1e-10)  # d ELBO / d mean = -3 (mean - 1)
    options = {"num_samples": SAMPLES, "generator": torch.Generator().manual_seed(11)}
    if name.startswith("score"):
        average = MODEL.elbo(X, mean, LOG_VAR.exp().diag()).item()
        options["baseline"] = average if name.endswith("baseline") else 0.0
        rows = score_function_gradient(lambda z: MODEL.log_joint(X, z), mean, LOG_VAR, **options)
    else:
        options["stop_score"] = name == "sticking the landing"
        rows = reparametrised_gradient(lambda z: MODEL.log_joint(X, z), mean, LOG_VAR, **options)
    error = math.sqrt(max(fourth - exact_variance**2, 0.0) / SAMPLES)  # standard error of a sample variance
    assert abs(rows[:, 0].var().item() - exact_variance) <= 5 * error + 1e-10
