"""Opt-in data over a loopback server: fetched once, checked by hash, kept; failures say what to do."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import cifar_archive, idx_bytes, images_of, python2_batch

from dgm_course.data import DownloadError, cache_dir, cifar10, fashion_mnist, images, mnist

REAL_MNIST = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mnist"
RNG = np.random.default_rng(0)
DIGITS = {"train": RNG.integers(0, 256, (6, 28, 28)), "t10k": RNG.integers(0, 256, (3, 28, 28))}
LABELS = {"train": np.arange(6), "t10k": np.arange(3)}


class Server:
    """A loopback host for one folder that remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.cut = folder, [], False
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, self))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.http.shutdown()
            self.http.server_close()
            self.thread.join()

    def hashes(self) -> dict[str, str]:
        """The registry of what lies in the folder."""
        return {f.name: "md5:" + hashlib.md5(f.read_bytes()).hexdigest() for f in self.folder.iterdir()}


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: object) -> None:
        self.host = server
        super().__init__(*args)

    def do_GET(self) -> None:  # noqa: N802 (the base class looks for this name)
        self.host.asked.append(self.path.lstrip("/"))
        path = self.host.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.host.cut else body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no proxy between the tests and the loopback host."""
    monkeypatch.setenv("DGM_DATA_DIR", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path, cache: Path) -> Iterator[Server]:
    """A host of six training and three test digits, and of a CIFAR archive of four images a batch."""
    folder = tmp_path / "host"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images_gz = gzip.compress(idx_bytes(DIGITS[prefix]))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(images_gz)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[prefix])))
    batches = {f"data_batch_{i}": python2_batch(images_of(i), [i] * 4) for i in range(1, 6)}
    batches["test_batch"] = python2_batch(images_of(0), [9, 8, 7, 6])
    (folder / "cifar-10-python.tar.gz").write_bytes(cifar_archive(batches))
    host = Server(folder)
    yield host
    host.stop()


def options(server: Server) -> dict[str, object]:
    return {"base_url": server.url, "registry": server.hashes(), "progress": False}


@pytest.mark.parametrize("load", [mnist, fashion_mnist])
def test_downloaded_once_then_cached(server: Server, cache: Path, load: Callable) -> None:
    kwargs = options(server)
    x, y = load("test", **kwargs)
    np.testing.assert_array_equal(x.reshape(3, 28, 28).numpy(), DIGITS["t10k"])
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and y.tolist() == [0, 1, 2]
    assert server.asked == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]  # no training file
    server.stop()
    again, _ = load("test", **kwargs)
    assert torch.equal(again, x) and len(server.asked) == 2
    assert {p.name for p in (cache / load.__name__).iterdir()} == set(server.asked)


def test_train_is_the_default_split(server: Server) -> None:
    x, y = mnist(**options(server), dtype=torch.uint8)
    assert x.shape == (6, 784) and x.dtype == torch.uint8 and y.tolist() == list(range(6))


def test_mnist_and_fashion_mnist_do_not_share_files(server: Server, cache: Path) -> None:
    mnist("test", **options(server))
    fashion_mnist("test", **options(server))
    assert {p.name for p in cache.iterdir()} == {"mnist", "fashion_mnist"} and len(server.asked) == 4


def test_cifar10(server: Server, device: torch.device) -> None:
    x, y = cifar10("test", **options(server), device=device)
    np.testing.assert_array_equal(x.cpu().numpy(), images_of(0))
    assert y.tolist() == [9, 8, 7, 6] and x.device.type == y.device.type == device.type
    x, y = cifar10("train", **options(server), dtype=torch.uint8)
    assert x.shape == (20, 3072) and x.dtype == torch.uint8 and y.unique().tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(x[4:8].numpy(), images_of(2))
    assert server.asked == ["cifar-10-python.tar.gz"]  # one archive for both splits


def test_progress_bar(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    mnist("test", **(options(server) | {"progress": True}))
    shown = capfd.readouterr().err
    assert "t10k-images-idx3-ubyte.gz" in shown and "100%" in shown


def test_no_progress_bar(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    mnist("test", **options(server))
    assert "".join(capfd.readouterr()) == ""


def test_wrong_file_on_the_host_is_refused(server: Server, cache: Path) -> None:
    kwargs = options(server)
    (server.folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>log in first</html>")
    with pytest.raises(DownloadError) as error:
        mnist("test", **kwargs)
    message = str(error.value)
    assert "not the right file" in message and kwargs["registry"]["t10k-images-idx3-ubyte.gz"] in message
    assert f"{server.url}/t10k-images-idx3-ubyte.gz" in message
    assert list((cache / "mnist").iterdir()) == []  # nothing was kept


def test_broken_off_download_does_not_poison_the_cache(server: Server, cache: Path) -> None:
    server.cut = True
    with pytest.raises(DownloadError, match="broke off"):
        mnist("test", **options(server))
    assert list((cache / "mnist").iterdir()) == []
    server.cut = False
    assert mnist("test", **options(server))[0].shape == (3, 784)


def test_corrupted_cache_is_fetched_again(server: Server, cache: Path) -> None:
    mnist("test", **options(server))
    cached = cache / "mnist" / "t10k-images-idx3-ubyte.gz"
    cached.write_bytes(cached.read_bytes()[:-3])
    x, _ = mnist("test", **options(server))
    np.testing.assert_array_equal(x.reshape(3, 28, 28).numpy(), DIGITS["t10k"])
    assert server.asked.count(cached.name) == 2


def test_offline_message_says_what_to_do(server: Server, cache: Path) -> None:
    kwargs = options(server)
    server.stop()
    with pytest.raises(DownloadError) as error:
        mnist("test", **kwargs)
    message = str(error.value)
    for words in (
        "mnist/t10k-images-idx3-ubyte.gz",
        "no connection",
        "DGM_DATA_DIR",
        str(cache / "mnist" / "t10k-images-idx3-ubyte.gz"),
        "digits()",
        "photo_patches()",
    ):
        assert words in message


def test_offline_with_a_corrupted_cache_says_so(server: Server, cache: Path) -> None:
    kwargs = options(server)
    mnist("test", **kwargs)
    cached = cache / "mnist" / "t10k-labels-idx1-ubyte.gz"
    cached.write_bytes(b"half")
    server.stop()
    with pytest.raises(DownloadError, match="is there with another hash"):
        mnist("test", **kwargs)
    assert cached.read_bytes() == b"half"


def test_missing_on_the_host(server: Server) -> None:
    (server.folder / "t10k-labels-idx1-ubyte.gz").rename(server.folder / "elsewhere")
    registry = options(server)["registry"] | {"t10k-labels-idx1-ubyte.gz": "md5:" + "0" * 32}
    with pytest.raises(DownloadError, match="the host answered 404"):
        mnist("test", **(options(server) | {"registry": registry}))


def test_second_host_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MNIST_HOSTS", (server.url + "/nothing-here", server.url + "/"))
    x, _ = mnist("test", registry=server.hashes(), progress=False)
    assert len(x) == 3 and [path.startswith("nothing-here") for path in server.asked] == [True, False] * 2


def test_file_put_there_by_hand(server: Server, cache: Path) -> None:
    """Also when the folder may only be read: a class can share one."""
    kwargs = options(server)
    server.stop()
    (cache / "mnist").mkdir(parents=True)
    for file in server.folder.glob("t10k-*"):
        (cache / "mnist" / file.name).write_bytes(file.read_bytes())
    (cache / "mnist").chmod(0o555)
    assert len(mnist("test", **kwargs)[0]) == 3
    (cache / "mnist").chmod(0o755)


def test_a_cache_that_is_a_file_is_named(server: Server, cache: Path) -> None:
    cache.write_text("in the way")
    with pytest.raises(DownloadError, match="FileExistsError|NotADirectoryError"):
        mnist("test", **options(server))


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DGM_DATA_DIR", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("DGM_DATA_DIR", "~/data")
    assert cache_dir() == Path.home() / "data"
    monkeypatch.delenv("DGM_DATA_DIR")
    assert "dgm_course" in str(cache_dir())


def test_bad_arguments_are_named(server: Server) -> None:
    for load in (mnist, fashion_mnist, cifar10):
        with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
            load("valid", **options(server))
        with pytest.raises(ValueError, match="never used unchecked"):
            load("test", base_url=server.url, registry={"x": "md5:0"}, progress=False)
    with pytest.raises(DownloadError, match="not a usable address"):
        mnist("test", **(options(server) | {"base_url": "no-such-protocol://host"}))
    assert server.asked == []


def test_images_and_labels_must_pair_up(server: Server) -> None:
    (server.folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.arange(4))))
    with pytest.raises(ValueError, match="do not belong together"):
        mnist("test", **options(server))


@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason="no ../shared/data/mnist beside this checkout")
def test_the_real_mnist_test_files(cache: Path) -> None:
    """The canonical files and hashes, 10 000 digits."""
    host = Server(REAL_MNIST)
    try:
        x, y = mnist("test", base_url=host.url, progress=False)
        with pytest.raises(DownloadError, match="404"):
            mnist("train", base_url=host.url, progress=False)
    finally:
        host.stop()
    assert x.shape == (10_000, 784) and x.min() == 0 and x.max() == 255
    assert torch.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert x.double().mean().item() / 255 == pytest.approx(0.13251, abs=1e-5)
