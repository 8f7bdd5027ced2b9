"""What patch attacks return, and what they share: how far pixels may change, and who is fooled in the end."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit.attacks.examine import NOT_FINITE
from keras_capsvit.patches import apply_patch


@dataclasses.dataclass(frozen=True)
class PatchResult:
    """What a patch attack found.

    Args:
        images: adversarial images ``(b, H, W, C)``, float32.
        patches: ``(b, n, h, w, C)``, those of each image; of a universal attack ``(n, h, w, C)``, those of all.
            ``patches.apply_patch`` puts them anywhere.
        positions: ints ``(b, n, 2)``, the pixel (top, left) of each.
        fooled: bools ``(b,)``, whether the objective is fooled (targeted: gives the wanted class).
        iterations: ints ``(b,)``, gradient steps taken.
    """

    images: np.ndarray
    patches: np.ndarray
    positions: np.ndarray
    fooled: np.ndarray
    iterations: np.ndarray


def pixel_limits(x, positions, patch_size, limits, epsilon):
    """Lowest and highest values of the pixels ``(b, H, W, C)``: where no patch lies, those they have.

    Args:
        x: images ``(b, H, W, C)``.
        positions: ints ``(b, n, 2)``.
        patch_size: ints ``(h, w)``.
        limits: lowest and highest pixel, numbers or ``(C,)``.
        epsilon: float, largest change of a pixel; None for any within the limits.
    """
    inside = apply_patch(np.zeros((*x.shape[:3], 1), bool), np.ones((*patch_size, 1), bool), positions)
    low, high = limits
    if epsilon is not None:
        low, high = np.maximum(low, x - epsilon), np.minimum(high, x + epsilon)
    return np.where(inside, low, x).astype("float32"), np.where(inside, high, x).astype("float32")


def judged(objective, x, y, sign):
    """Whether images fool the objective, whose scores have to be finite; bools ``(b,)``."""
    scores = ops.convert_to_numpy(objective.compiled("scores", lambda objective: objective.__call__)(x))
    if not np.isfinite(scores).all():
        raise ValueError(NOT_FINITE)
    return (scores.argmax(axis=-1) == ops.convert_to_numpy(y)) == (sign < 0)
