"""K4: value and gradient of a discretized logistic mixture on colour pictures, as PixelCNN++ is trained."""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from dgm_course.logistic_mixture import rgb_logistic_mixture_log_prob

from .harness import Benchmark, Contender, Goal, Run, Size, faster_than
from .measures import Result

LEVELS, SIDE, COMPONENTS = 256, 32, 10
MIDDLE = 0.5 * (LEVELS - 1)
LogProb = Callable[..., Tensor]


@dataclass
class Inputs:
    """Levels ``y (B, 32, 32, 3)``; logits ``(B, 32, 32, K)``, mean, log-scale, coefficients ``(..., 3, K)``.

    With ``image_order`` pixels are next to each other in memory, as a convolution leaves them; else
    components are. ``scaled`` are the same for the port, whose levels are -1 to 1.
    """

    y: Tensor
    parameters: Sequence[Tensor]
    scaled_y: Tensor
    scaled: Sequence[Tensor]
    gradient: bool


def inputs(size: Size, device: torch.device) -> Inputs:
    """Components about as far from the level as they are wide, 1 to 55 levels, as a trained network's."""
    g = torch.Generator().manual_seed(1)
    lead = size["B"], SIDE, SIDE
    y = torch.randint(LEVELS, (*lead, 3), generator=g).float()
    log_scale = 4 * torch.rand(*lead, 3, COMPONENTS, generator=g)
    mean = y.unsqueeze(-1) + 2 * torch.exp(log_scale) * torch.randn(*lead, 3, COMPONENTS, generator=g)
    coefficients = torch.tanh(0.3 * torch.randn(*lead, 3, COMPONENTS, generator=g))
    centred = (y - MIDDLE).unsqueeze(-1)
    mean[..., 1, :] -= coefficients[..., 0, :] * centred[..., 0, :]
    mean[..., 2, :] -= (coefficients[..., 1:, :] * centred[..., :2, :]).sum(-2)
    logits = torch.randn(*lead, COMPONENTS, generator=g)
    scaled = [logits, (mean - MIDDLE) / MIDDLE, log_scale - math.log(MIDDLE), coefficients]
    ours = [logits, mean, log_scale, coefficients]
    ours, scaled = ([in_order(t.to(device), size["image_order"]) for t in some] for some in (ours, scaled))
    y = y.to(device)
    return Inputs(y, ours, (y - MIDDLE) / MIDDLE, scaled, bool(size["gradient"]))


def in_order(t: Tensor, image_order: int) -> Tensor:
    """A leaf, in the memory order asked for."""
    return (t.movedim((1, 2), (-2, -1)).contiguous().movedim((-2, -1), (1, 2)) if image_order else t).clone()


def evaluated(log_prob: LogProb, y: Tensor, parameters: Sequence[Tensor], gradient: bool) -> Result:
    """Value of every pixel and, if asked for, the gradient of their sum."""
    leaves = [t.detach().requires_grad_(gradient) for t in parameters]
    value = log_prob(y, *leaves)
    return (value.detach(), *(torch.autograd.grad(value.sum(), leaves) if gradient else ()))


def whole(log_prob: LogProb) -> Callable[[Inputs], Run]:
    return lambda given: lambda: evaluated(log_prob, given.y, given.parameters, given.gradient)


def ours(y: Tensor, *parameters: Tensor) -> Tensor:
    return rgb_logistic_mixture_log_prob(y, *parameters, num_levels=LEVELS)


def coupled(y: Tensor, mean: Tensor, coefficients: Tensor) -> Tensor:
    """Means given the earlier channels, for levels counted from the middle."""
    green = mean[..., 1, :] + coefficients[..., 0, :] * y[..., 0, :]
    blue = mean[..., 2, :] + coefficients[..., 1, :] * y[..., 0, :] + coefficients[..., 2, :] * y[..., 1, :]
    return torch.stack([mean[..., 0, :], green, blue], -2)


def port(y: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, coefficients: Tensor) -> Tensor:
    """As PixelCNN++ was published: a difference of sigmoids, and three cases for the ends and the tails."""
    log_scale = log_scale.clamp(min=-7.0)
    y = y.unsqueeze(-1)
    centred = y - coupled(y, mean, coefficients)
    inverse_scale = torch.exp(-log_scale)
    plus, minus, middle = (inverse_scale * (centred + shift) for shift in (0.5 / MIDDLE, -0.5 / MIDDLE, 0.0))
    mass = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scale - 2 * softplus(middle)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density - math.log(MIDDLE))
    channels = torch.where(y > 0.999, -softplus(minus), inside)
    channels = torch.where(y < -0.999, plus - softplus(plus), channels)
    return torch.logsumexp(channels.sum(-2) + log_softmax(logits, -1), -1)


class OnOurScale:
    """A gradient for means of the port, on our scale as soon as it is compared: that is not timed."""

    def __init__(self, gradient: Tensor) -> None:
        self.gradient = gradient
        self.shape = gradient.shape

    def detach(self) -> Tensor:
        return self.gradient / MIDDLE


def scaled(given: Inputs) -> Run:
    """The port on its own scale."""

    def run() -> Result:
        contiguous = [t.contiguous() for t in given.scaled]  # as the port does first
        value, *gradients = evaluated(port, given.scaled_y, contiguous, given.gradient)
        gradients[1:2] = [OnOurScale(g) for g in gradients[1:2]]
        return (value, *gradients)

    return run


def one_branch(y: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor, coefficients: Tensor) -> Tensor:
    """Without cases, left to autograd: ``-softplus(-a) - softplus(b) + log(1 - exp(-1/s))``."""
    y = y.unsqueeze(-1)
    centred = y - coupled(y - MIDDLE, mean, coefficients)
    inverse_scale = torch.exp(-log_scale)
    closed_below, closed_above = (y > 0).to(y.dtype), (y < LEVELS - 1).to(y.dtype)
    channels = (
        closed_below * closed_above * torch.log(-torch.expm1(-inverse_scale))
        - closed_above * softplus(-(centred + 0.5) * inverse_scale)
        - closed_below * softplus((centred - 0.5) * inverse_scale)
    )
    return torch.logsumexp(channels.sum(-2) + log_softmax(logits, -1), -1)


def compiled(given: Inputs) -> Run:
    """Compiled for this size before the clock starts."""
    importlib.import_module("torch._dynamo").reset()
    log_prob = torch.compile(one_branch, dynamic=False)
    run = whole(log_prob)(given)
    run()
    return run


def without_compiler(size: Size) -> str | None:
    if importlib.util.find_spec("triton") is None and torch.cuda.is_available():
        return "torch.compile needs triton on a GPU"
    return None if shutil.which("c++") or shutil.which("g++") else "it compiles, and there is no C++ compiler"


def exponentials(given: Inputs) -> Run:
    """Four exponentials or sigmoids of every channel's component, no more."""
    flat = given.parameters[2].reshape(-1)
    buffer = torch.empty_like(flat[: 2**15])

    def run() -> None:
        for part in flat.split(2**15):
            out = buffer[: len(part)]
            torch.exp(part, out=out)
            torch.expm1(part, out=out)
            torch.sigmoid(part, out=out)
            torch.sigmoid(part, out=out)

    return run


def reference(given: Inputs) -> Result:
    """Plain formula in float64, a picture at a time."""
    results = []
    for at in range(len(given.y)):
        some = [t[at].double() for t in (given.y, *given.parameters)]
        results.append(evaluated(one_branch, some[0], some[1:], given.gradient))
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def size(pictures: int, *, image_order: int, gradient: int = 1) -> Size:
    return {"B": pictures, "image_order": image_order, "gradient": gradient}


OURS = "logistic_mixture.rgb_logistic_mixture_log_prob"
PORT, FORMULA, COMPILED = "the PixelCNN++ port", "the formula, by autograd", "torch.compile of the formula"
LIMIT = "the exponentials alone"
IMAGES, ROWS = size(64, image_order=1), size(64, image_order=0)
BYTES = 4 * 64 * SIDE * SIDE * (10 * COMPONENTS + 3)

BENCHMARK = Benchmark(
    kernel="K4",
    title="Discretized logistic mixture, value and gradient (`logistic_mixture`)",
    workload=(
        f"B pictures of {SIDE} x {SIDE} pixels and three channels of {LEVELS} levels, {COMPONENTS} "
        "components, float32: the log-probability of every pixel, and with `gradient = 1` its sum's gradient "
        "for all 100 parameters of a pixel. `image_order = 1`: parameters lie in memory as a convolution "
        "leaves them; else a pixel's components are neighbours. The port works on levels from -1 to 1, and "
        "its gradients are compared on the scale of the others."
    ),
    contenders=(
        Contender(OURS, whole(ours)),
        Contender(PORT, scaled, tolerance=1e-2),
        Contender(FORMULA, whole(one_branch)),
        Contender(COMPILED, compiled, skip=without_compiler),
        Contender(LIMIT, exponentials, limit=True),
    ),
    inputs=inputs,
    reference=reference,
    tolerance=2e-5,  # half an ulp of a coupled mean beyond 256, in units of the smallest scale
    sizes=[
        *(size(pictures, image_order=order) for order in (1, 0) for pictures in (4, 16, 64)),
        {**IMAGES, "gradient": 0}, {**ROWS, "gradient": 0},
    ],
    main=IMAGES,
    tiny=size(1, image_order=0),
    grows_in="B",
    goals=[  # for the order in which the port gets its parameters; the other one is measured beside it
        faster_than(PORT, 4),
        faster_than(FORMULA, 1),
        faster_than(COMPILED, 1),
        Goal(
            "peak memory at most 2.5 x the inputs' bytes",
            lambda rows: rows[OURS]["peak_bytes"] / BYTES, at_most=2.5,
        ),
        Goal(
            "a relative error at least 10 x smaller than the port's",
            lambda rows: rows[PORT]["error"] / rows[OURS]["error"], at_least=10.0,
        ),
    ],
    unit="value and gradient",
)  # fmt: skip
