"""The numbers of a benchmark: quartiles, ratios within rounds, growth, relative error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]


class Disagreement(Exception):
    """A contender's result is not the reference's, so its time means nothing."""


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile (linear interpolation between order statistics)."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def ratio_quartiles(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Quartiles of the ratios within rounds: theirs[i] and ours[i] ran side by side."""
    return quartiles([a / b for a, b in zip(theirs, ours, strict=True)])


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Least-squares slope of log cost against log size, cost ~ size ** slope; None without two sizes."""
    if len(set(sizes)) < 2:
        return None
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(c) for c in costs]).slope


def relative_error(result: Result, reference: Result) -> float:
    """max |result - reference| / max |reference|, the largest over the parts of a tuple; nan if one is."""
    results = result if isinstance(result, tuple) else (result,)
    references = reference if isinstance(reference, tuple) else (reference,)
    shapes = [None if r is None else tuple(r.shape) for r in results]
    if shapes != [tuple(r.shape) for r in references]:
        raise Disagreement(f"shapes {shapes} where the reference has {[tuple(r.shape) for r in references]}")
    errors = []
    for got, right in zip(results, references, strict=True):
        right = right.double().cpu()
        errors.append((got.detach().double().cpu() - right).abs().max() / right.abs().max())
    return torch.stack(errors).max().item()  # of a nan and a number, max is nan
