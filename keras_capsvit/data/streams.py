"""What streams have to be, before anything is read from them, and how their batches are changed."""

import tensorflow as tf

from keras_capsvit import checks

LARGEST_SEED = 2**63 - 1  # of TensorFlow
_KINDS = {3: "(image (H, W, C), label), unbatched", 4: "(images (b, H, W, C), labels (b,)), in batches"}


def check_stream(name, stream, rank=4):
    """Refuse what is no ``tf.data.Dataset`` of pairs.

    Args:
        name: str, what the message calls it.
        stream: what was received.
        rank: int, axes of the images, 3 of single ones, 4 of batches.

    Raises:
        ValueError: with what was received.
    """
    if not isinstance(stream, tf.data.Dataset):
        raise ValueError(
            f"{name} must be a tf.data.Dataset of {_KINDS[rank]}; received {type(stream).__name__}. See "
            "data.from_arrays."
        )
    spec = stream.element_spec
    fits = isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], tf.TensorSpec)
    if not fits or spec[0].shape.rank not in (None, rank):
        raise ValueError(f"{name} must be a tf.data.Dataset of {_KINDS[rank]}; received one of {spec}.")


def check_reading(batch_size, shuffle, seed):
    """Refuse what says no way to read a stream: a batch size below 1, a flag that is none, a seed beyond 64 bits."""
    checks.batch_size(batch_size)
    checks.booleans(shuffle=shuffle)
    checks.integer("seed", seed, 0, LARGEST_SEED)


def mapped(stream, function):
    """A stream of what a function makes of the batches of another one, some of them beforehand."""
    # Without AutoGraph, which would rewrite everything that the function calls.
    function = tf.autograph.experimental.do_not_convert(function)
    return stream.map(function, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
