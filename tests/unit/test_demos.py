"""Live demos: the library's numbers, a picture that follows the controls, nothing of pyplot's touched."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.text import Text
from PIL import Image
from small_demos import MOVES, shown

from dgm_course.data import enumerable_binary
from dgm_course.demos import phase_diagram, receptive_field
from dgm_course.demos.engine import LiveDemo
from dgm_course.gaussian import gaussian_kl
from dgm_course.pictures import fast_png
from dgm_course.vae import VAE


@pytest.fixture(scope="module")
def vae() -> VAE:
    return receptive_field.train_default(steps=30, progress=False)


@pytest.fixture(params=MOVES)
def demo(request: pytest.FixtureRequest, vae: VAE) -> Iterator[LiveDemo]:
    live = shown(request.param, vae)
    yield live
    live.close()


def test_phase_numbers_are_the_closed_form() -> None:
    phase = phase_diagram.compute(2.0, 0.6)
    kl = [0.5 * np.log(value / 1.2) if value > 1.2 else 0.0 for value in phase_diagram.EIGENVALUES[:5]]
    assert np.allclose(phase.spectrum.kl_per_dim, kl)
    assert abs(phase.mutual_information - sum(kl)) < 1e-12  # the aggregate posterior is the prior there
    assert phase.threshold == 1.2
    assert phase_diagram.numbers(phase) == {
        "Active latents": "3 of 5", "βσ²": "1.2",
        "KL(q(z|x) ‖ p(z))": f"{sum(kl):.3f} nats", "I[x, z]": f"{sum(kl):.3f} nats",
    }


def test_phase_diagram_shows_the_state() -> None:
    demo = phase_diagram.show([5.0, 2.0, 0.7, 0.2], num_latents=3)
    demo.set(beta=2.0, sigma2=0.5)
    assert demo.artists["line"].get_ydata() == pytest.approx([1.0, 1.0])
    assert demo.artists["point"].get_xydata().tolist() == [[2.0, 0.5]]
    assert demo.artists["equal"].get_ydata() * demo.artists["equal"].get_xdata() == pytest.approx([1.0, 1.0])
    heights = [bar.get_height() for bar in demo.artists["kl"]]
    assert heights == pytest.approx([0.5 * np.log(5.0), 0.5 * np.log(2.0), 0.0])
    assert [bar.get_height() for bar in demo.artists["var"]] == pytest.approx([0.2, 0.5, 1.0])
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in demo.artists["spectrum"]]
    alive, dead, beyond = phase_diagram.ACTIVE, phase_diagram.COLLAPSED, phase_diagram.plots.INK.upper()
    assert colours == [alive, alive, dead, beyond]


def test_the_bands_of_the_phase_diagram_are_the_closed_form() -> None:
    demo = phase_diagram.show([5.0, 2.0, 0.7, 0.0], num_latents=4)
    demo.set(beta=0.1, sigma2=0.05)  # out of the way
    frame, (panel,) = demo.frame(), [ax for ax in demo.figure.axes if ax.get_title("left") == "Phase diagram"]
    colours = (255 * matplotlib.colormaps["viridis"](np.linspace(0.05, 0.95, 5))).round()
    for beta in (0.3, 1.0, 3.0, 8.0):
        for sigma2 in (0.1, 0.3, 0.6, 1.0, 1.9, 3.0):
            x, y = panel.transData.transform((beta, sigma2))
            pixel = frame[frame.shape[0] - round(y), round(x)]
            count = int(phase_diagram.compute(beta, sigma2, [5.0, 2.0, 0.7, 0.0], 4).spectrum.active.sum())
            assert np.abs(pixel - colours[count]).max() <= 2, (beta, sigma2)


def test_receptive_field_numbers_are_sums_over_all_x(vae: VAE) -> None:
    table = receptive_field.tabulate(vae)
    x, log_pi = enumerable_binary(8)
    pi = log_pi.double().exp()
    z = torch.linspace(-9, 9, 901)  # a plain sum over a fine grid, instead of Gauss's nodes
    with torch.no_grad():
        log_likelihood = vae.decoder.log_prob(x, z[None, :, None, None]).double()  # (E, Z, 256)
        mean, log_var = vae.encode(x)  # (E, 256, 1)
    prior = torch.exp(-0.5 * z.double() ** 2) / np.sqrt(2 * np.pi)
    evidence = (log_likelihood.exp() * prior[:, None]).sum(1) * 18 / 900
    assert torch.allclose(table.nll, -(pi * evidence.log()).sum(-1), atol=1e-5)
    assert torch.allclose(table.kl, (pi * gaussian_kl(mean.double(), log_var.double())).sum(-1), atol=1e-6)
    q = torch.exp(-0.5 * (z[None, :, None] - mean.mT) ** 2 / log_var.mT.exp() - 0.5 * log_var.mT)
    q = q.double() / q.double().sum(1, keepdim=True)  # (E, Z, 256)
    elbo = (pi * (q * log_likelihood).sum(1)).sum(-1) - table.kl
    assert torch.allclose(table.elbo, elbo, atol=1e-4)
    assert table.entropy == pytest.approx(-float((pi * pi.log()).sum()), abs=1e-6)
    assert (table.nll > table.entropy).all() and (-table.elbo >= table.nll - 1e-5).all()


def test_aggregate_posteriors_are_densities_turned_the_same_way(vae: VAE) -> None:
    table = receptive_field.tabulate(vae)
    mass = table.aggregate.sum(-1) * float(table.z[1] - table.z[0])
    assert ((mass > 0.97) & (mass < 1.001)).all()  # what is missing lies outside the picture
    centre = (table.aggregate * table.z).sum(-1) / table.aggregate.sum(-1)  # (E, 9)
    assert (centre[:, 8] > centre[:, 0]).all()


def test_a_vae_in_either_precision_will_do() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        double = receptive_field.train_default(steps=2, progress=False)
        table = receptive_field.tabulate(double)
        receptive_field.show(double, r=5).close()
    finally:
        torch.set_default_dtype(torch.float32)
    assert table.aggregate.dtype == torch.float64


def test_a_moved_control_moves_the_picture_and_the_numbers(demo: LiveDemo) -> None:
    start, said = demo.frame(), demo._readout.value
    seen = [start.tobytes()]
    for move in MOVES[demo.name]:
        for name, value in move.items():
            demo.controls[name].value = value  # as a hand does, one by one
        now = demo.numbers(demo.compute(**demo.values))
        spans = re.findall(r"<b [^>]*>([^<]*)</b>", demo._readout.value)
        assert spans == list(now.values())
        assert demo._readout.value != said
        assert demo.describe(demo.result) == demo.describe(demo.compute(**demo.values))
        seen.append(demo.frame().tobytes())
    assert len(set(seen)) == len(seen)


def test_reset_goes_back(demo: LiveDemo) -> None:
    start, values, said = demo.frame(), demo.values, demo._readout.value
    demo.set(**MOVES[demo.name][-1])
    assert demo.values != values
    demo._reset.click()
    assert demo.values == values and demo._readout.value == said
    assert (demo.frame() == start).all()


def test_the_quick_drawing_is_the_full_drawing(demo: LiveDemo) -> None:
    for move in MOVES[demo.name]:
        demo.set(**move)
        quick, full = demo.frame(), demo.full_frame()
        assert (quick == full).all()
        assert (quick == demo.frame()).all()
    engine = demo.figure.get_layout_engine()
    assert engine is None or isinstance(engine, PlaceHolderLayoutEngine)  # nothing is laid out again
    back = np.asarray(Image.open(io.BytesIO(fast_png(quick))))
    assert (back == quick).all()


def test_texts_are_large_enough(demo: LiveDemo) -> None:
    texts = [text for text in demo.figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 11
    assert not any("$" in text.get_text() for text in texts)


def test_pyplot_and_settings_and_threads_are_left_alone(vae: VAE) -> None:
    mine, settings, threads = plt.figure(), matplotlib.rcParams.copy(), threading.active_count()
    try:
        for demo in [shown(name, vae) for name in MOVES]:
            demo.set(**MOVES[demo.name][0])
            demo.reset()
            demo.close()
        assert plt.get_fignums() == [mine.number] and plt.gcf() is mine
        assert matplotlib.rcParams.copy() == settings
        assert threading.active_count() == threads
    finally:
        plt.close(mine)


def test_answers_from_several_threads_end_in_one_state() -> None:
    demo = phase_diagram.show()
    errors: list[BaseException] = []

    def drag(values: np.ndarray, name: str) -> None:
        try:
            for value in values:
                demo.controls[name].value = value
        except BaseException as error:
            errors.append(error)

    hands = [
        threading.Thread(target=drag, args=(np.geomspace(0.1, 9.0, 25), "beta")),
        threading.Thread(target=drag, args=(np.geomspace(0.05, 4.0, 25), "sigma2")),
    ]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    assert not errors
    assert demo.values == pytest.approx({"beta": 9.0, "sigma2": 4.0})
    assert demo.result.threshold == pytest.approx(36.0)
    assert (demo.frame() == demo.full_frame()).all()


def test_a_redraw_is_far_quicker_than_a_new_figure() -> None:
    """The goal is a third of the time that ``interact`` takes, which draws a new figure each time."""
    demo = phase_diagram.show()
    redraw, new = [], []
    for k in range(3):
        start = time.perf_counter()
        demo.set(beta=0.5 + k)
        fast_png(demo.frame())
        redraw.append(time.perf_counter() - start)
        start = time.perf_counter()
        with matplotlib.rc_context():
            phase_diagram.plots.use_style()
            figure = Figure(figsize=(9.6, 3.9))
            phase_diagram.draw(phase_diagram.build(figure, demo.result), demo.result)
            figure.savefig(io.BytesIO(), format="png")
        new.append(time.perf_counter() - start)
    assert 3 * np.median(redraw) < np.median(new), (redraw, new)


def test_a_rounding_error_is_no_move() -> None:
    demo = phase_diagram.show()
    result = demo.result
    demo.controls["sigma2"].value = 0.5 * (1 - 2e-16)
    assert demo.result is result


def test_trouble_is_shown_and_raised() -> None:
    demo = phase_diagram.show()

    def broken(**_: float) -> None:
        raise ArithmeticError("1 < 0")

    demo.compute = broken
    with pytest.raises(ArithmeticError):
        demo.controls["beta"].value = 3.0
    assert "ArithmeticError: 1 &lt; 0" in demo._readout.value


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda vae: phase_diagram.show().set(alpha=1), r"no control \['alpha'\].*beta"),
        (lambda vae: receptive_field.compute(receptive_field.tabulate(vae), 8), "receptive field 8, only"),
        (lambda vae: receptive_field.tabulate(vae, fields=range(5)), "5 members.*members=8"),
    ],
)
def test_bad_input_says_what_to_do(call: object, says: str, vae: VAE) -> None:
    with pytest.raises(ValueError, match=says):
        call(vae)


def test_a_notebook_holds_controls_picture_and_caption_and_its_picture_follows() -> None:
    import nbclient
    import nbformat

    cells = ["from dgm_course.demos import phase_diagram\nphase_diagram.show()",
             "demo = phase_diagram.show();", "demo.set(beta=5.0)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    still, moved, last = (cell.outputs for cell in notebook.cells)
    assert [out.output_type for out in still] == ["display_data"] * 3 and len(moved) == 3 and last == []
    controls, picture, caption = still
    assert controls.data["text/plain"] == "Live demo: run this cell to move KL weight β and Noise σ²."
    assert "application/vnd.jupyter.widget-view+json" in controls.data
    assert caption.data["text/markdown"].startswith("**Try:**")
    assert picture.data["text/plain"].startswith("At β = 1 and σ² = 0.5")
    assert moved[1].data["text/plain"].startswith("At β = 5 and σ² = 0.5")
    for out in (picture, moved[1]):
        size = Image.open(io.BytesIO(base64.b64decode(out.data["image/png"]))).size
        assert size == (1382, 561)
        assert out.metadata["image/png"]["width"] == 921 and "needs_background" not in out.metadata
    assert len(json.dumps(still)) < 60_000  # what a demo adds to a lecture that is stored with its outputs
