"""Autoregressive models of pictures: a network (PixelCNN, MADE) and a head (categorical, logistic mixture).

``P(y) = prod_j P(y_j | y_1..y_{j-1})``: the network gives numbers for each pixel, the head reads them as a
distribution over its levels. Ledger D3.
"""

from dgm_course.pixel_models.heads import CategoricalHead, Head, LogisticMixtureHead
from dgm_course.pixel_models.levels import categorical_log_prob, categorical_sample
from dgm_course.pixel_models.model import PixelModel

__all__ = [
    "CategoricalHead",
    "Head",
    "LogisticMixtureHead",
    "PixelModel",
    "categorical_log_prob",
    "categorical_sample",
]
