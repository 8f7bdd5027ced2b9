"""Residual networks (He et al. 2016)."""

from typing import ClassVar

import keras

from keras_capsvit import checks
from keras_capsvit.models.checks import check_images, check_normalization, check_positive
from keras_capsvit.models.convnet import IMAGES, LogitModel, normalized, to_logits
from keras_capsvit.models.residual import Layers, basic_block, bottleneck_block

HEADS = ("avg", "fc")
STEMS = ("3x3", "7x7")
DEPTHS = (20, 32, 44, 56, 110)
# Of networks for ImageNet, in each stage: basic ones, and from 50 layers on bottlenecks.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


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
        layers = Layers()
        x = layers.stem(normalized(images, mean, std), filters, "3x3")
        blocks = 3 * ((depth - 2) // 6,)
        features = layers.stages(x, [filters, 2 * filters, 4 * filters], blocks, basic_block, project=False)
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
        layers = Layers(norm, weight_standardization)
        x = layers.stem(normalized(images, mean, std), filters, stem)
        block, expansion = (basic_block, 1) if depth < 50 else (bottleneck_block, 4)
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
