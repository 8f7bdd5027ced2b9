"""Vision transformers (Dosovitskiy et al. 2021; thesis chapter 7)."""

import math
import types

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers import PatchEmbedding, TransformerBlock
from keras_capsvit.models.checks import (
    check_images,
    check_normalization,
    check_positive,
    check_rates,
    check_variant,
    check_weights,
    choose,
)
from keras_capsvit.models.convnet import IMAGES, normalized
from keras_capsvit.models.tempered import TemperedModel, per_block

# Width, depth, heads; MLPs are four times as wide.
SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}
POOLS = ("token", "avg")


@keras.saving.register_keras_serializable(package="keras_capsvit")
class VisionTransformer(TemperedModel):
    """Vision transformer: tokens of patches, pre-norm blocks of self-attention and MLPs, a linear head.

    Args:
        variant: str, size and patch size, ``"Ti/16"``, ``"S/16"``, ``"B/16"``, ``"B/32"``, ``"L/16"``, ``"H/14"``; any
            patch size goes with any size.
        input_shape: ints ``(H, W, C)``, multiples of the patch size.
        num_classes: int ``M >= 2``.
        width: int, dimension of the tokens; None for the variant's, as are the next three.
        depth: int, blocks.
        num_heads: int, divides the width.
        mlp_units: int, hidden width of the MLPs; None for four times the width.
        pool: ``"token"``, the head reads the class token; or ``"avg"``, the mean of the patches, without such a token.
        distilled: bool, a distillation token with a head of its own; logits are the mean of both heads.
        temperature: float > 0, or one per block, that attention scores are divided by: Smoothed Attention above 1
            (thesis Eq. 7.3). Settable at any time: ``model.temperature = 1.5``.
        dropout: float in [0, 1), of tokens and inside the blocks.
        drop_path: float in [0, 1), stochastic depth of the last block; earlier ones have proportionally less.
        epsilon: float > 0, of the layer normalisations: 1e-6 in timm, 1e-12 in Hugging Face's.
        mean: floats, one per channel, subtracted from the pixels; None for pixels as they are.
        std: floats > 0, one per channel, that pixels are divided by; given together with ``mean``.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``attention_0`` to ``attention_{depth - 1} (b, heads, t, t)``, class and distillation token first;
    ``features (b, H / p, W / p, width)``, the normalised patch tokens; ``logits (b, M)``.

    Raises:
        ValueError: for images that patches do not tile, and other arguments out of range.

    Example::

        model = VisionTransformer("S/16", mean=(0.5,) * 3, std=(0.5,) * 3)
        load_weights_from(model, "vit_small_patch16_224.safetensors")
    """

    def __init__(
        self,
        variant="S/16",
        *,
        input_shape=(224, 224, 3),
        num_classes=1000,
        width=None,
        depth=None,
        num_heads=None,
        mlp_units=None,
        pool="token",
        distilled=False,
        temperature=1.0,
        dropout=0.0,
        drop_path=0.0,
        epsilon=1e-6,
        mean=None,
        std=None,
        name="vit",
        **kwargs,
    ):
        input_shape, num_classes = check_images(input_shape, num_classes)
        mean, std = check_normalization(mean, std, input_shape[-1])
        size, patch_size = check_variant(variant, SIZES, input_shape)
        sizes = choose(size, width=width, depth=depth, num_heads=num_heads)
        check_positive(**sizes)
        sizes["mlp_units"] = 4 * sizes["width"] if mlp_units is None else mlp_units
        check_positive(mlp_units=sizes["mlp_units"])
        check_rates(dropout=dropout, drop_path=drop_path)
        checks.number("epsilon", epsilon, 0, without=(0,))
        self.resolve(**sizes)
        if checks.choice("pool", pool, POOLS) != "token" and distilled:
            raise ValueError(f"pool must be 'token' if distilled; received {pool!r}.")
        images = keras.Input(input_shape, name="images")
        embedding = PatchEmbedding(
            patch_size,
            sizes["width"],
            class_token=pool == "token",
            distillation_token=distilled,
            name="patch_embed",
        )
        tokens = embedding(normalized(images, mean, std))
        if dropout:
            tokens = keras.layers.Dropout(dropout, name="dropout")(tokens)
        blocks = _blocks(sizes, temperature, dropout, drop_path, epsilon)
        norm = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")
        head = _Head(num_classes, distilled, embedding, norm)
        # Two views of the same layers: the taps, and the model itself, which holds no attention in memory. Keras counts
        # a layer's outputs in its first call, hence this order.
        taps, seen = {}, tokens
        for index, block in enumerate(blocks):
            seen, taps[f"attention_{index}"] = block(seen, return_attention_scores=True)
        x = tokens
        for block in blocks:
            x = block(x)
        super().__init__(
            images,
            head.logits(x),
            features=head.features(seen),
            taps={**taps, "logits": head.logits(seen)},
            name=name,
            **kwargs,
        )
        # Held where Keras does not find it, which would track the layers twice.
        self._parts = types.SimpleNamespace(embedded=keras.Model(images, embedding.output), blocks=blocks, head=head)

    def logits_of_tokens(self, images, tokens):
        """Logits of images of which only some patches are there: the other tokens are left out (Salman et al. 2022).

        Args:
            images: tensor ``(b, H, W, C)``.
            tokens: ints ``(b, k)``, which patches, counted in rows from 0; class and distillation token stay. Of
                arrays it is checked that there are such.

        Returns:
            float32 tensor ``(b, M)``, as in inference.

        Raises:
            ValueError: for tokens that there are not.
        """
        if isinstance(tokens, np.ndarray | list):
            tokens = checks.integers("tokens", tokens, (None, None), "(b, k)")
            last = math.prod(self._parts.head.grid.target_shape[:2]) - 1
            if tokens.size and tokens.max() > last:
                raise ValueError(f"tokens must be integers from 0 to {last}; received {tokens.max()}.")
        head, x = self._parts.head, self._parts.embedded(images, training=False)
        patches = ops.take_along_axis(x[:, head.prefix :], tokens[..., None], axis=1)
        x = ops.concatenate([x[:, : head.prefix], patches], axis=1)
        for block in self._parts.blocks:
            x = block(x, training=False)
        return head.logits(x)


class _Head:
    """What is read from the tokens ``(b, t, d)`` of the last block."""

    def __init__(self, num_classes, distilled, embedding, norm):
        self.prefix, self.norm = embedding.num_prefix_tokens, norm
        names = ["head", "head_dist"] if distilled else ["head"]
        check_weights("the head", (embedding.dim, num_classes))
        self.heads = [keras.layers.Dense(num_classes, dtype="float32", name=name) for name in names]
        self.grid = keras.layers.Reshape((*embedding.grid, embedding.dim), name="features")

    def logits(self, tokens):
        """``(b, M)``."""
        if not self.prefix:
            return self.heads[0](keras.layers.GlobalAveragePooling1D(**IMAGES)(self.norm(tokens)))
        prefix = self.norm(tokens[:, : self.prefix])
        logits = [head(prefix[:, index]) for index, head in enumerate(self.heads)]
        return logits[0] if len(logits) == 1 else keras.layers.Average(dtype="float32")(logits)

    def features(self, tokens):
        """``(b, h, w, d)``, without class and distillation token."""
        return self.grid(self.norm(tokens)[:, self.prefix :])


def _blocks(sizes, temperature, dropout, drop_path, epsilon):
    depth = sizes["depth"]
    return [
        TransformerBlock(
            sizes["num_heads"],
            sizes["mlp_units"],
            temperature=block_temperature,
            dropout=dropout,
            drop_path=drop_path * index / max(depth - 1, 1),
            epsilon=epsilon,
            name=f"blocks_{index}",
        )
        for index, block_temperature in enumerate(per_block(temperature, depth))
    ]


@keras.saving.register_keras_serializable(package="keras_capsvit")
class DeiT(VisionTransformer):
    """Data-efficient image transformer, with or without a distillation token (Touvron et al. 2021).

    Without it is a ``VisionTransformer``, which is how the thesis uses it. With ImageNet's mean and std it fits the
    published weights.

    Args:
        variant: str, size and patch size, such as ``"Ti/16"`` or ``"S/16"``.
        distilled: bool, a distillation token with a head of its own; logits are the mean of both heads.
        name: str.
        **kwargs: arguments of ``VisionTransformer``.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: those of ``VisionTransformer``.

    Raises:
        ValueError: see ``VisionTransformer``.
    """

    def __init__(self, variant="Ti/16", *, distilled=False, name="deit", **kwargs):
        super().__init__(variant, distilled=distilled, name=name, **kwargs)
