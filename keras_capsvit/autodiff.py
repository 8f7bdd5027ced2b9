"""Gradients with respect to inputs, and compiled functions, on the TensorFlow and the JAX backend."""

import keras

from keras_capsvit.private import silence_retracing


def value_and_gradient(function, variables=()):
    """Compile ``function`` together with its gradient with respect to its first argument.

    Args:
        function: callable ``(x, *args) → values``; tensors in, one tensor out, of any shape.
        variables: see ``compile``.

    Returns:
        Callable ``(x, *args) → (values, gradient)``, see ``gradient``. Traced once per shape.

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    return compile(gradient(function), variables)


def gradient(function, has_aux=False):
    """``function`` together with its gradient with respect to its first argument, for use inside ``compile``.

    Args:
        function: callable ``(x, *args) → values``; tensors in, one tensor out, of any shape.
        has_aux: bool, whether ``function`` returns ``(values, aux)``, of which ``aux`` is passed through.

    Returns:
        Callable ``(x, *args) → (values, gradient)``: the values (or ``(values, aux)``), and the gradient of the sum of
        the values, of the shape of ``x`` (zeros where ``x`` has no influence).

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    if _backend() == "jax":
        return _gradient_with_jax(function, has_aux)
    return _gradient_with_tensorflow(function, has_aux)


def jacobian(function):
    """``function`` together with the gradients of all its columns, for use inside ``compile``.

    Args:
        function: callable ``(x, *args) → values (b, k)``, each row a function of the same row of ``x (b, ...)``.

    Returns:
        Callable ``(x, *args) → (values (b, k), gradients (b, k, ...))``.

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    if _backend() == "jax":
        return _jacobian_with_jax(function)
    return _jacobian_with_tensorflow(function)


def compile(function, variables=()):
    """Compile a function of tensors.

    Args:
        function: callable of tensors, which returns tensors in any structure.
        variables: ``keras.Variable`` objects that ``function`` reads, such as ``model.variables``. Their current values
            are used at every call; on JAX, a variable not listed here is frozen at its value in the first call.

    Returns:
        Callable of the same arguments, tensors or arrays. Traced once per shape.

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    if _backend() == "jax":
        return _compile_with_jax(function, list(variables))
    return _compile_with_tensorflow(function)


def in_chunks(function, inputs, size, variables=()):
    """What a function returns, computed for a few rows at a time, and again, so, for its gradient.

    Of what it computes on the way only the rows of a chunk are there at a time, forwards and backwards, at the price of
    a second forward pass for the gradient. There is no second derivative on TensorFlow.

    Args:
        function: callable of tensors ``(b, ...)``, each row of whose result ``(b, ...)`` depends on the same row only.
        inputs: tuple of tensors ``(b, ...)``.
        size: int >= 1, rows at a time.
        variables: list of keras.Variable that ``function`` reads.

    Returns:
        Tensor ``(b, ...)``.

    Raises:
        ValueError: on a backend other than TensorFlow and JAX.
    """
    if _backend() == "jax":
        return _in_chunks_with_jax(function, inputs, size, list(variables))
    return _in_chunks_with_tensorflow(function, inputs, size, list(variables))


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


_TRACES = {"count": 0}


def executes_eagerly():
    """Whether TensorFlow is the backend and computes at once what is called here, instead of tracing it."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.executing_eagerly()


def is_traced(x):
    """Whether a tensor stands for values that a program is being made of, and has none itself; on either backend."""
    if _backend() == "tensorflow":
        return not executes_eagerly()
    import jax

    return isinstance(x, jax.core.Tracer)


def draws_once():
    """Whether a compiled function draws the same random numbers at every call, as it does on JAX."""
    return _backend() == "jax"


def _backend():
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        raise ValueError(f"Gradients need the tensorflow or the jax backend; received KERAS_BACKEND={backend!r}.")
    return backend


def _gradient_with_tensorflow(function, has_aux):
    import tensorflow as tf

    def evaluate(x, *args):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            result = function(x, *args)
            values = result[0] if has_aux else result
        found = tape.gradient(values, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        found = tf.convert_to_tensor(found)  # where values are taken from rows of x, TensorFlow returns these rows only
        found.set_shape(x.shape)  # which a SavedModel with dynamic batch size forgets
        return result, found

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
        rows = [tape.gradient(one, x, unconnected_gradients=tf.UnconnectedGradients.ZERO) for one in columns]
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
        gradients = jax.vmap(lambda one: pull_back(jnp.broadcast_to(one, values.shape))[0], out_axes=1)(columns)
        return values, gradients

    return evaluate


def _compile_with_tensorflow(function):
    import tensorflow as tf

    # Without AutoGraph, as Keras runs models; it would rewrite the model's code, and its errors speak of that.
    compiled = silence_retracing(tf.function(counted(function), reduce_retracing=True, autograph=False))
    return lambda *args: compiled(*map(tf.convert_to_tensor, args))


def _compile_with_jax(function, variables):
    import jax
    import jax.numpy as jnp

    @jax.jit
    @counted
    def compiled(state, *args):
        with keras.StatelessScope(state_mapping=list(zip(variables, state, strict=True))):
            return function(*args)

    return lambda *args: compiled([v.value for v in variables], *map(jnp.asarray, args))


def _in_chunks_with_jax(function, inputs, size, variables):
    import jax
    import jax.numpy as jnp

    rows = inputs[0].shape[0]
    missing = -rows % size

    @jax.checkpoint  # of a new function, and of weights that it is given: JAX keeps what it traced
    def on(chunk, weights):
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            return function(*chunk)

    def cut(x):
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, size, *x.shape[1:])

    weights = [variable.value for variable in variables]
    outputs = jax.lax.map(lambda chunk: on(chunk, weights), tuple(map(cut, inputs)))
    return outputs.reshape(-1, *outputs.shape[2:])[:rows]


def _in_chunks_with_tensorflow(function, inputs, size, variables):
    import tensorflow as tf

    count = len(inputs)

    def on(chunk, weights):
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            return function(*chunk)

    def cut(x):
        missing = -tf.shape(x)[0] % size
        x = tf.pad(x, [[0, missing]] + [[0, 0]] * (x.shape.rank - 1))
        return tf.reshape(x, tf.concat([[-1, size], tf.shape(x)[1:]], 0))

    def joined(chunks, rows):
        return tf.reshape(chunks, tf.concat([[-1], tf.shape(chunks)[2:]], 0))[:rows]

    def each(step, chunks, carried):
        """Run a step on chunk after chunk; what it returns of rows, and what it carried to the end."""
        number = tf.shape(chunks[0])[0]

        def body(k, parts, carried):
            results, carried = step([chunk[k] for chunk in chunks], carried)
            return k + 1, [part.write(k, result) for part, result in zip(parts, results, strict=True)], carried

        k = tf.constant(0)
        parts = [tf.TensorArray(dtype, number) for dtype in step.dtypes]
        loop = {"parallel_iterations": 1, "maximum_iterations": number}  # one, or all chunks would be there at once
        _, parts, carried = tf.while_loop(lambda k, *_: k < number, body, (k, parts, carried), **loop)
        return [part.stack() for part in parts], carried

    @tf.custom_gradient
    def chunked(*tensors):
        inputs, weights = tensors[:count], list(tensors[count:])
        rows = tf.shape(inputs[0])[0]

        def forward(chunk, carried):
            return [on(chunk, weights)], carried

        forward.dtypes = [inputs[0].dtype]
        (outputs,), _ = each(forward, [cut(x) for x in inputs], [])

        def gradient(upstream):
            def backward(chunk, sums):
                *chunk, above = chunk
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([*chunk, *weights])
                    result = on(chunk, weights)
                zero = tf.UnconnectedGradients.ZERO
                slopes = tape.gradient(result, [*chunk, *weights], above, unconnected_gradients=zero)
                sums = [total + slope for total, slope in zip(sums, slopes[count:], strict=True)]
                return slopes[:count], sums

            backward.dtypes = [x.dtype for x in inputs]
            chunks = [cut(x) for x in (*inputs, upstream)]
            slopes, sums = each(backward, chunks, [tf.zeros_like(weight) for weight in weights])
            return *(joined(slope, rows) for slope in slopes), *sums

        return joined(outputs, rows), gradient

    return chunked(*inputs, *(tf.convert_to_tensor(variable.value) for variable in variables))
