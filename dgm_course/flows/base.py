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
import operator
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from dgm_course.gaussian import LOG_2PI
from dgm_course.nets import members_of
from dgm_course.numerics import sum_except_batch

Pair = tuple[Tensor, Tensor]


class Transform(nn.Module, abc.ABC):
    """A bijection of events, in both directions, each with its log-determinant. Ledger F1.

    ``event_dims`` is the number of dimensions of one event, ``codomain`` where x lies. Subclasses keep
    dtype and device of their input and never change it in place; where the inverse has no closed form their
    docstring says how it is found.
    """

    event_dims: int = 1
    codomain: constraints.Constraint = constraints.real

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
        self.codomain = self.transforms[-1].codomain

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
    another flow), and a ``Module`` with the transform's parameters. A given base's own parameters do not
    move with ``.to(...)``: build it on the right device.

    ``log_prob(x)``: ``(..., *event) -> (...)``, nats; of a stack of E transforms ``(E, ...)``. Such a stack
    does not sample here, since samples come first in a distribution and members first in a stack: hand its
    ``transform`` noise ``(E, n, *event)``. Ledger F1, F2; Rezende & Mohamed 2015.
    Raises ``ValueError`` if base and transform disagree on what an event is.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

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
        """The event space, or the part of it that the transform maps to."""
        return constraints.independent(self.transform.codomain, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:
        """Whether gradients flow through samples: if they do so through the base's."""
        return self.base is None or self.base.has_rsample

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
        z = self._base_sample(self._shape(sample_shape, context), generator)
        return self.transform(z, context)[0]

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples without gradients: ``(*sample_shape, *batch, *event)``; an int n means ``(n,)``."""
        with torch.no_grad():
            z = self._base_sample(self._shape(sample_shape, context), generator, pathwise=False)
            return self.transform(z, context)[0]

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Flow:
        """The same flow over a larger batch shape, sharing the transform: see ``Distribution.expand``."""
        if self.base is not None:
            return Flow(self.transform, self.base.expand(torch.Size(batch_shape)))
        wide = Flow(self.transform, self.event_shape)
        wide._batch_shape = torch.Size(batch_shape)
        return wide

    def _shape(self, sample_shape: int | Sequence[int], context: Tensor | None) -> torch.Size:
        """The shape to sample: ``sample_shape``, and what the context's batch has beyond the flow's own."""
        members = members_of(self.transform)
        if members is not None:
            raise ValueError(
                f"this flow is a stack of {members}, whose samples would not come first: call "
                f"flow.transform(z) with noise z of shape ({members}, n, ...), or take one flow with member()"
            )
        sizes = sample_shape if isinstance(sample_shape, Sequence) else [sample_shape]
        shape = torch.Size(map(operator.index, sizes))
        if context is None:
            return shape
        own = context.shape[: context.dim() - self.transform.event_dims]
        both = torch.broadcast_shapes(own, self.batch_shape)
        split = len(both) - len(self.batch_shape)
        if both[split:] != self.batch_shape:
            raise ValueError(
                f"the context's batch shape {tuple(own)} does not fit the flow's, {tuple(self.batch_shape)}: "
                "expand the base to it"
            )
        return shape + both[:split]

    def _like(self) -> tuple[torch.dtype, torch.device | None]:
        """Dtype and device of the transform; the defaults if it holds no tensor."""
        tensors = [*self.transform.parameters(), *self.transform.buffers()]
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.dtype, tensor.device
        return torch.get_default_dtype(), None

    def _base_sample(
        self, sample_shape: torch.Size, generator: torch.Generator | None, pathwise: bool = True
    ) -> Tensor:
        if pathwise and not self.has_rsample:
            raise ValueError(
                f"the base {type(self.base).__name__} has no reparametrised samples, so gradients would stop "
                "there: call sample() and log_prob(), or choose a base with has_rsample"
            )
        if isinstance(self.base, Flow):
            draw = self.base.rsample if pathwise else self.base.sample
            return draw(sample_shape, generator=generator)
        if self.base is not None:
            if generator is not None:
                raise ValueError(
                    "torch.distributions draw from the global random state, so a generator cannot be used "
                    f"with the base {type(self.base).__name__}: call torch.manual_seed instead, or pass the "
                    "event's shape as the base to have a standard normal"
                )
            return self.base.rsample(sample_shape) if pathwise else self.base.sample(sample_shape)
        dtype, device = self._like()
        if device is None:
            device = None if generator is None else generator.device
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)

    def _base_log_prob(self, z: Tensor) -> Tensor:
        if self.base is not None:
            return self.base.log_prob(z)
        return -0.5 * sum_except_batch(z.square() + LOG_2PI, z.dim() - len(self.event_shape))
