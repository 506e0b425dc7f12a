"""What a browser test asks of an open notebook: pictures, demos, exercises."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

from .lab import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Locator

_PICTURES = """
  const shown = [];
  panel.content.widgets.forEach((cell, index) => {
    const outputs = cell.model.type === 'code' ? cell.model.outputs.toJSON() : [];
    const wanted = outputs.filter(output => output.data && output.data['image/png']).length;
    const images = [...cell.node.querySelectorAll('.jp-RenderedImage img')];
    const drawn = images.filter(image => image.complete && image.naturalWidth > 0 && image.width > 0).length;
    const plates = images.filter(image => /jp-needs-\\w+-background/.test(image.className)).length;
    if (wanted || drawn) shown.push({index, wanted, drawn, plates});
  });
  return shown;
"""
_IN_KERNEL = """
  const kernel = panel.sessionContext.session.kernel;
  const future = kernel.requestExecute(
    {code: argument[0], silent: true, store_history: false, user_expressions: {value: argument[1]}});
  return future.done.then(reply => {
    const value = reply.content.user_expressions.value;
    return value.status === 'ok' ? value.data['text/plain'] : 'failed: ' + value.evalue;
  });
"""
_DEMOS = """
import gc as _gc, json as _json
from dgm_course.demos.engine import LiveDemo as _LiveDemo
_found = [demo for demo in _gc.get_objects() if type(demo) is _LiveDemo]
"""
_NUMBERS = "_json.dumps([[d.name, d.values, dict(d.numbers(d.compute(**d.values)))] for d in _found])"

# Note the time of the next key and of the frame in which the next picture stands; return what is there now.
_STOPWATCH = """area => {
  const image = () => area.querySelector('.jp-RenderedImage img');
  const before = image().src;
  area.answered = area.pressed = null;
  const note = () => { area.pressed = performance.now(); };
  document.addEventListener('keydown', note, {capture: true, once: true});
  const observer = new MutationObserver(() => {
    if (!image() || image().src === before) return;
    observer.disconnect();
    image().decode().then(() => requestAnimationFrame(() => { area.answered = performance.now(); }));
  });
  observer.observe(area, {subtree: true, childList: true, attributes: true});
  return area.querySelector('.dgm-numbers').dataset.values;
}"""
_ANSWERED = """([area, before]) =>
  area.answered !== null && area.querySelector('.dgm-numbers').dataset.values !== before"""


def pictures(notebook: NotebookPage) -> list[dict[str, int]]:
    """Return, for each cell with pictures: how many it holds, how many are drawn, how many on plates."""
    notebook.page.wait_for_function("() => [...document.images].every(image => image.complete)")
    return notebook.evaluate(_PICTURES)


def library_numbers(notebook: NotebookPage) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    """Return name, control values and freshly computed numbers of every demo that lives in the kernel."""
    text = notebook.evaluate(_IN_KERNEL, [_DEMOS, _NUMBERS])
    return [tuple(found) for found in json.loads(ast.literal_eval(text))]


class DemoCard:
    """One live demo on the page, by its position."""

    def __init__(self, notebook: NotebookPage, position: int) -> None:
        self.notebook = notebook
        page = notebook.page
        self.area: Locator = page.locator(".jp-Cell-outputArea", has=page.locator(".dgm-demo")).nth(position)
        self.handles = self.area.locator(".noUi-handle")
        self.name = self._numbers_box().get_attribute("data-demo")

    def _numbers_box(self) -> Locator:
        return self.area.locator(".dgm-numbers")

    def values(self) -> dict[str, Any]:
        """The controls' values that the printed numbers belong to."""
        return json.loads(self._numbers_box().get_attribute("data-values"))

    def numbers(self) -> dict[str, str]:
        """The printed numbers by their labels."""
        marks = self._numbers_box().locator("[data-number]")
        return {mark.get_attribute("data-number"): mark.inner_text() for mark in marks.all()}

    def picture(self) -> str:
        """The picture's data."""
        return self.area.locator(".jp-RenderedImage img").get_attribute("src")

    def press(self, key: str, slider: int = 0) -> float:
        """Press a key on a slider, wait for picture and numbers; return the milliseconds to the picture."""
        self.handles.nth(slider).focus()
        area = self.area.element_handle()
        before = area.evaluate(_STOPWATCH)
        self.notebook.page.keyboard.press(key)
        self.notebook.page.wait_for_function(_ANSWERED, arg=[area, before], timeout=15_000)
        return area.evaluate("area => area.answered - area.pressed")

    def reset(self) -> None:
        """Press the demo's button and wait for picture and numbers."""
        area = self.area.element_handle()
        before = area.evaluate(_STOPWATCH)
        self.area.get_by_role("button", name="Reset").click()
        self.notebook.page.wait_for_function(_ANSWERED, arg=[area, before], timeout=15_000)


def demo_cards(notebook: NotebookPage) -> list[DemoCard]:
    """Return the live demos from top to bottom."""
    return [DemoCard(notebook, k) for k in range(notebook.page.locator(".dgm-demo").count())]


def answer(notebook: NotebookPage, name: str, source: str) -> str:
    """Type an answer into exercise ``name``'s cell, run it and its check; return what the check printed."""
    sources = ["".join(cell["source"]) for cell in notebook.cells()]
    (stub,) = [k for k, text in enumerate(sources) if text.lstrip().startswith(f"def {name}(")]
    (check,) = [k for k, text in enumerate(sources) if f"check.{name}({name})" in text]
    notebook.type_into(stub, source)
    notebook.run_cell(stub)
    notebook.run_cell(check)
    outputs = notebook.cells()[check]["outputs"]
    return "".join("".join(output.get("text", "")) for output in outputs)
