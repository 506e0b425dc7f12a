"""reversible: squeezing, i-RevNet (a bijection as far as its features) and the residual network beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgm_course.nets import squeeze, unsqueeze
from dgm_course.reversible import (
    IRevNet,
    ResidualNet,
    ReversibleSequence,
    saved_activation_bytes,
)

F64 = torch.float64
DIGIT = (1, 8, 8)


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 3, 4, 6), (2, 5, 1, 8, 8)])
def test_squeeze_is_torch_s_pixel_unshuffle_and_unsqueeze_undoes_it(shape: tuple[int, ...]) -> None:
    x = torch.arange(torch.Size(shape).numel(), dtype=F64).reshape(shape)
    y = squeeze(x)
    assert torch.equal(y, F.pixel_unshuffle(x, 2))
    assert torch.equal(unsqueeze(y), x)
    assert torch.equal(squeeze(unsqueeze(y)), y)


def test_squeeze_s_channels_are_the_corners_of_a_window() -> None:
    x = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])  # (1, 2, 2)
    assert torch.equal(squeeze(x), torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(4, 1, 1))


def test_squeeze_refuses_odd_pictures() -> None:
    for shape in ((1, 3, 4), (1, 4, 3), (4, 4)):
        with pytest.raises(ValueError, match="of even height and width, got shape"):
            squeeze(torch.zeros(shape))
    for shape in ((3, 2, 2), (4, 2)):
        with pytest.raises(ValueError, match="a multiple of four channels, got shape"):
            unsqueeze(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "blocks"), [(DIGIT, (2, 2)), (DIGIT, (1, 1, 1)), ((3, 4, 6), (2,)), ((2, 8, 4), (1, 2))]
)
def test_i_revnet_is_a_bijection_onto_as_many_features(
    shape: tuple[int, int, int], blocks: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> None:
    net = IRevNet(shape, 10, blocks=blocks, hidden=6, generator=generator).to(device, F64)
    x = torch.randn(3, *shape, dtype=F64, generator=generator).to(device)
    features = net.features(x)
    size = torch.Size(shape).numel()
    assert features.shape == (3, size) and net.num_features == size
    torch.testing.assert_close(net.inverse(features), x, rtol=0, atol=1e-12)
    other = torch.randn(3, size, dtype=F64, generator=generator).to(device)  # onto: any features will do
    torch.testing.assert_close(net.features(net.inverse(other)), other, rtol=0, atol=1e-12)
    torch.testing.assert_close(net(x), features @ net.projection.weight + net.projection.bias)
    jacobian = torch.autograd.functional.jacobian(lambda x: net.inverse(x).flatten(), features[:1])[:, 0]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1].item(), 0.0, rtol=0, atol=1e-10)


def test_float32_pictures_come_back_from_float64_features(generator: torch.Generator) -> None:
    net = IRevNet(DIGIT, 10, generator=generator)
    x = torch.rand(5, *DIGIT, generator=generator)
    assert torch.equal(net.inverse(net.features(x.double())).float(), x)
    assert net.features(x).dtype == torch.float32


def test_i_revnet_s_gradients_are_those_of_stored_activations(generator: torch.Generator) -> None:
    net = IRevNet(DIGIT, 10, hidden=6, generator=generator).double()
    x = torch.randn(4, *DIGIT, dtype=F64, generator=generator)
    gradients, saved = [], []
    for mode in (False, True):
        for stage in net.modules():
            if isinstance(stage, ReversibleSequence):
                stage.save_activations = mode
        gradients.append(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))
        saved.append(saved_activation_bytes(net, x))
    for got, right in zip(*gradients, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12)
    pixels = 4 * 64 * 8
    assert saved[0] == 2 * pixels  # of each of the two stages, the output
    assert saved[1] > 10 * saved[0]


def test_residual_net_is_its_equations(generator: torch.Generator) -> None:
    net = ResidualNet(DIGIT, 10, blocks=(1, 1), channels=3, hidden=4, generator=generator).double()
    x = torch.randn(2, *DIGIT, dtype=F64, generator=generator)
    h = F.conv2d(x, net.stem.weight, net.stem.bias, padding=1)
    for (branch,) in net.stages:
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
        inner = F.silu(F.conv2d(h, branch[0].weight, branch[0].bias, padding=1))
        h = h + F.conv2d(inner, branch[2].weight, branch[2].bias, padding=1)
    expected = h.flatten(1) @ net.projection.weight + net.projection.bias
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_the_defaults_are_of_equal_size_on_digits() -> None:
    counts = [sum(p.numel() for p in kind(DIGIT, 10).parameters()) for kind in (IRevNet, ResidualNet)]
    assert counts == [23_986, 23_994]


@pytest.mark.parametrize("kind", [IRevNet, ResidualNet])
def test_initial_values_come_from_the_generator(kind: type[nn.Module]) -> None:
    def drawn(seed: int) -> list[Tensor]:
        net = kind(DIGIT, 10, generator=torch.Generator().manual_seed(seed))
        return [p.detach() for p in net.parameters()]

    before = torch.get_rng_state()
    first, again, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    kernel = next(p for p in first if p.dim() == 4)
    bound = (9 * kernel.shape[1]) ** -0.5
    assert 0.9 * bound < float(kernel.abs().max()) <= bound


@pytest.mark.parametrize("kind", [IRevNet, ResidualNet])
def test_state_dict_round_trip(kind: type[nn.Module], generator: torch.Generator) -> None:
    net, other = (kind(DIGIT, 10, generator=generator) for _ in range(2))
    x = torch.rand(3, *DIGIT, generator=generator)
    assert not torch.equal(net(x), other(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize("kind", [IRevNet, ResidualNet])
def test_sizes_that_do_not_fit_are_refused(kind: type[nn.Module]) -> None:
    for shape in ((1, 7, 8), (1, 8, 6), (8, 8), (0, 8, 8)):
        with pytest.raises(ValueError, match=r"image_shape must be \(C, H, W\), .* got \("):
            kind(shape, 10, blocks=(1, 1))
    for blocks in ((), (2, 0)):
        with pytest.raises(ValueError, match="one count >= 1 for each stage"):
            kind(DIGIT, 10, blocks=blocks)
    for wrong in ({"num_classes": 0}, {"num_classes": 10, "hidden": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            kind(DIGIT, **wrong)
    net = kind(DIGIT, 10)
    for x in (torch.zeros(2, 64), torch.zeros(2, 1, 8, 6)):
        with pytest.raises(ValueError, match=r"pictures \(B, 1, 8, 8\), got shape .*: use x.unflatten"):
            net(x)


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be \(B, 64\), .* got \(2, 63\)"):
        IRevNet(DIGIT, 10).inverse(torch.zeros(2, 63))
