"""GoogLeNet (Szegedy et al. 2015)."""

import keras

from keras_capsvit.layers import MaxPool2D
from keras_capsvit.models.checks import check_images, check_normalization, check_positive, check_rates
from keras_capsvit.models.convnet import IMAGES, LogitModel, conv_without_bias, normalized, to_logits, with_batch_norm

# Channels of the branches: 1x1; 1x1 and 3x3; 1x1 and 3x3, which is 5x5 in the paper; 1x1 behind a max pool (Table 1).
# A number is the size of a max pool of stride 2.
BLOCKS = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "pool3": 3,
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "pool4": 2,
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class GoogLeNet(LogitModel):
    """Three convolutions and nine Inception blocks of four branches, average pooling, a linear head, no auxiliary ones.

    The network of torchvision, whose weights it fits. It differs from the paper (Szegedy et al. 2015, Table 1): batch
    normalisation behind every convolution, no local response normalisation, 3x3 convolutions in the branch of the 5x5
    ones, and a max pool of 2x2 as the fourth. Max pools round sizes up. torchvision's pretrained weights are for
    ``transform_input=True``, which takes pixels that were normalised for ImageNet to [-1, 1]: with them ``mean`` and
    ``std`` are 0.5.

    Args:
        input_shape: ints ``(H, W, C)``, from 15 pixels.
        num_classes: int ``M >= 2``.
        filters: int, channels of the first convolution, 64 in the paper; all others are in proportion, rounded down,
            at least 1.
        dropout: float in [0, 1), of what the head reads.
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.
        name: str; None for ``googlenet``.
        trainable: bool.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, h, w, 1024)``, 7x7 of 224x224 pixels; ``logits (b, M)``.

    Raises:
        ValueError: for smaller images, and other arguments out of range.

    Example::

        model = GoogLeNet(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        load_weights_from(model, "googlenet.safetensors", skip="aux*")
    """

    def __init__(
        self,
        input_shape=(224, 224, 3),
        num_classes=1000,
        *,
        filters=64,
        dropout=0.2,
        mean=None,
        std=None,
        **kwargs,
    ):
        check_positive(filters=filters)
        check_rates(dropout=dropout)
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=15)
        mean, std = check_normalization(mean, std, input_shape[-1])
        images = keras.Input(input_shape, name="images")
        features = _features(normalized(images, mean, std), lambda channels: max(1, channels * filters // 64))
        pooled = keras.layers.GlobalAveragePooling2D(**IMAGES)(features)
        pooled = keras.layers.Dropout(dropout, name="dropout")(pooled)
        super().__init__(images, to_logits(pooled, num_classes), features=features, **kwargs)


def _features(x, width):
    x = keras.layers.ZeroPadding2D(3, **IMAGES)(x)
    x = _max_pool(_conv(x, width(64), 7, "conv1", strides=2), 3)
    x = _conv(x, width(64), 1, "conv2")
    x = _max_pool(_conv(x, width(192), 3, "conv3"), 3)
    for name, block in BLOCKS.items():
        x = _max_pool(x, block) if isinstance(block, int) else _inception(x, block, width, f"inception{name}")
    return x


def _inception(x, channels, width, name):
    branch1, (reduced3, branch2), (reduced5, branch3), branch4 = channels
    pooled = MaxPool2D(3, strides=1, padding="same", **IMAGES)(x)
    branches = [
        _conv(x, width(branch1), 1, f"{name}_branch1"),
        _conv(_conv(x, width(reduced3), 1, f"{name}_branch2_0"), width(branch2), 3, f"{name}_branch2_1"),
        _conv(_conv(x, width(reduced5), 1, f"{name}_branch3_0"), width(branch3), 3, f"{name}_branch3_1"),
        _conv(pooled, width(branch4), 1, f"{name}_branch4_1"),
    ]
    return keras.layers.Concatenate(name=name)(branches)


def _conv(x, filters, kernel_size, name, *, strides=1):
    conv = conv_without_bias(x, filters, kernel_size, strides=strides, name=f"{name}_conv")
    return keras.layers.ReLU()(with_batch_norm(conv, f"{name}_bn", epsilon=1e-3)(x))


def _max_pool(x, size):
    """Max pooling with strides of 2, of as many windows as begin inside."""
    beyond = [(0, (pixels - size) % 2) for pixels in x.shape[1:3]]
    # Zeros beside what is not negative are as good as minus infinity.
    return MaxPool2D(size, strides=2, **IMAGES)(keras.layers.ZeroPadding2D(beyond, **IMAGES)(x))
