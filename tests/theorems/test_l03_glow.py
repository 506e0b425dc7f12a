"""Lecture 03: F7 (actnorm, invertible 1x1 convolution) and F10 (Glow on images)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from ledger import proves
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal

from dgm_course import data
from dgm_course.flows import (
    ActNorm,
    AffineCoupling,
    Compose,
    FixedAffine,
    Flow,
    Glow,
    InvertibleConv1x1,
    Transform,
    channel_mask,
    initialise,
)
from dgm_course.nets import ConvNet
from dgm_course.numerics import nats_to_bits_per_dim
from dgm_course.train import fit, minibatch


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_det_of(map_: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    return torch.linalg.slogdet(jacobian(map_, at).reshape(at.numel(), at.numel())).logabsdet


# F7 -------------------------------------------------------------------------------------------------------


def log_det_of_f(transform: Transform, x: Tensor) -> Tensor:
    return transform.inverse(x)[1]


def log_det_without_pixel_count(transform: Transform, x: Tensor) -> Tensor:
    return transform.inverse(x)[1] / x.shape[-2:].numel()


@proves("F7", right=log_det_of_f, wrong={"log_det_without_pixel_count": log_det_without_pixel_count})
def test_log_dets_count_the_pixels(variant: Callable[[Transform, Tensor], Tensor]) -> None:
    x = draw(3, 2, 4)
    for lu in (True, False, None):
        transform = ActNorm(3, event_dims=3) if lu is None else InvertibleConv1x1(3, lu=lu)
        transform.double()
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter.add_(0.5 * draw(*parameter.shape, seed=1))
        expected = log_det_of(lambda value: transform.inverse(value)[0], x)  # noqa: B023
        assert abs(float(expected.detach())) > 0.1
        torch.testing.assert_close(variant(transform, x), expected, rtol=0, atol=1e-10)


def test_actnorm_starts_from_the_data() -> None:
    """Mean 0 and variance 1 (with 1/n) in every channel, over batch and pixels, in the direction x -> z."""
    x = draw(40, 3, 2, 4) * torch.tensor([0.1, 1.0, 30.0]).double()[:, None, None] + 5.0
    norm = ActNorm(3, event_dims=3).double()
    initialise(norm, x)
    z, log_det = norm.inverse(x)
    for channel in range(3):
        values = z[:, channel].detach()
        assert abs(float(values.mean())) < 1e-12
        assert abs(float(values.var(correction=0)) - 1) < 1e-12
    by_hand = -8 * x.movedim(1, 0).reshape(3, -1).std(1, correction=0).log().sum()
    torch.testing.assert_close(log_det[0], by_hand, rtol=0, atol=1e-10)


def test_every_actnorm_of_a_flow_sees_what_reaches_it() -> None:
    """Behind a 1x1 convolution and another actnorm the second one finds mean 0 and variance 1 too."""
    g = torch.Generator().manual_seed(1)
    flow = Flow(one_step_and_another_norm(g), (3, 2, 4))
    x = 3.0 + 2.0 * draw(60, 3, 2, 4, seed=2)
    initialise(flow, x)
    last, coupling, conv, first = flow.transform
    assert float(first.inverse(x)[0].detach().mean((0, 2, 3)).abs().max()) < 1e-12
    deeper = coupling.inverse(conv.inverse(first.inverse(x)[0])[0])[0]
    z = last.inverse(deeper)[0].detach()
    assert float(z.mean((0, 2, 3)).abs().max()) < 1e-12
    assert float((z.var((0, 2, 3), correction=0) - 1).abs().max()) < 1e-12
    assert not first.fitting and not last.fitting


def one_step_and_another_norm(g: torch.Generator) -> Transform:
    coupling = AffineCoupling(channel_mask(3), ConvNet(2, 4, 2, generator=g))
    norm, conv = ActNorm(3, event_dims=3), InvertibleConv1x1(3, generator=g)
    return Compose([norm, coupling, conv, ActNorm(3, event_dims=3)]).double()


@pytest.mark.parametrize("num_channels", [1, 2, 5, 12])
def test_lu_is_the_dense_convolution(num_channels: int) -> None:
    """The same rotation from the same generator; and any invertible W in factors acts as itself."""
    pair = [
        InvertibleConv1x1(num_channels, lu=lu, generator=torch.Generator().manual_seed(3)).double()
        for lu in (True, False)
    ]
    eye = torch.eye(num_channels).double()
    for one in pair:  # drawn in float32: a rotation up to its rounding
        torch.testing.assert_close(one.weight @ one.weight.mT, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(pair[0].weight, pair[1].weight, rtol=0, atol=1e-5)
    matrix = draw(num_channels, num_channels, seed=num_channels)
    permutation, lower, upper = torch.linalg.lu(matrix)
    lu, dense = pair
    with torch.no_grad():
        dense.dense.copy_(matrix)
        lu.permutation.copy_(permutation)
        lu.lower.copy_(lower)
        lu.upper.copy_(upper)
        lu.sign.copy_(torch.diagonal(upper).sign())
        lu.log_s.copy_(torch.diagonal(upper).abs().log())
    x = draw(2, num_channels, 3, 2, seed=9)
    for way in ("forward", "inverse"):
        for found, expected in zip(getattr(lu, way)(x), getattr(dense, way)(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_rotation_is_the_initialisation_only() -> None:
    """One gradient step of the likelihood of correlated data, and W is no rotation any more."""
    for lu in (True, False):
        conv = InvertibleConv1x1(3, lu=lu, generator=torch.Generator().manual_seed(0)).double()
        x = draw(50, 3, 2, 2) @ torch.ones(2, 2).double() + draw(50, 3, 2, 2, seed=1)
        (-Flow(conv, (3, 2, 2)).log_prob(x).mean()).backward()
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.sub_(0.01 * parameter.grad)
        off = (conv.weight @ conv.weight.mT - torch.eye(3).double()).abs().max()
        assert float(off.detach()) > 0.01


# F10: a finding -------------------------------------------------------------------------------------------


def test_f10_a_small_glow_learns_the_digits() -> None:
    """A few seconds of training: far below the best Gaussian with every correlation, on the held-out digits.

    Both as the bound of uniform dequantization, on the same noise. Independent pixels, counted, are no easy
    rival (many are always 0): 2.44 bits/dim; the lecture's larger Glow passes them, this one need not.
    """
    digits = data.digits(binary=False)
    train, test = (x.reshape(-1, 1, 8, 8) for x in (digits.train_x, digits.test_x))
    g = torch.Generator().manual_seed(0)
    pixels = FixedAffine(8.5, 6.0, event_dims=3)
    model = Glow((1, 8, 8), steps_per_scale=3, hidden=24, pixels=pixels, generator=g)
    initialise(model, train[:512] + torch.rand(512, 1, 8, 8, generator=g))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        batch = minibatch(train, 32, generator)
        return -model.log_prob(batch + torch.rand(batch.shape, generator=generator)).mean()

    fit(loss, model.parameters(), steps=250, lr=1e-2, lr_decay_from=0.5, progress=False, clip_norm=50.0)
    noisy = test + torch.rand(test.shape, generator=g)
    flat = digits.train_x.double()
    covariance = torch.cov(flat.T, correction=0) + torch.eye(64).double() / 12  # the noise's own variance
    gaussian = MultivariateNormal(flat.mean(0) + 0.5, covariance)
    with torch.no_grad():
        gain = model.log_prob(noisy).double() - gaussian.log_prob(noisy.flatten(1).double())  # (300,)
        bits = nats_to_bits_per_dim(-model.log_prob(noisy), 64).mean()
        z = model.encode(noisy)
        torch.testing.assert_close(model.decode(z), noisy, rtol=0, atol=2e-2)
    assert float(gain.mean()) > 5 * float(gain.std()) / 300**0.5
    assert float(bits) < math.log2(17) - 1
    assert model.sample(7, generator=g).shape == (7, 1, 8, 8)
