"""Lecture 03's exercise about the density that a flow gives to x: the change of variables."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.gaussian import LOG_2PI

# ---- change_of_variables_log_prob: (B, d), (B, d, d) -> (B,)


@exercise("the log-density of each x under the flow, in nats", library=("Flow",))
def change_of_variables_log_prob(z: Tensor, jacobian: Tensor) -> Tensor:
    return _base(z) + _volume(jacobian)


def _terms(z: Tensor) -> Tensor:
    return -0.5 * (LOG_2PI + z**2)  # (B, d)


def _base(z: Tensor) -> Tensor:
    return _terms(z).sum(1)


def _volume(jacobian: Tensor) -> Tensor:
    return torch.linalg.slogdet(jacobian).logabsdet


@change_of_variables_log_prob.magnitude
def _(z: Tensor, jacobian: Tensor) -> Tensor:
    return -_base(z) + torch.linalg.svdvals(jacobian).log().abs().sum(1)


def _jacobians(draw: Draw, rows: int, dims: int, spread: float, signs: list[int]) -> Tensor:
    """Products of two triangular matrices: well conditioned, with determinants of the given signs."""
    lower, upper = (spread * draw.uniform(rows, dims, dims, low=-1, high=1) for _ in range(2))
    diagonal = torch.exp(draw.uniform(rows, dims, low=-0.9, high=0.9))
    for row, sign in enumerate(signs):
        diagonal[row, draw.integer(0, dims - 1)] *= sign
    return (lower.tril(-1) + torch.eye(dims)) @ (upper.triu(1) + torch.diag_embed(diagonal))


@change_of_variables_log_prob.inputs
def _(draw: Draw) -> Iterator[Case]:
    z, root = torch.tensor([[1.0, -2.0]]), math.sqrt(0.5)
    yield case("Where f changes nothing, the density is the base's at z.",
               z=z, jacobian=torch.eye(2)[None])
    yield case("A rotation changes no volume: the density of x is the base's at z.",
               z=z, jacobian=root * torch.tensor([[[1.0, -1.0], [1.0, 1.0]]]))
    yield case("A reflection changes no volume: the density of x is the base's at z.",
               z=z, jacobian=torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]]))
    yield case(z=torch.tensor([[0.5, 1.0]]), jacobian=torch.tensor([[[3.0, -1.0], [2.0, 4.0]]]))
    yield case(z=torch.tensor([[1.5, -1.0]]), jacobian=torch.tensor([[[1.0, 4.0], [2.0, -3.0]]]))
    for sign, exponent, dtype in ((1, -3, torch.float32), (-1, 3, torch.float32),
                                  (1, -13, torch.float64), (1, 13, torch.float64)):
        jacobian = 10.0**exponent * _jacobians(draw, 1, 28, 0.2, [sign])
        yield case(z=draw.normal(1, 28).to(dtype), jacobian=jacobian.to(dtype))
    for _ in range(draw.count):
        rows, dims, dtype = draw.integer(2, 4), draw.integer(1, 5), draw.dtype()
        signs = [draw.choose([-1, 1]) for _ in range(rows)]
        jacobian = draw.choose([0.3, 1.0, 2.0]) * _jacobians(draw, rows, dims, 0.8, signs)
        yield case(z=draw.normal(rows, dims).to(dtype), jacobian=jacobian.to(dtype))


@change_of_variables_log_prob.holds("With the same Jacobian, no z gives a higher density than z = 0.")
def _(log_prob: np.ndarray, z: Tensor, jacobian: Tensor) -> bool:
    highest = _base(0 * z.double()) + _volume(jacobian.double())
    return bool((log_prob <= highest.numpy() + 1e-3).all())


def _entries(jacobian: Tensor) -> Tensor:
    return torch.linalg.det(jacobian.abs())


change_of_variables_log_prob.misconceptions(
    minus=(lambda z, j: _base(z) - _volume(j),
           "The log-determinant has the wrong sign, or it is the inverse's. Where f stretches, a small "
           "cell of x gets a large cell of z, and all of its probability."),
    logdet=(lambda z, j: _base(z) + torch.logdet(j),
            "A determinant is negative where f mirrors space, and has no logarithm there. Volumes change "
            "by its size."),
    det_then_log=(lambda z, j: _base(z) + torch.linalg.det(j).log(),
                  "A determinant may be negative, and of many dimensions too small or too large for a float. "
                  "Which function of a matrix gives the logarithm of its size at once?"),
    underflow=(lambda z, j: _base(z) + torch.linalg.det(j).abs().log(),
               "The determinant of many dimensions may be too small or too large for a float, but its "
               "logarithm never is. Which function of a matrix gives that at once?"),
    in_doubles=(lambda z, j: _base(z) + torch.linalg.det(j.double()).abs().log().to(z.dtype),
                "Double precision only moves the limit: the determinant of many dimensions leaves its range, "
                "too."),
    entries_logdet=(lambda z, j: _base(z) + torch.logdet(j.abs()),
                    "The bars in log det|J| were read as the size of each entry. Take the determinant of J "
                    "as it is: it is the determinant's own size that counts."),
    entries_then_log=(lambda z, j: _base(z) + _entries(j).log(),
                      "The entries of J lost their signs before the determinant was taken: that is another "
                      "matrix, and its determinant may still be negative."),
    entries_abs_then_log=(lambda z, j: _base(z) + _entries(j).abs().log(),
                          "The entries of J lost their signs before the determinant was taken: that is "
                          "another matrix. One absolute value is enough, and it comes after the "
                          "determinant."),
    entries_slogdet=(lambda z, j: _base(z) + _volume(j.abs()),
                     "The entries of J lost their signs: that is another matrix. The function that you use "
                     "takes the determinant's size by itself."),
    pair_added=(lambda z, j: _base(z) + torch.linalg.slogdet(j),
                "This function gives two things: the determinant's sign, and the logarithm of its size. "
                "Which one is needed?"),
    sign_added=(lambda z, j: _base(z) + torch.linalg.slogdet(j)[0],
                "This adds the determinant's sign. The function gives another thing beside it."),
    sign_times=(lambda z, j: _base(z) + torch.linalg.slogdet(j)[0] * _volume(j),
                "The log-determinant was multiplied by the determinant's sign. A reflection changes no "
                "volume: what is the sign needed for?"),
    abs_outside=(lambda z, j: _base(z) + _volume(j).abs(),
                 "The absolute value was taken of the logarithm. Where f shrinks volumes it has to stay "
                 "negative."),
    diagonal=(lambda z, j: _base(z) + j.diagonal(dim1=1, dim2=2).abs().log().sum(1),
              "Only the diagonal was used. That is enough for a triangular Jacobian; this one is not."),
    trace=(lambda z, j: _base(z) + j.diagonal(dim1=1, dim2=2).sum(1),
           "The trace was added: that is how volumes change in a flow over time. Here f is one step."),
    log_missing=(lambda z, j: _base(z) + torch.linalg.det(j).abs(),
                 "The determinant was added as it is. A density is multiplied by it: what becomes of that in "
                 "logarithms?"),
    times=(lambda z, j: _base(z) * _volume(j),
           "Two logarithms were multiplied. It is the density that is multiplied by the determinant's size."),
    density=(lambda z, j: torch.exp(_base(z) + _volume(j)),
             "This is the density itself. Its logarithm is asked for."),
    no_volume=(lambda z, j: _base(z),
               "This is the density of z. Near x, how much more of z's space is there than of x's?"),
    no_base=(lambda z, j: _volume(j),
             "This is the change of volume alone. How likely is the z that x comes from?"),
    no_constant=(lambda z, j: (_terms(z) + 0.5 * LOG_2PI).sum(1) + _volume(j),
                 "The base's constant is missing: a Gaussian density has to integrate to 1."),
    constant_once=(lambda z, j: -0.5 * (z.square().sum(1) + LOG_2PI) + _volume(j),
                   "The base's constant was counted once. Each dimension brings its own."),
    constant_not_halved=(lambda z, j: (_terms(z) - 0.5 * LOG_2PI).sum(1) + _volume(j),
                         "The base's constant is twice as large as it should be: is its half, or the root in "
                         "the density, lost?"),
    square_not_halved=(lambda z, j: (_terms(z) - 0.5 * z**2).sum(1) + _volume(j),
                       "The squared distance counts twice as much as it should in a Gaussian."),
    per_dimension=(lambda z, j: _terms(z) + _volume(j)[:, None],
                   "There is still one number for each dimension of z. What do independent ones give "
                   "together?"),
    dimension_mean=(lambda z, j: _terms(z).mean(1) + _volume(j),
                    "The dimensions of z were averaged. What do independent ones give together?"),
    base_summed=(lambda z, j: _terms(z).sum() + _volume(j),
                 "The base's log-density was summed over the batch, too. Each row has one of its own."),
    volume_summed=(lambda z, j: _base(z) + _volume(j).sum(),
                   "The log-determinants were summed over the batch. Each row has one of its own."),
    broadcast=(lambda z, j: _base(z)[:, None] + _volume(j),
               "A column met a row, and every base density every determinant. Which axis was kept?"),
    axis_kept=(lambda z, j: (_base(z) + _volume(j))[:, None],
               "The axis that was summed over is still there, with one entry. Let the sum drop it."),
    batch_mean=(lambda z, j: (_base(z) + _volume(j)).mean(),
                "The batch was averaged. Keep one number for each row."),
    batch_sum=(lambda z, j: (_base(z) + _volume(j)).sum(),
               "The batch was summed. Keep one number for each row."),
    as_loss=(lambda z, j: -_base(z) - _volume(j),
             "This is a loss, to be made small. The log-density has the other sign."),
)
