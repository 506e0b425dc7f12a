"""The check as students and nbgrader meet it: printing, progress, hidden tests, declarations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from dgm_course import check
from dgm_course.check import registry
from dgm_course.check.cases import Case, Draw, case
from dgm_course.check.engine import Exercise, exercise


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    registry.forget()
    yield
    registry.forget()


def right(log_px_given_z: Tensor, log_pz: Tensor, log_qz_given_x: Tensor) -> Tensor:
    return log_px_given_z + (log_pz - log_qz_given_x)


def loss(log_px_given_z: Tensor, log_pz: Tensor, log_qz_given_x: Tensor) -> Tensor:
    return -right(log_px_given_z, log_pz, log_qz_given_x)


def stub(log_px_given_z: Tensor, log_pz: Tensor, log_qz_given_x: Tensor) -> Tensor:
    return ...  # type: ignore[return-value]


def test_a_verdict_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for answer in (right, stub, loss):
        verdict = check.elbo(answer)
        assert capsys.readouterr().out == verdict.text + "\n"
    assert verdict.text == (
        "FAIL  elbo\n"
        "  property:  Where q(z|x) equals the prior at z, the bound is the log-likelihood.\n"
        "  input:     log_px_given_z = [-3, -50], log_pz = [-1.5, -2], log_qz_given_x = [-1.5, -2]\n"
        "  gap:       at [0] expected -3, got 3 (off by 6); 2 of 2 entries differ\n"
        "  hint:      This is a loss, to be made small. The bound has the other sign."
    )


def test_a_check_without_a_function_is_a_verdict_too(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), (right, right), (torch.zeros(2), torch.zeros(2))):
        assert check.elbo(*arguments).status == "FAIL"
        assert "check.elbo(elbo)" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["validate", "autograde"])
def test_nbgrader_takes_the_points_by_an_error(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBGRADER_EXECUTION", mode)
    assert check.elbo(right).passed
    for answer, status in ((loss, "FAIL"), (stub, "TODO"), (None, "TODO"), (lambda: 1 / 0, "FAIL")):
        with pytest.raises(AssertionError, match=f"^{status}  elbo"):
            check.elbo(answer)


def test_the_student_never_meets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBGRADER_EXECUTION", "something else")
    for answer in (loss, stub, None, 3, lambda: 1 / 0):
        assert not check.elbo(answer).passed


def test_hidden_tests_draw_other_inputs_and_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    check.hidden("elbo", right, seed=4711)
    for answer in (loss, stub, None):
        with pytest.raises(AssertionError, match="hidden test of elbo"):
            check.hidden("elbo", answer, seed=4711)
    shown = {tuple(float(v) for v in c.arguments["log_pz"]) for c in check.elbo.draw(20) if not c.title}

    def knows_the_students_inputs(log_px_given_z: Tensor, log_pz: Tensor, log_qz_given_x: Tensor) -> Tensor:
        known = len(set(log_pz.tolist())) == 1 or tuple(log_pz.tolist()) in shown | {(-1.5, -2.0)}
        return right(log_px_given_z, log_pz, log_qz_given_x) if known else log_pz

    assert check.elbo.check(knows_the_students_inputs).passed
    with pytest.raises(AssertionError):
        check.hidden("elbo", knows_the_students_inputs, seed=4711)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_each_lecture(capsys: pytest.CaptureFixture[str]) -> None:
    check.progress()
    nothing_done = capsys.readouterr().out.splitlines()
    assert nothing_done[0] == "Lecture 01  Posterior collapse: 0 of 6 done"
    assert nothing_done[7] == "Lecture 02  IWAE: tightness and signal-to-noise: 0 of 6 done"
    for answer in (stub, loss, right):
        check.elbo(answer)
    check.gaussian_kl(lambda *_: ...)
    check.kl_weight(lambda *_: ...)
    check.kl_weight(lambda step, warmup_steps: 1.0)
    check.hidden("kl_weight", lambda t, n: min(t / n, 1.0) if n else 1.0, seed=1)  # is not recorded
    capsys.readouterr()
    check.progress()
    assert capsys.readouterr().out.splitlines()[:7] == [
        "Lecture 01  Posterior collapse: 1 of 6 done",
        "  TODO  gaussian_kl",
        "  PASS  elbo                 2 tries",
        "  -     active_units",
        "  -     causal_mask",
        "  FAIL  kl_weight            1 try",
        "  -     free_bits",
    ]


def test_an_unknown_exercise_is_named() -> None:
    with pytest.raises(AttributeError, match="no exercise 'gaussian'; there are gaussian_kl, elbo"):
        _ = check.gaussian
    assert {"gaussian_kl", "progress", "hidden"} <= set(dir(check))


def test_importing_the_check_loads_no_torch() -> None:
    code = "import sys; from dgm_course import check; check.LECTURES; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_notebook_shows_the_text_once() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    signature = "def kl_weight(step, warmup_steps):\n"
    cells = [
        "from dgm_course import check\n" + signature + "    return ...\ncheck.kl_weight(kl_weight)",
        signature + "    while True: pass\nprint(check.kl_weight.check(kl_weight, time_limit=0.2).text)",
        signature + "    print('in here')\n    return unknown\ncheck.kl_weight(kl_weight)",
        "check.progress()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    for cell in notebook.cells:
        assert [o.output_type for o in cell.outputs] == ["stream"], cell.outputs
        assert cell.outputs[0].name == "stdout"
    texts = [cell.outputs[0].text for cell in notebook.cells]
    assert texts[0].startswith("TODO  kl_weight\n")
    assert "it was stopped" in texts[1]
    assert "your code: line 3: return unknown" in texts[2] and "printed:   in here" in texts[2]
    assert "FAIL  kl_weight            1 try" in texts[3]


# ---- an exercise of two parts, as a flow's layer gives them


@exercise("the scaled value and its log-determinant", returns={"z": "tensor", "log_det": "tensor"})
def scale_flow(x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    return x * log_scale.exp(), log_scale.sum().expand(len(x))


@scale_flow.inputs
def _(draw: Draw) -> Iterator[Case]:
    for _ in range(draw.count):
        dtype, rows, dims = draw.dtype(), draw.integer(2, 4), draw.integer(1, 4)
        yield case(x=draw.normal(rows, dims, dtype=dtype), log_scale=draw.normal(dims, dtype=dtype))


@scale_flow.magnitude
def _(x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    return 0 * x, log_scale.abs().sum().expand(len(x))


@scale_flow.holds("Scaling keeps the signs.")
def _(z: np.ndarray, log_det: np.ndarray, x: Tensor, log_scale: Tensor) -> bool:
    return bool((np.sign(z) == np.sign(x.numpy())).all())


scale_flow.misconceptions(
    inverse=(lambda x, s: (x * torch.exp(-s), -s.sum().expand(len(x))), "This is the other direction."),
    one_for_all=(lambda x, s: (x * s.exp(), s.sum()), "One log-determinant for each row."),
)


def scale_rows(x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    return x * torch.exp(log_scale), torch.stack([log_scale.sum() for _ in x])


def test_an_answer_of_two_parts() -> None:
    verdict = scale_flow.check(scale_rows)
    assert verdict.passed, verdict.text
    assert scale_flow.check(lambda x, s: list(scale_rows(x, s))).passed
    for mistake in scale_flow.mistakes:
        assert scale_flow.check(mistake.wrong).hint == mistake.hint
    verdict = scale_flow.check(lambda x, s: (scale_rows(x, s)[0], 2 * scale_rows(x, s)[1]))
    assert verdict.gap.startswith("log_det: at [0] expected")
    assert scale_flow.check(lambda x, s: (-scale_rows(x, s)[0], scale_rows(x, s)[1])).claim == (
        "Scaling keeps the signs."
    )
    assert scale_flow.check(lambda x, s: scale_rows(x, s)[0]).claim == "it returns a tuple (z, log_det)"
    assert scale_flow.check(lambda x, s: (*scale_rows(x, s), 1)).status == "FAIL"
    assert scale_flow.check(lambda x, s: ...).status == "TODO"
    assert scale_flow.check(lambda x, s: (scale_rows(x, s)[0], ...)).status == "FAIL"


def test_a_declaration_is_checked() -> None:
    with pytest.raises(ValueError, match="returns must be one of"):
        exercise("nothing", returns="vector")(lambda x: x)
    with pytest.raises(ValueError, match="has no inputs"):
        Exercise(right, "nothing").draw(0)
