"""mixtures: weights of zero, what is left without a component, responsibilities, samples, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgm_course.gaussian import gaussian_log_prob
from dgm_course.mixtures import (
    blocks,
    density,
    mixture_log_prob,
    mixture_responsibilities,
    mixture_sample,
    streamed,
)

F32, F64 = torch.float32, torch.float64
INF = math.inf


@pytest.fixture(params=["all at once", "products", "differences"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the implementations in turn, in blocks of at most seven components."""
    monkeypatch.setattr(density, "SMALL", INF if request.param == "all at once" else 0)
    limit = INF if request.param == "products" else -1.0
    monkeypatch.setattr(streamed, "TOLERANCE", {F32: limit, F64: limit})
    for kind in ("CPU", "CUDA"):
        monkeypatch.setattr(blocks, f"{kind}_PAIRS", 40)
        monkeypatch.setattr(blocks, f"{kind}_COLUMNS", 7)
    return request.param


def draw(m: int, n: int, d: int, dtype: torch.dtype = F64) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    shapes = ((m, d), (n, d), (n, d), (n,))
    x, means, log_vars, logits = (torch.randn(shape, generator=g, dtype=F64) for shape in shapes)
    mixture = x, means, 0.5 * log_vars, torch.log_softmax(logits, -1)
    return [t.to(dtype).requires_grad_() for t in mixture]


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    return list(torch.autograd.grad(value, inputs, weights))


@pytest.mark.parametrize("gone", [[3], [0, 1, 2, 3, 4, 5, 6], [19], list(range(1, 20))])
def test_components_of_weight_zero_count_nothing(way: str, gone: list[int]) -> None:
    """A single one, a whole block (the first, too), all but one: as if they were not there."""
    x, means, log_vars, log_w = draw(13, 20, 3)
    kept = [j for j in range(20) if j not in gone]
    weights = log_w.detach().clone()
    weights[gone] = -INF
    inputs = [x, means, log_vars, weights.requires_grad_()]
    value = mixture_log_prob(*inputs)
    expected = mixture_log_prob(x, means[kept], log_vars[kept], weights[kept])
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    found, right = gradients(value, inputs), gradients(expected, inputs)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert all((g[gone] == 0).all() for g in found[1:])


def test_a_mixture_without_weight_has_no_density(way: str) -> None:
    """-inf, and a gradient of zero."""
    *rest, log_w = draw(13, 20, 3)
    inputs = [*rest, torch.full_like(log_w, -INF).requires_grad_()]
    value = mixture_log_prob(*inputs)
    assert (value == -INF).all()
    assert all((g == 0).all() for g in gradients(value, inputs))


@pytest.mark.parametrize("n", [1, 9])
def test_nothing_is_left(way: str, n: int) -> None:
    """The only component with any weight is left out for some points: theirs is -inf, the others' as ever."""
    x, means, log_vars, log_w = draw(8, n, 2)
    only = torch.full((n,), -INF, dtype=F64)
    only[n // 2] = 0.0
    inputs = [x, means, log_vars, only.requires_grad_()]
    exclude = torch.tensor([n // 2, -1] * 4)
    value = mixture_log_prob(*inputs, exclude=exclude)
    assert (value[::2] == -INF).all()
    expected = mixture_log_prob(*inputs)
    torch.testing.assert_close(value[1::2], expected[1::2], rtol=0, atol=1e-12)
    weights = torch.linspace(-1.0, 2.0, 8, dtype=F64)[1::2]
    right = torch.autograd.grad(expected[1::2], inputs, weights)
    for a, b in zip(gradients(value, inputs), right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_the_weight_of_the_others_when_one_has_nearly_all(way: str, dtype: torch.dtype) -> None:
    """1 - w_j would be rounded to zero, and exp(-300) underflows in float32: their sum is known anyhow."""
    x, means, log_vars, _ = draw(6, 4, 2, dtype)
    logits = torch.tensor([0.0, -300.0, -301.0, -302.5], dtype=dtype, requires_grad=True)
    exclude = torch.tensor([0, 0, 1, 2, 3, -1])
    value = mixture_log_prob(x, means, log_vars, torch.log_softmax(logits, -1), exclude=exclude)
    wide = [t.detach().double().requires_grad_() for t in (x, means, log_vars, logits)]
    rows = []
    for point, j in zip(wide[0], exclude.tolist(), strict=True):
        others = [i for i in range(4) if i != j]
        log_w = torch.log_softmax(wide[3][others], -1)
        rows.append(torch.logsumexp(gaussian_log_prob(point, wide[1][others], wide[2][others]) + log_w, -1))
    expected = torch.stack(rows)
    # -300 and the likes are subtracted from one another: their rounding remains, a few times
    tolerance = 10 * 300 * torch.finfo(dtype).eps
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=tolerance)
    found = gradients(value, [x, means, log_vars, logits])
    for a, b in zip(found, gradients(expected, wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def test_left_out_of_weights_that_are_not_normalised() -> None:
    """The others' are divided by their sum; where none is left out, weights are taken as they are."""
    x, means, log_vars, log_w = (t.detach() for t in draw(6, 4, 2))
    exclude = torch.tensor([0, 1, 2, 3, -1, -1])
    plain = mixture_log_prob(x, means, log_vars, log_w, exclude=exclude)
    heavier = mixture_log_prob(x, means, log_vars, log_w + 2.0, exclude=exclude)
    torch.testing.assert_close(heavier - plain, torch.tensor([0.0, 0, 0, 0, 2, 2], dtype=F64))
    torch.testing.assert_close(plain[4:], mixture_log_prob(x, means, log_vars, log_w)[4:])


def test_leave_one_out_is_a_density() -> None:
    """Its integral over a fine grid is one, whichever component is missing."""
    _, means, log_vars, log_w = (t.detach() for t in draw(1, 3, 1))
    grid = torch.linspace(-25, 25, 4001, dtype=F64).unsqueeze(-1)
    for j in (-1, 0, 1, 2):
        exclude = torch.full((4001,), j)
        value = mixture_log_prob(grid, means, log_vars, log_w, exclude=exclude)
        mass = torch.trapezoid(value.exp(), grid[:, 0])
        assert mass.item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("members", [0, 3])
@pytest.mark.parametrize("batch", [(), (4,), (2, 0), (2, 3)], ids=str)
def test_responsibilities(members: int, batch: tuple[int, ...]) -> None:
    """Bayes' rule; their logarithm is the derivative of the log-density by the log-weights."""
    stack = (members,) if members else ()
    g = torch.Generator().manual_seed(6)
    x, means, log_vars = (torch.randn(*stack, *s, 2, generator=g, dtype=F64) for s in (batch, (5,), (5,)))
    log_w = torch.randn(*stack, 5, generator=g, dtype=F64).requires_grad_()
    found = mixture_responsibilities(x, means, log_vars, log_w)
    assert found.shape == (*x.shape[:-1], 5)
    torch.testing.assert_close(found.sum(-1), torch.ones(x.shape[:-1], dtype=F64))
    (slope,) = torch.autograd.grad(mixture_log_prob(x, means, log_vars, log_w).sum(), log_w)
    torch.testing.assert_close(found.reshape(members or 1, -1, 5).sum(1).reshape(slope.shape), slope)
    shifted = mixture_responsibilities(x, means, log_vars, log_w + 7.0)
    torch.testing.assert_close(found, shifted)  # weights need not be normalised
    even = mixture_responsibilities(x, means, log_vars)
    torch.testing.assert_close(even, mixture_responsibilities(x, means, log_vars, 0 * log_w))


def test_responsibilities_of_narrow_components_and_their_gradient() -> None:
    """float32, sigma = 0.01 at 5: an expanded square would be off by a nat and more."""
    x = torch.full((1, 50), 5.0) + 0.003
    means = torch.stack([torch.full((50,), 5.0), torch.full((50,), 5.001)])
    log_vars = torch.full((2, 50), 2 * math.log(0.01))
    found = mixture_responsibilities(x, means, log_vars)
    distance = (x.double() - means.double()).square().sum(-1) / log_vars.double().exp()[:, 0]
    expected = torch.softmax(-0.5 * distance, -1)
    assert 0.1 < expected[0].item() < 0.9
    # two exponents below 5, of fifty terms each, and a softmax: a factor of exp(150 u) at most
    torch.testing.assert_close(found.double(), expected.unsqueeze(0), rtol=200 * 2.0**-24, atol=0)
    assert torch.autograd.gradcheck(mixture_responsibilities, draw(3, 4, 2))
    assert mixture_responsibilities(*draw(3, 4, 2, F32)).dtype == F32


def test_samples_follow_the_mixture() -> None:
    """Counts, means and variances of each component within five standard errors; weight 0 is never drawn."""
    means = torch.tensor([[-100.0, 0.0], [0.0, 50.0], [100.0, 0.0], [300.0, 0.0]], dtype=F64)
    log_vars = torch.tensor([[0.0], [1.0], [-2.0], [0.0]], dtype=F64)
    log_w = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=F64).log() + 4.0  # not normalised
    x = mixture_sample(40_000, means, log_vars, log_w, generator=torch.Generator().manual_seed(1))
    assert x.shape == (40_000, 2) and x.dtype == F64
    nearest = torch.cdist(x, means).argmin(-1)
    for j, weight in enumerate([0.5, 0.3, 0.2, 0.0]):
        count = (nearest == j).sum().item()
        assert abs(count - 40_000 * weight) <= 5 * math.sqrt(40_000 * weight * (1 - weight))
        if weight:
            noise = (x[nearest == j] - means[j]) * torch.exp(-0.5 * log_vars[j])
            assert (noise.mean(0).abs() < 5 / math.sqrt(count)).all()
            assert ((noise.square().mean(0) - 1).abs() < 5 * math.sqrt(2 / count)).all()
            assert (noise[:, 0] * noise[:, 1]).mean().abs() < 5 / math.sqrt(count)


def test_samples_of_a_stack_are_those_of_its_members() -> None:
    """Member e's components lie at 1000 e: samples come from their own. Equal seeds, equal draws."""
    means = torch.arange(3.0)[:, None, None] * 1000 + torch.arange(4.0)[:, None] * 10 + torch.zeros(3, 4, 2)
    log_w = torch.tensor([0.0, -INF, 0.0, -INF])
    draws = [
        mixture_sample(500, means, -2.0, log_w, generator=torch.Generator().manual_seed(2)) for _ in range(2)
    ]
    assert torch.equal(*draws) and draws[0].shape == (3, 500, 2)
    nearest = torch.cdist(draws[0], means).argmin(-1)
    assert (draws[0] - means.gather(1, nearest.unsqueeze(-1).expand(3, 500, 2))).abs().max() < 5
    assert nearest.unique().tolist() == [0, 2]
    other = mixture_sample(500, means, -2.0, log_w, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(other, draws[0])


def test_samples_are_reparametrised() -> None:
    """Gradients reach means and variances, not the weights."""
    _, means, log_vars, log_w = draw(1, 4, 2)
    seeded = torch.Generator().manual_seed(3)
    x = mixture_sample(50, means, log_vars, log_w, generator=seeded)
    of_means, of_log_vars, of_weights = torch.autograd.grad(
        x.sum(), [means, log_vars, log_w], allow_unused=True
    )
    assert of_weights is None and of_log_vars.abs().sum() > 0
    assert of_means.sum().item() == pytest.approx(100.0)  # each number moves with one mean


def test_samples_follow_dtype_and_device(device: torch.device) -> None:
    for dtype in (F32, F64):
        means = torch.zeros(3, 2, dtype=dtype, device=device)
        x = mixture_sample(4, means, 0.0, generator=torch.Generator(device).manual_seed(0))
        assert x.dtype == dtype and x.device == means.device
        assert mixture_responsibilities(x, means, 0.0).device == means.device


X, MEANS = torch.zeros(6, 3), torch.zeros(5, 3)
STACK = torch.zeros(2, 5, 3)
BOTH = (mixture_log_prob, mixture_responsibilities)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(6, 2), MEANS, 0.0), r"x must be \(\.\.\., 3\) for means \(5, 3\), got \(6, 2\)"),
        ((torch.tensor(0.0), MEANS, 0.0), r"x must be \(\.\.\., 3\) .* got \(\)"),
        ((X, torch.zeros(0, 3), 0.0), r"n and d at least 1, got \(0, 3\)"),
        ((torch.zeros(6, 0), torch.zeros(5, 0), 0.0), r"n and d at least 1, got \(5, 0\)"),
        ((X, torch.zeros(3), 0.0), r"means must be \(n, d\), .* got \(3,\)"),
        ((X, torch.zeros(1, 2, 5, 3), 0.0), r"means must be \(n, d\)"),
        ((X, torch.zeros(5, 3).long(), 0.0), r"means must be floating-point numbers, got torch.int64"),
        ((X, MEANS, torch.zeros(4, 3)), r"log_vars must broadcast to means \(5, 3\), got \(4, 3\)"),
        ((X, MEANS, torch.zeros(5)), r"log_vars must broadcast to means \(5, 3\), got \(5,\)"),
        ((X, MEANS, torch.zeros(2, 5, 3)), r"log_vars must broadcast .* got \(2, 5, 3\)"),
        ((X, MEANS, 0.0, torch.zeros(4)), r"log_weights must hold one number .* \(5,\) .* got \(4,\)"),
        ((X, MEANS, 0.0, torch.zeros(1)), r"log_weights must hold one number"),
        ((X, MEANS, 0.0, torch.zeros(5, 1)), r"log_weights must hold one number"),
        ((X, STACK, 0.0), r"x must be \(2, \.\.\., 3\) .* got \(6, 3\): .* the members of the stack"),
        ((torch.zeros(3), STACK, 0.0), r"x must be \(2, \.\.\., 3\)"),
        ((torch.zeros(2, 6, 3), STACK, 0.0, torch.zeros(5, 2)), r"log_weights .* shape \(2, 5\)"),
        ((X.half(), MEANS.half(), 0.0), r"float32 or float64, got torch.float16: convert"),
    ],
)
def test_refusals(function: Callable[..., Tensor], arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (torch.zeros(5).long(), r"exclude must hold one index for each point, shape \(6,\), got \(5,\)"),
        (torch.tensor(0), r"exclude must hold one index for each point"),
        (torch.zeros(6), r"exclude must hold integers, got torch.float32"),
        (torch.zeros(6).bool(), r"exclude must hold integers, got torch.bool"),
        (torch.full((6,), 5), r"exclude must lie between -1 .* n - 1 = 4, got values from 5 to 5"),
        (torch.full((6,), -2), r"exclude must lie between -1"),
    ],
)
def test_refused_indices(exclude: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture_log_prob(X, MEANS, 0.0, exclude=exclude)


def test_refused_samples() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        mixture_sample(0, MEANS, 0.0)
    with pytest.raises(ValueError, match="log_vars must broadcast"):
        mixture_sample(2, MEANS, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="log_weights must hold one number"):
        mixture_sample(2, MEANS, 0.0, torch.zeros(4))
    with pytest.raises(ValueError, match="means must be"):
        mixture_sample(2, torch.zeros(3), 0.0)
    for nothing in (-math.inf, math.nan):
        with pytest.raises(ValueError, match="leave some component a weight"):
            mixture_sample(2, MEANS, 0.0, torch.full_like(MEANS[:, 0], nothing))
