"""Fetch files once, check them by their hash, keep them: pooch, with messages that say what to do next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

_NEXT_STEPS = """\
What you can do:
  - connect to the internet (or to the host above) and run this again; nothing broken was kept;
  - or put the file there by hand, from any source, its hash is checked: {target}
  - or set the environment variable DGM_DATA_DIR to a folder that already holds {folder}/{name}
  - or use data that need no download: digits(), photo_patches(), enumerable_binary(), ring(), two_moons()"""


class DownloadError(OSError):
    """A data file could not be had: no connection, no such file on the host, or not the file it should be."""


def cache_dir() -> Path:
    """Where downloaded data live: ``DGM_DATA_DIR`` if that is set, else the system's cache folder."""
    import pooch  # here: only those who download need it

    chosen = os.environ.get("DGM_DATA_DIR")
    return Path(chosen).expanduser() if chosen else Path(pooch.os_cache("dgm_course"))


def fetch(
    folder: str, name: str, *, known_hash: str, base_urls: Sequence[str], progress: bool = True
) -> Path:
    """Path of the file ``name`` in ``cache_dir() / folder``, downloaded from the first host that has it.

    ``known_hash`` is ``"md5:..."`` or ``"sha256:..."``. A cached file with that hash is used without a look
    at the network; one with another hash is fetched again. A download goes to a temporary file that takes the
    final name only when its hash is right, so that an interrupted one leaves nothing behind.
    Raises :class:`DownloadError`, naming what failed at each host and the ways out.
    """
    import pooch

    target = cache_dir() / folder / name
    lines = [f"{folder}/{name} ({known_hash}) could not be had."]
    if target.is_file():
        if pooch.hashes.hash_matches(str(target), known_hash):
            return target
        lines.append(f"  {target}: is there with another hash (cut short, altered?), and was left as it is")
    for base_url in base_urls:
        url = base_url.rstrip("/") + "/" + name
        try:
            return _retrieve(url, target, known_hash, progress)
        except (OSError, ValueError) as error:  # requests raises OSErrors, pooch ValueError for a wrong hash
            lines.append(f"  {url}: {_reason(error)}")
    lines.append(_NEXT_STEPS.format(target=target, folder=folder, name=name))
    raise DownloadError("\n".join(lines))


def _retrieve(url: str, target: Path, known_hash: str, progress: bool) -> Path:
    import pooch
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __bool__(self) -> bool:
            """Pooch asks "is there a bar?", to which tqdm has no answer before the total is known."""
            return progress

    log = pooch.get_logger()
    level = log.level
    with Bar(desc=target.name, unit="B", unit_scale=True, disable=not progress) as bar:
        download = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=20)
        log.setLevel("WARNING")  # its news would be written across the bar
        try:
            pooch.retrieve(
                url, known_hash=known_hash, fname=target.name, path=target.parent, downloader=download
            )
        finally:
            log.setLevel(level)
    return target


def _reason(error: Exception) -> str:
    """One line on why a download failed."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"the host answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, exceptions.Timeout):
        return "the host did not answer in time"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection broke off before the end of the file"
    if isinstance(error, exceptions.ConnectionError):
        return "no connection (offline, blocked, or the host is down)"
    if isinstance(error, exceptions.RequestException):
        return f"not a usable address ({error})"
    if isinstance(error, ValueError):
        return f"not the right file (altered, or a login page answered instead). {error}"
    return f"{type(error).__name__}: {error}"


def check_registry(registry: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``registry`` gives every file's hash as ``"md5:<digits>"`` or the like."""
    for name in names:
        known_hash = registry.get(name, "")
        if ":" not in known_hash:
            raise ValueError(
                f"registry maps each file to its hash, like 'md5:0123...', got {known_hash!r} for {name!r}: "
                "files are never used unchecked; give the hash of your copy"
            )
