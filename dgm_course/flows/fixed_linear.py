"""A given linear map of vectors, and the one that whitens data."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_course.flows.base import Pair, Transform


class FixedLinear(Transform):
    """``x = shift + M z`` with a given invertible matrix M ``(d, d)`` and shift ``(d,)``, not trained.

    The log-determinant is ``log|det M|`` for every z. As a flow's last step it is a change of coordinates of
    the data; :meth:`whitening` makes it from their covariance. Whole numbers are taken as floats. The inverse
    is rounded to M's dtype: build in float64 what is to be used in float64. Ledger F1.
    Raises ``ValueError`` unless M is square, invertible and finite, and the shift fits.
    """

    def __init__(self, matrix: Tensor, shift: Tensor) -> None:
        super().__init__()
        if shift.dim() != 1 or matrix.shape != 2 * shift.shape:
            raise ValueError(
                f"FixedLinear needs a matrix (d, d) and a shift (d,), got {tuple(matrix.shape)} and "
                f"{tuple(shift.shape)}: for one scale a dimension use torch.diag, or FixedAffine"
            )
        if not matrix.is_floating_point():
            matrix = matrix.to(torch.get_default_dtype())
        shift, exact = shift.to(matrix.dtype), matrix.detach().double()
        finite = bool(exact.isfinite().all() and shift.isfinite().all())
        if not finite or torch.linalg.matrix_rank(exact) < len(shift):
            raise ValueError(
                "the matrix must be invertible and all entries finite: leave dimensions out that are "
                "constant or exact combinations of others"
            )
        self.register_buffer("matrix", matrix.detach().clone())
        self.register_buffer("inverse_matrix", torch.linalg.inv(exact).to(matrix.dtype))
        self.register_buffer("shift", shift.detach().clone())
        self.register_buffer("log_det", torch.linalg.slogdet(exact).logabsdet.to(matrix.dtype))

    @classmethod
    def whitening(cls, data: Tensor, *, noise_variance: float = 0.0) -> FixedLinear:
        """The map whose inverse gives ``data (n, d)`` mean zero and covariance I (principal axes, scaled).

        ``noise_variance`` is added to each variance: 1/12 for levels that will get uniform noise. Computed in
        float64; the map has the data's dtype (the default one for whole numbers). Raises ``ValueError`` where
        the covariance is singular, and for data that are not finite or no ``(n, d)``.
        """
        exact = data.detach().double()
        if data.dim() != 2 or not data.numel() or not bool(exact.isfinite().all()):
            raise ValueError(
                f"whitening needs finite data (n, d), got shape {tuple(data.shape)} with "
                f"{int((~exact.isfinite()).sum())} entries that are not finite: flatten pictures"
            )
        dtype = data.dtype if data.is_floating_point() else torch.get_default_dtype()
        covariance = torch.atleast_2d(torch.cov(exact.T, correction=0))
        covariance.diagonal().add_(noise_variance)
        variances, axes = torch.linalg.eigh(covariance)
        if not bool((variances > 1e-12 * variances.max()).all()):
            raise ValueError(
                "the data's covariance is singular, so no linear map whitens them: drop constant dimensions, "
                "or add the variance of the noise, noise_variance=1/12"
            )
        return cls((axes * variances.sqrt()).to(dtype), exact.mean(0).to(dtype))

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``shift + M z``."""
        log_det = self._log_det(z)
        return z @ self.matrix.to(z.dtype).mT + self.shift.to(z.dtype), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``M^-1 (x - shift)``."""
        log_det = self._log_det(x)
        return (x - self.shift.to(x.dtype)) @ self.inverse_matrix.to(x.dtype).mT, -log_det

    def _log_det(self, value: Tensor) -> Tensor:
        batch = self.batch_shape_of(value)
        if value.shape[-1] != len(self.shift):
            raise ValueError(
                f"this map is of {len(self.shift)} dimensions, got shape {tuple(value.shape)}: build it for "
                "the size of the event"
            )
        return self.log_det.to(value.dtype).expand(batch).clone()
