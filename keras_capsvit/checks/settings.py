"""Settings: numbers, strings, functions and sizes, or an error in our words."""

import collections.abc
import difflib
import math
import os

import numpy as np

ABLATIONS = ("column", "block")  # what of an image stays
PREDICTED = -1  # in the place of a class id, that of the predicted class
LARGEST = 2**24  # size of anything, so that products of three fit 64 bits, and kernels and strides TensorFlow's 32


def described(value):
    """What a message calls what was received, a str."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.60}" if isinstance(value, str | int | float | None) else type(value).__name__


def positive_int(name, value, most=None):
    """Refuse what is no integer from 1, to ``most`` if given; otherwise return it."""
    return integer(name, value, 1, most)


def batch_size(value):
    """Refuse what is no number of images, an integer from 1 to 2^31 - 1; otherwise return it."""
    return integer("batch_size", value, 1, 2**31 - 1)


def integer(name, value, low=0, high=None):
    """Refuse what is no integer from ``low``, to ``high`` if given; otherwise return it as an int."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and low <= value and (high is None or value <= high)):
        limit = "" if high is None else f" to {high}"
        raise ValueError(f"{name} must be an integer from {low}{limit}; received {value!r}.")
    return int(value)


def pair(value, name, lowest=1, most=None):
    """A pair of ints, of an int or a pair, from ``lowest`` to ``most`` if given; the message calls it ``name``."""
    both = value if isinstance(value, tuple | list | np.ndarray) else (value, value)
    try:
        first, second = (integer(name, each, lowest, most) for each in both)
    except (TypeError, ValueError):
        limit = "" if most is None else f" to {most}"
        raise ValueError(
            f"{name} must be an integer from {lowest}{limit}, or a pair of such; received {value!r:.60}."
        ) from None
    return first, second


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
        opening, closing = ("(" if low in (-np.inf, *without) else "["), (")" if high in (np.inf, *without) else "]")
        raise ValueError(f"{name} must be a number in {opening}{low:g}, {high:g}{closing}; received {value!r}.")
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
        raise ValueError(f"{name} must be a callable {takes}; received {described(value)}.")
    return value


def named(name, value, of):
    """Refuse what is no dict; otherwise return it. The message says from names to what, ``of``, a str."""
    if not isinstance(value, collections.abc.Mapping):
        raise ValueError(f"{name} must be a dict from names to {of}; received {described(value)}.")
    return dict(value)


def keyword(cls, name, known, remedy=None):
    """Refuse a keyword of the constructor of a class that is none of the ``known`` ones; names the nearest of them."""
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        remedy = remedy or (f"Did you mean {nearest[0]!r}?" if nearest else "Leave it out.")
        raise ValueError(
            f"Expected arguments of {cls.__name__}, which are {', '.join(known)}; received the unknown {name!r}. "
            f"{remedy}"
        )


def memory(name, shape, remedy, *, times=4, bytes_each=4):
    """Refuse an array too large for this machine before anything is allocated.

    Args:
        name: str, what the message calls it.
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
            f"{name}, of shape {tuple(shape)}, would take {needed / 2**30:.1f} GiB{several}; this machine has "
            f"{there / 2**30:.1f} GiB. {remedy}"
        )


def _physical_memory():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not told on this system
        return math.inf
