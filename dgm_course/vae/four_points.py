"""The toy of four data points: each owns a quadrant, and the posteriors have to tile the prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.flows import autoregressive_transform
from dgm_course.nets import Linear
from dgm_course.vae.decoders import Decoder
from dgm_course.vae.flow_posterior import FlowPosteriorVAE
from dgm_course.vae.model import VAE


class QuadrantDecoder(Decoder):
    """``p(x = i|z)``, i one of four points: the product of ``sigmoid(+-sharpness z_1)`` and the same for z_2.

    ``x (..., 4)`` is one-hot; point 0 owns the quadrant (+, +), then anticlockwise. The four probabilities
    sum to one at every z, so with p(z) = N(0, I) each point has ``p(x = i) = 1/4``, and the posteriors
    ``p(z|x = i) = 4 p(x = i|z) N(z; 0, I)`` tile the prior. Nothing is trained; ``members=E`` if the models
    that share it are stacked. Ledger V4. Raises ``ValueError`` for a sharpness that is not positive, an x
    without four entries, and a z without two.
    """

    def __init__(self, sharpness: float = 20.0, *, members: int | None = None) -> None:
        super().__init__(nn.Identity())
        self.members = members
        if not 0 < sharpness < float("inf"):
            raise ValueError(f"sharpness must be positive and finite, got {sharpness}")
        self.sharpness = sharpness

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x|z)``: ``(..., 4)`` and ``(..., 2)`` broadcast to ``(...)``, in nats."""
        log_probs = self.log_probs(z)
        return (self._align(x, log_probs) * log_probs).sum(-1)

    def log_probs(self, z: Tensor) -> Tensor:
        """``log p(x = i|z)`` of the four points: ``(..., 2) -> (..., 4)``."""
        if z.shape[-1:] != (2,):
            raise ValueError(
                f"the four points have latents (..., 2), a quadrant each, got {tuple(z.shape)}: build the "
                "VAE with latent_dim=2"
            )
        signs = z.new_tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])  # (4, 2)
        return nn.functional.logsigmoid(self.sharpness * z.unsqueeze(-2) * signs).sum(-1)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A one-hot point for every z: ``(..., 2) -> (..., 4)``."""
        flat = self.log_probs(z).exp().reshape(-1, 4)
        drawn = torch.multinomial(flat, 1, generator=generator).reshape(z.shape[:-1])
        return nn.functional.one_hot(drawn, 4).to(z.dtype)


def four_point_vae(
    num_steps: int,
    *,
    sharpness: float = 20.0,
    hidden: int = 32,
    context_dim: int = 8,
    members: int | None = None,
    generator: torch.Generator | None = None,
) -> VAE:
    """The four points with free posteriors: Gaussian for ``num_steps=0``, else that many IAF steps.

    The encoder is a table: mean, log-variance and context of each point are parameters. The steps read the
    point's context; with ``context_dim=0`` all points share one flow. ``members=E`` stacks E of them. Ledger
    V4; Kingma et al. 2016, figure 3. Raises ``ValueError`` for fewer than 0 steps, and sizes that do not fit.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must be 0 (Gaussian posteriors) or more, got {num_steps}")
    decoder = QuadrantDecoder(sharpness, members=members)
    if num_steps == 0:
        return VAE(Linear(4, 4, members=members, generator=generator), decoder, 2)
    encoder = Linear(4, 4 + context_dim, members=members, generator=generator)
    flow = autoregressive_transform(
        "iaf", 2, num_layers=num_steps, hidden=(hidden,), context=context_dim, members=members,
        generator=generator,
    )  # fmt: skip
    return FlowPosteriorVAE(encoder, decoder, 2, flow, context_dim=context_dim)
