"""What flows refuse: every message says what is wrong, what came, and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.distributions import Independent, Normal

from dgm_course.flows import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Compose,
    FixedAffine,
    Flow,
    InvertibleConv1x1,
    MaskedAutoregressiveFlow,
    OnFirstChannels,
    Permutation,
    PlanarFlow,
    RadialFlow,
    Sigmoid,
    Squeezed,
    SylvesterFlow,
    glow_transform,
    half_mask,
    initialise,
    planar_inverse,
)
from dgm_course.nets import MLP, MaskedMLP


def with_a_normal_base() -> Flow:
    return Flow(PlanarFlow(1), Independent(Normal(torch.zeros(1), 1.0), 1))


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: Compose([]), "at least one transform"),
    (lambda: Compose([Sigmoid(), ActNorm(2, event_dims=3)]), r"event_dims \[1, 3\]"),
    (lambda: Flow(PlanarFlow(2), Normal(torch.zeros(2), 1.0)), "wrap the base in torch.distributions"),
    (lambda: Flow(ActNorm(2, event_dims=3), 2), "events have 3 dimension"),
    (lambda: Flow(PlanarFlow(2), 2).log_prob(torch.zeros(5, 3)), r"event shape \(2,\), got shape \(5, 3\)"),
    (lambda: Flow(PlanarFlow(2), 2).log_prob(torch.zeros(())), "event shape"),
    (lambda: with_a_normal_base().sample(2, generator=torch.Generator()), "global random state"),
    (lambda: Permutation([0, 0, 1]), "each of 0, ..., d - 1 once"),
    (lambda: Permutation([1, 0])(torch.zeros(3)), "of 2 dimensions"),
    (lambda: FixedAffine(0.0, torch.tensor([1.0, 0.0])), "no scale zero"),
    (lambda: half_mask(1), "at least two entries"),
    (lambda: AffineCoupling(torch.ones(3), MLP([3, 2])), "True where the event passes through"),
    (lambda: AffineCoupling(torch.eye(2), MLP([1, 2])), "coupling mask has the shape"),
    (lambda: AffineCoupling(half_mask(2), MLP([1, 2]))(torch.zeros(4, 3)), "does not fit events"),
    (lambda: AffineCoupling(half_mask(2), MLP([1, 3]))(torch.zeros(4, 2)), "change its last layer"),
    (lambda: AdditiveCoupling(half_mask(2), MLP([1, 2]))(torch.zeros(4, 2)), "1 in all, got shape"),
    (lambda: ActNorm(2, event_dims=3)(torch.zeros(2, 2)), "events of 3 dimension"),
    (lambda: ActNorm(3)(torch.zeros(5, 2)), "has 3 channels"),
    (lambda: initialise(ActNorm(2), torch.ones(5, 2)), r"channel\(s\) \[0, 1\] are constant"),
    (lambda: InvertibleConv1x1(2)(torch.zeros(3, 2, 2)), "has 2 channels"),
    (lambda: PlanarFlow(0), "num_dims must be at least 1"),
    (lambda: RadialFlow(0), "num_dims must be at least 1"),
    (lambda: SylvesterFlow(2, 3), "cannot be orthonormal"),
    (lambda: planar_inverse(torch.zeros(2), -torch.ones(2), torch.ones(2), 0.0), "bijection iff"),
    (lambda: MaskedAutoregressiveFlow(MaskedMLP(3, 6, 1)).inverse(torch.zeros(3)), "a raw log-scale"),
    (lambda: glow_transform((1, 6, 4), num_scales=2), "use fewer scales"),
    (lambda: glow_transform((1, 4, 4), num_scales=0), "num_scales must be at least 1"),
    (lambda: Squeezed(ActNorm(4, event_dims=3))(torch.zeros(1, 3, 4)), "even height and width"),
    (lambda: OnFirstChannels(ActNorm(2, event_dims=3), 2)(torch.zeros(1, 2, 2)), "has 2 channels"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
