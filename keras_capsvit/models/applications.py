"""DenseNet of ``keras.applications`` and Swin of keras-hub as models of this package (thesis Fig. 7.9)."""

import keras

from keras_capsvit.models.checks import (
    check_images,
    check_normalization,
    check_positive,
    check_rates,
    check_sizes,
    check_variant,
    choose,
)
from keras_capsvit.models.convnet import IMAGES, LogitModel, normalized, to_logits

DEPTHS = (121, 169, 201)
# Width, depths and heads of the stages.
SIZES = {
    "T": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class DenseNet(LogitModel):
    """Densely connected network of ``keras.applications``, on pixels in [0, 1] (Huang et al. 2017).

    With ImageNet's mean and std it fits the weights that Keras publishes: ``model.load_weights(path)``.

    Args:
        depth: 121, 169 or 201.
        input_shape: ints ``(H, W, C)``, from 32 pixels.
        num_classes: int ``M >= 2``.
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, h, w, c)``, the last feature map; ``logits (b, M)``.

    Raises:
        ValueError: for another depth, smaller images, and other arguments out of range.
    """

    def __init__(
        self,
        depth=121,
        *,
        input_shape=(224, 224, 3),
        num_classes=1000,
        mean=None,
        std=None,
        **kwargs,
    ):
        if not isinstance(depth, int) or depth not in DEPTHS:
            raise ValueError(f"depth must be one of {DEPTHS}; received {depth!r}.")
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=32)
        mean, std = check_normalization(mean, std, input_shape[-1])
        images = keras.Input(input_shape, name="images")
        features = getattr(keras.applications, f"DenseNet{depth}")(
            include_top=False, weights=None, input_tensor=normalized(images, mean, std), input_shape=input_shape
        ).output
        pooled = keras.layers.GlobalAveragePooling2D(**IMAGES, name="avg_pool")(features)
        super().__init__(
            images,
            to_logits(pooled, num_classes, name="predictions"),
            features=features,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_capsvit")
class SwinTransformer(LogitModel):
    """Hierarchical transformer with attention inside shifted windows, that of keras-hub (Liu et al. 2021).

    Args:
        variant: str, size and patch size, ``"T/4"``, ``"S/4"``, ``"B/4"``, ``"L/4"``; any patch size goes with any
            size.
        input_shape: ints ``(H, W, C)``, such that windows tile the patches of every stage.
        num_classes: int ``M >= 2``.
        width: int, dimension of the tokens of the first stage, twice as many in every further one; None for the
            variant's, as are the next two.
        depths: ints, blocks of the stages.
        num_heads: ints, of the stages.
        window_size: int, tokens each way.
        drop_path: float in [0, 1), stochastic depth of the last block; earlier ones have proportionally less.
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, h, w, c)``, the normalised tokens of the last stage; ``logits (b, M)``.

    Raises:
        ImportError: without keras-hub.
        ValueError: for images that windows do not tile, and other arguments out of range.
    """

    def __init__(
        self,
        variant="T/4",
        *,
        input_shape=(224, 224, 3),
        num_classes=1000,
        width=None,
        depths=None,
        num_heads=None,
        window_size=7,
        drop_path=0.0,
        mean=None,
        std=None,
        name="swin",
        **kwargs,
    ):
        input_shape, num_classes = check_images(input_shape, num_classes)
        mean, std = check_normalization(mean, std, input_shape[-1])
        size, patch_size = check_variant(variant, SIZES, input_shape)
        sizes = choose(size, width=width, depths=depths, num_heads=num_heads)
        sizes |= {key: check_sizes(key, sizes[key]) for key in ("depths", "num_heads")}
        check_positive(width=sizes["width"], window_size=window_size)
        check_rates(drop_path=drop_path)
        self.resolve(**sizes)
        grid = _check_windows(input_shape, patch_size, window_size, sizes)
        images = keras.Input(input_shape, name="images")
        backbone = _keras_hub().models.SwinTransformerBackbone(
            image_shape=input_shape,
            embed_dim=sizes["width"],
            depths=sizes["depths"],
            num_heads=sizes["num_heads"],
            window_size=window_size,
            patch_size=patch_size,
            drop_path=drop_path,
            name="backbone",
        )
        tokens = backbone(normalized(images, mean, std))
        pooled = keras.layers.GlobalAveragePooling1D(**IMAGES)(tokens)
        super().__init__(
            images,
            to_logits(pooled, num_classes, name="head"),
            features=keras.layers.Reshape((*grid, tokens.shape[-1]), name="features")(tokens),
            name=name,
            **kwargs,
        )


def _keras_hub():
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError("SwinTransformer is keras-hub's; install it: pip install keras-hub.") from error
    return keras_hub


def _check_windows(input_shape, patch_size, window_size, sizes):
    """Tokens ``(h, w)`` of the last stage; refuses images that windows do not tile, and unequal numbers of stages."""
    stages = len(sizes["depths"])
    if stages != len(sizes["num_heads"]):
        raise ValueError(
            f"depths and num_heads must have one entry per stage; received {sizes['depths']} and {sizes['num_heads']}."
        )
    last = patch_size * 2 ** (stages - 1)
    multiple = last * window_size
    if any(pixels % multiple for pixels in input_shape[:2]):
        raise ValueError(
            f"Windows of {window_size}x{window_size} patches of {patch_size}x{patch_size} tile every one of {stages} "
            f"stages if height and width are multiples of {multiple}; received images of {input_shape[0]}x"
            f"{input_shape[1]}. Resize them, or choose other windows, patches or fewer stages."
        )
    return tuple(pixels // last for pixels in input_shape[:2])
