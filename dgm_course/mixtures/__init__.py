"""Mixtures of diagonal Gaussians with very many components: log-density, posterior of the component, samples.

One mixture serves the aggregated posterior (n = all data), the mixture prior, the VampPrior and kernel
density estimates alike. ``from dgm_course.mixtures import mixture_log_prob``.
"""

from dgm_course.mixtures.density import mixture_log_prob
from dgm_course.mixtures.responsibilities import mixture_responsibilities
from dgm_course.mixtures.sampling import mixture_sample

__all__ = ["mixture_log_prob", "mixture_responsibilities", "mixture_sample"]
