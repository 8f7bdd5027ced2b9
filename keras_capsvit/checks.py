"""What may come in: images, labels, targets, bounds, maps, data sets and settings, or is refused in our words."""

import collections.abc
import contextlib
import math
import os

import keras
import numpy as np
from keras import ops

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
        what = {"U": "strings", "S": "strings", "c": "complex numbers"}.get(array.dtype.kind, _described(values))
        raise ValueError(f"Expected {name} as an array of numbers; received {what}.")
    return array


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


def finite_variables(model):
    """Refuse a Keras model with NaN or infinite variables, which fused kernels may hide: their ReLU makes 0 of NaN."""
    broken = [one.path for one in model.variables if not np.isfinite(np.float64(ops.convert_to_numpy(one))).all()]
    if broken:
        raise ValueError(
            f"Expected a model of finite variables; {model.name} has NaN or infinite values in {len(broken)}: "
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
    if not within(x, bounds):
        raise ValueError(
            f"Pixels must lie within the bounds [{bounds[0]}, {bounds[1]}]; received values in [{x.min()}, {x.max()}]. "
            "Scale the images, or give the bounds that they have."
        )
    return x.clip(*limits(bounds, x.shape[-1]))


def within(x, bounds):
    """Whether images lie within bounds, but for rounding."""
    low, high = limits(bounds, x.shape[-1])
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


def positive_int(name, value, most=None):
    """Refuse what is no integer from 1, to ``most`` if given; otherwise return it."""
    return integer(name, value, 1, most)


def integer(name, value, low=0, high=None):
    """Refuse what is no integer from ``low``, to ``high`` if given; otherwise return it as an int."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and low <= value and (high is None or value <= high)):
        limit = "" if high is None else f" to {high}"
        raise ValueError(f"{name} must be an integer from {low}{limit}; received {value!r}.")
    return int(value)


def number(name, value, low=-np.inf, high=np.inf, *, without=()):
    """Refuse what is no finite number from ``low`` to ``high``; otherwise return it.

    Args:
        name: str, what the message calls it.
        value: what was received.
        low: number.
        high: number.
        without: tuple, those of ``low`` and ``high`` that are refused, too.

    Returns:
        int or float.

    Raises:
        ValueError: for everything else, such as strings, bools and NaN.
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not (real and np.isfinite(value) and low <= value <= high and value not in without):
        first, last = ("(" if low in (-np.inf, *without) else "["), (")" if high in (np.inf, *without) else "]")
        raise ValueError(f"{name} must be a number in {first}{low:g}, {high:g}{last}; received {value!r}.")
    return value.item() if isinstance(value, np.generic) else value


def booleans(**arguments):
    """Refuse arguments that are neither True nor False, such as "no", which would mean True."""
    for name, value in arguments.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False; received {value!r}.")


def choice(name, value, options):
    """Refuse what is none of some strings; otherwise return it."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {tuple(options)}; received {value!r:.60}.")
    return value


def text(name, value):
    """Refuse what is no string; otherwise return it."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a str; received {value!r:.60}.")
    return value


def function(name, value, takes):
    """Refuse what cannot be called; otherwise return it. The message says what it ``takes`` and returns, a str."""
    if not callable(value):
        raise ValueError(f"{name} must be a callable {takes}; received {_described(value)}.")
    return value


def named(name, value, of):
    """Refuse what is no dict; otherwise return it. The message says from names to what, ``of``, a str."""
    if not isinstance(value, collections.abc.Mapping):
        raise ValueError(f"{name} must be a dict from names to {of}; received {_described(value)}.")
    return dict(value)


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


def memory(what, shape, remedy, *, times=4, bytes_each=4):
    """Refuse an array too large for this machine before anything is allocated.

    Args:
        what: str, what the message calls it.
        shape: ints.
        remedy: str, what the message says to do.
        times: int, how many arrays of this size there are at a time; of weights that are trained four, the weights,
            their gradient and the two moments of Adam.
        bytes_each: int, bytes of a number.

    Raises:
        ValueError: if they take more than the memory of the machine.
    """
    needed, there = bytes_each * math.prod(map(int, shape)), _physical_memory()
    if times * needed > there:
        several = f", and {times} such arrays are needed at a time" if times > 1 else ""
        raise ValueError(
            f"{what}, of shape {tuple(shape)}, would take {needed / 2**30:.1f} GiB{several}; this machine has "
            f"{there / 2**30:.1f} GiB. {remedy}"
        )


def _physical_memory():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not told on this system
        return math.inf


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


def of_shape(what, shape, received):
    """Refuse what is no array of a shape; the message begins with ``what``, a str."""
    if tuple(getattr(received, "shape", ())) != shape:
        kind = getattr(received, "shape", type(received).__name__)
        raise ValueError(f"{what}, of shape {shape}; received {kind}.")


def image_maps(maps, x=None):
    """Maps ``(b, H, W)`` as a finite float32 array; with images ``(b, H, W, C)``, both, of the same size."""
    maps = finite_array(maps, "maps", "(b, H, W)", 3)
    if x is None:
        return maps
    x = images(x, empty=False)
    if maps.shape != x.shape[:3]:
        raise ValueError(f"Expected a map of shape {x.shape[1:3]} for each of {len(x)} images; received {maps.shape}.")
    return maps, x


def batches_of(dataset, batch_size=128):
    """Batches of images and class ids, of whatever holds a data set.

    Args:
        dataset: pair of arrays ``(x (n, H, W, C), y)``, a tuple or a list, which is cut into batches; iterable of
            batches ``(x, y)``, which stay as they are, such as a batched ``tf.data.Dataset``; or of examples
            ``(image (H, W, C), label)``, which are put into batches. Labels: see ``class_ids``.
        batch_size: int >= 1.

    Returns:
        Iterator of pairs of float32 images ``(b, H, W, C)`` and int32 ids ``(b,)``.

    Raises:
        ValueError: for anything else, with what was received.
    """
    positive_int("batch_size", batch_size)
    if _is_pair(dataset):
        x = numbers(dataset[0], "images")
        ids = class_ids(dataset[1], len(x) if x.ndim else 0)
        parts = (slice(k, k + batch_size) for k in range(0, max(len(ids), 1), batch_size))
        return ((images(x[part]), ids[part]) for part in parts)
    if isinstance(dataset, keras.utils.PyDataset):
        return _batches(map(dataset.__getitem__, range(len(dataset))), batch_size)
    if isinstance(dataset, str | bytes | dict) or hasattr(dataset, "shape") or not hasattr(dataset, "__iter__"):
        raise _no_dataset(_described(dataset))
    return _batches(dataset, batch_size)


def _batches(dataset, batch_size):
    gathered = []
    for element in dataset:
        if not isinstance(element, tuple | list) or len(element) != 2:
            raise _no_dataset(f"elements that are {_described(element)}")
        x, y = element
        rank = len(getattr(x, "shape", None) or np.shape(x))
        if rank == 3:
            gathered.append((ops.convert_to_numpy(x), ops.convert_to_numpy(y)))
            if len(gathered) == batch_size:
                yield _gathered(gathered)
                gathered = []
        elif rank == 4:
            x = images(x)
            yield x, class_ids(y, len(x))
        else:
            raise _no_dataset(f"elements ({_described(x)}, {_described(y)})")
    if gathered:
        yield _gathered(gathered)


def _gathered(examples):
    try:
        x, y = (np.stack(part) for part in zip(*examples, strict=True))
    except ValueError:
        raise _no_dataset("single images of different shapes") from None
    x = images(x)
    return x, class_ids(y, len(x))


def _is_pair(dataset):
    """Whether a data set is a pair of arrays, not a list of two batches."""
    if not isinstance(dataset, tuple | list) or len(dataset) != 2:
        return False
    return not any(isinstance(part, tuple) for part in dataset) and not _is_batch(dataset[0])


def _is_batch(part):
    return isinstance(part, list) and len(part) == 2 and hasattr(part[0], "shape") and len(part[0].shape) in (3, 4)


def _no_dataset(received):
    return ValueError(
        "Expected a data set: a pair (x, y) of arrays, or an iterable of batches (x (b, H, W, C), y (b,)) or of "
        f"examples (image (H, W, C), label), such as a tf.data.Dataset; received {received}."
    )


def _described(value):
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.60}" if isinstance(value, str | int | float | None) else type(value).__name__
