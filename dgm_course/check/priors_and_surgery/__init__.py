"""The exercises of lecture 05: the aggregated posterior, the ELBO's surgery, and three priors."""

from dgm_course.check.priors_and_surgery.aggregated import aggregated_posterior_log_prob
from dgm_course.check.priors_and_surgery.flow import flow_prior_log_prob
from dgm_course.check.priors_and_surgery.information import mutual_information
from dgm_course.check.priors_and_surgery.mixture import mog_log_prob
from dgm_course.check.priors_and_surgery.surgery import elbo_surgery
from dgm_course.check.priors_and_surgery.vamp import vamp_prior_log_prob

__all__ = [
    "aggregated_posterior_log_prob",
    "elbo_surgery",
    "flow_prior_log_prob",
    "mog_log_prob",
    "mutual_information",
    "vamp_prior_log_prob",
]
