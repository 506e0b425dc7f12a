"""Patches of scikit-learn's two photographs: real pixels whose training and test regions do not overlap."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dgm_course.data.split import Split

TRAIN_FRACTION = 0.8
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def photo_patches(
    *,
    size: int = 8,
    num_train: int = 20_000,
    num_test: int = 2_000,
    gray: bool = True,
    bits: int = 8,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Split:
    """Random ``size x size`` patches of two real photographs (china.jpg, flower.jpg), flattened.

    ``train_x (num_train, m)``, ``m = C * size^2`` in the order channel, row, column; C = 1 if ``gray`` else
    3. Values are the integers ``0, 1, ..., 2^bits - 1`` as ``dtype``: ``floor(v / 2^(8 - bits))`` of the
    8-bit value v (grey: the rounded luminance). Labels say which photograph (0 china, 1 flower).

    Training patches lie wholly inside the left four fifths of a photograph, test patches wholly inside the
    right fifth: no pixel is in both. Positions are uniform, drawn with replacement, training before test.
    Raises ``ValueError`` for ``bits`` outside 1 to 8 or a ``size`` that fits in no test region. Ledger D8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must lie between 1 and 8, got {bits}: the photographs have 8 bits a channel")
    images = photographs(gray=gray) >> (8 - bits)  # (2, C, H, W)
    return split_patches(
        images,
        size=size,
        num_train=num_train,
        num_test=num_test,
        generator=generator,
        dtype=dtype,
        device=device,
    )


def photographs(*, gray: bool = True) -> Tensor:
    """The two whole photographs, china first: ``(2, C, 427, 640)``, uint8; C = 1 if ``gray`` else 3."""
    from sklearn.datasets import load_sample_images  # here: importing scikit-learn takes a second

    rgb = np.stack(load_sample_images().images)  # (2, H, W, 3), uint8
    values = np.rint(rgb @ np.array(_LUMA))[..., None] if gray else rgb
    return torch.from_numpy(values.astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def split_patches(
    images: Tensor,
    *,
    size: int,
    num_train: int,
    num_test: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Split:
    """Patches of any ``images (P, C, H, W)``: training from the left four fifths, test from the rest.

    Rows are flattened ``(C, size, size)`` patches, labels the image's index. Raises ``ValueError`` if a patch
    does not fit into the test region or a count is not positive.
    """
    if images.dim() != 4:
        raise ValueError(f"images has shape (P, C, H, W), got {tuple(images.shape)}: add what is missing")
    channels, height, width = images.shape[1:]
    border = round(TRAIN_FRACTION * width)
    largest = min(height, border, width - border)
    if not 1 <= size <= largest:
        raise ValueError(
            f"size must lie between 1 and {largest}, the narrower side of the test region, got {size}: "
            "patches lie wholly inside their region"
        )
    if num_train < 1 or num_test < 1:
        raise ValueError(f"num_train and num_test must be at least 1, got {num_train} and {num_test}")
    train_x, train_y = _cut(images, size, num_train, 0, border, generator)
    test_x, test_y = _cut(images, size, num_test, border, width, generator)
    return Split(
        train_x.to(dtype=dtype, device=device),
        test_x.to(dtype=dtype, device=device),
        train_y.to(device),
        test_y.to(device),
        image_shape=(channels, size, size),
    )


def _cut(
    images: Tensor, size: int, num: int, left: int, right: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """``num`` patches wholly inside ``left <= column < right``: ``(num, C * size^2)``, and image indices."""
    device = generator.device if generator is not None else torch.device("cpu")

    def draw(high: int) -> Tensor:
        return torch.randint(high, (num,), generator=generator, device=device).to(images.device)

    which = draw(len(images))
    top = draw(images.shape[2] - size + 1)
    start = left + draw(right - left - size + 1)
    offset = torch.arange(size, device=images.device)
    rows = (top[:, None] + offset)[:, :, None]  # (num, size, 1)
    columns = (start[:, None] + offset)[:, None, :]  # (num, 1, size)
    patches = images.movedim(1, -1)[which[:, None, None], rows, columns]  # (num, size, size, C)
    return patches.movedim(-1, 1).reshape(num, -1), which
