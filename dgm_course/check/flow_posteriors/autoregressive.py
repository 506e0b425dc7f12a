"""Lecture 06's exercises about Gaussian autoregressive flows: a step of IAF, and MAF read as IAF."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import exercise
from dgm_course.check.flow_posteriors.models import Pair

#: The library's layers that move and scale.
_LAYERS = ("InverseAutoregressiveFlow", "MaskedAutoregressiveFlow", "_Autoregressive", "AffineCoupling",
           "FixedAffine", "ActNorm", "iaf_parameters")  # fmt: skip

# ---- iaf_step: (B, d), (B, d), (B, d) -> (B, d), (B,)


@exercise("the step from z, and its log-determinant, in nats",
          returns={"z_new": "tensor", "log_det": "tensor"}, library=_LAYERS)
def iaf_step(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Pair:
    return _moved(z, mu, log_sigma), log_sigma.sum(-1)


def _moved(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    return mu + torch.exp(log_sigma) * z


@iaf_step.magnitude
def _(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Pair:
    size = log_sigma.abs()
    return mu.abs() + (1 + size) * torch.exp(log_sigma) * z.abs(), size.sum(-1)


@iaf_step.inputs
def _(draw: Draw) -> Iterator[Case]:
    for _ in range(draw.count):
        rows, dims = draw.choose([[2, 3], [3, 2], [3, 4], [4, 3], [2, 4]])
        dtype, values = draw.dtype(), 1.5 * draw.normal(2, rows, dims)
        log_sigma = draw.choose([-0.5, 0.0, 0.5]) + 0.7 * draw.normal(rows, dims)
        yield case(z=values[0].to(dtype), mu=values[1].to(dtype), log_sigma=log_sigma.to(dtype))
    for dtype in (torch.float32, torch.float64):  # the determinants themselves leave the range of floats
        for level in (-2.6, 2.6):
            values = draw.normal(2, 2, 300)
            log_sigma = level + 0.1 * draw.normal(2, 300)
            yield case(z=values[0].to(dtype), mu=values[1].to(dtype), log_sigma=log_sigma.to(dtype))
    z, mu = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[0.5, 1.0], [-1.0, 2.0]])
    log_sigma, zero = torch.tensor([[0.7, -0.4], [-1.0, -0.5]]), torch.zeros(2, 2)
    yield case("Where mu and log_sigma are 0, the step changes nothing.", z=z, mu=zero, log_sigma=zero)
    yield case("Where log_sigma is 0, the step only shifts: it changes no volume.",
               z=z, mu=mu, log_sigma=zero)
    yield case("Where mu is 0, the step only scales.", z=z, mu=zero, log_sigma=log_sigma)


def _step(
    move: Callable[[Tensor, Tensor, Tensor], Tensor] = _moved,
    log_det: Callable[[Tensor], Tensor] = lambda s: s.sum(-1),
) -> Callable[[Tensor, Tensor, Tensor], Pair]:
    """The step with another map, or another log-determinant."""
    return lambda z, mu, log_sigma: (move(z, mu, log_sigma), log_det(log_sigma))


def _back(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    return (z - mu) * torch.exp(-log_sigma)


def _negative(log_sigma: Tensor) -> Tensor:
    return -log_sigma.sum(-1)


iaf_step.misconceptions(
    inverse=(_step(_back, _negative),
             "This is the other direction, in which MAF goes from data to noise. Here z is what the network "
             "has read, and the step samples."),
    inverse_positive=(_step(_back),
                      "The log-determinant is that of sampling, but the map is the way back. Here z is what "
                      "the network has read."),
    negative=(_step(log_det=_negative),
              "The map is right, but the log-determinant is that of the way back. If sigma is large, does "
              "this step stretch or shrink?"),
    divided=(_step(lambda z, m, s: m + z * torch.exp(-s)),
             "The map divides by sigma, and the log-determinant multiplies by it. What does the step do?"),
    divided_negative=(_step(lambda z, m, s: m + z * torch.exp(-s), _negative),
                      "The scale was turned upside down, in the map and in the log-determinant."),
    shift_first=(_step(lambda z, m, s: (z + m) * s.exp()),
                 "The shift was scaled, too. Which comes first, the scale or the shift?"),
    back_shift_first=(_step(lambda z, m, s: (z - m) * s.exp()),
                      "The shift was subtracted and scaled. The step does neither."),
    subtracted=(_step(lambda z, m, s: z * s.exp() - m), "The shift has the wrong sign."),
    no_shift=(_step(lambda z, m, s: z * s.exp()), "The shift is missing."),
    no_scale=(_step(lambda z, m, s: z + m, lambda s: 0 * s.sum(-1)),
              "This step only shifts. The network gives a scale for each dimension, too."),
    no_scale_in_map=(_step(lambda z, m, s: z + m),
                     "The map only shifts, though the log-determinant knows of the scale."),
    scale_alone=(_step(lambda z, m, s: m + s.exp()),
                 "The scale was added. What is it that it stretches?"),
    gated=(_step(lambda z, m, s: s.exp() * z + (1 - s.exp()) * m),
           "This mixes z and mu, as the paper's gated variant does, where sigma lies between 0 and 1. Here "
           "mu is a plain shift."),
    sigmoid=(_step(lambda z, m, s: m + s.sigmoid() * z, lambda s: logsigmoid(s).sum(-1)),
             "A sigmoid made the scale, as in the paper's gated variant. Here the network's output is the "
             "scale's logarithm."),
    sigmoid_gate=(_step(lambda z, m, s: s.sigmoid() * z + (1 - s.sigmoid()) * m,
                        lambda s: logsigmoid(s).sum(-1)),
                  "This is the paper's gated variant as a whole. Here mu is a plain shift, and log_sigma the "
                  "scale's logarithm."),
    scale_is_no_log=(_step(lambda z, m, s: m + s * z, lambda s: s.abs().log().sum(-1)),
                     "log_sigma was used as the scale itself. It may be 0 or negative: which positive number "
                     "belongs to it?"),
    log_in_map=(_step(lambda z, m, s: m + s * z),
                "The map multiplies by the logarithm of the scale. It should multiply by the scale."),
    variance=(_step(lambda z, m, s: m + torch.exp(s / 2) * z, lambda s: s.sum(-1) / 2),
              "A half was put in, as if log_sigma were the logarithm of a variance. It is that of the "
              "scale."),
    variance_in_map=(_step(lambda z, m, s: m + torch.exp(s / 2) * z),
                     "The map takes log_sigma for the logarithm of a variance, which the log-determinant "
                     "does not."),
    halved=(_step(log_det=lambda s: s.sum(-1) / 2),
            "The log-determinant was halved. log_sigma is the logarithm of the scale, not of a variance."),
    doubled=(_step(log_det=lambda s: 2 * s.sum(-1)),
             "The log-determinant was doubled, as for a variance. How much longer does a side become?"),
    exchanged_arguments=(_step(lambda z, m, s: s + m.exp() * z),
                         "mu and log_sigma have changed places in the map."),
    exchanged_arguments_all=(lambda z, m, s: (s + m.exp() * z, m.sum(-1)),
                             "mu and log_sigma have changed places in the map and in the log-determinant."),
    z_and_mu=(_step(lambda z, m, s: z + s.exp() * m),
              "z and mu have changed places: which of them is the shift?"),
    no_log_det=(_step(log_det=lambda s: 0 * s.sum(-1)),
                "The log-determinant is 0 only for a step that shifts. This one scales, too."),
    scales_added=(_step(log_det=lambda s: s.exp().sum(-1)),
                  "Scales were added up. A determinant multiplies them: what is to be added?"),
    determinant=(_step(log_det=lambda s: s.exp().prod(-1)),
                 "This is the determinant. Its logarithm is asked for, and is simpler."),
    by_determinant=(_step(log_det=lambda s: s.exp().prod(-1).log()),
                    "The determinant was computed, and then its logarithm. With many dimensions it is no "
                    "float any more: stay with logarithms."),
    logs_multiplied=(_step(log_det=lambda s: s.prod(-1)),
                     "Logarithms were multiplied. It is the scales that multiply."),
    log_of_log=(_step(log_det=lambda s: s.log().sum(-1)),
                "A logarithm was taken of what is one already, and may be negative."),
    log_of_size=(_step(log_det=lambda s: s.abs().log().sum(-1)),
                 "The log-determinant has a logarithm of log_sigma, which is one already."),
    sizes=(_step(log_det=lambda s: s.abs().sum(-1)),
           "The log-scales lost their signs. A scale below 1 has a negative logarithm, and should have."),
    size_of_sum=(_step(log_det=lambda s: s.sum(-1).abs()),
                 "The log-determinant lost its sign. It is negative where the step shrinks."),
    per_dimension=(_step(log_det=lambda s: s),
                   "These are the single dimensions' log-scales. The Jacobian is triangular: what do they "
                   "give together?"),
    dimension_mean=(_step(log_det=lambda s: s.mean(-1)),
                    "The log-scales were averaged. A determinant multiplies all of the scales."),
    over_batch=(_step(log_det=lambda s: s.sum(0)),
                "The log-scales were summed over the batch. They have to be summed over the dimensions."),
    batch_sum=(_step(log_det=torch.sum),
               "The log-determinant was summed over the batch, too. Each row has one of its own."),
    batch_mean=(_step(log_det=lambda s: s.sum(-1).mean()),
                "The log-determinant was averaged over the batch. Each row has one of its own."),
    axis_kept=(_step(log_det=lambda s: s.sum(-1, keepdim=True)),
               "The axis that was summed over is still there in the log-determinant, with one entry. Let "
               "the sum drop it."),
    shift_counted=(lambda z, m, s: (_moved(z, m, s), (s + m).sum(-1)),
                   "The shift was counted in the log-determinant. What does a shift do to a volume?"),
    order=(lambda z, m, s: (s.sum(-1), _moved(z, m, s)), "The two answers have changed places."),
)  # fmt: skip


# ---- maf_to_iaf: (B, d), (B, d) -> (B, d), (B, d)


@exercise("shift and log-scale of the same map the other way",
          returns={"mu": "tensor", "log_sigma": "tensor"}, library=_LAYERS)
def maf_to_iaf(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    return _shift(mu_hat, log_sigma_hat), 0 - log_sigma_hat  # no -0 in what students read


def _shift(mu_hat: Tensor, log_sigma_hat: Tensor) -> Tensor:
    return (0 - mu_hat) * torch.exp(-log_sigma_hat)


@maf_to_iaf.magnitude
def _(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    size = log_sigma_hat.abs()
    return (1 + size) * mu_hat.abs() * torch.exp(-log_sigma_hat), size


@maf_to_iaf.inputs
def _(draw: Draw) -> Iterator[Case]:
    for _ in range(draw.count):
        rows, dims = draw.choose([[2, 3], [3, 2], [3, 4], [4, 3], [2, 4]])
        dtype, log_sigma_hat = draw.dtype(), draw.choose([-0.8, 0.0, 0.8]) + 0.5 * draw.normal(rows, dims)
        yield case(mu_hat=2 * draw.normal(rows, dims).to(dtype), log_sigma_hat=log_sigma_hat.to(dtype))
    mu_hat, log_sigma_hat = torch.tensor([[2.0, -1.0], [0.5, 3.0]]), torch.tensor([[0.7, -0.4], [-1.0, 0.5]])
    zero = torch.zeros(2, 2)
    yield case("Where the map changes nothing, neither does its inverse.", mu_hat=zero, log_sigma_hat=zero)
    yield case("Where the map only shifts, so does its inverse.", mu_hat=mu_hat, log_sigma_hat=zero)
    yield case("Where the map only scales, so does its inverse.", mu_hat=zero, log_sigma_hat=log_sigma_hat)


@maf_to_iaf.holds("Sent through MAF's map and then through this one, every number comes back.")
def _(mu: np.ndarray, log_sigma: np.ndarray, mu_hat: Tensor, log_sigma_hat: Tensor) -> bool:
    shift, scale = mu_hat.double().numpy(), np.exp(log_sigma_hat.double().numpy())
    with np.errstate(all="ignore"):
        again = [mu + np.exp(log_sigma) * (shift + scale * z) for z in (0.0, 1.0)]
    return bool(np.allclose(again[0], 0.0, atol=1e-3) and np.allclose(again[1], 1.0, atol=1e-3))


def _pair(
    mu: Callable[[Tensor, Tensor], Tensor] = _shift,
    log_sigma: Callable[[Tensor], Tensor] = torch.neg,
) -> Callable[[Tensor, Tensor], Pair]:
    """Another shift, or another log-scale."""
    return lambda m, s: (mu(m, s), log_sigma(s))


maf_to_iaf.misconceptions(
    not_divided=(_pair(lambda m, s: -m),
                 "The shift is that of a map that only shifts. Solve MAF's equation for epsilon: the scale "
                 "divides "
                 "more than one term."),
    shift_sign=(_pair(lambda m, s: m * torch.exp(-s)),
                "The shift has the wrong sign: on which side of the equation does it end up?"),
    multiplied=(_pair(lambda m, s: -m * s.exp()),
                "The shift was multiplied by MAF's scale. Solve MAF's equation for epsilon."),
    multiplied_positive=(_pair(lambda m, s: m * s.exp()),
                         "The shift was multiplied by MAF's scale, and has the wrong sign."),
    shift_kept=(_pair(lambda m, s: m),
                "The scale was turned, but the shift is still MAF's. What shifts epsilon, once MAF's "
                "equation is solved for it?"),
    shift_lost=(_pair(lambda m, s: 0 * m), "The shift is missing: the other direction has one as well."),
    unchanged=(_pair(lambda m, s: m, torch.clone),
               "Nothing was changed: these are MAF's own shift and scale. Its map goes the other way."),
    scale_kept=(_pair(log_sigma=torch.clone),
                "The shift is right, but the scale is still MAF's. If the one direction stretches, what does "
                "the other do?"),
    shift_negative_scale_kept=(_pair(lambda m, s: -m, torch.clone),
                               "Only the sign of the shift was changed: the scale is still MAF's, and takes "
                               "part in the shift as well."),
    multiplied_scale_kept=(_pair(lambda m, s: -m * s.exp(), torch.clone),
                           "The shift was multiplied by MAF's scale, which itself was kept. Solve MAF's "
                           "equation for epsilon."),
    shift_sign_scale_kept=(_pair(lambda m, s: m * torch.exp(-s), torch.clone),
                           "The shift's sign and the scale are still MAF's."),
    reciprocal=(_pair(log_sigma=torch.reciprocal),
                "The logarithm was turned upside down. It is the scale that is: what becomes of its "
                "logarithm?"),
    reciprocal_negative=(_pair(log_sigma=lambda s: -1 / s),
                         "The logarithm was turned upside down and its sign changed. It is the scale that is "
                         "turned: what becomes of its logarithm?"),
    scale=(_pair(log_sigma=lambda s: torch.exp(-s)),
           "The second number is the new scale itself. Its logarithm is asked for."),
    old_scale=(_pair(log_sigma=torch.exp), "The second number is MAF's scale. The logarithm of the other "
                                           "direction's scale is asked for."),
    scale_negative=(_pair(log_sigma=lambda s: -s.exp()),
                    "The second number is MAF's scale with a minus. In which of scale and logarithm does a "
                    "minus turn it upside down?"),
    shift_by_log=(_pair(lambda m, s: -m / s),
                  "The shift was divided by the logarithm of the scale. It has to be divided by the scale."),
    shift_times_log=(_pair(lambda m, s: -m * s),
                     "The shift was multiplied by the logarithm of the scale."),
    shift_minus_log=(_pair(lambda m, s: -m - s),
                     "The logarithm of the scale was subtracted from the shift, as if that were a logarithm, "
                     "too."),
    logs_as_scales=(_pair(lambda m, s: -m / s, torch.reciprocal),
                    "log_sigma_hat was used as the scale itself, in the shift and in what came of it."),
    variance=(_pair(lambda m, s: -m * torch.exp(-s / 2)),
              "A half was put into the shift, as if log_sigma_hat were the logarithm of a variance."),
    variances=(_pair(lambda m, s: -m * torch.exp(-s / 2), lambda s: -s / 2),
               "A half was put in, as if log_sigma_hat were the logarithm of a variance. It is that of the "
               "scale, and so is what is asked for."),
    halved=(_pair(log_sigma=lambda s: -s / 2),
            "The log-scale was halved, as if a standard deviation were made of a variance."),
    doubled=(_pair(log_sigma=lambda s: -2 * s),
             "The log-scale was doubled, as if a variance were asked for."),
    squared=(_pair(lambda m, s: -m * torch.exp(-2 * s)),
             "The shift was divided by the scale twice."),
    log_det=(_pair(log_sigma=lambda s: -s.sum(-1)),
             "The log-scales were summed: that is the log-determinant. Keep one for each dimension."),
    log_det_kept=(_pair(log_sigma=lambda s: s.sum(-1)),
                  "The log-scales were summed, and are still MAF's. One for each dimension is asked for."),
    exchanged=(lambda m, s: (-s, _shift(m, s)), "The two answers have changed places."),
    exchanged_inputs=(lambda m, s: (_shift(s, m), -m), "Shift and log-scale of MAF have changed places."),
)  # fmt: skip
