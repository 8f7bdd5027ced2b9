"""What a training reads: how long it is, and in which order its epochs come."""

import pathlib
import tempfile
import warnings
import weakref

import keras

from keras_capsvit import checks

# Of tf.data streams, their state when a training first read them: files by name; None where it cannot be told.
_BEGINNINGS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_UNKNOWN = -2  # cardinality of tf.data


def length(stream, name):
    """Batches in an epoch of a stream; one that does not know, such as one with a filter, is read to count them.

    Keras would read on until there is no batch, and part of a step is done then, such as counting it for the learning
    rate, or not, as the threads have it.

    Args:
        stream: ``tf.data.Dataset`` of batches, or ``keras.utils.PyDataset``.
        name: str, what messages call it.

    Returns:
        int >= 1.

    Raises:
        ValueError: for a stream that is empty or is known to have no end, and for what is no stream.
    """
    is_py = isinstance(stream, keras.utils.PyDataset)
    if not is_py and not _is_tf(stream):
        raise ValueError(
            f"Expected {name} as a stream that can be read again in every epoch, a tf.data.Dataset of batches (x, y) "
            f"or a keras.utils.PyDataset; received {type(stream).__name__}. Arrays become one by data.from_arrays(x, "
            "y, shuffle=True); a generator by tf.data.Dataset.from_generator, given the function that makes it."
        )
    if checks.endless(stream):
        remedy = "Cut it, as by stream.take(n), or give a PyDataset a length."
        raise ValueError(f"Expected {name} to have an end; received a stream that has none. {remedy}")
    count = stream.num_batches if is_py else int(stream.cardinality())
    if count == _UNKNOWN:
        count = sum(1 for _ in stream)
    if count == 0:
        raise ValueError(f"Expected at least one batch in {name}; received an empty stream.")
    return count


def at_epoch(streams, lengths, epoch):
    """Streams that come in the order that an epoch has, and then in those of the next ones.

    The order of an epoch depends on its number alone, not on what was read of the stream before: trainings by the same
    stream all begin with the same order, and one that was interrupted goes on with the right one. The seeds have to be
    given or set, as ``data`` and ``set_deterministic`` do, and what is random has to come after a ``cache``.

    Args:
        streams: list of streams.
        lengths: list of ints, their ``length``.
        epoch: int >= 0.

    Returns:
        List of streams.
    """
    known = [_rewind(stream) for stream in streams]
    if epoch and not all(known):
        warnings.warn(
            "A stream draws random numbers that are TensorFlow's own, such as tf.random.uniform in a map; they start "
            "again after an interruption, so its epochs differ from those of a training without one. Draw with "
            "tf.random.stateless_uniform and keys, as data.augment does.",
            stacklevel=4,
        )
    for _ in range(epoch):
        for stream in streams:
            _skip_epoch(stream)
    return [
        _read_once(stream, count) if _is_tf(stream) else stream for stream, count in zip(streams, lengths, strict=True)
    ]


def _is_tf(stream):
    return hasattr(stream, "element_spec") and callable(getattr(stream, "cardinality", None))


def _rewind(stream):
    """Bring a tf.data stream back to where it was when it was first seen; whether that is possible."""
    if not _is_tf(stream):
        return True
    import tensorflow as tf

    if stream in _BEGINNINGS and _BEGINNINGS[stream] is None:
        return False
    checkpoint = tf.train.Checkpoint(iterator=iter(stream))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if stream in _BEGINNINGS:
            for name, content in _BEGINNINGS[stream].items():
                (folder / name).write_bytes(content)
            checkpoint.read(str(folder / "state"))
            return True
        try:
            checkpoint.write(str(folder / "state"))
        except tf.errors.FailedPreconditionError:  # its functions have a state that TensorFlow does not tell
            _BEGINNINGS[stream] = None
            return False
        _BEGINNINGS[stream] = {path.name: path.read_bytes() for path in folder.iterdir()}
        return True


def _skip_epoch(stream):
    if _is_tf(stream):
        iter(stream)  # draws the next order; nothing is read
    else:
        stream.on_epoch_begin()
        stream.on_epoch_end()


def _read_once(stream, count):
    """A stream that draws its order when it is read, not when an iterator is made: Keras makes more than it reads."""
    import tensorflow as tf

    lazy = tf.data.Dataset.from_tensors(0).flat_map(lambda _: stream).with_options(stream.options())
    return lazy.apply(tf.data.experimental.assert_cardinality(count))
