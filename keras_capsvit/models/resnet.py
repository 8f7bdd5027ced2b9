"""Residual networks for small images (He et al. 2016)."""

import math

import keras
import numpy as np
from keras import ops

from keras_capsvit.models.checks import check_images, check_positive
from keras_capsvit.models.convnet import IMAGES, LogitModel, normalized, to_logits

HEADS = ("avg", "fc")


@keras.saving.register_keras_serializable(package="keras_capsvit")
class PadChannels(keras.layers.Layer):
    """Shortcut without parameters to a smaller map of more channels (option A of He et al. 2016, 3.3).

    Keeps every ``strides``-th pixel and puts zero channels around the channels, half of them (rounded down) in front.

    Args:
        filters: int, channels of the result.
        strides: int.

    Input shape: ``(b, H, W, c)``. Output shape: ``(b, ceil(H / strides), ceil(W / strides), filters)``.
    """

    def __init__(self, filters, *, strides=2, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides

    def call(self, inputs):
        missing = self.filters - inputs.shape[-1]
        channels = (missing // 2, missing - missing // 2)
        return ops.pad(inputs[:, :: self.strides, :: self.strides], ((0, 0), (0, 0), (0, 0), channels))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *(math.ceil(size / self.strides) for size in input_shape[1:3]), self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet20(LogitModel):
    """Residual network of 20 layers for 32x32 images, with shortcuts without parameters (He et al. 2016, 4.2).

    A 3x3 convolution, then three stages of three basic blocks. The backbone of thesis Table 3.2.

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        head: ``"avg"``, global average pooling and a dense layer; or ``"fc"``, a 3x3 convolution to eight times the
            channels, batch normalisation, ReLU, and a dense layer on all of it (Hahn et al. 2019).
        filters: int, channels of the first stage; the others have twice and four times as many.
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, ceil(H / 4), ceil(W / 4), 64)``, ``logits (b, M)``.

    Raises:
        ValueError: for arguments out of range.

    Example::

        model = ResNet20((32, 32, 3), 10, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        load_weights(model, "resnet20_cifar10.npz")
    """

    def __init__(
        self,
        input_shape,
        num_classes,
        *,
        head="avg",
        filters=16,
        mean=None,
        std=None,
        name="resnet20",
        **kwargs,
    ):
        input_shape = tuple(input_shape)
        mean, std = (value if value is None else tuple(np.ravel(value).tolist()) for value in (mean, std))
        check_positive(filters=filters)
        check_images(input_shape, num_classes)
        _check_normalization(mean, std, input_shape[-1])
        if head not in HEADS:
            raise ValueError(f"head must be one of {HEADS}; received {head!r}.")
        images = keras.Input(input_shape, name="images")
        x = images
        if mean is not None:
            variance = [one**2 for one in std]
            x = keras.layers.Normalization(mean=mean, variance=variance, name="normalization")(x)
        features = _stages(x, [filters, 2 * filters, 4 * filters], depth=3, project=False)
        if head == "avg":
            x = keras.layers.GlobalAveragePooling2D(**IMAGES)(features)
        else:
            x = keras.layers.ReLU()(_conv(32 * filters, 3, name="head_conv", norm="head_bn")(features))
            x = keras.layers.Flatten(**IMAGES)(x)
        super().__init__(
            images,
            to_logits(x, num_classes),
            features=features,
            config={
                "input_shape": input_shape,
                "num_classes": num_classes,
                "head": head,
                "filters": filters,
                "mean": mean,
                "std": std,
            },
            name=name,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet18(LogitModel):
    """Residual network of 18 layers in its form for 32x32 images: a 3x3 stem and no max pool (He et al. 2016).

    Four stages of two basic blocks, 1x1 convolutions as shortcuts between stages, global average pooling. The
    network and the backbone of thesis chapter 6.

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        filters: int, channels of the first stage; the others have 2, 4 and 8 times as many.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, ceil(H / 8), ceil(W / 8), 512)``, ``logits (b, M)``.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(self, input_shape, num_classes, *, filters=64, name="resnet18", **kwargs):
        input_shape = tuple(input_shape)
        check_positive(filters=filters)
        check_images(input_shape, num_classes)
        images = keras.Input(input_shape, name="images")
        features = _stages(images, [filters, 2 * filters, 4 * filters, 8 * filters], depth=2, project=True)
        x = keras.layers.GlobalAveragePooling2D(**IMAGES)(features)
        super().__init__(
            images,
            to_logits(x, num_classes),
            features=features,
            config={"input_shape": input_shape, "num_classes": num_classes, "filters": filters},
            name=name,
            **kwargs,
        )


# Layers are called as in published weights, with underscores for dots: `weights` finds them by these names.


def _stages(x, widths, *, depth, project):
    x = keras.layers.ReLU()(_conv(widths[0], 3, name="conv1", norm="bn1")(x))
    for stage, filters in enumerate(widths, 1):
        for block in range(depth):
            strides = 2 if stage > 1 and block == 0 else 1
            x = _basic_block(x, filters, strides, project, f"layer{stage}_{block}")
    return x


def _basic_block(x, filters, strides, project, name):
    y = keras.layers.ReLU()(_conv(filters, 3, strides=strides, name=f"{name}_conv1", norm=f"{name}_bn1")(x))
    y = _conv(filters, 3, name=f"{name}_conv2", norm=f"{name}_bn2")(y)
    if strides > 1 and project:
        x = _conv(filters, 1, strides=strides, name=f"{name}_shortcut_0", norm=f"{name}_shortcut_1")(x)
    elif strides > 1:
        x = PadChannels(filters, strides=strides, name=f"{name}_shortcut")(x)
    return keras.layers.ReLU()(keras.layers.Add()([x, y]))


def _conv(filters, kernel_size, *, strides=1, name, norm):
    """Convolution called ``name`` and its batch normalisation called ``norm``."""
    conv = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same" if strides == 1 else "valid",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
        **IMAGES,
    )
    conv = normalized(conv, norm)
    if strides == 1 or kernel_size == 1:
        return conv
    # With strides, "same" would pad even sizes at the far side only; these networks pad both sides.
    pad = keras.layers.ZeroPadding2D(kernel_size // 2, **IMAGES)
    return lambda x: conv(pad(x))


def _check_normalization(mean, std, channels):
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std are given together or not at all; received mean={mean}, std={std}.")
    if mean is None:
        return
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"Expected {channels} values each, one per channel; received mean={mean}, std={std}.")
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"Expected finite means and positive std; received mean={mean}, std={std}.")
