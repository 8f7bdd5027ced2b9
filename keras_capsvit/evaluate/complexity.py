"""How few pixels hold the relevance of a map."""

import numpy as np

from keras_capsvit.checks import image_maps


def sparseness(maps) -> np.ndarray:
    """Gini index of the magnitudes of maps (Chalasani et al. 2020; Hurley and Rickard 2009).

    Of n magnitudes in ascending order it is ``1 - 2 sum_k v_k / sum(v) (n - k + 1/2) / n``, k from 1: 0 of a map whose
    values have equal magnitudes, such as one of zeros, and ``1 - 1/n`` of one with a single value other than 0. High
    values are those of concise explanations.

    Args:
        maps: relevance ``(b, H, W)``; magnitudes count.

    Returns:
        NumPy array ``(b,)`` in [0, 1).

    Raises:
        ValueError: for maps of another rank, or not finite.
    """
    ordered = np.sort(_parts(maps), axis=1)
    count = ordered.shape[1]
    return (1 - 2 * ordered @ ((count - np.arange(count) - 0.5) / count)).clip(min=0)  # but for rounding


def complexity(maps) -> np.ndarray:
    """Entropy of the share that each pixel has in a map (Bhatt et al. 2020), in nats.

    ``-sum_i p_i ln p_i`` with ``p_i = |v_i| / sum |v|``: 0 of a map with a single value other than 0, and ``ln n`` of
    one whose n values have equal magnitudes, such as one of zeros. Low values are those of concise explanations.

    Args:
        maps: relevance ``(b, H, W)``; magnitudes count.

    Returns:
        NumPy array ``(b,)``, from 0 to ``ln(H W)``.

    Raises:
        ValueError: for maps of another rank, or not finite.
    """
    parts = _parts(maps)
    return -np.sum(parts * np.log(np.where(parts > 0, parts, 1)), axis=1)


def _parts(maps):
    """Shares of the magnitudes ``(b, H * W)``, which sum to 1; equal ones of a map of zeros."""
    sizes = np.abs(image_maps(maps)).astype("float64")
    sizes = sizes.reshape(len(sizes), -1)
    sizes = np.where(sizes.any(axis=1, keepdims=True), sizes, 1)
    return sizes / sizes.sum(axis=1, keepdims=True)
