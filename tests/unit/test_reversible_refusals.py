"""reversible: what is refused, because its gradients or its inverse would be wrong without a sign."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dgm_course.reversible import ReversibleBlock, ReversibleSequence


def around(branch: nn.Module) -> ReversibleSequence:
    return ReversibleSequence([ReversibleBlock(nn.Tanh(), branch)])


def test_sequences_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"at least one block, .* got \[\]: wrap"):
        ReversibleSequence([])
    with pytest.raises(ValueError, match=r"got \['Linear'\]: wrap two branches"):
        ReversibleSequence([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="g must be an nn.Module.* got builtin_function_or_method"):
        ReversibleBlock(nn.Tanh(), torch.tanh)
    with pytest.raises(ValueError, match="floating-point dtype, got torch.int64"):
        ReversibleSequence([ReversibleBlock(nn.Tanh(), nn.Tanh())], stream_dtype=torch.int64)


def test_inputs_that_do_not_fit() -> None:
    network = around(nn.Tanh())
    for shape in ((2, 3), (4,)):
        for run in (network, network.inverse):
            with pytest.raises(ValueError, match=r"along dim=1, whose size must be even, got shape \("):
                run(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"floating-point, got torch.int64: convert it with x.float\(\)"):
        network(torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 2\): split"):
        network.blocks[0](torch.zeros(2, 3), torch.zeros(2, 2))


@pytest.mark.parametrize("save_activations", [False, True])
@pytest.mark.parametrize("outputs", [3, 1])
def test_branches_that_change_the_shape(outputs: int, save_activations: bool) -> None:
    network = around(nn.Linear(2, outputs))  # a single output would broadcast
    network.save_activations = save_activations
    with pytest.raises(ValueError, match=rf"input's shape, \(5, 2\), got \(5, {outputs}\) from Linear"):
        network(torch.zeros(5, 4))


RANDOM = [
    nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.RReLU(),
    nn.TransformerEncoderLayer(2, 1, 4, dropout=0.1, batch_first=True),
]  # fmt: skip


@pytest.mark.parametrize("layer", RANDOM, ids=lambda layer: type(layer).__name__)
def test_random_layers_are_refused_in_training_mode_only(layer: nn.Module) -> None:
    network = around(nn.Sequential(copy.deepcopy(layer)))
    x = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    network.dim = -1
    for run in (network, network.inverse):
        with pytest.raises(ValueError, match="in training mode .* random: use GroupNorm .* or call .eval()"):
            run(x)
    network.eval()
    torch.testing.assert_close(network.inverse(network(x.double())), x.double())
    network.train().save_activations = True
    network(x)  # nothing is recomputed


def test_statistics_are_refused_before_they_change() -> None:
    network = around(nn.BatchNorm1d(2))
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    for run in (network, network.inverse):
        with pytest.raises(ValueError, match="BatchNorm1d in training mode updates its running statistics"):
            run(x)
    assert int(network.blocks[0].g.num_batches_tracked) == 0
    network.eval()(x)
    around(nn.BatchNorm1d(2, track_running_stats=False))(x)
    around(nn.Dropout(0.0))(x)
    around(nn.GroupNorm(1, 2))(x)


class Surprise(nn.Module):
    """A branch with one of several faults that no list of layers knows."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.outside = [torch.ones((), requires_grad=True)]
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        if self.fault == "random":
            return nn.functional.dropout(h, 0.5, self.training)
        if self.fault == "counts":
            self.calls += 1
        if self.fault == "overwrites":
            h.mul_(2)
        return h * self.outside[0] if self.fault == "outside" else h.tanh()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("random", "gave two values for one input"),
        ("counts", "changes its buffer 'calls' at every call"),
        ("outside", r"depends on 1 tensor\(s\) requiring a gradient that are not its parameters"),
        ("overwrites", "overwrites its input.*inplace=False"),
    ],
)
def test_faults_are_found_at_the_first_forward_pass(fault: str, message: str) -> None:
    network = around(Surprise(fault))
    x = torch.linspace(-1, 1, 64).reshape(8, 8)
    if fault == "random":
        network.eval()(x)  # fine, and the other mode is tried out when its turn comes
        network.train()
    for _ in range(2):  # and at every later one, for it was not passed
        with pytest.raises(ValueError, match=message):
            network(x)


def test_spectral_norm_iterates_in_training_mode() -> None:
    network = around(spectral_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="changes its buffer"):
        network(torch.ones(3, 4))
    network.eval()(torch.ones(3, 4))


def test_second_derivatives_are_refused_with_the_way_out() -> None:
    network = around(nn.Linear(2, 2)).double()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
    with pytest.raises(ValueError, match="leave create_graph=True out, or set save_activations=True"):
        torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
    network.save_activations = True
    [gradient] = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.sum(), x)[0].abs().max() > 0


def test_parameters_must_stay_between_forward_and_backward() -> None:
    network = around(nn.Linear(2, 2))
    x = torch.ones(3, 4, requires_grad=True)
    y = network(x)
    with torch.no_grad():
        network.blocks[0].g.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = network(x)
    network.blocks[0].g.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="a parameter of Linear was replaced or frozen between"):
        y.sum().backward()
    replaced = {"blocks.0.g.weight": torch.eye(2, requires_grad=True)}
    y = torch.func.functional_call(network, replaced, x)
    with pytest.raises(ValueError, match="a parameter of Linear was replaced or frozen between"):
        y.sum().backward()
