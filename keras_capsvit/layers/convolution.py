"""Convolutions with a normalisation: of the result, in one layer, or of the kernel."""

from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats


@keras.saving.register_keras_serializable(package="keras_capsvit")
class NormalizedConv2D(OfFloats, keras.layers.Layer):
    """A convolution followed by batch normalisation, in evaluation as one convolution.

    While training, the two layers one after the other. Otherwise the normalisation is affine and goes into the kernel
    and the bias: with ``s = gamma / sqrt(variance + epsilon)``, ``conv(x, kernel s) + (bias - mean) s + beta``. That
    saves two passes over the activations, and one over their gradients, in every prediction, attack and explanation.

    Args:
        conv: keras.layers.Conv2D without activation.
        norm: keras.layers.BatchNormalization of the channels.

    Input and output shape: those of ``conv``.

    Raises:
        ValueError: for other layers, and a convolution with an activation.

    Example::

        NormalizedConv2D(keras.layers.Conv2D(16, 3, use_bias=False), keras.layers.BatchNormalization())
    """

    axes: ClassVar = {"inputs": "(b, H, W, C)"}

    def __init__(self, conv, norm, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = (
            keras.saving.deserialize_keras_object(part) if isinstance(part, dict) else part for part in (conv, norm)
        )
        kinds = (("conv", self.conv, keras.layers.Conv2D), ("norm", self.norm, keras.layers.BatchNormalization))
        for name, layer, kind in kinds:
            if not isinstance(layer, kind):
                raise ValueError(f"{name} must be a keras.layers.{kind.__name__}; received {type(layer).__name__}.")
        if self.conv.activation is not keras.activations.linear:
            raise ValueError(
                "Normalisation follows the convolution directly: expected a convolution without activation; received "
                f"activation={keras.activations.serialize(self.conv.activation)!r}."
            )

    def build(self, input_shape):
        # Read from a file they are built already.
        for layer, shape in ((self.conv, input_shape), (self.norm, self.compute_output_shape(input_shape))):
            if not layer.built:
                layer.build(shape)

    def call(self, inputs, training=False):
        conv, norm = self.conv, self.norm
        # A kernel that is standardised loses the scale again.
        if (training and norm.trainable) or isinstance(conv, StandardizedConv2D):
            return norm(conv(inputs), training=training)
        # In float32 whatever the precision, as Keras normalises.
        scale = ops.rsqrt(ops.cast(norm.moving_variance, "float32") + norm.epsilon)
        if norm.scale:
            scale = scale * ops.cast(norm.gamma, "float32")
        bias = -ops.cast(norm.moving_mean, "float32") * scale
        if norm.center:
            bias = bias + ops.cast(norm.beta, "float32")
        if conv.use_bias:
            bias = bias + ops.cast(conv.bias, "float32") * scale
        kernel = ops.cast(ops.cast(conv.kernel, "float32") * scale, self.compute_dtype)
        bias = ops.reshape(bias, (-1,) + (1, 1) * (conv.data_format == "channels_first"))
        return conv.convolution_op(inputs, kernel) + ops.cast(bias, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return self.conv.compute_output_shape(input_shape)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class StandardizedConv2D(OfFloats, keras.layers.Conv2D):
    """Convolution whose kernel has mean 0 and variance 1 for every output channel (Qiao et al. 2019; thesis 7.A).

    Arguments, input and output are those of ``keras.layers.Conv2D``.
    """

    axes: ClassVar = {"inputs": "(b, H, W, C)"}

    def __init__(self, filters, kernel_size, **kwargs):
        super().__init__(checks.positive_int("filters", filters), kernel_size, **kwargs)

    def convolution_op(self, inputs, kernel):
        kernel = ops.convert_to_tensor(kernel)
        mean, variance = ops.moments(kernel, axes=(0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, (kernel - mean) * ops.rsqrt(variance + 1e-6))
