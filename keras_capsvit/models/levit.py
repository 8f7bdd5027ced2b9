"""LeViT, a vision transformer in stages behind a convolutional stem (Graham et al. 2021)."""

import keras

from keras_capsvit import checks
from keras_capsvit.layers import LeViTBlock
from keras_capsvit.models.checks import (
    check_images,
    check_normalization,
    check_positive,
    check_rates,
    check_sizes,
    check_weights,
    choose,
)
from keras_capsvit.models.convnet import IMAGES, conv_without_bias, normalized, with_batch_norm
from keras_capsvit.models.tempered import TemperedModel, per_block

# Widths, depths and heads of the stages, and the dimension of a key (Graham et al. 2021, Table 2).
SIZES = {
    "128S": ((128, 256, 384), (2, 3, 4), (4, 6, 8), 16),
    "128": ((128, 256, 384), (4, 4, 4), (4, 8, 12), 16),
    "192": ((192, 288, 384), (4, 4, 4), (3, 5, 6), 32),
    "256": ((256, 384, 512), (4, 4, 4), (4, 6, 8), 32),
    "384": ((384, 512, 768), (4, 4, 4), (6, 9, 12), 32),
}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class LeViT(TemperedModel):
    """Vision transformer in stages: four convolutions, blocks of attention and MLPs, attention that shrinks the grid.

    Batch normalisation and hard swish everywhere, keys of fewer dimensions than values, a learned bias of the attention
    for every offset on the grid instead of positions, the mean of the last tokens, and two heads whose mean are the
    logits: the one that was trained on the labels and the one that was trained on a teacher.

    Args:
        variant: str, ``"128S"``, ``"128"``, ``"192"``, ``"256"`` or ``"384"``.
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        widths: ints, dimensions of the tokens of the stages, the first a multiple of 8; None for the variant's, as are
            the next three.
        depths: ints, blocks of the stages, besides the one in front of each further stage that shrinks the grid.
        num_heads: ints, of the stages; those that shrink the grid have as many as keys fit into the tokens before them.
        key_dim: int, dimension of queries and keys of a head.
        distilled: bool, two heads; without, one.
        temperature: float > 0, or one per block, those that shrink the grid included, that attention scores are divided
            by: Smoothed Attention above 1 (thesis Eq. 7.3). Settable at any time: ``model.temperature = 1.5``.
        drop_path: float in [0, 1), how often a residual branch is left out for an image (stochastic depth).
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.
        name: str.
        trainable: bool.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``attention_s_k (b, heads, t, t)`` of block ``k`` of stage ``s``, from 0 on; ``subsampling_s (b, heads, t',
    t)`` of the block in front of stage ``s``; ``features (b, h, w, d)``, the last tokens; ``logits (b, M)``.

    Raises:
        ValueError: for another variant, and other arguments out of range.

    Example::

        model = LeViT("256", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        load_weights_from(model, "levit_256.safetensors")
    """

    def __init__(
        self,
        variant="128S",
        *,
        input_shape=(224, 224, 3),
        num_classes=1000,
        widths=None,
        depths=None,
        num_heads=None,
        key_dim=None,
        distilled=True,
        temperature=1.0,
        drop_path=0.0,
        mean=None,
        std=None,
        name="levit",
        **kwargs,
    ):
        input_shape, num_classes = check_images(input_shape, num_classes)
        mean, std = check_normalization(mean, std, input_shape[-1])
        sizes = SIZES[checks.choice("variant", variant, tuple(SIZES))]
        sizes = choose(sizes, widths=widths, depths=depths, num_heads=num_heads, key_dim=key_dim)
        sizes = _checked(**sizes)
        check_rates(drop_path=drop_path)
        self.resolve(**sizes)
        images = keras.Input(input_shape, name="images")
        stem = _stem(normalized(images, mean, std), sizes["widths"][0])
        tokens = keras.layers.Reshape((-1, stem.shape[-1]), name="tokens")(stem)
        blocks = _blocks(stem.shape[1:3], temperature, drop_path, **sizes)
        # Two views of the same layers, as in VisionTransformer.
        taps, seen = {}, tokens
        for tap, block in blocks.items():
            seen, taps[tap] = block(seen, return_attention_scores=True)
        x = tokens
        for block in blocks.values():
            x = block(x)
        head = _head(num_classes, distilled)
        grid = block.attn.new_grid
        super().__init__(
            images,
            head(x),
            features=keras.layers.Reshape((*grid, sizes["widths"][-1]), name="features")(seen),
            taps={**taps, "logits": head(seen)},
            name=name,
            **kwargs,
        )


def _checked(widths, depths, num_heads, key_dim):
    """The sizes of stages; refuses what is none, unequal numbers of them, and widths that do not divide."""
    widths = check_sizes("widths", widths)
    depths, num_heads = (check_sizes(name, value) for name, value in (("depths", depths), ("num_heads", num_heads)))
    check_positive(key_dim=key_dim)
    if not len(widths) == len(depths) == len(num_heads):
        raise ValueError(
            f"widths, depths and num_heads must have one entry per stage; received {widths}, {depths} and {num_heads}."
        )
    if not widths or widths[0] % 8:
        raise ValueError(f"The first of widths must be a multiple of 8, for the convolutions; received {widths}.")
    if any(width < key_dim for width in widths[:-1]):
        raise ValueError(f"key_dim must not be above any of widths but the last, {widths}; received {key_dim}.")
    return {"widths": widths, "depths": depths, "num_heads": num_heads, "key_dim": int(key_dim)}


def _stem(x, width):
    for index, part in enumerate((8, 4, 2, 1), 1):
        name = f"stem_conv{index}"
        conv = conv_without_bias(x, width // part, 3, strides=2, name=f"{name}_linear")
        x = with_batch_norm(conv, f"{name}_bn")(keras.layers.ZeroPadding2D(1, **IMAGES)(x))
        x = keras.layers.Activation("hard_silu")(x) if part > 1 else x
    return x


def _blocks(grid, temperature, drop_path, widths, depths, num_heads, key_dim):
    """Blocks by the names of their taps."""
    temperatures = iter(per_block(temperature, sum(depths) + len(widths) - 1))
    blocks = {}
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        if stage:
            before, width = widths[stage - 1 : stage + 1]
            block = LeViTBlock(
                before // key_dim,
                key_dim,
                grid,
                strides=2,
                dim=width,
                temperature=next(temperatures),
                drop_path=drop_path,
                name=f"stages_{stage}_downsample",
            )
            grid = block.attn.new_grid
            blocks[f"subsampling_{stage}"] = block
        for index in range(depth):
            blocks[f"attention_{stage}_{index}"] = LeViTBlock(
                heads,
                key_dim,
                grid,
                temperature=next(temperatures),
                drop_path=drop_path,
                name=f"stages_{stage}_blocks_{index}",
            )
    return blocks


def _head(num_classes, distilled):
    """Function from tokens ``(b, t, d)`` to logits ``(b, M)``."""
    names = ["head", "head_dist"] if distilled else ["head"]
    norms = [keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn") for name in names]
    heads = [keras.layers.Dense(num_classes, dtype="float32", name=f"{name}_linear") for name in names]

    def logits(tokens):
        check_weights("the head", (tokens.shape[-1], num_classes))
        pooled = keras.layers.GlobalAveragePooling1D(**IMAGES)(tokens)
        outputs = [head(norm(pooled)) for norm, head in zip(norms, heads, strict=True)]
        return outputs[0] if len(outputs) == 1 else keras.layers.Average(dtype="float32")(outputs)

    return logits
