"""Bounds of log P(y) beyond the theorems: shapes, what stands as p, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from dequantizer_zoo import F64, LEVELS, levels, moved, plane_flow, seeded
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.dequantization import (
    Dequantizer,
    UniformDequantizer,
    VariationalDequantizer,
    dequantization_log_weights,
    importance_weighted_bound,
    uniform_bound,
    variational_bound,
)
from dgm_course.flows import Flow, Glow
from dgm_course.logistic_mixture import logistic_mixture_log_prob
from dgm_course.nets import member
from dgm_course.numerics import gauss_legendre

CUBE, WEIGHTS = gauss_legendre(0.0, 1.0, 60, num_dims=2)  # (N, 2), (N,)


def noises(members: int | None = None) -> dict[str, Dequantizer]:
    settings = {"hidden": 8, "context": 3, "members": members, "generator": seeded(5)}
    return {
        "uniform": UniformDequantizer(members=members),
        "coupling": moved(VariationalDequantizer.coupling(2, LEVELS, **settings)),
        "autoregressive": moved(VariationalDequantizer.autoregressive(2, LEVELS, **settings)),
    }


every_noise = pytest.mark.parametrize("name", noises())


def products(x: Tensor) -> Tensor:
    """A product of logistic mixtures over the entries: ``(..., m) -> (...)``."""
    w, mean, log_scale = torch.tensor([[0.0, 0.5, -0.3], [0.4, 2.6, 4.5], [-1.2, -0.5, -2.0]], dtype=x.dtype)
    return logistic_mixture_log_prob(x, w, mean, log_scale).sum(-1)


def exactly(log_prob: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """``log P(y)`` by quadrature over the unit square: ``(B, 2) -> (B,)``."""
    values = log_prob(y.unsqueeze(-3) + CUBE.unsqueeze(1))  # (N, B)
    return torch.logsumexp(values + WEIGHTS.log().unsqueeze(1), dim=0)


# what they are --------------------------------------------------------------------------------------------


@every_noise
@pytest.mark.parametrize("batch", [(3,), (1,), (3, 3), (2, 1, 4)], ids=str)
def test_shapes(name: str, batch: tuple[int, ...]) -> None:
    noise, y = noises()[name], levels(*batch, 2)
    *front, rows = batch
    weights = dequantization_log_weights(products, noise, y, num_samples=3, generator=seeded())
    assert weights.shape == (*front, 3, rows)
    for bound in (variational_bound, importance_weighted_bound):
        assert bound(products, noise, y, num_samples=3).shape == batch
    assert uniform_bound(products, y, num_samples=3).shape == uniform_bound(products, y).shape == batch


@every_noise
def test_each_bound_from_the_weights(name: str) -> None:
    """The mean of the logarithms, the logarithm of the mean; one sample makes them one."""
    noise, y = noises()[name], levels(5, 2)
    same = {"num_samples": 7}
    weights = dequantization_log_weights(products, noise, y, **same, generator=seeded())
    low = variational_bound(products, noise, y, **same, generator=seeded())
    high = importance_weighted_bound(products, noise, y, **same, generator=seeded())
    torch.testing.assert_close(low, weights.sum(0) / 7)
    torch.testing.assert_close(high.exp(), weights.exp().sum(0) / 7)
    assert bool((low < high).all()), "weights that differ: Jensen's inequality is strict"
    one = dequantization_log_weights(products, noise, y, generator=seeded())
    for bound in (variational_bound, importance_weighted_bound):
        torch.testing.assert_close(bound(products, noise, y, num_samples=1, generator=seeded()), one[0])


def test_uniform_bound_is_the_variational_one_with_uniform_noise() -> None:
    """And both are the average of log p at y + u, the u drawn here."""
    y = levels(5, 2)
    found = uniform_bound(products, y, num_samples=4, generator=seeded())
    other = variational_bound(products, UniformDequantizer(), y, num_samples=4, generator=seeded())
    u = torch.rand(4, 5, 2, dtype=F64, generator=seeded())
    assert torch.equal(found, other)
    torch.testing.assert_close(found, products(y + u).mean(0), rtol=1e-12, atol=1e-12)


def test_an_untrained_dequantizer_gives_the_uniform_bound() -> None:
    noise, y = VariationalDequantizer.coupling(2, LEVELS, generator=seeded(0)).double(), levels(5, 2)
    found = variational_bound(products, noise, y, num_samples=4, generator=seeded())
    torch.testing.assert_close(found, uniform_bound(products, y, num_samples=4, generator=seeded()))


def weight_error(name: str, seed: int) -> Tensor:
    """``mean exp(log w) / P(y) - 1`` in standard errors, for six y."""
    noise, y, count = noises()[name], levels(6, 2), 20_000
    with torch.no_grad():
        log_w = dequantization_log_weights(products, noise, y, num_samples=count, generator=seeded(seed))
        ratio = (log_w - exactly(products, y)).exp()  # (K, B)
    return (ratio.mean(0) - 1) / ratio.std(0) * count**0.5


@every_noise
def test_the_mean_weight_is_the_probability(name: str) -> None:
    assert bool((weight_error(name, seed=11).abs() < 5).all())


@pytest.mark.long
@every_noise
def test_the_mean_weight_is_the_probability_for_five_seeds(name: str) -> None:
    errors = torch.stack([weight_error(name, seed=100 + k) for k in range(5)])
    assert bool((errors.abs() < 5).all())


@every_noise
def test_the_generator_decides(name: str) -> None:
    noise, y = noises()[name], levels(4, 2)
    before = torch.get_rng_state()
    a, b, c = (variational_bound(products, noise, y, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


# what stands as p -----------------------------------------------------------------------------------------


def test_a_mixture_of_torch_distributions_as_p() -> None:
    means = torch.tensor([[0.7, 0.9], [4.0, 2.5]], dtype=F64)
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7], dtype=F64)), Independent(Normal(means, 0.8), 1)
    )
    y = torch.cartesian_prod(torch.arange(-3, 9), torch.arange(-3, 9)).double()
    edges = torch.arange(-3.0, 10.0, dtype=F64)
    cdf = Normal(means.unsqueeze(-1), 0.8).cdf(edges)  # (2, m, 13)
    first, second = cdf.diff().unbind(1)  # of each component, (2, 12)
    p = torch.einsum("k,ki,kj->ij", torch.tensor([0.3, 0.7], dtype=F64), first, second).flatten()
    torch.testing.assert_close(exactly(mixture.log_prob, y).exp(), p, rtol=1e-9, atol=1e-12)
    log_w = dequantization_log_weights(
        mixture.log_prob, UniformDequantizer(), y[60:80], num_samples=4000, generator=seeded()
    )
    ratio = log_w.exp() / p[60:80]
    assert bool(((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 4000**0.5).all())


def test_realnvp_as_p_gives_gradients_to_p_and_q() -> None:
    p, q, y = plane_flow(), noises()["coupling"], levels(8, 2)
    for bound in (variational_bound, importance_weighted_bound):
        loss = -bound(p.log_prob, q, y, num_samples=3, generator=seeded()).mean()
        gradients = torch.autograd.grad(loss, [*p.parameters(), *q.parameters()])
        assert all(bool(g.isfinite().all()) and bool((g != 0).any()) for g in gradients)


def test_glow_as_p_through_a_reshape() -> None:
    """Flat pictures of levels in and out of an image flow, and the units of both."""
    glow = moved(Glow((1, 4, 4), num_scales=2, steps_per_scale=1, hidden=4, generator=seeded(0)), 0.03)
    noise = moved(VariationalDequantizer.coupling(16, LEVELS, hidden=8, context=4, generator=seeded(1)))
    y = levels(3, 16)

    def log_prob(x: Tensor) -> Tensor:
        return glow.log_prob(x.unflatten(-1, (1, 4, 4)))

    bound = variational_bound(log_prob, noise, y, num_samples=2, generator=seeded())
    u, log_q = noise.rsample(y, 2, generator=seeded())
    x = (y + u).reshape(6, 1, 4, 4)
    torch.testing.assert_close(bound, (glow.log_prob(x).reshape(2, 3) - log_q).mean(0))
    gradients = torch.autograd.grad(bound.sum(), [*glow.parameters(), *noise.parameters()])
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert sum(bool((g != 0).any()) for g in gradients) > 0.9 * len(gradients)


def test_differences_give_the_same_gradients() -> None:
    """One direction in the parameters of p and q together, one generator for all evaluations."""
    p, q, y = plane_flow(), noises()["coupling"], levels(3, 2)
    parameters = [*p.parameters(), *q.parameters()]
    directions = [torch.randn(t.shape, generator=seeded(9), dtype=F64) for t in parameters]

    def value(bound: Callable[..., Tensor], amount: float) -> Tensor:
        with torch.no_grad():
            for tensor, direction in zip(parameters, directions, strict=True):
                tensor.add_(amount * direction)
        return bound(p.log_prob, q, y, num_samples=4, generator=seeded()).sum()

    for bound in (variational_bound, importance_weighted_bound):
        gradients = torch.autograd.grad(value(bound, 0.0), parameters)
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        right, left = value(bound, 1e-5).detach(), value(bound, -2e-5).detach()
        value(bound, 1e-5)
        torch.testing.assert_close(slope, (right - left) / 2e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False], ids=["shared y", "a y for each"])
@every_noise
def test_stacks_of_p_and_q_are_their_members_side_by_side(name: str, shared: bool) -> None:
    """Threes everywhere. Uniform noise is told the number of densities."""
    p, q = plane_flow(members=3), noises(3)[name]
    y = levels(3, 2) if shared else levels(3, 3, 2)
    weights = dequantization_log_weights(p.log_prob, q, y, num_samples=3, generator=seeded())
    assert weights.shape == (3, 3, 3)
    u, log_q = q.rsample(y, 3, generator=seeded())
    for e in range(3):
        x = (y if shared else y[e]) + u[e]
        single = Flow(member(p.transform, e), 2)
        torch.testing.assert_close(weights[e], single.log_prob(x) - log_q[e])
    assert variational_bound(p.log_prob, q, y, num_samples=3).shape == (3, 3)


def test_levels_may_be_negative_and_beyond_any_number() -> None:
    """What a bound asks of y is whole numbers: a density does not know how many levels there are."""
    y = torch.tensor([[-3, 4], [70_000, 0]])
    assert uniform_bound(lambda x: x.sum(-1), y, num_samples=5).shape == (2,)


def test_a_stack_of_densities_with_one_uniform_noise_takes_a_y_for_each() -> None:
    p, y = plane_flow(members=3), levels(4, 2)
    found = uniform_bound(p.log_prob, y.expand(3, 4, 2), num_samples=5, generator=seeded())
    u = torch.rand(3, 5, 4, 2, dtype=F64, generator=seeded())
    for e in range(3):
        expected = Flow(member(p.transform, e), 2).log_prob(y + u[e]).mean(0)
        torch.testing.assert_close(found[e], expected)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@every_noise
def test_dtype_and_device_follow(name: str, dtype: torch.dtype, device: torch.device) -> None:
    noise, y = noises()[name].to(device, dtype), levels(4, 2).to(device, dtype)
    p = plane_flow().to(device, dtype)
    for bound in (variational_bound, importance_weighted_bound):
        value = bound(p.log_prob, noise, y, num_samples=3, generator=seeded(device=device))
        assert value.dtype == dtype and value.device.type == device.type
        assert bool(value.isfinite().all())


def test_whole_numbers_at_the_top_of_eight_bits_in_float32() -> None:
    """A density that is nothing beyond 256: the noise never crosses the bin's edge."""
    y = torch.full((2000, 4), 255)
    noise = VariationalDequantizer.coupling(4, 256, generator=seeded(0))
    with torch.no_grad():
        noise.transform[-1].conditioner.layers[-1].bias.fill_(12.0)  # u crowds at 1

    def log_prob(x: Tensor) -> Tensor:
        return torch.where((x >= 0) & (x < 256), -math.log(256.0), -math.inf).sum(-1)

    for draw in (uniform_bound(log_prob, y, num_samples=50, generator=seeded()),
                 variational_bound(log_prob, noise, y, num_samples=50, generator=seeded())):  # fmt: skip
        assert bool(draw.isfinite().all())
