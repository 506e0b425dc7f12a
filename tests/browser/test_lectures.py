"""Every lecture in a real browser: it opens, runs, draws, its demos answer and its exercises judge.

The student edition is copied first: nothing here writes into ``lectures/``. Lecture 01 is part of
``make test``, the others of ``make test-all``. Pictures of each lecture in both themes are left in
``.artifacts/screenshots``, and times in ``.artifacts``: no test holds a clock against a machine.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, NamedTuple

import nbformat
import pytest

from .lab import Lab, NotebookPage
from .look import DemoCard, answer, demo_cards, exercises, in_kernel, pictures, printed

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / ".artifacts"
SHOTS = ARTIFACTS / "screenshots"
LECTURES = sorted((ROOT / "lectures").glob("*.ipynb"))


class Expected(NamedTuple):
    """What is particular to a lecture."""

    demos: dict[str, str]  # from top to bottom: its numbers, from the notebook's variables and ``values``
    exercise: str
    wrong: str  # an answer to it ...
    hint: str  # ... and a word of the hint that it must get


DEMOS = {
    "phase_diagram": "phase_diagram.numbers(phase_diagram.compute(**values, eigenvalues=eigenvalues))",
    "receptive_field":
        "receptive_field.numbers(receptive_field.compute(receptive_field.tabulate(bit_vaes), **values))",
    "importance_bound": "importance_bound.numbers(importance_bound.compute(**values))",
    "gradient_noise":
        "gradient_noise.numbers(gradient_noise.compute(gradient_noise.tabulate(), **values))",
    "flow_depth": "flow_depth.numbers(flow_depth.compute(flow_depth.tabulate(real_nvp, moons), **values))",
    "planar_by_hand": "planar_by_hand.numbers(planar_by_hand.compute(**values))",
    "discretized_logistic": "discretized_logistic.numbers(discretized_logistic.compute(**values))",
    "dequantization_noise": "dequantization_noise.numbers(dequantization_noise.compute(**values))",
    "beta_surgery":
        "beta_surgery.numbers(beta_surgery.compute("
        "beta_surgery.tabulate(plane, betas, digits.train_x, digits.train_y), **values))",
    "prior_choice":
        "prior_choice.numbers(prior_choice.compute(prior_choice.tabulate(fitted, digits.test_x), **values))",
    "target_depth": "target_depth.numbers(target_depth.compute(target_depth.tabulate(depth_fits), **values))",
    "four_points": "four_points.numbers(four_points.compute(four_points.tabulate(four_models), **values))",
}  # fmt: skip


def demos_of(*names: str) -> dict[str, str]:
    """These demos from top to bottom."""
    return {name: DEMOS[name] for name in names}


EXPECTED = {
    "01_posterior_collapse": Expected(
        demos=demos_of("phase_diagram", "receptive_field"),
        exercise="gaussian_kl",
        wrong="def gaussian_kl(mean, log_var):\n    return (mean**2 + log_var.exp() - 1 - log_var).sum(-1)",
        hint="twice",
    ),
    "02_iwae": Expected(
        demos=demos_of("importance_bound", "gradient_noise"),
        exercise="iwae_bound",
        wrong="def iwae_bound(log_w):\n    return log_w.mean(0)",
        hint="logarithms were averaged",
    ),
    "03_normalizing_flows": Expected(
        demos=demos_of("flow_depth", "planar_by_hand"),
        exercise="planar_log_det",
        wrong="def planar_log_det(z, u, w, b):\n    return (1 + u @ w).abs().log() + 0 * z[:, 0]",
        hint="slope of tanh is missing",
    ),
    "04_dequantization": Expected(
        demos=demos_of("discretized_logistic", "dequantization_noise"),
        exercise="uniform_dequantization_bound",
        wrong="def uniform_dequantization_bound(log_prob, y, u):\n    return log_prob(y + u / 2).mean(0)",
        hint="half",
    ),
    "05_elbo_surgery": Expected(
        demos=demos_of("beta_surgery", "prior_choice"),
        exercise="mog_log_prob",
        wrong="def mog_log_prob(z, means, log_vars, logits):\n"
        "    return torch.logsumexp(logits + gaussian.gaussian_log_prob(z[:, None], means, log_vars), -1)",
        hint="have to sum to 1 first",
    ),
    "06_flows_in_vae": Expected(
        demos=demos_of("target_depth", "four_points"),
        exercise="iaf_step",
        wrong="def iaf_step(z, mu, log_sigma):\n"
        "    return mu + log_sigma.exp() * z, -log_sigma.sum(-1)",
        hint="way back",
    ),
}


def _marked(notebook: Path) -> object:
    marks = [] if notebook.stem.startswith("01_") else [pytest.mark.long]
    return pytest.param(notebook, id=notebook.stem, marks=marks)


@pytest.mark.browser
@pytest.mark.parametrize("source", [_marked(notebook) for notebook in LECTURES])
def test_lecture_lives(source: Path, lab: Lab, browser: Browser) -> None:
    assert source.stem in EXPECTED, f"add {source.stem} to EXPECTED: its demos, and a wrong answer"
    expected = EXPECTED[source.stem]
    shutil.copy(source, lab.root)
    page = browser.new_page(viewport={"width": 1280, "height": 1300})
    notebook = NotebookPage(page, lab, source.name)
    start = time.perf_counter()
    notebook.run_all(timeout=180)
    record(f"run_all_{source.stem}", {"seconds": round(time.perf_counter() - start, 1)})
    for theme in ("dark", "light"):
        notebook.set_theme(theme)
        notebook.write_slices(SHOTS, f"{source.stem}-{theme}")
    assert notebook.errors() == []
    drawn = pictures(notebook)
    assert drawn, "a lecture has figures"
    assert [cell for cell in drawn if cell["wanted"] != cell["drawn"] or cell["plates"]] == []
    check_demos(notebook, expected.demos)
    check_exercises(notebook, source.stem)
    page.close()


def record(name: str, measured: dict[str, object]) -> None:
    """Write a measurement down."""
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def check_exercises(notebook: NotebookPage, lecture: str) -> None:
    """Unanswered all are TODO, a wrong answer is told its mistake, and the solutions score full marks."""
    expected, asked = EXPECTED[lecture], exercises(notebook, ROOT / "solutions" / "src" / f"{lecture}.py")
    last = len(notebook.cells()) - 1
    for exercise in asked:
        assert printed(notebook, exercise.check).startswith(f"TODO  {exercise.name}\n")
    assert f": 0 of {len(asked)} done\n" in printed(notebook, last)

    (tried,) = [exercise for exercise in asked if exercise.name == expected.exercise]
    verdict = answer(notebook, tried, expected.wrong)
    assert verdict.startswith(f"FAIL  {tried.name}\n") and expected.hint in verdict

    verdicts = {exercise.name: answer(notebook, exercise, exercise.solution) for exercise in asked}
    assert verdicts == {name: f"PASS  {name}\n" for name in verdicts}
    notebook.run_cell(last)
    table = printed(notebook, last)
    assert f": {len(asked)} of {len(asked)} done\n" in table and table.count("\n  PASS  ") == len(asked)
    assert notebook.errors() == []


def check_demos(notebook: NotebookPage, demos: dict[str, str]) -> None:
    """Move every slider by a key, press every choice: picture and numbers follow and are the library's."""
    cards = demo_cards(notebook)
    assert [card.name for card in cards] == list(demos)
    for card in cards:
        start = card.values()
        for slider in range(card.handles.count()):
            values, numbers, picture = card.values(), card.numbers(), card.picture()
            card.press("ArrowRight", slider)
            assert card.values() != values
            assert card.numbers() != numbers
            assert (card.picture() == picture) is False  # no diff of two pictures on failure
        check_numbers(notebook, card, demos[card.name])
        for choice in range(card.choices.count()):
            picture = card.picture()
            if card.choose(choice):
                assert (card.picture() == picture) is False
                check_numbers(notebook, card, demos[card.name])
        card.reset()
        end = card.values()  # the page computes a slider's steps in its own way
        assert end.keys() == start.keys()
        for name, value in start.items():
            assert end[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6))


def check_numbers(notebook: NotebookPage, card: DemoCard, library: str) -> None:
    """What the card shows is what the library computes from the same values, in the notebook's kernel."""
    assert card.numbers() == in_kernel(notebook, f"(lambda values: {library})({card.values()!r})")


@pytest.mark.browser
@pytest.mark.long
def test_slider_to_pixels(lab: Lab, browser: Browser) -> None:
    """From a key on a slider to the picture that answers it: each answer comes; how long it took is written.

    The goal, on two quiet cores, is 100 ms for 95 of 100 keys.
    """
    cells = [
        "import torch\nfrom dgm_course import data, flows, nets, vae\n"
        "from dgm_course.demos import beta_surgery, dequantization_noise, discretized_logistic, flow_depth\n"
        "from dgm_course.demos import four_points, gradient_noise, importance_bound, phase_diagram\n"
        "from dgm_course.demos import planar_by_hand, prior_choice, receptive_field, target_depth",
        "eigenvalues = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)\nphase_diagram.show(eigenvalues)",
        "bit_vaes = receptive_field.train_default(steps=20, progress=False)\nreceptive_field.show(bit_vaes)",
        "importance_bound.show()",
        "gradient_noise.show()",
        "moons, masks = data.two_moons(), [flows.half_mask(2), flows.half_mask(2, first=False)]\n"
        "layers = [flows.AffineCoupling(mask, nets.MLP([1, 16, 2])) for mask in 4 * masks]\n"
        "real_nvp = flows.Flow(flows.Compose(layers), 2)\nflow_depth.show(real_nvp, moons)",
        "planar_by_hand.show()",
        "discretized_logistic.show()",
        "dequantization_noise.show()",
        "digits, betas = data.digits(), torch.tensor([0.25, 1.0, 4.0])\n"
        "decoder = vae.BernoulliDecoder(nets.MLP([2, 32, 64], members=3))\n"
        "plane = vae.VAE(nets.MLP([64, 32, 4], members=3), decoder, 2)\n"
        "beta_surgery.show(plane, betas, digits.train_x, digits.train_y)",
        "fitted = prior_choice.fit_priors(nets.member(plane, 0).encoder, digits.train_x, steps=5)\n"
        "prior_choice.show(fitted, digits.test_x)",
        "depth_fits = target_depth.fit_default(depths=(0, 1, 2, 4), steps=20, starts=1, progress=False)\n"
        "target_depth.show(depth_fits)",
        "four_models = four_points.train_default(steps=20, progress=False)\n"
        "four_points.show(four_models, num_steps=2)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.root / "demos.ipynb")
    page = browser.new_page(viewport={"width": 1280, "height": 1300})
    opened = NotebookPage(page, lab, "demos.ipynb")
    opened.run_all()
    check_demos(opened, DEMOS)
    measured: dict[str, object] = {"goal": "p95 under 100 ms on two quiet cores"}
    for card in demo_cards(opened):
        times = []
        for k in range(40):
            before = card.picture()
            times.append(card.press("ArrowRight" if k % 2 else "ArrowLeft"))
            assert (card.picture() == before) is False
        assert all(math.isfinite(took) and took > 0 for took in times), times
        parts = quantiles(times, n=20)
        measured[card.name] = {"median_ms": round(parts[9], 1), "p95_ms": round(parts[18], 1)}
    record("slider_to_pixels", measured)
    page.close()
