"""Compiled functions of tensors, and how many were traced."""

import keras

from keras_capsvit.autodiff.backend import backend
from keras_capsvit.private import silence_retracing

_TRACES = {"count": 0}


def compiled(function, variables=()):
    """A function of tensors, compiled.

    Args:
        function: callable of tensors, which returns tensors in any structure.
        variables: ``keras.Variable`` objects that ``function`` reads, such as ``model.variables``. Their current values
            are used at every call; on JAX, a variable not listed here is frozen at its value in the first call.

    Returns:
        Callable of the same arguments, tensors or arrays. Traced once per shape.

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    if backend() == "jax":
        return _compiled_with_jax(function, list(variables))
    return _compiled_with_tensorflow(function)


def traces():
    """How often functions were traced in this process, an int, which costs time and memory.

    It stands still once everything has been called: after that no setting, seed or batch size is traced again.
    """
    return _TRACES["count"]


def counted(function):
    """A function to trace that counts among ``traces``."""

    def traced(*args):
        _TRACES["count"] += 1
        return function(*args)

    return traced


def _compiled_with_tensorflow(function):
    import tensorflow as tf

    # Without AutoGraph, as Keras runs models; it would rewrite the model's code, and its errors speak of that.
    program = silence_retracing(tf.function(counted(function), reduce_retracing=True, autograph=False))
    return lambda *args: program(*map(tf.convert_to_tensor, args))


def _compiled_with_jax(function, variables):
    import jax
    import jax.numpy as jnp

    @jax.jit
    @counted
    def program(state, *args):
        with keras.StatelessScope(state_mapping=list(zip(variables, state, strict=True))):
            return function(*args)

    return lambda *args: program([v.value for v in variables], *map(jnp.asarray, args))
