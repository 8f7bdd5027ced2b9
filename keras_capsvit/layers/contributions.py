"""What the nodes of a grid contribute to class capsules: the explanation that capsule networks have built in."""

import math
from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats
from keras_capsvit.ops import contributions


@keras.saving.register_keras_serializable(package="keras_capsvit")
class NodeContributions(OfFloats, keras.layers.Layer):
    """Shares of the nodes of a grid in the lengths of class capsules, all types together (see ``ops.contributions``).

    Args:
        grid: ints ``(h, w, l)``, rows, columns and types of the input capsules.
        mean: bool, class capsules are means over the types instead of sums.

    Call arguments:
        weights: tensor ``(b, h, w, l, M)``, attention, or couplings.
        votes: tensor ``(b, h w l, M, e)``, or ``(b, h w l, 1, e)``, the same vote for all classes.
        lengths: tensor ``(b, M)``, what contributions are to add up to; None for the lengths of the weighted sums.
        activations: tensor ``(b, h w l)`` that weights are multiplied by; None for 1.

    Returns:
        float32 tensor ``(b, h, w, M)``, signed.

    Raises:
        ValueError: for weights of another grid, and shapes that do not fit each other.
    """

    axes: ClassVar = {
        "weights": "(b, h, w, l, M)",
        "votes": "(b, i, M, e)",
        "lengths": "(b, M)",
        "activations": "(b, i)",
    }
    optional: ClassVar = ("lengths", "activations")

    def __init__(self, grid, *, mean=False, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(grid, tuple | list) or len(grid) != 3:
            raise ValueError(f"grid must be three positive ints, rows, columns and types; received {grid!r:.60}.")
        self.grid = tuple(checks.positive_int("grid", size, checks.LARGEST) for size in grid)
        checks.booleans(mean=mean)
        self.mean = mean

    def call(self, weights, votes, lengths=None, activations=None):
        if tuple(weights.shape[1:4]) != self.grid:
            raise ValueError(f"Expected weights of a grid {self.grid}; received shape {tuple(weights.shape)}.")
        classes = weights.shape[-1]
        weights = ops.cast(ops.reshape(weights, (-1, math.prod(self.grid), classes)), "float32")
        if activations is not None:
            if activations.shape[1] != weights.shape[1]:
                raise ValueError(f"Expected {weights.shape[1]} activations; received shape {tuple(activations.shape)}.")
            weights = weights * ops.cast(activations, "float32")[..., None]
        if self.mean:
            weights = weights / self.grid[-1]
        return ops.sum(ops.reshape(contributions(weights, votes, lengths), (-1, *self.grid, classes)), axis=3)

    def compute_output_spec(self, weights, *_, **__):
        return keras.KerasTensor((weights.shape[0], *self.grid[:2], weights.shape[-1]), dtype="float32")
