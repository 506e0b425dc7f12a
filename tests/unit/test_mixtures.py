"""mixtures.mixture_log_prob: value and gradients against plain autograd, whatever way they took."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.mixtures import blocks, density, mixture_log_prob, streamed
from dgm_course.mixtures.differences import Differences
from dgm_course.mixtures.products import Products

F32, F64 = torch.float32, torch.float64
WAYS = {
    "all at once": None,
    "products": (Products, {F32: math.inf, F64: math.inf}),
    "differences": (Differences, {F32: -1.0, F64: -1.0}),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each of the implementations in turn; those that stream cut even these small problems into blocks."""
    chosen: list[type] = []
    if (wanted := WAYS[request.param]) is None:
        monkeypatch.setattr(density, "SMALL", math.inf)
    else:
        method, tolerance = wanted
        choose = streamed.choose_method

        def spied(*mixture: Tensor) -> tuple[type, torch.dtype]:
            chosen.append(choose(*mixture)[0])
            return choose(*mixture)

        monkeypatch.setattr(density, "SMALL", 0)
        monkeypatch.setattr(streamed, "TOLERANCE", tolerance)
        monkeypatch.setattr(streamed, "choose_method", spied)
        for kind in ("CPU", "CUDA"):
            monkeypatch.setattr(blocks, f"{kind}_PAIRS", 40)
            monkeypatch.setattr(blocks, f"{kind}_COLUMNS", 7)
    yield request.param
    assert set(chosen) == (set() if wanted is None else {wanted[0]})


def draw(m: int, n: int, d: int, *, stack: tuple[int, ...] = (), dtype: torch.dtype = F64) -> list[Tensor]:
    """Points, means, log-variances and normalised log-weights."""
    g = torch.Generator().manual_seed(m + 10 * n + 100 * d)
    x, means, log_vars, logits = (
        torch.randn(*stack, *shape, generator=g, dtype=F64) for shape in ((m, d), (n, d), (n, d), (n,))
    )
    mixture = [1.5 * x, means, 0.7 * log_vars, torch.log_softmax(logits, -1)]
    return [t.to(dtype).requires_grad_() for t in mixture]


def oracle(
    x: Tensor, means: Tensor, log_vars: Tensor, log_w: Tensor, exclude: Tensor | None = None
) -> Tensor:
    """One mixture, points ``(m, d)``: all components' log-densities, by torch.distributions."""
    normal = Independent(Normal(means, torch.exp(0.5 * log_vars)), 1)
    terms = normal.log_prob(x.unsqueeze(-2)) + log_w  # (m, n)
    if exclude is None:
        return torch.logsumexp(terms, -1)
    rows = []
    for row, left_out in zip(terms, exclude.tolist(), strict=True):
        others = [j for j in range(len(log_w)) if j != left_out]
        total = torch.logsumexp(log_w[others], 0) if left_out >= 0 else 0.0
        rows.append(torch.logsumexp(row[others], 0) - total)
    return torch.stack(rows)


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a combination of the values with weights of both signs."""
    weights = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype, device=value.device)
    return list(torch.autograd.grad(value, inputs, weights.reshape(value.shape)))


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for value, exact in zip(found, expected, strict=True):
        assert value.shape == exact.shape
        scale = max(1.0, exact.abs().max().item())
        torch.testing.assert_close(value, exact, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("m", "n", "d"), [(1, 1, 1), (1, 9, 2), (9, 1, 2), (13, 7, 3), (11, 20, 1), (6, 14, 5), (45, 3, 2)]
)
def test_value_and_all_gradients(way: str, m: int, n: int, d: int) -> None:
    """One point, one component, and sizes that the blocks do not divide."""
    inputs = draw(m, n, d)
    x, means, log_vars, log_w = inputs
    normal = Independent(Normal(means, torch.exp(0.5 * log_vars)), 1)
    peer = MixtureSameFamily(Categorical(logits=log_w), normal)
    value = mixture_log_prob(*inputs)
    torch.testing.assert_close(value, peer.log_prob(x), rtol=0, atol=1e-12)
    assert_same(gradients(value, inputs), gradients(oracle(*inputs), inputs))


def test_gradcheck(way: str) -> None:
    """Against finite differences."""
    assert torch.autograd.gradcheck(mixture_log_prob, draw(5, 9, 2))


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 3], [1, 2], [2, 3]])
def test_only_some_of_the_gradients(way: str, wanted: list[int]) -> None:
    inputs = draw(13, 20, 3)
    everything = gradients(oracle(*inputs), inputs)
    some = [t if i in wanted else t.detach() for i, t in enumerate(inputs)]
    found = gradients(mixture_log_prob(*some), [some[i] for i in wanted])
    assert_same(found, [everything[i] for i in wanted])


def test_weights_are_taken_as_they_are(way: str) -> None:
    """They need not sum to one, and default to 1/n."""
    x, means, log_vars, log_w = draw(13, 9, 2)
    heavier = mixture_log_prob(x, means, log_vars, log_w + 3.0)
    torch.testing.assert_close(heavier, mixture_log_prob(x, means, log_vars, log_w) + 3.0)
    even = torch.full((9,), -math.log(9.0), dtype=F64)
    inputs = [x, means, log_vars]
    value = mixture_log_prob(*inputs)
    torch.testing.assert_close(value, oracle(*inputs, even), rtol=0, atol=1e-12)
    assert_same(gradients(value, inputs), gradients(oracle(*inputs, even), inputs))


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (9, 1), (9, 3)], ids=str)
def test_variances_broadcast(way: str, shape: tuple[int, ...]) -> None:
    """One for all, for each dimension, for each component: the gradient comes back in that shape."""
    x, means, _, log_w = draw(13, 9, 3)
    log_vars = torch.linspace(-1, 0.4, math.prod(shape), dtype=F64).reshape(shape).requires_grad_()
    inputs = [x, means, log_vars, log_w]
    value, expected = mixture_log_prob(*inputs), oracle(x, means, log_vars.expand(9, 3), log_w)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    assert_same(gradients(value, inputs), gradients(expected, inputs))


def test_a_variance_may_be_a_number(way: str) -> None:
    x, means, _, log_w = draw(13, 9, 3)
    for number in (-0.7, 0, 1):
        found = mixture_log_prob(x, means, number, log_w)
        expected = oracle(x, means, torch.full_like(means, number), log_w)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("members", [0, 1, 5])
def test_batch_shapes_and_stacks(way: str, batch: tuple[int, ...], members: int) -> None:
    """A stack gives what its members give one by one."""
    stack = (members,) if members else ()
    _, *components = draw(1, 9, 2, stack=stack)
    x = torch.randn(*stack, *batch, 2, dtype=F64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    exclude = torch.arange(math.prod(x.shape[:-1])).reshape(x.shape[:-1]) % 10 - 1
    for left_out in (None, exclude):
        value = mixture_log_prob(x, *components, exclude=left_out)
        assert value.shape == x.shape[:-1] and value.dtype == F64
        expected = torch.stack([
            oracle(
                x.reshape(members or 1, -1, 2)[e],
                *(p[e] if members else p for p in components),
                None if left_out is None else left_out.reshape(members or 1, -1)[e],
            )
            for e in range(members or 1)
        ]).reshape(value.shape)  # fmt: skip
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
        found = gradients(value, [x, *components])
        assert_same(found, gradients(expected, [x, *components]))


def test_no_points() -> None:
    for shape, components in (((0, 2), draw(1, 9, 2)[1:]), ((5, 3, 0, 2), draw(1, 9, 2, stack=(5,))[1:])):
        value = mixture_log_prob(torch.zeros(shape, dtype=F64), *components)
        assert value.shape == shape[:-1]
        assert all((g == 0).all() for g in gradients(value, components))


def test_a_stack_may_share_weights_and_variances(way: str) -> None:
    x, means, log_vars, log_w = draw(6, 9, 2, stack=(5,))
    shared = log_vars[0].detach().clone().requires_grad_(), log_w[0].detach().clone().requires_grad_()
    inputs = [x, means, *shared]
    value = mixture_log_prob(*inputs)
    expected = torch.stack([oracle(x[e], means[e], *shared) for e in range(5)])
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    assert_same(gradients(value, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("exclude", [[-1] * 13, [4] * 13, [i % 9 for i in range(13)], [8, -1, 0] * 4 + [7]])
def test_one_component_left_out(way: str, exclude: list[int]) -> None:
    """The others' weights are renormalised, and that has a gradient too. Three types of index."""
    *mixture, logits = draw(13, 9, 3)
    left_out, leaves = torch.tensor(exclude), [*mixture, logits]
    expected = oracle(*mixture, torch.log_softmax(logits, -1), left_out)
    for index in (left_out, left_out.int(), left_out.short()):
        value = mixture_log_prob(*mixture, torch.log_softmax(logits, -1), exclude=index)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    assert_same(gradients(value, leaves), gradients(expected, leaves))
    assert torch.autograd.gradcheck(lambda *a: mixture_log_prob(*a, exclude=left_out), leaves)


def test_without_gradients_nothing_is_saved(way: str) -> None:
    """Neither under no_grad nor where no input wants one; the value is the same."""
    inputs = draw(13, 9, 3)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        with torch.no_grad():
            found = mixture_log_prob(*inputs)
        constant = mixture_log_prob(*(t.detach() for t in inputs))
        assert not saved and not found.requires_grad and not constant.requires_grad
        expected = mixture_log_prob(*inputs)
        assert saved
    assert torch.equal(found, expected) and torch.equal(constant, expected)


def test_inputs_in_any_layout_are_read_and_not_changed(way: str) -> None:
    """Transposed, strided, expanded."""
    x, means, log_vars, log_w = (t.detach() for t in draw(13, 9, 3))
    layouts = [
        x.T.contiguous().T,
        torch.stack([means, means], 1)[:, 1],
        log_vars[:1].expand(9, 3),
        torch.stack([log_w, log_w], -1)[:, 0],
    ]
    assert not any(t.is_contiguous() for t in layouts)
    before, versions = [t.clone() for t in layouts], [t._version for t in layouts]
    inputs = [t.requires_grad_() for t in layouts]
    value = mixture_log_prob(*inputs)
    plain = [t.clone().contiguous().detach().requires_grad_() for t in layouts]
    assert_same([value], [mixture_log_prob(*plain)])
    assert_same(gradients(value, inputs), gradients(mixture_log_prob(*plain), plain))
    assert all(torch.equal(a, b) for a, b in zip(layouts, before, strict=True))
    assert [t._version for t in layouts] == versions


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_dtype_and_device_follow(device: torch.device, way: str, dtype: torch.dtype) -> None:
    """Whatever the default dtype. In float32, to the rounding of twenty terms below 100."""
    inputs = [t.detach().to(device).requires_grad_() for t in draw(30, 20, 3, dtype=dtype)]
    exclude = torch.arange(30, device=device) % 21 - 1
    value = mixture_log_prob(*inputs, exclude=exclude)
    assert value.dtype == dtype and value.device == inputs[0].device
    found = gradients(value, inputs)
    assert all(g.dtype == dtype and g.device == inputs[0].device for g in found)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = oracle(*wide, exclude)
    tolerance = 20 * 100 * torch.finfo(dtype).eps
    assert_same([value.double()], [expected], tolerance)
    assert_same([g.double() for g in found], gradients(expected, wide), tolerance)


def test_mixed_dtypes_are_promoted(way: str) -> None:
    x, means, log_vars, log_w = draw(13, 9, 3)
    value = mixture_log_prob(x.float(), means, log_vars.float(), log_w)
    assert value.dtype == F64
    expected = oracle(x.float().double(), means, log_vars.float().double(), log_w)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    assert torch.autograd.grad(value.sum(), x)[0].dtype == F64
