"""Readers of two file formats, idx (MNIST) and the CIFAR archive, that check all a file says of itself."""

from __future__ import annotations

import gzip
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: the function that numpy's own pickles name first
_RECONSTRUCT = np.empty(0).__reduce__()[0]


def read_idx(path: Path, num_dims: int) -> Tensor:
    """The array in a gzipped idx file of unsigned bytes: a uint8 tensor with ``num_dims`` dimensions.

    Header: two zero bytes, the type (8 = unsigned byte), the number of dimensions, then each size as a
    big-endian 32-bit integer. Raises ``ValueError`` if any of it, or the length of what follows, is
    otherwise.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}): delete it and fetch it again") from error
    magic = bytes([0, 0, 8, num_dims])
    start = 4 + 4 * num_dims
    if raw[:4] != magic or len(raw) < start:
        raise ValueError(
            f"an idx file of unsigned bytes in {num_dims} dimension(s) starts with {magic.hex()}, got "
            f"{raw[:4].hex()} in {path}: is it another file, images taken for labels?"
        )
    shape = struct.unpack(f">{num_dims}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"the header of {path} promises {shape}, that is {math.prod(shape)} bytes, got "
            f"{len(raw) - start}: the file is cut short or has something appended"
        )
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy())


def read_cifar_batches(path: Path, batches: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Images ``(n, 3072)`` uint8 and labels ``(n,)`` int64 of the named batches in CIFAR-10's Python archive.

    Members are read in memory, never unpacked to disk, and their pickles may name nothing but a numpy array.
    Raises ``ValueError`` if a batch is missing or does not hold what it should.
    """
    parts = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for batch in batches:
                member = archive.extractfile(f"cifar-10-batches-py/{batch}")
                if member is None:
                    raise ValueError(f"{batch} is not a file in {path}: is it CIFAR-10's Python archive?")
                parts.append(_check_batch(_ArrayUnpickler(member, encoding="latin1").load(), batch, path))
    except (KeyError, tarfile.TarError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not CIFAR-10's Python archive ({error}): fetch it again") from error
    images, labels = zip(*parts, strict=True)
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))


def _check_batch(content: Any, batch: str, path: Path) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    fields = content if isinstance(content, dict) else {}
    images, labels = np.asarray(fields.get("data")), np.asarray(fields.get("labels"))
    if images.dtype != np.uint8 or images.shape != (labels.size, 3072) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"a CIFAR-10 batch holds 'data' (n, 3072) of unsigned bytes and n integer 'labels', got "
            f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape} in {batch} of {path}: another "
            "archive?"
        )
    return images, labels.reshape(-1).astype(np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, strings and numpy arrays; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _RECONSTRUCT
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")


def _dtype(kind: str, align: int = 0, copy: int = 0) -> np.dtype:
    """``numpy.dtype`` for pickles of Python 2, whose flags are integers (numpy 2.4.0 to 2.4.4 warn of it)."""
    return np.dtype(kind, align=bool(align), copy=bool(copy))
