"""The range of pixels that a model takes, read from its first layers."""

import keras
import numpy as np
from keras import ops

from keras_capsvit.taps import declared
from keras_capsvit.taps.recording import Recorder, eagerly, run
from keras_capsvit.taps.scores import scores

# Layers that leave the range as it is.
_PASSING = ("InputLayer", "Dropout", "Identity", "Permute", "Reshape", "ZeroPadding2D", "Resizing", "CenterCrop")
RANGES = ((0.0, 255.0), (0.0, 1.0))
_WIDTHS = (0.5, 12.0)  # of pixels after scaling or normalisation by any usual mean and std


def input_range(model):
    """The range of pixels that a model takes.

    A first layer that scales or normalises tells: it makes [0, 255] or [0, 1] as wide as networks want it. Models of
    integers take [0, 255], and models of this package without such a layer [0, 1].

    Args:
        model: live Keras model.

    Returns:
        ``(0.0, 1.0)`` or ``(0.0, 255.0)``; None where the model does not tell.
    """
    if not isinstance(model, keras.Model):
        return None
    inputs = getattr(model, "inputs", None)
    if inputs and keras.backend.is_int_dtype(inputs[0].dtype):
        return RANGES[0]
    shape = tuple(size or 64 for size in scores(model).sample_shape or ())
    scaling = eagerly(lambda: _first_step(model, shape)) if shape else None
    if type(scaling).__name__ in ("Rescaling", "Normalization"):
        black, white = (ops.convert_to_numpy(scaling(np.full((1, *shape), end, "float32"))) for end in (0, 1))
        width = float(np.abs(white - black).mean())
        fitting = [r for r in RANGES if _WIDTHS[0] <= width * (r[1] - r[0]) <= _WIDTHS[1]]
        return fitting[0] if len(fitting) == 1 else None
    return (0.0, 1.0) if declared.names(model) else None


def _first_step(model, shape):
    """The first layer that changes values."""
    recorder = Recorder(None)
    run(model, ops.convert_to_tensor(np.zeros((1, *shape), "float32")), recorder)
    layers = (layer for layer in recorder.operations.values() if type(layer).__name__ not in (*_PASSING, "Cast"))
    return next(layers, None)
