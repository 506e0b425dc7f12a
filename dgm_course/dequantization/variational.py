"""Learned noise: a conditional flow on the unit cube."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgm_course.dequantization.neighbourhood import ContextAffine, Neighbourhood
from dgm_course.dequantization.noise import (
    Dequantizer,
    check_inside,
    sample_shape,
)
from dgm_course.flows import Sigmoid, Transform, autoregressive_transform, realnvp_transform
from dgm_course.logistic_mixture import logistic_log_prob
from dgm_course.logistic_mixture.checks import check_levels
from dgm_course.logistic_mixture.sampling import uniform_noise
from dgm_course.nets import MLP, members_of


class VariationalDequantizer(Dequantizer):
    """``u = sigmoid(g(epsilon; h(y)))``, g a flow, h a network: noise strictly inside the unit cube.

    ``transform`` acts on vectors ``(..., m)`` and takes the context ``h = context(y)``, ``(..., B, c)``; the
    levels that ``context`` sees are scaled to (-1, 1). The base is the standard *logistic* distribution
    (Flow++ has a normal), of which the sigmoid makes uniform noise: with the identity for g, q(u|y) is
    uniform, so that the family contains uniform dequantization and starts there. Stacked networks
    (``members=E``) as in :class:`Dequantizer`.

    Ledger D5, D8; Ho et al. 2019, "Flow++". Raises ``ValueError`` for ``num_levels < 2`` or a transform of
    images; the methods, for a y that is no level.
    """

    def __init__(self, transform: Transform, context: nn.Module, num_levels: int) -> None:
        super().__init__()
        if num_levels < 2 or transform.event_dims != 1:
            raise ValueError(
                f"a dequantizer needs at least two levels and a transform of vectors, got num_levels="
                f"{num_levels} and event_dims={transform.event_dims}: flatten images"
            )
        self.transform = transform
        self.squash = Sigmoid()
        self.context = context
        self.num_levels = num_levels
        self.members = members_of(nn.ModuleList([transform, context]))

    @classmethod
    def coupling(
        cls,
        num_dims: int,
        num_levels: int,
        *,
        num_layers: int = 2,
        hidden: int = 64,
        context: int = 32,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> VariationalDequantizer:
        """Affine couplings with alternating masks; starts uniform. ``ValueError`` for ``num_dims < 2``."""
        if num_dims < 2:
            raise ValueError(
                f"couplings need num_dims >= 2, got {num_dims}: one entry moves another; use "
                "VariationalDequantizer.autoregressive"
            )
        transform = realnvp_transform(
            num_dims,
            num_layers=num_layers,
            hidden=(hidden,),
            context=context,
            members=members,
            generator=generator,
        )
        net = MLP([num_dims, hidden, context], members=members, generator=generator)
        return cls(transform, net, num_levels)

    @classmethod
    def autoregressive(
        cls,
        num_dims: int,
        num_levels: int,
        *,
        num_layers: int = 1,
        hidden: int = 32,
        context: int = 16,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> VariationalDequantizer:
        """Inverse autoregressive flows, the order reversed between them; starts uniform. Also for m = 1."""
        transform = autoregressive_transform(
            "iaf",
            num_dims,
            num_layers=num_layers,
            hidden=(max(hidden, num_dims),),
            context=context,
            members=members,
            generator=generator,
        )
        net = MLP([num_dims, hidden, context], members=members, generator=generator)
        return cls(transform, net, num_levels)

    @classmethod
    def neighbourhood(
        cls,
        image_shape: Sequence[int],
        num_levels: int,
        *,
        hidden: int = 32,
        members: int | None = None,
        generator: torch.Generator | None = None,
    ) -> VariationalDequantizer:
        """Noise of pictures ``(C, H, W)``, independent given y: each entry's reads its 3 x 3 neighbourhood.

        Two numbers an entry, ``u = sigmoid(a + b epsilon)``, from one small network for all places; starts
        uniform. :class:`dgm_course.dequantization.neighbourhood.Neighbourhood` says what it sees.
        """
        settings = {"hidden": hidden, "members": members, "generator": generator}
        return cls(ContextAffine(), Neighbourhood(image_shape, num_levels, **settings), num_levels)

    def rsample(
        self, y: Tensor, num_samples: int = 1, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """``u (..., n, B, m)`` and ``log q(u|y) (..., n, B)``, in the dtype of the networks."""
        shape = sample_shape(y, num_samples, self.members)
        conditions = self._conditions(y)
        epsilon = torch.logit(uniform_noise(shape, like=conditions, generator=generator))
        z, log_det = self.transform(epsilon, conditions)
        u, squash_log_det = self.squash(z)
        return u, logistic_log_prob(epsilon, 0.0, 0.0).sum(-1) - log_det - squash_log_det

    def log_prob(self, u: Tensor, y: Tensor) -> Tensor:
        """``log q(u|y)``, through the flow's ``inverse``; ``ValueError`` for u outside the open unit cube.

        A stack takes ``u (E, n, B, m)``, or ``u (n, B, m)`` for all members. Very close to 1 a float32 u says
        little about the z that it came from: there :meth:`rsample`'s own ``log_q`` is the accurate one.
        """
        check_inside(u)
        if self.members is not None and u.dim() == 3:
            u = u.expand(self.members, *u.shape)
        z, squash_log_det = self.squash.inverse(u)
        epsilon, log_det = self.transform.inverse(z, self._conditions(y))
        return logistic_log_prob(epsilon, 0.0, 0.0).sum(-1) + log_det + squash_log_det

    def _conditions(self, y: Tensor) -> Tensor:
        """What the networks know of y, with a dimension for the samples: ``(..., 1, B, c)``."""
        check_levels(y, self.num_levels)
        default = y if y.is_floating_point() else torch.empty(0)
        dtype = next(self.parameters(), default).dtype
        centred = (y.to(dtype) + 0.5) * (2.0 / self.num_levels) - 1.0
        return self.context(centred).unsqueeze(-3)
