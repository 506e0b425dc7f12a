"""Fitting a flow: the reverse KL from samples; and the flow as a VAE with a nearly deterministic encoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dgm_course.flows.base import Flow, Transform


def reverse_kl(
    flow: Flow,
    log_target: Callable[[Tensor], Tensor],
    num_samples: int,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples of ``log p(x) - log target(x)``, x from the flow: ``(num_samples, *batch)``, nats.

    Their mean estimates ``KL(p || pi) - log Z`` for a target known up to its normaliser Z
    (``target = Z pi``), with reparametrised gradients. The forward KL needs no function: it is the mean of
    ``-flow.log_prob(x)`` over data, up to the data's entropy. With ``target(z) = p(x, z)`` each is minus one
    sample of the ELBO of a flow posterior, and log Z is log p(x). Ledger F2, V2.
    """
    x, log_prob = flow.rsample_with_log_prob((num_samples,), generator=generator)
    return log_prob - log_target(x)


def likelihood_term(
    transform: Transform, x: Tensor, noise_scale: float, noise: Tensor, weights: Tensor
) -> Tensor:
    """``E_q[log p(x|z) - log q(z|x)]`` of the VAE that a flow is: ``(d,) -> ()`` or ``(B, d) -> (B,)``, nats.

    Encoder ``q(z|x) = N(f(x), s^2 J J^T)`` with ``J = J_f(x)``, decoder ``p(x|z) = N(g(z), s^2 I)``,
    ``s = noise_scale``. It tends to ``log|det J_f(x)|`` as s -> 0, with bias O(s^2), so that the VAE's ELBO
    tends to the flow's log-likelihood. The expectation is ``sum_n weights_n (.)`` over ``noise (N, d)``: a
    Gauss-Hermite rule, or samples of N(0, I) with weights 1/N. Use float64: differences of the size of s are
    divided by s. Ledger F11; Nielsen et al. 2020, "SurVAE flows". Raises ``ValueError`` for a scale that is
    not positive.
    """
    if not 0 < noise_scale < math.inf:
        raise ValueError(f"noise_scale must be positive and finite, got {noise_scale}")
    if x.dim() > 1:
        return torch.stack([likelihood_term(transform, row, noise_scale, noise, weights) for row in x])
    jacobian = torch.autograd.functional.jacobian(lambda point: transform.inverse(point)[0], x)  # (d, d)
    z = transform.inverse(x)[0] + noise_scale * noise @ jacobian.mT  # (N, d)
    log_q = -0.5 * noise.square().sum(-1) - torch.linalg.slogdet(jacobian).logabsdet
    log_p = -0.5 * ((x - transform(z)[0]) / noise_scale).square().sum(-1)
    return weights @ (log_p - log_q)  # -d log s - d/2 log 2 pi stands in both, and cancels
