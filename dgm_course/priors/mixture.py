"""The mixture-of-Gaussians prior: K diagonal Gaussians whose means, variances and weights are learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dgm_course.mixtures import mixture_log_prob, mixture_sample
from dgm_course.priors.base import Prior, check_count


class MixturePrior(Prior):
    """``p(z) = sum_k w_k N(z; mean_k, diag exp(log_var_k))`` with softmax weights, all K components learned.

    Starts with means drawn from N(0, spread^2 I), unit variances and equal weights. With all means 0 it is
    N(0, I): at its optimum it cannot do worse than that on the data that it is fitted to. Ledger S5.
    Raises ``ValueError`` for no components or a negative spread.
    """

    def __init__(
        self,
        num_components: int,
        latent_dim: int,
        *,
        spread: float = 1.0,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(latent_dim, members)
        if num_components < 1 or spread < 0:
            raise ValueError(
                f"a mixture needs num_components >= 1 and spread >= 0, got {num_components} and {spread}: "
                "give a positive number of components, and spread=0 for a start at N(0, I)"
            )
        stack = () if members is None else (members,)
        device = None if generator is None else generator.device
        means = torch.randn(*stack, num_components, latent_dim, generator=generator, device=device)
        self.means = nn.Parameter(spread * means)  # ([E,] K, d)
        self.log_vars = nn.Parameter(torch.zeros_like(means))
        self.logits = nn.Parameter(means.new_zeros(*stack, num_components))

    @torch.no_grad()
    def start_from(self, mean: Tensor, log_var: Tensor, generator: torch.Generator | None = None) -> None:
        """Put each component on the posterior of a random data point: ``mean, log_var ([E,] n, d)``.

        All start with equal weights and one width: that of the code divided into K heaps, but at least a
        posterior's own, below which components would lose what lies between them. ``generator`` must live on
        the device of ``mean``. Raises ``ValueError`` for shapes that do not fit, or fewer points than
        components.
        """
        *stack, count, dim = self.means.shape
        fits = mean.shape == log_var.shape and mean.dim() == len(stack) + 2
        if not fits or [*mean.shape[:-2], mean.shape[-1]] != [*stack, dim]:
            wanted = ", ".join(map(str, [*stack, "n", dim]))
            raise ValueError(
                f"mean and log_var must both be ({wanted}), got {tuple(mean.shape)} and "
                f"{tuple(log_var.shape)}: pass what the encoder makes of the data set"
            )
        n = mean.shape[-2]
        rows = torch.randperm(n, generator=generator, device=mean.device)[:count]
        if len(rows) < count:
            raise ValueError(f"{count} components need as many data points, got {n}: use fewer components")
        self.means.copy_(mean[..., rows, :])
        within = log_var.exp().mean(-2, keepdim=True)
        total = mean.var(-2, keepdim=True, correction=0) + within
        heap = total.log() - 2.0 / dim * math.log(count)
        self.log_vars.copy_(torch.maximum(heap, within.log()).expand_as(self.log_vars))
        self.logits.zero_()

    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)``."""
        self._check_z(z)
        return mixture_log_prob(z, self.means, self.log_vars, torch.log_softmax(self.logits, -1))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``([E,] n, d)``."""
        check_count(n)
        return mixture_sample(n, self.means, self.log_vars, self.logits, generator=generator)
