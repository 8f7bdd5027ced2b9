"""Functions of a few rows at a time, whose gradients compute them again instead of keeping them."""

import keras

from keras_capsvit.autodiff.backend import backend


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
    if backend() == "jax":
        return _in_chunks_with_jax(function, inputs, size, list(variables))
    return _in_chunks_with_tensorflow(function, inputs, size, list(variables))


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
