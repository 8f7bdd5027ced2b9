"""Images to tokens: patches, learned positions, class and distillation tokens."""

import math
from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats

INTERPOLATIONS = ("bicubic", "bilinear")


def resize_positions(positions, grid, new_grid, *, interpolation="bicubic"):
    """Positions learned on one grid of patches, interpolated to another; those of prefix tokens stay.

    Bicubic with antialiasing, timm's choice, is the same as without where the grid grows.

    Args:
        positions: tensor or array ``(prefix + h w, d)``.
        grid: pair of ints ``(h, w)``.
        new_grid: pair of ints ``(h', w')``.
        interpolation: ``"bicubic"`` or ``"bilinear"``.

    Returns:
        Tensor ``(prefix + h' w', d)``.

    Raises:
        ValueError: for fewer positions than the grid has patches, other shapes, and another interpolation.
    """
    positions = checks.tensor("positions", positions, "(prefix + h w, d)")
    grid, new_grid = checks.pair(grid, "grid"), checks.pair(new_grid, "new_grid")
    checks.choice("interpolation", interpolation, INTERPOLATIONS)
    count, dim = positions.shape
    prefix = count - math.prod(grid)
    if prefix < 0:
        raise ValueError(f"Expected at least {math.prod(grid)} positions for a grid of {grid}; received {count}.")
    if grid == new_grid:
        return positions
    patches = ops.reshape(positions[prefix:], (1, *grid, dim))
    patches = ops.image.resize(
        patches, new_grid, interpolation=interpolation, antialias=True, data_format="channels_last"
    )
    return ops.concatenate([positions[:prefix], ops.reshape(patches, (-1, dim))], axis=0)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class PatchEmbedding(OfFloats, keras.layers.Layer):
    """Images cut into patches, each mapped linearly to a token; learned positions; tokens of its own in front.

    Args:
        patch_size: int ``p``.
        dim: int ``d``, of the tokens.
        class_token: bool, a learned token in front.
        distillation_token: bool, another behind it (DeiT).
        positions: bool, a learned vector per token is added to it.
        interpolation: ``"bicubic"`` or ``"bilinear"``, how positions are made for images of another size than the
            layer was built with.

    Input shape: ``(b, H, W, C)``, multiples of ``p``. Output shape: ``(b, prefix + H / p * W / p, d)``.

    Raises:
        ValueError: for images that patches do not tile, settings out of range, and weights that do not fit into this
            machine's memory.
    """

    axes: ClassVar = {"images": "(b, H, W, C)"}
    kept_in: ClassVar = {
        "class_token": "has_class_token",
        "distillation_token": "has_distillation_token",
        "positions": "has_positions",
    }

    def __init__(
        self,
        patch_size,
        dim,
        *,
        class_token=True,
        distillation_token=False,
        positions=True,
        interpolation="bicubic",
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.choice("interpolation", interpolation, INTERPOLATIONS)
        self.patch_size = checks.positive_int("patch_size", patch_size)
        self.dim = checks.positive_int("dim", dim)
        checks.booleans(class_token=class_token, distillation_token=distillation_token, positions=positions)
        self.has_class_token = class_token
        self.has_distillation_token = distillation_token
        self.has_positions = positions
        self.interpolation = interpolation
        self.num_prefix_tokens = int(class_token) + int(distillation_token)

    def build(self, input_shape):
        self.grid = self._grid(input_shape)
        small = keras.initializers.TruncatedNormal(stddev=0.02)
        shape = (self.patch_size, self.patch_size, input_shape[-1], self.dim)
        checks.memory("The embedding of patches", shape, "Take smaller patches or tokens of a smaller dimension.")
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="lecun_normal")
        self.bias = self.add_weight(name="bias", shape=(self.dim,), initializer="zeros")
        names = [name for name in ("class_token", "distillation_token") if getattr(self, f"has_{name}")]
        self.tokens = [self.add_weight(name=name, shape=(1, 1, self.dim), initializer=small) for name in names]
        count = len(names) + math.prod(self.grid)
        if self.has_positions:
            self.positions = self.add_weight(name="positions", shape=(count, self.dim), initializer=small)

    def _grid(self, shape):
        size, sizes = self.patch_size, tuple(shape[1:3])
        if len(shape) != 4 or None in sizes or any(pixels % size for pixels in sizes) or 0 in sizes:
            raise ValueError(
                f"Expected images (batch, height, width, channels) of known sizes that are multiples of the patch size "
                f"{size}; received shape {tuple(shape)}. Resize or pad them, or choose another patch size."
            )
        return tuple(pixels // size for pixels in sizes)

    def call(self, images):
        grid, size = self._grid(images.shape), self.patch_size
        # A matrix product: the input gradient of a convolution with such strides takes eight times as long on a CPU.
        patches = ops.reshape(images, (-1, grid[0], size, grid[1], size * images.shape[-1]))
        patches = ops.reshape(ops.transpose(patches, (0, 1, 3, 2, 4)), (-1, math.prod(grid), self._inputs()))
        x = ops.matmul(patches, ops.reshape(self.kernel, (self._inputs(), self.dim))) + self.bias
        if self.tokens:
            shape = (ops.shape(x)[0], 1, self.dim)
            front = [ops.broadcast_to(ops.cast(token, x.dtype), shape) for token in self.tokens]
            x = ops.concatenate([*front, x], axis=1)
        if not self.has_positions:
            return x
        positions = resize_positions(self.positions, self.grid, grid, interpolation=self.interpolation)
        return x + ops.cast(positions, x.dtype)

    def _inputs(self):
        return math.prod(self.kernel.shape[:3])

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_prefix_tokens + math.prod(self._grid(input_shape)), self.dim)
