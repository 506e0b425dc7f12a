"""The flow prior: a normalizing flow over the latents. Its fast direction decides what it is good for."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.flows import Flow, Transform, autoregressive_transform, realnvp_transform
from dgm_course.nets import members_of
from dgm_course.priors.base import Prior, check_count


class FlowPrior(Prior):
    """``log p(z) = log N(f(z); 0, I) + log|det J_f(z)|``, the flow's ``forward`` making latents of noise.

    Training needs the density at the encoder's samples, the flow's ``inverse``: one network pass a layer for
    :meth:`realnvp` and :meth:`maf`; for :meth:`iaf` it is the sequential direction, d passes. Sampling is
    the other way round. Ledger S5, S6. ``transform`` acts on vectors ``(..., d)`` and may be a stack of E.
    Raises ``ValueError`` if it acts on images.
    """

    def __init__(self, transform: Transform, latent_dim: int) -> None:
        super().__init__(latent_dim, members_of(transform))
        self.flow = Flow(transform, latent_dim)

    @classmethod
    def realnvp(
        cls,
        latent_dim: int,
        *,
        num_layers: int = 4,
        hidden: int = 64,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FlowPrior:
        """Affine couplings with alternating masks and two-layer conditioners; starts as N(0, I)."""
        transform = realnvp_transform(
            latent_dim,
            num_layers=num_layers,
            hidden=(hidden, hidden),
            members=members,
            generator=generator,
        )
        return cls(transform, latent_dim)

    @classmethod
    def maf(
        cls,
        latent_dim: int,
        *,
        num_layers: int = 2,
        hidden: int = 64,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FlowPrior:
        """Masked autoregressive flows, the order reversed between them; starts as N(0, I)."""
        return cls._autoregressive("maf", latent_dim, num_layers, hidden, members, generator)

    @classmethod
    def iaf(
        cls,
        latent_dim: int,
        *,
        num_layers: int = 2,
        hidden: int = 64,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FlowPrior:
        """Inverse autoregressive flows: the wrong way round for a prior, here to be measured. Ledger S6."""
        return cls._autoregressive("iaf", latent_dim, num_layers, hidden, members, generator)

    @classmethod
    def _autoregressive(
        cls,
        kind: str,
        latent_dim: int,
        num_layers: int,
        hidden: int,
        members: int | None,
        generator: torch.Generator | None,
    ) -> FlowPrior:
        transform = autoregressive_transform(
            kind,
            latent_dim,
            num_layers=num_layers,
            hidden=(hidden, hidden),
            members=members,
            generator=generator,
        )
        return cls(transform, latent_dim)

    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)``, through the flow's ``inverse``."""
        self._check_z(z)
        if self.members is not None and z.dim() == 2:  # (E, d): not rows that all members share
            return self.flow.log_prob(z.unsqueeze(1)).squeeze(1)
        return self.flow.log_prob(z)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``([E,] n, d)``, through the flow's ``forward``."""
        check_count(n)
        if self.members is None:
            return self.flow.sample(n, generator=generator)
        reference = next(self.flow.parameters())
        shape = (self.members, n, self.latent_dim)
        noise = torch.randn(shape, generator=generator, dtype=reference.dtype, device=reference.device)
        return self.flow.transform(noise)[0]
