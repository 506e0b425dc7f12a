"""What becomes of arguments before the arithmetic: one dtype, and tensors that autograd may keep."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def common_dtype(*numbers: Tensor | float) -> torch.dtype:
    """The widest floating dtype among the tensors, float32 at least; without any, the default dtype.

    Half precision is too coarse for a bin's edges, and the clamps overflow in float16.
    """
    dtypes = [t.dtype for t in numbers if isinstance(t, Tensor) and t.is_floating_point()]
    return functools.reduce(torch.promote_types, dtypes or [torch.get_default_dtype()], torch.float32)


def in_common_dtype(first: Tensor, *others: Tensor | float) -> list[Tensor]:
    """All as tensors of :func:`common_dtype`; numbers that are no tensors go to the device of ``first``."""
    dtype = common_dtype(first, *others)
    return [
        t.to(dtype) if isinstance(t, Tensor) else torch.tensor(t, dtype=dtype, device=first.device)
        for t in (first, *others)
    ]


def out_of_inference_mode(t: Tensor) -> Tensor:
    """A copy if t was made in inference mode, which autograd refuses to keep for the backward pass."""
    return t.clone() if t.is_inference() and torch.is_grad_enabled() else t
