"""One JupyterLab and one browser for all browser tests of a run.

Without Playwright or a Chromium the tests are skipped, and say so; with the environment variable CI set they
fail instead, so that a missing browser never looks like a pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from .lab import Lab, chromium_path, launch, running_lab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_HOW = "pip install -e '.[browser]', and install Chromium (or run: python -m playwright install chromium)"


def _do_without(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{reason}, and CI must run the browser tests: {_HOW}", pytrace=False)
    pytest.skip(f"{reason}: {_HOW}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        _do_without("Playwright is not installed")
    with sync_playwright() as playwright:
        if chromium_path() is None and not Path(playwright.chromium.executable_path).exists():
            _do_without("no Chromium is installed")
        try:
            running = launch(playwright)
        except Error as error:
            _do_without(f"Chromium does not start ({str(error).splitlines()[0]})")
        yield running
        running.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab over an empty folder, ``lab.root``: tests copy their notebooks there."""
    base = tmp_path_factory.mktemp("jupyterlab")
    (base / "root").mkdir()
    with running_lab(base / "root", base / "home") as running:
        yield running
