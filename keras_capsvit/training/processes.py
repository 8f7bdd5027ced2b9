"""Trainings of several processes, on JAX: which of them this is, and which rows of a batch it trains on."""

import keras

from keras_capsvit import checks


def count_and_number():
    """How many processes train together, and which of them this is, from 0; of TensorFlow always ``(1, 0)``.

    After ``keras.distribution.initialize``, on JAX.
    """
    if keras.backend.backend() != "jax":
        return 1, 0
    import jax

    return jax.process_count(), jax.process_index()


def share(stream, count=None, number=None):
    """The rows of every batch of a stream that one of several processes trains on.

    All processes read the same stream, so together they train on the batches that one process would; each augments the
    whole batch.

    Args:
        stream: ``tf.data.Dataset`` of batches.
        count: int >= 1, processes; None for as many as train together.
        number: int from 0, which of them; None for this one.

    Returns:
        ``tf.data.Dataset`` of the same structure.

    Raises:
        ValueError: for another kind of stream, numbers that are none, and batches of a known size that processes cannot
            share evenly; TensorFlow's InvalidArgumentError where only the batch tells its size.

    Example::

        keras.distribution.initialize("10.0.0.1:7000", 2, number)
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
        training.fit(model, training.share(train), training.share(test), recipe, work="on_a_disk_of_all")
    """
    process = count_and_number()
    count = checks.integer("count", process[0] if count is None else count, 1)
    number = checks.integer("number", process[1] if number is None else number, 0, count - 1)
    if not hasattr(stream, "element_spec"):
        raise ValueError(f"Expected a tf.data.Dataset of batches to share; received {type(stream).__name__}.")
    if count == 1:
        return stream

    import tensorflow as tf

    def part(*batch):
        leaf = keras.tree.flatten(batch)[0]
        known, rows = leaf.shape[0], tf.shape(leaf)[0]
        message = f"Expected batches that {count} processes share evenly; received one of "
        if known is not None and known % count:
            raise ValueError(f"{message}{known}.")
        with tf.control_dependencies([tf.debugging.assert_equal(rows % count, 0, message)]):
            size = rows // count
        return keras.tree.map_structure(lambda array: array[number * size : (number + 1) * size], batch)

    return stream.map(tf.autograph.experimental.do_not_convert(part))
