"""Layers that run on a few images at a time, so that what they make is never there for a whole batch."""

import keras

from keras_capsvit import autodiff, checks


class InChunks(keras.layers.Layer):
    """A function of layers, computed for a few images at a time, and again for the gradient.

    Args:
        function: callable of tensors ``(b, ...)`` → tensor, each row of which depends on the same row only.
        layers: list of the layers in it, which are built.
        size: int >= 1, images at a time.
        output: KerasTensor that the function returns.

    Part of models, which make it anew from their own arguments: it has no configuration.
    """

    def __init__(self, function, layers, size, output, **kwargs):
        super().__init__(**kwargs)
        self.size = checks.positive_int("images_at_once", size)
        self._function, self._parts = function, layers
        self._output = output.shape, output.dtype
        self.built = True

    def call(self, *inputs):
        variables = [variable for layer in self._parts for variable in layer.variables]
        outputs = autodiff.in_chunks(self._function, inputs, self.size, variables)
        return keras.ops.reshape(outputs, (-1, *self._output[0][1:]))  # whose sizes a loop forgets

    def compute_output_spec(self, *inputs):
        shape, dtype = self._output
        return keras.KerasTensor(shape, dtype=dtype)
