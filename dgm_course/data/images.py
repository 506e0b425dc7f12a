"""MNIST, Fashion-MNIST and CIFAR-10, on request: downloaded once, checked by hash, kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dgm_course.data.download import check_registry, fetch
from dgm_course.data.formats import read_cifar_batches, read_idx

MNIST_HOSTS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
FASHION_MNIST_HOSTS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
CIFAR10_HOSTS = ("https://www.cs.toronto.edu/~kriz",)

MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}
CIFAR10_FILES = {"cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a"}

_PREFIX = {"train": "train", "test": "t10k"}
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def mnist(
    split: str = "train",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    base_url: str | None = None,
    registry: Mapping[str, str] | None = None,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """MNIST's 60 000 training or 10 000 test digits: ``x (n, 784)`` with levels 0 to 255, ``y (n,)`` int64.

    Only the files of that ``split`` ("train" or "test") are fetched, the first time; afterwards no network is
    needed. ``dtype=torch.uint8`` takes a quarter of the memory; ``x.reshape(-1, 1, 28, 28)`` gives images.

    They are kept in the system's cache folder, or in ``DGM_DATA_DIR`` if that environment variable is set.
    ``base_url`` replaces the public hosts (a mirror in the classroom), ``registry`` the files' known hashes.
    Raises ``DownloadError`` with the ways out when a file cannot be had, ``ValueError`` for another
    ``split``.
    """
    files = MNIST_FILES if registry is None else registry
    hosts = MNIST_HOSTS if base_url is None else (base_url,)
    return _load_idx("mnist", split, files, hosts, progress, dtype, device)


def fashion_mnist(
    split: str = "train",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    base_url: str | None = None,
    registry: Mapping[str, str] | None = None,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST's 60 000 training or 10 000 test garments (Xiao et al. 2017), laid out as :func:`mnist`.

    ``x (n, 784)`` with levels 0 to 255, ``y (n,)`` the class 0 to 9; arguments and errors are those of
    :func:`mnist`.
    """
    files = FASHION_MNIST_FILES if registry is None else registry
    hosts = FASHION_MNIST_HOSTS if base_url is None else (base_url,)
    return _load_idx("fashion_mnist", split, files, hosts, progress, dtype, device)


def cifar10(
    split: str = "train",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    base_url: str | None = None,
    registry: Mapping[str, str] | None = None,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """CIFAR-10's 50 000 training or 10 000 test photographs, one archive of 163 MB (Krizhevsky 2009).

    ``x (n, 3072)`` with levels 0 to 255 in the order channel, row, column (``x.reshape(-1, 3, 32, 32)`` gives
    images), ``y (n,)`` the class 0 to 9. In float32 the training images take 614 MB, in uint8 154 MB.
    Arguments and errors are those of :func:`mnist`.
    """
    _check_split(split)
    files = CIFAR10_FILES if registry is None else registry
    hosts = CIFAR10_HOSTS if base_url is None else (base_url,)
    (archive,) = _fetch_all("cifar10", list(CIFAR10_FILES), files, hosts, progress)
    x, y = read_cifar_batches(archive, _BATCHES[split])
    return x.to(dtype=dtype, device=device), y.to(device=device)


def _load_idx(
    folder: str,
    split: str,
    files: Mapping[str, str],
    hosts: tuple[str, ...],
    progress: bool,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor]:
    _check_split(split)
    prefix = _PREFIX[split]
    names = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
    image_file, label_file = _fetch_all(folder, names, files, hosts, progress)
    images, labels = read_idx(image_file, num_dims=3), read_idx(label_file, num_dims=1)
    if len(images) != len(labels):
        raise ValueError(
            f"images and labels come in pairs, got {len(images)} images in {image_file} and {len(labels)} "
            f"labels in {label_file}: the two files do not belong together"
        )
    return images.flatten(1).to(dtype=dtype, device=device), labels.long().to(device=device)


def _fetch_all(
    folder: str, names: list[str], files: Mapping[str, str], hosts: tuple[str, ...], progress: bool
) -> list[Path]:
    check_registry(files, names)
    return [fetch(folder, name, known_hash=files[name], base_urls=hosts, progress=progress) for name in names]


def _check_split(split: str) -> None:
    if split not in _PREFIX:
        raise ValueError(f"split is 'train' or 'test', got {split!r}: there is no other part")
