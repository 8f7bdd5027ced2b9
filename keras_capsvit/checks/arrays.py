"""Images, labels, targets, bounds and maps as arrays, or an error in our words."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_capsvit.checks.settings import described

TOLERANCE = 1e-6  # of the range of pixels, by which rounding may put a pixel outside
_MOST_CLASSES = 2**31
_LIBRARIES = ("tensorflow", "jax", "numpy")


class NoGradientError(ValueError):
    """An attack could not change any image, because the gradient of all that are not fooled is exactly zero."""


def numbers(values, name):
    """Values as a NumPy array of numbers; the message calls them ``name``.

    Raises:
        ValueError: for what is no array of real numbers: strings, complex numbers, objects, rows of different lengths.
    """
    try:
        array = np.asarray(ops.convert_to_numpy(values))
    except (TypeError, ValueError, AttributeError):
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" and array.dtype.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        kind = {"U": "strings", "S": "strings", "c": "complex numbers"}.get(array.dtype.kind, described(values))
        raise ValueError(f"Expected {name} as an array of numbers; received {kind}.")
    return array


def tensor(name, value, axes=None):
    """What layers and arithmetic compute with: a tensor or array of floats, as it is, or lists of numbers as an array.

    Args:
        name: str, what the message calls it.
        value: what was received, also symbolic.
        axes: str, the axes that it has to have, such as ``"(b, i, d)"``; three dots stand for any number. None
            for any.

    Returns:
        The tensor or array; float32 of lists.

    Raises:
        ValueError: for another rank, integers, bools and what is no number.
    """
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        value = numbers(value, name).astype("float32")
    dtype = getattr(value.dtype, "name", str(value.dtype))
    if not dtype.startswith(("float", "bfloat")):
        raise ValueError(f"Expected {name} of floats; received {dtype}. Cast them first.")
    rank = getattr(value.shape, "rank", len(value.shape) if isinstance(value.shape, tuple) else None)
    if axes is not None and rank is not None:
        least = len([axis for axis in axes.split(",") if "..." not in axis])
        if rank < least or (rank > least and "..." not in axes):
            raise ValueError(f"Expected {name} of shape {axes}; received shape {tuple(value.shape)}.")
    return value


def of_one_batch(name, tensors):
    """Refuse tensors of different numbers of images, where these are known; the message begins with ``name``."""
    shapes = [tuple(each.shape) for each in tensors]
    if len({shape[0] for shape in shapes if shape and shape[0] is not None}) > 1:
        raise ValueError(f"{name} expects tensors of one batch; received the shapes {shapes}.")


def finite_array(values, name, axes, rank, *, empty=False):
    """Values as a finite float32 array of a rank.

    Args:
        values: array, tensor or nested lists.
        name: str, what the message calls them.
        axes: str, the shape that the message asks for.
        rank: int.
        empty: bool, whether there may be none.

    Returns:
        float32 NumPy array.

    Raises:
        ValueError: for another rank, NaN or infinite values, none at all unless ``empty``, and what is no number.
    """
    values = numbers(values, name)
    if values.ndim != rank or not (values.size or empty):
        raise ValueError(f"Expected {name} of shape {axes}{'' if empty else ', not empty'}; received {values.shape}.")
    with np.errstate(over="ignore"):
        values = values.astype("float32")
    return finite(values, name)


def finite(values, name):
    """Refuse an array with NaN or infinite values; otherwise return it. The message calls them ``name``."""
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f"Expected finite {name}; received NaN or infinite values, {count} of {values.size}.")
    return values


def finite_variables(variables, name):
    """Refuse NaN or infinite variables, which fused kernels may hide: their ReLU makes 0 of NaN.

    Args:
        variables: Keras variables, or others, which are not looked at.
        name: str, of their model.
    """
    variables = [each for each in variables if isinstance(each, keras.Variable)]
    broken = [each.path for each in variables if not np.isfinite(np.float64(ops.convert_to_numpy(each))).all()]
    if broken:
        raise ValueError(
            f"Expected a model of finite variables; {name} has NaN or infinite values in {len(broken)}: "
            f"{', '.join(broken[:5])}{', ...' if len(broken) > 5 else ''}. Train it anew, or load weights that are."
        )


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


def class_ids(labels, batch, num_classes=None, name="Labels"):
    """Class ids of images.

    Args:
        labels: ids ``(batch,)`` or ``(batch, 1)``, integers or floats that are integers; or one-hot rows ``(batch, M)``
            of 0 and 1.
        batch: int, number of images.
        num_classes: int, that ids have to lie below; None where it is not known.
        name: str, what the message calls them.

    Returns:
        int32 NumPy array ``(batch,)``.

    Raises:
        ValueError: for labels of another shape, that are no integers, or out of range.
    """
    values = numbers(labels, name.lower())
    if values.dtype.kind == "b":
        raise ValueError(f"{name} must be class ids or one-hot rows of 0 and 1; received bool. Cast them to int.")
    expected = f"{name} must be integer class ids of shape ({batch},); received shape {values.shape} of {values.dtype}"
    if values.ndim not in (1, 2) or len(values) != batch or 0 in values.shape[1:]:
        raise ValueError(f"{expected}. Shape ({batch}, 1) and one-hot rows ({batch}, classes) are taken, too.")
    if values.ndim == 2 and values.shape[1] > 1:
        return _of_one_hot(values, num_classes, expected)
    values = values.reshape(-1)
    if values.dtype.kind != "i" and not (np.isfinite(values) & (values == np.floor(values))).all():
        raise ValueError(f"{expected}, not all of them integers.")
    most = _MOST_CLASSES if num_classes is None else num_classes
    if batch and not (values.min() >= 0 and values.max() < most):
        limits = "from 0" if num_classes is None else f"between 0 and {num_classes - 1}"
        raise ValueError(f"Expected class ids {limits}; received values between {values.min()} and {values.max()}.")
    return values.astype("int32")


def targets(target, batch, num_classes=None):
    """A class id for all images, or labels of each, as ids ``(batch,)``; see ``class_ids``."""
    target = numbers(target, "targets")
    return class_ids(np.broadcast_to(target, (batch,)) if not target.ndim else target, batch, num_classes, "Targets")


def _of_one_hot(values, num_classes, expected):
    if num_classes not in (None, values.shape[1]):
        raise ValueError(f"{expected}. One-hot rows would have {num_classes} columns, the number of classes.")
    if not ((values == 0) | (values == 1)).all() or not (values.sum(axis=1) == 1).all():
        raise ValueError(f"{expected}, whose rows are not one-hot, a single 1 and else 0.")
    return values.argmax(axis=1).astype("int32")


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


def integers(name, values, shape, axes, low=0):
    """Refuse what is no array of integers.

    Args:
        name: str, what the message calls them.
        values: what was received.
        shape: tuple, of which None is any length.
        axes: str, the shape that the message asks for.
        low: int, or None for any.

    Returns:
        int64 NumPy array.

    Raises:
        ValueError: for everything else.
    """
    array = numbers(values, name)
    fits = array.ndim == len(shape) and all(n in (None, own) for n, own in zip(shape, array.shape, strict=True))
    if not fits or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"{name} must be integers of shape {axes}; received {array.dtype} of shape {array.shape}.")
    if array.size and ((low is not None and array.min() < low) or array.max() >= 2**63):
        raise ValueError(f"{name} must be integers from {low or 0}; received {array.min()} to {array.max()}.")
    return array.astype("int64")


@contextlib.contextmanager
def running(name, x):
    """Turn errors of the libraries below, which do not speak of images ``x``, into those of ``wrong_size``."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, TypeError | AttributeError) and not type(error).__module__.startswith(_LIBRARIES):
            raise
        raise wrong_size(x, name, error) from error


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


def wrong_size(x, name, error):
    """The error for images that a model does not take, as the backend says in its own words."""
    return ValueError(f"Expected images as {name} takes them; received {x.shape}, on which it fails: {error!s:.300}")


def of_shape(expectation, shape, received):
    """Refuse what is no array of a shape; the message begins with ``expectation``."""
    if tuple(getattr(received, "shape", ())) != shape:
        kind = getattr(received, "shape", type(received).__name__)
        raise ValueError(f"{expectation}, of shape {shape}; received {kind}.")


def image_maps(maps):
    """Maps ``(b, H, W)`` as a finite float32 array."""
    return finite_array(maps, "maps", "(b, H, W)", 3)


def maps_of_images(maps, x):
    """Maps ``(b, H, W)`` and images ``(b, H, W, C)`` of the same size, as finite float32 arrays."""
    maps, x = image_maps(maps), images(x, empty=False)
    if maps.shape != x.shape[:3]:
        raise ValueError(f"Expected a map of shape {x.shape[1:3]} for each of {len(x)} images; received {maps.shape}.")
    return maps, x
