"""Pixel models by law: shapes, dtype and device, stacks, state, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from pixel_zoo import CLOSE, F64, all_pictures, build, every_head, every_net, pictures, seeded

from dgm_course.nets import MLP, MaskedMLP, member
from dgm_course.pixel_models import CategoricalHead, Head, LogisticMixtureHead, PixelModel

# shapes, dtypes, stacks, state ----------------------------------------------------------------------------


@every_head
@every_net
@pytest.mark.parametrize("channels", [1, 3])
def test_any_leading_dimensions_will_do(net: str, head: str, channels: int) -> None:
    shape = (channels, 2, 2)
    model = build(net, head, shape, 4)
    for batch in ((), (1,), (3,), (3, 3), (2, 1, 5), (0,), (2, 0)):
        y = pictures(*batch, shape=shape, num_levels=4)
        log_p = model.log_prob(y)
        assert log_p.shape == batch and model.pixel_log_probs(y).shape[:-1] == batch
        rows = [model.log_prob(row) for row in y.reshape(-1, model.num_dims)]
        torch.testing.assert_close(log_p.flatten(), torch.stack(rows) if rows else y.new_zeros(0), **CLOSE)


@every_head
@every_net
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64, torch.float32], ids=str)
def test_levels_of_any_dtype_are_left_alone(net: str, head: str, kind: torch.dtype) -> None:
    model, y = build(net, head, (1, 2, 3), 5), pictures(4, shape=(1, 2, 3), num_levels=5)
    given = y.to(kind)
    before = given.clone()
    log_p = model.log_prob(given)
    assert log_p.dtype == F64 and torch.equal(given, before)
    torch.testing.assert_close(log_p, model.log_prob(y), **CLOSE)


@every_head
@every_net
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_dtype_and_device_follow(
    net: str, head: str, channels: int, dtype: torch.dtype, device: torch.device
) -> None:
    model = build(net, head, (channels, 2, 2), 5).to(device, dtype)
    y = model.sample(3, seeded(device=device))
    for value in (y, model.raw(y), model.log_prob(y), model.log_prob(y.long())):
        assert value.dtype == dtype and value.device.type == device.type
    expected = build(net, head, (channels, 2, 2), 5).log_prob(y.double().cpu())
    loose = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(model.log_prob(y).double().cpu(), expected, rtol=loose, atol=loose)


@every_head
@pytest.mark.parametrize("own", [False, True], ids=["shared pictures", "pictures for each"])
def test_a_stack_of_mades_is_its_members_side_by_side(head: str, own: bool) -> None:
    shape = (1, 2, 3)
    stack = build("made", head, shape, 4, members=3)
    singles = [member(stack, e) for e in range(3)]
    assert stack.members == 3 and all(single.members is None for single in singles)
    y = pictures(*([3, 3] if own else [3]), shape=shape, num_levels=4)
    log_p = stack.log_prob(y)
    assert log_p.shape == (3, 3) and stack.raw(y).shape == (3, 3, 6, stack.head.outputs)
    for e, single in enumerate(singles):
        torch.testing.assert_close(single.log_prob(y[e] if own else y), log_p[e], **CLOSE)
    assert stack.sample(4, seeded()).shape == (3, 4, 6)
    assert singles[1].sample(4, seeded()).shape == (4, 6)


@every_head
def test_each_member_of_a_stack_samples_its_own_law(head: str) -> None:
    """First entries of 4000 pictures: their mean, 5 standard errors."""
    stack = build("made", head, (1, 1, 2), 4, members=3)
    tilt = torch.tensor([-1.0, -0.3, 0.3, 1.0] if head == "categorical" else [0, 0, 1, 1, 0, 0], dtype=F64)
    with torch.no_grad():  # whatever they were drawn as, the members differ
        stack.network.layers[-1].bias.add_(torch.arange(3.0).unsqueeze(-1) * tilt.repeat(2))
    y = stack.sample(4000, seeded(6))
    every = all_pictures((1, 1, 2), 4)
    p = stack.log_prob(every).exp().detach()  # (E, N)
    torch.testing.assert_close(p.sum(-1), torch.ones(3, dtype=F64), **CLOSE)
    error = y.std(-2) / 4000**0.5
    means = p @ every
    assert bool(((y.mean(-2) - means).abs() < 5 * error).all())
    assert float((means[0] - means[2]).abs().max()) > 10 * float(error.max())


@every_head
@every_net
def test_state_dict_and_deepcopy_keep_the_law(net: str, head: str) -> None:
    y = pictures(4, shape=(1, 2, 3), num_levels=5)
    model, other = (build(net, head, (1, 2, 3), 5, seed=s) for s in (0, 5))
    log_p = model.log_prob(y)
    twin = copy.deepcopy(model)
    assert not torch.allclose(other.log_prob(y), log_p)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(y), log_p) and torch.equal(twin.log_prob(y), log_p)
    assert torch.equal(other.sample(3, seeded()), model.sample(3, seeded()))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(model.log_prob(y), log_p), "a copy shares nothing"


@every_head
@every_net
def test_construction_is_drawn_from_the_generator(net: str, head: str) -> None:
    before = torch.get_rng_state()
    twins = [build(net, head, (1, 2, 3), 5).state_dict() for _ in range(2)]
    assert all(torch.equal(twins[0][key], twins[1][key]) for key in twins[0])
    assert torch.equal(before, torch.get_rng_state())


# refusals -------------------------------------------------------------------------------------------------


GREY, COLOUR = CategoricalHead(4), LogisticMixtureHead(4, 2, channels=3)


def cnn(shape: tuple[int, ...] = (1, 2, 2), head: Head = GREY) -> PixelModel:
    return PixelModel.pixel_cnn(shape, head, hidden=4, receptive_field=1)


def made(shape: tuple[int, ...] = (1, 2, 2), head: Head = GREY, **settings: object) -> PixelModel:
    return PixelModel.made(shape, head, hidden=4, **settings)


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: cnn((2, 2)), r"\(C, H, W\), got \(2, 2\): one grey channel is \(1, H, W\)"),
    (lambda: made((2, 2)), r"image_shape must be \(C, H, W\), got \(2, 2\)"),
    (lambda: made((1, 0, 2)), r"got \(1, 0, 2\)"),
    (lambda: cnn((3, 2, 2)), r"3 channel\(s\) for pictures of shape \(3, 2, 2\), got 1: build"),
    (lambda: made((3, 1, 1), COLOUR), r"1 channel\(s\) .* taken entry by entry, got 3: build it with"),
    (lambda: made((1, 3, 3)), "at least num_inputs=9 units, got hidden=4"),
    (lambda: PixelModel.pixel_cnn((1, 2, 2), GREY, receptive_field=0), "receptive_field must be at least 1"),
    (lambda: cnn().log_prob(torch.zeros(5, 3)), r"flat pictures \(\.\.\., 4\), got shape \(5, 3\): use"),
    (lambda: made().log_prob(torch.zeros(5, 1, 2, 2)), r"got shape \(5, 1, 2, 2\): use y.flatten"),
    (lambda: cnn().log_prob(torch.full((5, 4), 0.5)), "levels 0, ..., 3, got values from 0.5 to 0.5: pass"),
    (lambda: made().log_prob(torch.full((5, 4), 4)), "levels 0, ..., 3, got values from 4 to 4"),
    (lambda: made().log_prob(torch.full((5, 4), -1)), "got values from -1"),
    (lambda: made().log_prob(torch.full((5, 4), torch.nan)), "got values from nan"),
    (lambda: cnn((3, 2, 2), COLOUR).log_prob(torch.full((12,), 3.5)), "got values from 3.5"),
    (lambda: cnn().sample(0), "num must be at least 1, got 0: it is the number of pictures"),
    (lambda: made(members=2).sample(-1), "num must be at least 1, got -1"),
    (lambda: made(members=2).log_prob(torch.zeros(3, 5, 4)), "stack of 2 takes rows"),
    (lambda: PixelModel(MLP([4, 4]), GREY, (1, 2, 2), by_pixel=False).log_prob(torch.zeros(4, 4)),
     r"\(pixels, outputs\) = \(4, 4\) for a picture, got \(4, 4\)"),
    (lambda: PixelModel(MaskedMLP(4, 8, 3), GREY, (1, 2, 2), by_pixel=False).log_prob(torch.zeros(5, 4)),
     r"got \(5, 4, 3\) for \(5, 4\): set its number of outputs to head.outputs"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_say_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
