"""What patch attacks return, and how far pixels may change."""

import dataclasses

import numpy as np

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
