"""The categorical distribution over levels."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.logistic_mixture.checks import as_constant_levels


def categorical_log_prob(y: Tensor, logits: Tensor) -> Tensor:
    """Log-softmax of ``logits (..., L)`` at the levels ``y (...)``, in nats; batch dimensions broadcast.

    ``y`` holds 0, ..., L - 1, as integers or as floats. Ledger D3. Raises ``ValueError`` for other values,
    and for a y that requires a gradient.
    """
    num_levels = logits.shape[-1]
    levels = as_constant_levels(y, num_levels).long()
    log_p = torch.log_softmax(logits, dim=-1)
    shape = torch.broadcast_shapes(levels.shape, log_p.shape[:-1])
    index = levels.expand(shape).unsqueeze(-1)
    return log_p.expand(*shape, num_levels).gather(-1, index).squeeze(-1)


def categorical_sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A level for each of ``logits (..., L)``: ``(...)``, in the logits' dtype. Ledger D3."""
    probabilities = torch.softmax(logits, dim=-1).reshape(-1, logits.shape[-1])  # (N, L)
    drawn = torch.multinomial(probabilities, 1, generator=generator)  # (N, 1)
    return drawn.reshape(logits.shape[:-1]).to(logits.dtype)
