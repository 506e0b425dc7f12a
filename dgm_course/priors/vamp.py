"""The VampPrior: the aggregated posterior of a few made-up data points, which are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.mixtures import mixture_log_prob, mixture_sample
from dgm_course.nets import members_of
from dgm_course.priors.base import Prior, check_count


class VampPrior(Prior):
    """``p(z) = (1/K) sum_k q(z|u_k)``: the encoder's own posteriors at K learned *pseudo-inputs* u_k.

    ``encoder`` is the VAE's, ``(..., m) -> (..., 2d)`` (means, then log-variances); it is shared, not copied:
    trained jointly, the prior moves it too. On a frozen encoder train :meth:`own_parameters`, the
    pseudo-inputs alone. ``pseudo_inputs ([E,] K, m)`` are the starting points, such as some data points.
    ``bounds = (low, high)`` keeps them in the data's range: they are then ``low + (high - low)
    sigmoid(logits)``, and starting points at an end are moved inwards by 5 % of the range.

    N(0, I) need not be among these densities: with few pseudo-inputs, or an encoder whose posteriors are
    narrow at all inputs, it can be worse (Ledger S5). Tomczak & Welling 2018, "VAE with a VampPrior". Raises
    ``ValueError`` for pseudo-inputs of another shape or kind, or out of bounds.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pseudo_inputs: Tensor,
        latent_dim: int,
        *,
        bounds: tuple[float, float] | None = None,
        members: int | None = None,
    ) -> None:
        super().__init__(latent_dim, members)
        self.encoder = encoder
        self.bounds = bounds
        wanted = 2 if members is None else 3
        fits = pseudo_inputs.dim() == wanted and pseudo_inputs.shape[-2] > 0
        if not fits or (members is not None and len(pseudo_inputs) != members):
            raise ValueError(
                f"pseudo_inputs must be (K, m), or (E, K, m) with members=E, and K >= 1, got shape "
                f"{tuple(pseudo_inputs.shape)} and members={members}: one row for each pseudo-input, and for "
                "a stack one set for each member"
            )
        if members_of(encoder) not in (None, members):
            raise ValueError(
                f"the prior of a stack of encoders needs pseudo-inputs for each, got {members_of(encoder)} "
                f"encoders and members={members}: pass members={members_of(encoder)}"
            )
        if not pseudo_inputs.is_floating_point():
            raise ValueError(f"pseudo_inputs are trained, got {pseudo_inputs.dtype}: convert them to float")
        start = pseudo_inputs.detach().clone()
        if bounds is not None:
            low, high = bounds
            if not low < high or not bool(((start >= low) & (start <= high)).all()):
                raise ValueError(
                    f"pseudo_inputs must lie within bounds=(low, high) with low < high, got {bounds} and "
                    f"values from {start.min().item():g} to {start.max().item():g}: widen the bounds"
                )
            start = torch.logit(((start - low) / (high - low)).clamp(0.05, 0.95))
        self.raw = nn.Parameter(start)

    @property
    def pseudo_inputs(self) -> Tensor:
        """``u ([E,] K, m)``, within the bounds."""
        if self.bounds is None:
            return self.raw
        low, high = self.bounds
        return low + (high - low) * torch.sigmoid(self.raw)

    def components(self) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|u_k): ``([E,] K, d)`` each."""
        parameters = self.encoder(self.pseudo_inputs)
        if parameters.shape[-1] != 2 * self.latent_dim:
            raise ValueError(
                f"the encoder must give 2 * latent_dim = {2 * self.latent_dim} numbers (means, then "
                f"log-variances), got {parameters.shape[-1]}: pass the VAE's encoder and its latent_dim"
            )
        mean, log_var = parameters.chunk(2, dim=-1)
        return mean, log_var

    def own_parameters(self) -> list[nn.Parameter]:
        """The pseudo-inputs; the encoder is the VAE's."""
        return [self.raw]

    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)``; gradients reach z, the pseudo-inputs and the encoder."""
        self._check_z(z)
        return mixture_log_prob(z, *self.components())

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``([E,] n, d)``."""
        check_count(n)
        return mixture_sample(n, *self.components(), generator=generator)
