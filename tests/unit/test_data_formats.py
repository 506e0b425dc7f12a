"""The idx and CIFAR readers: right files are read, anything else is refused with the reason."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_files import cifar_archive, idx_bytes, images_of, python2_batch

from dgm_course.data.formats import read_cifar_batches, read_idx


def test_idx_round_trip(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(path, num_dims=3).numpy(), array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(idx_bytes(np.zeros(5))), "images taken for labels"),
        (gzip.compress(b"\0\0\x09\x03" + bytes(40)), "starts with 00000803"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "starts with 00000803"),
        (gzip.compress(idx_bytes(np.zeros((2, 3, 4)))[:-1]), "cut short"),
        (gzip.compress(idx_bytes(np.zeros((2, 3, 4))) + b"x"), "something appended"),
        (gzip.compress(idx_bytes(np.zeros((2, 3, 4))))[:-9], "no whole gzip file"),
        (b"<html>log in first</html>", "no whole gzip file"),
    ],
    ids=["labels", "float-images", "short-header", "cut-short", "appended", "half-a-gzip", "web-page"],
)
def test_bad_idx_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_idx(path, num_dims=3)


def test_cifar_as_python_2_wrote_it(tmp_path: Path) -> None:
    """The canonical archive is from 2009; numpy 2.4.0 to 2.4.4 warn of its dtypes."""
    path = tmp_path / "cifar.tar.gz"
    first, second = images_of(0), images_of(1)
    path.write_bytes(
        cifar_archive({"a": python2_batch(first, [1, 2, 3, 4]), "b": python2_batch(second, [5, 6, 7, 8])})
    )
    images, labels = read_cifar_batches(path, ["a", "b"])
    np.testing.assert_array_equal(images.numpy(), np.concatenate([first, second]))
    assert labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_python2_batch_is_a_true_pickle() -> None:
    """The hand-written bytes are what plain pickle reads, so the test above tests the real format."""
    content = pickle.loads(
        python2_batch(images_of(0), [1, 2, 3, 4]).replace(b"K\x00K\x01\x87R(K\x03", b"\x89\x88\x87R(K\x03"),
        encoding="latin1",
    )
    np.testing.assert_array_equal(content["data"], images_of(0))
    assert content["labels"] == [1, 2, 3, 4]


class Attack:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self) -> tuple:
        return os.system, ("exit 1",)


def test_a_pickle_that_names_a_function_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(cifar_archive({"a": pickle.dumps({"data": Attack(), "labels": []})}))
    with pytest.raises(ValueError, match=r"system, which no array needs"):
        read_cifar_batches(path, ["a"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not an archive", "is not CIFAR-10's Python archive"),
        (cifar_archive({"b": b""}), "is not CIFAR-10's Python archive"),
        (cifar_archive({"a": b""}), "is not CIFAR-10's Python archive"),
        (cifar_archive({"a": pickle.dumps([1, 2], protocol=2)}), "got object"),
        (cifar_archive({"a": python2_batch(images_of(0), [1, 2])}), r"\(2,\)"),
        (cifar_archive({"a": python2_batch(images_of(0)[:, :64], [1, 2, 3, 4])}), r"\(4, 64\)"),
    ],
    ids=["no-archive", "other-file", "empty-batch", "no-batch", "too-few-labels", "wrong-width"],
)
def test_bad_cifar_archives_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_cifar_batches(path, ["a"])
