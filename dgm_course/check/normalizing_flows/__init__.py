"""The exercises of lecture 03: densities by change of variables, and layers with a cheap log-determinant."""

from dgm_course.check.normalizing_flows.convolution import lu_log_det
from dgm_course.check.normalizing_flows.coupling import affine_coupling
from dgm_course.check.normalizing_flows.density import change_of_variables_log_prob
from dgm_course.check.normalizing_flows.masks import made_masks
from dgm_course.check.normalizing_flows.planar import planar_log_det
from dgm_course.check.normalizing_flows.reversible import revnet_inverse

__all__ = [
    "affine_coupling",
    "change_of_variables_log_prob",
    "lu_log_det",
    "made_masks",
    "planar_log_det",
    "revnet_inverse",
]
