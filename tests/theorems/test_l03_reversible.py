"""Lecture 03: F8 (reversible blocks: inverse, gradients, memory), F9 (a classifier that is a bijection)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from ledger import proves
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from dgm_course import data
from dgm_course.nets import MLP
from dgm_course.reversible import (
    IRevNet,
    ResidualNet,
    ReversibleBlock,
    ReversibleSequence,
    saved_activation_bytes,
)
from dgm_course.train import fit


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def branch(width: int, seed: int) -> MLP:
    g = torch.Generator().manual_seed(seed)
    return MLP([width, 12, width], activation=torch.tanh, generator=g).double()


# F8 -------------------------------------------------------------------------------------------------------


class SecondHalfSeesTheInput(ReversibleBlock):
    """y2 = x2 + G(x1): undone with G(y1), as if it had seen the updated half."""

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        return x1 + self.f(x2), x2 + self.g(x1)


class SlidesInverse(ReversibleBlock):
    """x2 = y2 - F(y1), x1 = y1 - G(x2): F and G have changed places."""

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        x2 = y2 - self.f(y1)
        return y1 - self.g(x2), x2


WRONG = {"second_half_sees_the_input": SecondHalfSeesTheInput, "slides_inverse": SlidesInverse}


@proves("F8", right=ReversibleBlock, wrong=WRONG)
def test_a_block_is_undone_by_subtraction(variant: type[ReversibleBlock]) -> None:
    block = variant(branch(4, 1), branch(4, 2))
    x1, x2 = draw(6, 4, seed=3), draw(6, 4, seed=4)
    for found, expected in zip(block.inverse(*block(x1, x2)), (x1, x2), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    y1, y2 = draw(6, 4, seed=5), draw(6, 4, seed=6)
    for found, expected in zip(block(*block.inverse(y1, y2)), (y1, y2), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    matrix = jacobian(lambda v: torch.cat(block(*v.chunk(2))), draw(8, seed=7))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(()).double(), rtol=0, atol=1e-10)


Gradients = Callable[[ReversibleSequence, Tensor], list[Tensor]]


def loss_of(y: Tensor) -> Tensor:
    return (y.sin() * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).sum()


def by_the_library(net: ReversibleSequence, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(net(x)), list(net.parameters())))


def walked_back_with(kind: type[ReversibleBlock]) -> Gradients:
    """Activations recomputed by the block's own inverse, from the last block to the first."""

    def gradients(net: ReversibleSequence, x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            streams = x.chunk(2, dim=1)
            for block in net.blocks:
                streams = block(*streams)
        y = torch.cat(streams, dim=1).requires_grad_()
        (arriving,) = torch.autograd.grad(loss_of(y), y)
        arriving, found = arriving.chunk(2, dim=1), []
        for block in reversed(net.blocks):
            with torch.no_grad():
                streams = kind(block.f, block.g).inverse(*streams)
            inputs = [half.requires_grad_() for half in streams]
            wanted = [*inputs, *block.parameters()]
            now = list(torch.autograd.grad(block(*inputs), wanted, arriving))
            arriving, found = now[:2], now[2:] + found
        return found

    return gradients


@proves("F8", right=by_the_library, wrong={"slides_inverse": walked_back_with(SlidesInverse)})
def test_gradients_are_those_of_plain_backpropagation(variant: Gradients) -> None:
    """The reference runs the same blocks forward, by plain autograd in a loop of its own."""
    pairs = [(branch(4, 2 * k), branch(4, 2 * k + 1)) for k in range(12)]
    net, x = ReversibleSequence(ReversibleBlock(f, g) for f, g in pairs), draw(5, 8, seed=30)
    x1, x2 = x.chunk(2, dim=1)
    for f, g in pairs:
        x1 = x1 + f(x2)
        x2 = x2 + g(x1)
    expected = torch.autograd.grad(loss_of(torch.cat([x1, x2], dim=1)), list(net.parameters()))
    for found, one in zip(variant(net, x), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-6, atol=1e-6)


def test_walking_back_with_the_right_inverse_is_right_too() -> None:
    """The test's own backward pass, by which the wrong variant is judged, is correct with the right block."""
    test_gradients = walked_back_with(ReversibleBlock)
    pairs = [(branch(4, 2 * k), branch(4, 2 * k + 1)) for k in range(5)]
    net, x = ReversibleSequence(ReversibleBlock(f, g) for f, g in pairs), draw(5, 8, seed=31)
    for found, one in zip(test_gradients(net, x), by_the_library(net, x), strict=True):
        torch.testing.assert_close(found, one, rtol=1e-9, atol=1e-9)


def test_what_is_kept_does_not_grow_with_depth() -> None:
    """Recomputed: the same bytes at every depth. Stored: every block adds as many."""
    x = draw(32, 8, seed=1)
    kept: dict[bool, list[int]] = {True: [], False: []}
    for depth in (4, 8, 16):
        net = ReversibleSequence([ReversibleBlock(branch(4, k), branch(4, k + 100)) for k in range(depth)])
        for save in (True, False):
            net.save_activations = save
            kept[save].append(saved_activation_bytes(net, x))
    assert len(set(kept[False])) == 1
    assert kept[True][2] - kept[True][1] == 2 * (kept[True][1] - kept[True][0]) > 0
    assert kept[True][0] > 4 * kept[False][0]


# F9: a finding --------------------------------------------------------------------------------------------


def test_f9_a_bijective_classifier_recovers_the_digits() -> None:
    """Two seconds of training each: both classify well and alike, and one of them forgets nothing."""
    digits = data.digits(binary=False)
    train, test = (x.reshape(-1, 1, 8, 8) / 16 for x in (digits.train_x, digits.test_x))
    right = {}
    for kind in (IRevNet, ResidualNet):
        net = kind((1, 8, 8), 10, blocks=(2, 2), generator=torch.Generator().manual_seed(0))

        def loss(step: int, generator: torch.Generator, net: nn.Module = net) -> Tensor:
            rows = torch.randint(len(train), (32,), generator=generator)
            return nn.functional.cross_entropy(net(train[rows]), digits.train_y[rows])

        fit(loss, net.parameters(), steps=150, lr=5e-3, lr_decay_from=0.5, progress=False)
        with torch.no_grad():
            right[kind] = (net(test).argmax(1) == digits.test_y).double()
        if kind is IRevNet:
            exact = copy.deepcopy(net).double()
            with torch.no_grad():
                features = exact.features(test.double())
                back = exact.inverse(features)
            assert features.shape == (300, 64)  # as many numbers as pixels
            torch.testing.assert_close(back, test.double(), rtol=0, atol=1e-10)
    ours, plain = right[IRevNet], right[ResidualNet]
    assert float(ours.mean()) > 0.9 and float(plain.mean()) > 0.9
    difference = ours - plain
    error = float(difference.std()) / 300**0.5
    assert abs(float(difference.mean())) < max(5 * error, 0.02)
