"""Look at a whole notebook as JupyterLab draws it, in both themes.

    python -m tests.browser.screenshot solutions/01_posterior_collapse.ipynb .artifacts/look
    python -m tests.browser.screenshot NOTEBOOK OUT_DIR --theme dark --run --width 1100 --height 1400

writes OUT_DIR/NAME-light-01.png, NAME-light-02.png, ... from top to bottom, then the same in dark. The
notebook is copied first and never changed; ``--run`` executes the copy (live demos then have their controls).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from .lab import THEMES, NotebookPage, launch, running_lab


def main() -> None:
    """Read the command line, open the notebook, write the pictures."""
    from playwright.sync_api import sync_playwright

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--theme", choices=[*THEMES, "both"], default="both")
    parser.add_argument("--run", action="store_true", help="execute the notebook first (in a copy)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that --run may take")
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--height", type=int, default=1300, help="height of a slice, about")
    parser.add_argument("--scale", type=float, default=1.0, help="device pixels per screen pixel")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root, home = Path(folder) / "root", Path(folder) / "home"
        root.mkdir()
        shutil.copy(options.notebook, root)
        with running_lab(root, home) as lab:
            browser = launch(playwright)
            size = {"width": options.width, "height": options.height}
            page = browser.new_page(viewport=size, device_scale_factor=options.scale)
            notebook = NotebookPage(page, lab, options.notebook.name, app="doc")
            if options.run:
                notebook.run_all(options.timeout)
            for theme in THEMES if options.theme == "both" else [options.theme]:
                notebook.set_theme(theme)
                notebook.write_slices(options.out, f"{options.notebook.stem}-{theme}")
            browser.close()


if __name__ == "__main__":
    main()
