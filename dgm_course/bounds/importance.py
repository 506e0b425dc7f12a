"""The importance-weighted bound and what a set of importance weights tells about itself.

Log-weights ``log w_k = log p(x, z_k) - log q(z_k|x)`` carry the samples in ``dim``: the first dimension of
``(K,)`` and ``(K, B)``, to be named where there are more (``dim=-2`` for stacked models' ``(E, K, B)``). The
results have the shape of the other dimensions. Everything is computed from logarithms, so that weights of any
size neither overflow nor vanish.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.numerics import log_mean_exp


def iwae_bound(log_w: Tensor, dim: int | None = None) -> Tensor:
    """One draw of the K-sample bound: ``log (1/K) sum_k w_k``, in nats, ``(K, ...) -> (...)``.

    Its mean over ``z_1, ..., z_K ~ q(z|x)`` is L_K: the ELBO at K = 1, and never above log p(x), since
    ``E (1/K) sum_k w_k = p(x)`` and the logarithm is concave. Differentiable: autograd through it is the
    gradient of :func:`iwae_gradient`. ``-inf`` (with no gradient) where all weights are zero. Burda, Grosse
    and Salakhutdinov 2016, "Importance weighted autoencoders". Ledger I1, I2. Raises ``ValueError`` without
    samples.
    """
    return log_mean_exp(log_w, sample_dim(log_w, dim))


def normalized_weights(log_w: Tensor, dim: int | None = None) -> Tensor:
    """Self-normalised weights ``w_k / sum_j w_j``: shape of ``log_w``, sum 1 along ``dim``. Ledger I5.

    NaN where all weights are zero, as the two functions below. Raises ``ValueError`` without samples.
    """
    return torch.softmax(log_w, sample_dim(log_w, dim))


def effective_sample_size(log_w: Tensor, dim: int | None = None) -> Tensor:
    """``(sum_k w_k)^2 / sum_k w_k^2``, between 1 and K: ``(K, ...) -> (...)``.

    How many equal weights would be as good. For K samples of q it is about ``K / (1 + chi^2(p(z|x) || q))``.
    A low value warns that an estimate rests on few samples; a high one does not certify it: samples that all
    miss the same mode of the posterior have equal weights. Kong 1992; Ledger I8. Raises ``ValueError``
    without samples.
    """
    dim = sample_dim(log_w, dim)
    return 1.0 / normalized_weights(log_w, dim).square().sum(dim)


def chi2_from_log_weights(log_w: Tensor, dim: int | None = None) -> Tensor:
    """Estimate ``chi^2(p(z|x) || q) = E_q w^2 / (E_q w)^2 - 1`` from N weights: ``(N, ...) -> (...)``.

    It is ``N / ESS - 1``, at most N - 1: where the weights have no variance (q's tails are too light) the
    estimate stays finite and grows with N. Ledger I3. Raises ``ValueError`` without samples.
    """
    dim = sample_dim(log_w, dim)
    weights = normalized_weights(log_w, dim)
    count = weights.shape[dim]
    return count * (weights - 1.0 / count).square().sum(dim)  # N sum w^2 - 1 without cancellation


def iwae_gap(chi2: float | Tensor, num_samples: int | Tensor) -> float | Tensor:
    """The bound's gap at large K, to leading order: ``log p(x) - L_K ~ chi^2(p(z|x) || q) / (2 K)``, in nats.

    The first term of the delta method, no bound; it needs ``E_q w^2 < inf``. For Gaussians ``chi2`` is
    :func:`dgm_course.gaussian.gaussian_chi2`, on a grid :func:`dgm_course.divergences.chi2_divergence`, from
    samples :func:`chi2_from_log_weights`. Nowozin 2018, "Debiasing evidence approximations"; Domke and
    Sheldon 2018. Ledger I3. Raises ``ValueError`` unless ``num_samples >= 1``.
    """
    if not bool(torch.as_tensor(num_samples >= 1).all()):
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: it is the K of the bound")
    return chi2 / (2.0 * num_samples)


def sample_dim(log_w: Tensor, dim: int | None) -> int:
    """The dimension of the samples: ``dim``, or 0 for ``(K,)`` and ``(K, B)``.

    Raises ``ValueError`` where there is no such dimension or it is empty, and where three or more dimensions
    leave open which one is meant.
    """
    if dim is None and log_w.dim() > 2:
        raise ValueError(
            f"log-weights of shape {tuple(log_w.shape)} leave open which dimension holds the samples: name "
            "it, dim=-2 for (E, K, B)"
        )
    dim = 0 if dim is None else dim
    if not -log_w.dim() <= dim < log_w.dim() or log_w.shape[dim] == 0:
        raise ValueError(
            f"log-weights need at least one sample along dim={dim}, got shape {tuple(log_w.shape)}: draw "
            "K >= 1 samples and keep them in a dimension of their own"
        )
    return dim
