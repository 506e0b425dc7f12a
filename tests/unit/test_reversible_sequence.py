"""reversible: blocks and sequences against plain autograd; precision, memory, shared parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dgm_course.reversible import ReversibleBlock, ReversibleSequence, saved_activation_bytes

F64 = torch.float64
HALF, HIDDEN, ROWS = 3, 5, 4


def mlp(generator: torch.Generator, half: int = HALF, hidden: int = HIDDEN, scale: float = 1.0) -> nn.Module:
    """A float32 branch with PyTorch's initial law times ``scale``."""
    layers = [nn.utils.skip_init(nn.Linear, half, hidden), nn.utils.skip_init(nn.Linear, hidden, half)]
    for layer in layers:
        bound = scale * layer.in_features**-0.5
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return nn.Sequential(layers[0], nn.SiLU(), layers[1])


def sequence(depth: int, generator: torch.Generator, scale: float = 1.0, **sizes: int) -> ReversibleSequence:
    branches = [mlp(generator, scale=scale, **sizes) for _ in range(2 * depth)]
    blocks = [ReversibleBlock(f, g) for f, g in zip(branches[::2], branches[1::2], strict=True)]
    return ReversibleSequence(blocks)


def plain(network: ReversibleSequence, x: Tensor) -> Tensor:
    """The recursion as the lecture writes it: no casts, everything stored."""
    x1, x2 = x.chunk(2, network.dim)
    for block in network.blocks:
        x1 = x1 + block.f(x2)
        x2 = x2 + block.g(x1)
    return torch.cat((x1, x2), network.dim)


def loss_gradients(run: Callable[[Tensor], Tensor], x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss that weighs all outputs differently, for x and the parameters."""
    x = x.detach().requires_grad_()
    y = run(x)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)
    return list(torch.autograd.grad((weights * y.square()).sum(), [x, *parameters]))


def relative(found: list[Tensor], right: list[Tensor]) -> float:
    """Euclidean error of all gradients together, relative."""
    gap = sum(float((a.double() - b).square().sum()) for a, b in zip(found, right, strict=True))
    return (gap / sum(float(b.square().sum()) for b in right)) ** 0.5


def test_block_is_the_ledger_s_equation_and_subtraction_inverts_it(
    generator: torch.Generator, device: torch.device
) -> None:
    block = ReversibleBlock(mlp(generator), mlp(generator)).to(device, F64)
    x1, x2 = torch.randn(2, ROWS, HALF, dtype=F64, generator=generator).to(device)
    y1, y2 = block(x1, x2)
    torch.testing.assert_close(y1, x1 + block.f(x2), rtol=0, atol=0)
    torch.testing.assert_close(y2, x2 + block.g(x1 + block.f(x2)), rtol=0, atol=0)
    for there, back in (((y1, y2), block.inverse), (block.inverse(x1, x2), block)):
        for got, right in zip(back(*there), (x1, x2), strict=True):
            torch.testing.assert_close(got, right, rtol=0, atol=1e-12)


def test_the_inverse_with_f_and_g_exchanged_is_not_one(generator: torch.Generator) -> None:
    block = ReversibleBlock(mlp(generator), mlp(generator)).double().requires_grad_(False)
    x1, x2 = torch.randn(2, ROWS, HALF, dtype=F64, generator=generator)
    y1, y2 = block(x1, x2)
    wrong_x2 = y2 - block.f(y1)
    wrong_x1 = y1 - block.g(wrong_x2)
    assert float((wrong_x2 - x2).abs().max()) > 0.01
    assert float((wrong_x1 - x1).abs().max()) > 0.01


@pytest.mark.parametrize(("shape", "dim"), [((ROWS, 6), 1), ((ROWS, 2, 6), -1), ((8, 3), 0)])
def test_sequence_equals_plain_autograd_in_float64(
    shape: tuple[int, ...], dim: int, generator: torch.Generator, device: torch.device
) -> None:
    network = sequence(7, generator).to(device, F64)
    network.dim = dim
    x = torch.randn(shape, dtype=F64, generator=generator).to(device)
    torch.testing.assert_close(network(x), plain(network, x), rtol=0, atol=1e-12)
    torch.testing.assert_close(network.inverse(network(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(network(network.inverse(x)), x, rtol=0, atol=1e-12)
    right = loss_gradients(lambda x: plain(network, x), x, list(network.parameters()))
    for mode in (False, True):
        network.save_activations = mode
        found = loss_gradients(network, x, list(network.parameters()))
        for got, expected in zip(found, right, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_gradcheck(generator: torch.Generator) -> None:
    network = sequence(3, generator).double()
    x = torch.randn(2, 6, dtype=F64, generator=generator, requires_grad=True)
    values = [p.detach().clone().requires_grad_() for p in network.parameters()]
    with torch.no_grad():
        network(x)  # tries the branches out

    def run(x: Tensor, *values: Tensor) -> Tensor:
        names = [name for name, _ in network.named_parameters()]
        for name, value in zip(names, values, strict=True):
            holder, _, attribute = name.rpartition(".")
            network.get_submodule(holder)._parameters[attribute] = value
        return network(x)

    assert torch.autograd.gradcheck(run, (x, *values))


class NaiveReversal(torch.autograd.Function):
    """The wrong variant: streams in the branches' float32, so that every subtraction leaves an error."""

    @staticmethod
    def forward(ctx: object, network: ReversibleSequence, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.network, ctx.y = network, plain(network, x)
        return ctx.y

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
        (y1, y2), (g1, g2), found = ctx.y.detach().chunk(2, 1), grad.chunk(2, 1), []
        for block in reversed(ctx.network.blocks):
            with torch.enable_grad():
                at = y1.detach().requires_grad_()
                value = block.g(at)
            more, *of_g = torch.autograd.grad(value, [at, *block.g.parameters()], g2)
            y2, g1 = y2 - value.detach(), g1 + more
            with torch.enable_grad():
                at = y2.detach().requires_grad_()
                value = block.f(at)
            more, *of_f = torch.autograd.grad(value, [at, *block.f.parameters()], g1)
            y1, g2 = y1 - value.detach(), g2 + more
            found = [*of_f, *of_g, *found]
        return None, torch.cat((g1, g2), 1), *found


def test_float64_streams_make_float32_gradients_as_good_as_stored_ones(device: torch.device) -> None:
    """Depth 64; errors against float64, root mean square over four networks."""
    errors = {"ours": [], "plain": [], "naive": []}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        network = sequence(64, generator, scale=1.4, half=16, hidden=32).to(device)
        x = torch.randn(32, 32, generator=generator).to(device)
        exact, parameters = copy.deepcopy(network).double(), list(network.parameters())
        right = loss_gradients(lambda x: plain(exact, x), x.double(), list(exact.parameters()))  # noqa: B023
        runs = {
            "ours": network,
            "plain": lambda x: plain(network, x),  # noqa: B023
            "naive": lambda x: NaiveReversal.apply(network, x, *parameters),  # noqa: B023
        }
        for name, run in runs.items():
            errors[name].append(relative(loss_gradients(run, x, parameters), right))
    rms = {name: sum(e**2 for e in values) ** 0.5 / 2 for name, values in errors.items()}
    assert rms["ours"] <= 1.5 * rms["plain"]
    assert rms["naive"] > 100 * rms["plain"]


def test_an_inverse_that_expands_too_much_shows_in_the_round_trip() -> None:
    """The docstring's limit: weights twice PyTorch's, 64 blocks. What is stored is still right."""
    generator = torch.Generator().manual_seed(0)
    network = sequence(64, generator, scale=2.0, half=16, hidden=32)
    x = torch.randn(32, 32, generator=generator)
    exact, parameters = copy.deepcopy(network).double(), list(network.parameters())
    right = loss_gradients(lambda x: plain(exact, x), x.double(), list(exact.parameters()))
    assert relative(loss_gradients(lambda x: plain(network, x), x, parameters), right) < 0.01
    assert relative(loss_gradients(network, x, parameters), right) > 1
    with torch.no_grad():
        assert float((network.inverse(network(x.double())) - x).abs().max()) > 1


def test_float32_inputs_come_back_from_float64_streams(generator: torch.Generator) -> None:
    network = sequence(64, generator)
    x = torch.randn(ROWS, 6, generator=generator)
    exactly = network.inverse(network(x.double()))  # the branches are float32
    assert torch.equal(exactly.float(), x)
    network.stream_dtype = torch.float32
    assert not torch.equal(network.inverse(network(x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_the_output_has_the_input_s_dtype_and_so_has_the_gradient(
    dtype: torch.dtype, generator: torch.Generator, device: torch.device
) -> None:
    network = sequence(2, generator).to(device)
    x = torch.randn(ROWS, 6, generator=generator).to(device, dtype).requires_grad_()
    y = network(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == network.inverse(y).dtype == dtype
    assert {p.grad.dtype for p in network.parameters()} == {torch.float32}
    with torch.autocast(device.type, dtype=torch.bfloat16):
        inside = network(x)
        (gradient,) = torch.autograd.grad(inside.sum(), x)
    assert torch.equal(inside, y) and torch.equal(gradient, x.grad), "autocast is off inside"


def test_saved_bytes_do_not_grow_with_depth_and_plain_ones_do(
    generator: torch.Generator, device: torch.device
) -> None:
    rows, half, hidden = 7, 4, 6
    output = rows * 2 * half * 8  # bytes, float64
    for depth in (1, 3, 12):
        network = sequence(depth, generator, half=half, hidden=hidden).to(device)
        x = torch.randn(rows, 2 * half, generator=generator).to(device)
        assert saved_activation_bytes(network, x) == output
        network.save_activations = True
        branch = rows * (half + 2 * hidden) * 4  # its input, and what goes into and comes out of SiLU
        assert saved_activation_bytes(network, x) == 2 * depth * branch
        assert saved_activation_bytes(network.forward, x) == 2 * depth * branch


def test_saved_bytes_count_a_storage_once_and_no_parameter() -> None:
    weight = nn.Parameter(torch.ones(5))
    x = torch.ones(5, requires_grad=True)
    assert saved_activation_bytes(lambda x: x * weight, x) == 5 * 4  # x, for weight's gradient
    assert saved_activation_bytes(lambda x: x * weight + x.square() * x[:2].sum(), x) == (5 + 5 + 1) * 4
    assert saved_activation_bytes(lambda x: x + weight, x) == 0
    assert saved_activation_bytes(lambda x: (x.exp(), x + 1)[1], x) == 0  # exp is saved, and let go


def test_shared_parameters_add_up(generator: torch.Generator) -> None:
    branch, other = mlp(generator), mlp(generator)
    other[2].weight = branch[2].weight
    blocks = [ReversibleBlock(branch, other), ReversibleBlock(other, branch), ReversibleBlock(branch, branch)]
    network = ReversibleSequence(blocks).double()
    x = torch.randn(ROWS, 6, dtype=F64, generator=generator)
    parameters = list(network.parameters())
    assert len(parameters) == 7
    right = loss_gradients(lambda x: plain(network, x), x, parameters)
    for got, expected in zip(loss_gradients(network, x, parameters), right, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


class Shift(nn.Module):
    """h + p, and half of it: the gradient for p is the very tensor that comes from above."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(ROWS, HALF, dtype=F64, generator=generator))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.shift


def test_gradients_that_are_one_tensor_stay_apart(generator: torch.Generator) -> None:
    network = ReversibleSequence(ReversibleBlock(Shift(generator), Shift(generator)) for _ in range(3))
    x = torch.randn(ROWS, 6, dtype=F64, generator=generator)
    right = loss_gradients(lambda x: plain(network, x), x, list(network.parameters()))
    for got, expected in zip(loss_gradients(network, x, list(network.parameters())), right, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [(0, 1), (3,), (0, 1, 2, 3)])
def test_frozen_blocks_and_inputs_that_want_no_gradient(
    frozen: tuple[int, ...], generator: torch.Generator
) -> None:
    network = sequence(4, generator).double()
    for index in frozen:
        network.blocks[index].requires_grad_(False)
    network.blocks[2].f[0].bias.requires_grad_(False)
    x = torch.randn(ROWS, 6, dtype=F64, generator=generator)
    trained = [p for p in network.parameters() if p.requires_grad]
    right = loss_gradients(lambda x: plain(network, x), x, trained)
    for got, expected in zip(loss_gradients(network, x, trained), right, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    y = network(x)  # x wants none
    assert y.requires_grad == bool(trained)
    if trained:
        y.square().sum().backward()
        plain_gradients = torch.autograd.grad(plain(network, x).square().sum(), trained)
        for parameter, expected in zip(trained, plain_gradients, strict=True):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)


def test_branches_without_parameters_and_constant_ones(generator: torch.Generator) -> None:
    class Zero(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return torch.zeros_like(h)

    blocks = ReversibleBlock(nn.Tanh(), nn.Identity()), ReversibleBlock(Zero(), nn.SiLU())
    network = ReversibleSequence(blocks)
    x = torch.randn(ROWS, 6, dtype=F64, generator=generator)
    [right] = loss_gradients(lambda x: plain(network, x), x, [])
    torch.testing.assert_close(loss_gradients(network, x, [])[0], right, rtol=1e-12, atol=1e-12)


def test_twice_is_the_same_and_nothing_draws_random_numbers(generator: torch.Generator) -> None:
    network = sequence(5, generator)
    x = torch.randn(ROWS, 6, generator=generator)
    before, kept = torch.get_rng_state(), x.clone()
    first, again = (loss_gradients(network, x, list(network.parameters())) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, kept), "the input is not overwritten"
    y = network(x.requires_grad_())
    a, b = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(a, b), "what was saved is not overwritten"


def test_state_dict_round_trip_and_hooks_that_copy_what_is_saved(generator: torch.Generator) -> None:
    network, other = sequence(3, generator), sequence(3, generator)
    other.load_state_dict(network.state_dict())
    x = torch.randn(ROWS, 6, generator=generator)
    assert torch.equal(network(x), other(x))
    right = loss_gradients(network, x, list(network.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
        found = loss_gradients(other, x, list(other.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
