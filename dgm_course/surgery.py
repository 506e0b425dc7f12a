"""ELBO surgery: what the KL term of a data set's ELBO is made of, sample by sample.

The encoder turns n data points into n Gaussians q(z|x_i). Their mixture ``q_agg(z) = (1/n) sum_i q(z|x_i)``
is the *aggregated posterior*, and the mean KL splits into the information that z carries about the index i
and the distance of q_agg from the prior::

    (1/n) sum_i KL(q(z|x_i) || p(z)) = I_q[x, z] + KL(q_agg(z) || p(z))

Here each term is a log-ratio at the same samples z ~ q(z|x_i), so the identity holds for every single one of
them. Hoffman & Johnson 2016, "ELBO surgery: yet another way to carve up the variational evidence lower
bound". Ledger S1 to S4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dgm_course.gaussian import gaussian_log_prob, gaussian_sample
from dgm_course.mixtures import mixture_log_prob, mixture_responsibilities

LogDensity = Callable[[Tensor], Tensor]  # z ([E,] S, n, d) -> ([E,] S, n)


class LatentVariableModel(Protocol):
    """What :func:`vae_surgery` asks of a model: :class:`dgm_course.vae.VAE` has it."""

    decoder: Any

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x)."""

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)``."""


#: entries of a table of points times components times dimensions that is held at once
_TABLE = 1 << 18


@dataclass(frozen=True)
class Estimate:
    """A mean over the data, in nats, and its standard error over the draws of z: ``([E])`` each."""

    mean: Tensor
    standard_error: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """The estimate from values at S samples of each of n data points: ``(..., S, n) -> (...)``.

        The data are fixed and every point has S samples of its own, so only the variance *within* points
        counts: ``se^2 = (1/n^2) sum_i var_i / S``. One sample shows no variance within a point; with
        ``S = 1`` the spread over the points stands in, which errs on the large side. Raises ``ValueError``
        for another shape, or one sample of one point.
        """
        if values.dim() < 2 or values.shape[-1] == 0 or values.shape[-2] * values.shape[-1] < 2:
            raise ValueError(
                f"values must be (..., S, n), samples times data points, two or more in all, got shape "
                f"{tuple(values.shape)}: draw more samples"
            )
        samples, n = values.shape[-2:]
        if samples == 1:
            variance = values.squeeze(-2).var(-1) / n
        else:
            variance = values.var(-2).mean(-1) / (samples * n)
        return cls(values.mean((-2, -1)), variance.sqrt())


@dataclass(frozen=True)
class ELBOSurgery:
    """Four log-densities at the same samples ``z_is ~ q(z|x_i)``: ``([E,] S, n)`` each, in nats.

    ``log_q`` is log q(z|x_i), ``log_aggregate`` log q_agg(z), ``log_prior`` log p(z) and ``log_likelihood``
    log p(x_i|z), or None. The properties are the terms of the ELBO, one log-ratio for each sample: averages
    over all samples (:meth:`Estimate.of`) estimate the terms, and the identities hold before averaging.
    Ledger S1, S3.
    """

    log_q: Tensor
    log_aggregate: Tensor
    log_prior: Tensor
    log_likelihood: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """``log q(z|x_i) - log p(z)``; its mean is (1/n) sum_i KL(q(z|x_i) || p(z)). Ledger S1."""
        return self.log_q - self.log_prior

    @property
    def mutual_information(self) -> Tensor:
        """``log q(z|x_i) - log q_agg(z)``; its mean is I_q[x, z]. Ledger S1, S2.

        Never above log n (but for rounding) where the mixture holds the points' own posteriors.
        """
        return self.log_q - self.log_aggregate

    @property
    def marginal_kl(self) -> Tensor:
        """``log q_agg(z) - log p(z)``; its mean is KL(q_agg || p), the only place of the prior. Ledger S3."""
        return self.log_aggregate - self.log_prior

    @property
    def reconstruction(self) -> Tensor:
        """``log p(x_i|z)``; ``ValueError`` if no likelihood was given."""
        if self.log_likelihood is None:
            raise ValueError(
                "this surgery has no reconstruction term: pass log_likelihood=lambda z: "
                "vae.decoder.log_prob(x, z) to elbo_surgery"
            )
        return self.log_likelihood

    @property
    def elbo(self) -> Tensor:
        """``reconstruction - mutual_information - marginal_kl``; its mean is the ELBO. Ledger S3."""
        return self.reconstruction - self.mutual_information - self.marginal_kl


def elbo_surgery(
    mean: Tensor,
    log_var: Tensor,
    *,
    log_prior: LogDensity | None = None,
    log_likelihood: LogDensity | None = None,
    components: tuple[Tensor, Tensor] | None = None,
    leave_one_out: bool = False,
    num_samples: int = 8,
    generator: torch.Generator | None = None,
) -> ELBOSurgery:
    """The terms of the ELBO at S samples of each of n posteriors N(mean_i, diag exp(log_var_i)).

    ``mean`` and ``log_var`` are what the encoder makes of the data: ``(n, d)``, or ``(E, n, d)`` for a stack
    of models. ``log_prior`` (default: N(0, I)) and ``log_likelihood`` take ``z ([E,] S, n, d)`` to
    ``([E,] S, n)``, such as ``prior.log_prob`` and ``lambda z: vae.decoder.log_prob(x, z)``. Gradients flow.

    The aggregated posterior is that of the same n points. For held-out points pass ``components``, the mean
    and log-variance of the *training* data: the marginal term then is ``log q_agg - log p`` at held-out
    samples, which is what held-out data gain when q_agg replaces p (Ledger S4). ``leave_one_out`` guesses
    that from the training data alone: point i sees the mixture of the others. In both cases the middle term
    is no mutual information any more, may exceed log n and may be infinite.

    Costs S n^2 d (streamed, memory O(S n d)). Ledger S1, S3, S4; Hoffman & Johnson 2016. Raises
    ``ValueError`` for shapes that do not fit, no samples, both kinds of held-out, or one point left out of
    one.
    """
    _check(mean, log_var, num_samples)
    if leave_one_out and components is not None:
        raise ValueError(
            "leave_one_out concerns points that are components themselves, got components= as well: leave "
            "one of the two out"
        )
    if leave_one_out and mean.shape[-2] < 2:
        raise ValueError("leave_one_out needs two data points or more, got one: nothing would be left")
    z = _samples(mean, log_var, num_samples, generator)  # ([E,] S, n, d)
    log_q = gaussian_log_prob(z, mean.unsqueeze(-3), log_var.unsqueeze(-3))  # ([E,] S, n)
    own = torch.arange(mean.shape[-2], device=mean.device).expand(log_q.shape) if leave_one_out else None
    means, log_vars = (mean, log_var) if components is None else components
    fits = means.shape == log_vars.shape and means.dim() == mean.dim() and means.shape[-2] > 0
    if not fits or (means.shape[:-2], means.shape[-1]) != (mean.shape[:-2], mean.shape[-1]):
        raise ValueError(
            f"components must be the mean and log-variance of the training data under the same encoder, "
            f"shaped like mean {tuple(mean.shape)} but for n, got {tuple(means.shape)} and "
            f"{tuple(log_vars.shape)}: pass what the encoder makes of the training set"
        )
    log_aggregate = mixture_log_prob(z, means, log_vars, exclude=own)
    prior = gaussian_log_prob(z, 0.0, 0.0) if log_prior is None else log_prior(z)
    likelihood = None if log_likelihood is None else log_likelihood(z)
    for name, value in (("log_prior", prior), ("log_likelihood", likelihood)):
        if value is not None and value.shape != log_q.shape:
            raise ValueError(
                f"{name} must give one number for each sample, {tuple(log_q.shape)} for z of shape "
                f"{tuple(z.shape)}, got {tuple(value.shape)}: sum over the dimensions, not over the samples"
            )
    return ELBOSurgery(log_q, log_aggregate, prior, likelihood)


def vae_surgery(
    vae: LatentVariableModel,
    x: Tensor,
    *,
    components: tuple[Tensor, Tensor] | None = None,
    leave_one_out: bool = False,
    num_samples: int = 8,
    generator: torch.Generator | None = None,
) -> ELBOSurgery:
    """The terms of a VAE's ELBO on a data set ``x (n, m)``, under its own prior: ``([E,] S, n)`` each, nats.

    :func:`elbo_surgery` of ``vae.encode(x)``, ``vae.prior_log_prob`` and ``vae.decoder.log_prob``, whose
    arguments and errors the others are. For held-out data pass the training data's codes as ``components``.
    Ledger S3.
    """
    if not getattr(vae, "gaussian_posterior", True):
        raise ValueError("surgery takes Gaussian posteriors, this VAE has a flow: see vae.grid_terms")
    mean, log_var = vae.encode(x)
    return elbo_surgery(
        mean, log_var, log_prior=vae.prior_log_prob, log_likelihood=lambda z: vae.decoder.log_prob(x, z),
        components=components, leave_one_out=leave_one_out, num_samples=num_samples, generator=generator,
    )  # fmt: skip


def elbo_surgery_per_dim(
    mean: Tensor,
    log_var: Tensor,
    *,
    log_prior: LogDensity | None = None,
    num_samples: int = 8,
    generator: torch.Generator | None = None,
) -> ELBOSurgery:
    """The same for each latent dimension by itself: terms ``([E,] d, S, n)``.

    Dimension j has its own aggregated posterior ``(1/n) sum_i q(z_j|x_i)``, so that ``KL_j = I_q[x, z_j] +
    KL(q_agg(z_j) || p(z_j))``, pathwise. The prior factorises: ``log_prior`` takes ``z ([E,] d, S, n, 1)``
    to ``([E,] d, S, n)`` (default: standard normal). The KL terms add up to the whole one, the other two do
    not: the sum of the marginal terms lacks the total correlation of q_agg. Ledger S1, C9; errors as in
    :func:`elbo_surgery`.
    """
    _check(mean, log_var, num_samples)
    stack, (n, dim) = mean.shape[:-2], mean.shape[-2:]
    shape = (*stack, dim, num_samples, n)

    def columns(values: Tensor) -> Tensor:  # ([E,] n, d) -> (E d, n, 1)
        return values.movedim(-1, -2).reshape(-1, n, 1)

    def prior(z: Tensor) -> Tensor:
        if log_prior is None:
            return gaussian_log_prob(z, 0.0, 0.0)
        values = log_prior(z.reshape(*stack, dim, *z.shape[1:]))
        if values.shape != shape:
            raise ValueError(
                f"log_prior must give one number for each sample of each dimension, {shape} for z of shape "
                f"{(*shape, 1)}, got {tuple(values.shape)}: it takes the one coordinate z[..., 0]"
            )
        return values.reshape(z.shape[:-1])

    terms = elbo_surgery(
        columns(mean), columns(log_var), log_prior=prior, num_samples=num_samples, generator=generator
    )
    return ELBOSurgery(*(t.reshape(shape) for t in (terms.log_q, terms.log_aggregate, terms.log_prior)))


def mutual_information(
    mean: Tensor, log_var: Tensor, *, num_samples: int = 8, generator: torch.Generator | None = None
) -> Estimate:
    """``I_q[x, z] = (1/n) sum_i KL(q(z|x_i) || q_agg(z))`` of n data points, in nats, between 0 and log n.

    0 if all posteriors are the same, log n if no two of them overlap: then z tells which point it came from.
    An encoder of few points can therefore not show more than log n nats, however narrow its posteriors.
    Arguments and errors as in :func:`elbo_surgery`. Ledger S2.
    """
    terms = elbo_surgery(mean, log_var, num_samples=num_samples, generator=generator)
    return Estimate.of(terms.mutual_information)


def index_information(
    mean: Tensor, log_var: Tensor, *, num_samples: int = 8, generator: torch.Generator | None = None
) -> Estimate:
    """``I_q[x, z]`` as index-code mutual information, ``log n - E_z H[q(i|z)]``: how well z tells the index.

    ``q(i|z) = q(z|x_i) / sum_j q(z|x_j)``. For the same samples it averages the first form over all indices
    that could have given z, so that each sample's value lies in [0, log n] and the variance over all samples
    is no larger. As many pairs as :func:`mutual_information`, but by plain differences, tens of times as
    slow; in blocks of bounded memory, unless gradients are recorded (then all S n^2 d numbers stay). Ledger
    S2; Hoffman & Johnson 2016. Errors as in :func:`elbo_surgery`.
    """
    _check(mean, log_var, num_samples)
    n = mean.shape[-2]
    z = _samples(mean, log_var, num_samples, generator)  # ([E,] S, n, d)
    block = max(1, _TABLE // (mean.numel() * num_samples))
    parts = []
    for points in z.split(block, dim=-2):
        chance = mixture_responsibilities(points, mean, log_var)  # ([E,] S, block, n)
        log_chance = chance.clamp(min=torch.finfo(chance.dtype).tiny).log()  # keeps gradients finite
        parts.append(math.log(n) + (chance * log_chance).sum(-1))
    return Estimate.of(torch.cat(parts, dim=-1))


def marginal_kl(
    mean: Tensor,
    log_var: Tensor,
    log_prior: LogDensity | None = None,
    *,
    num_samples: int = 8,
    generator: torch.Generator | None = None,
) -> Estimate:
    """``KL(q_agg(z) || p(z))`` of n data points, in nats: what a better prior could gain. Ledger S3, S4.

    Arguments and errors as in :func:`elbo_surgery`.
    """
    terms = elbo_surgery(mean, log_var, log_prior=log_prior, num_samples=num_samples, generator=generator)
    return Estimate.of(terms.marginal_kl)


def _samples(mean: Tensor, log_var: Tensor, num_samples: int, generator: torch.Generator | None) -> Tensor:
    """S samples of each posterior: ``([E,] S, n, d)``."""
    z = gaussian_sample(mean, log_var, generator=generator, sample_shape=(num_samples,))
    return z.movedim(0, -3)


def _check(mean: Tensor, log_var: Tensor, num_samples: int) -> None:
    if mean.shape != log_var.shape or mean.dim() not in (2, 3) or mean.shape[-2] == 0:
        raise ValueError(
            f"mean and log_var must both be (n, d), or (E, n, d) for a stack, with n >= 1, got "
            f"{tuple(mean.shape)} and {tuple(log_var.shape)}: pass what the encoder makes of the data set"
        )
    if not mean.is_floating_point() or mean.shape[-1] == 0:
        raise ValueError(
            f"mean and log_var must be floating-point with d >= 1, got {mean.dtype} and "
            f"{tuple(mean.shape)}: pass what the encoder makes of the data set"
        )
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: ask for some samples")
