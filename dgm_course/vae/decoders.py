"""Decoders p(x | z): a network's output read as the parameters of a distribution over x.

Each has ``log_prob(x, z) -> batch`` in nats and ``sample(z, generator) -> x``; those that are independent
over the pixels given z have ``mean(z)`` as well. ``x (..., m)`` and ``z (..., d)`` broadcast over their batch
dimensions; with stacked networks (see :mod:`dgm_course.nets`) results start with the member dimension E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgm_course.gaussian import gaussian_log_prob, gaussian_sample
from dgm_course.nets import Stackable, members_of
from dgm_course.pixel_models import categorical_log_prob, categorical_sample


class Decoder(Stackable):
    """What the decoders share: a network, its members, and the alignment of x with the network's output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.members = members_of(net)

    def _align(self, x: Tensor, parameters: Tensor, event_dims: int = 1) -> Tensor:
        """``x (E, B, m)`` beside parameters ``(E, S, B, m)``: insert the missing sample dimensions."""
        missing = parameters.dim() - event_dims + 1 - x.dim()
        if self.members is not None and x.dim() > 2 and missing > 0:
            x = x.reshape(x.shape[0], *[1] * missing, *x.shape[1:])
        if x.shape[-1] != parameters.shape[-event_dims]:
            raise ValueError(
                f"x must have as many entries as the decoder's network describes, got x {tuple(x.shape)} and "
                f"parameters {tuple(parameters.shape)}: flatten x, or change the network's output size"
            )
        return x


class BernoulliDecoder(Decoder):
    """Independent binary pixels: ``p(x|z) = prod_j Bern(x_j; sigmoid(logits_j))``, ``logits = net(z)``.

    Shapes: the net gives ``(..., m)``; x is 0 or 1. Stable at extreme logits. Raises ``ValueError`` for
    values outside [0, 1] (grey levels in between give the usual cross-entropy, which is no density).
    """

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """``sum_j log p(x_j | z)``: batch shape, nats."""
        logits = self.net(z)  # (..., m)
        return _bernoulli_log_prob(self._align(x, logits), logits).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        """E[x | z] = ``sigmoid(net(z))``, ``(..., m)``."""
        return torch.sigmoid(self.net(z))

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A binary picture for every z: ``(..., m)``."""
        return torch.bernoulli(self.mean(z), generator=generator)


class GaussianDecoder(Decoder):
    """Gaussian with one noise variance: ``p(x|z) = N(net(z), exp(log_var) I)``.

    ``log_var`` is a number, or ``"learned"``: one parameter (one for each member if stacked), starting at 0.
    With an affine net this is the linear VAE of Ledger C5. Raises ``ValueError`` for another ``log_var``.
    """

    def __init__(self, net: nn.Module, log_var: float | str = 0.0) -> None:
        super().__init__(net)
        if isinstance(log_var, str) and log_var != "learned":
            raise ValueError(f"log_var must be a number or 'learned', got {log_var!r}")
        reference = next(net.parameters(), torch.zeros(()))
        if log_var == "learned":
            stack = () if self.members is None else (self.members,)
            self.log_var = nn.Parameter(reference.detach().new_zeros(stack))
        else:
            self.register_buffer("log_var", reference.detach().new_tensor(log_var))

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """``log N(x; net(z), exp(log_var) I)``: batch shape, nats."""
        mean = self.mean(z)  # (..., m)
        return gaussian_log_prob(self._align(x, mean), mean, self._log_var_like(mean))

    def mean(self, z: Tensor) -> Tensor:
        """E[x | z] = ``net(z)``, ``(..., m)``."""
        return self.net(z)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean plus noise: ``(..., m)``."""
        mean = self.mean(z)
        return gaussian_sample(mean, self._log_var_like(mean), generator=generator)

    def _log_var_like(self, mean: Tensor) -> Tensor:
        """Shape it as ``(E, 1, ..., 1)`` if there is one for each member."""
        return self.log_var.reshape(-1, *[1] * (mean.dim() - 1)) if self.log_var.dim() else self.log_var


class CategoricalDecoder(Decoder):
    """Independent pixels with L levels: ``p(x|z) = prod_j softmax(logits_j)[x_j]``.

    The net gives ``(..., m * L)``, level fastest. ``x`` holds levels 0, ..., L - 1, in a floating-point or an
    integer tensor. Raises ``ValueError`` for other values.
    """

    def __init__(self, net: nn.Module, num_levels: int) -> None:
        super().__init__(net)
        self.num_levels = _checked_levels(num_levels)

    def logits(self, z: Tensor) -> Tensor:
        """``(..., m, L)``, not normalised."""
        flat = self.net(z)
        if flat.shape[-1] % self.num_levels:
            raise ValueError(
                f"the net's output size must be a multiple of num_levels={self.num_levels}, got "
                f"{flat.shape[-1]}: give it m * num_levels outputs"
            )
        return flat.unflatten(-1, (-1, self.num_levels))

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """``sum_j log p(x_j | z)``: batch shape, nats."""
        logits = self.logits(z)
        return categorical_log_prob(self._align(x, logits, 2), logits).sum(-1)

    def mean(self, z: Tensor) -> Tensor:
        """Mean level ``sum_l l p(l | z)`` of every pixel: ``(..., m)``."""
        probabilities = torch.softmax(self.logits(z), dim=-1)
        return probabilities @ torch.arange(self.num_levels).to(probabilities)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels, in the dtype of the logits: ``(..., m)``."""
        return categorical_sample(self.logits(z), generator)


class AutoregressiveDecoder(Decoder):
    """Each pixel given z and the earlier ones: ``p(x|z) = prod_j p(x_j | x_1..x_{j-1}, z)``.

    ``net(x, z)`` gives logits ``(..., m, outputs)`` whose entry j depends on earlier pixels only, and has an
    attribute ``num_inputs = m`` (``MaskedMLP``, ``WindowDecoderNet``, ``PixelCNNAdapter``). One output a
    pixel: binary x. ``num_levels`` outputs: levels 0, ..., L - 1, which the net sees divided by L - 1.
    With the full past it can represent any distribution of binary x without z. Ledger C6.
    """

    def __init__(self, net: nn.Module, num_levels: int = 2) -> None:
        super().__init__(net)
        self.num_levels = _checked_levels(num_levels)

    def logits(self, x: Tensor, z: Tensor) -> Tensor:
        """``(..., m, outputs)``: of every pixel, given the earlier ones in ``x`` and z."""
        logits = self.net(x.to(z.dtype) / (self.num_levels - 1), z)
        allowed = (1, 2) if self.num_levels == 2 else (self.num_levels,)
        if logits.shape[-1] not in allowed:
            raise ValueError(
                f"the net must give {' or '.join(map(str, allowed))} outputs a pixel for num_levels="
                f"{self.num_levels}, got {logits.shape[-1]}: set its outputs a pixel to match"
            )
        return logits

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """``sum_j log p(x_j | x_1..x_{j-1}, z)``: batch shape, nats, in one pass of the network."""
        logits = self.logits(x, z)
        x = self._align(x, logits, 2)
        if logits.shape[-1] == 1:
            return _bernoulli_log_prob(x, logits.squeeze(-1)).sum(-1)
        return categorical_log_prob(x, logits).sum(-1)

    @torch.no_grad()
    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures ``(..., m)``, pixel after pixel: m passes of the network."""
        stack = () if self.members is None or z.dim() > 2 else (self.members,)
        x = z.new_zeros(*stack, *z.shape[:-1], self.net.num_inputs)
        for j in range(self.net.num_inputs):
            logits = self.logits(x, z)[..., j, :]  # (..., outputs)
            if logits.shape[-1] == 1:
                x[..., j] = torch.bernoulli(torch.sigmoid(logits.squeeze(-1)), generator=generator)
            else:
                x[..., j] = categorical_sample(logits, generator)
        return x


def _bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """``x log sigmoid(l) + (1 - x) log sigmoid(-l)``, entry by entry and without overflow."""
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):  # true for NaN, too
        raise ValueError(
            f"binary pixels must lie in [0, 1], got values from {float(x.min()):g} to {float(x.max()):g}: "
            "binarise x, or use a decoder with num_levels"
        )
    logits, x = torch.broadcast_tensors(logits, x.to(logits.dtype))
    return -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")


def _checked_levels(num_levels: int) -> int:
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}: a pixel needs two values")
    return num_levels
