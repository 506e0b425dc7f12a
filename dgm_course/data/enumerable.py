"""Binary data small enough to enumerate: every expectation over it is a sum, not an estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_BITS = 20


def enumerable_binary(
    num_bits: int = 8,
    probabilities: Sequence[float] = (0.2, 0.8),
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """All ``2^m`` binary vectors of length m and their exact log-probabilities (nats).

    ``pi(x) = 1/C sum_c prod_i p_c^{x_i} (1 - p_c)^{1 - x_i}``: an even mixture of C product Bernoullis. The
    bits depend on each other only through c. Returns ``x (2^m, m)``, rows in counting order with the first
    column most significant, and ``log_prob (2^m,)``, computed in float64 and rounded to ``dtype``.
    Raises ``ValueError`` unless ``1 <= num_bits <= 20`` and every probability lies in [0, 1]. Ledger C6.

    >>> x, log_prob = enumerable_binary(2, (0.5,))
    >>> x.tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    >>> log_prob.exp().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if not 1 <= num_bits <= MAX_BITS:
        raise ValueError(
            f"num_bits must lie between 1 and {MAX_BITS}, got {num_bits}: the table has 2^num_bits rows; use "
            "12 or fewer for a demonstration"
        )
    p = torch.tensor(list(probabilities), dtype=torch.float64)  # (C,)
    if p.numel() == 0 or not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(
            "probabilities holds one number in [0, 1] a component, at least one, got "
            f"{tuple(probabilities)}: give for example (0.2, 0.8)"
        )
    shifts = torch.arange(num_bits - 1, -1, -1)
    x = (torch.arange(2**num_bits).unsqueeze(-1) >> shifts) & 1  # (2^m, m)
    ones = x.sum(-1, keepdim=True).double()  # (2^m, 1)
    log_component = torch.xlogy(ones, p) + torch.xlogy(num_bits - ones, 1.0 - p)  # (2^m, C); 0 log 0 = 0
    log_prob = torch.logsumexp(log_component, dim=-1) - math.log(len(p))
    return x.to(dtype=dtype, device=device), log_prob.to(dtype=dtype, device=device)


def entropy(log_prob: Tensor, dim: int = -1) -> Tensor:
    """Entropy of an enumerated distribution, ``H(pi) = -sum_x pi(x) log pi(x)``, in nats; ``0 log 0 = 0``.

    ``log_prob`` lists every outcome along ``dim``, and the result lacks that dimension. The least average
    negative log-likelihood that any model of ``pi`` can reach (ledger C6).
    Raises ``ValueError`` if the probabilities do not sum to one.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0]).log())
    tensor(0.6931)
    """
    total = log_prob.exp().sum(dim)
    if not bool(((total - 1.0).abs() < 1e-4).all()):
        raise ValueError(
            f"the probabilities of all outcomes sum to 1, got {total.tolist()}: list every outcome along "
            f"dim={dim} and subtract the logsumexp of unnormalised values"
        )
    return torch.special.entr(log_prob.exp()).sum(dim)
