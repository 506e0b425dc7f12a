"""The sequential direction of autoregressive flows: every way to solve it gives the textbook's answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flow_zoo import Counting
from torch import Tensor, nn

from dgm_course.flows import (
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    Transform,
    soft_clamp,
    solve_autoregressive,
    solve_by_sweeps,
    solve_sequentially,
)
from dgm_course.flows.levels import level_order
from dgm_course.nets import MaskedMLP, member

LARGE = 80  # more inputs than are solved for one by one


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def network(num_dims: int, hidden: int | list[int], outputs: int = 2, **options: object) -> MaskedMLP:
    return MaskedMLP(num_dims, hidden, outputs, generator=seeded(1), **options).double()


def maf_step(given: Tensor, out: Tensor) -> Tensor:
    return out[..., 0] + soft_clamp(out[..., 1]).exp() * given


def iaf_step(given: Tensor, out: Tensor) -> Tensor:
    return (given - out[..., 0]) * torch.exp(-soft_clamp(out[..., 1]))


def chain(num_dims: int, factor: float) -> MaskedMLP:
    """Output j is ``-factor * v_{j-1}``. In whole numbers no sum depends on the order of its terms."""
    net = MaskedMLP(num_dims, num_dims, 1, window=1, activation=lambda h: h).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.input.weight.copy_(torch.diag(torch.ones(num_dims - 1), 1))
        net.layers[0].weight.copy_(torch.diag(torch.full((num_dims,), -factor)))
    return net


def add(given: Tensor, out: Tensor) -> Tensor:
    return given + out[..., 0]


NETWORKS = [
    *((1, 3, {}), (2, 32, {}), (7, [7, 19, 11], {}), (64, [70, 90], {}), (65, 65, {})),
    *((7, [16, 9], {"window": 0}), (7, [16, 9], {"window": 1}), (20, [33, 40], {"window": 3})),
    *((LARGE, [100, 81, 160], {}), (LARGE, [100, 90], {"window": 0}), (LARGE, [100, 90], {"window": 5})),
    (130, [130], {"activation": torch.tanh}),
]


@pytest.mark.parametrize("step", [maf_step, iaf_step])
@pytest.mark.parametrize(("num_dims", "hidden", "options"), NETWORKS)
def test_all_ways_agree(
    num_dims: int, hidden: int | list[int], options: dict, step: Callable[[Tensor, Tensor], Tensor]
) -> None:
    net, given = network(num_dims, hidden, **options), draw(5, num_dims)
    with torch.no_grad():
        wanted = solve_sequentially(net, step, given)
        for solve in (solve_autoregressive, solve_by_sweeps):
            for found, right in zip(solve(net, step, given), wanted, strict=True):
                assert found.shape == right.shape
                torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
        value, out = solve_autoregressive(net, step, given)
        torch.testing.assert_close(out, net(value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_dims", [5, LARGE])
@pytest.mark.parametrize("outputs", [1, 3])
def test_any_number_of_outputs(num_dims: int, outputs: int) -> None:
    net, given = network(num_dims, num_dims + 9, outputs), draw(4, num_dims)

    def step(given: Tensor, out: Tensor) -> Tensor:
        return given * (0.5 + torch.sigmoid(out[..., -1])) + out.sum(-1)

    with torch.no_grad():
        found, wanted = (solve(net, step, given) for solve in (solve_autoregressive, solve_sequentially))
    assert found[1].shape == (4, num_dims, outputs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_dims", [3, LARGE])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)])
def test_batch_shapes(num_dims: int, batch: tuple[int, ...]) -> None:
    net, given = network(num_dims, LARGE), draw(*batch, num_dims)
    before = given.clone()
    with torch.no_grad():
        value, out = solve_autoregressive(net, maf_step, given)
        assert value.shape == given.shape and out.shape == (*given.shape, 2) and torch.equal(given, before)
        torch.testing.assert_close(iaf_step(value, net(value)), given, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_dims", [3, LARGE])
@pytest.mark.parametrize(("batch", "of_context"), [((4,), (4,)), ((4,), ()), ((2, 1), (5,)), ((), (2, 3))])
def test_a_context_broadcasts(num_dims: int, batch: tuple[int, ...], of_context: tuple[int, ...]) -> None:
    net = network(num_dims, [LARGE, 90], context=2)
    given, context = draw(*batch, num_dims), draw(*of_context, 2, seed=1)
    with torch.no_grad():
        found = solve_autoregressive(net, maf_step, given, context)
        wanted = solve_sequentially(net, maf_step, given, context)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_stacked_networks_go_by_sweeps_and_each_member_is_right() -> None:
    net, given = network(6, 16, members=3), draw(4, 6)
    with torch.no_grad():
        value, _ = solve_autoregressive(net, maf_step, given)
        assert value.shape == (3, 4, 6)
        for index in range(3):
            alone, _ = solve_sequentially(member(net, index), maf_step, given)
            torch.testing.assert_close(value[index], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solve", [solve_autoregressive, solve_by_sweeps, solve_sequentially])
def test_guesses_may_overflow(solve: Callable[..., tuple[Tensor, Tensor]]) -> None:
    factor = 2.0**43
    net = chain(LARGE, factor)
    wanted = torch.randint(1, 8, (3, LARGE), generator=seeded()).double()
    given = wanted + factor * nn.functional.pad(wanted[:, :-1], (1, 0))
    with torch.no_grad():
        guess = torch.zeros_like(given)
        for _ in range(LARGE):
            guess = add(given, net(guess))
        assert not guess.isfinite().all()  # sweeps alone fail here
        value, out = solve(net, add, given)
    assert torch.equal(value, wanted)
    assert torch.equal(out, (wanted - given).unsqueeze(-1))


def test_a_network_that_settles_one_input_a_sweep() -> None:
    net = chain(300, 1.0)
    wanted = torch.randint(-7, 8, (3, 300), generator=seeded()).double()
    given = wanted + nn.functional.pad(wanted[:, :-1], (1, 0))
    with torch.no_grad():
        assert torch.equal(solve_autoregressive(net, add, given)[0], wanted)


def test_large_lipschitz_constants() -> None:
    net = network(LARGE, [96, 100], window=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(40)
        wanted = draw(4, LARGE)
        given = iaf_step(wanted, net(wanted))
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v)[..., 0], wanted[0])
        assert torch.linalg.matrix_norm(jacobian, 2) > 20
        value, out = solve_autoregressive(net, maf_step, given)
        # whatever a rounding error grows to, value solves the equations that it was made to solve
        torch.testing.assert_close(maf_step(given, net(value)), value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out, net(value), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_dims", [6, LARGE])
def test_a_nan_spoils_its_own_row_from_there_on(num_dims: int) -> None:
    net, given = network(num_dims, num_dims), draw(3, num_dims)
    with torch.no_grad():
        clean, _ = solve_autoregressive(net, maf_step, given)
        given[1, 2] = float("nan")
        value, _ = solve_autoregressive(net, maf_step, given)
        textbook, _ = solve_sequentially(net, maf_step, given)
    torch.testing.assert_close(value[[0, 2]], clean[[0, 2]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value[1, :2], clean[1, :2], rtol=1e-12, atol=1e-12)
    assert value[1, 2:].isnan().all() and torch.equal(value.isnan(), textbook.isnan())


@pytest.mark.parametrize("step", [maf_step, iaf_step])
@pytest.mark.parametrize("num_dims", [1, 6, LARGE])
def test_gradients_are_those_of_the_textbook(num_dims: int, step: Callable[..., Tensor]) -> None:
    net = network(num_dims, [LARGE, 90], context=2)
    given = draw(2, 3, num_dims).requires_grad_()
    context = draw(3, 2, seed=1).requires_grad_()
    inputs = [given, context, *net.parameters()]
    weights = draw(2, 3, num_dims, seed=2), draw(2, 3, num_dims, 2, seed=3)

    def gradients(solve: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        value, out = solve(net, step, given, context)
        total = (value * weights[0]).sum() + (out * weights[1]).sum()
        return torch.autograd.grad(total, inputs)

    found, wanted = gradients(solve_autoregressive), gradients(solve_sequentially)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [MaskedAutoregressiveFlow, InverseAutoregressiveFlow])
def test_gradcheck(kind: type[Transform]) -> None:
    flow = kind(network(4, 8))
    run = flow.forward if kind is MaskedAutoregressiveFlow else flow.inverse
    assert torch.autograd.gradcheck(run, [draw(2, 4).requires_grad_()], check_undefined_grad=False)


def test_gradients_of_a_network_without_a_past() -> None:
    net = network(4, 8, window=0)
    given = draw(3, 4).requires_grad_()
    (found,) = torch.autograd.grad(solve_autoregressive(net, maf_step, given)[0].sum(), given)
    torch.testing.assert_close(found, soft_clamp(net(given)[..., 1]).exp())


def test_no_graph_without_gradients() -> None:
    net = network(4, 8)
    with torch.no_grad():
        assert not solve_autoregressive(net, maf_step, draw(3, 4))[0].requires_grad
    net.requires_grad_(False)
    assert not solve_autoregressive(net, maf_step, draw(3, 4))[0].requires_grad


def test_a_second_derivative_is_refused_and_the_textbook_has_it() -> None:
    net = network(4, 8)
    given = draw(3, 4).requires_grad_()
    value, _ = solve_autoregressive(net, maf_step, given)
    with pytest.raises(RuntimeError, match=r"once.*create_graph.*solve_sequentially"):
        torch.autograd.grad(value.sum(), given, create_graph=True)
    value, _ = solve_sequentially(net, maf_step, given)
    (first,) = torch.autograd.grad(value.square().sum(), given, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), given)
    assert second.abs().max() > 0


def test_passes_are_counted() -> None:
    num_dims = 9
    given = draw(3, num_dims)
    with torch.no_grad():
        net = Counting(network(num_dims, 16))
        solve_sequentially(net, maf_step, given)
        assert net.passes == num_dims + 1  # the last one for the outputs
        net.passes = 0
        solve_by_sweeps(net, maf_step, given)
        assert 2 < net.passes <= num_dims + 1
        net = Counting(network(num_dims, 16, window=0))
        solve_by_sweeps(net, maf_step, given)
        assert net.passes == 2  # one that finds the value, one that leaves it
        net = Counting(chain(num_dims, 1.0))
        solve_by_sweeps(net, add, given.round())
        assert net.passes == num_dims + 1


def test_one_by_one_every_unit_is_computed_once() -> None:
    computed = []

    def activation(h: Tensor) -> Tensor:
        computed.append(h.numel())
        return nn.functional.silu(h)

    net = network(10, [17, 23], activation=activation)
    with torch.no_grad():
        solve_autoregressive(net, maf_step, draw(5, 10))
    assert sum(computed) == 5 * (17 + 23)


def test_a_network_that_is_not_autoregressive_is_refused() -> None:
    net, given = network(5, [8, 9]), draw(3, 5)
    with torch.no_grad():
        solve_autoregressive(net, maf_step, given)
        net.layers[0].mask.fill_(1.0)  # in place, after the order was found
        with pytest.raises(ValueError, match="inputs i < j only"):
            solve_autoregressive(net, maf_step, given)
        net = network(5, [8, 9])
        net.layers[1].mask = torch.ones_like(net.layers[1].mask)
        with pytest.raises(ValueError, match="check the masks"):
            solve_autoregressive(net, maf_step, given)


def test_the_order_is_kept_with_the_masks_and_the_weights_are_not() -> None:
    net, given = network(LARGE, [90, 100]), draw(3, LARGE)
    order = level_order(net)
    with torch.no_grad():
        before, _ = solve_autoregressive(net, maf_step, given)
        for parameter in net.parameters():
            parameter.data.mul_(1.5)
        assert level_order(net) is order
        found, _ = solve_autoregressive(net, maf_step, given)
        wanted, _ = solve_sequentially(net, maf_step, given)
    assert not torch.allclose(before, wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert level_order(net.float()) is not order
    with torch.no_grad():
        assert solve_autoregressive(net, maf_step, given.float())[0].dtype == torch.float32


def test_inference_mode() -> None:
    with torch.inference_mode():
        net, given = network(6, 8), draw(3, 6)
        found, _ = solve_autoregressive(net, maf_step, given)
        wanted, _ = solve_sequentially(net, maf_step, given)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_context_where_none_is_wanted_and_the_other_way_round() -> None:
    with pytest.raises(ValueError, match="without context"):
        solve_autoregressive(network(4, 8), maf_step, draw(3, 4), draw(3, 2))
    with pytest.raises(ValueError, match="context=2"):
        solve_autoregressive(network(4, 8, context=2), maf_step, draw(3, 4))
