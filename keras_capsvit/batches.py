"""The images of a batch apart: what is drawn for each of them, and batches of those that are left."""

import keras
import numpy as np


def generators(seed, numbers):
    """For each number, a NumPy generator that depends on the seed and the number alone; the next one moves it.

    Args:
        seed: int, or sequence of ints.
        numbers: ints, see Attack.

    Yields:
        numpy.random.Generator, of which 2^64 numbers may be drawn until the next one is asked for.
    """
    random = np.random.default_rng(seed)
    beginning = random.bit_generator.state
    for number in numbers:
        random.bit_generator.state = beginning
        random.bit_generator.advance(int(number) << 64)
        yield random


def numbered(count, numbers):
    """Numbers of images in a data set, an array of ints ``(count,)``; None for 0 to ``count`` - 1."""
    return np.arange(count) if numbers is None else np.asarray(numbers)


def padded(count, full):
    """Indices of ``count`` examples, repeated up to one of few batch sizes, each of which is compiled for.

    Args:
        count: int >= 1.
        full: int, the largest size; the others are its halves, quarters and so on.

    Returns:
        Array of ints below ``count``.
    """
    size = full
    while size // 2 >= count:
        size //= 2
    return np.arange(size) % count


def fewest(count, full=None):
    """Indices of ``count`` examples: TensorFlow takes any number of them; JAX compiles for each, so it gets ``padded``.

    Args:
        count: int >= 1.
        full: int, see ``padded``; None where nothing is compiled, and any number is taken.

    Returns:
        Array of ints below ``count``.
    """
    return padded(count, full) if _compiles_for_each(full) else np.arange(count)


def next_fewer(count, full=None):
    """The largest number of examples, an int below ``count``, of which ``fewest`` gives a smaller batch."""
    return len(padded(count, full)) // 2 if _compiles_for_each(full) else count - 1


def _compiles_for_each(full):
    return full is not None and keras.backend.backend() == "jax"
