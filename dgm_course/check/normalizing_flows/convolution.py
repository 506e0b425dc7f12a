"""Lecture 03's exercise about the invertible 1x1 convolution: its log-determinant from the LU factors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise

# ---- lu_log_det: (c, c), (c, c), (c,), height, width -> scalar


@exercise("the log-determinant of the convolution on a whole image, in nats", library=("InvertibleConv1x1",))
def lu_log_det(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    return height * width * _per_pixel(s)


def _per_pixel(s: Tensor) -> Tensor:
    return s.abs().log().sum()


def _weight(lower: Tensor, upper: Tensor, s: Tensor) -> Tensor:
    return lower @ (upper + torch.diag(s))  # (c, c); the permutation keeps volumes


def _slogdet(matrix: Tensor) -> Tensor:
    return torch.linalg.slogdet(matrix).logabsdet


@lu_log_det.magnitude
def _(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    return height * width * (len(s) + s.abs().log().abs().sum())


def _factors(draw: Draw, s: Tensor, spread: float) -> dict[str, Tensor]:
    """Factors around ``s`` whose product is well conditioned."""
    channels, size = len(s), s.abs().mean()
    lower, upper = (spread * draw.uniform(channels, channels, low=-1, high=1) for _ in range(2))
    return {"lower": lower.tril(-1) + torch.eye(channels), "upper": size * upper.triu(1), "s": s}


@lu_log_det.inputs
def _(draw: Draw) -> Iterator[Case]:
    lower = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    upper = torch.tensor([[0.0, -2.0], [0.0, 0.0]])
    for s in ([1.0, 1.0], [1.0, -1.0]):
        yield case("Where the entries of s are 1 or -1, no volume changes, whatever the other factors are.",
                   lower=lower, upper=upper, s=torch.tensor(s), height=2, width=3)
    yield case("On an image of one pixel it is the log-determinant of W.",
               lower=lower, upper=upper, s=torch.tensor([-2.0, 3.0]), height=1, width=1)
    yield case(lower=lower, upper=upper, s=torch.tensor([3.0, 2.0]), height=2, width=3)
    yield case(lower=lower, upper=upper, s=torch.tensor([-0.5, -0.25]), height=3, width=2)
    yield case(lower=lower, upper=upper, s=torch.tensor([-0.5, 4.0]), height=3, width=4)
    for sign, exponent, dtype in ((1, -3, torch.float32), (-1, 3, torch.float32),
                                  (-1, -13, torch.float64), (1, 13, torch.float64)):
        s = 10.0**exponent * torch.exp(draw.uniform(30, low=-0.5, high=0.5))
        s[:2] *= sign * torch.tensor([1, -1]) if sign < 0 else 1
        parts = {name: value.to(dtype) for name, value in _factors(draw, s, 0.1).items()}
        yield case(**parts, height=2, width=3)
    for _ in range(draw.count):
        channels, dtype = draw.integer(2, 5), draw.dtype()
        height, width = draw.choose([(2, 4), (3, 2), (5, 3), (1, 4), (4, 8)])
        s = torch.exp(draw.uniform(channels, low=-1.5, high=1.5))
        s = draw.choose([0.3, 2.0]) * s * torch.tensor([draw.choose([-1, 1]) for _ in range(channels)])
        parts = {name: value.to(dtype) for name, value in _factors(draw, s, 0.8).items()}
        yield case(**parts, height=height, width=width)


lu_log_det.misconceptions(
    no_pixels=(lambda lo, up, s, h, w: _per_pixel(s),
               "This is the log-determinant of W alone. How often is W applied in an image?"),
    height_only=(lambda lo, up, s, h, w: h * _per_pixel(s),
                 "The image was counted as one column of pixels."),
    width_only=(lambda lo, up, s, h, w: w * _per_pixel(s), "The image was counted as one row of pixels."),
    pixels_added=(lambda lo, up, s, h, w: (h + w) * _per_pixel(s),
                  "Height and width were added. How many pixels has the image?"),
    channels_counted=(lambda lo, up, s, h, w: h * w * len(s) * _per_pixel(s),
                      "The channels were counted once more. They are all in W already."),
    per_pixel_mean=(lambda lo, up, s, h, w: _per_pixel(s) / (h * w),
                    "The number of pixels was divided by: each of them adds to the change of volume."),
    pixels_inside=(lambda lo, up, s, h, w: (h * w * s).abs().log().sum(),
                   "The number of pixels went into the logarithm. It counts how often one log-determinant is "
                   "added."),
    no_abs=(lambda lo, up, s, h, w: h * w * s.log().sum(),
            "An entry of s may be negative: volumes change by its size."),
    logdet=(lambda lo, up, s, h, w: h * w * torch.logdet(_weight(lo, up, s)),
            "The determinant of W may be negative: volumes change by its size. And is W needed at all?"),
    log_of_product=(lambda lo, up, s, h, w: h * w * s.prod().log(),
                    "The product of many channels may be too small or too large for a float, and negative. "
                    "Go to logarithms earlier."),
    underflow=(lambda lo, up, s, h, w: h * w * s.prod().abs().log(),
               "The determinant of many channels may be too small or too large for a float, but its "
               "logarithm never is. Go to logarithms earlier."),
    in_doubles=(lambda lo, up, s, h, w: h * w * s.double().prod().abs().log().to(s.dtype),
                "Double precision only moves the limit: the determinant of many channels leaves its range, "
                "too."),
    log_of_sum=(lambda lo, up, s, h, w: h * w * s.sum().abs().log(),
                "The entries of s were added before the logarithm. A determinant multiplies them."),
    log_of_sizes=(lambda lo, up, s, h, w: h * w * s.abs().sum().log(),
                  "The sizes were added before the logarithm. A determinant multiplies them."),
    no_log=(lambda lo, up, s, h, w: h * w * s.abs().sum(),
            "The logarithm is missing: these are the sizes themselves, added up."),
    determinant=(lambda lo, up, s, h, w: h * w * s.prod().abs(),
                 "This is the determinant of W, times the pixels. Its logarithm is what adds up over them."),
    log_scales=(lambda lo, up, s, h, w: h * w * s.sum(),
                "The entries of s were read as logarithms already, as some programs store them. Here s is "
                "the diagonal itself."),
    mean=(lambda lo, up, s, h, w: h * w * _per_pixel(s) / len(s),
          "The channels were averaged. A determinant multiplies all of the diagonal."),
    per_channel=(lambda lo, up, s, h, w: h * w * s.abs().log(),
                 "There is still one number for each channel. What do they give together?"),
    squared=(lambda lo, up, s, h, w: h * w * s.square().log().sum(),
             "Every answer is twice what it should be: a square takes care of the sign, and then needs a "
             "half."),
    abs_outside=(lambda lo, up, s, h, w: h * w * _per_pixel(s).abs(),
                 "The absolute value was taken of the logarithm. Where W shrinks volumes it has to stay "
                 "negative."),
    abs_of_logs=(lambda lo, up, s, h, w: h * w * s.abs().log().abs().sum(),
                 "The logarithms lost their signs. An entry of s below 1 in size shrinks volumes."),
    sign_times=(lambda lo, up, s, h, w: h * w * _per_pixel(s) * s.prod().sign(),
                "The determinant's sign was multiplied in. A reflection changes no volume."),
    negative=(lambda lo, up, s, h, w: -h * w * _per_pixel(s),
              "Only the sign is wrong: this is the log-determinant of the inverse."),
    no_s=(lambda lo, up, s, h, w: h * w * _slogdet(lo @ up),
          "The diagonal of U is 0, so that without s nothing could be inverted. Which factor does s belong "
          "to?"),
    ones=(lambda lo, up, s, h, w: h * w * lo.diagonal().log().sum(),
          "The diagonal of L has only ones: it changes no volume. Which diagonal does?"),
    s_outside=(lambda lo, up, s, h, w: h * w * _slogdet(lo @ up + torch.diag(s)),
               "The diagonal was added to the product of L and U. It belongs to U, inside the brackets."),
    factors_added=(lambda lo, up, s, h, w: h * w * _slogdet(lo + up + torch.diag(s)),
                   "The factors were added into one matrix. W is their product."),
)
