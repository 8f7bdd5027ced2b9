"""Gradients with respect to inputs."""

from keras_capsvit.autodiff.backend import backend
from keras_capsvit.autodiff.compiling import compiled


def value_and_gradient(function, variables=()):
    """Compile ``function`` together with its gradient with respect to its first argument.

    Args:
        function: callable ``(x, *args) → values``; tensors in, one tensor out, of any shape.
        variables: see ``compiled``.

    Returns:
        Callable ``(x, *args) → (values, gradient)``, see ``gradient``. Traced once per shape.

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    return compiled(gradient(function), variables)


def gradient(function, has_aux=False):
    """``function`` together with its gradient with respect to its first argument, for use inside ``compiled``.

    Args:
        function: callable ``(x, *args) → values``; tensors in, one tensor out, of any shape.
        has_aux: bool, whether ``function`` returns ``(values, aux)``, of which ``aux`` is passed through.

    Returns:
        Callable ``(x, *args) → (values, gradient)``: the values (or ``(values, aux)``), and the gradient of the sum of
        the values, of the shape of ``x`` (zeros where ``x`` has no influence).

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    if backend() == "jax":
        return _gradient_with_jax(function, has_aux)
    return _gradient_with_tensorflow(function, has_aux)


def jacobian(function):
    """``function`` together with the gradients of all its columns, for use inside ``compiled``.

    Args:
        function: callable ``(x, *args) → values (b, k)``, each row a function of the same row of ``x (b, ...)``.

    Returns:
        Callable ``(x, *args) → (values (b, k), gradients (b, k, ...))``.

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    if backend() == "jax":
        return _jacobian_with_jax(function)
    return _jacobian_with_tensorflow(function)


def _gradient_with_tensorflow(function, has_aux):
    import tensorflow as tf

    def evaluate(x, *args):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            result = function(x, *args)
            values = result[0] if has_aux else result
        slope = tape.gradient(values, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        slope = tf.convert_to_tensor(slope)  # where values are taken from rows of x, TensorFlow returns these rows only
        slope.set_shape(x.shape)  # which a SavedModel with dynamic batch size forgets
        return result, slope

    return evaluate


def _gradient_with_jax(function, has_aux):
    import jax
    import jax.numpy as jnp

    def evaluate(x, *args):
        values, pull_back, *aux = jax.vjp(lambda x: function(x, *args), x, has_aux=has_aux)
        return (values, *aux) if has_aux else values, pull_back(jnp.ones_like(values))[0]

    return evaluate


def _jacobian_with_tensorflow(function):
    import tensorflow as tf

    def evaluate(x, *args):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(x)
            values = function(x, *args)
            columns = tf.unstack(values, axis=1)
        rows = [tape.gradient(column, x, unconnected_gradients=tf.UnconnectedGradients.ZERO) for column in columns]
        rows = [tf.convert_to_tensor(row) for row in rows]
        for row in rows:
            row.set_shape(x.shape)
        return values, tf.stack(rows, axis=1)

    return evaluate


def _jacobian_with_jax(function):
    import jax
    import jax.numpy as jnp

    def evaluate(x, *args):
        values, pull_back = jax.vjp(lambda x: function(x, *args), x)
        columns = jnp.eye(values.shape[1], dtype=values.dtype)
        gradients = jax.vmap(lambda column: pull_back(jnp.broadcast_to(column, values.shape))[0], out_axes=1)(columns)
        return values, gradients

    return evaluate
