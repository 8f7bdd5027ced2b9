"""Capsule networks, ConvNets and vision transformers for Keras 3: trained, explained, attacked and served."""

import importlib

from keras_capsvit.layers import (
    CapsuleLength,
    CapsuleMask,
    CapsuleTransform,
    GraphCapsPool,
    PrimaryCaps,
)
from keras_capsvit.losses import MarginLoss
from keras_capsvit.models import GraCapsNet

__version__ = "0.1.0"

# Imported at first use: data and serving need TensorFlow, which a JAX machine may not have, and plot needs matplotlib.
_SUBMODULES = ("autodiff", "data", "explain", "layers", "losses", "models", "ops", "plot", "serving", "taps")

__all__ = [
    "CapsuleLength",
    "CapsuleMask",
    "CapsuleTransform",
    "GraCapsNet",
    "GraphCapsPool",
    "MarginLoss",
    "PrimaryCaps",
    *_SUBMODULES,
]


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"keras_capsvit.{name}")
    raise AttributeError(f"module 'keras_capsvit' has no attribute {name!r}")
