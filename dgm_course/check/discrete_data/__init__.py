"""The exercises of lecture 04: the mass of a bin, three bounds by noise within the bins, and bits."""

from dgm_course.check.discrete_data.bits import bits_per_dim
from dgm_course.check.discrete_data.edges import log_prob_with_edges
from dgm_course.check.discrete_data.importance import importance_weighted_dequantization
from dgm_course.check.discrete_data.mass import discretized_logistic_prob
from dgm_course.check.discrete_data.uniform import uniform_dequantization_bound
from dgm_course.check.discrete_data.variational import variational_dequantization_bound

__all__ = [
    "bits_per_dim",
    "discretized_logistic_prob",
    "importance_weighted_dequantization",
    "log_prob_with_edges",
    "uniform_dequantization_bound",
    "variational_dequantization_bound",
]
