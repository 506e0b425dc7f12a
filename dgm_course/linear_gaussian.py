"""The exact model: a linear-Gaussian latent variable model in which nothing needs to be approximated.

``p(z) = N(0, I_d)`` and ``p(x|z) = N(W z + b, sigma2 I_m)``, so ``p(x) = N(b, W W^T + sigma2 I)`` and
``p(z|x) = N(M^-1 W^T (x - b), sigma2 M^-1)`` with ``M = W^T W + sigma2 I``: probabilistic PCA (Tipping and
Bishop 1999). The likelihood, the posterior and the ELBO of any Gaussian q are closed forms: the course's
ruler.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LinearGaussian:
    """The model with parameters ``W (..., m, d)``, ``b (..., m)`` and ``sigma2 (...)``, broadcast together.

    Without leading dimensions points are ``x (..., m)`` and ``z (..., d)`` with any batch shape. With leading
    dimensions ``L`` (one model each) points are ``(n, m)``, shared by all models, or ``(*L, n, m)``, and
    results have the batch shape ``(*L, n)``. Everything in nats, differentiable in every argument.
    Raises ``ValueError`` if the shapes do not fit together or ``sigma2`` is not positive.
    """

    def __init__(self, W: Tensor, b: Tensor, sigma2: Tensor | float) -> None:
        if W.dim() < 2 or b.dim() < 1 or W.shape[-2] != b.shape[-1]:
            raise ValueError(
                f"W must be (..., m, d) and b (..., m), got {tuple(W.shape)} and {tuple(b.shape)}: "
                "W maps the latent z to the data x"
            )
        sigma2 = check_positive(sigma2, "sigma2", like=W)
        try:
            self.leading = torch.broadcast_shapes(W.shape[:-2], b.shape[:-1], sigma2.shape)
        except RuntimeError as error:
            raise ValueError(
                "the leading dimensions of W (..., m, d), b (..., m) and sigma2 (...) must broadcast, "
                f"got {tuple(W.shape)}, {tuple(b.shape)}, {tuple(sigma2.shape)}: give each model one of each"
            ) from error
        self.W = W.expand(*self.leading, *W.shape[-2:])  # (*L, m, d)
        self.b = b.expand(*self.leading, b.shape[-1])  # (*L, m)
        self.sigma2 = sigma2.expand(self.leading)  # (*L)
        self.num_dims, self.num_latents = W.shape[-2:]

    def log_prob(self, x: Tensor) -> Tensor:
        """``log p(x) = log N(x; b, W W^T + sigma2 I)``: ``(..., m) -> (...)``."""
        residual = self._centred(x)  # (*L, n, m)
        mean = residual @ self.encoder().mT  # (*L, n, d)
        unexplained = residual - mean @ self.W.mT  # (*L, n, m)
        # r^T (W W^T + sigma2 I)^-1 r = |r - W mean|^2 / sigma2 + |mean|^2: a sum of squares, no cancellation
        square = unexplained.square().sum(-1) / self._rows(self.sigma2, 0) + mean.square().sum(-1)
        log_det = self.num_dims * self.sigma2.log() + torch.logdet(self.posterior_precision())
        return -0.5 * (self.num_dims * math.log(2 * math.pi) + self._rows(log_det, 0) + square)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """``log p(x, z) = log N(z; 0, I) + log N(x; W z + b, sigma2 I)``: ``(..., m), (..., d) -> (...)``."""
        _check_last(z, self.num_latents, "z", "d")
        error = (self._centred(x) - z @ self.W.mT).square().sum(-1)  # (*L, n)
        sigma2 = self._rows(self.sigma2, 0)
        log_prior = -0.5 * (self.num_latents * math.log(2 * math.pi) + z.square().sum(-1))
        return log_prior - 0.5 * (self.num_dims * (2 * math.pi * sigma2).log() + error / sigma2)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(..., d)`` and covariance ``(..., d, d)`` of ``p(z|x)``; all x share the covariance."""
        mean = self._centred(x) @ self.encoder().mT  # (*L, n, d)
        cov = torch.linalg.inv(self.posterior_precision())  # (*L, d, d)
        return mean, self._rows(cov, 2).expand(*mean.shape, self.num_latents)

    def posterior_precision(self) -> Tensor:
        """Inverse of the posterior's covariance, ``M / sigma2 = I + W^T W / sigma2``: ``(*L, d, d)``."""
        gram = self.W.mT @ self.W / self.sigma2[..., None, None]
        return gram + torch.eye(self.num_latents, dtype=gram.dtype, device=gram.device)

    def encoder(self) -> Tensor:
        """The matrix ``M^-1 W^T`` of the exact encoder, ``E[z|x] = M^-1 W^T (x - b)``: ``(*L, d, m)``."""
        return torch.linalg.solve(self.posterior_precision(), self.W.mT / self.sigma2[..., None, None])

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``n`` draws from each model: ``x (*L, n, m)`` and the ``z (*L, n, d)`` they came from."""
        kind = {"generator": generator, "dtype": self.W.dtype, "device": self.W.device}
        z = torch.randn((*self.leading, n, self.num_latents), **kind)
        noise = torch.randn((*self.leading, n, self.num_dims), **kind)
        x = z @ self.W.mT + self._rows(self.b, 1) + self.sigma2[..., None, None].sqrt() * noise
        return x, z

    def elbo(self, x: Tensor, q_mean: Tensor, q_cov: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        """``E_q[log p(x|z)] - beta KL(q || p(z))`` for ``q = N(q_mean, q_cov)``, exactly.

        Shapes: ``x (..., m)``, ``q_mean (..., d)``, ``q_cov (..., d, d)``, result ``(...)``.
        Raises ``ValueError`` if they do not fit together or ``q_cov`` is not positive definite. Ledger C1.
        """
        _check_last(q_mean, self.num_latents, "q_mean", "d")
        _check_square(q_cov, self.num_latents)
        sigma2 = self._rows(self.sigma2, 0)
        error = (self._centred(x) - q_mean @ self.W.mT).square().sum(-1)  # (*L, n)
        spread = (self._rows(self.W.mT @ self.W, 2) * q_cov).sum((-1, -2))  # tr(W q_cov W^T)
        log_likelihood = -0.5 * (self.num_dims * (2 * math.pi * sigma2).log() + (error + spread) / sigma2)
        trace = q_cov.diagonal(dim1=-2, dim2=-1).sum(-1)
        prior_kl = 0.5 * (trace + q_mean.square().sum(-1) - self.num_latents - log_det(q_cov, "q_cov"))
        return log_likelihood - beta * prior_kl

    def posterior_kl(self, x: Tensor, q_mean: Tensor, q_cov: Tensor) -> Tensor:
        """``KL(q || p(z|x))`` for ``q = N(q_mean, q_cov)``, the ELBO's gap; shapes as in :meth:`elbo`."""
        _check_last(q_mean, self.num_latents, "q_mean", "d")
        _check_square(q_cov, self.num_latents)
        precision = self.posterior_precision()  # (*L, d, d)
        shift = q_mean - self._centred(x) @ self.encoder().mT  # (*L, n, d)
        square = ((shift @ precision) * shift).sum(-1)
        trace = (self._rows(precision, 2) * q_cov).sum((-1, -2))
        log_dets = log_det(q_cov, "q_cov") + self._rows(torch.logdet(precision), 0)
        return 0.5 * (trace + square - self.num_latents - log_dets)

    def _centred(self, x: Tensor) -> Tensor:
        _check_last(x, self.num_dims, "x", "m")
        return x - self._rows(self.b, 1)

    def _rows(self, value: Tensor, event_dims: int) -> Tensor:
        """A value of each model, made to broadcast against the rows of its data."""
        return value.unsqueeze(-1 - event_dims) if self.leading else value


def m_step(x: Tensor, mean: Tensor, cov: Tensor) -> LinearGaussian:
    """The parameters that maximise ``sum_i E_{q_i}[log p(x_i, z)]`` with ``q_i = N(mean_i, cov_i)``.

    Shapes: ``x (..., n, m)``, ``mean (..., n, d)``, ``cov (..., n, d, d)``. The mean b is optimised together
    with W. Raises ``ValueError`` if the optimum has no noise left (``sigma2 = 0``). Ledger C2.
    """
    if x.dim() < 2 or x.shape[-2] != mean.shape[-2] or cov.shape[-2:] != (mean.shape[-1],) * 2:
        raise ValueError(
            "x must be (..., n, m), mean (..., n, d) and cov (..., n, d, d), got "
            f"{tuple(x.shape)}, {tuple(mean.shape)} and {tuple(cov.shape)}: one posterior for each row of x"
        )
    count, num_dims = x.shape[-2:]
    x_bar, z_bar = x.mean(-2, keepdim=True), mean.mean(-2, keepdim=True)
    x_c, z_c = x - x_bar, mean - z_bar  # (..., n, m), (..., n, d)
    spread = cov.mean(-3)  # (..., d, d)
    second = z_c.mT @ z_c / count + spread  # (..., d, d)
    W = torch.linalg.solve(second, z_c.mT @ x_c / count).mT  # (..., m, d)
    b = (x_bar - z_bar @ W.mT).squeeze(-2)  # (..., m)
    error = (x_c - z_c @ W.mT).square().sum(-1).mean(-1) + ((W @ spread) * W).sum((-1, -2))
    return LinearGaussian(W, b, error / num_dims)


def em_step(model: LinearGaussian, x: Tensor) -> LinearGaussian:
    """One step of EM: the exact posterior (E), then :func:`m_step` (M). The likelihood never falls.

    Its stable fixed point is :func:`eigen_solution` up to a rotation of the latents; other subsets of
    eigenvectors are fixed points too, but saddles. ``x (n, m)`` or ``(*L, n, m)``. Ledger C2.
    """
    return m_step(x, *model.posterior(x))


def data_covariance(x: Tensor) -> Tensor:
    """Covariance of the rows with weight 1/n (not 1/(n - 1)): ``(..., n, m) -> (..., m, m)``."""
    centred = x - x.mean(-2, keepdim=True)
    return centred.mT @ centred / x.shape[-2]


def eigen_solution(x: Tensor, num_latents: int, *, sigma2: Tensor | float | None = None) -> LinearGaussian:
    """Maximum likelihood in closed form (Tipping and Bishop 1999): ``W = U_d (Lambda_d - sigma2 I)^(1/2)``.

    ``U_d, Lambda_d`` are the top eigenvectors and eigenvalues of the data's covariance (weight 1/n), b is the
    mean, and sigma2 the average of the eigenvalues left out unless it is given; then directions with an
    eigenvalue below it get a zero column. Shapes: ``x (..., n, m)``, ``sigma2`` a number or ``(...)``.
    Raises ``ValueError`` if no noise is left, or unless ``1 <= num_latents <= m``. Ledger C2.
    """
    num_dims = x.shape[-1]
    if not 1 <= num_latents <= num_dims - (sigma2 is None):
        raise ValueError(
            f"num_latents must be at least 1 and leave noise to estimate in {num_dims} dimensions, "
            f"got {num_latents}: take at most m - 1, or m with a given sigma2"
        )
    values, vectors = torch.linalg.eigh(data_covariance(x))  # ascending
    if sigma2 is None:
        noise = values[..., :-num_latents].mean(-1)
    else:
        noise = check_positive(sigma2, "sigma2", like=x)
    top = values[..., -num_latents:].flip(-1)  # (..., d)
    scale = (top - noise.unsqueeze(-1)).clamp(min=0.0).sqrt()
    return LinearGaussian(vectors[..., -num_latents:].flip(-1) * scale.unsqueeze(-2), x.mean(-2), noise)


def mutual_information(V: Tensor, q_cov: Tensor, covariance: Tensor) -> Tensor:
    """``I_q[x, z] = 1/2 log(det Cov(z) / det q_cov)`` with ``Cov(z) = V covariance V^T + q_cov``, in nats.

    Exact for Gaussian data with that covariance and the encoder ``q(z|x) = N(V (x - b), q_cov)``; for the
    exact posterior of data from the model it is ``1/2 log det(I + W^T W / sigma2)``.
    Shapes: ``V (..., d, m)``, ``q_cov (..., d, d)``, ``covariance (..., m, m)``, result ``(...)``.
    Raises ``ValueError`` if they do not fit together or a covariance of z is not positive definite.
    Ledger C9.
    """
    _check_square(q_cov, V.shape[-2] if V.dim() > 1 else 0)
    _check_last(covariance, V.shape[-1], "covariance", "m")
    aggregate = V @ covariance @ V.mT + q_cov  # (..., d, d)
    return 0.5 * (log_det(aggregate, "the covariance of z") - log_det(q_cov, "q_cov"))


def log_det(cov: Tensor, name: str = "cov") -> Tensor:
    """Log-determinant of a covariance ``(..., d, d) -> (...)``; ``ValueError`` unless positive definite."""
    factor, info = torch.linalg.cholesky_ex(cov)
    if info.any():
        raise ValueError(
            f"{name} must be symmetric and positive definite, got {tuple(cov.shape)} with "
            f"{int((info > 0).sum())} that is not: add a little to its diagonal, or check its sign"
        )
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def check_positive(value: Tensor | float, name: str, *, like: Tensor) -> Tensor:
    """``value`` as a tensor of ``like``'s dtype and device; ``ValueError`` unless all of it is positive."""
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if not (tensor > 0).all():
        raise ValueError(f"{name} must be positive, got a minimum of {tensor.min().item()}: it is a variance")
    return tensor


def _check_last(value: Tensor, size: int, name: str, letter: str) -> None:
    if value.dim() == 0 or value.shape[-1] != size:
        raise ValueError(
            f"{name} must be (..., {letter}) with {letter} = {size}, got {tuple(value.shape)}: "
            "its last dimension must match the model's"
        )


def _check_square(q_cov: Tensor, size: int) -> None:
    if q_cov.shape[-2:] != (size, size):
        raise ValueError(
            f"q_cov must be (..., d, d) with d = {size}, got {tuple(q_cov.shape)}: "
            "a covariance matrix, for variances alone their diag_embed()"
        )
