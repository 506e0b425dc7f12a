"""A few overlapping Gaussian posteriors, and what the surgery of them is, with torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal

F64 = torch.float64
CLOSE = {"rtol": 1e-11, "atol": 1e-11}
stacks = pytest.mark.parametrize("stack", [(), (3,)], ids=["single", "stack"])


def seeded(seed: int = 3, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def posteriors(*stack: int, n: int = 6, d: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Overlapping posteriors of unequal widths: mean and log-variance, ``(*stack, n, d)``."""
    noise = torch.randn(2, *stack, n, d, dtype=F64, generator=seeded(seed))
    return 1.2 * noise[0], 0.7 * noise[1] - 0.8


def normal(mean: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


def mixture(mean: Tensor, log_var: Tensor) -> MixtureSameFamily:
    """The aggregated posterior of ``(n, d)`` means and log-variances."""
    return MixtureSameFamily(Categorical(logits=mean.new_zeros(len(mean))), normal(mean, log_var))


def draws(mean: Tensor, log_var: Tensor, num_samples: int, seed: int = 3) -> Tensor:
    """The library's samples: noise ``(S, [E,] n, d)`` from the same seed, samples before members."""
    eps = torch.randn(num_samples, *mean.shape, dtype=mean.dtype, generator=seeded(seed))
    return (mean + torch.exp(0.5 * log_var) * eps).movedim(0, -3)  # ([E,] S, n, d)


def laplace(z: Tensor) -> Tensor:
    """A prior that is not Gaussian: ``(..., d) -> (...)``."""
    return Laplace(torch.zeros_like(z), 0.8).log_prob(z).sum(-1)


def by_hand(mean: Tensor, log_var: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """log q(z|x_i) and log q_agg(z), one member at a time."""
    if mean.dim() == 3:
        rows = [by_hand(*parts) for parts in zip(mean, log_var, z, strict=True)]
        return torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    return normal(mean, log_var).log_prob(z), mixture(mean, log_var).log_prob(z)
