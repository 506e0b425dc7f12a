"""Exercises that check themselves: ``check.gaussian_kl(gaussian_kl)`` prints PASS, TODO or FAIL.

``check.progress()`` shows what is done in this session, ``check.hidden`` is for the tests that students do
not see. Importing this package is cheap: a lecture's exercises are loaded when one of them is first used.
A new lecture adds one module or package beside this file and one line to :data:`LECTURES`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dgm_course.check.registry import Lecture

if TYPE_CHECKING:
    from dgm_course.check.engine import Exercise

LECTURES = {
    "01": Lecture("Posterior collapse", "posterior_collapse",
                  ("gaussian_kl", "elbo", "active_units", "causal_mask", "kl_weight", "free_bits")),
    "02": Lecture("IWAE: tightness and signal-to-noise", "importance",
                  ("log_weights", "iwae_bound", "normalized_weights", "iwae_gap", "snr", "dreg_weights")),
    "03": Lecture("Normalizing flows", "normalizing_flows",
                  ("change_of_variables_log_prob", "affine_coupling", "planar_log_det", "made_masks",
                   "lu_log_det", "revnet_inverse")),
    "04": Lecture("Discrete data and dequantization", "discrete_data",
                  ("discretized_logistic_prob", "log_prob_with_edges", "uniform_dequantization_bound",
                   "bits_per_dim", "variational_dequantization_bound",
                   "importance_weighted_dequantization")),
    "05": Lecture("ELBO surgery and priors", "priors_and_surgery",
                  ("aggregated_posterior_log_prob", "mutual_information", "elbo_surgery", "mog_log_prob",
                   "vamp_prior_log_prob", "flow_prior_log_prob")),
    "06": Lecture("Flows in the VAE posterior", "flow_posteriors",
                  ("flow_posterior_log_prob", "flow_elbo", "iaf_step", "maf_to_iaf",
                   "prior_posterior_gap")),
}

_MODULE_OF = {name: lecture.module for lecture in LECTURES.values() for name in lecture.exercises}


def __getattr__(name: str) -> Exercise:
    if name not in _MODULE_OF:
        raise AttributeError(f"there is no exercise {name!r}; there are {', '.join(_MODULE_OF)}")
    module = importlib.import_module(f"dgm_course.check.{_MODULE_OF[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*_MODULE_OF, "hidden", "progress"]


def progress() -> None:
    """Print each lecture's exercises: the last verdict and the number of tries, in this kernel session."""
    from dgm_course.check import engine

    engine.show_progress(LECTURES)


def hidden(exercise: str, answer: object, *, seed: int) -> None:
    """A hidden test: raise AssertionError unless ``answer`` passes on the inputs that ``seed`` draws."""
    from dgm_course.check import engine

    engine.require(__getattr__(exercise), answer, seed)
