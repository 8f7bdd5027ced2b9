"""Taps that a model declares itself: a mapping ``taps`` from names to its intermediates.

Its values are the symbolic tensors of a live functional model, or, where there is no live model (a SavedModel),
callables from images to the intermediate; then ``together(names)`` may say how to compute several in one pass.
"""

import keras

from keras_capsvit import private
from keras_capsvit.taps.recording import Recorder, run

SCORES = ("lengths", "logits")


def own_names(model):
    """Sorted names of the taps that a model itself declares."""
    return sorted(getattr(model, "taps", {}))


def carrier(model):
    """The model that declares the taps: ``model`` itself, or the only such model inside it; else None."""
    if own_names(model):
        return model
    inside = private.inner_layers(model) if isinstance(model, keras.Layer) else []
    carriers = list({id(layer): layer for layer in inside if own_names(layer)}.values())
    # A backbone inside of a model with taps is a part of that one.
    inner = {id(layer) for layer in carriers for layer in private.inner_layers(layer)}
    carriers = [layer for layer in carriers if id(layer) not in inner]
    return carriers[0] if len(carriers) == 1 else None


def names(model):
    """Sorted names of the taps that a model, or the one model with taps inside it, declares."""
    carries = carrier(model)
    return [] if carries is None else own_names(carries)


def tap(model, name):
    """Callable from images to declared intermediates.

    Args:
        model: live or served model.
        name: str out of ``names(model)``, or a list of such.
    """
    carries = carrier(model)
    if carries is not model:
        return _through(model, carries, name)
    listed = [name] if isinstance(name, str) else list(name)
    taps = [model.taps[each] for each in listed]
    if all(map(callable, taps)):
        if isinstance(name, str):
            return taps[0]
        return model.together(listed) if hasattr(model, "together") else lambda x: [each(x) for each in taps]
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    if not isinstance(name, str) and len(listed) == 1:  # of which Keras would return the tensor itself
        single = keras.Model(inputs, taps[0], name=f"{model.name}_tap")
        return lambda x, training=False: [single(x, training=training)]
    return keras.Model(inputs, taps[0] if isinstance(name, str) else taps, name=f"{model.name}_tap")


def _through(model, inner, name):
    """The intermediates of a model inside another, of what that one gives it."""
    inside = tap(inner, name)

    def outer(x):
        recorder = Recorder()
        run(model, x, recorder)
        inputs = [x for called, x, _ in recorder.tapped if called is inner]
        if len(inputs) != 1:
            raise ValueError(
                f"Expected {model.name} to call {inner.name}, which has the tap {name!r}, once; it calls it "
                f"{len(inputs)} times."
            )
        return inside(inputs[0], training=False)

    return outer
