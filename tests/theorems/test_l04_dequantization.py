"""Lecture 04: D4 (uniform), D5 (variational), D6 (importance-weighted dequantization)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from ledger import proves
from torch import Tensor

from dgm_course.bounds.exact import exact_iwae_bound
from dgm_course.dequantization import (
    Dequantizer,
    UniformDequantizer,
    VariationalDequantizer,
    dequantization_log_weights,
    importance_weighted_bound,
    uniform_bound,
    variational_bound,
)
from dgm_course.divergences import kl_divergence
from dgm_course.logistic_mixture import logistic_log_prob
from dgm_course.train import fit

EXACT = {"rtol": 0.0, "atol": 1e-8}
MEANS = torch.tensor([[3.3, 4.6], [5.6, 3.2], [4.8, 5.9]], dtype=torch.float64)
LOG_SCALES = torch.tensor([[-1.3, -0.4], [-0.8, -1.2], [0.1, -1.6]], dtype=torch.float64)
LOG_WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_log_prob(x: Tensor, dims: int) -> Tensor:
    """A mixture of three products of logistics, some narrower than a bin: ``(..., dims) -> (...)``."""
    parts = logistic_log_prob(x.unsqueeze(-2), MEANS[:, :dims], LOG_SCALES[:, :dims])
    return torch.logsumexp(LOG_WEIGHTS + parts.sum(-1), dim=-1)


def exact_log_mass(y: Tensor) -> Tensor:
    """``log P(y)``, the mass of the bin [y, y + 1)^m, from the distribution functions."""
    dims = y.shape[-1]
    z, scale = y.unsqueeze(-2) - MEANS[:, :dims], LOG_SCALES[:, :dims].exp()
    mass = torch.sigmoid((z + 1) / scale) - torch.sigmoid(z / scale)
    return (LOG_WEIGHTS.exp() * mass.prod(-1)).sum(-1).log()


def levels(dims: int) -> Tensor:
    """The levels 2 ... 6, in two dimensions 3 ... 5: ``(B, dims)``."""
    if dims == 1:
        return torch.arange(2.0, 7.0, dtype=torch.float64)[:, None]
    return torch.cartesian_prod(*2 * [torch.arange(3.0, 6.0, dtype=torch.float64)])


def cube(dims: int) -> tuple[Tensor, Tensor]:
    """Nodes u (N, dims) inside the unit cube and weights (N,), for integrals over a bin.

    The trapezoidal rule in t = logit u, where log q(u|y), which may be infinite at u = 0 and 1, is tame.
    """
    spacing = 0.1 if dims == 1 else 0.3
    t = torch.arange(-30.0, 30.0, spacing, dtype=torch.float64)
    t = t[:, None] if dims == 1 else torch.cartesian_prod(t, t)
    return torch.sigmoid(t), (spacing * torch.sigmoid(t) * torch.sigmoid(-t)).prod(-1)


def ideal_noise(y: Tensor, nodes: Tensor) -> Tensor:
    """``log p(u|y) = log p(y + u) - log P(y)`` at the nodes: ``(B, N)``."""
    return model_log_prob(y.unsqueeze(-2) + nodes, y.shape[-1]) - exact_log_mass(y).unsqueeze(-1)


def kinked(dims: int, seed: int = 0) -> VariationalDequantizer:
    """Noise that is neither uniform nor ideal: moved and narrowed in every entry, and a little stirred."""
    make = VariationalDequantizer.autoregressive if dims == 1 else VariationalDequantizer.coupling
    noise, generator = make(dims, 17, generator=seeded(seed)).double(), seeded(seed + 1)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for layer in noise.transform:
            net = getattr(layer, "conditioner", getattr(layer, "net", None))
            if net is not None:  # a shift and a raw log-scale for each entry that the layer moves
                bias = net.layers[-1].bias
                bias.add_(torch.tensor([0.6, -0.5]).to(bias).repeat(bias.numel() // 2))
    return noise


@torch.no_grad()
def log_density(noise: Dequantizer, y: Tensor, nodes: Tensor) -> Tensor:
    """``log q(u|y)`` at the nodes: ``(B, N)``."""
    return noise.log_prob(nodes.unsqueeze(1).expand(-1, len(y), -1), y).mT


def assert_mean(samples: Tensor, exact: Tensor) -> None:
    """``samples (S, B)`` of estimates whose mean is ``exact (B,)``: within 5 standard errors of each."""
    error = samples.std(0) / len(samples) ** 0.5
    assert bool(((samples.mean(0) - exact).abs() <= 5 * error).all())


# D4 -------------------------------------------------------------------------------------------------------

Bound = Callable[..., Tensor]


def noise_in_half_a_bin(
    log_prob: Callable[[Tensor], Tensor], y: Tensor, *, num_samples: int, generator: torch.Generator
) -> Tensor:
    """u between 0 and 1/2, as if it had density 1 there."""
    level = y.unsqueeze(-3)
    return uniform_bound(
        lambda x: log_prob(level + (x - level) / 2), y, num_samples=num_samples, generator=generator
    )


def log_of_the_average(
    log_prob: Callable[[Tensor], Tensor], y: Tensor, *, num_samples: int, generator: torch.Generator
) -> Tensor:
    """The logarithm outside: an estimate of log P(y) itself."""
    return importance_weighted_bound(
        log_prob, UniformDequantizer(), y, num_samples=num_samples, generator=generator
    )


def wrong_scale(
    log_prob: Callable[[Tensor], Tensor], y: Tensor, *, num_samples: int, generator: torch.Generator
) -> Tensor:
    """The density at levels divided by their number, without the 1/17 that makes it one of the levels."""
    return uniform_bound(log_prob, y, num_samples=num_samples, generator=generator) + math.log(17)


@pytest.mark.parametrize("dims", [1, 2])
def test_d4_the_model_of_levels_is_the_mass_of_the_bin(dims: int) -> None:
    """int p(y + u) du by quadrature against distribution functions; the tails beyond the levels are lost."""
    y, (nodes, weights) = levels(dims), cube(dims)
    log_p = model_log_prob(y.unsqueeze(-2) + nodes, dims)
    torch.testing.assert_close(torch.logsumexp(log_p + weights.log(), -1), exact_log_mass(y), **EXACT)
    assert exact_log_mass(y).exp().sum() < 1


@pytest.mark.parametrize("dims", [1, 2])
def test_d4_the_gap_is_a_kl_divergence(dims: int) -> None:
    y, (nodes, weights) = levels(dims), cube(dims)
    expected = (weights * model_log_prob(y.unsqueeze(-2) + nodes, dims)).sum(-1)
    gap = kl_divergence(torch.zeros_like(weights), ideal_noise(y, nodes), weights)
    torch.testing.assert_close(exact_log_mass(y) - expected, gap, **EXACT)
    assert bool((gap > 1e-3).all())


@proves("D4", right=uniform_bound, wrong={"noise_in_half_a_bin": noise_in_half_a_bin,
        "log_of_the_average": log_of_the_average, "wrong_scale": wrong_scale})  # fmt: skip
@pytest.mark.parametrize("dims", [1, 2])
def test_uniform_noise_gives_the_bound(variant: Bound, dims: int) -> None:
    """400 estimates of 50 samples each against the quadrature of log P(y) - KL(U || p(u|y))."""
    y, (nodes, weights) = levels(dims), cube(dims)
    exact = exact_log_mass(y) - kl_divergence(torch.zeros_like(weights), ideal_noise(y, nodes), weights)
    repeated = y.expand(400, *y.shape)  # (400, B, m): independent noise for each
    samples = variant(partial(model_log_prob, dims=dims), repeated, num_samples=50, generator=seeded())
    assert_mean(samples, exact)


# D5 -------------------------------------------------------------------------------------------------------


def drops_log_q(
    log_prob: Callable[[Tensor], Tensor], noise: Dequantizer, y: Tensor, *, num_samples: int,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """E_q log p(y + u) alone."""
    weights = dequantization_log_weights(log_prob, noise, y, num_samples=num_samples, generator=generator)
    _, log_q = noise.rsample(y, num_samples, generator=seeded())
    return (weights + log_q).mean(-2)


def drops_the_base(
    log_prob: Callable[[Tensor], Tensor], noise: Dequantizer, y: Tensor, *, num_samples: int,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """The slide's slip: log q(u|y) without log p(epsilon), the log-determinant alone."""
    u, log_q = noise.rsample(y, num_samples, generator=generator)
    z, squash = noise.squash.inverse(u)
    _, log_det = noise.transform.inverse(z, noise.context(2 * (y + 0.5) / 17 - 1).unsqueeze(-3))
    return (log_prob(y.unsqueeze(-3) + u) - squash - log_det).mean(-2)


@pytest.mark.parametrize("dims", [1, 2])
def test_d5_the_gap_is_a_kl_divergence(dims: int) -> None:
    """For any q: E_q[log p(y + u) - log q] = log P(y) - KL(q || p(u|y)), all by quadrature."""
    y, (nodes, weights) = levels(dims), cube(dims)
    log_q = log_density(kinked(dims), y, nodes)
    torch.testing.assert_close((weights * log_q.exp()).sum(-1), torch.ones(len(y)).double(), **EXACT)
    log_p = model_log_prob(y.unsqueeze(-2) + nodes, dims)
    bound = (weights * log_q.exp() * (log_p - log_q)).sum(-1)
    gap = kl_divergence(log_q, ideal_noise(y, nodes), weights)
    torch.testing.assert_close(exact_log_mass(y) - bound, gap, **EXACT)


@proves("D5", right=variational_bound,
        wrong={"drops_log_q": drops_log_q, "drops_the_base": drops_the_base})  # fmt: skip
@pytest.mark.parametrize("dims", [1, 2])
def test_any_noise_gives_the_bound(variant: Bound, dims: int) -> None:
    y, (nodes, weights), noise = levels(dims), cube(dims), kinked(dims)
    exact = exact_log_mass(y) - kl_divergence(log_density(noise, y, nodes), ideal_noise(y, nodes), weights)
    repeated = y.expand(400, *y.shape)
    with torch.no_grad():
        log_prob = partial(model_log_prob, dims=dims)
        samples = variant(log_prob, noise, repeated, num_samples=50, generator=seeded())
    assert_mean(samples, exact)


def trained(dims: int) -> VariationalDequantizer:
    """Noise fitted to the model by its bound, from uniform noise on."""
    make = VariationalDequantizer.autoregressive if dims == 1 else VariationalDequantizer.coupling
    noise, y = make(dims, 17, generator=seeded(5)).double(), levels(dims)
    log_prob = partial(model_log_prob, dims=dims)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return -variational_bound(log_prob, noise, y, num_samples=32, generator=generator).mean()

    fit(loss, noise.parameters(), steps=300, lr=1e-2, lr_decay_from=0.3, progress=False)
    return noise


@pytest.mark.parametrize("dims", [1, 2])
def test_d5_trained_noise_beats_uniform_by_the_predicted_amount(dims: int) -> None:
    """The gain is KL(U || p(u|y)) - KL(q || p(u|y)): predicted by quadrature, measured on common samples."""
    y, (nodes, weights), noise = levels(dims), cube(dims), trained(dims)
    ideal = ideal_noise(y, nodes)
    uniform_gap = kl_divergence(torch.zeros_like(weights), ideal, weights)
    predicted = uniform_gap - kl_divergence(log_density(noise, y, nodes), ideal, weights)
    assert predicted.mean() > 0.5 * uniform_gap.mean()  # most of the gap is closed
    log_prob, repeated = partial(model_log_prob, dims=dims), y.expand(400, *y.shape)
    with torch.no_grad():
        ours = variational_bound(log_prob, noise, repeated, num_samples=50, generator=seeded())
        uniform = uniform_bound(log_prob, repeated, num_samples=50, generator=seeded())
    assert_mean(ours - uniform, predicted)
    assert predicted.mean() > 10 * float((ours - uniform).std(0).mean()) / 400**0.5


# D6 -------------------------------------------------------------------------------------------------------


def average_of_log_weights(
    log_prob: Callable[[Tensor], Tensor], noise: Dequantizer, y: Tensor, *, num_samples: int,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """The variational bound from K samples: the average is taken after the logarithm."""
    return variational_bound(log_prob, noise, y, num_samples=num_samples, generator=generator)


@proves("D6", right=importance_weighted_bound, wrong={"average_of_log_weights": average_of_log_weights})
@pytest.mark.parametrize("noise", [UniformDequantizer(), kinked(1)], ids=["uniform", "flow"])
def test_importance_weights_give_the_exact_bound_of_k_samples(variant: Bound, noise: Dequantizer) -> None:
    """20 000 draws at K = 1, 4 and 16 against the one-dimensional quadrature that holds for any K."""
    y, (nodes, weights) = levels(1)[:3], cube(1)
    log_q, log_p = log_density(noise, y, nodes), model_log_prob(y.unsqueeze(-2) + nodes, 1)
    repeated = y.expand(20_000, *y.shape)
    for K in (1, 4, 16):
        exact = torch.stack([exact_iwae_bound(p, q, weights, K) for p, q in zip(log_p, log_q, strict=True)])
        with torch.no_grad():
            samples = variant(
                partial(model_log_prob, dims=1), noise, repeated, num_samples=K, generator=seeded(K)
            )
        assert_mean(samples, exact)


@pytest.mark.parametrize("dims", [1, 2])
def test_d6_the_order_of_the_bounds(dims: int) -> None:
    """uniform <= best of a family <= the same q with K samples <= log P; K-sample uniform: either order."""
    y, (nodes, weights), noise = levels(dims), cube(dims), trained(dims)
    log_q, log_p = log_density(noise, y, nodes), model_log_prob(y.unsqueeze(-2) + nodes, dims)
    exact, counts = exact_log_mass(y), [1, 2, 4, 64, 1024]

    def bounds(log_noise: Tensor) -> Tensor:
        rows = zip(log_p, log_noise, strict=True)
        return torch.stack([exact_iwae_bound(p, q, weights, counts) for p, q in rows]).mean(0)  # (5,)

    uniform, ours, top = bounds(torch.zeros_like(log_q)), bounds(log_q), exact.mean()
    assert uniform[0] < ours[0]  # K = 1: the two single-sample bounds
    for row in (uniform, ours):
        assert bool((row.diff() > 0).all()) and row[-1] < top
    assert uniform[1] < ours[0] < uniform[-1]  # neither bound is always the better one
