"""Gradients with respect to inputs, and compiled functions, on the TensorFlow and the JAX backend."""

from keras_capsvit.autodiff.backend import draws_once, executes_eagerly, is_traced, replica, replicas
from keras_capsvit.autodiff.chunks import in_chunks
from keras_capsvit.autodiff.compiling import compiled, counted, traces
from keras_capsvit.autodiff.gradients import gradient, jacobian, value_and_gradient

__all__ = [
    "compiled",
    "counted",
    "draws_once",
    "executes_eagerly",
    "gradient",
    "in_chunks",
    "is_traced",
    "jacobian",
    "replica",
    "replicas",
    "traces",
    "value_and_gradient",
]
