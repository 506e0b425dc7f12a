"""Networks in small: MLPs, masked (autoregressive) networks, and stacks of E of them applied at once.

``from dgm_course.nets import MLP``. Every dense network takes ``members=E``: its parameters then have a
leading dimension E, and one batched product serves all members (see :mod:`dgm_course.nets.linear`).
"""

from dgm_course.nets.convolutional import ConvNet, MaskedConv2d, PixelCNN, PixelCNNAdapter, conv2d
from dgm_course.nets.linear import MLP, Linear, LocalLinear, Stackable, add_features, member, members_of
from dgm_course.nets.masked import MaskedMLP, WindowDecoderNet, causal_mask, causal_window_mask
from dgm_course.nets.squeeze import squeeze, unsqueeze

__all__ = [
    "MLP",
    "ConvNet",
    "Linear",
    "LocalLinear",
    "MaskedConv2d",
    "MaskedMLP",
    "PixelCNN",
    "PixelCNNAdapter",
    "Stackable",
    "WindowDecoderNet",
    "add_features",
    "causal_mask",
    "causal_window_mask",
    "conv2d",
    "member",
    "members_of",
    "squeeze",
    "unsqueeze",
]
