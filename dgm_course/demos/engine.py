"""One engine for every live demo: controls, a picture that follows them, the numbers, what to try.

A demo is four functions. ``compute(**values)`` turns the controls' values into a result: the library's
exact numbers, no drawing. ``build(figure, result)`` draws the picture once and returns its moving artists.
``draw(artists, result)`` moves them. ``numbers(result)`` names the numbers printed beside the picture.

A redraw copies the cached still part of the picture, draws the moving artists onto it and sends one PNG to
the display: no layout, no new figure. The figure never belongs to pyplot, since controls are answered in
another thread than the notebook's cells; a lock lets one answer in at a time.
"""

from __future__ import annotations

import html
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.style
import numpy as np
from IPython.display import DisplayHandle, display
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dgm_course import plots
from dgm_course.pictures import PICTURE_DPI, fast_png, notebook_shell, palette_png, picture_bundle

Artists = Mapping[str, Artist | Sequence[Artist]]

_SHEET = Path(plots.__file__).with_name("dgm.mplstyle")
_STYLE = """<style>
.jp-Cell-outputArea:has(.dgm-demo) { box-sizing: border-box; max-width: 972px; padding: 12px 16px 6px;
  margin: 6px 0 6px var(--jp-cell-prompt-width); border: 1px solid var(--jp-border-color2);
  border-radius: 12px; background: var(--jp-layout-color0); }
.jp-Cell-outputArea:has(.dgm-demo) .jp-OutputPrompt,
.jp-Cell-outputArea:has(.dgm-demo) .jp-OutputArea-promptOverlay { display: none; }
.jp-Cell-outputArea:has(.dgm-demo) .jp-OutputArea-output { padding: 0; }
.jp-Cell-outputArea:has(.dgm-demo) .jp-RenderedMarkdown p { margin: 2px 0 6px; }
.dgm-demo .widget-label { font-weight: bold; }
.dgm-demo .widget-hslider { width: 370px; }
.dgm-demo .widget-toggle-buttons { display: flex; flex-flow: row nowrap; align-items: center; width: auto; }
.dgm-demo .widget-readout { min-width: 3.4em; }
.dgm-numbers { display: flex; flex-wrap: wrap; gap: 2px 26px; color: var(--jp-content-font-color1);
  font-size: var(--jp-content-font-size1); line-height: 1.7; }
.dgm-numbers b { font-variant-numeric: tabular-nums; }
.dgm-numbers .dgm-trouble { color: var(--jp-error-color1); }
</style>"""

_SLIDER = {"description_width": "initial", "handle_color": plots.BLUE}


def log_slider(
    label: str, value: float, low: float, high: float, step: float = 0.05
) -> ipywidgets.FloatLogSlider:
    """Return a slider from ``low`` to ``high`` whose arrow keys move ``log10`` of its value by ``step``.

    ``value`` goes to the nearest of its positions, where the page would put it anyway.
    """
    position = round(np.log10(value / low) / step)
    return ipywidgets.FloatLogSlider(
        value=low * 10 ** (position * step), min=np.log10(low), max=np.log10(high), step=step,
        description=label, tooltip=label, readout_format=".3g", style=_SLIDER,
    )


def int_slider(label: str, value: int, low: int, high: int) -> ipywidgets.IntSlider:
    """Return a slider over the whole numbers from ``low`` to ``high``."""
    return ipywidgets.IntSlider(
        value=value, min=low, max=high, description=label, tooltip=label, style=_SLIDER
    )


def linear_slider(label: str, value: float, low: float, high: float, step: float) -> ipywidgets.FloatSlider:
    """Return a slider from ``low`` to ``high`` whose arrow keys move its value by ``step``.

    ``value`` goes to the nearest of its positions.
    """
    return ipywidgets.FloatSlider(
        value=round(low + round((value - low) / step) * step, 12), min=low, max=high, step=step,
        description=label, tooltip=label, readout_format=".3g", style=_SLIDER,
    )


def choice_slider(
    label: str, value: float, choices: Sequence[float], *, names: Sequence[str] | None = None
) -> ipywidgets.SelectionSlider:
    """Return a slider over a list of numbers, one arrow key apart; ``value`` goes to the nearest.

    ``names`` are what the page shows for them (default: the numbers as they are).
    """
    shown = [str(choice) for choice in choices] if names is None else names
    return ipywidgets.SelectionSlider(
        value=min(choices, key=lambda choice: abs(choice - value)),
        options=list(zip(shown, choices, strict=True)),
        description=label, tooltip=label, style=_SLIDER,
    )


def choice_buttons(label: str, value: str, choices: Sequence[str]) -> ipywidgets.ToggleButtons:
    """Return a row of buttons, one for each choice, of which one is pressed."""
    return ipywidgets.ToggleButtons(
        value=value, options=list(choices), description=label, tooltips=list(choices),
        style={"description_width": "initial", "button_width": "auto"},
    )


class LiveDemo:
    """A picture that follows its controls.

    Arguments
    ---------
    name: the demo's file, for its card and its tests.
    controls: name of each argument of ``compute`` and the ipywidgets control that sets it.
    compute, build, draw, numbers: see the module. ``build`` returns the moving artists by name; everything
    else it draws stays. ``numbers`` returns label and formatted value, units included.
    describe: the picture in words, for who cannot see it.
    try_this: what to try, in Markdown: the caption under the picture.
    """

    def __init__(
        self,
        *,
        name: str,
        controls: Mapping[str, ipywidgets.ValueWidget],
        compute: Callable[..., Any],
        build: Callable[[Figure, Any], Artists],
        draw: Callable[[Artists, Any], None],
        numbers: Callable[[Any], Mapping[str, str]],
        describe: Callable[[Any], str],
        try_this: str,
        figsize: tuple[float, float] = (9.6, 3.6),
    ) -> None:
        self.name, self.controls, self.try_this = name, dict(controls), try_this
        self.compute, self.numbers, self.describe = compute, numbers, describe
        self._draw = draw
        self._start = {key: control.value for key, control in self.controls.items()}
        self._lock = threading.RLock()
        self._quiet = False
        self._handle: DisplayHandle | None = None
        self.result = compute(**self.values)
        self.figure, self.artists = self._laid_out(build, figsize)
        self._still = self._canvas.copy_from_bbox(self.figure.bbox)
        self._readout = ipywidgets.HTML(self._numbers_html())
        self._reset = ipywidgets.Button(description="Reset", icon="undo", tooltip="Back to the first picture")
        self._reset.layout.width = "auto"
        self._reset.on_click(lambda _: self.reset())
        for control in self.controls.values():
            control.observe(self._moved, names="value")
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
        self.box = ipywidgets.VBox(
            [
                ipywidgets.Box([*self.controls.values(), self._reset], layout=row),
                self._readout,
                ipywidgets.HTML(_STYLE, layout={"display": "none"}),
            ]
        )
        self.box.add_class("dgm-demo")

    @property
    def values(self) -> dict[str, Any]:
        """The controls' values by name: the arguments of ``compute``."""
        return {key: control.value for key, control in self.controls.items()}

    def set(self, **values: Any) -> None:  # noqa: ANN401
        """Move controls by name, as a hand would, with one redraw."""
        unknown = values.keys() - self.controls.keys()
        if unknown:
            raise ValueError(
                f"{self.name} has no control {sorted(unknown)}: its controls are {sorted(self.controls)}"
            )
        with self._lock:
            self._quiet = True
            try:
                for key, value in values.items():
                    self.controls[key].value = value
            finally:
                self._quiet = False
            self.refresh()

    def reset(self) -> None:
        """Put every control back to where it stood first."""
        self.set(**self._start)

    def refresh(self) -> None:
        """Compute, draw, and send picture and numbers to the notebook."""
        with self._lock:
            self.result = self.compute(**self.values)
            self._draw(self.artists, self.result)
            if self._handle is not None:
                data, metadata = picture_bundle(fast_png(self.frame()), self.describe(self.result))
                self._handle.update(data, metadata=metadata, raw=True)
            self._readout.value = self._numbers_html()

    def frame(self) -> NDArray[np.uint8]:
        """Return the picture's pixels ``(height, width, 4)``: the moving part drawn on the still one."""
        self._canvas.restore_region(self._still)
        for artist in sorted(_flat(self.artists), key=Artist.get_zorder):
            self.figure.draw_artist(artist)
        return np.asarray(self._canvas.buffer_rgba()).copy()

    def full_frame(self) -> NDArray[np.uint8]:
        """Return the same pixels by drawing the whole figure, slowly: what :meth:`frame` must agree with."""
        for artist in _flat(self.artists):
            artist.set_animated(False)
        with matplotlib.style.context(_SHEET):
            self._canvas.draw()
        pixels = np.asarray(self._canvas.buffer_rgba()).copy()
        for artist in _flat(self.artists):
            artist.set_animated(True)
        return pixels

    def show(self) -> LiveDemo:
        """Display controls, picture and caption under the cell; the stored picture is small."""
        if notebook_shell() is None:
            return self
        names = [control.description for control in self.controls.values()]
        bundle = self.box._repr_mimebundle_()
        bundle["text/plain"] = f"Live demo: run this cell to move {' and '.join(names)}."
        display(bundle, raw=True)
        with self._lock:
            data, metadata = picture_bundle(palette_png(self.frame()), self.describe(self.result))
            self._handle = display(data, metadata=metadata, raw=True, display_id=True)
        display({"text/markdown": self.try_this, "text/plain": self.try_this}, raw=True)
        return self

    def close(self) -> None:
        """Take the controls away; the picture stays as it is."""
        self._handle = None
        for widget in [*self.controls.values(), self._readout, self._reset, self.box]:
            widget.close()

    def _ipython_display_(self) -> None:
        """A demo as a cell's last value shows nothing more: :meth:`show` has displayed it."""

    def _laid_out(
        self, build: Callable[[Figure, Any], Artists], figsize: tuple[float, float]
    ) -> tuple[Figure, Artists]:
        """Build the figure in the course's style, lay it out once, and take the moving artists out of it."""
        with matplotlib.style.context(_SHEET):
            figure = Figure(figsize=figsize, dpi=PICTURE_DPI)
            self._canvas = FigureCanvasAgg(figure)
            artists = build(figure, self.result)
            self._draw(artists, self.result)
            self._canvas.draw()  # places the panels, which changes the ticks that fit
            self._canvas.draw()
            figure.set_layout_engine("none")
            for artist in _flat(artists):
                artist.set_animated(True)
                artist.set_zorder(artist.get_zorder() + 100)  # above all that stays, here as in a full redraw
            self._canvas.draw()
        return figure, artists

    def _moved(self, change: Mapping[str, Any]) -> None:
        old, new = change["old"], change["new"]
        # A page that shows a slider sends its value back with a rounding error: that is no move.
        if self._quiet or (isinstance(new, float) and math.isclose(old, new, abs_tol=1e-12)):
            return
        try:
            self.refresh()
        except Exception as error:
            text = html.escape(f"{type(error).__name__}: {error}")
            self._readout.value = f'<div class="dgm-numbers"><span class="dgm-trouble">{text}</span></div>'
            raise

    def _numbers_html(self) -> str:
        values = html.escape(json.dumps(self.values), quote=True)
        spans = [
            f'<span>{html.escape(label)} <b data-number="{html.escape(label)}">{html.escape(text)}</b></span>'
            for label, text in self.numbers(self.result).items()
        ]
        start = f'<div class="dgm-numbers" data-demo="{self.name}" data-values="{values}" aria-live="polite">'
        return start + "".join(spans) + "</div>"


def _flat(artists: Artists) -> Iterator[Artist]:
    for value in artists.values():
        yield from [value] if isinstance(value, Artist) else value
