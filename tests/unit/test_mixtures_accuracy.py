"""mixtures: where an expanded square loses everything, far from all components, and how much memory it takes.

Errors are stated from the unit roundoff u: a product of k terms is rounded by at most k u times the sum of
their magnitudes, and a result by u times itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks.fresh import peak_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dgm_course.gaussian import gaussian_log_prob
from dgm_course.mixtures import blocks, density, mixture_log_prob, mixture_responsibilities, streamed
from dgm_course.mixtures.differences import Differences
from dgm_course.mixtures.products import Products

F32, F64 = torch.float32, torch.float64
U32, U64 = 2.0**-24, 2.0**-53


def clusters(
    sd: float, d: int, *, box: float = 5.0, m: int = 200, groups: int = 20, each: int = 20
) -> list[Tensor]:
    """Groups of overlapping components, anywhere in a box, and points from them: float32 numbers, widened."""
    g = torch.Generator().manual_seed(4)
    centres = box * (2 * torch.rand(groups, 1, d, generator=g) - 1)
    means = (centres + 0.7 * sd / d**0.5 * torch.randn(groups, each, d, generator=g)).reshape(-1, d)
    log_vars = 2 * math.log(sd) + 0.1 * torch.randn(len(means), d, generator=g)
    own = torch.randint(len(means), (m,), generator=g)
    x = means[own] + sd * torch.randn(m, d, generator=g)
    log_w = torch.log_softmax(torch.randn(len(means), generator=g), -1)
    return [t.double() for t in (x, means, log_vars, log_w)]


def exact(x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor) -> Tensor:
    """All pairs, from differences, in float64."""
    return torch.logsumexp(gaussian_log_prob(x.unsqueeze(-2), means, log_vars) + log_w, -1)


def evaluated(function: Callable[..., Tensor], mixture: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Value and all gradients, in float64."""
    inputs = [t.to(dtype).requires_grad_() for t in mixture]
    value = function(*inputs)
    weights = torch.linspace(-1, 2, len(value), dtype=dtype)
    return [t.detach().double() for t in (value, *torch.autograd.grad(value, inputs, weights))]


def method_for(mixture: list[Tensor], dtype: torch.dtype) -> tuple[type, torch.dtype]:
    return streamed.choose_method(*(t.to(dtype).unsqueeze(0) for t in mixture))


def expanded(x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor) -> Tensor:
    """What everybody writes down first: the square multiplied out, the products in the inputs' dtype."""
    centre = means.mean(0)  # it does not help
    x, means, precision = x - centre, means - centre, torch.exp(-log_vars)
    square = x.square() @ precision.T - 2 * x @ (precision * means).T + (precision * means.square()).sum(-1)
    constant = log_w - 0.5 * (log_vars + math.log(2 * math.pi)).sum(-1)
    return torch.logsumexp(constant - 0.5 * square, -1)


def largest_error(found: Tensor, right: Tensor) -> float:
    return ((found - right).abs().max() / right.abs().max()).item()


def test_narrow_components_far_from_the_origin_in_float32() -> None:
    """sigma = 0.01, means within 5, d = 50. Exponents in float64; powers, sums and results in float32.

    A sum of up to 400 powers, each rounded by a few u, is rounded by 400 u at worst. The plain expansion must
    be off by tenths of a nat, else this test shows nothing.
    """
    mixture = clusters(0.01, 50)
    assert method_for(mixture, F32) == (Products, F64)
    right, found = evaluated(exact, mixture, F64), evaluated(mixture_log_prob, mixture, F32)
    assert (evaluated(expanded, mixture, F32)[0] - right[0]).abs().max() > 0.2
    chances = mixture_responsibilities(*mixture).amax(-1)
    assert 0.1 < chances.median() < 0.9, "overlapping, so that the posterior matters"
    assert ((found[0] - right[0]).abs() <= 2 * U32 * right[0].abs() + 400 * U32).all()
    assert all(largest_error(f, r) < 400 * U32 for f, r in zip(found[1:], right[1:], strict=True))


@pytest.mark.parametrize(("sd", "d"), [(1.0, 2), (0.3, 2), (1.0, 10), (2.0, 50)])
def test_products_in_float32_where_they_are_good_enough(sd: float, d: int) -> None:
    """Off by at most 2 d + 4 roundings of the terms' magnitudes, each of which costs less than 1e-4 nats."""
    mixture = clusters(sd, d, box=2.0)
    assert method_for(mixture, F32) == (Products, F32)
    x, means, log_vars, log_w = mixture
    size = (x.square().amax(0) + means.square()).mul(torch.exp(-log_vars)).sum(-1)
    size = size + (log_w - 0.5 * (log_vars + math.log(2 * math.pi)).sum(-1)).abs()
    bound = (2 * d + 4) * U32 * size.max()
    right, found = evaluated(exact, mixture, F64), evaluated(mixture_log_prob, mixture, F32)
    assert ((found[0] - right[0]).abs() <= bound + 2 * U32 * right[0].abs()).all()
    # a gradient's sum has positive and negative terms: 2 bound in each chance, and the moments' own rounding
    assert all(largest_error(f, r) < 4 * bound for f, r in zip(found[1:], right[1:], strict=True))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("sd", [1e-5, 1e-7])
def test_components_so_narrow_that_float64_products_fail(sd: float, dtype: torch.dtype) -> None:
    """Differences. In float64 the plain expansion is off by more than 0.01 at 1e-7, and ours by roundings."""
    mixture = clusters(sd, 10)
    if dtype == F32:  # float32 cannot hold such means apart: take what it holds
        mixture = [t.float().double() for t in mixture]
    tolerance = streamed.TOLERANCE[dtype]
    size = mixture[1].square().mul(torch.exp(-mixture[2])).sum(-1).max().item()
    assert method_for(mixture, dtype) == (Differences if size * U64 > tolerance else Products, F64)
    assert method_for(mixture, F64) == (Differences, F64)
    right, found = evaluated(exact, mixture, F64), evaluated(mixture_log_prob, mixture, dtype)
    if sd == 1e-7:
        assert (evaluated(expanded, mixture, F64)[0] - right[0]).abs().max() > 0.01
    u = 400 * (U32 if dtype == F32 else U64)
    excess = 2 * tolerance if method_for(mixture, dtype)[0] is Products else 0.0
    assert ((found[0] - right[0]).abs() <= u * (1 + right[0].abs()) + excess).all()
    for f, r in zip(found[1:], right[1:], strict=True):
        assert largest_error(f, r) < u * (1 + right[0].abs().max()) + excess


def test_how_the_method_is_chosen() -> None:
    """By u times the size of the terms; not-a-number and infinite inputs go where they do no harm."""
    near = clusters(1.0, 2)
    assert method_for(near, F32) == (Products, F32)
    assert method_for(near, F64) == (Products, F64)
    shifted = [near[0] + 1e4, near[1] + 1e4, *near[2:]]
    assert method_for(shifted, F32) == (Products, F32)  # the common shift is taken out
    far = [torch.cat([near[0], torch.full((1, 2), 1e4, dtype=F64)]), *near[1:]]
    assert method_for(far, F32) == (Products, F64)
    heavy = [*near[:3], near[3] - 1e4]
    assert method_for(heavy, F32) == (Products, F64)
    assert method_for([*near[:3], torch.full_like(near[3], -math.inf)], F32) == (Products, F32)
    for bad in (math.nan, math.inf):
        assert method_for([torch.full_like(near[0], bad), *near[1:]], F32) == (Differences, F64)
    torch.set_float32_matmul_precision("medium")  # the user lets products be rounded more
    try:
        assert method_for(near, F32) == (Products, F64)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("small", [0, 10**9])
def test_far_from_all_components(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, small: int) -> None:
    """Log-densities down to -1e8, and mixed with ordinary ones. Gradients -(x - mean) / var, not zero."""
    monkeypatch.setattr(density, "SMALL", small)
    monkeypatch.setattr(blocks, "CPU_PAIRS", 256)
    monkeypatch.setattr(blocks, "CPU_COLUMNS", 32)
    x, *components = clusters(1.0, 4, m=40)
    x[::4] = 700.0 * torch.sign(x[::4])
    x[1] = 1e4
    mixture = [t.to(dtype).double() for t in (x, *components)]
    right, found = evaluated(exact, mixture, F64), evaluated(mixture_log_prob, mixture, dtype)
    assert right[0].min() < -1e8 and right[0][::4].max() < -5e5 and right[0].max() > -15
    assert all(t.isfinite().all() for t in found)
    u = U32 if dtype == F32 else U64
    if small and dtype == F32:  # differences in float32: an exponent of 1e6 is known to 0.1
        assert largest_error(found[0], right[0]) < 10 * u
        return
    assert ((found[0] - right[0]).abs() <= 1e-4 * (dtype == F32) + 20 * u * right[0].abs() + 1e-8).all()
    slack = 1e-4 if dtype == F32 else 1e-8
    assert all(largest_error(f, r) < slack for f, r in zip(found[1:], right[1:], strict=True))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize(("near", "followed"), [([0, 3], False), ([0, 39], True), ([39, 20], True)])
def test_the_first_block_may_say_nothing_about_the_others(
    monkeypatch: pytest.MonkeyPatch, near: list[int], followed: bool, dtype: torch.dtype
) -> None:
    """Means 30 apart, points near some: relative to the first eight components' maximum, sums overflow."""
    monkeypatch.setattr(density, "SMALL", 0)
    monkeypatch.setattr(blocks, "CPU_PAIRS", 40)
    monkeypatch.setattr(blocks, "CPU_COLUMNS", 8)
    running, calls = streamed._Stream.log2_total, []
    monkeypatch.setattr(streamed._Stream, "log2_total", lambda *a: (calls.append(a), running(*a))[1])
    means = 30.0 * torch.arange(40, dtype=F64).unsqueeze(-1)
    x = means[near * 6] + torch.linspace(-16, 16, 12, dtype=F64).unsqueeze(-1)
    mixture = [x, means, 0 * means, torch.full((40,), -math.log(40), dtype=F64)]
    right, found = evaluated(exact, mixture, F64), evaluated(mixture_log_prob, mixture, dtype)
    slack = 1e-4 if dtype == F32 else 1e-8
    assert all(largest_error(f, r) < slack for f, r in zip(found, right, strict=True))
    assert bool(calls) == followed


def test_not_a_number_is_not_hidden() -> None:
    x, *components = clusters(1.0, 4)
    x[3, 1] = math.nan
    value = mixture_log_prob(x, *components)
    assert value[3].isnan() and value.isnan().sum() == 1
    x[3, 1] = math.inf
    value = mixture_log_prob(x, *components)
    assert value[3] == -math.inf and value.isfinite().sum() == len(x) - 1


def test_double_backward_is_refused_where_it_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed: a clear error. All at once: right."""
    x, means, log_vars, log_w = clusters(1.0, 3, m=5, groups=2, each=3)
    x.requires_grad_()

    def slope(x: Tensor) -> Tensor:
        return torch.autograd.grad(mixture_log_prob(x, means, log_vars, log_w).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(slope, x)
    monkeypatch.setattr(density, "SMALL", 0)
    penalty = slope(x).square().sum()
    with pytest.raises(RuntimeError, match="streamed mixture_log_prob cannot be differentiated again"):
        penalty.backward()
    weight = torch.ones(5, dtype=F64, requires_grad=True)  # nor with respect to the incoming gradient
    value = (mixture_log_prob(x, means, log_vars, log_w) * weight).sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        first.sum().backward()
    assert torch.equal(first, slope(x))


class Watch(TorchDispatchMode):
    """The largest tensor that any operation gives back, and the shapes that products accumulate into."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel() if result.layout is torch.strided else 0)
        if function is torch.ops.aten.baddbmm_.default:
            self.products.append(tuple(args[0].shape))
        return result


@pytest.mark.parametrize(("sd", "method"), [(1.0, Products), (0.05, Products), (1e-7, Differences)])
@pytest.mark.parametrize("left_out", [False, True])
def test_no_tensor_of_all_pairs(sd: float, method: type, left_out: bool) -> None:
    """Nothing larger than a block or 2 d + 2 numbers for each point and component; little is saved."""
    m, d, n = 2500, 3, 3000
    mixture = clusters(sd, d, m=m, groups=50, each=60)
    assert method_for(mixture, F32)[0] is method
    inputs = [t.float().requires_grad_() for t in mixture]
    exclude = torch.arange(m) if left_out else None
    saved: list[int] = []
    with Watch() as seen, torch.autograd.graph.saved_tensors_hooks(
        lambda t: (saved.append(t.numel()), t)[1], lambda t: t
    ):
        mixture_log_prob(*inputs, exclude=exclude).sum().backward()
    assert seen.largest <= max(blocks.CPU_PAIRS, (2 * d + 2) * max(m, n)) < m * n / 20
    assert sum(saved) < (2 * d + 10) * (m + n)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is exact only with Linux's /proc")
def test_resident_memory() -> None:
    """8000 points and components: 256 MB for one number a pair, and we need a few MB."""
    inputs = [t.float().requires_grad_() for t in clusters(1.0, 3, m=8000, groups=80, each=100)]
    mixture_log_prob(*inputs).sum().backward()  # loads what is loaded on first use
    peak = peak_of(lambda: mixture_log_prob(*inputs).sum().backward(), torch.device("cpu"))
    if peak is None:
        pytest.skip("the system does not say how much memory is resident")
    assert peak < 16e6


@pytest.mark.parametrize(
    ("wanted", "rows"), [([0], []), ([3], [1]), ([1], [4]), ([1, 3], [4]), ([2], [7]), ([1, 2, 3], [7])]
)
def test_backward_computes_only_what_is_asked_for(wanted: list[int], rows: list[int]) -> None:
    """d = 3: sums over points of 1, of (x, 1), or of (x^2, x, 1); for x itself six sums over components."""
    mixture = clusters(1.0, 3, m=60)
    for with_x in ([], [0]):
        chosen = {*wanted, *with_x}
        inputs = [t.requires_grad_(i in chosen) for i, t in enumerate(mixture)]
        value = mixture_log_prob(*inputs)
        with Watch() as seen:
            torch.autograd.grad(value.sum(), [inputs[i] for i in sorted(chosen)])
        expected = {(1, r, 400) for r in rows} | ({(1, 6, 60)} if 0 in chosen else set())
        assert set(seen.products) == expected
