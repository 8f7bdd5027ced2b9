"""What replaces pixels of images that are perturbed."""

import warnings

import numpy as np
from scipy import ndimage

from keras_capsvit import checks

FILLS = ("random", "black", "mean", "blur")
_BLUR = 5.0  # pixels, as in RISE


def filling(fill, x, bounds=(0.0, 1.0), seed=0):
    """Values that replace pixels.

    Args:
        fill: one of FILLS, a float, or an array that broadcasts to ``x``; see ``aopc``.
        x: images ``(b, H, W, C)``.
        bounds: pair, see ``checks.bounds``.
        seed: int, of random values.

    Returns:
        float32 array of the shape of ``x``.

    Raises:
        ValueError: for anything else. Pixels outside of bounds that matter are warned of.
    """
    checks.limits(bounds, x.shape[-1])
    if not isinstance(fill, str):
        return broadcast(fill, x, "fill")
    if fill not in FILLS:
        raise ValueError(f"fill must be one of {FILLS}, a float or an array; received {fill!r:.60}.")
    if fill == "mean":
        return np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)
    if fill == "blur":
        return ndimage.gaussian_filter(x, (0, _BLUR, _BLUR, 0), mode="nearest")
    low, high = limits_of(x, bounds, stacklevel=4)
    if fill == "black":
        return np.broadcast_to(low, x.shape)
    return np.random.default_rng(seed).uniform(low, high, x.shape).astype("float32")


def limits_of(x, bounds, stacklevel=3):
    """Lowest and highest pixel, see ``checks.limits``; warns of pixels outside."""
    if not checks.within(x, bounds):
        warnings.warn(
            f"What is drawn or filled in is that of pixels within bounds={bounds}, but pixels lie in [{x.min()}, "
            f"{x.max()}]; give the bounds that images have.",
            stacklevel=stacklevel,
        )
    return checks.limits(bounds, x.shape[-1])


def broadcast(values, x, name):
    """Finite values that broadcast to images, as a float32 array of their shape; the message calls them ``name``."""
    values = checks.finite(checks.numbers(values, name).astype("float32"), name)
    try:
        return np.broadcast_to(values, x.shape)
    except ValueError:
        raise ValueError(f"Expected {name} that broadcasts to images {x.shape}; received {values.shape}.") from None
