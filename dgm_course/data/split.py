"""What a labelled data set with a held-out part looks like everywhere in this course."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Training and held-out data that share no sample.

    ``train_x (n, m)`` and ``test_x (n', m)`` hold one flattened sample a row, ``train_y (n,)`` and
    ``test_y (n',)`` its integer label. ``image_shape`` is ``(C, H, W)`` with ``C * H * W = m``:
    ``split.test_x.reshape(-1, *split.image_shape)`` gives the images back.
    """

    train_x: Tensor
    test_x: Tensor
    train_y: Tensor
    test_y: Tensor
    image_shape: tuple[int, int, int]

    def __repr__(self) -> str:
        """The shapes: the numbers would fill a screen."""
        names = ("train_x", "test_x", "train_y", "test_y")
        shapes = ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in names)
        return f"Split({shapes}, image_shape {self.image_shape})"
