"""Dequantization: a continuous density made to answer for discrete data, by noise within the bins.

Data ``y (..., B, m)`` are levels 0, 1, ...; level y owns the bin ``[y, y + 1)^m``, and a density p of
``x = y + u`` gives the discrete model ``P(y) = int_[0,1)^m p(y + u) du``. Three bounds of ``log P(y)``, and
the unit in which such models are compared. Ledger D4-D8.
"""

from dgm_course.dequantization.bounds import (
    bits_per_dim,
    dequantization_log_weights,
    dequantize,
    importance_weighted_bound,
    uniform_bound,
    variational_bound,
)
from dgm_course.dequantization.noise import Dequantizer, UniformDequantizer
from dgm_course.dequantization.variational import VariationalDequantizer

__all__ = [
    "Dequantizer",
    "UniformDequantizer",
    "VariationalDequantizer",
    "bits_per_dim",
    "dequantization_log_weights",
    "dequantize",
    "importance_weighted_bound",
    "uniform_bound",
    "variational_bound",
]
