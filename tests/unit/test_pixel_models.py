"""Pixel models by law: a probability over pictures, autoregressive, sampled from exactly, trained."""

from __future__ import annotations

import pytest
import torch
from pixel_zoo import CLOSE, F64, HEADS, Shape, all_pictures, build, every_head, every_net, pictures, seeded
from torch import Tensor

from dgm_course.pixel_models import PixelModel

# a distribution over pictures -----------------------------------------------------------------------------


@every_head
@every_net
@pytest.mark.parametrize(
    ("shape", "num_levels"),
    [((1, 2, 3), 3), ((1, 3, 3), 2), ((3, 1, 2), 3), ((3, 2, 2), 2), ((1, 1, 1), 5), ((3, 1, 1), 5)],
    ids=str,
)
def test_the_probabilities_of_all_pictures_sum_to_one(
    net: str, head: str, shape: Shape, num_levels: int
) -> None:
    model = build(net, head, shape, num_levels)
    log_p = model.log_prob(all_pictures(shape, num_levels)).detach()
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-11)
    assert float(log_p.std()) > 1e-3, "no uniform model"


@every_net
def test_other_numbers_of_channels_entry_by_entry(net: str) -> None:
    """Two channels have no head of their own: MADE takes them one after another, PixelCNN refuses."""
    if net == "cnn":
        with pytest.raises(ValueError, match="entry by entry, with PixelModel.made"):
            build(net, "categorical", (2, 2, 2))
        return
    model = build(net, "categorical", (2, 2, 2))
    log_p = model.log_prob(all_pictures((2, 2, 2))).detach()
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-11)


@every_head
@every_net
@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 3, 2)], ids=str)
def test_the_numbers_of_a_pixel_depend_on_earlier_pixels_only(net: str, head: str, shape: Shape) -> None:
    """By the Jacobian of ``raw``: nothing from the pixel itself or a later one, something from the earlier.

    A PixelCNN's pixel sees all channels of the earlier ones in its receptive field; MADE sees entries.
    """
    settings = {"receptive_field": 3} if net == "cnn" else {"hidden": 19}
    model = build(net, head, shape, 4, **settings)
    y = pictures(shape=shape, num_levels=4)
    jacobian = torch.autograd.functional.jacobian(model.raw, y)  # (pixels, outputs, C H W)
    strength = jacobian.abs().amax(1)  # (pixels, C H W)
    if net == "cnn":
        strength = strength.unflatten(-1, (shape[0], -1)).amin(1)  # every channel of a pixel, or none
        several = jacobian.abs().amax(1).unflatten(-1, (shape[0], -1)).amax(1)
    else:
        several = strength
    later = torch.ones_like(strength, dtype=torch.bool).triu()
    assert bool((several[later] == 0).all())
    seen = ~later
    if net == "cnn":  # window of three rows up and three columns to either side
        place = torch.arange(shape[1] * shape[2])
        row, column = place // shape[2], place % shape[2]
        far = torch.maximum((row - row[:, None]).abs(), (column - column[:, None]).abs()) > 3
        assert bool((several[far & seen] == 0).all())
        seen &= ~far
    assert bool((strength[seen] > 0).all())


@every_head
@every_net
@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 2, 1)], ids=str)
def test_log_prob_is_the_sum_over_pixels_of_what_the_head_says(net: str, head: str, shape: Shape) -> None:
    model, y = build(net, head, shape, 4), pictures(5, shape=shape, num_levels=4)
    raw, by_pixel = model.raw(y), model.pixel_log_probs(y)
    num_pixels = 6 // model.head.channels
    assert raw.shape == (5, num_pixels, model.head.outputs) and by_pixel.shape == (5, num_pixels)
    torch.testing.assert_close(model.log_prob(y), by_pixel.sum(-1), **CLOSE)
    for j in range(num_pixels):
        channels = y[:, j::num_pixels] if net == "cnn" else y[:, j : j + 1]
        torch.testing.assert_close(model.head.log_prob(channels, raw[:, j]), by_pixel[:, j], **CLOSE)
    changed = y.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 4  # of the last pixel: the others' terms stay
    torch.testing.assert_close(model.pixel_log_probs(changed)[:, :-1], by_pixel[:, :-1], **CLOSE)
    assert not torch.allclose(model.pixel_log_probs(changed)[:, -1], by_pixel[:, -1])


@every_head
def test_the_scale_that_a_network_sees(head: str) -> None:
    """Levels 0, ..., L - 1 as -1, ..., 1."""
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3, HEADS[head](17, 1).outputs))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return self.weight.expand(*x.shape[:-1], -1, -1)

    model = PixelModel(Spy(), HEADS[head](17, 1), (1, 1, 3), by_pixel=False)
    assert model.log_prob(torch.tensor([[0, 8, 16]])).shape == (1,)
    assert seen[0].tolist() == [[-1.0, 0.0, 1.0]]


# samples --------------------------------------------------------------------------------------------------


def off_the_law(net: str, head: str, shape: Shape, num_levels: int, seed: int) -> Tensor:
    """Frequency of every picture among 10 000 samples, in standard errors; those of P < 1/200 together."""
    model, count = build(net, head, shape, num_levels), 10_000
    every = all_pictures(shape, num_levels)
    p = model.log_prob(every).exp().detach()
    y = model.sample(count, seeded(seed))
    places = num_levels ** torch.arange(every.shape[1] - 1, -1, -1)
    found = torch.bincount((y.long() * places).sum(-1), minlength=len(every)) / count
    rare = p < 1 / 200
    p, found = (torch.cat([t[~rare], t[rare].sum(0, keepdim=True)]) for t in (p, found.double()))
    keep = p > 1 / 200
    return ((found - p) / (p * (1 - p) / count).sqrt())[keep]


LAWS = [((1, 2, 2), 3), ((3, 1, 2), 2)]


@every_head
@every_net
@pytest.mark.parametrize(("shape", "num_levels"), LAWS, ids=str)
def test_samples_have_the_probabilities(net: str, head: str, shape: Shape, num_levels: int) -> None:
    errors = off_the_law(net, head, shape, num_levels, seed=5)
    assert len(errors) > 10 and bool((errors.abs() < 5).all())


@pytest.mark.long
@every_head
@every_net
@pytest.mark.parametrize(("shape", "num_levels"), LAWS, ids=str)
def test_samples_have_the_probabilities_for_ten_seeds(
    net: str, head: str, shape: Shape, num_levels: int
) -> None:
    errors = torch.stack([off_the_law(net, head, shape, num_levels, seed=50 + k) for k in range(10)])
    assert bool((errors.abs() < 5).all())
    assert abs(float(errors.square().mean()) - 1) < 0.5, "the errors are as large as they are said to be"


@every_head
@every_net
def test_samples_repeat_and_the_global_random_state_rests(net: str, head: str) -> None:
    model = build(net, head, (1, 3, 3), 5)
    before = torch.get_rng_state()
    a, b, c = (model.sample(6, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (6, 9) and a.dtype == F64 and not a.requires_grad
    assert bool((a == a.round()).all()) and float(a.min()) >= 0 and float(a.max()) <= 4
    assert torch.equal(before, torch.get_rng_state())
    model.sample(6)
    assert not torch.equal(before, torch.get_rng_state())


# gradients -----------------------------------------------------------------------------------------------


@every_head
@every_net
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_reach_every_parameter(net: str, head: str, channels: int) -> None:
    """Of float64 parameters along one direction, against differences."""
    shape = (channels, 2, 3)
    settings = {"hidden": 19} if net == "made" else {}
    model, y = build(net, head, shape, 5, **settings), pictures(6, shape=shape, num_levels=5)
    parameters = list(model.parameters())
    loss = model.log_prob(y).mean()
    gradients = torch.autograd.grad(loss, parameters)
    assert all(bool((g != 0).any()) for g in gradients)
    directions = [torch.randn(p.shape, generator=seeded(9), dtype=F64) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    values = []
    with torch.no_grad():
        for amount in (1e-5, -2e-5):
            for p, d in zip(parameters, directions, strict=True):
                p.add_(amount * d)
            values.append(model.log_prob(y).mean())
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-6)


# positions ------------------------------------------------------------------------------------------------


@every_head
def test_without_positions_a_picture_far_from_the_border_is_seen_the_same_everywhere(head: str) -> None:
    """And with them it is not: the pixels of a constant picture, two places apart."""
    for positions in (0, 4):
        model = build("cnn", head, (1, 7, 7), 4, positions=positions)
        assert (model.network.positions is None) == (positions == 0)
        raw = model.raw(torch.ones(49)).unflatten(0, (7, 7))
        same = torch.allclose(raw[3, 3], raw[4, 4], rtol=1e-12, atol=1e-12)
        assert same == (positions == 0)
    model = build("cnn", head, (1, 2, 2), 3, positions=0)
    log_p = model.log_prob(all_pictures((1, 2, 2), 3)).detach()
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-11)
