"""Functions of class scores that are compiled once per model, whoever asks for them."""

import keras

from keras_capsvit import autodiff, caches
from keras_capsvit.taps import declared
from keras_capsvit.taps.runners import served_function
from keras_capsvit.taps.scores import Scores, scores

_COMPILED = caches.Cache(64)


def is_model(model):
    """Whether something is a model, live or served, and not a plain callable, which may depend on anything."""
    return bool(isinstance(model, keras.Layer | Scores) or declared.names(model)) or served_function(model) is not None


def compiled(model, key, make, output=None):
    """A function of the class scores of a model, compiled once and kept until the model goes or changes.

    Args:
        model: see ``scores``; of a plain callable the function is compiled anew for each who asks.
        key: str, which function.
        make: callable from Scores to a function of tensors; it refers to no model but by these.
        output: see ``scores``.

    Returns:
        Callable of tensors or arrays.
    """
    subject = scores(model, output)
    if not is_model(model):
        return autodiff.compiled(make(subject), subject.variables)
    there = caches.weakly(model)

    def function(*args):
        return make(scores(there(), output))(*args)

    return _COMPILED.get((model,), (key, output), lambda: autodiff.compiled(function, subject.variables))
