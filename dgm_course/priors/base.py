"""What a prior is, the standard normal, and the objective of a prior under a frozen encoder."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from dgm_course.gaussian import gaussian_log_prob, gaussian_sample
from dgm_course.nets import Stackable


class Prior(Stackable, abc.ABC):
    """A density p(z) over latents of ``latent_dim`` entries, or a stack of E of them (``members=E``).

    Shapes: ``log_prob`` takes ``z (..., d)`` to ``(...)``, nats, and of a stack ``(E, ..., d)`` to
    ``(E, ...)``; ``sample(n)`` gives ``(n, d)`` or ``(E, n, d)``. Raises ``ValueError`` for
    ``latent_dim < 1``. Ledger S3, S5.
    """

    def __init__(self, latent_dim: int, members: int | None = None) -> None:
        super().__init__(members)
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}: pass the VAE's latent_dim")
        self.latent_dim = latent_dim

    @abc.abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)`` in nats: ``([E,] ..., d) -> ([E,] ...)``."""

    @abc.abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` independent latents ``([E,] n, d)``, without gradients. Raises ``ValueError`` for n < 1."""

    def own_parameters(self) -> list[nn.Parameter]:
        """What belongs to the prior alone: all its parameters, but for an encoder that it shares."""
        return list(self.parameters())

    def _check_z(self, z: Tensor) -> None:
        stacked = self.members is not None
        least = 2 if stacked else 1
        if z.dim() < least or z.shape[-1] != self.latent_dim or (stacked and z.shape[0] != self.members):
            stack = f"{self.members}, " if stacked else ""
            raise ValueError(
                f"z must be ({stack}..., {self.latent_dim}), got shape {tuple(z.shape)}: the last dimension "
                "holds one latent" + (", the first the members of the stack" if stacked else "")
            )


class StandardNormalPrior(Prior):
    """N(0, I): nothing to learn. Its ``log_prob`` and ``sample`` follow ``dtype`` and device of a buffer."""

    def __init__(self, latent_dim: int, *, members: int | None = None) -> None:
        super().__init__(latent_dim, members)
        self.register_buffer("mean", torch.zeros(latent_dim))

    def log_prob(self, z: Tensor) -> Tensor:
        """``log N(z; 0, I)``."""
        self._check_z(z)
        return gaussian_log_prob(z, 0.0, 0.0)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``([E,] n, d)``."""
        check_count(n)
        stack = () if self.members is None else (self.members,)
        zeros = self.mean.expand(*stack, n, self.latent_dim)
        return gaussian_sample(zeros, zeros, generator=generator)


def cross_entropy(
    prior: Prior,
    mean: Tensor,
    log_var: Tensor,
    *,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``-E_{q_agg} log p(z)``, from one sample of each posterior: scalar, or ``(E,)`` for a stack, nats.

    ``mean`` and ``log_var ([E,] n, d)`` are a frozen encoder's. Minimising this over the prior minimises the
    forward KL(q_agg || p), from which it differs by the entropy of q_agg: all that the prior can do to the
    ELBO. ``batch_size`` draws that many points with replacement (the same ones for all members), else all are
    used. Ledger S3, S5. Raises ``ValueError`` for shapes that do not fit.
    """
    if mean.shape != log_var.shape or mean.dim() < 2 or mean.shape[-2] == 0:
        raise ValueError(
            f"mean and log_var must both be ([E,] n, d) with n >= 1, got {tuple(mean.shape)} and "
            f"{tuple(log_var.shape)}: pass what the encoder makes of the data set"
        )
    if prior.members is not None and mean.dim() < 3:
        raise ValueError(
            f"a stack of {prior.members} priors needs data for each, ({prior.members}, n, d), got "
            f"{tuple(mean.shape)}: use mean.expand({prior.members}, -1, -1) if all see the same encoder"
        )
    if batch_size is not None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}: use None for all points")
        rows = torch.randint(mean.shape[-2], (batch_size,), generator=generator, device=mean.device)
        mean, log_var = mean[..., rows, :], log_var[..., rows, :]
    return -prior.log_prob(gaussian_sample(mean, log_var, generator=generator)).mean(-1)


def check_count(n: int) -> None:
    """``ValueError`` unless ``n >= 1``."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: ask for some samples")
