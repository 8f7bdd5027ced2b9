"""Models that compute in another precision: live ones for a while, functions of TensorFlow as copies."""

import contextlib
import importlib

import keras

from keras_capsvit import private


@contextlib.contextmanager
def computing_in_bfloat16(model):
    """While inside, what is called or traced of a model computes in bfloat16 where it computes in float32 otherwise.

    Variables stay what they are, and afterwards, also after an error, everything is as it was.

    Args:
        model: Keras model or layer.
    """
    layers = [layer for layer in (model, *private.inner_layers(model)) if layer.compute_dtype == "float32"]
    policies = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy


def in_bfloat16(function, shape):
    """A function of images, such as one that calls a SavedModel, with its convolutions and products in bfloat16.

    Args:
        function: callable of a tensor ``(b, H, W, C)`` → ``(b, M)``, on TensorFlow.
        shape: tuple ``(H, W, C)``, None where any is.

    Returns:
        Callable ``run(x, attention=False)`` → ``(scores (b, M), list of attentions (b, heads, t, t))``; it computes in
        float32 what is no product.
    """
    graphs = importlib.import_module("keras_capsvit.taps.graphs")  # which needs TensorFlow
    program = graphs.program_of(function, shape, in_bfloat16=True)
    return lambda x, attention=False: program.run(x, program.attentions if attention else ())
