"""Ablations of images, of which only a column or a block stays: which there are, and how many a patch can touch."""

import dataclasses
import math

import numpy as np

from keras_capsvit import checks


@dataclasses.dataclass(frozen=True)
class Ablations:
    """Every ablation of an image: what stays begins at every ``stride``-th pixel, and goes round the border.

    Args:
        image_shape: ints ``(H, W)``.
        size: int from 1, pixels that stay: the width of a column as high as the image, or the side of a block.
        kind: one of checks.ABLATIONS.
        stride: int from 1 to ``size`` or the image's side, pixels between the beginnings.

    Raises:
        ValueError: for a size that the image does not have, and other settings that are none.
    """

    image_shape: tuple
    size: int
    kind: str = "column"
    stride: int = 1

    def __post_init__(self):
        checks.choice("ablation", self.kind, checks.ABLATIONS)
        sides = self.image_shape if self.kind == "block" else self.image_shape[1:]
        checks.integer("size", self.size, 1, min(sides))
        checks.integer("stride", self.stride, 1, min(sides))

    @property
    def axes(self):
        """What stays of the rows and of the columns, two lists of bools ``(k, length)``: an ablation is one of each."""
        height, width = self.image_shape
        whole = np.ones((1, height), bool)
        return (self._windows(height) if self.kind == "block" else whole), self._windows(width)

    def __len__(self):
        return math.prod(map(len, self.axes))

    def visible(self, indices):
        """What stays in some of the ablations, by their indices ``(k,)``: bools ``(k, H, W, 1)``."""
        rows, columns = self.axes
        row, column = np.divmod(indices, len(columns))
        return (rows[row][:, :, None] & columns[column][:, None])[..., None]

    def affected(self, patch_size):
        """In how many ablations at most any of a patch of ``(h, w)`` is visible, wherever it lies; an int.

        With stride 1 these are ``m + s - 1`` columns, and ``(m + s - 1)^2`` blocks, if the image has that many.
        """
        return math.prod(_most(windows, size) for windows, size in zip(self.axes, patch_size, strict=True))

    def _windows(self, length):
        starts = np.arange(0, length, self.stride)
        return (np.arange(length) - starts[:, None]) % length < self.size


def _most(windows, size):
    """How many of windows ``(k, length)`` at most have any of ``size`` neighbours inside."""
    return int(np.lib.stride_tricks.sliding_window_view(windows, size, axis=1).any(axis=-1).sum(axis=0).max())
