"""Which backend computes, whether at once or in a program that is being made, and how it draws random numbers."""

import keras


def executes_eagerly():
    """Whether TensorFlow is the backend and computes at once what is called here, instead of tracing it."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.executing_eagerly()


def is_traced(x):
    """Whether a tensor stands for values that a program is being made of, and has none itself; on either backend."""
    if backend() == "tensorflow":
        return not executes_eagerly()
    import jax

    return isinstance(x, jax.core.Tracer)


def draws_once():
    """Whether a compiled function draws the same random numbers at every call, as it does on JAX."""
    return backend() == "jax"


def replicas():
    """How many replicas of a model compute a batch together and add their gradients, on several devices; else 1."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def replica():
    """Which of these replicas computes here, an int or a tensor from 0."""
    if replicas() == 1:
        return 0
    import tensorflow as tf

    return tf.distribute.get_replica_context().replica_id_in_sync_group


def backend():
    """``"tensorflow"`` or ``"jax"``; refuses others."""
    name = keras.backend.backend()
    if name not in ("tensorflow", "jax"):
        raise ValueError(f"Gradients need the tensorflow or the jax backend; received KERAS_BACKEND={name!r}.")
    return name
