"""Lecture 03: other right algorithms pass, over hundreds of inputs, whatever form they give the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.nn import functional

from dgm_course import check
from dgm_course.gaussian import gaussian_log_prob

from .students import expect_right, failed

Pair = tuple[Tensor, Tensor]


def density_by_slogdet(z: Tensor, jacobian: Tensor) -> Tensor:
    _, log_abs_det = torch.linalg.slogdet(jacobian)
    return -0.5 * (z**2).sum(-1) - z.shape[1] / 2 * math.log(2 * math.pi) + log_abs_det


def density_by_normal(z: Tensor, jacobian: Tensor) -> Tensor:
    base = Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1)
    return base.log_prob(z) + torch.slogdet(jacobian)[1]


def density_by_lu(z: Tensor, jacobian: Tensor) -> Tensor:
    factors, _ = torch.linalg.lu_factor(jacobian)
    log_det = torch.diagonal(factors, dim1=-2, dim2=-1).abs().log().sum(-1)
    return gaussian_log_prob(z, 0.0, 0.0) + log_det


def density_by_gram(z: Tensor, jacobian: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(z).sum(1) + torch.logdet(jacobian.mT @ jacobian) / 2


def density_by_loops(z: Tensor, jacobian: Tensor) -> Tensor:
    rows = []
    for point, matrix in zip(z, jacobian, strict=True):
        log_base = sum(-0.5 * value**2 - 0.5 * math.log(2 * math.pi) for value in point)
        rows.append(log_base + matrix.slogdet().logabsdet)
    return torch.stack(rows)


def density_of_the_inverse(z: Tensor, jacobian: Tensor) -> Tensor:
    return gaussian_log_prob(z, 0.0, 0.0) - torch.linalg.slogdet(torch.linalg.inv(jacobian)).logabsdet


def density_by_numpy(z: Tensor, jacobian: Tensor) -> Tensor:
    log_base = -0.5 * (z.numpy() ** 2 + np.log(2 * np.pi)).sum(1)
    return torch.from_numpy((log_base + np.linalg.slogdet(jacobian.numpy())[1]).astype(z.numpy().dtype))


def coupling_by_slices(x: Tensor, weight: Tensor) -> Pair:
    half = x.shape[1] // 2
    net = x[:, :half] @ weight
    log_scale, shift = net[:, :half], net[:, half:]
    z = torch.cat([x[:, :half], (x[:, half:] - shift) / log_scale.exp()], dim=-1)
    return z, -log_scale.sum(-1)


def coupling_by_einsum(x: Tensor, weight: Tensor) -> Pair:
    x1, x2 = torch.tensor_split(x, 2, dim=1)
    log_scale, shift = torch.einsum("bi,ij->bj", x1, weight).split(len(weight), dim=1)
    scale = torch.exp(-log_scale)
    return torch.hstack([x1, x2 * scale - shift * scale]), scale.log().sum(1)


def coupling_in_place_of_a_copy(x: Tensor, weight: Tensor) -> Pair:
    half = len(weight)
    log_scale, shift = functional.linear(x[:, :half], weight.T).chunk(2, dim=-1)
    z = x.clone()
    z[:, half:] -= shift
    z[:, half:] *= torch.exp(-log_scale)
    return z, (-log_scale).sum(dim=1)


def coupling_by_loops(x: Tensor, weight: Tensor) -> Pair:
    half, rows, log_dets = len(weight), [], []
    for row in x:
        out, total = list(row[:half]), torch.zeros((), dtype=x.dtype)
        for j in range(half):
            log_scale = sum(row[i] * weight[i, j] for i in range(half))
            shift = sum(row[i] * weight[i, half + j] for i in range(half))
            out.append((row[half + j] - shift) * torch.exp(-log_scale))
            total = total - log_scale
        rows.append(torch.stack(out))
        log_dets.append(total)
    return torch.stack(rows), torch.stack(log_dets)


def coupling_by_autograd(x: Tensor, weight: Tensor) -> Pair:
    def inverse(row: Tensor) -> Tensor:
        return coupling_by_slices(row[None], weight)[0][0]

    jacobians = torch.stack([torch.autograd.functional.jacobian(inverse, row) for row in x])
    return coupling_by_slices(x, weight)[0], torch.linalg.slogdet(jacobians).logabsdet


def planar_by_hand(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    slope = 1 - torch.tanh(z @ w + b).square()
    psi = slope[:, None] * w
    return torch.log(torch.abs(1 + psi @ u))


def planar_by_cosh(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    inside = (w * z).sum(-1) + b
    return torch.log(torch.abs(1 + torch.dot(u, w) / torch.cosh(inside) ** 2))


def planar_by_full_jacobian(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    slope = 1 - torch.tanh(z @ w + b) ** 2
    jacobian = torch.eye(len(u), dtype=z.dtype) + slope[:, None, None] * torch.outer(u, w)
    return torch.linalg.slogdet(jacobian).logabsdet


def planar_by_jacrev(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    jacobian = torch.vmap(torch.func.jacrev(lambda row: row + u * torch.tanh(row @ w + b)))(z)
    return torch.slogdet(jacobian).logabsdet


def planar_by_loops(z: Tensor, u: Tensor, w: Tensor, b: float) -> Tensor:
    rows = []
    for row in z:
        slope = 1 - torch.tanh(torch.dot(row, w) + b) ** 2
        rows.append(torch.log(torch.abs(1 + sum(slope * p * q for p, q in zip(u, w, strict=True)))))
    return torch.stack(rows)


def masks_by_comparison(input_degrees: Tensor, hidden_degrees: Tensor) -> Pair:
    input_mask = hidden_degrees[None, :] >= input_degrees[:, None]
    return input_mask.float(), (input_degrees[None, :] > hidden_degrees[:, None]).float()


def masks_by_complement(input_degrees: Tensor, hidden_degrees: Tensor) -> Pair:
    input_mask = torch.le(input_degrees.unsqueeze(1), hidden_degrees)
    return input_mask, ~input_mask.T


def masks_by_loops(input_degrees: Tensor, hidden_degrees: Tensor) -> Pair:
    m, units = len(input_degrees), len(hidden_degrees)
    input_mask, output_mask = torch.zeros(m, units), torch.zeros(units, m)
    for k in range(units):
        for i in range(m):
            if input_degrees[i] <= hidden_degrees[k]:
                input_mask[i, k] = 1
            if hidden_degrees[k] < input_degrees[i]:
                output_mask[k, i] = 1
    return input_mask, output_mask


def masks_in_integers(input_degrees: Tensor, hidden_degrees: Tensor) -> Pair:
    distance = hidden_degrees - input_degrees[:, None]
    return (distance >= 0).long(), (distance < 0).T.int()


def log_det_by_numbers(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    return height * width * torch.sum(torch.log(torch.abs(s)))


def log_det_of_squares(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    return 0.5 * height * width * torch.log(s**2).sum()


def log_det_of_weight(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    weight = lower @ (upper + torch.diag(s))
    return height * width * torch.linalg.slogdet(weight).logabsdet


def log_det_of_factors(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    both = torch.slogdet(lower)[1] + torch.slogdet(upper + torch.diag_embed(s))[1]
    return both * (height * width)


def log_det_by_loops(lower: Tensor, upper: Tensor, s: Tensor, height: int, width: int) -> Tensor:
    total = torch.zeros((), dtype=s.dtype)
    for _ in range(height):
        for _ in range(width):
            for entry in s:
                total = total + entry.abs().log()
    return total


def inputs_by_hand(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    x2 = y2 - torch.tanh(y1 @ b)
    x1 = y1 - torch.tanh(x2 @ a)
    return x1, x2


def inputs_by_linear(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    x2 = torch.sub(y2, functional.linear(y1, b.T).tanh())
    return torch.sub(y1, functional.linear(x2, a.T).tanh()), x2


def inputs_by_einsum(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    x2 = y2 - torch.einsum("bi,ij->bj", y1, b).tanh()
    return [y1 - torch.einsum("bi,ij->bj", x2, a).tanh(), x2]


def inputs_by_loops(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    pairs = []
    for first, second in zip(y1, y2, strict=True):
        second = second - torch.tanh(b.T @ first)
        pairs.append((first - torch.tanh(a.T @ second), second))
    return torch.stack([x1 for x1, _ in pairs]), torch.stack([x2 for _, x2 in pairs])


def inputs_in_place_of_a_copy(y1: Tensor, y2: Tensor, a: Tensor, b: Tensor) -> Pair:
    y1, y2 = y1.clone(), y2.clone()
    y2 -= torch.tanh(y1 @ b)
    y1 -= torch.tanh(y2 @ a)
    return y1, y2


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "change_of_variables_log_prob": [
        density_by_slogdet, density_by_normal, density_by_lu, density_by_gram, density_by_loops,
        density_of_the_inverse, density_by_numpy],
    "affine_coupling": [coupling_by_slices, coupling_by_einsum, coupling_in_place_of_a_copy,
                        coupling_by_loops, coupling_by_autograd],
    "planar_log_det": [planar_by_hand, planar_by_cosh, planar_by_full_jacobian, planar_by_jacrev,
                       planar_by_loops],
    "made_masks": [masks_by_comparison, masks_by_complement, masks_by_loops, masks_in_integers],
    "lu_log_det": [log_det_by_numbers, log_det_of_squares, log_det_of_weight, log_det_of_factors,
                   log_det_by_loops],
    "revnet_inverse": [inputs_by_hand, inputs_by_linear, inputs_by_einsum, inputs_by_loops,
                       inputs_in_place_of_a_copy],
}  # fmt: skip
ANSWERS = [pytest.param(name, f, id=f.__name__) for name, answers in RIGHT.items() for f in answers]
FLOATING = [name for name in RIGHT if name != "made_masks"]


def changed(answer: Callable[..., Any], change: Callable[[Tensor], object]) -> Callable[..., Any]:
    """The answer with ``change`` applied to each tensor that it gives."""

    def other(*arguments: object) -> object:
        given = answer(*arguments)
        return change(given) if isinstance(given, Tensor) else tuple(change(part) for part in given)

    return other


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
def test_another_right_algorithm_passes(name: str, answer: Callable[..., Any]) -> None:
    expect_right(name, answer)


@pytest.mark.parametrize("name", RIGHT)
def test_arrays_and_lists_pass_with_a_note(name: str) -> None:
    plain = "plain number" if name == "lu_log_det" else "list"  # a list of no axes is a number
    for change, words in ((Tensor.numpy, "NumPy array"), (Tensor.tolist, plain)):
        verdict = getattr(check, name).check(changed(RIGHT[name][0], change))
        assert verdict.passed and words in verdict.note, verdict.text


@pytest.mark.parametrize("name", FLOATING)
def test_a_right_answer_in_another_dtype_fails_for_its_dtype(name: str) -> None:
    for change in (Tensor.double, Tensor.float):
        verdict = getattr(check, name).check(changed(RIGHT[name][0], change))
        assert verdict.claim == "its dtype follows the input's", verdict.text
        assert not verdict.hint


@pytest.mark.parametrize("name", FLOATING)
def test_a_small_error_is_found(name: str) -> None:
    for factor in (1 + 1e-3, 1 - 1e-3):
        verdict = getattr(check, name).check(changed(RIGHT[name][0], lambda v, f=factor: f * v))
        assert verdict.status == "FAIL" and not verdict.hint, verdict.text


@pytest.mark.parametrize("name", RIGHT)
def test_a_constant_answer_fails(name: str) -> None:
    exercise = getattr(check, name)
    for change in (torch.zeros_like, torch.ones_like, lambda part: torch.full_like(part, -3)):
        assert exercise.check(changed(RIGHT[name][0], change)).status == "FAIL"
    for value in (0.0, torch.zeros(2), (torch.zeros(2, 2), torch.zeros(2)), True):
        assert exercise.check(lambda *_, value=value: value).status == "FAIL"


@pytest.mark.parametrize("name", RIGHT)
def test_an_input_that_is_changed_in_place_is_named(name: str) -> None:
    argument = list(getattr(check, name).draw(20)[0].arguments)[0]

    def changes(first: Tensor, *others: object) -> object:
        given = RIGHT[name][0](first, *others)
        first += 1
        return given

    verdict = failed(changes, "it leaves its inputs as they were", getattr(check, name))
    assert f"{argument} changed in place" in verdict.gap and not verdict.hint


@pytest.mark.parametrize("name", ["affine_coupling", "made_masks", "revnet_inverse"])
def test_one_part_of_two_is_named(name: str) -> None:
    exercise = getattr(check, name)
    for part in (0, 1):
        verdict = failed(lambda *a, part=part: RIGHT[name][0](*a)[part], "it returns a tuple", exercise)
        assert verdict.claim == f"it returns a tuple ({', '.join(exercise.wants)})" and not verdict.hint
    verdict = failed(lambda *a: [*RIGHT[name][0](*a), 0], "it returns a tuple", exercise)
    assert not verdict.hint


def test_a_float32_computation_of_float64_inputs_fails() -> None:
    for name in FLOATING:
        def imprecise(*arguments: object, name: str = name) -> object:
            single = [v.float() if isinstance(v, Tensor) else v for v in arguments]
            dtype = arguments[0].dtype
            return changed(RIGHT[name][0], lambda part: part.to(dtype))(*single)

        assert getattr(check, name).check(imprecise).status == "FAIL", name
