"""What a browser test asks of an open notebook: pictures, demos, exercises."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dgm_course.notebooks.source import read_source

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
    {code: '', silent: true, store_history: false, user_expressions: {value: argument}});
  return future.done.then(reply => {
    const value = reply.content.user_expressions.value;
    return value.status === 'ok' ? value.data['text/plain'] : 'failed: ' + value.evalue;
  });
"""
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


def in_kernel(notebook: NotebookPage, expression: str) -> Any:  # noqa: ANN401
    """Return the value of a Python expression over the notebook's own variables, as JSON carries it."""
    text = notebook.evaluate(_IN_KERNEL, f"__import__('json').dumps({expression})")
    assert not text.startswith("failed: "), f"{expression}: {text}"
    return json.loads(ast.literal_eval(text))


class DemoCard:
    """One live demo on the page, by its position."""

    def __init__(self, notebook: NotebookPage, position: int) -> None:
        self.notebook = notebook
        page = notebook.page
        self.area: Locator = page.locator(".jp-Cell-outputArea", has=page.locator(".dgm-demo")).nth(position)
        self.handles = self.area.locator(".noUi-handle")
        self.choices = self.area.locator(".widget-toggle-buttons button")
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

    def choose(self, index: int) -> bool:
        """Press one of the choices and wait for picture and numbers; False if it was pressed already."""
        button = self.choices.nth(index)
        if "mod-active" in button.get_attribute("class").split():
            return False
        self._click(button)
        return True

    def reset(self) -> None:
        """Press the demo's button and wait for picture and numbers."""
        self._click(self.area.get_by_role("button", name="Reset"))

    def _click(self, button: Locator) -> None:
        area = self.area.element_handle()
        before = area.evaluate(_STOPWATCH)
        button.click()
        self.notebook.page.wait_for_function(_ANSWERED, arg=[area, before], timeout=15_000)


def demo_cards(notebook: NotebookPage) -> list[DemoCard]:
    """Return the live demos from top to bottom."""
    return [DemoCard(notebook, k) for k in range(notebook.page.locator(".dgm-demo").count())]


class Exercise(NamedTuple):
    """An exercise of an open notebook: its name, the places of its cell and its check, its solution."""

    name: str
    cell: int
    check: int
    solution: str


def exercises(notebook: NotebookPage, source: Path) -> list[Exercise]:
    """Return the exercises of ``source``, a lecture's ``.py`` file, as they stand in the open notebook."""
    places = {cell["id"]: k for k, cell in enumerate(notebook.cells())}
    graded = [cell for cell in read_source(source).cells if "nbgrader" in cell.metadata]
    by_name = {cell.metadata.nbgrader.grade_id.split("-", 1)[1]: cell for cell in graded}
    return [
        Exercise(name, places[cell["id"]], places[by_name[f"check-{name}"]["id"]], cell.source)
        for name, cell in by_name.items()
        if cell.metadata.nbgrader.solution
    ]


def printed(notebook: NotebookPage, cell: int) -> str:
    """Return what a cell printed."""
    outputs = notebook.cells()[cell]["outputs"]
    return "".join("".join(output.get("text", "")) for output in outputs)


def answer(notebook: NotebookPage, exercise: Exercise, source: str) -> str:
    """Type an answer into the exercise's cell, run it and its check; return what the check printed."""
    notebook.type_into(exercise.cell, source)
    typed = "".join(notebook.cells()[exercise.cell]["source"])
    assert typed == source, "the editor holds another text than was typed"
    notebook.run_cell(exercise.cell)
    notebook.run_cell(exercise.check)
    return printed(notebook, exercise.check)
