"""Gaussian autoregressive flows, one map: MAF is fast from data to noise, IAF from noise to data.

Both hold a masked network ``net`` that gives each dimension a shift and a raw log-scale from the earlier
dimensions of its input, ``(..., d) -> (..., d, 2)``, such as ``MaskedMLP(d, hidden, 2)``. One direction needs
one network pass. The other is sequential in principle, d passes; :mod:`dgm_course.flows.inversion` does it at
about the cost of one or two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgm_course.flows.base import Pair, Transform
from dgm_course.flows.coupling import soft_clamp
from dgm_course.flows.inversion import solve_autoregressive


def iaf_parameters(mu_hat: Tensor, log_sigma_hat: Tensor) -> Pair:
    """``sigma = 1/sigma_hat``, ``mu = -mu_hat/sigma_hat``: shift and log-scale of the same map the other way.

    ``x = mu_hat + sigma_hat z`` is ``z = mu + sigma x``. Returns ``(mu, log_sigma)``. Ledger F5.
    """
    return -mu_hat * torch.exp(-log_sigma_hat), -log_sigma_hat


class _Autoregressive(Transform):
    """The network and its log-scale. Events are vectors ``(..., d)``."""

    def __init__(self, net: nn.Module, *, log_scale: Callable[[Tensor], Tensor] = soft_clamp) -> None:
        super().__init__()
        self.net = net
        self.log_scale = log_scale

    def parameters_at(self, value: Tensor, context: Tensor | None = None) -> Pair:
        """Shift and log-scale of every dimension given the earlier ones of ``value``: ``(..., d)`` each."""
        out = self.net(value) if context is None else self.net(value, context)
        if out.shape[-2:] != (value.shape[-1], 2):
            raise ValueError(
                "the network of an autoregressive flow must give a shift and a raw log-scale for each "
                f"dimension, (..., {value.shape[-1]}, 2), got {tuple(out.shape)} for {tuple(value.shape)}: "
                "use MaskedMLP(d, hidden, 2)"
            )
        shift, raw = out.unbind(-1)
        return shift, self.log_scale(raw)


class MaskedAutoregressiveFlow(_Autoregressive):
    """MAF: ``x_j = mu_j(x_<j) + sigma_j(x_<j) z_j``, log-determinant ``+sum log sigma`` of ``forward``.

    ``inverse`` (x -> z, the density of data) takes one network pass, all dimensions at once: ``log|det J_f| =
    -sum log sigma``. ``forward`` (sampling) is sequential: exact, by :func:`solve_autoregressive`. Both are
    differentiable (``forward`` once). ``log_scale`` turns the network's second output into log sigma.
    Ledger F5; Papamakarios et al. 2017. Raises ``ValueError`` for a network of another shape.
    """

    def step(self, z: Tensor, out: Tensor) -> Tensor:
        """x of z and the network's outputs at x: ``mu + sigma z``, elementwise."""
        shift, raw = out.unbind(-1)
        return shift + self.log_scale(raw).exp() * z

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """z -> x, dimension after dimension."""
        self.batch_shape_of(z)
        x, out = solve_autoregressive(self.net, self.step, z, context)
        return x, self.log_scale(out[..., 1]).sum(-1)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """x -> z in one pass."""
        self.batch_shape_of(x)
        shift, log_scale = self.parameters_at(x, context)
        return (x - shift) * torch.exp(-log_scale), -log_scale.sum(-1)


class InverseAutoregressiveFlow(_Autoregressive):
    """IAF: ``x_j = mu_j(z_<j) + sigma_j(z_<j) z_j``, log-determinant ``+sum log sigma`` of ``forward``.

    ``forward`` (sampling) takes one network pass; ``inverse`` (the density of a given x) is sequential. With
    :func:`iaf_parameters` it is a MAF run the other way. Ledger F5, V3; Kingma et al. 2016. Arguments, errors
    as :class:`MaskedAutoregressiveFlow`.
    """

    def step(self, x: Tensor, out: Tensor) -> Tensor:
        """z of x and the network's outputs at z: ``(x - mu) / sigma``, elementwise."""
        shift, raw = out.unbind(-1)
        return (x - shift) * torch.exp(-self.log_scale(raw))

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """z -> x in one pass."""
        self.batch_shape_of(z)
        shift, log_scale = self.parameters_at(z, context)
        return z * log_scale.exp() + shift, log_scale.sum(-1)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """x -> z, dimension after dimension."""
        self.batch_shape_of(x)
        z, out = solve_autoregressive(self.net, self.step, x, context)
        return z, -self.log_scale(out[..., 1]).sum(-1)
