"""Where an attack by gradient steps stands, and what it keeps of the images on its way."""

import typing

import numpy as np
from keras import ops

from keras_capsvit.attacks.borders import fools
from keras_capsvit.attacks.norms import select


class State(typing.NamedTuple):
    """Where a gradient attack stands, arrays.

    Args:
        images: ``(b, H, W, C)``, where the next step begins.
        momentum: ``(b, H, W, C)``.
        best: ``(b, H, W, C)``, of all images before, those that are kept.
        loss: ``(b,)``, their loss (targeted: its negative).
        fooled: bools ``(b,)``, whether they fool the objective.
    """

    images: np.ndarray
    momentum: np.ndarray
    best: np.ndarray
    loss: np.ndarray
    fooled: np.ndarray


def better_of(images, losses, scores, y, sign, best, loss, fooled):
    """The better of images and the best so far: what fools, then what has the higher loss; a loss of NaN stays."""
    losses, fooling = sign * losses, fools(scores, y, sign)
    better = ops.where(ops.equal(fooling, fooled), losses > loss, fooling)
    return (
        select(better, images, best),
        ops.where(ops.logical_or(ops.isnan(losses), ops.isnan(loss)), float("nan"), ops.where(better, losses, loss)),
        ops.logical_or(fooling, fooled),
    )
