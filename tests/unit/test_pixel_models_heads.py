"""Heads and the categorical distribution: normalised, sampled from, stable, and of how many numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from dgm_course.pixel_models import (
    CategoricalHead,
    Head,
    LogisticMixtureHead,
    categorical_log_prob,
    categorical_sample,
)

F64 = torch.float64
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
ONE: dict[str, Callable[[int], Head]] = {
    "categorical": CategoricalHead,
    "logistic": lambda num_levels: LogisticMixtureHead(num_levels, 3),
    "one logistic": lambda num_levels: LogisticMixtureHead(num_levels, 1),
}
every_head = pytest.mark.parametrize("kind", ONE)


def seeded(seed: int = 3, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=seeded(seed))


def colours(num_levels: int) -> Tensor:
    """Every colour: ``(L^3, 3)``."""
    return torch.cartesian_prod(*[torch.arange(num_levels)] * 3)


# how many numbers -----------------------------------------------------------------------------------------


def test_outputs_a_pixel() -> None:
    """C L of a categorical against 3K, or 10K for a colour, whatever L is. Ledger D3."""
    for num_levels in (2, 17, 256, 65_536):
        assert CategoricalHead(num_levels).outputs == num_levels
        assert CategoricalHead(num_levels, channels=3).outputs == 3 * num_levels
        for k in (1, 5, 10):
            assert LogisticMixtureHead(num_levels, k).outputs == 3 * k
            assert LogisticMixtureHead(num_levels, k, channels=3).outputs == 10 * k
    assert LogisticMixtureHead(256).outputs == 30, "ten components unless told otherwise"


def test_shapes_of_the_mixtures_parameters() -> None:
    grey = LogisticMixtureHead(17, 4).parameters_of(randn(5, 6, 12))
    assert [tuple(t.shape) for t in grey] == [(5, 6, 4)] * 3
    logits, *others = LogisticMixtureHead(17, 4, channels=3).parameters_of(randn(5, 6, 40))
    assert tuple(logits.shape) == (5, 6, 4) and [tuple(t.shape) for t in others] == [(5, 6, 3, 4)] * 3
    assert bool((others[-1].abs() < 1).all())


@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_at_zero_the_components_share_the_range_evenly(num_levels: int, channels: int) -> None:
    head = LogisticMixtureHead(num_levels, 4, channels=channels)
    logits, mean, log_scale, *_ = head.parameters_of(torch.zeros(head.outputs, dtype=F64))
    assert bool((logits == 0).all())
    places = (num_levels - 1) * torch.tensor([1, 3, 5, 7], dtype=F64) / 8
    torch.testing.assert_close(mean, places.expand_as(mean))
    share = (num_levels - 1) / 8
    bent = math.log(math.exp(-4.0) + share)  # softplus adds the floor of the scale
    torch.testing.assert_close(log_scale, torch.full_like(mean, bent))


# probabilities --------------------------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize("num_levels", [2, 5, 256])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e3])
def test_level_log_probs_are_normalised_and_those_of_log_prob(
    kind: str, num_levels: int, size: float
) -> None:
    head = ONE[kind](num_levels)
    raw = size * randn(2, 3, head.outputs)
    log_p = head.level_log_probs(raw)
    assert log_p.shape == (2, 3, num_levels)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, 3, dtype=F64), **CLOSE)
    for level in range(num_levels):
        y = torch.full((2, 3, 1), level)
        torch.testing.assert_close(head.log_prob(y, raw), log_p[..., level], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("head", [CategoricalHead(4, channels=3), LogisticMixtureHead(4, 2, channels=3)])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_the_probabilities_of_all_colours_sum_to_one(head: Head, size: float) -> None:
    raw = size * randn(6, 1, head.outputs)
    log_p = head.log_prob(colours(4), raw)
    assert log_p.shape == (6, 64)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(6, dtype=F64), **CLOSE)


def test_the_channels_of_a_categorical_are_independent_and_those_of_a_mixture_are_not() -> None:
    every = colours(3)
    for head, independent in (
        (CategoricalHead(3, channels=3), True),
        (LogisticMixtureHead(3, 1, channels=3), False),
        (LogisticMixtureHead(3, 2, channels=3), False),
    ):
        p = head.log_prob(every, randn(head.outputs)).exp().reshape(3, 3, 3)
        marginals = [p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1))]
        product = torch.einsum("i,j,k->ijk", *marginals)
        assert torch.allclose(p, product, rtol=1e-9, atol=1e-12) == independent


@every_head
@pytest.mark.parametrize("num_levels", [2, 17])
def test_the_mean_is_that_of_the_probabilities(kind: str, num_levels: int) -> None:
    head = ONE[kind](num_levels)
    raw = 3 * randn(4, 5, head.outputs)
    mean = head.mean(raw)
    expected = head.level_log_probs(raw).exp() @ torch.arange(num_levels).double()
    assert mean.shape == (4, 5)
    torch.testing.assert_close(mean, expected, **CLOSE)


def test_batch_dimensions_broadcast() -> None:
    for head in (CategoricalHead(4), LogisticMixtureHead(4, 2)):
        y, raw = torch.randint(4, (5, 1, 1), generator=seeded()), randn(6, head.outputs)
        log_p = head.log_prob(y, raw)
        assert log_p.shape == (5, 6)
        torch.testing.assert_close(log_p[2, 3], head.log_prob(y[2, 0], raw[3]), **CLOSE)
        assert head.log_prob(y[0, 0], raw[0]).shape == ()


# samples --------------------------------------------------------------------------------------------------


@every_head
def test_samples_have_the_probabilities(kind: str) -> None:
    """Frequencies of 6 levels for four pixels in 5000 draws: 5 standard errors."""
    head, count = ONE[kind](6), 5000
    raw = randn(4, head.outputs, seed=5)
    p = head.level_log_probs(raw).exp()
    y = head.sample(raw.expand(count, 4, -1), seeded(7))
    assert y.shape == (count, 4, 1) and y.dtype == F64
    found = torch.nn.functional.one_hot(y.squeeze(-1).long(), 6).double().mean(0)
    assert bool(((found - p).abs() < 5 * (p * (1 - p) / count).sqrt() + 1e-9).all())


@pytest.mark.parametrize("head", [CategoricalHead(3, channels=3), LogisticMixtureHead(3, 2, channels=3)])
def test_samples_of_colours_have_the_probabilities(head: Head) -> None:
    """Frequencies of the 27 colours; those rarer than 1 in 500 are left to the sum of the others."""
    raw, every, count = 0.5 * randn(head.outputs, seed=2), colours(3), 10_000
    p = head.log_prob(every, raw).exp()
    y = head.sample(raw.expand(count, -1), seeded(8))
    found = torch.bincount((y.long() * torch.tensor([9, 3, 1])).sum(-1), minlength=27).double() / count
    common = p > 1 / 500
    assert int(common.sum()) > 12
    error = (p * (1 - p) / count).sqrt()
    assert bool(((found - p).abs() < 5 * error)[common].all())


@every_head
def test_sample_shapes_dtype_device_and_generator(kind: str, device: torch.device) -> None:
    head = ONE[kind](5)
    for batch in ((), (3,), (2, 3), (0,)):
        for dtype in (torch.float32, F64):
            raw = randn(*batch, head.outputs).to(device, dtype).requires_grad_()
            y, again = (head.sample(raw, seeded(4, device)) for _ in range(2))
            assert y.shape == (*batch, 1) and y.dtype == dtype and y.device.type == device.type
            assert torch.equal(y, again) and not y.requires_grad


# extreme numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [50.0, 1e3, 1e6])
def test_extreme_raw_numbers_of_a_mixture(
    dtype: torch.dtype, num_levels: int, channels: int, size: float
) -> None:
    """Every sign of every kind of number: values and gradients finite, at the edges and between them."""
    head = LogisticMixtureHead(num_levels, 2, channels=channels)
    kinds = head.outputs // 2
    signs = torch.cartesian_prod(*[torch.tensor([-size, size])] * min(kinds, 6)).to(dtype)
    signs = signs.repeat(1, -(-kinds // signs.shape[1]))[:, :kinds].repeat_interleave(2, dim=-1)
    mixed = signs * torch.tensor([1.0, -1.0], dtype=dtype).repeat(kinds)  # components on opposite sides
    raw = torch.cat([signs, mixed, torch.zeros_like(signs[:1])]).unsqueeze(1).requires_grad_()
    y = torch.tensor([0, num_levels // 2, num_levels - 1]).unsqueeze(-1).expand(3, channels)
    log_p = head.log_prob(y, raw)
    assert log_p.dtype == dtype and bool(log_p.isfinite().all()) and bool((log_p <= 1e-6).all())
    (slope,) = torch.autograd.grad(log_p.sum(), raw)
    assert bool(slope.isfinite().all())
    with torch.no_grad():
        sample = head.sample(raw, seeded())
        assert bool(((sample >= 0) & (sample <= num_levels - 1)).all())
        if channels == 1:
            mean = head.mean(raw)
            assert bool(((mean >= 0) & (mean <= (num_levels - 1) * (1 + 1e-5))).all())


def test_the_scale_stays_between_its_limits() -> None:
    head = LogisticMixtureHead(256, 1)
    for raw, limit in ((-1e4, -4.0), (1e4, 6.0 + math.log(256))):
        log_scale = head.parameters_of(torch.tensor([0.0, 0.0, raw], dtype=F64))[2]
        assert float(log_scale) == pytest.approx(limit, abs=1e-12)
    sharp = head.level_log_probs(torch.tensor([0.0, 0.5 / 127.5, -1e4], dtype=F64)).exp()  # mean 128
    assert float(sharp[128]) == pytest.approx(1.0, abs=3e-12)
    wide = head.level_log_probs(torch.tensor([0.0, 0.0, 1e4], dtype=F64)).exp()
    assert float(wide[0] + wide[255]) > 0.999


def test_gradients_of_heads_are_those_of_differences() -> None:
    cases = [
        (CategoricalHead(4), torch.tensor([[0], [3], [1]])),
        (LogisticMixtureHead(4, 2), torch.tensor([[0], [3], [1]])),
        (CategoricalHead(3, channels=3), torch.tensor([[0, 2, 1], [1, 1, 2], [2, 0, 0]])),
        (LogisticMixtureHead(3, 2, channels=3), torch.tensor([[0, 2, 1], [1, 1, 2], [2, 0, 0]])),
    ]
    for head, y in cases:
        raw = randn(3, head.outputs).requires_grad_()
        assert torch.autograd.gradcheck(lambda raw, h=head, y=y: h.log_prob(y, raw), (raw,))


# the categorical distribution -----------------------------------------------------------------------------


def test_categorical_is_torchs_own() -> None:
    logits = 5 * randn(4, 3, 6)
    y = torch.randint(6, (4, 3), generator=seeded())
    expected = Categorical(logits=logits).log_prob(y)
    for given in (y, y.double(), y.to(torch.uint8)):
        torch.testing.assert_close(categorical_log_prob(given, logits), expected, **CLOSE)
    wide = categorical_log_prob(y[:, None], logits[:, :, None])  # (4, 1, 3) with (4, 3, 1)
    torch.testing.assert_close(wide.diagonal(dim1=1, dim2=2), expected, **CLOSE)
    assert wide.shape == (4, 3, 3)


def test_levels_made_in_inference_mode_will_do() -> None:
    with torch.inference_mode():
        y = torch.randint(4, (5, 1), generator=seeded())
    for head in (CategoricalHead(4), LogisticMixtureHead(4, 2)):
        raw = randn(5, head.outputs).requires_grad_()
        (slope,) = torch.autograd.grad(head.log_prob(y, raw).sum(), raw)
        assert bool((slope != 0).any())


def test_categorical_at_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    log_p = categorical_log_prob(torch.tensor([[0], [1], [2]]), logits)
    assert log_p.flatten().tolist() == [0.0, -2e4, -1e4]
    (slope,) = torch.autograd.grad(log_p.sum(), logits)
    assert bool(slope.isfinite().all())
    drawn = categorical_sample(logits.expand(50, 3), seeded())
    assert bool((drawn == 0).all()) and not drawn.requires_grad


def test_categorical_sample_shapes() -> None:
    for batch in ((), (1,), (2, 3), (0,), (2, 0)):
        drawn = categorical_sample(torch.zeros(*batch, 4), seeded())
        assert drawn.shape == batch and drawn.dtype == torch.float32
    assert torch.equal(*(categorical_sample(randn(9, 4), seeded(2)) for _ in range(2)))


# refusals -------------------------------------------------------------------------------------------------


ZEROS = torch.zeros(5, 1)
REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: CategoricalHead(1), "two levels.* got num_levels=1 and channels=1"),
    (lambda: LogisticMixtureHead(4, channels=2), "channels=2: for more channels take the picture entry by"),
    (lambda: LogisticMixtureHead(4, 0), "num_components must be at least 1, got 0"),
    (lambda: CategoricalHead(4).log_prob(ZEROS, torch.zeros(5, 3)), r"1 level\(s\) and 4 outputs .* \(5, 3"),
    (lambda: CategoricalHead(4).log_prob(torch.zeros(5, 3), torch.zeros(5, 4)), r"got y \(5, 3\)"),
    (lambda: LogisticMixtureHead(4, 2).log_prob(ZEROS, torch.zeros(5, 7)), "6 outputs"),
    (lambda: CategoricalHead(4, channels=3).mean(torch.zeros(12)), "the head has 3"),
    (lambda: CategoricalHead(4, channels=3).level_log_probs(torch.zeros(12)), "use log_prob or sample"),
    (lambda: LogisticMixtureHead(4, 1, channels=3).mean(torch.zeros(10)), "the head has 3"),
    (lambda: LogisticMixtureHead(4, 1, channels=3).level_log_probs(torch.zeros(10)), "one channel"),
    (lambda: CategoricalHead(4).log_prob(ZEROS + 0.5, torch.zeros(5, 4)), "values from 0.5 to 0.5: pass"),
    (lambda: LogisticMixtureHead(4, 1).log_prob(ZEROS + 4, torch.zeros(5, 3)), "levels 0, ..., 3, got"),
    (lambda: CategoricalHead(4).log_prob(torch.zeros(5, 1, requires_grad=True), torch.zeros(5, 4)),
     r"levels, for which there is no gradient, .* pass y.detach\(\)"),
    (lambda: LogisticMixtureHead(4, 1).log_prob(torch.zeros(5, 1, requires_grad=True), torch.zeros(5, 3)),
     r"levels, for which there is no gradient, .* pass y.detach\(\)"),
    (lambda: categorical_log_prob(torch.tensor(-1), torch.zeros(4)), "levels 0, ..., 3, got values from -1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
