"""The variational autoencoder, its bound term by term, and the remedies against posterior collapse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgm_course.gaussian import gaussian_entropy, gaussian_kl_per_dim, gaussian_log_prob, gaussian_sample
from dgm_course.nets import Stackable, members_of
from dgm_course.vae.decoders import Decoder


@dataclass(frozen=True)
class ELBOTerms:
    """The two terms of the ELBO, per sample and in nats; a leading E where the model is stacked.

    ``log_likelihood (B,)`` is (an estimate of) ``E_q log p(x|z)``. ``kl_per_dim (B, d)`` is
    ``KL(q(z_j|x) || p(z_j))``, exact; under a prior of its own, which need not factorise, the KL is one term
    for all dimensions, ``(B, 1)``, estimated from the samples.
    """

    log_likelihood: Tensor
    kl_per_dim: Tensor

    @property
    def kl(self) -> Tensor:
        """``KL(q(z|x) || p(z))``, shape ``(B,)``."""
        return self.kl_per_dim.sum(-1)

    @property
    def elbo(self) -> Tensor:
        """``E_q log p(x|z) - KL(q(z|x) || p(z))``, shape ``(B,)``."""
        return self.log_likelihood - self.kl


class VAE(Stackable):
    """p(z) = N(0, I), p(x|z) given by ``decoder``, q(z|x) = N(mean(x), diag exp(log_var(x))) by ``encoder``.

    ``encoder`` maps ``x (..., m)`` to ``(..., 2d)``: the means, then the log-variances. ``prior`` replaces
    N(0, I) by a density of its own (:mod:`dgm_course.priors`: ``log_prob(z)`` and ``sample(n, generator)``),
    whose parameters become the model's. With stacked networks
    (``members=E``, see :mod:`dgm_course.nets`) x is shared ``(B, m)`` or per member ``(E, B, m)``, and every
    result starts with E. Kingma and Welling 2014, "Auto-encoding variational Bayes"; Ledger C4, S3.

    Raises ``ValueError`` if the parts disagree about E or ``latent_dim``, or the encoder's output is not
    ``2 * latent_dim``.
    """

    #: whether ``encode`` says all about q(z|x); what computes with a Gaussian in closed form asks
    gaussian_posterior = True

    def __init__(
        self, encoder: nn.Module, decoder: Decoder, latent_dim: int, *, prior: nn.Module | None = None
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        if getattr(prior, "latent_dim", latent_dim) != latent_dim:
            raise ValueError(
                f"the VAE has latent_dim={latent_dim}, its prior {prior.latent_dim}: build both with the same"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.prior = prior
        self.members = members_of(self)
        if members_of(encoder) is None and self.members is not None:
            raise ValueError(
                f"a stack of {self.members} decoders or priors needs an encoder for each, got one without "
                f"members: build it with members={self.members}"
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(mean, log_var)`` of q(z|x), each ``(..., d)``."""
        parameters = self.encoder(x)
        if parameters.shape[-1] != 2 * self.latent_dim:
            raise ValueError(
                f"the encoder must give 2 * latent_dim = {2 * self.latent_dim} numbers (means, then "
                f"log-variances), got {parameters.shape[-1]}: change its last size"
            )
        mean, log_var = parameters.chunk(2, dim=-1)
        return mean, log_var

    def terms(
        self, x: Tensor, *, generator: torch.Generator | None = None, num_samples: int = 1
    ) -> ELBOTerms:
        """The ELBO's terms at ``x (..., m)``: the KL exact, the likelihood from reparametrised samples.

        With a ``prior`` the KL is estimated from the same samples, the entropy of q in closed form.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        mean, log_var = self.encode(x)  # (..., d)
        one = num_samples == 1
        z = gaussian_sample(mean, log_var, generator=generator) if one else self._draw(
            mean, log_var, num_samples, generator
        )  # fmt: skip
        log_likelihood = self.decoder.log_prob(x, z)
        log_prior = None if self.prior is None else self.prior.log_prob(z)
        if not one:
            log_likelihood = log_likelihood.mean(self._sample_dim)
            log_prior = None if log_prior is None else log_prior.mean(self._sample_dim)
        if log_prior is None:
            return ELBOTerms(log_likelihood, gaussian_kl_per_dim(mean, log_var))
        return ELBOTerms(log_likelihood, (-gaussian_entropy(log_var) - log_prior).unsqueeze(-1))

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)``: batch shape, nats; N(0, I) unless the model has a prior of its own."""
        return gaussian_log_prob(z, 0.0, 0.0) if self.prior is None else self.prior.log_prob(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x, z) = log p(z) + log p(x|z)``: batch shape, nats."""
        return self.prior_log_prob(z) + self.decoder.log_prob(x, z)

    def log_weights(
        self,
        x: Tensor,
        *,
        num_samples: int,
        generator: torch.Generator | None = None,
        stop_score: bool = False,
    ) -> Tensor:
        """``log w_k = log p(x, z_k) - log q(z_k|x)`` of K reparametrised samples: ``([E,] K, B)``, nats.

        The K samples are the second dimension from the end: ``iwae_bound(log_w, dim=-2)``. With
        ``stop_score`` the encoder's parameters inside ``log q`` are held fixed, as path gradients need them
        (to train with DReG take :func:`dgm_course.vae.dreg_loss`). ``x (B, m)``, or ``(E, B, m)`` for stacked
        members. Ledger I1. Raises ``ValueError`` on another shape or no samples.
        """
        z, log_q = self.posterior_sample(
            x, num_samples=num_samples, generator=generator, stop_score=stop_score
        )
        return self.log_joint(x, z) - log_q

    def posterior_sample(
        self,
        x: Tensor,
        *,
        num_samples: int,
        generator: torch.Generator | None = None,
        stop_score: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """K reparametrised samples ``z ([E,] K, B, d)`` of q(z|x) and their ``log q(z|x) ([E,] K, B)``, nats.

        All that importance weights need to know of the posterior: a model with another one replaces this.
        Arguments and errors as in :meth:`log_weights`.
        """
        self._check_draw(x, num_samples)
        mean, log_var = self.encode(x)
        z = self._draw(mean, log_var, num_samples, generator)
        if stop_score:
            mean, log_var = mean.detach(), log_var.detach()
        mean, log_var = mean.unsqueeze(self._sample_dim), log_var.unsqueeze(self._sample_dim)
        return z, gaussian_log_prob(z, mean, log_var)

    def posterior_log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """``log q(z|x)`` of any z: ``z ([E,] S, B, d)`` and ``x (B, m)`` give ``([E,] S, B)``, nats.

        For a grid of z: ``z.unsqueeze(1)`` has the shape ``(S, 1, d)`` and meets every x.
        """
        mean, log_var = (value.unsqueeze(self._sample_dim) for value in self.encode(x))
        return gaussian_log_prob(z, mean, log_var)

    def _check_draw(self, x: Tensor, num_samples: int) -> None:
        """``ValueError`` without samples, or for an x with other batch dimensions."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}: ask for some samples")
        if x.dim() != 2 and not (x.dim() == 3 and self.members is not None):
            raise ValueError(
                f"x must be (B, m), or (E, B, m) for stacked members, got {tuple(x.shape)}: flatten its "
                "batch dimensions"
            )

    @property
    def _sample_dim(self) -> int:
        return 0 if self.members is None else 1

    def _draw(
        self, mean: Tensor, log_var: Tensor, num_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        """S samples of q(z|x): ``(S, B, d)`` or ``(E, S, B, d)``."""
        z = gaussian_sample(mean, log_var, generator=generator, sample_shape=(num_samples,))
        return z.movedim(0, self._sample_dim)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` draws of x from the model: ``(n, m)``, or ``(E, n, m)``, each member with its own z."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        stack = () if self.members is None else (self.members,)
        shape = (*stack, n, self.latent_dim)
        if self.prior is not None and members_of(self.prior) == self.members:
            z = self.prior.sample(n, generator=generator)
        elif self.prior is not None:  # one prior that all members share
            z = self.prior.sample(self.members * n, generator=generator).reshape(shape)
        else:
            reference = next(self.parameters())
            z = torch.randn(shape, generator=generator, dtype=reference.dtype, device=reference.device)
        with torch.no_grad():
            return self.decoder.sample(z, generator)


def vae_loss(
    terms: ELBOTerms,
    *,
    beta: float | Tensor = 1.0,
    free_bits: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Minus the training objective: ``-(mean_B log_likelihood - beta sum_j max(free_bits, mean_B KL_j))``.

    ``beta = 1, free_bits = 0`` is the ELBO. The mean is over the last batch dimension only, so the result is
    a scalar, or ``(E,)`` for stacked members (``beta`` may then be ``(E,)`` too). ``weights (B,)``, summing
    to one, replace the plain mean: an expectation over an enumerated data set. Under a prior of the model's
    own the KL is one term, and ``free_bits`` a floor for all of it. Ledger C5, C7, C8.
    """
    log_likelihood = _batch_mean(terms.log_likelihood.unsqueeze(-1), weights).squeeze(-1)
    return beta * free_bits_kl(terms.kl_per_dim, free_bits, weights=weights) - log_likelihood


def free_bits_kl(kl_per_dim: Tensor, free_nats: float, *, weights: Tensor | None = None) -> Tensor:
    """The KL term under free bits: ``sum_j max(free_nats, mean_B KL_j)``, ``(..., B, d) -> (...)``.

    Below ``free_nats`` a dimension costs the same whatever it uses: its gradient is exactly zero, there is no
    pressure to use less. Nothing forces it to use more either. ``weights`` as in :func:`vae_loss`.
    Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow". Ledger C8.
    Raises ``ValueError`` for negative ``free_nats``.
    """
    if free_nats < 0:
        raise ValueError(f"free_nats must be 0 or more, got {free_nats}: a KL divergence is never negative")
    kl = _batch_mean(kl_per_dim, weights)  # (..., d)
    return (kl.clamp(min=free_nats) if free_nats > 0 else kl).sum(-1)


def kl_weight(step: int, warmup_steps: int) -> float:
    """KL annealing: the weight rises linearly from 0 at step 0 to 1 at ``warmup_steps`` and stays there.

    Without warm-up steps it is 1 throughout. Bowman et al. 2016, "Generating sentences from a continuous
    space". Ledger C7. Raises ``ValueError`` for negative arguments.

    >>> [kl_weight(step, 4) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"step and warmup_steps must be 0 or more, got {step} and {warmup_steps}")
    return 1.0 if step >= warmup_steps else step / warmup_steps


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    """Which latent units carry information: ``Var_x E_q[z_j] > threshold``, ``(..., n, d) -> (..., d)``.

    ``means`` are the posterior means of n data points, the variance is the population's (1/n).
    Burda et al. 2016, "Importance weighted autoencoders". Ledger C9. Raises ``ValueError`` without data.
    """
    if means.dim() < 2 or means.shape[-2] == 0:
        raise ValueError(
            f"means must be (..., n, d) with n >= 1, got shape {tuple(means.shape)}: pass the posterior "
            "means of a whole data set, one row each"
        )
    return means.var(dim=-2, correction=0) > threshold


def _batch_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the batch: ``(..., B, d) -> (..., d)``."""
    if weights is None:
        return values.mean(-2)
    if weights.shape != values.shape[-2:-1]:
        raise ValueError(
            f"weights must be one probability for each of the {values.shape[-2]} rows, got shape "
            f"{tuple(weights.shape)}"
        )
    return (weights.to(values.dtype)[:, None] * values).sum(-2)
