"""Images, the range of their pixels, their size, and maps of them, or an error in our words."""

import contextlib

import numpy as np

from keras_capsvit.checks.arrays import finite_array

TOLERANCE = 1e-6  # of the range of pixels, by which rounding may put a pixel outside
_LIBRARIES = ("tensorflow", "jax", "numpy")


class NoGradientError(ValueError):
    """An attack could not change any image, because the gradient of all that are not fooled is exactly zero."""


def images(x, *, bounds=None, empty=True):
    """Images ``(b, H, W, C)`` as a finite float32 array.

    Args:
        x: array, tensor or nested lists.
        bounds: pair, see ``bounds``, that pixels have to lie within; what rounding put outside is put right. None for
            any finite values.
        empty: bool, whether there may be none.

    Returns:
        float32 NumPy array.

    Raises:
        ValueError: for another rank, NaN or infinite pixels, and pixels outside the bounds.
    """
    x = finite_array(x, "images", "(batch, height, width, channels)", 4, empty=empty)
    if bounds is None or not x.size:
        return x
    low, high = limits(bounds, x.shape[-1])
    if not _within(x, low, high):
        raise ValueError(
            f"Pixels must lie within the bounds [{bounds[0]}, {bounds[1]}]; received values in [{x.min()}, {x.max()}]. "
            "Scale the images, or give the bounds that they have."
        )
    return x.clip(low, high)


def within(x, bounds):
    """Whether images lie within bounds, but for rounding."""
    return _within(x, *limits(bounds, x.shape[-1]))


def _within(x, low, high):
    slack, axes = TOLERANCE * (high - low), (0, 1, 2) if low.ndim else None
    return bool(np.all(x.min(axis=axes) >= low - slack) and np.all(x.max(axis=axes) <= high + slack))


def bounds(values):
    """The range of pixels, as a hashable.

    Args:
        values: pair ``(lowest, highest)`` of numbers, for all channels; or of sequences of C numbers, for each.

    Returns:
        Pair of floats, or of tuples of C floats.

    Raises:
        ValueError: for anything else, and where a lowest value does not lie below the highest.
    """
    try:
        low, high = (np.asarray(value, "float64") for value in values)
        fits = low.shape == high.shape and low.ndim <= 1 and low.size and np.isfinite([low, high]).all()
        fits = fits and (low < high).all() and all(np.asarray(value).dtype.kind in "iuf" for value in values)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "Expected bounds (lowest, highest) pixel value, two numbers or two sequences of one number per channel, "
            f"each lowest below its highest; received bounds={values!r}."
        )
    return (float(low), float(high)) if not low.ndim else (tuple(low.tolist()), tuple(high.tolist()))


def limits(pair, channels):
    """Bounds as two float32 numbers, the lowest and the highest pixel, or arrays ``(channels,)`` of these.

    Numbers stay numbers, because a row for equal channels is spread over pixels slowly.

    Raises:
        ValueError: for bounds of another number of channels, and what ``bounds`` refuses.
    """
    low, high = np.float32(bounds(pair))
    if low.ndim and len(low) != channels:
        raise ValueError(f"Expected bounds of {channels} channels, those of the images; received bounds={pair!r}.")
    return low, high


def of_size(x, shape, name):
    """Refuse images ``(b, H, W, C)`` of another size than a model takes.

    Args:
        x: array.
        shape: ``(H, W, C)``, None where any is taken; None where it is not known.
        name: str, of the model.
    """
    if shape is None:
        return
    if len(shape) != 3 or any(size not in (None, own) for size, own in zip(shape, x.shape[1:], strict=True)):
        raise ValueError(
            f"Expected images of shape {(None, *shape)}, as {name} takes them; received {x.shape}. Resize or crop them "
            "first."
        )


@contextlib.contextmanager
def running(name, x):
    """Turn errors of the libraries below, which do not speak of images ``x``, into those of ``wrong_size``."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, TypeError | AttributeError) and not type(error).__module__.startswith(_LIBRARIES):
            raise
        raise wrong_size(x, name, error) from error


def wrong_size(x, name, error):
    """The error for images that a model does not take, as the backend says in its own words."""
    return ValueError(f"Expected images as {name} takes them; received {x.shape}, on which it fails: {error!s:.300}")


def image_maps(maps):
    """Maps ``(b, H, W)`` as a finite float32 array."""
    return finite_array(maps, "maps", "(b, H, W)", 3)


def maps_of_images(maps, x):
    """Maps ``(b, H, W)`` and images ``(b, H, W, C)`` of the same size, as finite float32 arrays."""
    maps, x = image_maps(maps), images(x, empty=False)
    if maps.shape != x.shape[:3]:
        raise ValueError(f"Expected a map of shape {x.shape[1:3]} for each of {len(x)} images; received {maps.shape}.")
    return maps, x
