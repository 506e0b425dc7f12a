"""The exercises of lecture 06: densities and bounds of a posterior that a flow moves, and the flow itself."""

from dgm_course.check.flow_posteriors.autoregressive import iaf_step, maf_to_iaf
from dgm_course.check.flow_posteriors.bound import flow_elbo
from dgm_course.check.flow_posteriors.density import flow_posterior_log_prob
from dgm_course.check.flow_posteriors.equivalence import prior_posterior_gap

__all__ = ["flow_elbo", "flow_posterior_log_prob", "iaf_step", "maf_to_iaf", "prior_posterior_gap"]
