"""Convolutional networks without skip connections, and what all models that return logits share."""

import keras

from keras_capsvit import checks
from keras_capsvit.layers import MaxPool2D, NormalizedConv2D
from keras_capsvit.models.base import ConfiguredModel
from keras_capsvit.models.checks import check_images, check_positive, check_sizes, check_weights

IMAGES = {"data_format": "channels_last"}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class LogitModel(ConfiguredModel):
    """Functional model from images ``(b, H, W, C)`` to float32 logits ``(b, M)``; see its subclasses.

    Args:
        inputs: KerasTensor ``(b, H, W, C)``.
        logits: KerasTensor ``(b, M)``.
        features: KerasTensor ``(b, h, w, c)``, the last feature map.
        taps: dict from names to KerasTensors, further taps, or others under the same names.
        name: str; None for the name of the class in lower case.
        trainable: bool.

    Taps: ``features (b, h, w, c)``, ``logits (b, M)``.
    """

    def __init__(self, inputs, logits, features, taps=(), **kwargs):
        super().__init__(inputs, logits, **kwargs)
        self.taps = {"features": features, "logits": logits, **dict(taps)}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ConvNetFC(LogitModel):
    """Three convolutions and three fully connected layers, the ConvNet that capsule networks are compared with.

    ``Conv(256, k, 1) Conv(256, k, 1) Conv(128, k, 1) FC328 FC192 FC(M)``, ReLU, no padding, no pooling (thesis
    chapter 5; Sabour et al. 2017, 4). With ``kernel_size=9`` and fewer ``units`` it is the large-kernel variant
    ConvNet-FC(LK), for which the thesis gives no widths.

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        kernel_size: int ``k`` of all convolutions.
        filters: ints, channels of the convolutions.
        units: ints, widths of the hidden fully connected layers.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, h, w, 128)``, ``logits (b, M)``.

    Raises:
        ValueError: for an input too small for the convolutions, and other arguments out of range.
    """

    def __init__(
        self,
        input_shape,
        num_classes,
        *,
        kernel_size=5,
        filters=(256, 256, 128),
        units=(328, 192),
        name="convnet_fc",
        **kwargs,
    ):
        filters, units = check_sizes("filters", filters), check_sizes("units", units)
        checks.positive_int("kernel_size", kernel_size, checks.LARGEST)
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=len(filters) * (kernel_size - 1) + 1)
        images = keras.Input(input_shape, name="images")
        features = images
        for index, channels in enumerate(filters, 1):
            features = _conv(features, channels, kernel_size, name=f"conv{index}")
        x = keras.layers.Flatten(**IMAGES)(features)
        for index, width in enumerate(units, 1):
            check_weights(f"fc{index}", (x.shape[-1], width))
            x = keras.layers.Dense(width, activation="relu", kernel_initializer="he_normal", name=f"fc{index}")(x)
        super().__init__(
            images,
            to_logits(x, num_classes),
            features=features,
            name=name,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ConvNetAvg(LogitModel):
    """The two convolutions of CapsNet, global average pooling, one fully connected layer (thesis chapter 5).

    ``Conv(256, k, 1) Conv(256, k, 2) GlobalAvgPool FC(M)``, ReLU, no padding.

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        kernel_size: int ``k`` of both convolutions.
        filters: int, channels of both convolutions.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, h, w, 256)``, ``logits (b, M)``.

    Raises:
        ValueError: for an input too small for the convolutions, and other arguments out of range.
    """

    def __init__(self, input_shape, num_classes, *, kernel_size=9, filters=256, name="convnet_avg", **kwargs):
        checks.positive_int("kernel_size", kernel_size, checks.LARGEST)
        check_positive(filters=filters)
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=2 * kernel_size - 1)
        images = keras.Input(input_shape, name="images")
        features = _conv(images, filters, kernel_size, name="conv1")
        features = _conv(features, filters, kernel_size, strides=2, name="conv2")
        super().__init__(
            images,
            to_logits(keras.layers.GlobalAveragePooling2D(**IMAGES)(features), num_classes),
            features=features,
            name=name,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_capsvit")
class VGG19(LogitModel):
    """VGG19 for small images: sixteen 3x3 convolutions with batch normalisation, five max pools, one dense layer.

    The configuration E of Simonyan & Zisserman (2015) with the fully connected layers of ImageNet replaced by one,
    as is usual for 32x32 images; larger feature maps than 1x1 are averaged.

    Args:
        input_shape: ints ``(H, W, C)``, at least 32x32.
        num_classes: int ``M >= 2``.
        filters: int, channels of the first stage; the others have 2, 4, 8, and 8 times as many.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, H // 32, W // 32, 512)``, ``logits (b, M)``.

    Raises:
        ValueError: for images smaller than 32x32, and other arguments out of range.
    """

    def __init__(self, input_shape, num_classes, *, filters=64, **kwargs):
        check_positive(filters=filters)
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=32)
        images = keras.Input(input_shape, name="images")
        features, index = images, 0
        for factor, depth in ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4)):
            for _ in range(depth):
                check_weights(f"features_{index}", (3, 3, features.shape[-1], factor * filters))
                # Counted as in published weights, where convolution, normalisation and ReLU have an index each.
                conv = keras.layers.Conv2D(
                    factor * filters,
                    3,
                    padding="same",
                    kernel_initializer="he_normal",
                    name=f"features_{index}",
                    **IMAGES,
                )
                features = keras.layers.ReLU()(with_batch_norm(conv, f"features_{index + 1}")(features))
                index += 3
            features = MaxPool2D(2, **IMAGES)(features)
            index += 1
        x = keras.layers.GlobalAveragePooling2D(**IMAGES)(features)
        super().__init__(
            images,
            to_logits(x, num_classes, name="classifier"),
            features=features,
            **kwargs,
        )


def _conv(x, filters, kernel_size, *, strides=1, name):
    check_weights(name, (kernel_size, kernel_size, x.shape[-1], filters))
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        activation="relu",
        kernel_initializer="he_normal",
        name=name,
        **IMAGES,
    )(x)


def normalized(images, mean, std):
    """Images minus ``mean`` by ``std``, floats per channel; as they are where those are None."""
    if mean is None:
        return images
    return keras.layers.Normalization(mean=mean, variance=[deviation**2 for deviation in std], name="normalization")(
        images
    )


def conv_without_bias(x, filters, kernel_size, *, strides=1, name, kind=keras.layers.Conv2D):
    """Convolution layer for ``x`` that a normalisation follows; with strides it pads nothing, so ``x`` has to be."""
    check_weights(name, (kernel_size, kernel_size, x.shape[-1], filters))
    return kind(
        filters,
        kernel_size,
        strides=strides,
        padding="same" if strides == 1 else "valid",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
        **IMAGES,
    )


def with_batch_norm(conv, name, *, epsilon=1e-5):
    """Layer ``conv``, then batch normalisation, called ``name``, with the constants that published weights assume."""
    norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=name)
    return NormalizedConv2D(conv, norm, name=f"{conv.name}_normalized")


def to_logits(x, num_classes, *, name="linear"):
    """Logits ``(b, M)`` of a vector per image; float32 under any precision, as losses and attacks need them."""
    check_weights(name, (x.shape[-1], num_classes))
    return keras.layers.Dense(num_classes, dtype="float32", name=name)(x)
