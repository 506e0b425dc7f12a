"""Lower bounds of the log-likelihood, and estimators of their gradients.

``from dgm_course.bounds import elbo, iwae_bound``. The evidence lower bound is in ``elbo``, the
importance-weighted bound and its weights in ``importance``, its exact value and its implicit posterior in
``exact``, gradient estimators in ``gradients``; ``streaming`` computes bound and gradient with very many
samples in little memory, ``noise`` thousands of gradient estimates at once.
"""

from dgm_course.bounds.elbo import (
    elbo,
    elbo_from_evidence,
    elbo_from_kl,
    score_function_gradient,
)
from dgm_course.bounds.exact import (
    exact_iwae_bound,
    implicit_posterior_log_prob,
    importance_weighted_log_prob,
)
from dgm_course.bounds.gradients import (
    dreg_gradient,
    iwae_gradient,
    iwae_gradient_estimates,
    reparametrised_gradient,
    signal_to_noise,
)
from dgm_course.bounds.importance import (
    chi2_from_log_weights,
    effective_sample_size,
    iwae_bound,
    iwae_gap,
    normalized_weights,
)
from dgm_course.bounds.noise import WeightedNoise, weighted_noise
from dgm_course.bounds.streaming import streamed_iwae_bound

__all__ = [
    "WeightedNoise",
    "chi2_from_log_weights",
    "dreg_gradient",
    "effective_sample_size",
    "elbo",
    "elbo_from_evidence",
    "elbo_from_kl",
    "exact_iwae_bound",
    "implicit_posterior_log_prob",
    "importance_weighted_log_prob",
    "iwae_bound",
    "iwae_gap",
    "iwae_gradient",
    "iwae_gradient_estimates",
    "normalized_weights",
    "reparametrised_gradient",
    "score_function_gradient",
    "signal_to_noise",
    "streamed_iwae_bound",
    "weighted_noise",
]
