"""MLP-Mixer (Tolstikhin et al. 2021), the patches of a vision transformer without attention (thesis 7.7)."""

import keras

from keras_capsvit.layers import MixerBlock, PatchEmbedding
from keras_capsvit.models.checks import (
    check_images,
    check_normalization,
    check_positive,
    check_rates,
    check_variant,
    choose,
)
from keras_capsvit.models.convnet import IMAGES, LogitModel, normalized, to_logits

# Width, depth, hidden widths across tokens and per token.
SIZES = {"S": (512, 8, 256, 2048), "B": (768, 12, 384, 3072), "L": (1024, 24, 512, 4096)}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class MLPMixer(LogitModel):
    """Patches to tokens, blocks of MLPs across tokens and per token, the mean of the tokens, a linear head.

    Args:
        variant: str, size and patch size, ``"S/16"``, ``"B/16"``, ``"L/16"``; any patch size goes with any size.
        input_shape: ints ``(H, W, C)``, multiples of the patch size.
        num_classes: int ``M >= 2``.
        width: int, dimension of the tokens; None for the variant's, as are the next three.
        depth: int, blocks.
        token_units: int, hidden width of the MLPs across tokens.
        channel_units: int, hidden width of the MLPs per token.
        dropout: float in [0, 1), inside the blocks.
        drop_path: float in [0, 1), stochastic depth of the last block; earlier ones have proportionally less.
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, H / p, W / p, width)``, the normalised tokens; ``logits (b, M)``.

    Raises:
        ValueError: for images that patches do not tile, and other arguments out of range.
    """

    def __init__(
        self,
        variant="S/16",
        *,
        input_shape=(224, 224, 3),
        num_classes=1000,
        width=None,
        depth=None,
        token_units=None,
        channel_units=None,
        dropout=0.0,
        drop_path=0.0,
        mean=None,
        std=None,
        name="mixer",
        **kwargs,
    ):
        input_shape, num_classes = check_images(input_shape, num_classes)
        mean, std = check_normalization(mean, std, input_shape[-1])
        size, patch_size = check_variant(variant, SIZES, input_shape)
        sizes = choose(size, width=width, depth=depth, token_units=token_units, channel_units=channel_units)
        check_positive(**sizes)
        check_rates(dropout=dropout, drop_path=drop_path)
        self.resolve(**sizes)
        images = keras.Input(input_shape, name="images")
        stem = PatchEmbedding(patch_size, sizes["width"], class_token=False, positions=False, name="stem")
        x = stem(normalized(images, mean, std))
        for index in range(sizes["depth"]):
            x = MixerBlock(
                sizes["token_units"],
                sizes["channel_units"],
                dropout=dropout,
                drop_path=drop_path * index / max(sizes["depth"] - 1, 1),
                name=f"blocks_{index}",
            )(x)
        x = keras.layers.LayerNormalization(epsilon=1e-6, name="norm")(x)
        pooled = keras.layers.GlobalAveragePooling1D(**IMAGES)(x)
        super().__init__(
            images,
            to_logits(pooled, num_classes, name="head"),
            features=keras.layers.Reshape((*stem.grid, sizes["width"]), name="features")(x),
            name=name,
            **kwargs,
        )
