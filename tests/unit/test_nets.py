"""The networks' shapes, initial laws, dtypes, masks and error messages."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dgm_course.nets import (
    MLP,
    ConvNet,
    Linear,
    LocalLinear,
    MaskedConv2d,
    MaskedMLP,
    PixelCNN,
    PixelCNNAdapter,
    WindowDecoderNet,
    add_features,
    causal_mask,
    causal_window_mask,
    conv2d,
    member,
    members_of,
)


def test_linear_is_the_affine_map_and_equals_torch_s(generator: torch.Generator) -> None:
    layer = Linear(4, 3, generator=generator).double()
    peer = nn.Linear(4, 3).double()
    with torch.no_grad():
        peer.weight.copy_(layer.weight.mT)
        peer.bias.copy_(layer.bias)
    x = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(layer(x), peer(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("members", [None, 400])
@pytest.mark.parametrize("kind", ["linear", "local"])
def test_initial_law_is_that_of_torch_s_linear(
    kind: str, members: int | None, generator: torch.Generator
) -> None:
    if kind == "linear":
        layer = Linear(16, 5 if members else 4000, members=members, generator=generator)
    else:
        layer = LocalLinear(2 if members else 1000, 16, 5, members=members, generator=generator)
    for values in (layer.weight.detach().flatten(), layer.bias.detach().flatten()):
        assert float(values.abs().max()) <= 0.25  # U(-1/sqrt(16), 1/sqrt(16))
        standard_error = float((values**2).std()) / math.sqrt(len(values))
        assert abs(float((values**2).mean()) - 0.25**2 / 3) < 5 * standard_error
        assert abs(float(values.mean())) < 5 * 0.25 / math.sqrt(3 * len(values))


def test_initial_values_come_from_the_generator_and_differ_between_members() -> None:
    def draw(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        nets = [
            MLP([3, 4, 2], members=2, generator=generator),
            MaskedMLP(3, 6, context=2, members=2, generator=generator),
            WindowDecoderNet(2, 2, members=2, generator=generator),
            PixelCNN(1, 2, 1, receptive_field=2, context=2, generator=generator),
        ]
        return [p.detach() for net in nets for p in net.parameters()]

    state = torch.get_rng_state()
    first, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    stacked = MLP([3, 4], members=2).layers[0]
    assert not torch.equal(stacked.weight[0], stacked.weight[1])


def test_mlp_applies_its_activation_between_the_layers_only(generator: torch.Generator) -> None:
    net = MLP([2, 3, 1], activation=torch.tanh, generator=generator).double()
    x = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    first, last = net.layers
    by_hand = torch.tanh(x @ first.weight + first.bias) @ last.weight + last.bias
    torch.testing.assert_close(net(x), by_hand)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("members", [None, 2])
def test_dtype_and_device_follow_the_input(
    dtype: torch.dtype, members: int | None, device: torch.device, generator: torch.Generator
) -> None:
    make = {"members": members, "generator": generator}
    x, z = torch.ones(5, 9, dtype=dtype, device=device), torch.ones(5, 2, dtype=dtype, device=device)
    calls: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
        (MLP([9, 4, 2], **make), (x,)),
        (MaskedMLP(9, 12, context=2, **make), (x, z)),
        (WindowDecoderNet(3, 2, **make), (x, z)),
    ]
    if members is None:
        cnn = PixelCNN(1, 3, 1, receptive_field=2, context=2, generator=generator)
        calls.append((PixelCNNAdapter(cnn, 3), (x, z)))
    for net, inputs in calls:
        out = net.to(device=device, dtype=dtype)(*inputs)
        assert out.dtype == dtype and out.device.type == device.type


def test_output_shapes(generator: torch.Generator) -> None:
    x, z = torch.ones(5, 9), torch.ones(5, 2)
    assert MaskedMLP(9, 12, 3, context=2)(x, z).shape == (5, 9, 3)
    assert MaskedMLP(9, 12)(x[0]).shape == (9, 1)
    assert WindowDecoderNet(3, 2, outputs_per_pixel=4)(x, z).shape == (5, 9, 4)
    assert WindowDecoderNet(3, 2)(x, torch.ones(7, 1, 2)).shape == (7, 5, 9, 1)
    assert MaskedMLP(9, 12, context=2, members=4)(x, torch.ones(1, 7, 1, 2)).shape == (4, 7, 5, 9, 1)
    assert MaskedMLP(9, 12, context=2, members=4)(torch.ones(4, 5, 9), torch.ones(4, 7, 5, 2)).shape == (
        (4, 7, 5, 9, 1)
    )
    cnn = PixelCNN(2, 3, 4, receptive_field=1, context=2)
    assert cnn(torch.ones(5, 2, 6, 7), z).shape == (5, 4, 6, 7)
    assert cnn(torch.ones(5, 2, 6, 7), torch.ones(5, 2, 6, 7)).shape == (5, 4, 6, 7)
    adapter = PixelCNNAdapter(PixelCNN(1, 3, 4, receptive_field=1, context=2), 3)
    assert adapter(x, torch.ones(7, 1, 2)).shape == (7, 5, 9, 4)


def test_adapter_broadcasts_one_z_over_the_pixels_of_each_picture(generator: torch.Generator) -> None:
    cnn = PixelCNN(1, 4, 2, receptive_field=2, context=3, generator=generator).double()
    x = torch.randn(5, 9, dtype=torch.float64, generator=generator)
    z = torch.randn(6, 1, 3, dtype=torch.float64, generator=generator)
    flat = PixelCNNAdapter(cnn, 3)(x, z)  # (6, 5, 9, 2)
    for s in range(6):
        for b in range(5):
            own = cnn(x[b].reshape(1, 1, 3, 3), z[s])[0]  # (2, 3, 3)
            torch.testing.assert_close(flat[s, b], own.flatten(1).mT)


@pytest.mark.parametrize("window", [0, 1, 3, 4, 9, None])
def test_causal_mask_by_definition(window: int | None) -> None:
    mask = causal_mask(5, window)
    assert mask.dtype == torch.bool
    for i in range(5):
        for j in range(5):
            assert bool(mask[i, j]) == (i < j and (window is None or i >= j - window))


@pytest.mark.parametrize("window", [0, 1, 2, 4, None])
def test_causal_window_mask_by_definition(window: int | None) -> None:
    mask = causal_window_mask(4, window)
    for i in range(16):
        for j in range(16):
            distance = max(abs(i // 4 - j // 4), abs(i % 4 - j % 4))
            assert bool(mask[i, j]) == (i < j and (window is None or distance <= window))


def test_members_can_have_windows_of_their_own(generator: torch.Generator) -> None:
    net = MaskedMLP(4, 8, window=[0, 2, None], members=3, generator=generator)
    for e, window in enumerate([0, 2, None]):
        torch.testing.assert_close(
            member(net, e).input.mask, causal_mask(4, window)[:, torch.arange(8) % 4].float()
        )
    decoder = WindowDecoderNet(3, 1, window=[0, None], members=2, features=2, generator=generator)
    assert float(decoder.pixels.mask[0].sum()) == 0
    torch.testing.assert_close(member(decoder, 1).pixels.mask[:, ::2], causal_window_mask(3).float())


def test_member_is_an_independent_copy_and_keeps_what_is_frozen(generator: torch.Generator) -> None:
    net = MLP([3, 4, 2], members=5, generator=generator)
    net.layers[0].weight.requires_grad_(False)
    single = member(net, -1)
    assert members_of(net) == 5 and members_of(single) is None
    assert not single.layers[0].weight.requires_grad and single.layers[1].weight.requires_grad
    torch.testing.assert_close(single.layers[1].weight, net.layers[1].weight[4])
    with torch.no_grad():
        single.layers[1].weight.zero_()
    assert float(net.layers[1].weight[4].detach().abs().sum()) > 0


def test_add_features_keeps_the_member_dimension_first() -> None:
    a, b = torch.arange(6.0).reshape(2, 3, 1), torch.arange(24.0).reshape(2, 4, 3, 1)
    for total in (add_features(a, b, 2), add_features(b, a, 2)):
        torch.testing.assert_close(total, a[:, None] + b)
    torch.testing.assert_close(add_features(a[0], b[0], None), a[0] + b[0])


def test_print_shows_sizes() -> None:
    assert repr(Linear(3, 4, members=2, mask=torch.ones(3, 4))) == "Linear(3, 4, members=2, masked)"
    assert repr(Linear(3, 4)) == "Linear(3, 4)"


def _stack(module_members: int) -> nn.Module:
    return nn.ModuleList([Linear(2, 2, members=2), Linear(2, 2, members=module_members)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Linear(3, 4)(torch.ones(2, 5)), "in_features=3"),
        (lambda: Linear(3, 4, members=2)(torch.ones(3)), "rows"),
        (lambda: Linear(3, 4, members=2)(torch.ones(5, 2, 3)), "E = 2 or 1"),
        (lambda: Linear(0, 4), "in_features >= 1"),
        (lambda: Linear(3, 4, members=0), "members"),
        (lambda: Linear(3, 4, mask=torch.ones(4, 3)), "shape of the weight"),
        (lambda: Linear(3, 4, mask=torch.ones(2, 3, 4)), "shape of the weight"),
        (lambda: MLP([3]), "at least the input and the output"),
        (lambda: LocalLinear(3, 2, 4)(torch.ones(5, 2, 2)), "positions"),
        (lambda: LocalLinear(3, 2, 4, members=2)(torch.ones(3, 2)), "positions"),
        (lambda: causal_mask(4, -1), "window >= 0"),
        (lambda: causal_window_mask(0), "at least one"),
        (lambda: MaskedMLP(8, 7), "at least num_inputs=8"),
        (lambda: MaskedMLP(8, []), "at least num_inputs=8"),
        (lambda: MaskedMLP(4, 8, window=[1, 2]), "one for each member"),
        (lambda: MaskedMLP(4, 8, window=[1, 2], members=3), "one for each member"),
        (lambda: MaskedMLP(4, 8)(torch.ones(2, 4), torch.ones(2, 1)), "without context"),
        (lambda: MaskedMLP(4, 8, context=1)(torch.ones(2, 4)), "context=1"),
        (lambda: MaskedConv2d(1, 2, 3, mask_type="C"), "'A' or 'B'"),
        (lambda: MaskedConv2d(1, 2, 4, mask_type="A"), "odd kernel"),
        (lambda: MaskedConv2d(1, 2, 3, mask_type="A", order="columns"), "order"),
        (lambda: PixelCNN(1, 2, 1, receptive_field=0), "at least 1"),
        (lambda: PixelCNN(1, 2, 1, receptive_field=1)(torch.ones(1, 1, 3, 3), torch.ones(1, 2)), "context=0"),
        (lambda: PixelCNN(1, 2, 1, receptive_field=1, context=2)(torch.ones(1, 1, 3, 3)), "context=2"),
        (
            lambda: PixelCNNAdapter(PixelCNN(1, 2, 1, receptive_field=1, context=2), 3)(
                torch.ones(2, 8), torch.ones(2, 2)
            ),
            "3 x 3",
        ),
        (lambda: member(MLP([2, 2]), 0), "without members"),
        (lambda: member(MLP([2, 2], members=3), 3), "index"),
        (lambda: members_of(_stack(3)), "same number of members"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_conv2d_keeps_the_size_and_follows_its_generator() -> None:
    """Odd kernels, strides; real parameters with and without a generator; PyTorch's own bound."""
    first, again = (conv2d(3, 5, 3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert conv2d(3, 5, 5, stride=2)(torch.zeros(2, 3, 8, 6)).shape == (2, 5, 4, 3)
    for layer in (first, conv2d(3, 5, 3)):
        assert layer.weight.device.type == "cpu" and float(layer.weight.detach().abs().max()) <= 27**-0.5
        assert float(layer.weight.detach().std()) == pytest.approx((27 * 3) ** -0.5, rel=0.2)


def test_conv_net_takes_any_batch_and_may_start_at_zero() -> None:
    net = ConvNet(2, 4, 6, last_scale=0.0)
    x = torch.randn(2, 3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x), torch.zeros(2, 3, 6, 5, 4)) and net(x[0, 0]).shape == (6, 5, 4)
    other = ConvNet(2, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other(x)[1], other(x[1]))
