"""Flows beyond their laws: as distributions, composed, conditional, and stacked."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    Uniform,
)

from dgm_course.flows import (
    AdditiveCoupling,
    AffineCoupling,
    Compose,
    FixedAffine,
    Flow,
    Glow,
    Inverse,
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    PlanarFlow,
    RadialFlow,
    Sigmoid,
    alternating_mask,
    channel_mask,
    checkerboard_mask,
    constrained_u,
    half_mask,
    initialise,
)
from dgm_course.nets import MLP, ConvNet, MaskedMLP, member


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def some_transform(num_dims: int = 2) -> Compose:
    net = MLP([num_dims - num_dims // 2, 8, 2 * (num_dims // 2)], generator=seeded(1))
    coupling = AffineCoupling(half_mask(num_dims), net)
    return Compose([coupling, RadialFlow(num_dims, generator=seeded(2))]).double()


# as a distribution ----------------------------------------------------------------------------------------


def test_a_given_base_is_the_standard_normal_where_it_is_one() -> None:
    transform, x = some_transform(), draw(7, 2)
    base = Independent(Normal(torch.zeros(2).double(), 1.0), 1)
    torch.testing.assert_close(Flow(transform, base).log_prob(x), Flow(transform, 2).log_prob(x))
    assert Flow(transform, base).event_shape == Flow(transform, (2,)).event_shape == (2,)


def test_any_base_and_its_batch_shape() -> None:
    """A base with a batch shape makes a batch of flows: q(z|x) with a Gaussian of its own for each x."""
    transform, mean = some_transform(), draw(5, 2, seed=3)
    flow = Flow(transform, Independent(Normal(mean, 0.5), 1))
    assert flow.batch_shape == (5,) and flow.event_shape == (2,)
    x, log_prob = flow.rsample_with_log_prob((3,))
    assert x.shape == (3, 5, 2) and log_prob.shape == (3, 5)
    torch.testing.assert_close(flow.log_prob(x), log_prob)
    z, log_det = transform.inverse(x[1, 4])
    torch.testing.assert_close(log_prob[1, 4], Normal(mean[4], 0.5).log_prob(z).sum() + log_det)
    uniform = Flow(FixedAffine(0.0, 3.0), Independent(Uniform(torch.zeros(2), torch.ones(2)), 1))
    torch.testing.assert_close(uniform.log_prob(torch.ones(2)), torch.tensor(-2 * math.log(3)))


def test_a_flow_in_a_mixture_and_under_a_transformed_distribution() -> None:
    """Where torch expects a Distribution a flow will do."""
    transform = some_transform()
    parts = Flow(transform, Independent(Normal(draw(3, 2, seed=3), 0.5), 1))
    weights = torch.tensor([0.2, 0.3, 0.5]).double()
    mixture = MixtureSameFamily(Categorical(weights), parts, validate_args=False)
    x = draw(6, 2, seed=4)
    by_hand = torch.logsumexp(parts.log_prob(x[:, None]) + weights.log(), dim=-1)
    torch.testing.assert_close(mixture.log_prob(x), by_hand)
    assert mixture.sample((4,)).shape == (4, 2)
    moved = TransformedDistribution(Flow(transform, 2), [AffineTransform(1.0, 2.0, event_dim=1)])
    expected = Flow(transform, 2).log_prob((x - 1) / 2) - 2 * math.log(2)
    torch.testing.assert_close(moved.log_prob(x), expected)
    pair = Independent(parts, 1)
    torch.testing.assert_close(pair.log_prob(x[:3]), parts.log_prob(x[:3]).sum())


def test_expand_shares_the_transform() -> None:
    flow = Flow(some_transform(), 2)
    wide = flow.expand((4,))
    assert wide.batch_shape == (4,) and wide.transform is flow.transform
    torch.testing.assert_close(wide.log_prob(draw(4, 2)), flow.log_prob(draw(4, 2)))
    assert isinstance(wide, Distribution) and wide.sample((3,)).shape == (3, 4, 2)


def test_samples_are_the_same_for_the_same_generator_and_follow_the_parameters_dtype() -> None:
    flow = Flow(some_transform(), 2)
    assert flow.sample(5).dtype == torch.float64 and flow.sample().shape == (2,)
    assert torch.equal(flow.sample(5, generator=seeded(8)), flow.sample((5,), generator=seeded(8)))
    assert flow.float().sample(5).dtype == torch.float32
    assert flow.rsample((5,)).requires_grad and not flow.sample((5,)).requires_grad


def test_samples_have_the_density() -> None:
    """A histogram of one coordinate against the density integrated over the other: 5 sigma in every bin."""
    flow = Flow(some_transform(), 2)
    count, edges = 40_000, torch.linspace(-2, 2, 9).double()
    x = flow.sample(count, generator=seeded(5))
    axis = torch.linspace(-12, 12, 2401).double()
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = torch.cat([flow.log_prob(part).exp() for part in grid.split(400_000)]).reshape(2401, 2401)
    marginal = density.sum(1) * 0.01
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (axis > low + 1e-9) & (axis < high - 1e-9)
        ends = ((axis - low).abs() < 1e-9) | ((axis - high).abs() < 1e-9)
        share = float((marginal[inside].sum() + 0.5 * marginal[ends].sum()) * 0.01)
        found = float(((x[:, 0] > low) & (x[:, 0] < high)).double().mean())
        assert abs(found - share) < 5 * (share * (1 - share) / count) ** 0.5


# composition ----------------------------------------------------------------------------------------------


def test_compose_applies_the_first_first_and_slices_share_parameters() -> None:
    a, b = FixedAffine(1.0, 2.0), FixedAffine(0.0, 10.0)
    both = Compose([a, b])
    torch.testing.assert_close(both(torch.ones(2))[0], torch.full((2,), 30.0))
    assert both[0] is a and len(both) == 2 and list(both) == [a, b]
    chain = Compose([PlanarFlow(2, generator=seeded(k)) for k in range(3)])
    assert len(chain[:2]) == 2 and chain[:2][0].w is chain[0].w
    z = draw(4, 2).float()
    torch.testing.assert_close(chain[2](chain[:2](z)[0])[0], chain(z)[0])


def test_inverse_of_the_inverse() -> None:
    transform, z = some_transform(), draw(3, 2)
    twice = Inverse(Inverse(transform))
    for found, expected in zip(twice(z), transform(z), strict=True):
        assert torch.equal(found, expected)


# context --------------------------------------------------------------------------------------------------


def test_a_coupling_layer_reads_its_context() -> None:
    layer = AffineCoupling(half_mask(4), MLP([2 + 3, 8, 4], generator=seeded(0))).double()
    z, context = draw(6, 4), draw(6, 3, seed=1)
    x, log_det = layer(z, context)
    torch.testing.assert_close(layer.inverse(x, context)[0], z)
    for row in range(6):
        one = layer(z[row], context[row])
        torch.testing.assert_close(one[0], x[row])
        torch.testing.assert_close(one[1], log_det[row])
    assert not torch.allclose(layer(z, context + 1)[0], x)
    broadcast, _ = layer(z[:1], context)  # one z, many contexts
    assert broadcast.shape == (6, 4)


def test_an_image_coupling_reads_a_context_map() -> None:
    layer = AffineCoupling(channel_mask(4), ConvNet(2 + 1, 6, 4, generator=seeded(0))).double()
    z, context = draw(3, 4, 2, 2), draw(3, 1, 2, 2, seed=1)
    x, log_det = layer(z, context)
    assert log_det.shape == (3,)
    torch.testing.assert_close(layer.inverse(x, context)[0], z)


@pytest.mark.parametrize("kind", [MaskedAutoregressiveFlow, InverseAutoregressiveFlow])
def test_an_autoregressive_flow_reads_its_context(kind: type) -> None:
    flow = Flow(kind(MaskedMLP(3, 12, 2, context=2, generator=seeded(0))).double(), 3)
    context = draw(5, 2, seed=1)
    x, log_prob = flow.rsample_with_log_prob((4,), context=context, generator=seeded(2))
    assert x.shape == (4, 5, 3) and log_prob.shape == (4, 5)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob)
    torch.testing.assert_close(flow.log_prob(x[1, 2], context[2]), log_prob[1, 2])


# stacks of conditioners -----------------------------------------------------------------------------------


def test_stacked_conditioners_make_a_stack_of_flows() -> None:
    """``members=E`` in the networks: values (E, B, d), log-determinants (E, B), each as the single flow's."""
    nets = [MLP([1, 8, 2], members=3, generator=seeded(k)) for k in range(2)]
    masks = [half_mask(2), half_mask(2, first=False)]
    stack = Compose([AffineCoupling(m, n) for m, n in zip(masks, nets, strict=True)]).double()
    z = draw(5, 2)
    x, log_det = stack(z)
    assert x.shape == (3, 5, 2) and log_det.shape == (3, 5)
    back, _ = stack.inverse(x)
    torch.testing.assert_close(back, z.expand(3, 5, 2))
    for index in range(3):
        single = copy.deepcopy(stack)
        for layer, net in zip(single, nets, strict=True):
            layer.conditioner = member(net, index)
        torch.testing.assert_close(single(z)[0], x[index])


@pytest.mark.parametrize("kind", [MaskedAutoregressiveFlow, InverseAutoregressiveFlow])
def test_stacked_autoregressive_flows(kind: type) -> None:
    net = MaskedMLP(3, 9, 2, members=2, generator=seeded(0)).double()
    stack = kind(net)
    z = draw(5, 3)
    x, log_det = stack(z)
    assert x.shape == (2, 5, 3) and log_det.shape == (2, 5)
    torch.testing.assert_close(stack.inverse(x)[0], z.expand(2, 5, 3))
    torch.testing.assert_close(kind(member(net, 1))(z)[0], x[1])


# single transforms ----------------------------------------------------------------------------------------


def test_constrained_u_keeps_what_is_across_and_bounds_what_is_along() -> None:
    w = draw(50, 3)
    for size in (0.1, 1.0, 100.0):
        u = size * draw(50, 3, seed=1)
        moved = constrained_u(u, w)
        assert bool(((moved * w).sum(-1) >= -1 - 1e-9).all())
        change = moved - u
        along = (change * w).sum(-1, keepdim=True) * w / w.square().sum(-1, keepdim=True)
        torch.testing.assert_close(change, along, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(constrained_u(torch.zeros(3).double(), w[0]), torch.zeros(3).double())


def test_additive_coupling_is_affine_coupling_with_scale_one() -> None:
    net = MLP([2, 8, 2], generator=seeded(0)).double()

    class ShiftsAndZeros(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([net(x), torch.zeros_like(net(x))], dim=-1)

    z = draw(6, 4)
    pair = AdditiveCoupling(half_mask(4), net), AffineCoupling(half_mask(4), ShiftsAndZeros())
    for found, expected in zip(pair[0](z), pair[1](z), strict=True):
        torch.testing.assert_close(found, expected)


def test_masks() -> None:
    assert half_mask(5).tolist() == [True, True, True, False, False]
    assert alternating_mask(4, first=False).tolist() == [False, True, False, True]
    assert channel_mask(3, first=False).flatten().tolist() == [False, False, True]
    assert checkerboard_mask(2, 3).int().tolist() == [[[1, 0, 1], [0, 1, 0]]]


def test_sigmoid_at_the_ends_and_its_density() -> None:
    for dtype in (torch.float32, torch.float64):
        z, log_det = Sigmoid().inverse(torch.tensor([[0.0, 1.0]], dtype=dtype))
        assert bool(z.isfinite().all()) and float(log_det) > 0
    logistic = Flow(Inverse(Sigmoid()), Independent(Uniform(torch.zeros(1), torch.ones(1)), 1))
    x = torch.tensor([0.7])
    expected = -x - 2 * torch.nn.functional.softplus(-x)
    torch.testing.assert_close(logistic.log_prob(x), expected.sum())


def test_glow_before_training_is_linear_and_starts_standardised() -> None:
    """Couplings start as the identity, so after ``initialise`` the latents have mean 0 and variance 1."""
    images = 5 + 3 * draw(200, 1, 4, 4).float()
    glow = Glow((1, 4, 4), steps_per_scale=2, hidden=6, generator=seeded(0))
    initialise(glow, images)
    z = glow.encode(images).detach()
    assert abs(float(z.mean())) < 1e-5 and abs(float(z.var()) - 1) < 0.05
    torch.testing.assert_close(glow.decode(z), images, rtol=1e-4, atol=1e-4)
    middle = glow.encode(0.5 * (images[0] + images[1]))
    torch.testing.assert_close(middle, 0.5 * (z[0] + z[1]), rtol=0, atol=1e-4)
