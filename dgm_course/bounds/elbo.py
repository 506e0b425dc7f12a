"""The evidence lower bound in its three forms, and the score-function estimator of its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dgm_course.gaussian import gaussian_log_prob, gaussian_sample

LogJoint = Callable[[Tensor], Tensor]  # z (S, d) -> log p(x, z) (S,)


def elbo(log_joint: Tensor, log_q: Tensor) -> Tensor:
    """First form of the evidence lower bound, one value per sample of z: ``log p(x, z) - log q(z|x)``.

    Its mean over ``z ~ q(z|x)`` is the ELBO. Both arguments in the batch shape, so is the result; nats.
    Raises ``ValueError`` if broadcasting would make an outer product. Ledger C1.
    """
    _check_batch(log_joint=log_joint, log_q=log_q)
    return log_joint - log_q


def elbo_from_kl(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    """Second form: ``E_q[log p(x|z)] - KL(q(z|x) || p(z))``, a reconstruction term and its price.

    Both arguments in the batch shape, so is the result; nats. Raises ``ValueError`` if broadcasting would
    make an outer product. Ledger C1.
    """
    _check_batch(log_likelihood=log_likelihood, kl=kl)
    return log_likelihood - kl


def elbo_from_evidence(log_px: Tensor, posterior_kl: Tensor) -> Tensor:
    """Third form: ``log p(x) - KL(q(z|x) || p(z|x))``, the evidence and the gap.

    Both arguments in the batch shape, so is the result; nats. Raises ``ValueError`` if broadcasting would
    make an outer product. Ledger C1.
    """
    _check_batch(log_px=log_px, posterior_kl=posterior_kl)
    return log_px - posterior_kl


def score_function_gradient(
    log_joint: LogJoint,
    mean: Tensor,
    log_var: Tensor,
    *,
    num_samples: int,
    generator: torch.Generator | None = None,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    """Single-sample score-function estimates of the ELBO's gradient with respect to ``(mean, log_var)``.

    ``(log p(x, z) - log q(z) - baseline) d log q(z) / d(mean, log_var)``, one row for each ``z ~ q``; every
    row is unbiased for any ``baseline`` that does not depend on its z (log-derivative trick, REINFORCE;
    Williams 1992). It needs no gradient of ``log_joint``.

    Shapes: ``mean`` and ``log_var`` ``(d,)``, ``baseline`` a number or ``(num_samples,)``, result
    ``(num_samples, 2d)``. ``log_joint`` maps ``(S, d)`` to ``(S,)``. Raises ``ValueError`` on any other
    shape. Ledger C3.
    """
    check_family(mean, log_var, num_samples)
    if isinstance(baseline, Tensor) and baseline.shape not in ((), (num_samples,)):
        raise ValueError(
            f"baseline must be one number or have shape ({num_samples},), got {tuple(baseline.shape)}: "
            "give one value for each sample"
        )
    with torch.no_grad():
        z = gaussian_sample(mean, log_var, generator=generator, sample_shape=(num_samples,))  # (S, d)
        log_w = evaluate(log_joint, z) - gaussian_log_prob(z, mean, log_var)  # (S,)
        standardised = (z - mean) * torch.exp(-0.5 * log_var)  # (S, d)
        score_mean = standardised * torch.exp(-0.5 * log_var)  # (S, d): d log q / d mean
        score_log_var = 0.5 * (standardised**2 - 1.0)  # (S, d): d log q / d log_var
        score = torch.cat([score_mean, score_log_var], dim=-1)  # (S, 2d)
        return (log_w - baseline).unsqueeze(-1) * score


def evaluate(log_joint: LogJoint, z: Tensor) -> Tensor:
    """``log_joint(z)``, one value for each row of z; ``ValueError`` if it gives another shape."""
    values = log_joint(z)
    if values.shape != z.shape[:-1]:
        raise ValueError(
            f"log_joint must map z {tuple(z.shape)} to one value a row, {tuple(z.shape[:-1])}, "
            f"got {tuple(values.shape)}: sum over the last dimension and over nothing else"
        )
    return values


def check_family(mean: Tensor, log_var: Tensor, num_samples: int) -> None:
    """``ValueError`` unless both describe one diagonal Gaussian and at least one sample is asked for."""
    if mean.dim() != 1 or mean.shape != log_var.shape:
        raise ValueError(
            "mean and log_var must both have shape (d,), "
            f"got {tuple(mean.shape)} and {tuple(log_var.shape)}: "
            "estimate the gradient for one data point at a time"
        )
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: ask for some samples")


def _check_batch(**arguments: Tensor) -> None:
    """One batch shape may repeat along new leading dimensions: (B,) goes with (K, B), not with (B, 1)."""
    shapes = [tuple(value.shape) for value in arguments.values()]
    message = (
        f"{' and '.join(arguments)} must have one batch shape, got {' and '.join(map(str, shapes))}: "
        "sum over the event dimensions and drop dimensions of size 1"
    )
    try:
        common = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError as error:
        raise ValueError(message) from error
    if common not in shapes:
        raise ValueError(message)
