"""Compiled functions of tensors, and how many were traced."""

import keras

from keras_capsvit.autodiff.backend import backend
from keras_capsvit.private import silence_retracing

_TRACES = {"count": 0}


def compiled(function, variables=()):
    """A function of tensors, compiled.

    Args:
        function: callable of tensors, which returns tensors in any structure.
        variables: ``keras.Variable`` objects that ``function`` is known to read, such as ``model.variables``; on JAX
            those that are not listed cost a second tracing.

    Returns:
        Callable of the same arguments, tensors or arrays. Traced once per shape. All variables of Keras that it reads
        have the values that they have when it is called.

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
        with _Noting(zip(variables, state, strict=True)) as scope:
            result = function(*args)
        if scope.others:  # whose values would be constants of the program
            raise _OtherVariables(scope.others.values())
        return result

    def call(*args):
        args = [*map(jnp.asarray, args)]
        while True:
            try:
                return program([variable.value for variable in variables], *args)
            except _OtherVariables as more:
                variables.extend(more.variables)

    return call


class _Noting(keras.StatelessScope):
    """Gives variables the values that they have in a program, and notes which others are read."""

    def __init__(self, values):
        super().__init__(state_mapping=list(values))
        self.others = {}

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None:
            self.others[id(variable)] = variable
        return value


class _OtherVariables(Exception):
    def __init__(self, variables):
        super().__init__()
        self.variables = list(variables)
