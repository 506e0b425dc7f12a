"""Scikit-learn's handwritten digits: real images, 8 x 8 pixels, 17 grey levels, no download."""

from __future__ import annotations

import numpy as np
import torch

from dgm_course.data.split import Split

NUM_TEST = 300
LEVELS = 17
THRESHOLD = 8
_SPLIT_SEED = 1797


def digits(
    *, binary: bool = True, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Split:
    """1497 training and 300 held-out digits, one flattened 8 x 8 image a row: ``train_x (1497, 64)``.

    ``binary=True``: pixels 0 or 1, one where the grey level is at least 8. ``binary=False``: the levels
    0, 1, ..., 16 themselves, as ``dtype`` (not divided by anything). Labels are the digits 0 to 9 (int64).

    The split is always the same, each digit holding its share of both parts. No two of the 1797 grey images
    are equal; of the 300 binarised held-out images, 11 equal a binarised training image. They are different
    scans that agree at one bit a pixel, and they stay: without them the held-out part would be harder than
    the population. The 13 writers are not recorded, so the held-out part has new digits, not new writers.
    """
    from sklearn.datasets import load_digits  # here: importing scikit-learn takes a second

    bunch = load_digits()
    levels, labels = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target).long()
    values = (levels >= THRESHOLD) if binary else levels
    x = values.to(dtype=dtype, device=device)  # (1797, 64)
    held_out = torch.from_numpy(held_out_mask(bunch.target, NUM_TEST, _SPLIT_SEED))
    y = labels.to(device)
    test = held_out.to(y.device)
    return Split(x[~test], x[test], y[~test], y[test], image_shape=(1, 8, 8))


def held_out_mask(labels: np.ndarray, num_test: int, seed: int) -> np.ndarray:
    """Choose ``num_test`` samples stratified by class: a Boolean mask ``(n,)``, fixed by its arguments.

    Each class gives its share, rounded down, and the classes with the largest remainders one more. Uses
    numpy's legacy generator, whose stream is frozen. Raises ``ValueError`` unless ``0 < num_test < n``.
    """
    if not 0 < num_test < len(labels):
        raise ValueError(
            f"num_test must lie strictly between 0 and the number of samples ({len(labels)}), got "
            f"{num_test}: leave something on both sides"
        )
    classes, counts = np.unique(labels, return_counts=True)
    share = counts * num_test / len(labels)
    quota = np.floor(share).astype(int)
    short = num_test - quota.sum()
    quota[np.argsort(quota - share, kind="stable")[:short]] += 1
    random = np.random.RandomState(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for label, count in zip(classes, quota, strict=True):
        members = np.flatnonzero(labels == label)
        mask[random.permutation(members)[:count]] = True
    return mask
