"""Max pooling that keeps NaN."""

from typing import ClassVar

import keras
from keras import ops

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
