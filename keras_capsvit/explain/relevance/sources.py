"""What can be explained, as a function of one tensor: Keras models, callables, tf.functions and SavedModels."""

import os

import keras
import tensorflow as tf


def load(model):
    """The loaded object for the path of a SavedModel; anything else is returned as it is."""
    if not isinstance(model, str | os.PathLike):
        return model
    if not tf.io.gfile.exists(os.path.join(model, "saved_model.pb")):
        raise ValueError(
            f"Expected the folder of a SavedModel, with saved_model.pb; received {os.fspath(model)!r}. What "
            "serving.export wrote has one folder per version in it."
        )
    return tf.saved_model.load(model)


def read(model, *, input_shape=None, fixed=None, output=None, signature="serving_default", extra=()):
    """A function of the input that is explained.

    Args:
        model: see LRP; a path is loaded by ``load`` first.
        input_shape: shape of one input without batch; None for what the model tells.
        fixed: dict of values of the other inputs.
        output: name or index of the output; None for the only one.
        signature: str, of a SavedModel.
        extra: names of taps to return besides.

    Returns:
        ``(function, spec)``: callable ``x → [output, *extra]``, and the tf.TensorSpec of ``x``.

    Raises:
        ValueError: where the model leaves open what is meant; says what to pass.
    """
    call, specs = _callable(model, signature, input_shape, extra)
    name = _explained(specs, dict(fixed or {}))
    others = {key: tf.constant(value, specs[key].dtype) for key, value in (fixed or {}).items()}
    spec = specs[name]
    shape = tuple(spec.shape[1:] if input_shape is None else input_shape)
    if None in shape:
        raise ValueError(
            f"Expected a known input size; the model takes {tuple(spec.shape)}. Pass input_shape=(H, W, C)."
        )

    def function(x):
        found = call({**others, name: x})
        results, tapped = found if extra else (found, [])
        return [_one_of(results, output), *tapped]

    return function, tf.TensorSpec((spec.shape[0], *shape), spec.dtype)


def _callable(model, signature, input_shape, extra):
    """``(call, specs)``: from a dict of inputs by name to outputs, and the specs of these inputs."""
    if isinstance(model, keras.Model) and getattr(model, "inputs", None):
        return _functional(model, extra)
    if getattr(model, "signatures", None) and not isinstance(model, keras.Model):
        return _signature(model, signature)
    given = _given(model)
    if given is not None:
        specs = {spec.name or f"argument_{i}": spec for i, spec in enumerate(given)}
        return lambda inputs: model(*(inputs[name] for name in specs)), specs
    shape = input_shape if input_shape is not None else (getattr(model, "input_shape", None) or (None,))[1:]
    if not callable(model):
        raise ValueError(f"Expected a model, a callable or the path of a SavedModel; received {type(model).__name__}.")
    if not shape:
        raise ValueError(f"{_name(model)} does not tell the size of its input; pass input_shape=(H, W, C).")
    arguments = {"training": False} if isinstance(model, keras.Layer) else {}
    return lambda inputs: model(inputs["x"], **arguments), {"x": tf.TensorSpec((None, *shape), "float32")}


def _functional(model, extra):
    specs = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs}
    if len(specs) == 1 and not extra:
        return lambda inputs: model(*inputs.values(), training=False), specs
    tapped = [model.taps[name] for name in extra]
    view = keras.Model(model.inputs, [model.outputs, tapped] if extra else model.outputs)
    return lambda inputs: view([inputs[name] for name in specs], training=False), specs


def _signature(model, signature):
    if signature not in model.signatures:
        raise ValueError(f"The SavedModel has the signatures {sorted(model.signatures)}; received {signature!r}.")
    function = model.signatures[signature]
    specs = dict(function.structured_input_signature[1])
    return lambda inputs: function(**inputs), specs


def _given(model):
    """Specs of the arguments of a traced or declared tf.function, or None."""
    declared = getattr(model, "structured_input_signature", None)
    if declared is None:
        declared = getattr(model, "input_signature", None)
    return None if declared is None else [s for s in tf.nest.flatten(declared) if isinstance(s, tf.TensorSpec)]


def _explained(specs, fixed):
    unknown = [name for name in fixed if name not in specs]
    left = [name for name in specs if name not in fixed]
    if unknown or len(left) != 1:
        raise ValueError(
            f"Expected one input to explain; {list(specs)} minus fixed={list(fixed)} leaves {left}. Pass the values of "
            "all other inputs as fixed={name: value}."
        )
    return left[0]


def _one_of(results, output):
    if not isinstance(results, dict | list | tuple):
        return results
    by_name = results if isinstance(results, dict) else dict(enumerate(results))
    if output is None and len(by_name) == 1:
        return next(iter(by_name.values()))
    if output is None and "outputs" in by_name:  # what serving.export calls the scores beside what comes with them
        output = "outputs"
    if output not in by_name:
        raise ValueError(f"Expected output= to be one of the model's outputs {list(by_name)}; received {output!r}.")
    return by_name[output]


def _name(model):
    return getattr(model, "name", None) or getattr(model, "__name__", type(model).__name__)
