"""The exercises of lecture 02: importance weights, the bound they give, its gap, and its gradients."""

from dgm_course.check.importance.bound import iwae_bound, iwae_gap
from dgm_course.check.importance.gradients import dreg_weights, snr
from dgm_course.check.importance.weights import log_weights, normalized_weights

__all__ = ["dreg_weights", "iwae_bound", "iwae_gap", "log_weights", "normalized_weights", "snr"]
