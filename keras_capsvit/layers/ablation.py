"""Ablations at random, which models are trained on whose predictions are to be certified."""

from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats


@keras.saving.register_keras_serializable(package="keras_capsvit")
class Ablation(OfFloats, keras.layers.Layer):
    """In training, leaves a column or a block of each image, at random, and fills the rest (Levine & Feizi 2020).

    Put in front of a model that ``evaluate.certified_patch_accuracy`` smooths, which ablates by itself, as outside of
    training images pass as they are.

    Args:
        size: int, pixels that stay: the width of a column, or the side of a block; it may go round the border.
        kind: ``"column"`` or ``"block"``.
        fill: float, what is not visible.
        seed: int from 0 to 2^31 - 1, or None.

    Input and output shape: ``(b, H, W, C)``.

    Raises:
        ValueError: for settings out of range, and images smaller than what is to stay.

    Example::

        model = keras.Sequential([keras.Input((32, 32, 3)), layers.Ablation(4), backbone])
    """

    axes: ClassVar = {"images": "(b, H, W, C)"}

    def __init__(self, size, *, kind="column", fill=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.size = checks.positive_int("size", size, checks.LARGEST)
        self.kind = checks.choice("kind", kind, checks.ABLATIONS)
        self.fill = float(checks.number("fill", fill))
        self.seed = seed if seed is None else checks.integer("seed", seed, 0, 2**31 - 1)
        self._generator = keras.random.SeedGenerator(self.seed)

    def build(self, input_shape):
        sides = input_shape[1:3] if self.kind == "block" else input_shape[2:3]
        if any(side is None or side < self.size for side in sides):
            raise ValueError(
                f"Expected images of known sides of at least size={self.size} pixels; received shape "
                f"{tuple(input_shape)}."
            )

    def call(self, images, training=False):
        if not training:
            return images
        visible = self._window(images, axis=2)
        if self.kind == "block":
            visible = ops.logical_and(visible, self._window(images, axis=1))
        return ops.where(visible, images, ops.cast(self.fill, images.dtype))

    def _window(self, images, axis):
        """Which positions along an axis stay, bools that broadcast to the images."""
        length = images.shape[axis]
        start = keras.random.randint((ops.shape(images)[0], 1, 1, 1), 0, length, seed=self._generator)
        places = ops.reshape(ops.arange(length, dtype="int32"), [length if k == axis else 1 for k in range(4)])
        return ops.mod(places - ops.cast(start, "int32"), length) < self.size

    def compute_output_shape(self, input_shape):
        return input_shape
