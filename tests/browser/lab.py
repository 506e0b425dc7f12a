"""A JupyterLab of its own, and the few things that a test or a screenshot does with a notebook in it.

The server listens on loopback with a token and reads nothing of its user's: settings, workspaces,
configuration, start-up files and running-server records live in a folder of the caller's.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none", "recordTiming": False},
    "docmanager-extension/plugin": {"autosave": False},
    "extensionmanager-extension/plugin": {"enabled": False},
}
# Chromium calls home and throttles hidden pages unless told not to; root needs --no-sandbox.
_CHROMIUM_FLAGS = [
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-gpu",
    "--disable-dev-shm-usage", "--no-first-run", "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling", "--force-color-profile=srgb",
]
_PANEL = """() => {
  const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  return panel && panel.content && panel.content.widgets && panel.sessionContext ? panel : null;
}"""
_SCROLLER = "document.querySelector('.jp-NotebookPanel .jp-WindowedPanel-outer')"
_LENGTH = f"""() => {{
  const last = [...document.querySelectorAll('.jp-NotebookPanel .jp-Cell')].at(-1).getBoundingClientRect();
  const panel = {_SCROLLER};
  return Math.ceil(last.bottom - panel.getBoundingClientRect().top + panel.scrollTop);
}}"""


class Lab:
    """A running JupyterLab server over the folder ``root``."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root, self.home = root, home
        self.token = secrets.token_hex(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        for name, settings in _SETTINGS.items():
            file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings))
        places = {
            "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }
        own = {variable: str(home / folder) for variable, folder in places.items()}
        for folder in own.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        self.log = home / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser",
                    "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0",
                    f"--ServerApp.root_dir={root}", "--ServerApp.allow_root=True",
                    f"--IdentityProvider.token={self.token}",
                ],
                cwd=root, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT,
            )

    def url(self, notebook: str, *, app: str = "lab") -> str:
        """Return the address of a notebook under ``root`` in a workspace that nobody used before."""
        workspace = secrets.token_hex(6)
        place = f"{app}/workspaces/{workspace}/tree/{notebook}"
        return f"http://127.0.0.1:{self.port}/{place}?reset&token={self.token}"

    def wait(self, seconds: float = 60.0) -> None:
        """Return when the server answers; raise RuntimeError with its log when it does not."""
        end = time.monotonic() + seconds
        status = f"http://127.0.0.1:{self.port}/api/status?token={self.token}"
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(status, timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        log = self.log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"JupyterLab did not start in {seconds:.0f} s; its log:\n{log}")

    def stop(self) -> None:
        """End the server and, with it, its kernels."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


@contextmanager
def running_lab(root: Path, home: Path) -> Iterator[Lab]:
    """Start a server over ``root`` that keeps its files in ``home``, and stop it afterwards."""
    lab = Lab(root, home)
    try:
        lab.wait()
        yield lab
    finally:
        lab.stop()


def chromium_path() -> str | None:
    """Return a Chromium or Chrome of the system, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def launch(playwright: Playwright) -> Browser:
    """Start a headless browser: the system's, else the one that Playwright installed."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    flags = [*_CHROMIUM_FLAGS, *(["--no-sandbox"] if root else [])]
    return playwright.chromium.launch(executable_path=chromium_path(), headless=True, args=flags)


class NotebookPage:
    """A notebook that is open in the browser."""

    def __init__(self, page: Page, lab: Lab, notebook: str, *, app: str = "lab") -> None:
        self.page = page
        page.set_default_timeout(60_000)
        page.goto(lab.url(notebook, app=app))
        # A synchronous predicate: a promise would count as true at once.
        page.wait_for_function(
            f"""() => {{
              const panel = ({_PANEL})();
              const session = panel && panel.sessionContext.session;
              return Boolean(session && session.kernel && session.kernel.status === 'idle'
                && session.kernel.connectionStatus === 'connected' && panel.content.widgets.length);
            }}"""
        )

    def evaluate(self, body: str, argument: Any = None) -> Any:  # noqa: ANN401
        """Run JavaScript with ``panel`` (the notebook's), ``app`` and ``argument`` in scope."""
        code = f"argument => {{ const app = window.jupyterapp; const panel = ({_PANEL})(); {body} }}"
        return self.page.evaluate(code, argument)

    def run_all(self, timeout: float = 120.0) -> None:
        """Run every cell and wait until all have run."""
        self.page.set_default_timeout(timeout * 1000)
        self.evaluate("return app.commands.execute('notebook:run-all-cells')")
        self.settle()

    def run_cell(self, index: int) -> None:
        """Run one cell and wait until it has run."""
        self.evaluate(
            "panel.content.activeCellIndex = argument; panel.content.deselectAll();"
            "return app.commands.execute('notebook:run-cell')",
            index,
        )
        self.settle()

    def settle(self) -> None:
        """Wait until the kernel is idle and the page has drawn what it sent."""
        self.page.wait_for_function(
            f"() => ({_PANEL})().sessionContext.session.kernel.status === 'idle'"
        )
        frames = "requestAnimationFrame(() => requestAnimationFrame(done))"
        self.page.evaluate(f"() => new Promise(done => {frames})")

    def cells(self) -> list[dict[str, Any]]:
        """Return the notebook's cells as they would be saved."""
        return self.evaluate("return panel.content.model.toJSON().cells")

    def type_into(self, index: int, source: str) -> None:
        """Replace a cell's text from the keyboard."""
        self.evaluate("panel.content.activeCellIndex = argument; panel.content.mode = 'edit'", index)
        editor = self.page.locator(".jp-NotebookPanel .jp-Cell.jp-mod-active .cm-content")
        editor.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)
        self.page.keyboard.press("Escape")

    def set_theme(self, theme: str) -> None:
        """Switch to the ``light`` or ``dark`` theme."""
        change = "return app.commands.execute('apputils:change-theme', {theme: argument})"
        self.evaluate(change, THEMES[theme])
        wanted = "true" if theme == "light" else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light='{wanted}']", state="attached")

    def errors(self) -> list[str]:
        """Return the error outputs: cell number, exception, message."""
        found = []
        for k, cell in enumerate(self.cells()):
            failed = [output for output in cell.get("outputs", []) if output["output_type"] == "error"]
            found += [f"cell {k}: {output['ename']}: {output['evalue']}" for output in failed]
        return found

    def write_slices(self, out: Path, stem: str) -> list[Path]:
        """Write pictures of the notebook from top to bottom, each beginning where the last one ended."""
        page, written = self.page, []
        out.mkdir(parents=True, exist_ok=True)
        self.evaluate("panel.content.mode = 'command'; panel.content.deselectAll()")
        box = page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer").bounding_box()
        total, step = page.evaluate(_LENGTH), int(box["height"])
        for top in range(0, total, step):
            page.evaluate(f"top => {{ {_SCROLLER}.scrollTop = top }}", top)
            page.wait_for_function("() => [...document.images].every(image => image.complete)")
            shift = top - page.evaluate(f"{_SCROLLER}.scrollTop")  # the last one scrolls less: cut its top
            clip = {**box, "y": box["y"] + shift, "height": step - shift}
            written.append(out / f"{stem}-{len(written) + 1:02d}.png")
            page.screenshot(path=written[-1], clip=clip)
        return written
