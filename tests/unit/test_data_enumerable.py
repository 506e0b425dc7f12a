"""Enumerable binary data: every row once, exact probabilities, exact entropy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dgm_course.data import entropy, enumerable_binary


@pytest.mark.parametrize("probabilities", [(0.2, 0.8), (0.5,), (0.1, 0.3, 0.95), (0.0, 1.0, 0.4)])
def test_every_row_with_its_probability(probabilities: tuple[float, ...]) -> None:
    x, log_prob = enumerable_binary(5, probabilities, dtype=torch.float64)
    rows = list(itertools.product((0.0, 1.0), repeat=5))
    assert x.tolist() == [list(row) for row in rows]
    for row, got in zip(rows, log_prob.exp().tolist(), strict=True):
        components = [math.prod(p if bit else 1 - p for bit in row) for p in probabilities]
        assert got == pytest.approx(sum(components) / len(components), abs=1e-15)


@pytest.mark.parametrize("num_bits", [1, 8, 12])
def test_sums_to_one(num_bits: int) -> None:
    x, log_prob = enumerable_binary(num_bits, dtype=torch.float64)
    assert x.shape == (2**num_bits, num_bits) and log_prob.shape == (2**num_bits,)
    assert abs(torch.logsumexp(log_prob, 0).item()) < 1e-12


def test_entropy_by_hand() -> None:
    """H of the mixture by grouping rows by their number of ones: binomials instead of the table."""
    m = 8
    by_hand = 0.0
    for ones in range(m + 1):
        p = 0.5 * (0.2**ones * 0.8 ** (m - ones) + 0.8**ones * 0.2 ** (m - ones))
        by_hand -= math.comb(m, ones) * p * math.log(p)
    got = entropy(enumerable_binary(m, dtype=torch.float64)[1]).item()
    assert got == pytest.approx(by_hand, rel=1e-12)
    assert got == pytest.approx(4.6198, abs=2e-3)  # the full window's NLL in ledger C6 is 4.621


def test_entropy_of_products_is_additive_and_zero_is_safe() -> None:
    single = enumerable_binary(1, (0.3,), dtype=torch.float64)[1]
    assert entropy(enumerable_binary(6, (0.3,), dtype=torch.float64)[1]).item() == pytest.approx(
        6 * entropy(single).item(), rel=1e-12
    )
    certain = enumerable_binary(3, (1.0,), dtype=torch.float64)[1]
    assert entropy(certain).item() == 0.0
    assert torch.equal(entropy(torch.stack([certain, certain], dim=-1), dim=0), torch.zeros(2).double())


def test_dtype_and_device(device: torch.device) -> None:
    x, log_prob = enumerable_binary(3, device=device)
    assert x.dtype == log_prob.dtype == torch.float32
    assert x.device.type == log_prob.device.type == device.type
    exact = enumerable_binary(3, dtype=torch.float64)[1]
    torch.testing.assert_close(log_prob.cpu(), exact.float(), rtol=0, atol=0)


def test_bad_input_is_named() -> None:
    for num_bits in (0, 21):
        with pytest.raises(ValueError, match="between 1 and 20"):
            enumerable_binary(num_bits)
    for probabilities in ((), (1.2,), (math.nan,)):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            enumerable_binary(4, probabilities)
    with pytest.raises(ValueError, match="sum to 1"):
        entropy(torch.zeros(4))
