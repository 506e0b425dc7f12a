"""Laws of the networks: what an output depends on (by its Jacobian), and stacks equal to single networks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dgm_course.nets import (
    MLP,
    Linear,
    MaskedConv2d,
    MaskedMLP,
    PixelCNN,
    PixelCNNAdapter,
    WindowDecoderNet,
    member,
)


def reads(net: Callable[[Tensor], Tensor], num_inputs: int, seed: int = 0) -> Tensor:
    """(m, m) boolean: does output j change with input i? Jacobians at several random points."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(num_inputs, num_inputs, dtype=torch.bool)
    for _ in range(3):
        x = torch.randn(num_inputs, dtype=torch.float64, generator=generator)
        jacobian = torch.autograd.functional.jacobian(net, x)  # (m outputs, L, m inputs)
        found |= (jacobian != 0).any(1).T
    return found


def past(num_inputs: int, window: int | None) -> Tensor:
    """The receptive field by definition: j - window <= i < j."""
    reach = num_inputs if window is None else window
    return torch.tensor([[j - reach <= i < j for j in range(num_inputs)] for i in range(num_inputs)])


def past_pixels(side: int, window: int | None) -> Tensor:
    """Earlier in raster order and at most ``window`` rows and columns away."""
    reach = side if window is None else window
    pixels = [(row, column) for row in range(side) for column in range(side)]
    return torch.tensor(
        [[a < b and abs(a[0] - b[0]) <= reach and abs(a[1] - b[1]) <= reach for b in pixels] for a in pixels]
    )


@pytest.mark.parametrize("window", [0, 1, 2, 5, 6, 7, 12, None])
@pytest.mark.parametrize("hidden", [7, 16, (14, 9), (8, 21, 7)])
def test_masked_mlp_reads_exactly_its_window(
    window: int | None, hidden: int | tuple[int, ...], generator: torch.Generator
) -> None:
    net = MaskedMLP(7, hidden, 2, window=window, context=3, generator=generator).double()
    z = torch.randn(3, dtype=torch.float64, generator=generator)
    assert torch.equal(reads(lambda x: net(x, z), 7), past(7, window))


def test_masked_mlp_context_reaches_every_output(generator: torch.Generator) -> None:
    for window in (0, 2, None):
        net = MaskedMLP(5, (6, 11), window=window, context=2, generator=generator).double()
        x = torch.randn(5, dtype=torch.float64, generator=generator)
        jacobian = torch.autograd.functional.jacobian(functools.partial(net, x), torch.ones(2).double())
        assert (jacobian != 0).all()  # (5, 1, 2)


@pytest.mark.parametrize("window", [0, 1, 2, 4, None])
def test_window_decoder_reads_exactly_its_window(window: int | None, generator: torch.Generator) -> None:
    net = WindowDecoderNet(5, 2, window=window, outputs_per_pixel=2, generator=generator).double()
    z = torch.randn(2, dtype=torch.float64, generator=generator)
    assert torch.equal(reads(lambda x: net(x, z), 25), past_pixels(5, window))


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_pixel_cnn_reads_exactly_its_radius_without_a_blind_spot(
    radius: int, generator: torch.Generator
) -> None:
    cnn = PixelCNN(1, 4, 2, receptive_field=radius, context=2, generator=generator)
    net = PixelCNNAdapter(cnn, side=7).double()
    z = torch.randn(2, dtype=torch.float64, generator=generator)
    assert torch.equal(reads(lambda x: net(x, z), 49), past_pixels(7, radius))


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("order", ["raster", "rows"])
def test_masked_convolution_reads_its_half_of_the_kernel(
    mask_type: str, order: str, generator: torch.Generator
) -> None:
    conv = MaskedConv2d(1, 3, 3, mask_type=mask_type, order=order, generator=generator).double()

    def picture(x: Tensor) -> Tensor:  # (25,) -> (25, 3)
        return conv(x.reshape(1, 1, 5, 5))[0].flatten(1).mT

    near = past_pixels(5, 1) | past_pixels(5, 1).mT | torch.eye(25, dtype=torch.bool)
    pixels = torch.arange(25)
    before = pixels[:, None] < pixels if order == "raster" else pixels[:, None] // 5 < pixels // 5
    present = torch.eye(25, dtype=torch.bool) if order == "raster" else pixels[:, None] // 5 == pixels // 5
    allowed = before | present if mask_type == "B" else before
    assert torch.equal(reads(picture, 25), near & allowed)


def stacked_nets(generator: torch.Generator) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """A stack of three of every dense network, and the sizes of its inputs."""
    mask = (torch.rand(4, 5, generator=generator) > 0.5).double()
    masks = (torch.rand(3, 4, 5, generator=generator) > 0.5).double()
    make = {"members": 3, "generator": generator}
    return {
        "linear": (Linear(4, 5, **make), (4,)),
        "linear without bias": (Linear(4, 5, bias=False, **make), (4,)),
        "one mask": (Linear(4, 5, mask=mask, **make), (4,)),
        "three masks": (Linear(4, 5, mask=masks, **make), (4,)),
        "mlp": (MLP([4, 8, 6, 2], **make), (4,)),
        "masked mlp": (MaskedMLP(6, (8, 12), 2, context=2, **make), (6, 2)),
        "masked mlp, three windows": (MaskedMLP(6, 12, window=[0, 3, None], context=2, **make), (6, 2)),
        "window decoder": (WindowDecoderNet(3, 2, window=[None, 1, 0], **make), (9, 2)),
    }


@pytest.mark.parametrize("name", stacked_nets(torch.Generator()))
@pytest.mark.parametrize("batch", [(5,), (3,), (3, 5), (1, 5), (3, 2, 5), (1, 3, 5)])
def test_stacked_members_equal_the_same_networks_run_one_by_one(
    name: str, batch: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> None:
    net, sizes = stacked_nets(generator)[name]
    net = net.double().to(device)
    shapes = [(*batch, size) for size in sizes]
    inputs = [torch.randn(shape, dtype=torch.float64, generator=generator).to(device) for shape in shapes]
    together = net(*inputs)
    shared = len(batch) < 2
    assert together.shape[: len(batch) + shared] == ((3, *batch) if shared else (3, *batch[1:]))
    for e in range(3):
        own = [x if shared else x[e if len(x) == 3 else 0] for x in inputs]
        torch.testing.assert_close(together[e], member(net, e)(*own), rtol=1e-12, atol=1e-12)


def test_a_member_s_gradient_is_that_of_the_single_network(generator: torch.Generator) -> None:
    net, _ = stacked_nets(generator)["masked mlp, three windows"]
    net = net.double()
    x = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    z = torch.randn(3, 5, 2, dtype=torch.float64, generator=generator)
    net(x, z).square().sum().backward()
    for e in range(3):
        single = member(net, e)
        single(x, z[e]).square().sum().backward()
        for stacked, alone in zip(net.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[e], alone.grad, rtol=1e-12, atol=1e-12)
