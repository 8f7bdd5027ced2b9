"""Residual networks (He et al. 2016)."""

import math
from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers import MaxPool2D, StandardizedConv2D
from keras_capsvit.models.checks import check_images, check_normalization, check_positive, check_weights
from keras_capsvit.models.convnet import IMAGES, LogitModel, normalized, to_logits, with_batch_norm

HEADS = ("avg", "fc")
STEMS = ("3x3", "7x7")
NORMS = ("batch", "group")
DEPTHS = (20, 32, 44, 56, 110)
# Of networks for ImageNet, in each stage: basic ones, and from 50 layers on bottlenecks.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


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
        self.filters = checks.positive_int("filters", filters)
        self.strides = checks.positive_int("strides", strides)

    def call(self, inputs):
        missing = self.filters - inputs.shape[-1]
        channels = (missing // 2, missing - missing // 2)
        return ops.pad(inputs[:, :: self.strides, :: self.strides], ((0, 0), (0, 0), (0, 0), channels))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *(math.ceil(size / self.strides) for size in input_shape[1:3]), self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet(LogitModel):
    """Residual network for 32x32 images, with shortcuts without parameters (He et al. 2016, 4.2).

    A 3x3 convolution, then three stages of ``(depth - 2) / 6`` basic blocks. With 20 layers, also called ``ResNet20``,
    it is the backbone of thesis Table 3.2. Networks for larger images are ``ResNet18`` to ``ResNet152``.

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        depth: 20, 32, 44, 56 or 110 layers.
        head: ``"avg"``, global average pooling and a dense layer; or ``"fc"``, a 3x3 convolution to eight times the
            channels, batch normalisation, ReLU, and a dense layer on all of it (Hahn et al. 2019).
        filters: int, channels of the first stage; the others have twice and four times as many.
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.
        name: str; None for ``resnet`` and the depth.
        trainable: bool.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, ceil(H / 4), ceil(W / 4), 64)``, ``logits (b, M)``.

    Raises:
        ValueError: for another depth, and other arguments out of range.

    Example::

        model = ResNet((32, 32, 3), 10, depth=56, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        load_weights_from(model, "resnet56_cifar10.safetensors")
    """

    def __init__(
        self,
        input_shape,
        num_classes,
        *,
        depth=20,
        head="avg",
        filters=16,
        mean=None,
        std=None,
        name=None,
        **kwargs,
    ):
        check_positive(filters=filters)
        input_shape, num_classes = check_images(input_shape, num_classes)
        mean, std = check_normalization(mean, std, input_shape[-1])
        if not isinstance(depth, int) or depth not in DEPTHS:
            raise ValueError(
                f"depth must be one of {DEPTHS}; received {depth!r}. Networks of {', '.join(map(str, BLOCKS))} layers "
                "are the classes ResNet18 to ResNet152."
            )
        checks.choice("head", head, HEADS)
        images = keras.Input(input_shape, name="images")
        layers = _Layers()
        x = layers.stem(normalized(images, mean, std), filters, "3x3")
        blocks = 3 * ((depth - 2) // 6,)
        features = layers.stages(x, [filters, 2 * filters, 4 * filters], blocks, _basic_block, project=False)
        if head == "avg":
            x = keras.layers.GlobalAveragePooling2D(**IMAGES)(features)
        else:
            x = keras.layers.ReLU()(layers.conv(features, 32 * filters, 3, name="head_conv", norm="head_bn"))
            x = keras.layers.Flatten(**IMAGES)(x)
        super().__init__(images, to_logits(x, num_classes), features=features, name=name or f"resnet{depth}", **kwargs)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet20(ResNet):
    """Residual network of 20 layers for 32x32 images: ``ResNet`` with ``depth=20``.

    Images ``(b, H, W, C)`` → logits ``(b, M)``; other arguments and taps are those of ``ResNet``.
    """

    fixed: ClassVar = {"depth": 20}


class _ImageNetResNet(LogitModel):
    """Four stages of blocks with projections as shortcuts, global average pooling and a linear head; see subclasses."""

    def __init__(
        self,
        input_shape=(224, 224, 3),
        num_classes=1000,
        *,
        depth,
        filters=64,
        stem="7x7",
        norm="batch",
        weight_standardization=False,
        mean=None,
        std=None,
        **kwargs,
    ):
        check_positive(filters=filters)
        input_shape, num_classes = check_images(input_shape, num_classes)
        mean, std = check_normalization(mean, std, input_shape[-1])
        checks.choice("stem", stem, STEMS)
        images = keras.Input(input_shape, name="images")
        layers = _Layers(norm, weight_standardization)
        x = layers.stem(normalized(images, mean, std), filters, stem)
        block, expansion = (_basic_block, 1) if depth < 50 else (_bottleneck_block, 4)
        widths = [expansion * factor * filters for factor in (1, 2, 4, 8)]
        features = layers.stages(x, widths, BLOCKS[depth], block, project=True)
        logits = to_logits(keras.layers.GlobalAveragePooling2D(**IMAGES)(features), num_classes)
        super().__init__(images, logits, features=features, **kwargs)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet18(_ImageNetResNet):
    """Residual network of 18 layers (He et al. 2016), for small images or, with ``stem="7x7"``, for ImageNet's.

    Four stages of two basic blocks, 1x1 convolutions as shortcuts between stages, global average pooling. The
    network and the backbone of thesis chapter 6, and with the stem of ImageNet that of chapter 7.

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        stem: ``"3x3"``, a convolution and no max pool; or ``"7x7"``, strides of 2 and a max pool, to a quarter.
        **kwargs: other arguments of ``ResNet34``.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, ceil(H / 8), ceil(W / 8), 512)``, with the larger stem a quarter of that; ``logits (b, M)``.

    Raises:
        ValueError: for arguments out of range.
    """

    fixed: ClassVar = {"depth": 18}

    def __init__(self, input_shape, num_classes, *, stem="3x3", **kwargs):
        super().__init__(input_shape, num_classes, stem=stem, **self.fixed, **kwargs)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet34(_ImageNetResNet):
    """Residual network of 34 layers (He et al. 2016), for ImageNet's images or, with ``stem="3x3"``, for small ones.

    Four stages of 3, 4, 6 and 3 basic blocks, 1x1 convolutions as shortcuts between stages, global average pooling.

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        filters: int, channels of the first stage; the others have 2, 4 and 8 times as many.
        stem: ``"7x7"``, strides of 2 and a max pool, to a quarter; or ``"3x3"``, a convolution and no max pool.
        norm: ``"batch"``, or ``"group"``, group normalisation with up to 32 groups (thesis 7.A).
        weight_standardization: bool, kernels of all convolutions are standardised (thesis 7.A).
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.
        name: str; None for the name of the class in lower case.
        trainable: bool.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, ceil(H / 32), ceil(W / 32), 512)``, with the smaller stem four times that; ``logits (b, M)``.

    Raises:
        ValueError: for arguments out of range.
    """

    fixed: ClassVar = {"depth": 34}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet50(_ImageNetResNet):
    """Residual network of 50 layers (He et al. 2016), for ImageNet's images or, with ``stem="3x3"``, for small ones.

    Four stages of 3, 4, 6 and 3 bottleneck blocks, whose 3x3 convolution has the strides (as in timm, torchvision and
    Hugging Face's "v1.5"). Blocks return four times the channels that they have inside; ``filters`` is the number
    inside those of the first stage.

    Arguments and call are those of ``ResNet34``; so are the taps, but ``features`` have 2048 channels.

    Example::

        model = ResNet50((224, 224, 3), 1000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        load_weights_from(model, "resnet50.safetensors")
    """

    fixed: ClassVar = {"depth": 50}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet101(_ImageNetResNet):
    """Residual network of 101 layers (He et al. 2016): ``ResNet50`` with 3, 4, 23 and 3 blocks."""

    fixed: ClassVar = {"depth": 101}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ResNet152(_ImageNetResNet):
    """Residual network of 152 layers (He et al. 2016): ``ResNet50`` with 3, 8, 36 and 3 blocks."""

    fixed: ClassVar = {"depth": 152}


# Layers are called as in published weights, with underscores for dots: `weights` finds them by these names.


class _Layers:
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
        check_weights(name, (kernel_size, kernel_size, x.shape[-1], filters))
        if strides > 1 and kernel_size > 1:
            # With strides, "same" would pad even sizes at the far side only; these networks pad both sides.
            x = keras.layers.ZeroPadding2D(kernel_size // 2, **IMAGES)(x)
        conv = self.conv2d(
            filters,
            kernel_size,
            strides=strides,
            padding="same" if strides == 1 else "valid",
            use_bias=False,
            kernel_initializer="he_normal",
            name=name,
            **IMAGES,
        )
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


def _basic_block(layers, x, filters, strides, name):
    x = keras.layers.ReLU()(layers.conv(x, filters, 3, strides=strides, name=f"{name}_conv1", norm=f"{name}_bn1"))
    return layers.conv(x, filters, 3, name=f"{name}_conv2", norm=f"{name}_bn2")


def _bottleneck_block(layers, x, filters, strides, name):
    inner = filters // 4
    x = keras.layers.ReLU()(layers.conv(x, inner, 1, name=f"{name}_conv1", norm=f"{name}_bn1"))
    x = keras.layers.ReLU()(layers.conv(x, inner, 3, strides=strides, name=f"{name}_conv2", norm=f"{name}_bn2"))
    return layers.conv(x, filters, 1, name=f"{name}_conv3", norm=f"{name}_bn3")
