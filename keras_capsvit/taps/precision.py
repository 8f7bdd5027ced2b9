"""Models that compute in another precision for a while."""

import contextlib

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
