"""Lecture 03: F5 (MAF and IAF, one map in two directions, passes counted) and F6 (masked networks)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flow_zoo import Counting
from ledger import proves
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from dgm_course.flows import (
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    half_mask,
    iaf_parameters,
    solve_autoregressive,
    solve_by_sweeps,
    solve_sequentially,
)
from dgm_course.nets import MaskedMLP

Pair = tuple[Tensor, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(num_dims: int, seed: int = 0) -> MaskedMLP:
    g = torch.Generator().manual_seed(seed)
    return MaskedMLP(num_dims, [4 * num_dims, 3 * num_dims], 2, generator=g).double()


# F5 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_dims", [1, 2, 7, 20])
@pytest.mark.parametrize("kind", [MaskedAutoregressiveFlow, InverseAutoregressiveFlow])
def test_the_pair_composed_is_the_identity(kind: type, num_dims: int) -> None:
    flow = kind(made(num_dims))
    with torch.no_grad():
        for first, then in ((flow.forward, flow.inverse), (flow.inverse, flow.forward)):
            value = 2 * draw(30, num_dims, seed=1)
            there, log_det = first(value)
            back, log_det_back = then(there)
            torch.testing.assert_close(back, value, rtol=0, atol=1e-10)
            torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-10)


def test_maf_log_det_is_minus_the_sum_of_log_scales() -> None:
    flow = MaskedAutoregressiveFlow(made(6))
    for x in draw(5, 6, seed=2):
        _, log_scale = flow.parameters_at(x)
        matrix = jacobian(lambda value: flow.inverse(value)[0], x)
        assert torch.equal(matrix, matrix.tril())
        torch.testing.assert_close(torch.diagonal(matrix), torch.exp(-log_scale), rtol=0, atol=1e-10)
        torch.testing.assert_close(flow.inverse(x)[1], -log_scale.sum(), rtol=0, atol=1e-10)


class OtherWay(nn.Module):
    """A MAF's network with its shift and log-scale rewritten for the map run the other way."""

    def __init__(self, net: nn.Module, rewrite: Callable[[Tensor, Tensor], Pair]) -> None:
        super().__init__()
        self.net, self.rewrite = net, rewrite

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.rewrite(*self.net(x).unbind(-1)), dim=-1)


def iaf_shift_not_rescaled(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    return -mu_hat, -log_sigma_hat


def iaf_scale_kept(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    return -mu_hat * torch.exp(-log_sigma_hat), log_sigma_hat


@proves(
    "F5", right=iaf_parameters,
    wrong={"iaf_shift_not_rescaled": iaf_shift_not_rescaled, "iaf_scale_kept": iaf_scale_kept},
)  # fmt: skip
def test_iaf_is_the_maf_run_the_other_way(variant: Callable[[Tensor, Tensor], Pair]) -> None:
    """MAF's x -> z is IAF's forward with sigma = 1/sigma_hat and mu = -mu_hat/sigma_hat; and back."""
    net = made(5)
    maf = MaskedAutoregressiveFlow(net, log_scale=lambda raw: raw)
    iaf = InverseAutoregressiveFlow(OtherWay(net, variant), log_scale=lambda raw: raw)
    value = draw(20, 5, seed=3)
    for found, expected in zip(iaf(value) + iaf.inverse(value), maf.inverse(value) + maf(value), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [MaskedAutoregressiveFlow, InverseAutoregressiveFlow])
def test_passes_each_way(kind: type) -> None:
    """One pass the fast way; the textbook's other way takes d (and one for the log-determinant)."""
    num_dims = 9
    net = Counting(made(num_dims))
    flow = kind(net)
    fast = flow.inverse if kind is MaskedAutoregressiveFlow else flow.forward
    step = flow.step
    given = draw(8, num_dims)
    with torch.no_grad():
        fast(given)
        assert net.passes == 1
        net.passes = 0
        by_the_book, _ = solve_sequentially(net, step, given)
        assert net.passes == num_dims + 1
        net.passes = 0
        by_sweeps, _ = solve_by_sweeps(net, step, given)
        assert net.passes <= num_dims + 1
        by_blocks, _ = solve_autoregressive(net.net, step, given)
    torch.testing.assert_close(by_sweeps, by_the_book, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_blocks, by_the_book, rtol=0, atol=1e-12)


def test_a_coupling_layer_is_an_autoregressive_flow_with_two_blocks() -> None:
    """A network that reads part a only, as a MAF: the coupling layer's numbers, in one sweep and a check."""
    from dgm_course.flows import AffineCoupling
    from dgm_course.nets import MLP

    conditioner = MLP([2, 8, 4], generator=torch.Generator().manual_seed(0)).double()

    class TwoBlocks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shift, raw = conditioner(x[..., :2]).chunk(2, dim=-1)
            still = torch.zeros_like(x[..., :2])
            return torch.stack([torch.cat([still, shift], -1), torch.cat([still, raw], -1)], dim=-1)

    net = Counting(TwoBlocks())
    z = draw(6, 4, seed=5)
    coupling = AffineCoupling(half_mask(4), conditioner)
    for found, expected in zip(MaskedAutoregressiveFlow(net)(z), coupling(z), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# F6 -------------------------------------------------------------------------------------------------------


def mask_lets_own_input_through(num_inputs: int, hidden: list[int], outputs: int) -> MaskedMLP:
    """MADE with <= in both layers: a unit of position j reads input j, and output j reads that unit."""
    net = MaskedMLP(num_inputs, hidden, outputs, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(hidden[0]) % num_inputs
    net.input.mask.copy_(torch.arange(num_inputs)[:, None] <= positions)
    return net


def masked(num_inputs: int, hidden: list[int], outputs: int) -> MaskedMLP:
    return MaskedMLP(num_inputs, hidden, outputs, generator=torch.Generator().manual_seed(1))


@proves("F6", right=masked, wrong={"mask_lets_own_input_through": mask_lets_own_input_through})
def test_output_j_reads_the_inputs_before_j_only(variant: Callable[..., MaskedMLP]) -> None:
    """The Jacobian's pattern: exactly zero from input j on, and nothing of the past lost."""
    for num_inputs, hidden in ((5, [5]), (6, [20]), (7, [15, 9, 22])):
        net = variant(num_inputs, hidden, 2).double()
        seen = torch.zeros(num_inputs, num_inputs, dtype=torch.bool)
        for x in draw(3, num_inputs):
            seen |= (jacobian(net, x) != 0).any(1)  # (output, input)
        assert torch.equal(seen, torch.ones(num_inputs, num_inputs).tril(-1).bool())
