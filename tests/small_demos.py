"""Every live demo, small, and a few moves of its controls: what the tests of all demos go through."""

from __future__ import annotations

from functools import cache

import torch
from small_latents import small_beta_surgery, small_prior_choice

from dgm_course.data import two_moons
from dgm_course.demos import (
    dequantization_noise,
    discretized_logistic,
    flow_depth,
    four_points,
    gradient_noise,
    importance_bound,
    phase_diagram,
    planar_by_hand,
    receptive_field,
    target_depth,
)
from dgm_course.demos.engine import LiveDemo
from dgm_course.flows import AffineCoupling, Compose, Flow, half_mask
from dgm_course.nets import MLP
from dgm_course.vae import VAE

MOVES = {
    "phase_diagram": [{"beta": 4.0}, {"sigma2": 0.06}, {"beta": 0.1, "sigma2": 5.0}, {"beta": 10.0}],
    "receptive_field": [{"r": 0}, {"r": 7}, {"r": 4}],
    "importance_bound": [
        {"num_samples": 1}, {"num_samples": 1000}, {"mean": -2.0, "sd": importance_bound.SD_RANGE[0]},
        {"mean": 2.0, "sd": importance_bound.SD_RANGE[1], "num_samples": 20},
    ],
    "gradient_noise": [{"num_samples": 1}, {"num_averaged": 1, "num_samples": 1000}, {"num_averaged": 50}],
    "flow_depth": [{"k": 0}, {"k": 4}, {"k": 1}],
    "planar_by_hand": [
        {"push": -1.0}, {"push": -2.0}, {"shift": 2.0}, {"angle": 120.0}, {"steepness": 4.0, "push": 4.0},
    ],
    "discretized_logistic": [{"rule": "on"}, {"mean": 22.0}, {"num_levels": "5"}, {"mean": 1.0}],
    "dequantization_noise": [{"best": "shown"}, {"level": 6}, {"num_samples": 64}, {"shift": -1.0}],
    "beta_surgery": [{"beta": 0.1}, {"beta": 8.0}],
    "prior_choice": [{"size": 1}, {"kind": "q_agg"}, {"kind": "MAF", "size": 3}, {"kind": "N(0, I)"}],
    "four_points": [{"num_steps": 2}, {"point": "3"}, {"num_steps": 1}, {"point": "0"}],
    "target_depth": [
        {"depth": 2}, {"kind": "IAF"}, {"target": "two peaks"}, {"kind": "coupling", "depth": 0},
        {"target": "banana", "kind": "radial", "depth": 1},
    ],
}  # fmt: skip


def shown(name: str, bit_vaes: VAE) -> LiveDemo:
    """The demo of this name; ``bit_vaes`` are those of the receptive field."""
    shows = {module.__name__.rpartition(".")[2]: module.show
             for module in (dequantization_noise, discretized_logistic, gradient_noise, importance_bound,
                            phase_diagram, planar_by_hand)}  # fmt: skip
    shows |= {"beta_surgery": small_beta_surgery, "prior_choice": small_prior_choice}
    shows |= {"four_points": small_four_points, "target_depth": small_target_depth}
    if name == "flow_depth":
        return flow_depth.show(small_flow(), two_moons())
    return receptive_field.show(bit_vaes) if name == "receptive_field" else shows[name]()


def small_flow() -> Flow:
    """Four couplings of the plane, not trained."""
    kind = {"activation": torch.tanh, "generator": torch.Generator().manual_seed(0)}
    layers = [AffineCoupling(half_mask(2, first=k % 2 == 0), MLP([1, 8, 2], **kind)) for k in range(4)]
    return Flow(Compose(layers), 2)


@cache
def small_models() -> dict[int, VAE]:
    """Four-point VAEs with 0, 1 and 2 IAF steps, trained a little."""
    return four_points.train_default((0, 1, 2), steps=40, progress=False)


def small_four_points() -> LiveDemo:
    """The demo of the four points."""
    return four_points.show(small_models())


@cache
def small_fits() -> target_depth.Fits:
    """Every kind at three depths, trained a little."""
    return target_depth.fit_default(depths=(0, 1, 2), steps=30, num_samples=16, starts=2, progress=False)


def small_target_depth() -> LiveDemo:
    """The demo of a flow's depth on targets."""
    return target_depth.show(small_fits(), depth=1)
