"""Data: exact toy densities, enumerable binary data, real digits and photographs; MNIST on request.

Nothing here needs a download except ``mnist``, ``fashion_mnist`` and ``cifar10``.
"""

from dgm_course.data.densities import Density, GaussianMixture
from dgm_course.data.digits import digits
from dgm_course.data.download import DownloadError, cache_dir
from dgm_course.data.enumerable import entropy, enumerable_binary
from dgm_course.data.images import cifar10, fashion_mnist, mnist
from dgm_course.data.photos import photo_patches, photographs, split_patches
from dgm_course.data.split import Split
from dgm_course.data.targets import UnnormalisedTarget, banana_target, two_peaks_target, wave_target
from dgm_course.data.toy import (
    Checkerboard,
    Pinwheel,
    bimodal,
    checkerboard,
    grid,
    pinwheel,
    ring,
    two_moons,
)

__all__ = [
    "Checkerboard",
    "Density",
    "DownloadError",
    "GaussianMixture",
    "Pinwheel",
    "Split",
    "UnnormalisedTarget",
    "banana_target",
    "bimodal",
    "cache_dir",
    "checkerboard",
    "cifar10",
    "digits",
    "entropy",
    "enumerable_binary",
    "fashion_mnist",
    "grid",
    "mnist",
    "photo_patches",
    "photographs",
    "pinwheel",
    "ring",
    "split_patches",
    "two_moons",
    "two_peaks_target",
    "wave_target",
]
