"""Lecture 03: F1 (change of variables), F2 (which KL is minimised), F11 (a flow is a VAE)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from flow_zoo import ZOO
from ledger import proves
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.flows import (
    AffineCoupling,
    Compose,
    Flow,
    Inverse,
    MaskedAutoregressiveFlow,
    Permutation,
    PlanarFlow,
    Transform,
    half_mask,
    likelihood_term,
    reverse_kl,
)
from dgm_course.nets import MLP, MaskedMLP
from dgm_course.numerics import gauss_hermite, log_log_slope

LogProb = Callable[[Transform, Tensor], Tensor]
Divergence = Callable[[Tensor, Tensor, float], Tensor]


def standard_normal(z: Tensor, event_dims: int) -> Tensor:
    return Normal(torch.zeros_like(z), 1.0).log_prob(z).flatten(z.dim() - event_dims).sum(-1)


# F1 -------------------------------------------------------------------------------------------------------


def by_the_flow(transform: Transform, x: Tensor) -> Tensor:
    return Flow(transform, x.shape[-transform.event_dims :]).log_prob(x)


def log_det_sign_flipped(transform: Transform, x: Tensor) -> Tensor:
    z, log_det = transform.inverse(x)
    return standard_normal(z, transform.event_dims) - log_det


def slides_entries_made_positive(transform: Transform, x: Tensor) -> Tensor:
    """``log det|.|`` as a slide writes it, read literally."""
    z = transform.inverse(x)[0]
    inside = [jacobian_of_inverse(transform, one).abs().det().log() for one in x]
    return standard_normal(z, transform.event_dims) + torch.stack(inside)


def jacobian_of_inverse(transform: Transform, x: Tensor) -> Tensor:
    return jacobian(lambda value: transform.inverse(value)[0], x).reshape(x.numel(), x.numel())


def jacobian_of_forward(transform: Transform, z: Tensor) -> Tensor:
    return jacobian(lambda value: transform(value)[0], z).reshape(z.numel(), z.numel())


WRONG_F1 = {
    "log_det_sign_flipped": log_det_sign_flipped,
    "slides_entries_made_positive": slides_entries_made_positive,
}


@proves("F1", right=by_the_flow, wrong=WRONG_F1)
def test_log_density_has_the_jacobians_log_determinant(variant: LogProb) -> None:
    """Every transform of the zoo, against autograd; and J_f is the inverse of J_g."""
    for entry in ZOO:
        transform = entry.build()
        x = transform(entry.points(3))[0].detach()
        for one, found in zip(x, variant(transform, x), strict=True):
            z = transform.inverse(one)[0].detach()
            of_f = jacobian_of_inverse(transform, one)
            of_g = jacobian_of_forward(transform, z)
            eye = torch.eye(one.numel(), dtype=torch.float64)
            torch.testing.assert_close(of_f @ of_g, eye, rtol=0, atol=1e-8)
            expected = standard_normal(z, transform.event_dims) + torch.linalg.slogdet(of_f).logabsdet
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@proves("F1", right=by_the_flow, wrong=WRONG_F1)
def test_the_density_integrates_to_one(variant: LogProb) -> None:
    entry = next(entry for entry in ZOO if entry.name == "MAF")
    transform = entry.build()
    axis = torch.linspace(-25, 25, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    if variant is slides_entries_made_positive:  # by autograd, point by point: a coarse grid is enough
        axis = torch.linspace(-25, 25, 41, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
    density = variant(transform, grid).exp().detach()
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1.0, abs=1e-6)


# F2 -------------------------------------------------------------------------------------------------------


def bimodal_data(num_dims: int) -> MixtureSameFamily:
    means = torch.tensor([[-1.5, 0.5], [1.0, -1.0]], dtype=torch.float64)[:, :num_dims]
    sds = torch.tensor([[0.6, 0.5], [0.8, 0.7]], dtype=torch.float64)[:, :num_dims]
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return MixtureSameFamily(Categorical(weights), Independent(Normal(means, sds), 1))


def some_flow(num_dims: int) -> Transform:
    """A MAF (in one dimension: affine) behind a planar flow, both directions smooth."""
    g = torch.Generator().manual_seed(3)
    net = MaskedMLP(num_dims, 8, 2, generator=g)
    return Compose([MaskedAutoregressiveFlow(net), PlanarFlow(num_dims, generator=g)]).double()


def kl(log_p: Tensor, log_q: Tensor, cell: float) -> Tensor:
    """KL(p || q) by the trapezoidal rule, from log-densities on an even grid."""
    return (log_p.exp() * (log_p - log_q)).sum() * cell


def forward_kl(log_pi: Tensor, log_p: Tensor, cell: float) -> Tensor:
    return kl(log_pi, log_p, cell)


def reverse_kl_for_forward(log_pi: Tensor, log_p: Tensor, cell: float) -> Tensor:
    return kl(log_p, log_pi, cell)


def grid_of(num_dims: int) -> tuple[Tensor, float]:
    axis = torch.linspace(-14, 14, 4001 if num_dims == 1 else 701, dtype=torch.float64)
    grid = axis.unsqueeze(-1) if num_dims == 1 else torch.cartesian_prod(axis, axis)
    return grid, float(axis[1] - axis[0]) ** num_dims


@proves("F2", right=forward_kl, wrong={"reverse_kl_for_forward": reverse_kl_for_forward})
def test_the_kl_in_x_is_the_kl_in_z(variant: Divergence) -> None:
    """KL(pi || p) = KL(f_# pi || p_0), each by quadrature in its own space."""
    for num_dims in (1, 2):
        data, transform = bimodal_data(num_dims), some_flow(num_dims)
        grid, cell = grid_of(num_dims)
        with torch.no_grad():
            in_x = variant(data.log_prob(grid), Flow(transform, num_dims).log_prob(grid), cell)
            pushed = Flow(Inverse(transform), data)  # the law of z = f(x), x from the data
            in_z = kl(pushed.log_prob(grid), standard_normal(grid, 1), cell)
        torch.testing.assert_close(in_x, in_z, rtol=0, atol=1e-8)


@proves("F2", right=forward_kl, wrong={"reverse_kl_for_forward": reverse_kl_for_forward})
def test_maximum_likelihood_descends_the_forward_kl(variant: Divergence) -> None:
    """The gradient of E_pi[-log p(x)] is that of KL(pi || p), parameter by parameter."""
    data, transform = bimodal_data(1), some_flow(1)
    grid, cell = grid_of(1)
    log_pi, log_p = data.log_prob(grid), Flow(transform, 1).log_prob(grid)
    parameters = [p for p in transform.parameters() if p.requires_grad]
    likelihood = -(log_pi.exp() * log_p).sum() * cell
    kind = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    expected = torch.autograd.grad(likelihood, parameters, **kind)
    found = torch.autograd.grad(variant(log_pi, log_p, cell), parameters, **kind)
    assert max(float(g.abs().max()) for g in expected) > 1e-2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_reverse_kl_needs_the_target_up_to_a_constant_only() -> None:
    """Its mean is KL(p || pi) - log Z (quadrature), its gradient does not know Z."""
    data, transform, log_z = bimodal_data(2), some_flow(2), 1.7
    flow = Flow(transform, 2)
    grid, cell = grid_of(2)
    with torch.no_grad():
        exact = kl(flow.log_prob(grid), data.log_prob(grid), cell) - log_z
        samples = reverse_kl(
            flow, lambda x: data.log_prob(x) + log_z, 40_000, generator=torch.Generator().manual_seed(0)
        )
        error = float(samples.std()) / 200
        assert abs(float(samples.mean() - exact)) < 5 * error < 0.3
        other = kl(data.log_prob(grid), flow.log_prob(grid), cell) - log_z  # the wrong direction
        assert abs(float(samples.mean() - other)) > 10 * error
    gradients = []
    for target in (data.log_prob, lambda x: data.log_prob(x) + log_z):
        loss = reverse_kl(flow, target, 50, generator=torch.Generator().manual_seed(1))
        kind = {"allow_unused": True, "materialize_grads": True}
        gradients.append(torch.autograd.grad(loss.mean(), list(transform.parameters()), **kind))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# F11 ------------------------------------------------------------------------------------------------------

SCALES = torch.tensor([0.1, 0.03, 0.01, 0.003, 0.001], dtype=torch.float64)


def coupled(seed: int) -> Transform:
    g = torch.Generator().manual_seed(seed)

    def layer() -> AffineCoupling:
        return AffineCoupling(half_mask(2), MLP([1, 16, 2], activation=torch.tanh, generator=g))

    transform = Compose([layer(), Permutation.reverse(2), layer(), PlanarFlow(2, generator=g)]).double()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.mul_(1.5)
    return transform


def encoder_noise_without_jacobian(
    transform: Transform, x: Tensor, noise_scale: float, noise: Tensor, weights: Tensor
) -> Tensor:
    """q(z|x) = N(f(x), s^2 I)."""
    z = transform.inverse(x)[0] + noise_scale * noise
    log_p = -0.5 * ((x - transform(z)[0]) / noise_scale).square().sum(-1)
    return weights @ (log_p + 0.5 * noise.square().sum(-1))


@proves(
    "F11", right=likelihood_term, wrong={"encoder_noise_without_jacobian": encoder_noise_without_jacobian}
)
def test_a_flow_is_a_vae_with_vanishing_noise(variant: Callable[..., Tensor]) -> None:
    """The likelihood term tends to log|det J_f(x)|, and the bias falls as s^2: slope 2 within 0.1."""
    noise, weights = gauss_hermite(24, num_dims=2)
    for seed in (0, 1, 2):
        transform = coupled(seed)
        x = torch.tensor([0.4, -0.7], dtype=torch.float64)
        with torch.no_grad():
            log_det = transform.inverse(x)[1]
            terms = [variant(transform, x, float(s), noise, weights).detach() for s in SCALES]
        bias = torch.stack(terms) - log_det
        assert float(bias[-1].abs()) < 1e-5
        assert math.isclose(float(log_log_slope(SCALES, bias.abs())), 2.0, abs_tol=0.1)


def test_likelihood_term_of_a_batch_and_by_samples() -> None:
    """Rows are independent; noise from samples of N(0, I) gives the same within its error."""
    transform = coupled(0)
    noise, weights = gauss_hermite(24, num_dims=2)
    rows = torch.tensor([[0.4, -0.7], [-1.0, 0.2]], dtype=torch.float64)
    both = likelihood_term(transform, rows, 0.05, noise, weights).detach()
    for row, found in zip(rows, both, strict=True):
        torch.testing.assert_close(found, likelihood_term(transform, row, 0.05, noise, weights).detach())
    drawn = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    each = torch.cat([
        likelihood_term(transform, rows[0], 0.05, part, torch.eye(len(part), dtype=torch.float64)).detach()
        for part in drawn.split(2000)
    ])  # fmt: skip
    assert abs(float(each.mean() - both[0])) < 5 * float(each.std()) / 20_000**0.5


def test_likelihood_term_refuses_a_scale_of_zero() -> None:
    with pytest.raises(ValueError, match="noise_scale must be positive"):
        likelihood_term(coupled(0), torch.zeros(2).double(), 0.0, *gauss_hermite(4, num_dims=2))
