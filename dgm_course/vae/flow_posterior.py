"""A VAE whose posterior is a flow: a Gaussian of the encoder, moved by bijections that may read x."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dgm_course.flows import Inverse, Transform
from dgm_course.gaussian import gaussian_log_prob
from dgm_course.nets import members_of
from dgm_course.vae.decoders import Decoder
from dgm_course.vae.model import VAE, ELBOTerms


class FlowPosteriorVAE(VAE):
    """A VAE with ``q(z|x)`` the law of ``z_K = g(z_0; h(x))``, ``z_0 ~ N(mean(x), diag exp(log_var(x)))``.

    ``log q(z_K|x) = log q_0(z_0|x) - sum_k log|det dg_k/dz_{k-1}|`` (Ledger V1): only z_0 is ever sampled
    (V2). ``encoder`` maps ``x (..., m)`` to ``(..., 2d + c)``: means and log-variances of z_0, and c numbers
    h(x) that ``flow.forward`` receives as its context; with c = 0 all x share one flow (Ledger V5). Training
    needs ``flow.forward`` alone: take a flow that samples fast, such as IAF, couplings, planar (V3).

    Everything else is as in :class:`VAE`, stacks included; ``terms`` has one column for the KL, ``(B, 1)``,
    estimated from the samples. Rezende & Mohamed 2015; Kingma et al. 2016. Raises ``ValueError`` where the
    parts disagree about E, d or c.
    """

    gaussian_posterior = False

    def __init__(
        self,
        encoder: nn.Module,
        decoder: Decoder,
        latent_dim: int,
        flow: Transform,
        *,
        context_dim: int = 0,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__(encoder, decoder, latent_dim, prior=prior)
        if flow.event_dims != 1 or context_dim < 0:
            raise ValueError(
                "a posterior flow acts on vectors, and its context has 0 or more numbers, got event_dims="
                f"{flow.event_dims} and context_dim={context_dim}"
            )
        self.flow = flow
        self.context_dim = context_dim
        self.members = members_of(self)
        if members_of(encoder) is None and self.members is not None:
            raise ValueError(
                f"a stack of {self.members} flows needs an encoder for each, got one without members: build "
                f"it with members={self.members}"
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(mean, log_var)`` of z_0, each ``(..., d)``."""
        mean, log_var, _ = self._encode_all(x)
        return mean, log_var

    def context(self, x: Tensor) -> Tensor | None:
        """What the flow knows of x: ``(..., c)``, or None without context."""
        return self._encode_all(x)[2]

    def terms(
        self, x: Tensor, *, generator: torch.Generator | None = None, num_samples: int = 1
    ) -> ELBOTerms:
        """The ELBO's terms at ``x (..., m)``, both from reparametrised samples of z_0. Ledger V2."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}: ask for some samples")
        z, log_q = self._sample(x, num_samples, generator)  # ([E,] S, ..., d), ([E,] S, ...)
        log_likelihood = self.decoder.log_prob(x, z).mean(self._sample_dim)
        kl = (log_q - self.prior_log_prob(z)).mean(self._sample_dim)
        return ELBOTerms(log_likelihood, kl.unsqueeze(-1))

    def posterior_sample(
        self,
        x: Tensor,
        *,
        num_samples: int,
        generator: torch.Generator | None = None,
        stop_score: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """K samples ``z_K ([E,] K, B, d)`` of q(z|x) and ``log q(z_K|x) ([E,] K, B)``, nats; reparametrised.

        With ``stop_score`` log q is computed through ``flow.inverse``, whose parameters, and the encoder's,
        are held fixed there: the same value, but for rounding, and only the path gradient. Arguments and
        errors as in :meth:`VAE.log_weights`.
        """
        self._check_draw(x, num_samples)
        return self._sample(x, num_samples, generator, stop_score)

    def posterior_log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """``log q(z|x)`` of any z, by ``flow.inverse``: ``z ([E,] S, B, d)``, ``x (B, m)``: ``([E,] S, B)``.

        For a grid of z: ``z.unsqueeze(1)`` has the shape ``(S, 1, d)`` and meets every x. Ledger V1. Raises
        ``ValueError`` for a z of another size.
        """
        if z.shape[-1:] != (self.latent_dim,):
            raise ValueError(
                f"z must end in latent_dim = {self.latent_dim} entries, got {tuple(z.shape)}: its last "
                "dimension holds one latent"
            )
        mean, log_var, context = self._beside_samples(*self._encode_all(x))
        shape = torch.broadcast_shapes(z.shape, mean.shape)
        z0, log_det = self.flow.inverse(z.expand(shape), context)
        return gaussian_log_prob(z0, mean, log_var) + log_det

    def _sample(
        self, x: Tensor, num_samples: int, generator: torch.Generator | None, stop_score: bool = False
    ) -> tuple[Tensor, Tensor]:
        """:meth:`posterior_sample` of an ``x (..., m)``."""
        parameters = self._encode_all(x)
        z0 = self._draw(*parameters[:2], num_samples, generator)
        mean, log_var, context = self._beside_samples(*parameters)
        z, log_det = self.flow(z0, context)
        if not stop_score:
            return z, gaussian_log_prob(z0, mean, log_var) - log_det
        frozen = {name: value.detach() for name, value in Inverse(self.flow).named_parameters()}
        context = None if context is None else context.detach()
        back, log_det_back = functional_call(Inverse(self.flow), frozen, (z, context))
        return z, gaussian_log_prob(back, mean.detach(), log_var.detach()) + log_det_back

    def _beside_samples(self, *values: Tensor | None) -> list[Tensor | None]:
        """``([E,] ..., d)`` with a dimension for the samples, ``([E,] 1, ..., d)``."""
        return [None if value is None else value.unsqueeze(self._sample_dim) for value in values]

    def _encode_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        parameters, d = self.encoder(x), self.latent_dim
        if parameters.shape[-1] != 2 * d + self.context_dim:
            raise ValueError(
                f"the encoder must give 2 * latent_dim + context_dim = {2 * d + self.context_dim} numbers "
                f"(means, log-variances, the flow's context), got {parameters.shape[-1]}: change its last "
                "size"
            )
        mean, log_var, context = parameters.split([d, d, self.context_dim], dim=-1)
        return mean, log_var, context if self.context_dim else None
