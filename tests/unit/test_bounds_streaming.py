"""bounds.streaming: bound and gradients against plain autograd on the same noise, and what may go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from dgm_course.bounds import streamed_iwae_bound
from dgm_course.nets import MLP

F64 = torch.float64
B, M, D = 5, 4, 2


def seeded(seed: int = 7, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=seeded(seed))


class Model:
    """A small nonlinear decoder with a standard normal prior, and the batch it is tried on.

    It writes down what it is asked for: the samples ``z (k, B, d)`` of the forward pass (no gradients), and
    the number of rows of every call of the backward pass.
    """

    def __init__(self, noise_sd: float = 0.8, **kind: object) -> None:
        kind = {"dtype": F64, "device": "cpu", **kind}
        self.weight = draw(D, M, seed=1).to(**kind).requires_grad_()
        self.bias = draw(M, seed=2).to(**kind).requires_grad_()
        self.noise_sd = noise_sd
        self.x = 0.7 * draw(B, M, seed=3).to(**kind)
        self.mean = (0.5 * draw(B, D, seed=4)).to(**kind).requires_grad_()
        self.log_var = (0.4 * draw(B, D, seed=5)).to(**kind).requires_grad_()
        self.forward_z: list[Tensor] = []
        self.backward_rows: list[int] = []  # the first is one row: is every parameter listed?

    @property
    def inputs(self) -> list[Tensor]:
        return [self.mean, self.log_var, self.weight, self.bias]

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        error = (x - torch.tanh(z @ self.weight) - self.bias) / self.noise_sd
        return -0.5 * (error.square() + math.log(2 * math.pi * self.noise_sd**2)).sum(-1) + Normal(
            torch.zeros_like(z), 1.0
        ).log_prob(z).sum(-1)

    def recorded(self, x: Tensor, z: Tensor) -> Tensor:
        assert x.shape[:-1] == z.shape[:-1], "equal batch shapes are promised"
        if torch.is_grad_enabled():
            self.backward_rows.append(z[..., 0].numel())
        else:
            self.forward_z.append(z.clone())
        return self.log_joint(x, z)

    def streamed(self, num_samples: int, rows: int = 1000, **options: object) -> Tensor:
        self.forward_z, self.backward_rows = [], []
        return streamed_iwae_bound(
            self.recorded, self.x, self.mean, self.log_var,
            **{"num_samples": num_samples, "rows": rows, "parameters": [self.weight, self.bias],
               "generator": seeded(device=self.x.device), **options},
        )  # fmt: skip

    def plain(self) -> Tensor:
        """The bound from the same noise, every sample in the graph."""
        std = torch.exp(0.5 * self.log_var)
        eps = ((torch.cat(self.forward_z) - self.mean) / std).detach()  # (K, B, d)
        z = self.mean + std * eps
        q = Independent(Normal(self.mean, std), 1)
        log_w = self.log_joint(self.x, z) - q.log_prob(z)  # (K, B)
        return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def gradients(bound: Tensor, inputs: list[Tensor], weights: Tensor | None = None) -> list[Tensor]:
    return list(torch.autograd.grad(bound, inputs, torch.ones_like(bound) if weights is None else weights))


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for value, exact in zip(found, expected, strict=True):
        scale = max(1.0, exact.abs().max().item())
        torch.testing.assert_close(value, exact, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("num_samples", [1, 23])
@pytest.mark.parametrize("rows", [1, 3, 5, 7, 40, 115, 100_000])
def test_equals_plain_autograd_on_the_same_noise(num_samples: int, rows: int) -> None:
    """Fewer rows than data points, one, not divisible, more than there are: all four gradients to 1e-10."""
    model = Model()
    bound = model.streamed(num_samples, rows)
    assert bound.shape == (B,) and sum(len(z) for z in model.forward_z) == num_samples
    expected = model.plain()
    torch.testing.assert_close(bound, expected, rtol=0, atol=1e-12)
    assert_same(gradients(bound, model.inputs), gradients(expected, model.inputs))


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_no_call_is_larger_than_asked_for(rows: int) -> None:
    """Forward at most ``rows`` pairs, or one for each x; backward at most ``rows``, and each pair once."""
    model = Model()
    gradients(model.streamed(23, rows), model.inputs)
    assert all(z[..., 0].numel() <= max(rows, B) for z in model.forward_z)
    assert max(model.backward_rows) <= rows and sum(model.backward_rows) <= 1 + 23 * B


def chunks(seed: int) -> tuple[Tensor, Tensor]:
    """All noise of a call with K = 4000, in blocks of four samples; how many standard errors it is off."""
    model = Model()
    with torch.no_grad():
        model.streamed(4000, rows=20, generator=seeded(seed))
        eps = (torch.cat(model.forward_z) - model.mean) / torch.exp(0.5 * model.log_var)  # (4000, B, d)
    moments = torch.stack([eps.mean(), (eps.square().mean() - 1) / 2**0.5, (eps[:-4] * eps[4:]).mean()])
    return eps, moments * eps.numel() ** 0.5


def test_the_chunks_of_noise_are_independent_and_normal() -> None:
    """No value twice; mean, variance and neighbouring blocks of 40 000 within 5 standard errors."""
    eps, deviations = chunks(seed=20)
    assert len(torch.unique(eps)) > 0.999 * eps.numel()
    assert (deviations.abs() < 5).all()


def test_gradients_with_other_weights_than_one() -> None:
    """Of any combination of the bounds, zero and negative ones included."""
    model = Model()
    weights = torch.tensor([0.0, -2.0, 1.0, 1e3, 1e-3], dtype=F64)
    bound = model.streamed(23, 40)
    found, expected = gradients(bound, model.inputs, weights), gradients(model.plain(), model.inputs, weights)
    assert_same(found, expected)
    assert found[0][0].tolist() == [0.0, 0.0]
    model.streamed(23, 40).mean().backward()
    model.plain().mean().backward()
    doubled = [p.grad for p in model.inputs]
    mean = gradients(model.plain().mean(), model.inputs, torch.ones((), dtype=F64))
    assert_same(doubled, [2 * g for g in mean])  # both backward passes added the same


@pytest.mark.parametrize(("noise_sd", "share"), [(0.2, 0.7), (0.02, 0.01)])
def test_samples_that_do_not_count_are_not_differentiated(noise_sd: float, share: float) -> None:
    """Little observation noise under a wide q: few of 3000 samples carry the weight. Error below 2e-7."""
    model = Model(noise_sd=noise_sd)
    bound = model.streamed(3000, 500)
    found, expected = gradients(bound, model.inputs), gradients(model.plain(), model.inputs)
    assert sum(model.backward_rows) < share * 3000 * B
    for value, exact in zip(found, expected, strict=True):
        assert (value - exact).norm() < 2e-7 * exact.norm()


def test_far_away_weights_do_not_overflow() -> None:
    """log p(x, z) near -1e5 and near +1e5."""
    for shift in (-1e5, 1e5):
        model = Model()
        still = gradients(model.streamed(23, 40), model.inputs)
        bound = streamed_iwae_bound(
            lambda x, z, m=model, s=shift: m.log_joint(x, z) + s, model.x, model.mean, model.log_var,
            num_samples=23, parameters=[model.weight, model.bias], generator=seeded(), rows=40,
        )  # fmt: skip
        torch.testing.assert_close(bound, model.plain() + shift, rtol=0, atol=1e-9)
        assert_same(gradients(bound, model.inputs), still, 1e-9)


def test_weights_sum_to_one_in_float32_at_the_level_of_an_image() -> None:
    """log p(x, z) near -700: exp(log w - bound) would be off by the rounding of the bound, 1e-5 and more."""
    level = torch.zeros((), requires_grad=True)
    mean = 0.1 * torch.arange(6.0).reshape(3, 2)
    bound = streamed_iwae_bound(
        lambda x, z: level - 713.37 - 0.5 * z.square().sum(-1), torch.zeros(3, 2), mean, 0.3 * mean,
        num_samples=2000, parameters=[level], generator=seeded(),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(bound[1], level)
    assert gradient.item() == pytest.approx(1.0, abs=2e-6)  # every sample's derivative is 1


def test_samples_of_density_zero_count_nothing() -> None:
    """Where log p(x, z) is -inf for some samples, as with a bounded support."""

    def half(log_joint: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, z: torch.where(z[..., 0] > 0.5, -math.inf, log_joint(x, z))

    model = Model()
    model.log_joint = half(model.log_joint)
    bound = model.streamed(60, 40)
    expected = model.plain()
    assert bound.isfinite().all()
    torch.testing.assert_close(bound, expected, rtol=0, atol=1e-12)
    assert_same(gradients(bound, model.inputs), gradients(expected, model.inputs))


def test_an_encoder_and_a_decoder_learn_through_it() -> None:
    """Gradients of the networks' parameters, listed for the decoder and reached through (mean, log_var)."""
    encoder, decoder = (
        MLP([M, 6, 2 * D], generator=seeded()).double(),
        MLP([D, M], generator=seeded()).double(),
    )
    model = Model()
    model.mean, model.log_var = encoder(model.x).chunk(2, dim=-1)
    model.log_joint = lambda x, z: -(x - decoder(z)).square().sum(-1) - 0.5 * z.square().sum(-1)
    bound = model.streamed(50, 30, parameters=decoder.parameters())
    inputs = [*encoder.parameters(), *decoder.parameters()]
    found = torch.autograd.grad(bound.sum(), inputs, retain_graph=True)
    assert_same(found, torch.autograd.grad(model.plain().sum(), inputs))


def test_frozen_and_unused_parameters() -> None:
    """A frozen parameter gets no gradient, an unused one a zero; neither disturbs the others."""
    model = Model()
    expected = gradients(model.streamed(23, 40), model.inputs)
    unused = torch.ones(3, dtype=F64, requires_grad=True)
    model.bias.requires_grad_(False)
    model.streamed(23, 40, parameters=[unused, model.bias, model.weight]).sum().backward()
    assert model.bias.grad is None
    assert unused.grad is None or not unused.grad.any()
    assert_same([p.grad for p in (model.mean, model.log_var, model.weight)], expected[:3])


def test_a_parameter_that_is_not_listed_is_missed() -> None:
    """It would silently get no gradient; one that is frozen, or listed in vain, is no reason to complain."""
    model = Model()
    with pytest.raises(ValueError, match="depends on 1 parameter.* list them"):
        model.streamed(23, 40, parameters=[model.weight])
    with torch.no_grad():
        model.streamed(23, 40, parameters=())
    model.weight.requires_grad_(False), model.bias.requires_grad_(False)
    model.streamed(23, 40, parameters=[torch.ones(1, requires_grad=True)]).sum().backward()
    assert model.mean.grad is not None and model.weight.grad is None and model.bias.grad is None


def test_log_joint_may_ignore_z() -> None:
    """Then log p(x, z) moves with the parameters alone, and the entropy of q with log_var."""
    model = Model()
    model.log_joint = lambda x, z: (x @ model.weight.T).sum(-1) + 0 * model.bias.sum()
    found = gradients(model.streamed(23, 40), model.inputs)
    assert_same(found[1:], gradients(model.plain(), model.inputs)[1:])
    assert not found[0].abs().max() > 1e-12


def test_no_grad_and_no_input_that_wants_one() -> None:
    model = Model()
    expected = model.streamed(23, 40).detach()
    with torch.no_grad():
        assert torch.equal(model.streamed(23, 40), expected)
        assert not model.streamed(23, 40).requires_grad
    for tensor in model.inputs:
        tensor.requires_grad_(False)
    assert not model.streamed(23, 40).requires_grad
    model.weight.requires_grad_()
    (alone,) = torch.autograd.grad(model.streamed(23, 40).sum(), model.weight)
    (plain,) = torch.autograd.grad(model.plain().sum(), model.weight)
    assert_same([alone], [plain])


def test_backward_twice_gives_the_same_gradient() -> None:
    model = Model()
    bound = model.streamed(23, 40)
    first, second = (torch.autograd.grad(bound.sum(), model.inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    gradients(bound, model.inputs)  # frees the graph
    with pytest.raises(RuntimeError, match="second time"):
        gradients(bound, model.inputs)


def test_second_derivatives_are_refused() -> None:
    model = Model()
    with pytest.raises(ValueError, match="leave create_graph=True out"):
        torch.autograd.grad(model.streamed(5).sum(), model.mean, create_graph=True)


def test_a_seed_repeats_and_a_generator_moves_on_by_the_same_step_whatever_rows_is() -> None:
    model = Model()
    assert torch.equal(model.streamed(23, 40), model.streamed(23, 40))
    after = []
    for rows in (1, 1000):
        generator = seeded()
        first, second = (model.streamed(23, rows, generator=generator) for _ in range(2))
        assert not torch.equal(first, second)
        after.append(torch.rand(4, generator=generator))
    assert torch.equal(*after)
    assert not torch.equal(model.streamed(23, generator=None), model.streamed(23, generator=None))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_and_device_follow(dtype: torch.dtype, device: torch.device) -> None:
    """In float32 the gradient is as close to the plain one as the format allows: 1e-5."""
    model = Model(dtype=dtype, device=device)
    bound = model.streamed(200, 100)
    assert bound.dtype == dtype and bound.device.type == device.type
    found, expected = gradients(bound, model.inputs), gradients(model.plain(), model.inputs)
    assert all(g.dtype == dtype and g.device.type == device.type for g in found)
    assert_same(found, expected, 1e-5 if dtype == torch.float32 else 1e-10)


X, MEAN, LOG_VAR = torch.zeros(B, M), torch.zeros(B, D), torch.zeros(B, D)


@pytest.mark.parametrize(
    ("x", "mean", "log_var"),
    [(X, MEAN, LOG_VAR[1:]), (X[1:], MEAN, LOG_VAR), (X, MEAN[0], LOG_VAR[0]), (X[0], MEAN, LOG_VAR),
     (X.expand(3, B, M), MEAN.expand(3, B, D), LOG_VAR.expand(3, B, D))],
)  # fmt: skip
def test_other_shapes_are_refused(x: Tensor, mean: Tensor, log_var: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x must be \(B, m\), mean and log_var \(B, d\), got") as caught:
        streamed_iwae_bound(Model().log_joint, x, mean, log_var, num_samples=3)
    assert f"{tuple(x.shape)}, {tuple(mean.shape)} and {tuple(log_var.shape)}" in str(caught.value)


def test_bad_counts_and_a_log_joint_of_another_shape_are_refused() -> None:
    for num_samples, rows in ((0, 10), (5, 0)):
        with pytest.raises(ValueError, match=f"at least one, got {num_samples}, {rows} and"):
            streamed_iwae_bound(Model().log_joint, X, MEAN, LOG_VAR, num_samples=num_samples, rows=rows)
    for wrong in (lambda x, z: z, lambda x, z: z.sum(), lambda x, z: z[..., :1], lambda x, z: z[0, :, 0]):
        with pytest.raises(ValueError, match=r"one value a sample, \(2, 5\), got .*: sum over the last dim"):
            streamed_iwae_bound(wrong, X, MEAN, LOG_VAR, num_samples=3, rows=10)
