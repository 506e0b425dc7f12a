"""The exercises of lecture 01: what a VAE's objective is made of, and what keeps it from collapsing."""

from dgm_course.check.posterior_collapse.diagnosis import active_units, causal_mask
from dgm_course.check.posterior_collapse.objective import elbo, free_bits, gaussian_kl, kl_weight

__all__ = ["active_units", "causal_mask", "elbo", "free_bits", "gaussian_kl", "kl_weight"]
