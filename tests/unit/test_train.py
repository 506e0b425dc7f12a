"""`dgm_course.train`: against an Adam loop written out, and E members together against E separate runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgm_course import train
from dgm_course.train import fit, fit_many, minibatch

MEMBERS, BATCH, INPUTS, HIDDEN = 5, 7, 3, 4


def stacked_network(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Parameters of E two-layer networks, members of very different scales (so that few are clipped)."""
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0], dtype=torch.float64).reshape(MEMBERS, 1, 1)
    shapes = [(MEMBERS, INPUTS, HIDDEN), (MEMBERS, 1, HIDDEN), (MEMBERS, HIDDEN, 2)]
    made = [scale * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [m.to(device=device, dtype=dtype).requires_grad_() for m in made]


def member_losses(parameters: list[Tensor], step: int, noise: Tensor) -> Tensor:
    """Squared error of each network on its own noisy batch: noise (E, B, in) -> (E,)."""
    first, bias, second = parameters
    output = torch.baddbmm(bias, noise, first).tanh() @ second  # (E, B, 2)
    return (1 + 0.1 * step) * (output - noise[..., :2].square()).square().mean((1, 2))


def draw(generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(MEMBERS, BATCH, INPUTS, generator=generator, dtype=like.dtype, device=like.device)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_many_members_equal_separate_runs(
    device: torch.device, dtype: torch.dtype, tolerance: float, clip_norm: float | None
) -> None:
    settings = dict(steps=30, lr=0.02, lr_decay_from=0.5, clip_norm=clip_norm, progress=False, seed=4)
    together = stacked_network(dtype, device)
    history = fit_many(
        lambda step, g: member_losses(together, step, draw(g, together[0])), together, **settings
    )
    assert history.losses.shape == (30, MEMBERS)
    for e in range(MEMBERS):
        alone = [p.detach()[e : e + 1].clone().requires_grad_() for p in stacked_network(dtype, device)]

        def loss(step: int, g: torch.Generator, e: int = e, alone: list[Tensor] = alone) -> Tensor:
            return member_losses(alone, step, draw(g, alone[0])[e : e + 1]).squeeze(0)

        losses = fit(loss, alone, **settings).losses
        torch.testing.assert_close(history.losses[:, e], losses, rtol=tolerance, atol=tolerance)
        for stack, single in zip(together, alone, strict=True):
            torch.testing.assert_close(stack[e], single[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_fit_equals_adam_written_out(device: torch.device, clip_norm: float | None) -> None:
    """The oracle: Adam's recursion by hand, clipping over all parameters, the schedule as a formula."""
    steps, lr, decay_start = 25, 0.05, 10
    fitted = stacked_network(torch.float64, device)
    history = fit(
        lambda step, g: member_losses(fitted, step, draw(g, fitted[0])).sum(),
        fitted, steps=steps, lr=lr, lr_decay_from=decay_start / steps, clip_norm=clip_norm, seed=9,
        progress=False,
    )
    oracle = stacked_network(torch.float64, device)
    first = [torch.zeros_like(p) for p in oracle]
    second = [torch.zeros_like(p) for p in oracle]
    generator = torch.Generator(device).manual_seed(9)
    for step in range(steps):
        loss = member_losses(oracle, step, draw(generator, oracle[0])).sum()
        assert math.isclose(loss.item(), history.losses[step].item(), rel_tol=1e-10)
        gradients = torch.autograd.grad(loss, oracle)
        norm = sum(g.square().sum() for g in gradients).sqrt()
        scale = 1.0 if clip_norm is None or norm < clip_norm else clip_norm / norm
        rate = lr if step < decay_start else lr * (steps - step) / (steps - decay_start)
        for p, g, m, v in zip(oracle, gradients, first, second, strict=True):
            m.mul_(0.9).add_(scale * g, alpha=0.1)
            v.mul_(0.999).add_((scale * g).square(), alpha=0.001)
            hat_m, hat_v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            p.data -= rate * hat_m / (hat_v.sqrt() + 1e-8)
    for a, b in zip(fitted, oracle, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("decay_from", "mean_rate"), [(1.0, 1.0), (0.5, 31 / 40), (0.0, 21 / 40)])
def test_learning_rate_schedule(decay_from: float, mean_rate: float) -> None:
    """With a constant gradient each Adam step has the length of the learning rate: the path is their sum."""
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    fit(lambda step, g: -1e6 * w.sum(), [w], steps=20, lr=0.1, lr_decay_from=decay_from, progress=False)
    assert math.isclose(w.item(), 20 * 0.1 * mean_rate, rel_tol=1e-9)


def test_seed_decides_everything_and_global_state_is_untouched(device: torch.device) -> None:
    def run(seed: int) -> Tensor:
        w = torch.ones(3, device=device, requires_grad=True)
        return fit(
            lambda step, g: (torch.randn(3, generator=g, device=device) * w).sum().square(),
            [w], steps=5, seed=seed, progress=False,
        ).losses

    state = torch.get_rng_state()
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("look_every", [-1.0, math.inf])
def test_nonfinite_loss_names_the_step_and_keeps_the_parameters(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, look_every: float
) -> None:
    """Noticed at once or only at the end, the report and the parameters are the same."""
    monkeypatch.setattr(train, "_LOOK_EVERY", look_every)
    w = torch.ones(2, device=device, requires_grad=True)
    seen: list[Tensor] = []

    def loss(step: int, generator: torch.Generator) -> Tensor:
        seen.append(w.detach().clone())
        return w.square().sum() * (math.nan if step == 7 else 1.0)

    message = r"loss is nan at step 7\..*before that step\. Try a smaller lr"
    with pytest.raises(FloatingPointError, match=message):
        fit(loss, [w], steps=20, progress=False)
    assert torch.equal(w, seen[7]) and not torch.equal(w, seen[6])
    assert len(seen) == (8 if look_every < 0 else 20)


def test_nonfinite_members_are_named() -> None:
    w = torch.ones(4, 2, requires_grad=True)
    factor = torch.tensor([1.0, math.inf, 1.0, math.nan])

    def losses(step: int, generator: torch.Generator) -> Tensor:
        return w.square().sum(1) * (factor if step >= 3 else 1.0)

    with pytest.raises(FloatingPointError, match="loss of members 1, 3 of 4 is inf and nan at step 3"):
        fit_many(losses, [w], steps=6, progress=False)
    with pytest.raises(FloatingPointError, match="member 0 of 4 is -inf at step 0"):
        fit_many(
            lambda step, g: w.sum(1) - torch.tensor([math.inf, 0.0, 0.0, 0.0]), [w], steps=1, progress=False
        )


@pytest.mark.parametrize(
    ("steps", "message"),
    [(1, "gradient of member 1 of 2 at step 0"), (2, "member 1 of 2 is nan.*step before")],
)
def test_nonfinite_gradient_of_a_finite_loss(steps: int, message: str) -> None:
    w = torch.tensor([1.0, 0.0], requires_grad=True)
    with pytest.raises(FloatingPointError, match=message):
        fit_many(lambda step, g: w.square().sqrt(), [w], steps=steps, progress=False)


def test_callbacks_stop_early_and_metrics_are_recorded() -> None:
    w = torch.ones(3, requires_grad=True)
    calls: list[tuple[int, float]] = []

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        return w.square().sum(), {"w": w, "step": 2.0 * step}

    callbacks = [lambda step, loss: calls.append((step, loss.item())), lambda step, loss: step == 4]
    history = fit(loss, [w], steps=10, callbacks=callbacks, progress=False)
    assert [step for step, _ in calls] == [0, 1, 2, 3, 4]
    assert history.losses.tolist() == [value for _, value in calls]
    assert history.metrics["w"].shape == (5, 3) and not history.metrics["w"].requires_grad
    assert history.metrics["step"].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert history.seconds > 0 and w.grad is None


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (lambda step: {"a": 1.0} if step else {}, "same metrics at every step"),
        (lambda step: {"loss": 1.0}, "none of them called 'loss'"),
        (lambda step: {"a": torch.ones(step + 1)}, "must keep its shape"),
    ],
)
def test_metrics_that_change_are_refused(metrics: Callable[[int], dict[str, object]], message: str) -> None:
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        fit(lambda step, g: (w.sum(), metrics(step)), [w], steps=3, progress=False)


def test_progress_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (False, True):
        w = torch.ones(1, requires_grad=True)
        fit(lambda step, g, w=w: w.square().sum(), [w], steps=3, progress=progress)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("loss=0.996" in captured.err and "3/3" in captured.err) is progress


def test_trains_inside_no_grad() -> None:
    w = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        fit(lambda step, g: w.square().sum(), [w], steps=1, progress=False)
    assert w.item() < 1


def test_trains_under_a_float64_default() -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        w = torch.ones(1, requires_grad=True)
        history = fit(lambda step, g: w.square().sum(), [w], steps=2, progress=False)
    finally:
        torch.set_default_dtype(default)
    assert history.losses.dtype == torch.float64 and w.item() < 1


GOOD = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("parameters", "changes", "message"),
    [
        ([], {}, "parameters is empty"),
        (GOOD, {}, "list of tensors, and is a Tensor"),
        (torch.nn.Linear(1, 1), {}, "is a Linear: pass module.parameters"),
        ([torch.ones(2)], {}, "parameter 0 must be .* requires_grad=True"),
        ([GOOD, GOOD * 2], {}, "parameter 1 must be"),
        ([GOOD], {"steps": 0}, "steps must be at least 1, and is 0"),
        ([GOOD], {"lr": 0.0}, "lr must be positive, and is 0.0"),
        ([GOOD], {"lr_decay_from": 2.0}, r"fraction of the steps, in \[0, 1\], and is 2.0"),
        ([GOOD], {"clip_norm": -1.0}, "clip_norm must be positive"),
    ],
)
def test_bad_settings_are_refused(parameters: object, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(lambda step, g: GOOD.sum(), parameters, **{"steps": 3, "progress": False, **changes})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda step, g: GOOD * 1, r"shape \(\), and is shape \(2,\): average over the batch with .mean\(\)"),
        (lambda step, g: 1.0, "is a float"),
        (lambda step, g: GOOD.detach().sum(), "does not depend on the parameters"),
    ],
)
def test_bad_losses_are_refused(loss: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(loss, [GOOD], steps=3, progress=False)


def test_bad_stacks_are_refused() -> None:
    with pytest.raises(ValueError, match="stacked along one leading dimension"):
        fit_many(lambda step, g: GOOD, [GOOD, torch.ones(3, requires_grad=True)], steps=1, progress=False)
    message = r"shape \(2,\), and is shape \(\): average over the batch dimension only"
    with pytest.raises(ValueError, match=message):
        fit_many(lambda step, g: GOOD.sum(), [GOOD], steps=1, progress=False)


def test_minibatch_draws_rows_uniformly(device: torch.device) -> None:
    data = torch.arange(10, device=device).reshape(5, 2)
    generator = torch.Generator(device).manual_seed(0)
    draws = 20_000
    batch = minibatch(data, draws, generator)
    assert batch.shape == (draws, 2) and batch.device == data.device
    assert torch.equal(batch[:, 1], batch[:, 0] + 1)  # rows stay whole
    counts = torch.bincount(batch[:, 0] // 2, minlength=5).double()
    sigma = math.sqrt(draws * 0.2 * 0.8)
    assert (counts - draws / 5).abs().max() < 5 * sigma
    again = minibatch(data, draws, torch.Generator(device).manual_seed(0))
    assert torch.equal(batch, again)


def test_minibatch_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        minibatch(torch.zeros(0, 2), 3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, and is 0"):
        minibatch(torch.zeros(4, 2), 0)


@pytest.mark.cuda
def test_a_gpu_is_not_held_up_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    monkeypatch.setattr(train, "_LOOK_EVERY", math.inf)
    data = torch.randn(50, 3, device="cuda")
    w = torch.ones(4, 3, device="cuda", requires_grad=True)

    def losses(step: int, generator: torch.Generator) -> Tensor:
        return (minibatch(data, 8, generator) @ w.T).square().mean(0)

    def watch(step: int, loss: Tensor) -> None:  # from the second step to the last: any wait is an error
        torch.cuda.set_sync_debug_mode("error" if step < 18 else "default")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit_many(
                losses, [w], steps=20, lr_decay_from=0.5, clip_norm=1.0, callbacks=[watch], progress=False
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
