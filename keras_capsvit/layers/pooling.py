"""Max pooling that keeps NaN, and average pooling to a size."""

from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats


@keras.saving.register_keras_serializable(package="keras_capsvit")
class MaxPool2D(OfFloats, keras.layers.MaxPooling2D):
    """Max pooling, NaN for an image that has any; TensorFlow's takes NaN for lower than all numbers.

    Arguments, input and output are those of ``keras.layers.MaxPooling2D``.
    """

    axes: ClassVar = {"inputs": "(b, H, W, C)"}

    def call(self, inputs):
        broken = ops.any(ops.isnan(inputs), axis=(1, 2, 3), keepdims=True)
        return ops.where(broken, float("nan"), super().call(inputs))


@keras.saving.register_keras_serializable(package="keras_capsvit")
class AveragePoolTo(OfFloats, keras.layers.Layer):
    """Average pooling to a grid of a given size, PyTorch's adaptive average pooling.

    Cell ``k`` of ``n`` is the mean of the pixels ``floor(k H / n)`` to ``ceil((k + 1) H / n)``, the last one excluded;
    neighbours overlap where ``n`` does not divide ``H``, and where it is larger pixels are repeated.

    Args:
        size: int or pair of ints ``(h, w)``.

    Input shape: ``(b, H, W, C)``. Output shape: ``(b, h, w, C)``.

    Raises:
        ValueError: for sizes that are none, and images of unknown size.
    """

    axes: ClassVar = {"inputs": "(b, H, W, C)"}

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = checks.pair(size, "size", most=checks.LARGEST)

    def build(self, input_shape):
        if None in input_shape[1:]:
            raise ValueError(f"AveragePoolTo needs images of known size; received shape {tuple(input_shape)}.")
        for cells, pixels in zip(self.size, input_shape[1:3], strict=True):
            checks.memory("The weights of average pooling", (cells, pixels), "Take a smaller grid or smaller images.")

    def call(self, inputs):
        _, height, width, channels = inputs.shape
        along_rows, along_columns = (
            ops.cast(_means(cells, pixels), inputs.dtype)
            for cells, pixels in zip(self.size, (height, width), strict=True)
        )
        x = ops.matmul(along_rows, ops.reshape(inputs, (-1, height, width * channels)))
        x = ops.matmul(along_columns, ops.reshape(x, (-1, width, channels)))
        return ops.reshape(x, (-1, *self.size, channels))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.size, input_shape[-1])


def _means(cells, pixels):
    """Matrix ``(cells, pixels)`` whose rows average the pixels of a cell."""
    cell, pixel = np.arange(cells)[:, None], np.arange(pixels)
    inside = (pixel >= cell * pixels // cells) & (pixel * cells < (cell + 1) * pixels)
    return (inside / inside.sum(axis=1, keepdims=True)).astype("float32")
