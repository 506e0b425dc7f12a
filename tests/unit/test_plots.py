"""Figures are readable on both grounds, small, and drawn as their functions say."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import PatchCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.text import Text
from PIL import Image

from dgm_course import pictures, plots

WHITE, DARK = "#ffffff", "#111111"


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """The course's style inside a test, the defaults outside."""
    with matplotlib.rc_context():
        plots.use_style()
        yield


def contrast(first: str, second: str) -> float:
    """The WCAG contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        channel = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def everything() -> Figure:
    """One figure that uses every drawing function."""
    fig = Figure(figsize=(9.6, 5.4))
    axes = fig.subplots(2, 3).ravel()
    generator = np.random.default_rng(0)
    x = np.linspace(0.0, 6.0, 80)
    plots.curve(axes[0], x, np.sin(x), error=0.1 + 0 * x, label="mean")
    plots.reference_line(axes[0], "entropy", y=0.5)
    plots.reference_line(axes[0], "now", x=3.0, at_start=True)
    axes[0].legend()
    plots.bars(axes[1], [[3, 10], [3, 52]], groups=["a", "b"], series=["on", "off"], error=np.ones((2, 2)))
    cloud = generator.normal(size=(200, 2)) @ [[1.0, 0.6], [0.0, 0.5]]
    plots.points(axes[2], cloud, color=plots.BLUE)
    plots.covariance_ellipse(axes[2], cloud.mean(0), np.cov(cloud.T), color=plots.ORANGE)
    plots.log_axes(axes[3])
    plots.heat_map(axes[3], [0.1, 1, 10], [0.1, 1, 10], np.eye(3), label="active", levels=[0, 1])
    plots.image_grid(axes[4], generator.random((12, 8, 8)), columns=6)
    plots.mask_cells(axes[5], np.tri(8, 8, -1))
    for ax in axes:
        ax.set(title="Title", xlabel="x (pixels)", ylabel="y (nats)")
    return fig


def test_colours_read_on_white_and_on_the_dark_theme() -> None:
    assert contrast(plots.INK, WHITE) > 4.3 and contrast(plots.INK, DARK) > 4.3
    for colour in plots.PALETTE:
        assert contrast(colour, WHITE) > 2.9 and contrast(colour, DARK) > 3.0, colour
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    assert [f"#{c.lstrip('#')}" for c in cycle] == list(plots.PALETTE)


def test_every_text_has_eleven_points_or_more() -> None:
    fig = everything()
    fig.draw_without_rendering()
    texts = [text for text in fig.findobj(Text) if text.get_text() and text.get_visible()]
    assert len(texts) > 40
    assert min(text.get_fontsize() for text in texts) >= 11
    assert not any("$" in text.get_text() for text in texts)  # a power of ten would be smaller
    assert {text.get_text() for text in texts} >= {"0.1", "1", "10", "entropy", "now", "active"}


def test_a_figure_is_transparent_and_small() -> None:
    png = pictures.figure_png(everything())
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P" and image.size == (1382, 777)
    assert image.convert("RGBA").getpixel((2, 2))[3] == 0
    assert len(png) * 4 / 3 < 100_000  # ten such, as text in a notebook, are a megabyte


def test_the_palette_keeps_a_colour_map_smooth() -> None:
    ramp = matplotlib.colormaps["viridis"](np.linspace(0, 1, 1200), bytes=True)
    rgba = np.broadcast_to(ramp, (300, 1200, 4)).copy()
    rgba[:40] = 0
    back = np.asarray(Image.open(io.BytesIO(pictures.palette_png(rgba))).convert("RGBA"))
    assert np.abs(back.astype(int) - rgba).max() <= 8
    assert (back[:40, :, 3] == 0).all() and (back[40:, :, 3] == 255).all()


def test_few_colours_survive_exactly() -> None:
    rgba = np.zeros((20, 20, 4), dtype=np.uint8)
    rgba[5:9] = (117, 121, 127, 255)
    rgba[9:12] = (117, 121, 127, 71)
    back = np.asarray(Image.open(io.BytesIO(pictures.palette_png(rgba))).convert("RGBA"))
    assert (back == rgba).all()
    assert (np.asarray(Image.open(io.BytesIO(pictures.fast_png(rgba)))) == rgba).all()


def test_drawing_functions_return_their_axes_and_take_tensors() -> None:
    ax = Figure().subplots()
    y = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert plots.curve(ax, torch.arange(3), y, low=y - 1, high=y + 1) is ax
    assert ax.lines[0].get_ydata().tolist() == [1.0, 2.0, 4.0]
    (band,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert band.get_paths()[0].get_extents().bounds == (0.0, 0.0, 2.0, 5.0)
    assert plots.points(ax, torch.zeros(3, 2)) is ax
    assert plots.reference_line(ax, y=1.0) is ax
    assert plots.log_axes(Figure().subplots(), "x").get_xscale() == "log"


def test_the_ellipse_is_the_level_set() -> None:
    covariance = np.array([[2.0, 0.8], [0.8, 1.0]])
    ax = plots.covariance_ellipse(Figure().subplots(), [1.0, -1.0], covariance, num_std=2.0)
    (ellipse,) = [patch for patch in ax.patches if isinstance(patch, Ellipse)]
    # Ellipse's unit circle, mapped by its own transform to data coordinates.
    angle = np.linspace(0, 2 * np.pi, 50)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    on = (ellipse.get_patch_transform().transform(circle)) - [1.0, -1.0]
    assert np.allclose(np.einsum("ni,ij,nj->n", on, np.linalg.inv(covariance), on), 4.0)


def test_grouped_bars_stand_side_by_side_with_their_errors() -> None:
    ax = plots.bars(Figure().subplots(), [[1.0, 2.0], [3.0, 4.0]], groups=["a", "b"], series=["s", "t"])
    boxes = sorted((patch.get_x(), patch.get_height()) for patch in ax.patches)
    assert [height for _, height in boxes] == [1.0, 3.0, 2.0, 4.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    ax = plots.bars(Figure().subplots(), [1.0, 2.0], groups=["a", "b"], error=[0.5, 0.25])
    whiskers = ax.containers[-1].errorbar.lines[2][0].get_paths()
    assert [path.vertices[:, 1].tolist() for path in whiskers] == [[0.5, 1.5], [1.75, 2.25]]


def test_heat_map_cells_are_centred_on_their_values() -> None:
    ax = plots.log_axes(Figure().subplots())
    plots.heat_map(ax, [0.1, 1.0, 10.0], [1.0, 100.0], np.arange(6).reshape(2, 3), label="nats")
    corners = ax.collections[0].get_coordinates()
    assert np.allclose(corners[0, :, 0], [10**-1.5, 10**-0.5, 10**0.5, 10**1.5])
    assert np.allclose(corners[:, 0, 1], [0.1, 10.0, 1000.0])
    assert ax.figure.axes[1].get_ylabel() == "nats"
    plain = plots.heat_map(Figure().subplots(), [0, 1], [0, 1], np.eye(2), label="count", levels=range(3))
    assert np.allclose(plain.collections[0].get_coordinates()[0, :, 0], [-0.5, 0.5, 1.5])
    assert [tick.get_text() for tick in plain.figure.axes[1].get_yticklabels()] == ["0", "1", "2"]


def test_image_grid_leaves_clear_gaps() -> None:
    ax = plots.image_grid(Figure().subplots(), torch.rand(5, 4, 3), columns=3)
    sheet = ax.images[0].get_array()
    assert sheet.shape == (2 * 5 - 1, 3 * 4 - 1)
    assert sheet.mask[4].all() and sheet.mask[:, 3].all() and sheet.mask[5:, 8:].all()
    assert not sheet.mask[:4, :3].any()


def test_image_grid_in_colour() -> None:
    """The levels' share of the range in red, green and blue; the gaps are clear."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 4, 3, 3), generator=g, dtype=torch.uint8)
    ax = plots.image_grid(Figure().subplots(), images, columns=3, vmin=0, vmax=255)
    sheet = ax.images[0].get_array()
    assert sheet.shape == (2 * 5 - 1, 3 * 4 - 1, 4)
    assert (sheet[4, :, 3] == 0).all() and (sheet[:, 3, 3] == 0).all() and (sheet[5:, 8:, 3] == 0).all()
    assert (sheet[:4, :3, 3] == 1).all()
    assert np.allclose(sheet[5:9, :3, :3], images[3].numpy() / 255)


def test_mask_cells_fill_the_ones() -> None:
    mask = torch.tril(torch.ones(4, 4), -1)
    ax = plots.mask_cells(Figure().subplots(), mask, color=plots.GREEN)
    (cells,) = [c for c in ax.collections if isinstance(c, PatchCollection)]
    filled = [tuple(colour[:3]) == matplotlib.colors.to_rgb(plots.GREEN) for colour in cells.get_facecolor()]
    assert filled == mask.bool().ravel().tolist()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda ax: plots.bars(ax, [1.0, 2.0, 3.0], groups=["a", "b"]), r"\(1, 2\), got \(1, 3\)"),
        (lambda ax: plots.points(ax, [1.0, 2.0]), r"shape \(n, 2\), got \(2,\)"),
        (lambda ax: plots.covariance_ellipse(ax, [0, 0], np.zeros((2, 2))), "positive eigenvalues"),
        (lambda ax: plots.covariance_ellipse(ax, [0, 0, 0], np.eye(3)), r"got \(3,\) and \(3, 3\)"),
        (lambda ax: plots.reference_line(ax, "both", x=1, y=2), "exactly one"),
        (lambda ax: plots.heat_map(ax, [1, 2], [1, 2, 3], np.ones((2, 3)), label=""), "transpose"),
        (lambda ax: plots.image_grid(ax, np.ones((5, 64))), "reshape rows"),
        (lambda ax: plots.show(ax.figure, alt=" "), "alternative text"),
    ],
)
def test_bad_input_says_what_to_do(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(Figure().subplots())


def test_importing_changes_no_setting_and_imports_no_pyplot() -> None:
    code = (
        "import sys, matplotlib, json; before = matplotlib.rcParams.copy()\n"
        "from dgm_course import plots\n"
        "print(json.dumps([before == matplotlib.rcParams.copy(), 'matplotlib.pyplot' in sys.modules,"
        " 'IPython' in sys.modules]))"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(out.stdout) == [True, False, False]


NOTEBOOK = """
import matplotlib.pyplot as plt
from dgm_course import plots
plots.use_style(); plots.use_style()
---
fig, ax = plt.subplots(); ax.plot([0, 1]); plots.show(fig, alt="A line from 0 to 1.")
---
fig, ax = plt.subplots(); ax.plot([0, 1]); ax.set_title("Own plot");
---
fig, ax = plt.subplots(); ax.plot([0, 1]); plt.show()
"""


def test_a_notebook_shows_each_figure_once_without_a_plate() -> None:
    import nbclient
    import nbformat

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source.strip()) for source in NOTEBOOK.split("---")]
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    said = []
    for cell in notebook.cells[1:]:
        (output,) = cell.outputs
        assert output.output_type == "display_data"
        assert set(output.data) == {"image/png", "text/plain"}
        assert "needs_background" not in output.metadata
        assert output.metadata["image/png"]["width"] == 921
        assert output.metadata["image/png"]["alt"] == output.data["text/plain"]
        said.append(output.data["text/plain"])
    assert said[:2] == ["A line from 0 to 1.", "Figure: Own plot"]
