"""Capsule networks, ConvNets and vision transformers for Keras 3: trained, explained, attacked and served."""

import importlib

from keras_capsvit import layers, models
from keras_capsvit.layers import *
from keras_capsvit.losses import MarginLoss
from keras_capsvit.metrics import SubsetAccuracy
from keras_capsvit.models import *
from keras_capsvit.schedules import LinearWarmup
from keras_capsvit.versions import warn_of_untested

__version__ = "0.1.0"

warn_of_untested()

# Imported at first use: data and serving need TensorFlow, which a JAX machine may not have, and plot needs matplotlib.
_SUBMODULES = (
    "attacks",
    "autodiff",
    "data",
    "evaluate",
    "explain",
    "layers",
    "losses",
    "metrics",
    "models",
    "ops",
    "patches",
    "plot",
    "report",
    "schedules",
    "serving",
    "taps",
    "training",
)

__all__ = [
    "LinearWarmup",
    "MarginLoss",
    "SubsetAccuracy",
    *_SUBMODULES,
    *layers.__all__,
    *models.__all__,
]


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"keras_capsvit.{name}")
    raise AttributeError(f"module 'keras_capsvit' has no attribute {name!r}")
