"""Gradients with respect to inputs, compiled, on the TensorFlow and the JAX backend."""

import keras


def value_and_gradient(function, variables=()):
    """Compile ``function`` together with its gradient with respect to its first argument.

    Args:
        function: callable ``(x, *args) → values``; tensors in, one tensor out, of any shape.
        variables: ``keras.Variable`` objects that ``function`` reads, such as ``model.variables``. Their current values
            are used at every call; on JAX, a variable not listed here is frozen at its value in the first call.

    Returns:
        Callable ``(x, *args) → (values, gradient)``: the values, and the gradient of their sum, of the shape of ``x``
        (zeros where ``x`` has no influence). Traced once per shape.

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _with_tensorflow(function)
    if backend == "jax":
        return _with_jax(function, list(variables))
    raise ValueError(f"Gradients need the tensorflow or the jax backend; received KERAS_BACKEND={backend!r}.")


def _with_tensorflow(function):
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def compiled(x, *args):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            values = function(x, *args)
        return values, tape.gradient(values, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def call(x, *args):
        return compiled(tf.convert_to_tensor(x), *map(tf.convert_to_tensor, args))

    return call


def _with_jax(function, variables):
    import jax
    import jax.numpy as jnp

    @jax.jit
    def compiled(state, x, *args):
        with keras.StatelessScope(state_mapping=list(zip(variables, state, strict=True))):
            values, pull_back = jax.vjp(lambda x: function(x, *args), x)
            return values, pull_back(jnp.ones_like(values))[0]

    def call(x, *args):
        return compiled([v.value for v in variables], jnp.asarray(x), *map(jnp.asarray, args))

    return call
