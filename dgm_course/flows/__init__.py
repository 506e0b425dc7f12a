"""Normalizing flows: bijections with a tractable log-determinant, and the densities they induce. Lecture 03.

``forward`` is always the sampling direction, base to target (g: z -> x); ``inverse`` the other (f). Each
returns ``(value, log_det)``, log_det of the map just applied, in the batch shape, in nats.

>>> import torch
>>> from dgm_course.nets import MaskedMLP
>>> flow = Flow(MaskedAutoregressiveFlow(MaskedMLP(3, 16, 2)), 3)
>>> flow.sample(5).shape, flow.log_prob(torch.zeros(5, 3)).shape
(torch.Size([5, 3]), torch.Size([5]))
"""

from dgm_course.flows.actnorm import ActNorm, initialise
from dgm_course.flows.autoregressive import (
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    iaf_parameters,
)
from dgm_course.flows.base import Compose, Flow, Inverse, Transform
from dgm_course.flows.conv1x1 import InvertibleConv1x1
from dgm_course.flows.coupling import AdditiveCoupling, AffineCoupling, soft_clamp
from dgm_course.flows.elementwise import FixedAffine, Permutation, Sigmoid
from dgm_course.flows.fixed_linear import FixedLinear
from dgm_course.flows.glow import Glow, OnFirstChannels, Squeezed, glow_transform
from dgm_course.flows.inversion import solve_autoregressive, solve_by_sweeps, solve_sequentially
from dgm_course.flows.masks import alternating_mask, channel_mask, checkerboard_mask, half_mask
from dgm_course.flows.objectives import likelihood_term, reverse_kl
from dgm_course.flows.planar import PlanarFlow, constrained_u, planar, planar_inverse
from dgm_course.flows.radial import RadialFlow, radial, radial_inverse
from dgm_course.flows.stacks import autoregressive_transform, realnvp_transform
from dgm_course.flows.sylvester import SylvesterFlow, sylvester, sylvester_inverse

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "Compose",
    "FixedAffine",
    "FixedLinear",
    "Flow",
    "Glow",
    "Inverse",
    "InverseAutoregressiveFlow",
    "InvertibleConv1x1",
    "MaskedAutoregressiveFlow",
    "OnFirstChannels",
    "Permutation",
    "PlanarFlow",
    "RadialFlow",
    "Sigmoid",
    "Squeezed",
    "SylvesterFlow",
    "Transform",
    "alternating_mask",
    "autoregressive_transform",
    "channel_mask",
    "checkerboard_mask",
    "constrained_u",
    "glow_transform",
    "half_mask",
    "iaf_parameters",
    "initialise",
    "likelihood_term",
    "planar",
    "planar_inverse",
    "radial",
    "radial_inverse",
    "realnvp_transform",
    "reverse_kl",
    "soft_clamp",
    "solve_autoregressive",
    "solve_by_sweeps",
    "solve_sequentially",
    "sylvester",
    "sylvester_inverse",
]
