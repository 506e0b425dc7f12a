"""Lecture 04: D1 (the degenerate fit), D2, D3 (discretized logistics, mixtures), D7 (bits/dim)."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from ledger import proves
from torch import Tensor

from dgm_course import data
from dgm_course.dequantization import bits_per_dim
from dgm_course.gaussian import LOG_2PI, gaussian_log_prob
from dgm_course.logistic_mixture import (
    discretized_logistic_log_prob,
    discretized_logistic_mixture_log_prob,
    rgb_logistic_mixture_log_prob,
)
from dgm_course.mixtures import mixture_log_prob
from dgm_course.numerics import gauss_legendre

EXACT = {"rtol": 0.0, "atol": 1e-8}

# D1 -------------------------------------------------------------------------------------------------------


def level_frequencies() -> Tensor:
    """Share of each of the 17 levels among the digits' pixels."""
    levels = data.digits(binary=False).train_x.long().flatten()
    return torch.bincount(levels, minlength=17).double() / levels.numel()


MixtureLogProb = Callable[[Tensor, Tensor, float, Tensor], Tensor]


def mean_log_likelihood(log_prob: MixtureLogProb, log_scale: float, share: Tensor, offsets: Tensor) -> Tensor:
    """``sum_y share_y log p(y + offset)`` for each offset, of the mixture with a component on each level."""
    levels = torch.arange(17, dtype=torch.float64)
    x = levels[:, None] + offsets  # (17, N)
    log_p = log_prob(x.unsqueeze(-1), levels[:, None], 2 * log_scale, share.log())
    return share @ log_p


def likelihood_without_the_scale(x: Tensor, means: Tensor, log_vars: float, log_weights: Tensor) -> Tensor:
    """A density whose height does not grow as it narrows: it does not integrate to one."""
    return mixture_log_prob(x, means, log_vars, log_weights) + 0.5 * log_vars


@proves("D1", right=mixture_log_prob,
        wrong={"likelihood_without_the_scale": likelihood_without_the_scale})  # fmt: skip
def test_without_noise_the_likelihood_grows_without_bound(variant: MixtureLogProb) -> None:
    """For s well below 1: sum_y share_y log share_y - log s - 1/2 log 2 pi, a straight line."""
    share = level_frequencies()
    for log_scale in (-2.0, -4.0, -8.0, -16.0):
        found = mean_log_likelihood(variant, log_scale, share, torch.zeros(1, dtype=torch.float64))
        expected = (share * share.log()).sum() - log_scale - 0.5 * LOG_2PI
        torch.testing.assert_close(found.squeeze(), expected, **EXACT)


def test_d1_with_noise_the_likelihood_is_bounded_by_the_entropy() -> None:
    """E_u log p(y + u), by quadrature: never above minus the entropy of the levels, and -inf as s -> 0."""
    share = level_frequencies()
    bound = (share * share.log()).sum()
    halves = [gauss_legendre(low, low + 0.5, 60) for low in (0.0, 0.5)]  # components take over in the middle
    nodes = torch.cat([nodes.squeeze(-1) for nodes, _ in halves])
    weights = torch.cat([weights for _, weights in halves])
    found = [
        weights @ mean_log_likelihood(mixture_log_prob, log_scale, share, nodes)
        for log_scale in (1.0, 0.0, -0.5, -1.0, -2.0, -4.0)
    ]
    assert all(value < bound for value in found)
    assert found[-1] < found[-2] < found[-3] < found[-4]  # narrower is worse


def test_d1_narrow_components_pay_for_the_noise() -> None:
    """Equal shares: each half of a bin belongs to the nearer level, which costs 1 / (24 s^2) nats.

    The upper half of the last bin has no level above it: 1 / (8 s^2) more, for one level in 17. Where two
    levels meet, both components count: int log(1 + exp(-|t|)) dt = pi^2 / 6 gives pi^2 s^2 / 6 back.
    """
    share, log_scale = torch.full((17,), 1 / 17, dtype=torch.float64), -2.0
    nodes, weights = gauss_legendre(0.0, 1.0, 600)
    found = weights @ mean_log_likelihood(mixture_log_prob, log_scale, share, nodes.squeeze(-1))
    s2 = math.exp(2 * log_scale)
    price = (1 / 24 + 1 / 8 / 17) / s2 - 16 / 17 * math.pi**2 / 6 * s2
    expected = torch.tensor(-price - math.log(17) - log_scale - 0.5 * LOG_2PI, dtype=torch.float64)
    torch.testing.assert_close(found, expected, **EXACT)


def test_d1_a_single_gaussian_does_not_degenerate() -> None:
    """Its likelihood on data with any spread has a finite maximum, at the data's own variance."""
    levels, share = torch.arange(17, dtype=torch.float64), level_frequencies()
    mean = share @ levels
    variance = share @ (levels - mean).square()
    best = -0.5 * (LOG_2PI + 1 + variance.log())
    for log_var in torch.linspace(-30, 10, 41, dtype=torch.float64):
        found = share @ gaussian_log_prob(levels[:, None], mean[None], log_var[None])
        assert found <= best + 1e-12
    found = share @ gaussian_log_prob(levels[:, None], mean[None], variance.log()[None])
    torch.testing.assert_close(found, best, **EXACT)


# D2 -------------------------------------------------------------------------------------------------------

PARAMETERS = [(mean, log_scale) for mean in (-1e4, -0.5, 0.0, 7.3, 16.0, 255.0, 1e4)
              for log_scale in (-12.0, -3.0, 0.0, 2.0, 8.0)]  # fmt: skip


def by_mpmath(y: int, mean: float, log_scale: float, num_levels: int) -> mpmath.mpf:
    """P(y) as a difference of two distribution functions, in arithmetic that can afford it."""
    with mpmath.workdps(120):
        s = mpmath.exp(mpmath.mpf(log_scale))

        def survival(x: mpmath.mpf) -> mpmath.mpf:
            z = (x - mpmath.mpf(mean)) / s
            return 1 / (1 + mpmath.exp(z))

        def cdf(x: mpmath.mpf) -> mpmath.mpf:
            z = (x - mpmath.mpf(mean)) / s
            return 1 / (1 + mpmath.exp(-z))

        below, above = mpmath.mpf(y) - mpmath.mpf("0.5"), mpmath.mpf(y) + mpmath.mpf("0.5")
        if y == 0:
            return cdf(above)
        if y == num_levels - 1:
            return survival(below)
        left = below > mean  # the side on which the tails are small
        return survival(below) - survival(above) if left else cdf(above) - cdf(below)


def edges_not_opened(y: Tensor, mean: float, log_scale: float, *, num_levels: int) -> Tensor:
    """The mass of the bin [y - 1/2, y + 1/2) for the outermost levels, too."""
    return discretized_logistic_log_prob(y + 1, mean + 1, log_scale, num_levels=num_levels + 2)


def edges_one_too_far(y: Tensor, mean: float, log_scale: float, *, num_levels: int) -> Tensor:
    """The upper edge opened at L, where there is no pixel value."""
    return discretized_logistic_log_prob(y, mean, log_scale, num_levels=num_levels + 1)


@proves("D2", right=discretized_logistic_log_prob,
        wrong={"edges_not_opened": edges_not_opened, "edges_one_too_far": edges_one_too_far})  # fmt: skip
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_probabilities_sum_to_one(variant: Callable[..., Tensor], num_levels: int) -> None:
    y = torch.arange(num_levels, dtype=torch.float64)
    for mean, log_scale in PARAMETERS:
        total = variant(y, mean, log_scale, num_levels=num_levels).exp().sum()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("mean", "log_scale"), PARAMETERS)
def test_d2_values_agree_with_mpmath(mean: float, log_scale: float) -> None:
    """log P(y) to a relative 1e-12, however small P(y): at log-scale -12 it is exp(-1e9)."""
    y = torch.tensor([0.0, 1.0, 7.0, 8.0, 15.0, 16.0], dtype=torch.float64)
    found = discretized_logistic_log_prob(y, mean, log_scale, num_levels=17)
    for level, value in zip(y, found, strict=True):
        expected = float(mpmath.log(by_mpmath(int(level), mean, log_scale, 17)))
        assert abs(float(value) - expected) <= 1e-12 * max(1.0, abs(expected)), (mean, log_scale, level)


# D3 -------------------------------------------------------------------------------------------------------


def log_of_cdf_difference(
    y: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, *, num_levels: int
) -> Tensor:
    """The definition, taken literally: log(F(y + 1/2) - F(y - 1/2))."""
    z, s = y.unsqueeze(-1), log_scale.exp()
    above = torch.where(z == num_levels - 1, math.inf, (z + 0.5 - mean) / s)
    below = torch.where(z == 0, -math.inf, (z - 0.5 - mean) / s)
    mass = torch.sigmoid(above) - torch.sigmoid(below)
    return torch.logsumexp(torch.log_softmax(logits, dim=-1) + mass.log(), dim=-1)


@proves("D3", right=discretized_logistic_mixture_log_prob,
        wrong={"log_of_cdf_difference": log_of_cdf_difference})  # fmt: skip
def test_mixture_agrees_with_mpmath_over_the_box(variant: Callable[..., Tensor]) -> None:
    """Three components anywhere in the box of D3, log-scales -12 to 8: log P(y) to a relative 1e-10."""
    generator = torch.Generator().manual_seed(0)
    count = 40
    logits = 2 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    mean = torch.tensor([-1e4, -20.0, 0.0, 100.0, 128.0, 300.0, 1e4], dtype=torch.float64)
    mean = mean[torch.randint(7, (count, 3), generator=generator)]
    log_scale = -12 + 20 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(256, (count,), generator=generator).double()
    y[:4] = torch.tensor([0.0, 255.0, 0.0, 255.0])
    found = variant(y, logits, mean, log_scale, num_levels=256)
    weights = torch.softmax(logits, dim=-1)
    for row in range(count):
        parts = zip(weights[row].tolist(), mean[row].tolist(), log_scale[row].tolist(), strict=True)
        total = mpmath.fsum(w * by_mpmath(int(y[row]), m, s, 256) for w, m, s in parts)
        expected = float(mpmath.log(total))
        assert abs(float(found[row]) - expected) <= 1e-10 * max(1.0, abs(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_d3_value_and_gradient_are_finite_over_the_box(dtype: torch.dtype) -> None:
    """Log-scales -12 to 8, means -10^4 to 10^4, every level of a few: nothing is NaN or infinite."""
    scales = torch.linspace(-12, 8, 21, dtype=dtype)
    means = torch.tensor([-1e4, -300.0, -0.5, 0.0, 0.5, 127.5, 254.5, 255.0, 600.0, 1e4], dtype=dtype)
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=dtype)
    mean, log_scale, y = (part.flatten() for part in torch.meshgrid(means, scales, levels, indexing="ij"))
    inputs = [torch.stack([mean, mean.flip(0)], -1), torch.stack([log_scale, log_scale.flip(0)], -1)]
    logits = torch.tensor([0.0, 3.0], dtype=dtype).expand_as(inputs[0])
    inputs = [value.clone().requires_grad_() for value in (logits, *inputs)]
    log_p = discretized_logistic_mixture_log_prob(y, *inputs, num_levels=256)
    gradients = torch.autograd.grad(log_p.sum(), inputs)
    assert all(bool(value.isfinite().all()) for value in (log_p, *gradients))
    assert bool((log_p <= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_d3_colour_is_finite_over_the_box(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(256, (300, 3), generator=generator)
    logits = 5 * torch.randn(300, 4, generator=generator, dtype=dtype)
    mean = 1e4 * (2 * torch.rand(300, 3, 4, generator=generator, dtype=dtype) - 1)
    log_scale = 20 * torch.rand(300, 3, 4, generator=generator, dtype=dtype) - 12
    coefficients = 2 * torch.rand(300, 3, 4, generator=generator, dtype=dtype) - 1
    inputs = [value.requires_grad_() for value in (logits, mean, log_scale, coefficients)]
    log_p = rgb_logistic_mixture_log_prob(y, *inputs, num_levels=256)
    gradients = torch.autograd.grad(log_p.sum(), inputs)
    assert all(bool(value.isfinite().all()) for value in (log_p, *gradients))


# D7 -------------------------------------------------------------------------------------------------------


def scale_not_charged(log_prob: Tensor, num_dims: int, *, bin_width: float) -> Tensor:
    """Bits per dimension of the density, as if it were that of the levels."""
    return bits_per_dim(log_prob, num_dims, bin_width=1.0)


def scale_charged_once(log_prob: Tensor, num_dims: int, *, bin_width: float) -> Tensor:
    """The scale charged to the picture instead of to each of its dimensions."""
    return bits_per_dim(log_prob + math.log(bin_width), num_dims, bin_width=1.0)


@proves("D7", right=bits_per_dim,
        wrong={"scale_not_charged": scale_not_charged, "scale_charged_once": scale_charged_once})  # fmt: skip
def test_scaling_the_data_changes_no_bits(variant: Callable[..., Tensor]) -> None:
    """Uniform models: log2 of the number of levels on any scale; likewise for a density that is moved."""
    for num_levels, exact in ((256, 8.0), (17, math.log2(17.0)), (2, 1.0)):
        for bin_width in (1.0, 1 / num_levels, 2 / (num_levels - 1)):
            log_density = -math.log(num_levels * bin_width)  # uniform over all bins
            found = variant(torch.tensor([64 * log_density], dtype=torch.float64), 64, bin_width=bin_width)
            torch.testing.assert_close(found, torch.full_like(found, exact), rtol=0, atol=1e-12)
    generator = torch.Generator().manual_seed(0)
    x = 256 * torch.rand(20, 12, generator=generator, dtype=torch.float64)
    scaled, log_256 = x / 256, math.log(256.0)
    of_levels = gaussian_log_prob(x, 128.0, 2 * math.log(50.0))
    of_scaled = gaussian_log_prob(scaled, 0.5, 2 * math.log(50.0 / 256))
    torch.testing.assert_close(of_scaled, of_levels + 12 * log_256, rtol=0, atol=1e-11)
    same = variant(of_scaled, 12, bin_width=1 / 256), variant(of_levels, 12, bin_width=1.0)
    torch.testing.assert_close(*same, rtol=0, atol=1e-12)
