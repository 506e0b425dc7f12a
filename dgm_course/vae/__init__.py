"""Variational autoencoders: decoders, the bound term by term, KL weights and free bits, exact small cases.

``from dgm_course.vae import VAE, BernoulliDecoder, vae_loss``.
"""

from dgm_course.vae.decoders import (
    AutoregressiveDecoder,
    BernoulliDecoder,
    CategoricalDecoder,
    Decoder,
    GaussianDecoder,
)
from dgm_course.vae.flow_posterior import FlowPosteriorVAE
from dgm_course.vae.four_points import QuadrantDecoder, four_point_vae
from dgm_course.vae.grid import GridTerms, grid_terms
from dgm_course.vae.importance import dreg_loss, importance_log_weights
from dgm_course.vae.model import VAE, ELBOTerms, active_units, free_bits_kl, kl_weight, vae_loss
from dgm_course.vae.quadrature import quadrature_elbo, quadrature_log_prob

__all__ = [
    "VAE",
    "AutoregressiveDecoder",
    "BernoulliDecoder",
    "CategoricalDecoder",
    "Decoder",
    "ELBOTerms",
    "FlowPosteriorVAE",
    "GaussianDecoder",
    "GridTerms",
    "QuadrantDecoder",
    "active_units",
    "dreg_loss",
    "four_point_vae",
    "free_bits_kl",
    "grid_terms",
    "importance_log_weights",
    "kl_weight",
    "quadrature_elbo",
    "quadrature_log_prob",
    "vae_loss",
]
