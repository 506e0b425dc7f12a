"""Heads: a network's numbers for one pixel, read as a distribution over its levels.

``raw (..., outputs)`` are the network's numbers for a pixel and ``y (..., C)`` its channels' levels; leading
dimensions broadcast.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dgm_course.logistic_mixture import (
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_mean,
    discretized_logistic_mixture_sample,
    rgb_logistic_mixture_log_prob,
    rgb_logistic_mixture_sample,
)
from dgm_course.pixel_models.levels import categorical_log_prob, categorical_sample

#: log s stays above this (in levels): with s = 0.018 a bin already holds all but 2e-12 of the mass.
MIN_LOG_SCALE = -4.0
#: ... and below this plus log L: with s = 400 L levels nearly all mass is in the two outermost bins.
MAX_LOG_SCALE = 6.0


class Head(abc.ABC):
    """What a head knows: the number of levels, of channels, and of a network's outputs a pixel."""

    def __init__(self, num_levels: int, channels: int, outputs: int) -> None:
        if num_levels < 2 or channels not in (1, 3):
            raise ValueError(
                "a head needs at least two levels, and one channel or three, got "
                f"num_levels={num_levels} and channels={channels}: for more channels take the picture entry "
                "by entry, with PixelModel.made"
            )
        self.num_levels, self.channels, self.outputs = num_levels, channels, outputs

    def log_prob(self, y: Tensor, raw: Tensor) -> Tensor:
        """``log P(y)`` of a pixel, in nats: ``(..., C)`` and ``(..., outputs)`` give ``(...)``."""
        if raw.shape[-1] != self.outputs or y.shape[-1] != self.channels:
            raise ValueError(
                f"a pixel has {self.channels} level(s) and {self.outputs} outputs in the last dimension, got "
                f"y {tuple(y.shape)} and raw {tuple(raw.shape)}: set the network's outputs to head.outputs"
            )
        return self._log_prob(y, raw)

    @abc.abstractmethod
    def sample(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels ``(..., C)`` for ``raw (..., outputs)``, in its dtype."""

    @abc.abstractmethod
    def level_log_probs(self, raw: Tensor) -> Tensor:
        """``log P`` of every level of a one-channel pixel: ``(..., outputs) -> (..., L)``; C = 1 only."""

    @abc.abstractmethod
    def mean(self, raw: Tensor) -> Tensor:
        """Mean level of a one-channel pixel: ``(..., outputs) -> (...)``; C = 1 only."""

    @abc.abstractmethod
    def _log_prob(self, y: Tensor, raw: Tensor) -> Tensor: ...

    def _one_channel(self) -> None:
        if self.channels != 1:
            raise ValueError(
                f"this is defined for one channel, and the head has {self.channels}: the channels of a "
                "colour pixel depend on one another, so use log_prob or sample"
            )


class CategoricalHead(Head):
    """One logit for each level, C L in all; levels have no order, channels are independent given the past.

    Ledger D3; van den Oord et al. 2016, "Pixel recurrent neural networks".
    """

    def __init__(self, num_levels: int, *, channels: int = 1) -> None:
        super().__init__(num_levels, channels, channels * num_levels)

    def sample(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A level for each channel."""
        return categorical_sample(self._logits(raw), generator)

    def level_log_probs(self, raw: Tensor) -> Tensor:
        """Log-softmax of the logits."""
        self._one_channel()
        return torch.log_softmax(raw, dim=-1)

    def mean(self, raw: Tensor) -> Tensor:
        """``sum_y y P(y)``."""
        self._one_channel()
        levels = torch.arange(self.num_levels, dtype=raw.dtype, device=raw.device)
        return torch.softmax(raw, dim=-1) @ levels

    def _log_prob(self, y: Tensor, raw: Tensor) -> Tensor:
        return categorical_log_prob(y, self._logits(raw)).sum(-1)

    def _logits(self, raw: Tensor) -> Tensor:
        return raw.unflatten(-1, (self.channels, self.num_levels))


class LogisticMixtureHead(Head):
    """K discretized logistics: 3K numbers for one channel, 10K for three, whatever the number of levels.

    At raw numbers of zero the K components stand evenly over the range, each as wide as its share of it. Raw
    means count halves of the range from there, raw log-scales are added and bent so that s stays above
    0.018 levels, sharp enough for any level, and are cut off where s is 400 times the range. Three channels
    are coupled linearly, by a tanh of the raw coefficients.
    Ledger D3; Salimans et al. 2017, "PixelCNN++". Raises ``ValueError`` without components.
    """

    def __init__(self, num_levels: int, num_components: int = 10, *, channels: int = 1) -> None:
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}: a mixture has parts")
        super().__init__(num_levels, channels, num_components * (3 if channels == 1 else 10))
        self.num_components = num_components

    def parameters_of(self, raw: Tensor) -> tuple[Tensor, ...]:
        """``logits (..., K)``, ``mean, log_scale (..., K)``; for colour ``(..., 3, K)``, and coefficients."""
        K, half = self.num_components, 0.5 * (self.num_levels - 1)
        logits, rest = raw[..., :K], raw[..., K:]
        if self.channels == 1:
            mean, log_scale = rest.unflatten(-1, (2, K)).unbind(-2)
        else:
            mean, log_scale, coefficients = rest.unflatten(-1, (3, 3, K)).unbind(-3)
        places = (2 * torch.arange(K, dtype=raw.dtype, device=raw.device) + 1) / K  # within (0, 2)
        mean = half * (places + mean)
        log_scale = MIN_LOG_SCALE + softplus(log_scale + math.log(half / K) - MIN_LOG_SCALE)
        log_scale = log_scale.clamp(max=MAX_LOG_SCALE + math.log(self.num_levels))
        return (logits, mean, log_scale, *(() if self.channels == 1 else (coefficients.tanh(),)))

    def sample(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A component, then its levels."""
        settings = {"num_levels": self.num_levels, "generator": generator}
        if self.channels == 1:
            return discretized_logistic_mixture_sample(*self.parameters_of(raw), **settings).unsqueeze(-1)
        return rgb_logistic_mixture_sample(*self.parameters_of(raw), **settings)

    def level_log_probs(self, raw: Tensor) -> Tensor:
        """The mixture at every level."""
        self._one_channel()
        levels = torch.arange(self.num_levels, device=raw.device)
        parameters = [value.unsqueeze(-2) for value in self.parameters_of(raw)]  # (..., 1, K)
        return discretized_logistic_mixture_log_prob(levels, *parameters, num_levels=self.num_levels)

    def mean(self, raw: Tensor) -> Tensor:
        """Of the discretized mixture, exactly."""
        self._one_channel()
        return discretized_logistic_mixture_mean(*self.parameters_of(raw), num_levels=self.num_levels)

    def _log_prob(self, y: Tensor, raw: Tensor) -> Tensor:
        if self.channels == 1:
            y = y.squeeze(-1)
            return discretized_logistic_mixture_log_prob(
                y, *self.parameters_of(raw), num_levels=self.num_levels
            )
        return rgb_logistic_mixture_log_prob(y, *self.parameters_of(raw), num_levels=self.num_levels)
