"""logistic_mixture: whole numbers, half precision and mixed dtypes among the arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgm_course.logistic_mixture import (
    discretized_logistic_log_prob,
    discretized_logistic_mixture_mean,
    discretized_logistic_mixture_sample,
    logistic_log_prob,
    logistic_mixture_log_prob,
)

F32, F64 = torch.float32, torch.float64


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def mixture() -> list[Tensor]:
    """Logits, means and log-scales of three components, two of each."""
    logits, mean, log_scale = torch.randn(3, 2, 3, generator=seeded(), dtype=F64)
    return [logits, 2 + 2 * mean, log_scale - 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_a_distribution_too(dtype: torch.dtype) -> None:
    """Computed in float32: 256 probabilities sum to one, whichever argument is in half precision."""
    y = torch.arange(256)
    mean, log_scale = torch.tensor(100.3).to(dtype), torch.tensor(1.3).to(dtype)
    log_p = discretized_logistic_log_prob(y, mean, log_scale, num_levels=256)
    assert log_p.dtype == F32
    assert log_p.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    expected = discretized_logistic_log_prob(y, mean.float(), log_scale.float(), num_levels=256)
    assert torch.equal(log_p, expected)
    assert torch.equal(
        discretized_logistic_log_prob(y.to(dtype), 9.0, 0.0, num_levels=257),
        discretized_logistic_log_prob(y.to(dtype).float(), 9.0, 0.0, num_levels=257),
    )
    far = torch.tensor([-6e4, 6e4], dtype=dtype, requires_grad=True)  # the clamps are no float16
    value = discretized_logistic_log_prob(torch.tensor(3), far, -8.0, num_levels=256)
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), far)[0].isfinite().all()
    parameters = [t.to(dtype) for t in mixture()]
    single = [t.float() for t in parameters]
    found, expected = (
        discretized_logistic_mixture_mean(*some, num_levels=17) for some in (parameters, single)
    )
    assert found.dtype == F32 and torch.equal(found, expected)
    found, expected = (
        discretized_logistic_mixture_sample(*some, num_levels=17, generator=seeded())
        for some in (parameters, single)
    )
    assert found.dtype == F32 and torch.equal(found, expected)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_whole_numbers_on_the_line(kind: torch.dtype) -> None:
    """An integer x does not truncate the parameters."""
    x = torch.arange(2).to(kind)
    assert torch.equal(logistic_log_prob(x, 0.7, 0.5), logistic_log_prob(x.float(), 0.7, 0.5))
    assert torch.equal(logistic_log_prob(x, 1, 2), logistic_log_prob(x.float(), 1.0, 2.0))
    parameters = [t.float() for t in mixture()]
    found = logistic_mixture_log_prob(x, *parameters)
    assert torch.equal(found, logistic_mixture_log_prob(x.float(), *parameters)) and found.dtype == F32


def test_the_widest_dtype_decides_on_the_line() -> None:
    """A float64 parameter is not rounded to the dtype of x; half precision becomes float32."""
    x = torch.tensor([0.5, 3.0])
    for mean, log_scale in ((0.1, torch.tensor(0.3, dtype=F64)), (torch.tensor(0.1, dtype=F64), 0.3)):
        found = logistic_log_prob(x, mean, log_scale)
        assert found.dtype == F64 and torch.equal(found, logistic_log_prob(x.double(), mean, log_scale))
    for half in (torch.float16, torch.bfloat16):
        assert logistic_log_prob(x.to(half), 0.1, 0.3).dtype == F32
        assert torch.equal(logistic_log_prob(x.to(half), 0.1, 0.3), logistic_log_prob(x, 0.1, 0.3))
    parameters = mixture()
    assert logistic_mixture_log_prob(x, *parameters).dtype == F64
