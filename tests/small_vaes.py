"""A small VAE with each kind of decoder, for the tests of ``dgm_course.vae``."""

from __future__ import annotations

import torch

from dgm_course.nets import MLP, MaskedMLP
from dgm_course.vae import (
    VAE,
    AutoregressiveDecoder,
    BernoulliDecoder,
    CategoricalDecoder,
    Decoder,
    GaussianDecoder,
)


def small_vae(
    generator: torch.Generator, members: int | None = None, latent_dim: int = 2, kind: str = "autoregressive"
) -> VAE:
    """Five pixels, in float64."""
    make = {"members": members, "generator": generator}
    if kind == "autoregressive":
        decoder: Decoder = AutoregressiveDecoder(MaskedMLP(5, 10, context=latent_dim, **make))
    elif kind == "bernoulli":
        decoder = BernoulliDecoder(MLP([latent_dim, 6, 5], **make))
    elif kind == "categorical":
        decoder = CategoricalDecoder(MLP([latent_dim, 6, 10], **make), 2)
    else:
        decoder = GaussianDecoder(MLP([latent_dim, 6, 5], **make), "learned")
    return VAE(MLP([5, 8, 2 * latent_dim], **make), decoder, latent_dim).double()
