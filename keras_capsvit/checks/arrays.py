"""Arrays and tensors: of numbers, of floats, finite, of a shape, or an error in our words."""

import keras
import numpy as np
from keras import ops

from keras_capsvit.checks.settings import described


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


def of_shape(expectation, shape, received):
    """Refuse what is no array of a shape; the message begins with ``expectation``."""
    if tuple(getattr(received, "shape", ())) != shape:
        kind = getattr(received, "shape", type(received).__name__)
        raise ValueError(f"{expectation}, of shape {shape}; received {kind}.")
