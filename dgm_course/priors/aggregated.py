"""The aggregated posterior as a prior: the training ELBO's optimum, at the price of the whole data set."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.mixtures import mixture_log_prob, mixture_sample
from dgm_course.priors.base import Prior, check_count


class AggregatedPosterior(Prior):
    """``q_agg(z) = (1/n) sum_i q(z|x_i)``: the mixture of all n posteriors of a data set. Ledger S4.

    ``mean`` and ``log_var ([E,] n, d)`` are what the encoder makes of the data. Copies of them are held, with
    their graph: from a frozen encoder (computed under ``torch.no_grad()``) nothing is trained; computed with
    gradients, in every step anew, the prior trains jointly with the encoder (and PyTorch does not deepcopy
    it: detach them first). No other prior gives the data a larger
    ELBO; one density costs n, and held-out data may prefer another. Raises ``ValueError`` for other shapes.
    """

    def __init__(self, mean: Tensor, log_var: Tensor) -> None:
        if mean.shape != log_var.shape or mean.dim() not in (2, 3) or mean.shape[-2] == 0:
            raise ValueError(
                f"mean and log_var must both be (n, d), or (E, n, d) for a stack, with n >= 1, got "
                f"{tuple(mean.shape)} and {tuple(log_var.shape)}: pass what the encoder makes of the data set"
            )
        super().__init__(mean.shape[-1], len(mean) if mean.dim() == 3 else None)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("log_var", log_var.clone())

    def log_prob(self, z: Tensor, *, exclude: Tensor | None = None) -> Tensor:
        """``log q_agg(z)``; ``exclude (...)`` leaves out, for each z, the posterior of one data point.

        See :func:`dgm_course.mixtures.mixture_log_prob`. Streamed: memory does not grow with points times n.
        """
        self._check_z(z)
        return mixture_log_prob(z, self.mean, self.log_var, exclude=exclude)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``([E,] n, d)``: a random data point, then a sample of its posterior."""
        check_count(n)
        return mixture_sample(n, self.mean, self.log_var, generator=generator)

    def take_member(self, index: int) -> None:
        """Keep the posteriors of one member."""
        super().take_member(index)
        self.mean, self.log_var = self.mean[index].clone(), self.log_var[index].clone()
