"""Priors p(z) of a VAE behind one interface: standard normal, mixture, VampPrior, flow, aggregated posterior.

``from dgm_course.priors import VampPrior``. Each is a module with ``log_prob(z)`` and ``sample(n)``. Hand it
to ``VAE(..., prior=prior)`` to train both, or minimise :func:`cross_entropy` to fit it to a frozen encoder.
"""

from dgm_course.priors.aggregated import AggregatedPosterior
from dgm_course.priors.base import Prior, StandardNormalPrior, cross_entropy
from dgm_course.priors.flow import FlowPrior
from dgm_course.priors.mixture import MixturePrior
from dgm_course.priors.vamp import VampPrior

__all__ = [
    "AggregatedPosterior",
    "FlowPrior",
    "MixturePrior",
    "Prior",
    "StandardNormalPrior",
    "VampPrior",
    "cross_entropy",
]
