"""Minimise any loss with Adam: one model (`fit`), or many small ones in one go (`fit_many`).

The trainer takes a function and tensors and knows no model. A training loss is whatever ``loss_fn`` computes
from the parameters it closes over; the step number (for annealing) and a seeded generator (for batches and
noise) are handed to it:

>>> target, guess = torch.tensor([1.0, -2.0]), torch.zeros(2, requires_grad=True)
>>> history = fit(lambda step, generator: (guess - target).square().sum(), [guess], steps=300, lr=0.1,
...               lr_decay_from=0.5, progress=False)
>>> history.losses.shape, bool((guess - target).abs().max() < 1e-3)
(torch.Size([300]), True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

LossFn = Callable[[int, torch.Generator], Tensor | tuple[Tensor, Mapping[str, Tensor | float]]]
Callback = Callable[[int, Tensor], object]

#: Seconds between two looks at the loss. Each look waits for the device, so a GPU is not held up every step.
_LOOK_EVERY = 0.1
_REMEDIES = (
    "Try a smaller lr (it was {lr:g}) or clip_norm=1.0, or look in the loss for a log, exp, sqrt or division "
    "out of its range: torch.autograd.set_detect_anomaly(True) names the operation."
)


@dataclass(frozen=True)
class History:
    """What happened in a training run, on the CPU, ready to plot.

    ``losses`` has shape (steps,) after `fit` and (steps, E) after `fit_many`; ``metrics`` maps each name to a
    tensor of shape (steps, ...). A run that a callback stopped has as many rows as steps done. ``seconds`` is
    the wall time of the loop.
    """

    losses: Tensor
    metrics: dict[str, Tensor]
    seconds: float


def fit(
    loss_fn: LossFn,
    parameters: Iterable[Tensor],
    *,
    steps: int,
    lr: float = 1e-3,
    lr_decay_from: float = 1.0,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    clip_norm: float | None = None,
) -> History:
    """Minimise a scalar loss over ``parameters`` with Adam, in place.

    ``loss_fn(step, generator)`` returns the scalar loss, or ``(loss, {name: value})`` with metrics to record
    (the same names every step). ``generator`` lives on the parameters' device and starts from ``seed``; the
    global random state is not touched. The learning rate is ``lr``; from the fraction ``lr_decay_from`` of
    the steps on it falls linearly, to 0 after the last step. Gradients with a norm (over all parameters)
    above ``clip_norm`` are scaled down to it. After each step every ``callback(step, loss)`` sees the
    detached loss; one that returns something true ends the run. ``progress`` shows a bar.

    Raises ``ValueError`` for parameters or a loss that cannot be trained, and ``FloatingPointError`` at a
    non-finite loss, naming the step. The parameters then are those that gave that loss: from that step on no
    update is applied. The loss is looked at ten times a second, so that a GPU is not held up; callbacks may
    therefore still run for a moment after a non-finite loss.
    """
    return _train(loss_fn, parameters, False, steps, lr, lr_decay_from, seed, callbacks, progress, clip_norm)


def fit_many(
    loss_fn: LossFn,
    parameters: Iterable[Tensor],
    *,
    steps: int,
    lr: float = 1e-3,
    lr_decay_from: float = 1.0,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    clip_norm: float | None = None,
) -> History:
    """Train E models at once: as `fit`, for stacked parameters (E, ...) and losses (E,).

    Member e's loss must depend on row e of the parameters only. Then the gradient of the sum of the losses is
    the stack of the members' gradients, Adam works element by element, and gradients are clipped member by
    member: E members trained together move as in E separate runs on the same batches and noise, at the cost
    of a few large operations instead of E times as many small ones (``dgm_course.nets`` makes stacked
    networks with ``members=E``). One member's non-finite loss stops all; the error names the member.
    """
    return _train(loss_fn, parameters, True, steps, lr, lr_decay_from, seed, callbacks, progress, clip_norm)


def minibatch(data: Tensor, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw rows independently and uniformly, with replacement: (n, ...) -> (batch_size, ...).

    The mean over such a batch is an unbiased estimate of the mean over the data, whatever the batch size.
    Raises ``ValueError`` without rows, for a batch size below 1 and for a generator on another device.
    """
    if data.ndim == 0 or len(data) == 0:
        raise ValueError(f"minibatch needs data with at least one row, and got shape {tuple(data.shape)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, and is {batch_size}")
    if generator is not None and generator.device.type != data.device.type:
        raise ValueError(
            f"the generator is on {generator.device} and the data on {data.device}: move the data to the "
            "parameters' device once, before training"
        )
    rows = torch.randint(len(data), (batch_size,), generator=generator, device=data.device)
    return data[rows]


def _train(
    loss_fn: LossFn,
    parameters: Iterable[Tensor],
    stacked: bool,
    steps: int,
    lr: float,
    lr_decay_from: float,
    seed: int,
    callbacks: Sequence[Callback],
    progress: bool,
    clip_norm: float | None,
) -> History:
    parameters = _checked_parameters(parameters, stacked)
    _check_settings(steps, lr, lr_decay_from, clip_norm)
    device = parameters[0].device
    loss_shape = parameters[0].shape[:1] if stacked else torch.Size()
    generator = torch.Generator(device).manual_seed(seed)
    optimiser = torch.optim.Adam(parameters, lr=lr, fused=True)
    # Fused Adam leaves the parameters alone while found_inf is 1 (it is how gradient scalers skip a step). It
    # is set on the device, at once and for good, and read back only now and then.
    optimiser.found_inf = halted = torch.zeros((), dtype=torch.float32, device=device)
    decay_start = lr_decay_from * steps
    records: dict[str, Tensor] = {}
    done, last_look, start = 0, time.perf_counter(), time.perf_counter()

    with torch.enable_grad(), tqdm(total=steps, disable=not progress, unit="step") as bar:
        for step in range(steps):
            result = loss_fn(step, generator)
            loss, metrics = result if isinstance(result, tuple) else (result, {})
            if step == 0:
                _check_loss(loss, loss_shape, device)
                names = set(metrics)
            if set(metrics) != names or "loss" in names:
                raise ValueError(
                    "loss_fn must return the same metrics at every step, none of them called 'loss': step 0 "
                    f"had {sorted(names)}, step {step} has {sorted(metrics)}"
                )
            optimiser.zero_grad()
            loss.sum().backward()
            detached = loss.detach()
            torch.maximum(halted, detached.isfinite().all().logical_not().float(), out=halted)
            if clip_norm is not None:
                _clip_gradients(parameters, clip_norm, stacked)
            optimiser.param_groups[0]["lr"] = lr * min(1.0, (steps - step) / max(steps - decay_start, 1.0))
            optimiser.step()
            _record(records, {"loss": detached, **metrics}, step, steps)
            done = step + 1
            bar.update()
            stop = [callback(step, detached) for callback in callbacks]
            if time.perf_counter() - last_look > _LOOK_EVERY:
                _raise_if_halted(halted, records["loss"][:done], parameters, stacked, lr)
                _show(bar, detached)
                last_look = time.perf_counter()
            if any(stop):
                break
        _show(bar, detached)
    optimiser.zero_grad()
    _raise_if_halted(halted, records["loss"][:done], parameters, stacked, lr)
    _raise_if_spoilt(parameters, done, stacked, lr)
    history = {name: values[:done].cpu() for name, values in records.items()}
    return History(history.pop("loss"), history, time.perf_counter() - start)


def _show(bar: tqdm, loss: Tensor) -> None:
    if not bar.disable:
        bar.set_postfix(loss=f"{loss.mean().item():.4g}", refresh=False)


def _record(records: dict[str, Tensor], values: Mapping[str, Tensor | float], step: int, steps: int) -> None:
    """Write a step's values into tensors allocated once, on the values' own device: nothing waits for it."""
    for name, value in values.items():
        value = torch.as_tensor(value).detach()
        if step == 0:
            records[name] = value.new_zeros((steps, *value.shape))
        elif value.shape != records[name].shape[1:]:
            raise ValueError(
                f"'{name}' must keep its shape: it was {tuple(records[name].shape[1:])} and is "
                f"{tuple(value.shape)} at step {step}"
            )
        records[name][step] = value


def _clip_gradients(parameters: list[Tensor], clip_norm: float, stacked: bool) -> None:
    """Scale gradients down to norm ``clip_norm``, over everything or for each member by itself."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    rows = [g.reshape(len(g) if stacked else 1, -1) for g in gradients]  # (E, size) or (1, size)
    square = torch.stack([r.square().sum(1) for r in rows]).sum(0)  # (E,)
    scale = clip_norm / square.sqrt().clamp(min=clip_norm)  # (E,), at most 1
    for gradient in gradients:
        gradient.mul_(scale.reshape(-1, *[1] * (gradient.ndim - 1)) if stacked else scale[0])


def _checked_parameters(parameters: Iterable[Tensor], stacked: bool) -> list[Tensor]:
    if isinstance(parameters, (Tensor, torch.nn.Module)):
        raise ValueError(
            f"parameters must be a list of tensors, and is a {type(parameters).__name__}: pass "
            "module.parameters(), or put the tensor in a list"
        )
    parameters = list(parameters)
    if not parameters:
        raise ValueError("parameters is empty: pass the tensors to train (an iterator is empty once used up)")
    for index, p in enumerate(parameters):
        if not (isinstance(p, Tensor) and p.is_leaf and p.requires_grad and p.is_floating_point()):
            raise ValueError(
                f"parameter {index} must be a real floating-point leaf tensor with requires_grad=True: make "
                "it by tensor.detach().clone().requires_grad_()"
            )
    devices = sorted({str(p.device) for p in parameters})
    if len(devices) > 1:
        raise ValueError(f"the parameters must be on one device, and are on {', '.join(devices)}: move them")
    if stacked and (any(p.ndim == 0 for p in parameters) or len({len(p) for p in parameters}) > 1):
        raise ValueError(
            f"fit_many needs parameters stacked along one leading dimension E, and got the shapes "
            f"{[tuple(p.shape) for p in parameters]}: build the networks with members=E"
        )
    return parameters


def _check_settings(steps: int, lr: float, lr_decay_from: float, clip_norm: float | None) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, and is {steps}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, and is {lr}")
    if not 0 <= lr_decay_from <= 1:
        raise ValueError(f"lr_decay_from is a fraction of the steps, in [0, 1], and is {lr_decay_from}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, or None for no clipping, and is {clip_norm}")


def _check_loss(loss: Tensor, shape: torch.Size, device: torch.device) -> None:
    if not isinstance(loss, Tensor) or loss.shape != shape:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        hint = "average over the batch dimension only" if shape else "average over the batch with .mean()"
        raise ValueError(f"the loss must be a tensor of shape {tuple(shape)}, and is {got}: {hint}")
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on the parameters: look for .detach(), .item(), no_grad()")
    if loss.device != device:
        raise ValueError(f"the loss is on {loss.device}, the parameters on {device}: move the data there")


def _names(bad: Tensor) -> str:
    """Name the members of a boolean (E,) row: 'members 3, 17 of 64'."""
    members = bad.nonzero().flatten().tolist()
    shown = ", ".join(map(str, members[:10])) + (", ..." if len(members) > 10 else "")
    return f"member{'s' if len(members) > 1 else ''} {shown} of {len(bad)}"


def _raise_if_halted(
    halted: Tensor, losses: Tensor, parameters: list[Tensor], stacked: bool, lr: float
) -> None:
    """Name the first step with a non-finite loss, if there was one: here the loop waits for the device."""
    if not halted.item():
        return
    bad = ~losses.isfinite()  # (done,) or (done, E)
    step = int((bad.any(1) if stacked else bad).nonzero()[0])
    whose = f" of {_names(bad[step])}" if stacked else ""
    values = sorted({str(v) for v in losses[step][bad[step]].tolist()})
    state = "The parameters are left as they were before that step"
    if not all(p.isfinite().all() for p in parameters):
        state += ", and already hold non-finite values: a gradient of the step before was not finite"
    raise FloatingPointError(
        f"the loss{whose} is {' and '.join(values)} at step {step}. {state}. {_REMEDIES.format(lr=lr)}"
    )


def _raise_if_spoilt(parameters: list[Tensor], done: int, stacked: bool, lr: float) -> None:
    """The last update has no loss after it to show that a gradient was not finite: look at the parameters."""
    rows = [p.detach().reshape(len(p) if stacked else 1, -1) for p in parameters]  # (E, size) or (1, size)
    good = torch.stack([row.isfinite().all(1) for row in rows]).all(0)
    if not good.all():
        whose = f" of {_names(~good)}" if stacked else ""
        raise FloatingPointError(
            f"the gradient{whose} at step {done - 1} was not finite although the loss was, and the "
            f"parameters hold non-finite values. {_REMEDIES.format(lr=lr)}"
        )
