"""AlexNet (Krizhevsky 2014)."""

import keras

from keras_capsvit.layers import AveragePoolTo, MaxPool2D
from keras_capsvit.models.checks import check_images, check_normalization, check_positive, check_rates, check_weights
from keras_capsvit.models.convnet import IMAGES, LogitModel, normalized, to_logits

# Channels as multiples of 64, size of the kernel, strides, and whether a max pool follows.
CONVOLUTIONS = ((1, 11, 4, True), (3, 5, 1, True), (6, 3, 1, False), (4, 3, 1, False), (4, 3, 1, True))
GRID = (6, 6)  # of what the first dense layer reads


@keras.saving.register_keras_serializable(package="keras_capsvit")
class AlexNet(LogitModel):
    """Five convolutions with three max pools, and three dense layers, in one column (Krizhevsky 2014).

    The network of torchvision, whose weights it fits: 64, 192, 384, 256 and 256 channels, no local response
    normalisation; feature maps of other images than 224x224 are averaged to 6x6.

    Args:
        input_shape: ints ``(H, W, C)``, from 63 pixels.
        num_classes: int ``M >= 2``.
        filters: int, channels of the first convolution; the others have 3, 6, 4 and 4 times as many.
        units: int, width of both hidden dense layers.
        dropout: float in [0, 1), before each of them.
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.
        name: str; None for ``alexnet``.
        trainable: bool.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, h, w, 256)``, behind the last max pool; ``logits (b, M)``.

    Raises:
        ValueError: for smaller images, and other arguments out of range.

    Example::

        model = AlexNet(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        load_weights_from(model, "alexnet.safetensors")
    """

    def __init__(
        self,
        input_shape=(224, 224, 3),
        num_classes=1000,
        *,
        filters=64,
        units=4096,
        dropout=0.5,
        mean=None,
        std=None,
        **kwargs,
    ):
        check_positive(filters=filters, units=units)
        filters, units = int(filters), int(units)  # also of NumPy, which Keras refuses
        check_rates(dropout=dropout)
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=63)
        mean, std = check_normalization(mean, std, input_shape[-1])
        images = keras.Input(input_shape, name="images")
        features = _features(normalized(images, mean, std), filters)
        grid = features if features.shape[1:3] == GRID else AveragePoolTo(GRID, name="avgpool")(features)
        # Published weights count the channels of all pixels before the pixels.
        x = keras.layers.Flatten(**IMAGES)(keras.layers.Permute((3, 1, 2))(grid))
        for index in (1, 4):
            name = f"classifier_{index}"
            check_weights(name, (x.shape[-1], units))
            x = keras.layers.Dropout(dropout, name=f"classifier_{index - 1}")(x)
            x = keras.layers.Dense(units, activation="relu", kernel_initializer="he_normal", name=name)(x)
        super().__init__(images, to_logits(x, num_classes, name="classifier_6"), features=features, **kwargs)


def _features(x, filters):
    index = 0  # as in published weights, where convolution, ReLU and max pool have one each
    for factor, kernel_size, strides, pooled in CONVOLUTIONS:
        name = f"features_{index}"
        check_weights(name, (kernel_size, kernel_size, x.shape[-1], factor * filters))
        if strides > 1:
            x = keras.layers.ZeroPadding2D(2, **IMAGES)(x)
        x = keras.layers.Conv2D(
            factor * filters,
            kernel_size,
            strides=strides,
            padding="same" if strides == 1 else "valid",
            activation="relu",
            kernel_initializer="he_normal",
            name=name,
            **IMAGES,
        )(x)
        x = MaxPool2D(3, strides=2, **IMAGES)(x) if pooled else x
        index += 3 if pooled else 2
    return x
