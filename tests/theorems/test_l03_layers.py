"""Lecture 03: F3 (coupling) and F4 (planar, radial, Sylvester)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flow_zoo import Counting
from ledger import proves
from torch import Tensor
from torch.autograd.functional import jacobian

from dgm_course.flows import (
    AdditiveCoupling,
    AffineCoupling,
    alternating_mask,
    checkerboard_mask,
    half_mask,
    planar,
    planar_inverse,
    radial,
    radial_inverse,
    sylvester,
)
from dgm_course.nets import MLP, ConvNet

Pair = tuple[Tensor, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_det_of(map_: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    return torch.linalg.slogdet(jacobian(map_, at).reshape(at.numel(), at.numel())).logabsdet


# F3 -------------------------------------------------------------------------------------------------------


def affine(mask: Tensor, seed: int = 0) -> AffineCoupling:
    g = torch.Generator().manual_seed(seed)
    if mask.dim() == 1:
        kept, moved = int(mask.sum()), int((~mask).sum())
        return AffineCoupling(mask, MLP([kept, 12, 2 * moved], generator=g)).double()
    return AffineCoupling(mask, ConvNet(1, 8, 2, generator=g)).double()


MASKS = [half_mask(5), half_mask(5, first=False), alternating_mask(4), checkerboard_mask(3, 2)]


def log_det_of_layer(layer: AffineCoupling, z: Tensor) -> Tensor:
    return layer(z)[1]


def log_det_sums_scales(layer: AffineCoupling, z: Tensor) -> Tensor:
    """Sum of sigma, not of log sigma: recovered from the layer, entry by entry."""
    return torch.diagonal(jacobian(lambda value: layer(value)[0], z).reshape(z.numel(), -1)).sum()


@proves("F3", right=log_det_of_layer, wrong={"log_det_sums_scales": log_det_sums_scales})
def test_coupling_log_det_is_the_sum_of_log_scales(
    variant: Callable[[AffineCoupling, Tensor], Tensor]
) -> None:
    for seed, mask in enumerate(MASKS):
        layer = affine(mask, seed)
        z = draw(*(mask.shape if mask.dim() == 1 else (1, 3, 2)), seed=seed)
        expected = log_det_of(lambda value: layer(value)[0], z)  # noqa: B023
        torch.testing.assert_close(variant(layer, z), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "x".join(map(str, mask.shape)))
def test_coupling_jacobian_is_block_triangular(mask: Tensor) -> None:
    """Part a is the identity and reads nothing else; within part b the Jacobian is diagonal."""
    layer = affine(mask)
    z = draw(*(mask.shape if mask.dim() == 1 else (1, 3, 2)))
    matrix = jacobian(lambda value: layer(value)[0], z).reshape(z.numel(), z.numel())
    a = mask.flatten()
    assert torch.equal(matrix[a][:, a], torch.eye(int(a.sum()), dtype=torch.float64))
    assert bool((matrix[a][:, ~a] == 0).all())
    within = matrix[~a][:, ~a]
    assert torch.equal(within, torch.diag(torch.diagonal(within)))
    assert bool((matrix[~a][:, a] != 0).any())


@pytest.mark.parametrize("kind", [AdditiveCoupling, AffineCoupling])
def test_coupling_takes_one_network_pass_each_way(kind: type) -> None:
    outputs = 2 if kind is AdditiveCoupling else 4
    net = Counting(MLP([2, 8, outputs], generator=torch.Generator().manual_seed(0)))
    layer = kind(half_mask(4), net).double()
    x, log_det = layer(draw(7, 4))
    assert net.passes == 1
    layer.inverse(x)
    assert net.passes == 2
    if kind is AdditiveCoupling:
        assert torch.equal(log_det, torch.zeros(7).double())


# F4 -------------------------------------------------------------------------------------------------------


def radial_derivative_of_h_dropped(z: Tensor, z0: Tensor, alpha: float, beta: float) -> Pair:
    x, _ = radial(z, z0, alpha, beta)
    h = 1 / (alpha + (z - z0).norm(dim=-1))
    return x, z.shape[-1] * torch.log1p(beta * h)


@proves("F4", right=radial, wrong={"radial_derivative_of_h_dropped": radial_derivative_of_h_dropped})
def test_radial_log_det(variant: Callable[..., Pair]) -> None:
    z0 = draw(4, seed=1)
    for alpha, beta in ((1.0, 0.7), (0.3, 5.0), (2.0, -1.5), (0.5, -0.4999)):
        for z in draw(5, 4, seed=2):
            expected = log_det_of(lambda value: radial(value, z0, alpha, beta)[0], z)  # noqa: B023
            torch.testing.assert_close(variant(z, z0, alpha, beta)[1], expected, rtol=0, atol=1e-10)


def planar_without_slope(z: Tensor, u: Tensor, w: Tensor, b: float) -> Pair:
    return planar(z, u, w, b)[0], (1 + (u * w).sum(-1)).abs().log().expand(z.shape[:-1])


def planar_without_absolute_value(z: Tensor, u: Tensor, w: Tensor, b: float) -> Pair:
    bend = torch.tanh((w * z).sum(-1) + b)
    return planar(z, u, w, b)[0], torch.log(1 + (u * w).sum(-1) * (1 - bend.square()))


@proves(
    "F4", right=planar,
    wrong={"slope_dropped": planar_without_slope, "no_absolute_value": planar_without_absolute_value},
)  # fmt: skip
def test_planar_log_det(variant: Callable[..., Pair]) -> None:
    """Also where w.u < -1: the formula of the determinant does not need a bijection."""
    w = draw(3, seed=1)
    for along in (-4.0, -1.0, -0.5, 0.0, 2.0):
        u = draw(3, seed=2)
        u = u + (along - u @ w) * w / (w @ w)
        for z in 0.5 * draw(5, 3, seed=3):
            expected = log_det_of(lambda value: planar(value, u, w, 0.1)[0], z)  # noqa: B023
            torch.testing.assert_close(variant(z, u, w, 0.1)[1], expected, rtol=0, atol=1e-10)


def rises(values: Tensor) -> bool:
    return bool((values.diff() > 0).all())


@pytest.mark.parametrize("along", [-1.0, -0.999, 0.0, 3.0])
def test_planar_is_injective_up_to_the_edge(along: float) -> None:
    """Along w the map is a + (w.u) tanh(a + b): it rises iff w.u >= -1."""
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    line = torch.stack([torch.arange(-1000.0, 1001.0).double() * 3e-3, torch.zeros(2001)], dim=-1)  # 0 too
    x, log_det = planar(line, along * w, w, 0.0)
    assert rises(x[:, 0])
    assert bool(log_det.isfinite().all()) == (along > -1)  # at the edge -inf at 0
    back, _ = planar_inverse(x, along * w, w, 0.0)
    torch.testing.assert_close(back, line, rtol=0, atol=1e-5 if along == -1 else 1e-9)


def test_planar_folds_beyond_the_edge() -> None:
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    line = torch.stack([torch.linspace(-3, 3, 2001, dtype=torch.float64), torch.zeros(2001)], dim=-1)
    x, log_det = planar(line, -1.01 * w, w, 0.0)
    assert not rises(x[:, 0]) and bool(log_det.isfinite().all())  # finite almost everywhere, yet no bijection
    with pytest.raises(ValueError, match=r"bijection iff w\.u >= -1, got w\.u = -1\.01"):
        planar_inverse(x, -1.01 * w, w, 0.0)


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_radial_is_injective_up_to_the_edge(alpha: float) -> None:
    r = torch.linspace(0, 4, 2001, dtype=torch.float64)
    line, z0 = torch.stack([r, torch.zeros_like(r)], dim=-1), torch.zeros(2, dtype=torch.float64)
    for beta in (-alpha, -0.99 * alpha, 0.0, 5.0):
        x, log_det = radial(line, z0, alpha, beta)
        assert rises(x[:, 0])
        assert bool(log_det.isfinite().all()) == (beta > -alpha)  # at the centre itself
        back, _ = radial_inverse(x, z0, alpha, beta)
        torch.testing.assert_close(back, line, rtol=0, atol=1e-8)
    x, log_det = radial(line, z0, alpha, -1.01 * alpha)
    assert not rises(x[:, 0]) and bool(log_det.isnan().any())
    with pytest.raises(ValueError, match="bijection iff alpha > 0 and beta >= -alpha"):
        radial_inverse(x, z0, alpha, -1.01 * alpha)


def small_determinant(v: Tensor, w: Tensor) -> Tensor:
    return torch.linalg.det(torch.eye(v.shape[1]).double() + w.mT @ v)


def gram_for_product(v: Tensor, w: Tensor) -> Tensor:
    return torch.linalg.det(torch.eye(v.shape[1]).double() + w.mT @ w)


@proves("F4", right=small_determinant, wrong={"gram_for_product": gram_for_product})
def test_sylvesters_identity(variant: Callable[[Tensor, Tensor], Tensor]) -> None:
    for m, k in ((2, 1), (5, 3), (9, 2), (3, 3)):
        v, w = draw(m, k, seed=m), draw(m, k, seed=k + 50)
        large = torch.linalg.det(torch.eye(m).double() + v @ w.mT)
        torch.testing.assert_close(variant(v, w), large, rtol=1e-10, atol=1e-10)


def sylvester_log_det(*given: Tensor) -> Tensor:
    return sylvester(*given)[1]


def diagonal_of_r_alone(z: Tensor, q: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> Tensor:
    bend = torch.tanh(z @ q @ r_tilde.mT + b)
    return torch.log(torch.abs(1 + torch.diagonal(r) * (1 - bend.square()))).sum(-1)


@proves("F4", right=sylvester_log_det, wrong={"diagonal_of_r_alone": diagonal_of_r_alone})
def test_sylvester_log_det(variant: Callable[..., Tensor]) -> None:
    q = torch.linalg.qr(draw(6, 3)).Q
    r, r_tilde, b = draw(3, 3, seed=1).triu(), draw(3, 3, seed=2).triu(), draw(3, seed=3)
    for z in draw(5, 6, seed=4):
        expected = log_det_of(lambda value: sylvester(value, q, r, r_tilde, b)[0], z)
        torch.testing.assert_close(variant(z, q, r, r_tilde, b), expected, rtol=0, atol=1e-10)
