"""Digits and photo patches: the held-out part shares nothing with the training part."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dgm_course.data import digits, photo_patches, photographs, split_patches
from dgm_course.data.digits import held_out_mask


def test_digits_are_scikit_learns() -> None:
    split, bunch = digits(binary=False, dtype=torch.float64), load_digits()
    assert split.train_x.shape == (1497, 64) and split.test_x.shape == (300, 64)
    assert split.image_shape == (1, 8, 8)
    both = torch.cat([split.train_x, split.test_x]).numpy()
    labels = torch.cat([split.train_y, split.test_y]).numpy()
    order, theirs = np.lexsort(both.T), np.lexsort(bunch.data.T)  # all images differ: sorting pairs them up
    np.testing.assert_array_equal(both[order], bunch.data[theirs])
    np.testing.assert_array_equal(labels[order], bunch.target[theirs])
    assert both.min() == 0 and both.max() == 16 and len(np.unique(both)) == 17


def test_the_digits_split_is_the_same_for_ever() -> None:
    mask = held_out_mask(load_digits().target, 300, 1797)
    indices = np.flatnonzero(mask).astype("<i4").tobytes()
    assert hashlib.sha256(indices).hexdigest()[:16] == "dad6fa752b20cb9f"
    assert torch.equal(digits().test_x, digits().test_x)


def test_a_split_shows_its_shapes() -> None:
    assert "train_x (1497, 64)" in repr(digits()) and len(repr(digits())) < 200


def test_the_digits_split_is_stratified() -> None:
    split = digits()
    for y, total in ((split.train_y, 1497), (split.test_y, 300)):
        share = torch.bincount(torch.cat([split.train_y, split.test_y])) * total / 1797
        assert bool(((torch.bincount(y) - share).abs() < 1).all())


def test_no_grey_digit_is_on_both_sides() -> None:
    split = digits(binary=False)
    assert len(torch.cat([split.train_x, split.test_x]).unique(dim=0)) == 1797
    assert torch.cdist(split.test_x, split.train_x).min() > 5.0  # nor anything close to equal


def test_binarised_digits_that_coincide_are_counted() -> None:
    """The docstring's number: different scans that agree at one bit a pixel."""
    split = digits()
    seen = {row.tobytes() for row in split.train_x.numpy()}
    assert sum(row.tobytes() in seen for row in split.test_x.numpy()) == 11


def test_binarised_at_eight(device: torch.device) -> None:
    levels, binary = digits(binary=False, device=device), digits(device=device)
    assert binary.train_x.dtype == torch.float32 and binary.train_x.device.type == device.type
    assert binary.train_y.dtype == torch.int64 and binary.train_y.device.type == device.type
    assert torch.equal(binary.train_x, (levels.train_x >= 8).float())
    assert torch.equal(binary.test_x, (levels.test_x >= 8).float())
    assert torch.equal(binary.test_y, levels.test_y)


def test_held_out_mask_gives_every_class_its_share() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [2] * 1)
    mask = held_out_mask(labels, 5, seed=0)
    assert mask.sum() == 5 and np.bincount(labels[mask], minlength=3).tolist() in ([4, 1, 0], [3, 1, 1])
    for wrong in (0, 10):
        with pytest.raises(ValueError, match="strictly between"):
            held_out_mask(labels, wrong, seed=0)


def coordinate_images() -> torch.Tensor:
    """Two images like the photographs whose three channels are the photograph, the row and the column."""
    rows, columns = torch.meshgrid(torch.arange(427), torch.arange(640), indexing="ij")
    return torch.stack([torch.stack([torch.full_like(rows, i), rows, columns]) for i in range(2)])


@pytest.mark.parametrize("size", [1, 8, 32, 128])
def test_train_and_test_pixels_never_overlap(size: int) -> None:
    """Cut patches of an image of coordinates: they tell where every pixel came from."""
    num = 20_000 if size <= 8 else 200
    generator = torch.Generator().manual_seed(0)
    split = split_patches(coordinate_images(), size=size, num_train=num, num_test=num, generator=generator)
    for x, y, low, high in ((split.train_x, split.train_y, 0, 512), (split.test_x, split.test_y, 512, 640)):
        which, row, column = x.reshape(-1, 3, size, size).long().unbind(1)  # (num, size, size) each
        assert bool((which == y[:, None, None]).all()) and set(y.tolist()) == {0, 1}
        assert bool((row.diff(dim=1) == 1).all()) and bool((row.diff(dim=2) == 0).all())
        assert bool((column.diff(dim=2) == 1).all()) and bool((column.diff(dim=1) == 0).all())
        assert column.min() >= low and column.max() < high and row.min() >= 0 and row.max() < 427
        if size <= 8:  # the corners are reached: nothing of a region is left out
            assert (column.min(), column.max()) == (low, high - 1)
            assert (row.min(), row.max()) == (0, 426)


def test_patches_are_the_photographs_pixels() -> None:
    whole = photographs(gray=False)
    assert whole.shape == (2, 3, 427, 640)
    options = {"size": 4, "num_train": 50, "num_test": 50}
    patches = photo_patches(gray=False, generator=torch.Generator().manual_seed(1), **options)
    where = split_patches(coordinate_images(), generator=torch.Generator().manual_seed(1), **options)
    for x, at in ((patches.train_x, where.train_x), (patches.test_x, where.test_x)):
        which, row, column = at.reshape(-1, 3, 4, 4).long().unbind(1)
        expected = torch.stack([whole[which, c, row, column] for c in range(3)], dim=1)
        assert torch.equal(x.reshape(-1, 3, 4, 4), expected.float())


def test_grey_is_the_rounded_luminance() -> None:
    rgb, grey = photographs(gray=False).double(), photographs()
    luminance = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    assert (grey[:, 0].double() - luminance).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
@pytest.mark.parametrize("gray", [True, False])
def test_quantised_patches(bits: int, gray: bool) -> None:
    options = {"num_train": 500, "num_test": 100, "gray": gray}
    full = photo_patches(generator=torch.Generator().manual_seed(2), **options)
    split = photo_patches(bits=bits, generator=torch.Generator().manual_seed(2), **options)
    channels = 1 if gray else 3
    assert split.train_x.shape == (500, channels * 64) and split.image_shape == (channels, 8, 8)
    assert torch.equal(split.train_x, (full.train_x / 2 ** (8 - bits)).floor())
    assert torch.equal(split.test_x, (full.test_x / 2 ** (8 - bits)).floor())
    assert split.train_x.min() == 0 and split.train_x.max() >= 2**bits * 0.99 - 1


def test_patches_are_reproducible_and_typed(device: torch.device) -> None:
    def draw(seed: int) -> torch.Tensor:
        options = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64, "device": device}
        split = photo_patches(num_train=30, num_test=3, **options)
        assert split.test_x.device.type == split.test_y.device.type == device.type
        return split.train_x

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert draw(0).dtype == torch.float64 and draw(0).device.type == device.type


def test_patches_by_a_generator_on_the_device(device: torch.device) -> None:
    split = photo_patches(num_train=3, num_test=3, generator=torch.Generator(device).manual_seed(0))
    assert split.train_x.shape == (3, 64)


def test_bad_patches_are_named() -> None:
    for wrong, words in (
        ({"bits": 0}, "between 1 and 8"),
        ({"bits": 9}, "between 1 and 8"),
        ({"size": 0}, "between 1 and 128"),
        ({"size": 129}, "between 1 and 128"),
        ({"num_train": 0}, "at least 1"),
        ({"num_test": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            photo_patches(**wrong)
    with pytest.raises(ValueError, match=r"\(P, C, H, W\)"):
        split_patches(torch.zeros(3, 10, 10), size=2, num_train=1, num_test=1)
