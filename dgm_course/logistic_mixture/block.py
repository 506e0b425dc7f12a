"""The arithmetic of the streamed evaluation: value and gradient of one block of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
FAR = 1e25  # an edge at infinity: beyond all means, and times 1/s still a number
NAMES = "minus_a", "b", "w", "x", "of_a", "of_b", "factor", "spare"  # scratch arrays (C, K, pixels)


class Block:
    """Value and gradient of ``rows x columns`` pixels, in scratch that every block of a call uses again.

    With ``a = (y + 1/2 - mean) / s`` and ``b = (y - 1/2 - mean) / s`` a bin's mass is
    ``sigmoid(a) sigmoid(-b) (1 - exp(-w))``, ``w = 1/s``. A sigmoid is ``exp(min(a, 0))``, which may
    underflow, times a factor in [1/2, 1]: the former's logarithms are added, the latter multiplied over the
    channels, so that a pixel needs only one logarithm. With the posterior r of the components, the gradient
    is ``r w (sigmoid(b) - sigmoid(-a))`` for a mean, and for a log-scale
    ``r (b sigmoid(b) - a sigmoid(-a) - w / expm1(w))``. An open bin has an edge so far away that its sigmoid
    is 0, exactly.

    Pixels come last in the scratch: sums over channels and components are sums of rows. ``scratch`` is flat,
    of ``size(C, K, pixels)`` numbers or more.
    """

    def __init__(self, scratch: Tensor, channels: int, components: int, pixels: int, num_levels: int) -> None:
        self.top = num_levels - 1
        length = _row(pixels)
        rest, large = scratch, channels * components * length

        def arrays(count: int, *shape: int) -> tuple[Tensor, ...]:
            nonlocal rest
            size = count * math.prod(shape) * length
            taken, rest = rest[:size], rest[size:]
            return taken.view(count, *shape, length)[..., :pixels].unbind()

        self.large = arrays(len(NAMES), channels, components)
        self.small = arrays(3, components)
        self.of_pixel = arrays(5, channels, 1)
        self.sums = arrays(4)
        self.one = self.sums[0].new_ones(())
        # float64 where the last four large ones are not in use yet
        rest = scratch[4 * large : 8 * large].view(torch.float64)
        self.wide = arrays(2, channels, components)
        self.wide_channels = [t.unbind() for t in self.wide]
        rest = scratch.new_empty(2 * channels * length, dtype=torch.float64)
        self.wide_of_pixel = arrays(2, channels, 1)
        # views of single channels, made once: each costs as much as a small sum
        shared = "x", "of_b", "factor", "spare"
        self.channels = {name: self.large[NAMES.index(name)].unbind() for name in shared}

    @staticmethod
    def size(channels: int, components: int, pixels: int) -> int:
        """Numbers of scratch that so many pixels need."""
        return (channels * components * len(NAMES) + components * 3 + channels * 5 + 4) * _row(pixels)

    def run(
        self, y: Tensor, parameters: Sequence[Tensor], value: Tensor, gradients: Sequence[Tensor | None]
    ) -> None:
        """Fill ``value (p, q)`` and the gradients, for ``y (C, p, q)`` and parameters ``(..., p, q)``."""
        minus_a, b, w, x, of_a, of_b, factor, spare = self.large
        level, share, product = self.small
        highest, sum_of_shares, sum_of_masses, logarithm = self.sums
        logits, mean, log_scale, *coefficients = parameters
        to_upper, to_lower, inside, centred = self._edges(y)
        if coefficients:
            self._couple(mean, coefficients[0])
        else:
            _copy(b, mean)
            b.sub_(self.of_pixel[0])
        _copy(w, log_scale)
        w.neg_().exp_()
        torch.sub(b, to_upper, out=minus_a).mul_(w)
        torch.sub(to_lower, b, out=b).mul_(w)
        torch.expm1(w, out=x).reciprocal_().mul_(inside)  # 1 - exp(-w) = 1 / (1 + x)

        _copy(level, logits)
        torch.amax(level, 0, out=highest)
        level.sub_(highest)
        torch.mul(level, LOG2_E, out=share).exp2_()
        torch.sum(share, 0, out=sum_of_shares)
        torch.maximum(minus_a, b, out=factor).clamp_min_(0.0)  # only one of the two is positive
        for minus_log in self.channels["factor"]:
            level.sub_(minus_log)
        torch.amax(level, 0, out=highest)
        level.sub_(highest).mul_(LOG2_E).exp2_()

        torch.sigmoid(minus_a, out=of_a)
        torch.sigmoid(b, out=of_b)
        torch.sub(self.one, of_a, out=factor)
        torch.maximum(factor, of_a, out=factor)
        torch.sub(self.one, of_b, out=spare)
        factor.mul_(torch.maximum(spare, of_b, out=spare))
        first, *others = self.channels["x"]
        torch.add(first, 1.0, out=product)
        for other in others:
            product.addcmul_(product, other)
        for part in self.channels["factor"]:
            level.mul_(part)
        posterior = level.div_(product)
        torch.sum(posterior, 0, out=sum_of_masses)
        torch.div(sum_of_masses, sum_of_shares, out=logarithm).log_().add_(highest)
        value.copy_(logarithm.view(value.shape))
        if all(g is None for g in gradients):
            return

        posterior.div_(sum_of_masses)
        to_logits, to_mean, to_log_scale, *to_coefficients = gradients
        if to_log_scale is not None:
            minus_a.mul_(of_a).addcmul_(b, of_b).addcmul_(x, w, value=-1.0).mul_(posterior)
            _copy_back(to_log_scale, minus_a)
        of_b.sub_(of_a).mul_(w).mul_(posterior)
        if to_mean is not None:
            _copy_back(to_mean, of_b)
        if to_coefficients and to_coefficients[0] is not None:
            _, green_mean, blue_mean = self.channels["of_b"]
            green_of_red, blue_of_red, blue_of_green = self.channels["spare"]
            torch.mul(green_mean, centred[0], out=green_of_red)
            torch.mul(blue_mean, centred[0], out=blue_of_red)
            torch.mul(blue_mean, centred[1], out=blue_of_green)
            _copy_back(to_coefficients[0], spare)
        if to_logits is not None:
            _copy_back(to_logits, posterior.sub_(share.div_(sum_of_shares)))

    def _edges(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges seen from y, whether both are closed (1 or 0), y from the middle: ``(C, 1, pixels)``."""
        level, to_upper, to_lower, inside, centred = self.of_pixel
        level.view(y.shape).copy_(y)
        torch.sub(level, self.top - 1, out=to_upper).clamp_min_(0.0)  # 1 at the last level, else 0
        torch.sub(self.one, level, out=to_lower).clamp_min_(0.0)
        torch.sub(self.one, to_upper, out=inside).sub_(to_lower)
        to_upper.mul_(FAR).add_(0.5)
        to_lower.mul_(-FAR).sub_(0.5)
        torch.sub(level, 0.5 * self.top, out=centred)
        return to_upper, to_lower, inside, centred

    def _couple(self, mean: Tensor, coefficients: Tensor) -> None:
        """``b``: from y to the coupled means. Summed in float64: the distance is small, the terms are not."""
        distance, coupling = self.wide
        level, centred = self.wide_of_pixel
        level.copy_(self.of_pixel[0])
        centred.copy_(self.of_pixel[4])
        _copy(distance, mean)
        _copy(coupling, coefficients)
        distance.sub_(level)
        _, green, blue = self.wide_channels[0]
        green_of_red, blue_of_red, blue_of_green = self.wide_channels[1]
        green.addcmul_(green_of_red, centred[0])
        blue.addcmul_(blue_of_red, centred[0]).addcmul_(blue_of_green, centred[1])
        self.large[1].copy_(distance)


def _row(pixels: int) -> int:
    """Length of a row: an odd multiple of 16, as rows of a power of two share a few lines of the cache."""
    return (-(-pixels // 16) | 1) * 16


def _copy(scratch: Tensor, source: Tensor) -> None:
    scratch.view(source.shape).copy_(source)


def _copy_back(out: Tensor, scratch: Tensor) -> None:
    out.copy_(scratch.view(out.shape))
