"""Lecture 04: D8 (real pixel values, and where learned noise pays)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dgm_course import data
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.numerics import gauss_legendre
from dgm_course.reproduce import load


def test_d8_real_pixel_values_are_not_spread_evenly() -> None:
    """Entropy of one pixel, by counting: below 8 bits in both photographs, and levels differ manifold."""
    for picture in data.photographs():
        counts = torch.bincount(picture.flatten().long(), minlength=256).double()
        share = counts[counts > 0] / counts.sum()
        assert -(share * share.log2()).sum() < 7.9
        assert share.sort(descending=True).values[:64].sum() > 0.4  # a quarter of the levels


@pytest.mark.parametrize(("scale", "error"), [(13.0, 0.01), (4.0, 0.03), (2.0, 0.1)])
def test_d8_the_gap_of_a_smooth_density(scale: float, error: float) -> None:
    """N(0.3, s^2): uniform noise loses about 1 / (24 s^2) nats a dimension, averaged over the levels."""
    y = torch.arange(-200.0, 200.0, dtype=torch.float64)[:, None]
    nodes, weights = gauss_legendre(0.0, 1.0, 40)
    log_p = gaussian_log_prob(y.unsqueeze(-2) + nodes, 0.3, 2 * math.log(scale))  # (B, N)
    log_mass = torch.logsumexp(log_p + weights.log(), -1)
    gap = (log_mass.exp() * (log_mass - log_p @ weights)).sum()
    assert abs(float(gap) * 24 * scale**2 - 1) < error


def test_d8_on_photo_patches_the_gain_falls_with_the_bits() -> None:
    """The recorded runs: noise that reads the neighbours gains at every depth, less at a finer one.

    Three members: t = 32 on two degrees of freedom is p = .001. On the flow that stays as it was the noise
    wins a part of that flow's gap, which half the variance of log p predicts within a tenth and
    1 / (24 s^2) overestimates: s is below one level.
    """
    rows = [row for row in load("dequantization").tables["gains"] if row["data"] == "photo patches"]
    assert [row["num_levels"] for row in rows] == [4, 8, 16, 32, 256]
    for row in rows:
        assert row["gain"] > 32 * row["gain_se"]
        assert 0 < row["gain_afterwards"] < row["gap"]
        assert row["gain_dense"] < row["gain"]
        assert row["scale"] < 1 and row["predicted"] > 1.2 * row["gap"]
        assert 0.9 < row["gap"] / row["predicted_variance"] < 1
    for coarse, fine in pairwise(rows):
        assert coarse["gain"] > fine["gain"] > 0
