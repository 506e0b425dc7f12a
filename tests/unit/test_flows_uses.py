"""What posteriors, priors and dequantizers need of flows: gradients, generators, contexts, stacks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.flows import (
    ActNorm,
    AffineCoupling,
    Compose,
    FixedAffine,
    Flow,
    Glow,
    Inverse,
    InverseAutoregressiveFlow,
    InvertibleConv1x1,
    OnFirstChannels,
    PlanarFlow,
    RadialFlow,
    Sigmoid,
    glow_transform,
    half_mask,
    initialise,
)
from dgm_course.nets import MLP, MaskedMLP


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def some_transform() -> Compose:
    coupling = AffineCoupling(half_mask(2), MLP([1, 8, 2], generator=seeded(1)))
    return Compose([coupling, RadialFlow(2, generator=seeded(2))]).double()


def test_gradients_reach_the_bases_parameters() -> None:
    """A posterior flow: the encoder's mean and scale get pathwise gradients, as differences give them."""
    transform, mean, log_sd = some_transform(), draw(3, 2), draw(3, 2, seed=1)

    def mean_square(mean: Tensor, log_sd: Tensor) -> Tensor:
        torch.manual_seed(5)
        flow = Flow(transform, Independent(Normal(mean, log_sd.exp()), 1))
        x, log_prob = flow.rsample_with_log_prob((4,))
        return x.square().sum() + log_prob.sum()

    assert torch.autograd.gradcheck(mean_square, (mean.requires_grad_(), log_sd.requires_grad_()))


def test_has_rsample_is_the_bases() -> None:
    transform = some_transform()
    mixture = MixtureSameFamily(Categorical(torch.ones(2)), Independent(Normal(draw(2, 2), 1.0), 1))
    flow = Flow(transform, mixture)
    assert Flow(transform, 2).has_rsample and not flow.has_rsample
    assert flow.sample((5,)).shape == (5, 2)
    with pytest.raises(ValueError, match="no reparametrised samples"):
        flow.rsample((5,))


def test_a_generator_goes_through_nested_and_expanded_flows() -> None:
    inner = Flow(some_transform(), 2)
    outer = Flow(some_transform(), inner)
    assert torch.equal(outer.sample(3, generator=seeded(4)), outer.sample(3, generator=seeded(4)))
    x, log_prob = outer.rsample_with_log_prob((3,), generator=seeded(4))
    torch.testing.assert_close(outer.log_prob(x), log_prob)
    wide = inner.expand((4,))
    assert torch.equal(wide.sample(3, generator=seeded(4)), wide.sample(3, generator=seeded(4)))


def test_context_and_base_batch_agree() -> None:
    net = MaskedMLP(3, 12, 2, context=2, generator=seeded(0))
    transform = InverseAutoregressiveFlow(net).double()
    flow = Flow(transform, Independent(Normal(draw(5, 3), 1.0), 1))
    for context, shape in ((draw(5, 2), (7, 5, 3)), (draw(4, 5, 2), (7, 4, 5, 3))):
        x, log_prob = flow.rsample_with_log_prob((7,), context=context)
        assert x.shape == shape and log_prob.shape == shape[:-1]
    narrow = Flow(transform, Independent(Normal(draw(1, 3), 1.0), 1))
    with pytest.raises(ValueError, match="expand the base"):
        narrow.sample((7,), context=draw(5, 2))


def test_a_stack_does_not_sample_as_a_distribution() -> None:
    stack = Flow(AffineCoupling(half_mask(2), MLP([1, 8, 2], members=3, generator=seeded(0))), 2)
    assert stack.log_prob(draw(5, 2).float()).shape == (3, 5)
    with pytest.raises(ValueError, match="stack of 3"):
        stack.sample((3,))


def test_a_sigmoids_samples_lie_inside() -> None:
    flow = Flow(Compose([FixedAffine(0.0, 9.0), Sigmoid()]), 1)
    x = flow.sample(100_000, generator=seeded(0))
    assert x.dtype == torch.float32 and 0 < float(x.min()) and float(x.max()) < 1
    assert bool(flow.support.check(x).all()) and not bool(flow.support.check(torch.tensor([1.5])).all())
    with pytest.raises(ValueError, match="between 0 and 1"):
        flow.log_prob(torch.tensor([1.5]))


@pytest.mark.parametrize("num_dims", [2, 8, 40])
def test_strong_planar_layers_in_float32(num_dims: int) -> None:
    """u and w as an encoder may give them: invertible, and the log-determinant that of float64."""
    worst = 0.0
    for seed in range(50):
        layer = PlanarFlow(num_dims, generator=seeded(seed))
        with torch.no_grad():
            layer.u.normal_(0, 3, generator=seeded(seed + 100))
            layer.w.normal_(0, 3, generator=seeded(seed + 200))
        z = draw(40, num_dims, seed=seed)
        exact = copy.deepcopy(layer).double()(z)[1]
        single = layer(z.float())[1]
        assert bool(single.isfinite().all())
        layer.inverse(z.float())  # not refused
        worst = max(worst, float((single.double() - exact).abs().max().detach()))
    assert worst < 0.5


def test_initialise_refuses_what_it_cannot_reach() -> None:
    with pytest.raises(ValueError, match="1 of 1 actnorms met no data"):
        initialise(Inverse(ActNorm(2)), draw(5, 2).float())


def test_glow_has_the_layers_that_it_says() -> None:
    for lu in (True, False):
        glow = glow_transform((2, 4, 4), steps_per_scale=3, hidden=4, lu=lu, generator=seeded(0))
        kinds = [type(part) for part in glow.modules()]
        assert kinds.count(ActNorm) == kinds.count(InvertibleConv1x1) == 6
        assert kinds.count(AffineCoupling) == 7 and kinds.count(OnFirstChannels) == 1  # one more at the split
        steps = [part for part in glow.transform if isinstance(part, AffineCoupling)]
        firsts = [bool(part.mask.flatten()[0]) for part in steps]
        assert firsts == [True, True, False, True]  # the split's, then in turn
        convolutions = [part for part in glow.modules() if isinstance(part, InvertibleConv1x1)]
        assert all(hasattr(part, "log_s") == lu for part in convolutions)
    one = glow_transform((1, 6, 2), steps_per_scale=1, hidden=4, generator=seeded(0))
    assert not any(isinstance(part, OnFirstChannels) for part in one.modules())  # 4 does not divide 6


def test_a_conditional_glow() -> None:
    glow = Glow((1, 4, 4), steps_per_scale=1, hidden=4, context_channels=2, generator=seeded(0)).double()
    with torch.no_grad():
        for parameter in glow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(1)))
    context = draw(3, 2, 4, 4)
    x, log_prob = glow.rsample_with_log_prob((), context=context, generator=seeded(2))
    assert x.shape == (3, 1, 4, 4)
    torch.testing.assert_close(glow.log_prob(x, context), log_prob)
    torch.testing.assert_close(glow.decode(glow.encode(x, context), context), x)
    assert not torch.allclose(glow.log_prob(x, context + 1), log_prob)


def test_given_tensors_are_copied() -> None:
    scale = torch.tensor([1.0, 2.0])
    layer = FixedAffine(0.0, scale)
    layer.load_state_dict({"shift": torch.tensor(0.0), "scale": torch.tensor([3.0, 4.0])})
    assert scale.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="do not fit events"):
        layer(torch.zeros(4, 1))


def test_a_radial_flow_starts_as_the_identity() -> None:
    z = draw(6, 3).float()
    x, log_det = RadialFlow(3, generator=seeded(0))(z)
    torch.testing.assert_close(x, z)
    torch.testing.assert_close(log_det, torch.zeros(6), rtol=0, atol=1e-6)
