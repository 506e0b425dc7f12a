"""Reversible networks: activations recomputed instead of stored, and a classifier that is a bijection.

``from dgm_course.reversible import ReversibleSequence``. A block (:mod:`~dgm_course.reversible.block`) is
inverted by subtraction; a sequence of them (:mod:`~dgm_course.reversible.sequence`) trains in activation
memory that does not grow with depth; i-RevNet (:mod:`~dgm_course.reversible.images`) classifies pictures
without losing one number before its last projection.
"""

from dgm_course.reversible.block import ReversibleBlock
from dgm_course.reversible.images import IRevNet, ResidualNet
from dgm_course.reversible.memory import saved_activation_bytes
from dgm_course.reversible.sequence import ReversibleSequence

__all__ = [
    "IRevNet",
    "ResidualNet",
    "ReversibleBlock",
    "ReversibleSequence",
    "saved_activation_bytes",
]
