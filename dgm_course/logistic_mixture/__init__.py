"""Mixtures of logistic distributions: the density on the line, and its discretization to pixel values.

A logistic distribution has the cumulative distribution function ``F(x) = sigmoid((x - mean) / s)``. Means are
in levels (the spacing of neighbouring pixel values is 1), ``log_scale = log s`` likewise. Ledger D2, D3.
"""

from dgm_course.logistic_mixture.components import discretized_logistic_log_prob
from dgm_course.logistic_mixture.continuous import logistic_log_prob, logistic_mixture_log_prob
from dgm_course.logistic_mixture.discretized import (
    discretized_logistic_mixture_log_prob,
    rgb_logistic_mixture_log_prob,
)
from dgm_course.logistic_mixture.moments import (
    discretized_logistic_mixture_mean,
    rgb_logistic_mixture_mean,
)
from dgm_course.logistic_mixture.sampling import (
    discretized_logistic_mixture_sample,
    rgb_logistic_mixture_sample,
)

__all__ = [
    "discretized_logistic_log_prob",
    "discretized_logistic_mixture_log_prob",
    "discretized_logistic_mixture_mean",
    "discretized_logistic_mixture_sample",
    "logistic_log_prob",
    "logistic_mixture_log_prob",
    "rgb_logistic_mixture_log_prob",
    "rgb_logistic_mixture_mean",
    "rgb_logistic_mixture_sample",
]
