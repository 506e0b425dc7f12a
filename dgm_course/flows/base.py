"""What a flow is: bijections with a log-determinant, their composition, and the density that they induce.

**Direction.** ``forward`` is the sampling direction g: z -> x, from the base to the target; ``inverse`` is
f = g^-1: x -> z. Each returns ``(value, log_det)``, log_det = log|det J| of the map just applied, in nats.

**Shapes.** ``(..., *event_shape)``; all leading dimensions are batch, and ``log_det`` has the batch shape. An
event is a vector ``(d,)`` (``event_dims = 1``) or an image ``(C, H, W)`` (``event_dims = 3``).

**Context.** ``context`` is what a conditional flow depends on beside its input. A transform with a network
hands it on; one without ignores it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

Pair = tuple[Tensor, Tensor]


class Transform(nn.Module, abc.ABC):
    """A bijection of events, in both directions, each with its log-determinant. Ledger F1.

    ``event_dims`` is the number of dimensions of one event. Subclasses keep dtype and device of their input
    and never change it in place; where the inverse has no closed form their docstring says how it is found.
    """

    event_dims: int = 1

    @abc.abstractmethod
    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """Sampling direction: ``x = g(z)`` and ``log|det J_g(z)|``: ``(..., *event)``, ``(...)``."""

    @abc.abstractmethod
    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """The other direction: ``z = f(x)`` and ``log|det J_f(x)|``: ``(..., *event)``, ``(...)``."""

    def batch_shape_of(self, value: Tensor) -> torch.Size:
        """The leading dimensions of ``value``; ``ValueError`` if it has fewer than one event has."""
        if value.dim() < self.event_dims:
            raise ValueError(
                f"{type(self).__name__} acts on events of {self.event_dims} dimension(s) behind any batch "
                f"dimensions, got shape {tuple(value.shape)}: add the missing dimensions"
            )
        return value.shape[: value.dim() - self.event_dims]


class Compose(Transform):
    """Transforms one after another: ``forward`` applies the first first, g = g_K o ... o g_1.

    The log-determinants add up. ``compose[:k]`` is the flow of the first k transforms, sharing parameters.
    Raises ``ValueError`` without transforms or if they act on different kinds of events. Ledger F1.
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)
        kinds = {transform.event_dims for transform in self.transforms}
        if len(kinds) != 1:
            raise ValueError(
                f"a composition needs at least one transform, all for events of as many dimensions, got "
                f"{len(self.transforms)} transforms with event_dims {sorted(kinds)}"
            )
        self.event_dims = kinds.pop()

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """``g_K(... g_1(z))`` and the sum of the log-determinants."""
        first, *rest = self.transforms
        x, log_det = first(z, context)
        for transform in rest:
            x, step = transform(x, context)
            log_det = log_det + step
        return x, log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """``f_1(... f_K(x))`` and the sum of the log-determinants."""
        last, *rest = reversed(self.transforms)
        z, log_det = last.inverse(x, context)
        for transform in rest:
            z, step = transform.inverse(z, context)
            log_det = log_det + step
        return z, log_det

    def __getitem__(self, index: int | slice) -> Transform:
        """One transform, or the composition of some of them."""
        chosen = self.transforms[index]
        return Compose(chosen) if isinstance(chosen, nn.ModuleList) else chosen

    def __iter__(self) -> Iterator[Transform]:
        """The transforms, in the order of ``forward``."""
        return iter(self.transforms)

    def __len__(self) -> int:
        """How many transforms."""
        return len(self.transforms)


class Inverse(Transform):
    """The same bijection run the other way: ``forward`` is the given transform's ``inverse``. Ledger F5."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.event_dims = transform.event_dims

    def forward(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """The given transform's inverse."""
        return self.transform.inverse(z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """The given transform's forward."""
        return self.transform(x, context)


class Flow(nn.Module, Distribution):
    """The distribution of ``x = g(z)``, z from a base: ``log p(x) = log p_0(f(x)) + log|det J_f(x)|``.

    ``base`` is the shape of an event, for a standard normal (an int ``d`` means ``(d,)``), or any
    ``torch.distributions.Distribution`` with events like the transform's; its batch shape is the flow's.
    The flow is a ``Distribution`` itself and stands wherever one is expected (in a mixture, as the base of
    another flow), and a ``Module`` with the transform's parameters. A given base's own parameters do not move
    with ``.to(...)``: build it on the right device.

    ``log_prob(x)``: ``(..., *event) -> (...)``, nats. Ledger F1, F2; Rezende & Mohamed 2015.
    Raises ``ValueError`` if base and transform disagree on what an event is.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, transform: Transform, base: Distribution | int | Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.transform = transform
        self.base = base if isinstance(base, Distribution) else None
        if self.base is None:
            batch, event = torch.Size(), torch.Size([base] if isinstance(base, int) else base)
        else:
            batch, event = self.base.batch_shape, self.base.event_shape
        if len(event) != transform.event_dims:
            raise ValueError(
                f"the transform's events have {transform.event_dims} dimension(s), the base's the shape "
                f"{tuple(event)}: wrap the base in torch.distributions.Independent, or pass the event's shape"
            )
        Distribution.__init__(self, batch, event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All of the event space."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``log p(x)`` in nats: ``(..., *event) -> (...)``. ``ValueError`` for another event shape."""
        if x.shape[max(x.dim() - len(self.event_shape), 0) :] != self.event_shape:
            raise ValueError(
                f"x must end in the event shape {tuple(self.event_shape)}, got shape {tuple(x.shape)}: "
                "reshape the data, events last"
            )
        z, log_det = self.transform.inverse(x, context)
        return self._base_log_prob(z) + log_det

    def rsample_with_log_prob(
        self,
        sample_shape: int | Sequence[int] = (),
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pair:
        """Reparametrised samples ``x (*sample_shape, *batch, *event)`` and their log p(x), in one pass.

        ``context (*context_batch, c)`` appends its batch dimensions to ``sample_shape``. ``generator`` goes
        with the standard normal base. Raises ``ValueError`` if it is given for another base.
        """
        z = self._base_sample(self._shape(sample_shape, context), generator)
        x, log_det = self.transform(z, context)
        return x, self._base_log_prob(z) - log_det

    def rsample(
        self,
        sample_shape: int | Sequence[int] = (),
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples through which gradients flow: ``(*sample_shape, *batch, *event)``."""
        return self.transform(self._base_sample(self._shape(sample_shape, context), generator), context)[0]

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples without gradients: ``(*sample_shape, *batch, *event)``; an int n means ``(n,)``."""
        with torch.no_grad():
            return self.rsample(sample_shape, context=context, generator=generator)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Flow:
        """The same flow over a larger batch shape, sharing the transform: see ``Distribution.expand``."""
        base = self.base if self.base is not None else self._standard_normal()
        return Flow(self.transform, base.expand(torch.Size(batch_shape)))

    def _shape(self, sample_shape: int | Sequence[int], context: Tensor | None) -> torch.Size:
        shape = torch.Size([sample_shape] if isinstance(sample_shape, int) else sample_shape)
        if context is None:
            return shape
        own = context.shape[: context.dim() - self.transform.event_dims]
        return shape if own == self.batch_shape else shape + own

    def _like(self) -> tuple[torch.dtype, torch.device | None]:
        """Dtype and device of the transform; the defaults if it holds no tensor."""
        tensors = [*self.transform.parameters(), *self.transform.buffers()]
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.dtype, tensor.device
        return torch.get_default_dtype(), None

    def _standard_normal(self) -> Distribution:
        dtype, device = self._like()
        zeros = torch.zeros(self.event_shape, dtype=dtype, device=device)
        return torch.distributions.Independent(torch.distributions.Normal(zeros, 1.0), len(self.event_shape))

    def _base_sample(self, sample_shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        if self.base is not None:
            if generator is not None:
                raise ValueError(
                    "torch.distributions draw from the global random state, so a generator cannot be used "
                    f"with the base {type(self.base).__name__}: call torch.manual_seed instead, or pass the "
                    "event's shape as the base to have a standard normal"
                )
            draw = self.base.rsample if self.base.has_rsample else self.base.sample
            return draw(sample_shape)
        dtype, device = self._like()
        if device is None:
            device = None if generator is None else generator.device
        shape = (*sample_shape, *self.event_shape)
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)

    def _base_log_prob(self, z: Tensor) -> Tensor:
        if self.base is not None:
            return self.base.log_prob(z)
        return -0.5 * (z.square() + math.log(2.0 * math.pi)).flatten(z.dim() - len(self.event_shape)).sum(-1)
