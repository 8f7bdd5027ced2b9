"""What residual networks are made of: convolutions with their normalisations, blocks and shortcuts."""

import math

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers import MaxPool2D, StandardizedConv2D
from keras_capsvit.layers.base import ConfiguredLayer
from keras_capsvit.models.convnet import IMAGES, conv_without_bias, with_batch_norm

NORMS = ("batch", "group")


@keras.saving.register_keras_serializable(package="keras_capsvit")
class PadChannels(ConfiguredLayer, keras.layers.Layer):
    """Shortcut without parameters to a smaller map of more channels (option A of He et al. 2016, 3.3).

    Keeps every ``strides``-th pixel and puts zero channels around the channels, half of them (rounded down) in front.

    Args:
        filters: int, channels of the result.
        strides: int.

    Input shape: ``(b, H, W, c)``. Output shape: ``(b, ceil(H / strides), ceil(W / strides), filters)``.
    """

    def __init__(self, filters, *, strides=2, **kwargs):
        super().__init__(**kwargs)
        self.filters = checks.positive_int("filters", filters)
        self.strides = checks.positive_int("strides", strides)

    def call(self, inputs):
        missing = self.filters - inputs.shape[-1]
        channels = (missing // 2, missing - missing // 2)
        return ops.pad(inputs[:, :: self.strides, :: self.strides], ((0, 0), (0, 0), (0, 0), channels))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *(math.ceil(size / self.strides) for size in input_shape[1:3]), self.filters)


# Layers are called as in published weights, with underscores for dots: `weights` finds them by these names.


class Layers:
    """Convolutions and normalisations of one network.

    Args:
        norm: ``"batch"`` or ``"group"``.
        weight_standardization: bool.
    """

    def __init__(self, norm="batch", weight_standardization=False):
        checks.choice("norm", norm, NORMS)
        self.group = norm == "group"
        self.conv2d = StandardizedConv2D if weight_standardization else keras.layers.Conv2D

    def conv(self, x, filters, kernel_size, *, strides=1, name, norm):
        """A convolution called ``name`` and its normalisation called ``norm``."""
        if strides > 1 and kernel_size > 1:
            # With strides, "same" would pad even sizes at the far side only; these networks pad both sides.
            x = keras.layers.ZeroPadding2D(kernel_size // 2, **IMAGES)(x)
        conv = conv_without_bias(x, filters, kernel_size, strides=strides, name=name, kind=self.conv2d)
        if not self.group:
            return with_batch_norm(conv, norm)(x)
        return keras.layers.GroupNormalization(math.gcd(32, filters), epsilon=1e-5, name=norm)(conv(x))

    def stem(self, x, filters, kind):
        large = kind == "7x7"
        x = self.conv(x, filters, 7 if large else 3, strides=2 if large else 1, name="conv1", norm="bn1")
        x = keras.layers.ReLU()(x)
        if not large:
            return x
        # Zeros around what is not negative are as good as minus infinity.
        return MaxPool2D(3, strides=2, **IMAGES)(keras.layers.ZeroPadding2D(1, **IMAGES)(x))

    def stages(self, x, widths, depths, block, *, project):
        for stage, (filters, depth) in enumerate(zip(widths, depths, strict=True), 1):
            for index in range(depth):
                strides = 2 if stage > 1 and index == 0 else 1
                name = f"layer{stage}_{index}"
                y = block(self, x, filters, strides, name)
                if project and (strides > 1 or x.shape[-1] != filters):
                    shortcut = f"{name}_shortcut"
                    # Not a convolution with strides: the gradient of some of 1x1 corrupts memory when the batch changes
                    # size, in oneDNN of TensorFlow 2.21.
                    x = x if strides == 1 else x[:, ::strides, ::strides]
                    x = self.conv(x, filters, 1, name=f"{shortcut}_0", norm=f"{shortcut}_1")
                elif strides > 1:
                    x = PadChannels(filters, strides=strides, name=f"{name}_shortcut")(x)
                x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
        return x


def basic_block(layers, x, filters, strides, name):
    x = keras.layers.ReLU()(layers.conv(x, filters, 3, strides=strides, name=f"{name}_conv1", norm=f"{name}_bn1"))
    return layers.conv(x, filters, 3, name=f"{name}_conv2", norm=f"{name}_bn2")


def bottleneck_block(layers, x, filters, strides, name):
    inner = filters // 4
    x = keras.layers.ReLU()(layers.conv(x, inner, 1, name=f"{name}_conv1", norm=f"{name}_bn1"))
    x = keras.layers.ReLU()(layers.conv(x, inner, 3, strides=strides, name=f"{name}_conv2", norm=f"{name}_bn2"))
    return layers.conv(x, filters, 1, name=f"{name}_conv3", norm=f"{name}_bn3")
