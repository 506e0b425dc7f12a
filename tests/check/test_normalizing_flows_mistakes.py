"""Lecture 03: likely mistakes are recognised however they are written, and shown on an input that tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from dgm_course import check
from dgm_course.gaussian import gaussian_log_prob

from .students import expect_hint, failed

Pair = tuple[Tensor, Tensor]


def density(volume: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The base's log-density plus what a student makes of the Jacobian."""
    return lambda z, jacobian: Normal(0.0, 1.0).log_prob(z).sum(dim=1) + volume(jacobian)


def density_without_sum(z: Tensor, jacobian: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(z) + torch.linalg.slogdet(jacobian).logabsdet.unsqueeze(-1)


def density_with_a_column(z: Tensor, jacobian: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(z).sum(1, keepdim=True) + torch.slogdet(jacobian)[1]


def density_of_inverse_map(z: Tensor, jacobian: Tensor) -> Tensor:
    return gaussian_log_prob(z, 0.0, 0.0) + torch.slogdet(torch.linalg.inv(jacobian))[1]


def density_with_one_constant(z: Tensor, jacobian: Tensor) -> Tensor:
    log_base = torch.log(torch.exp(-z.double().square().sum(1) / 2) / math.sqrt(2 * math.pi))
    return (log_base + torch.slogdet(jacobian.double())[1]).to(z.dtype)


def coupling(
    move: Callable[[Tensor, Tensor, Tensor], Tensor], log_det: Callable[[Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Pair]:
    def answer(x: Tensor, weight: Tensor) -> Pair:
        half = x.size(1) // 2
        net = x[:, :half] @ weight
        z2 = move(x[:, half:], net[:, :half], net[:, half:])
        return torch.cat((x[:, :half], z2), dim=1), log_det(net[:, :half])

    return answer


def coupling_that_samples(x: Tensor, weight: Tensor) -> Pair:
    x1, x2 = x.tensor_split(2, dim=1)
    net = torch.einsum("bi,ij->bj", x1, weight)
    log_scale, shift = net.tensor_split(2, dim=1)
    return torch.hstack([x1, shift + torch.exp(log_scale) * x2]), log_scale.sum(dim=-1)


def coupling_of_everything(x: Tensor, weight: Tensor) -> Pair:
    half = x.size(1) // 2
    net = x[:, half:] @ weight
    z1 = (x[:, :half] - net[:, half:]) / net[:, :half].exp()
    return torch.cat((z1, x[:, half:]), dim=1), -net[:, :half].sum(1)


def coupling_shift_first(x: Tensor, weight: Tensor) -> Pair:
    shift, log_scale = (x[:, : len(weight)] @ weight).chunk(2, dim=-1)
    z2 = (x[:, len(weight) :] - shift) / log_scale.exp()
    return torch.cat([x[:, : len(weight)], z2], -1), -log_scale.sum(-1)


def undone(v: Tensor, log_scale: Tensor, shift: Tensor) -> Tensor:
    return (v - shift) / torch.exp(log_scale)


def planar(slope: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """The planar flow's log-determinant by way of psi, with a student's derivative of tanh."""

    def answer(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
        psi = slope((z * w).sum(dim=1) + b).unsqueeze(1) * w
        return torch.log(torch.abs(1 + (psi * u).sum(dim=1)))

    return answer


def planar_without_abs(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    return torch.log1p(torch.dot(u, w) / torch.cosh(z @ w + b) ** 2)


def planar_with_diagonal(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    slope = 1 - torch.tanh(z @ w + b) ** 2
    jacobian = torch.eye(len(u), dtype=u.dtype) + torch.diag_embed(slope[:, None] * u * w)
    return torch.slogdet(jacobian).logabsdet


def planar_by_jacobian_without_slope(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    return torch.slogdet(torch.eye(len(u), dtype=u.dtype) + torch.outer(u, w))[1].expand(len(z))


def masks(
    reads: Callable[[Tensor, Tensor], Tensor], feeds: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Pair]:
    """Masks by two comparisons, of an input's and a hidden unit's degree, and the other way round."""

    def answer(input_degrees: Tensor, hidden_degrees: Tensor) -> Pair:
        input_mask = reads(input_degrees.unsqueeze(1), hidden_degrees.unsqueeze(0))
        return input_mask.float(), feeds(hidden_degrees.unsqueeze(1), input_degrees.unsqueeze(0)).float()

    return answer


def masks_by_loops_over_positions(input_degrees: Tensor, hidden_degrees: Tensor) -> Pair:
    m, units = len(input_degrees), len(hidden_degrees)
    input_mask, output_mask = torch.zeros(m, units), torch.zeros(units, m)
    for k, degree in enumerate(hidden_degrees):
        input_mask[:degree, k] = 1
        output_mask[k, degree:] = 1
    return input_mask, output_mask


def masks_for_linear_layers(input_degrees: Tensor, hidden_degrees: Tensor) -> Pair:
    return hidden_degrees[:, None] >= input_degrees, input_degrees[:, None] > hidden_degrees


def log_det(per_pixel: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda lower, upper, s, height, width: per_pixel(s) * height * width


def log_det_of_factors(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    return height * width * (torch.slogdet(lower)[1] + torch.slogdet(upper)[1])


def log_det_by_determinant(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    return height * width * torch.det(torch.diag(s)).abs().log()


def inputs_as_on_the_slide(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    x2 = y2 - (y1 @ a).tanh()
    x1 = y1 - (x2 @ b).tanh()
    return x1, x2


def inputs_in_the_order_of_the_block(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    x1 = y1 - torch.tanh(torch.matmul(y2, a))
    x2 = y2 - torch.tanh(torch.matmul(x1, b))
    return x1, x2


def inputs_from_outputs(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    return [y1 - torch.tanh(y2 @ a), y2 - torch.tanh(y1 @ b)]


def inputs_by_linear(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    x2 = y2 - torch.nn.functional.linear(y1, b).tanh()
    return y1 - torch.nn.functional.linear(x2, a).tanh(), x2


FLOW, LAYER = "change_of_variables_log_prob", "affine_coupling"
NOT_FINITE = "it is finite for every finite input"

#: What students wrote, the misconception that it is, and what the verdict has to show.
WRITTEN: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "the slide's bars": (FLOW, "entries_logdet", density(lambda j: torch.logdet(torch.abs(j))), "got nan"),
    "the slide's bars, then log": (FLOW, "entries_then_log",
                                   density(lambda j: torch.log(torch.det(torch.abs(j)))), NOT_FINITE),
    "bars twice": (FLOW, "entries_abs_then_log",
                   density(lambda j: torch.log(torch.abs(torch.det(torch.abs(j))))), NOT_FINITE),
    "bars and slogdet": (FLOW, "entries_slogdet", density(lambda j: torch.slogdet(j.abs())[1]), "-inf"),
    "no bars": (FLOW, "logdet", density(torch.logdet), NOT_FINITE),
    "log of det": (FLOW, "det_then_log", density(lambda j: torch.log(torch.det(j))), NOT_FINITE),
    "log of size": (FLOW, "underflow", density(lambda j: torch.log(torch.abs(torch.det(j)))), "(1, 28)"),
    "log of size by hand": (FLOW, "underflow",
                            density(lambda j: torch.linalg.svdvals(j).prod(1).log()), "-inf"),
    "both of slogdet": (FLOW, "pair_added", density(torch.slogdet), "TypeError: unsupported operand"),
    "first of slogdet": (FLOW, "sign_added", density(lambda j: torch.slogdet(j).sign), "changes nothing"),
    "inverse map": (FLOW, "minus", density_of_inverse_map, "expected"),
    "no sum": (FLOW, "per_dimension", density_without_sum, "of shape (2,), got a tensor of shape (2, 2)"),
    "a column": (FLOW, "broadcast", density_with_a_column, "of shape (2,), got a tensor of shape (2, 2)"),
    "one constant": (FLOW, "constant_once", density_with_one_constant, "expected -4.338, got -3.419"),
    "diagonal": (FLOW, "diagonal",
                 density(lambda j: torch.einsum("bii->bi", j).abs().log().sum(-1)), "A rotation"),
    "forward": (LAYER, "sampled", coupling_that_samples, "the layer only shifts"),
    "roles": (LAYER, "of_second_half", coupling_of_everything, "the layer only shifts"),
    "columns": (LAYER, "swapped", coupling_shift_first, "the layer only shifts"),
    "shift last": (LAYER, "shift_not_scaled",
                   coupling(lambda v, s, t: v / s.exp() - t, lambda s: -s.sum(1)), "z: at [0, 1]"),
    "scale again": (LAYER, "scaled_again",
                    coupling(lambda v, s, t: s.exp() * (v - t), lambda s: -s.sum(1)), "z: at"),
    "plus": (LAYER, "positive", coupling(undone, lambda s: s.exp().log().sum(1)), "expected 2, got -2"),
    "scales": (LAYER, "scales_added", coupling(undone, lambda s: (1 / s.exp()).sum(1)), "expected 0, got 2"),
    "product": (LAYER, "determinant", coupling(undone, lambda s: 1 / s.sum(1).exp()), "expected 0, got 1"),
    "log of logs": (LAYER, "log_of_log", coupling(undone, lambda s: -torch.log(s).sum(1)), NOT_FINITE),
    "total": (LAYER, "batch_sum", coupling(undone, lambda s: -torch.sum(s)), "got a tensor of shape ()"),
    "no slope": ("planar_log_det", "no_slope", planar(torch.ones_like), "it changes no volume"),
    "no slope, whole Jacobian": ("planar_log_det", "no_slope", planar_by_jacobian_without_slope,
                                 "Where tanh is flat"),
    "value for slope": ("planar_log_det", "tanh_itself", planar(torch.tanh), "it changes no volume"),
    "no square": ("planar_log_det", "not_squared", planar(lambda a: 1 - a.tanh()), "far to the left"),
    "square of all": ("planar_log_det", "squared_outside", planar(lambda a: (1 - a.tanh()) ** 2),
                      "far to the left"),
    "sigmoid's rule": ("planar_log_det", "sigmoid_slope", planar(lambda a: a.tanh() * (1 - a.tanh())),
                       "far to the left"),
    "no absolute value": ("planar_log_det", "no_abs", planar_without_abs, NOT_FINITE),
    "diagonal matrix": ("planar_log_det", "each_dimension", planar_with_diagonal, "expected 0.6846"),
    "strict": ("made_masks", "both_strict", masks(torch.lt, torch.lt), "input_mask: at [0, 0] expected 1"),
    "loose": ("made_masks", "both_loose", masks(torch.le, torch.le), "output_mask: at [0, 0] expected 0"),
    "other convention": ("made_masks", "strictness_swapped", masks(torch.lt, torch.le), "expected 1, got 0"),
    "turned": ("made_masks", "both_reversed", masks(torch.ge, torch.gt), "degree 0 reads nothing"),
    "positions": ("made_masks", "by_position", masks_by_loops_over_positions, "No output depends on"),
    "layers": ("made_masks", "both_transposed", masks_for_linear_layers, "of shape (2, 3), got a tensor"),
    "one pixel": ("lu_log_det", "no_pixels", lambda lo, up, s, h, w: s.abs().log().sum(), "expected 10.75"),
    "no size": ("lu_log_det", "no_abs", log_det(lambda s: torch.log(s).sum()), NOT_FINITE),
    "product of sizes": ("lu_log_det", "underflow", log_det(lambda s: s.abs().prod().log()), "inf"),
    "det of diag": ("lu_log_det", "underflow", log_det_by_determinant, "inf"),
    "L and U": ("lu_log_det", "no_s", log_det_of_factors, "got -inf"),
    "logs stored": ("lu_log_det", "log_scales", log_det(torch.sum), "expected 1.792, got 1 "),
    "slide": ("revnet_inverse", "slide", inputs_as_on_the_slide, "as on the lecture's slide"),
    "order": ("revnet_inverse", "x1_first", inputs_in_the_order_of_the_block, "give y1 and y2 back"),
    "outputs": ("revnet_inverse", "from_outputs", inputs_from_outputs, "give y1 and y2 back"),
    "layers of torch": ("revnet_inverse", "transposed", inputs_by_linear, "Where F is 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_likely_mistake_is_recognised_however_it_is_written(name: str) -> None:
    expect_hint(*WRITTEN[name])


def test_a_mistake_is_told_apart_where_an_edge_case_is_right() -> None:

    def samples_unless_trivial(x: Tensor, weight: Tensor) -> Pair:
        if not weight.any():
            return x.clone(), torch.zeros(len(x), dtype=x.dtype)
        return coupling_that_samples(x, weight)

    expect_hint(LAYER, "sampled", samples_unless_trivial, "z: at")


def test_an_unknown_mistake_earns_no_hint() -> None:
    unknown: dict[str, Callable[..., Any]] = {
        FLOW: density(lambda j: 3 * torch.slogdet(j)[1]),
        LAYER: coupling(lambda v, s, t: (v - 3 * t) * torch.exp(-s), lambda s: -s.sum(1)),
        "planar_log_det": planar(lambda a: 3 * torch.cosh(a) ** -2),
        "made_masks": masks(torch.eq, torch.ne),
        "lu_log_det": log_det(lambda s: 3 * s.abs().log().sum()),
        "revnet_inverse": lambda y1, y2, a, b: (y1 - torch.sin(y2 @ a), y2 - torch.sin(y1 @ b)),
    }
    for name, answer in unknown.items():
        assert not failed(answer, "", getattr(check, name)).hint, name


def test_a_wrong_inverse_is_named_by_the_round_trip() -> None:
    verdict = failed(inputs_from_outputs, "Sent through the block", check.revnet_inverse)
    assert verdict.gap.startswith("x1: at [0, ")
    assert verdict.input.startswith("y1 = [[1, -0.5]]")


def test_masks_are_compared_exactly() -> None:
    for factor in (2.0, 0.99, 1 + 1e-6):
        def scaled(*degrees: Tensor, factor: float = factor) -> list[Tensor]:
            return [factor * mask for mask in masks(torch.le, torch.lt)(*degrees)]

        assert check.made_masks.check(scaled).status == "FAIL"


def test_a_layer_that_writes_into_its_input_is_seen() -> None:
    def in_place(x: Tensor, weight: Tensor) -> Pair:
        half = len(weight)
        log_scale, shift = (x[:, :half] @ weight).chunk(2, dim=1)
        x[:, half:] = (x[:, half:] - shift) * torch.exp(-log_scale)
        return x, -log_scale.sum(1)

    def streams_in_place(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
        y2 -= torch.tanh(y1 @ b)
        y1 -= torch.tanh(y2 @ a)
        return y1, y2

    assert failed(in_place, "it leaves its inputs", check.affine_coupling).gap == "x changed in place"
    verdict = failed(streams_in_place, "it leaves its inputs", check.revnet_inverse)
    assert verdict.gap == "y1 and y2 changed in place"


def test_the_determinants_of_many_dimensions_leave_the_range_of_floats() -> None:
    for name, matrix in (("change_of_variables_log_prob", 1), ("lu_log_det", 2)):
        lost = {torch.float32: 0, torch.float64: 0}
        for case in getattr(check, name).draw(20):
            given = list(case.arguments.values())
            det = torch.linalg.det(given[1]) if matrix == 1 else given[2].prod()
            lost[case.dtype] += bool((det == 0).any() or det.isinf().any())
        assert min(lost.values()) >= 2
