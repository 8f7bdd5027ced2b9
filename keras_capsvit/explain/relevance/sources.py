"""What can be explained, as a function of one tensor: Keras models, callables, tf.functions and SavedModels."""

import os

import keras
import numpy as np
import tensorflow as tf

from keras_capsvit import checks, taps


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


def read(model, *, input_shape=None, fixed=(), output=None, signature="serving_default", extra=()):
    """A function of the input that is explained, and of the others.

    Args:
        model: see LRP; a path is loaded by ``load`` first.
        input_shape: shape of one input without batch; None for what the model tells.
        fixed: names of the other inputs.
        output: name or index of the output; None for the only one.
        signature: str, of a SavedModel.
        extra: names of taps to return besides.

    Returns:
        ``(function, spec, others)``: callable ``(x, *fixed) → [output, *extra]``, the tf.TensorSpec of ``x``, and those
        of the fixed inputs.

    Raises:
        ValueError: where the model leaves open what is meant; says what to pass.
    """
    if input_shape is not None:
        checks.integers("input_shape", input_shape, (None,), "(n,), such as (H, W, C)", low=1)
        input_shape = tuple(input_shape)
    call, specs = _callable(model, signature, input_shape, extra)
    name = _explained(specs, fixed)
    spec = specs[name]
    if input_shape is not None and not spec.shape[1:].is_compatible_with(input_shape):
        raise ValueError(f"The model takes images of shape {tuple(spec.shape[1:])}; received {input_shape=}.")
    shape = tuple(spec.shape[1:] if input_shape is None else input_shape)
    if None in shape:
        raise ValueError(
            f"Expected a known input size; the model takes {tuple(spec.shape)}. Pass input_shape=(H, W, C)."
        )

    def function(x, *fixed_values):
        outputs = call({**dict(zip(fixed, fixed_values, strict=True)), name: x})
        results, tapped = outputs if extra else (outputs, [])
        return [_scores_of(results, output, _name(model)), *tapped]

    return function, tf.TensorSpec((spec.shape[0], *shape), spec.dtype), [specs[key] for key in fixed]


def rows(value, spec, count, name):
    """Values of a fixed input for a number of images.

    Args:
        value: array, a row for each image, or one row for all, with or without a batch axis.
        spec: tf.TensorSpec of the input.
        count: int, how many images.
        name: str, of the input.

    Returns:
        Array ``(count, ...)``; of an input without a batch axis, the value as it is.

    Raises:
        ValueError: for another number of rows, and other shapes.
    """
    value = np.asarray(value, spec.dtype.as_numpy_dtype)
    if spec.shape.rank is not None and value.ndim == spec.shape.rank - 1:
        value = value[None]
    if not spec.shape.is_compatible_with(value.shape):
        raise ValueError(f"Expected fixed[{name!r}] of shape {tuple(spec.shape)}; received {value.shape}.")
    if spec.shape.rank == 0 or (spec.shape.rank and spec.shape[0] is not None):
        return value
    if len(value) not in (1, count):
        raise ValueError(
            f"Expected fixed[{name!r}] to have one row for each of {count} images, or one row for all; received "
            f"{len(value)} rows."
        )
    return np.broadcast_to(value, (count, *value.shape[1:]))


def _callable(model, signature, input_shape, extra):
    """``(call, specs)``: from a dict of inputs by name to outputs, and the specs of these inputs."""
    if isinstance(model, keras.Model) and getattr(model, "inputs", None):
        return _functional(model, extra)
    if getattr(model, "signatures", None) and not isinstance(model, keras.Model):
        return _signature(model, signature)
    declared = _arguments(model)
    if declared is not None:
        specs = {spec.name or f"argument_{i}": spec for i, spec in enumerate(declared)}
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
    names = _output_names(model)
    alone = len(specs) == 1 and not extra  # then by the model itself
    view = None if alone else keras.Model(model.inputs, [*model.outputs, *(model.taps[name] for name in extra)])

    def call(inputs):
        arguments = [inputs[name] for name in specs]
        tensors = tf.nest.flatten(model(*arguments, training=False) if alone else view(arguments, training=False))
        results = dict(zip(names, tensors, strict=False))
        return (results, tensors[len(names) :]) if extra else results

    return call, specs


def _output_names(model):
    """What the outputs of a functional model are called, in the order of ``tf.nest.flatten``."""
    structure = model.compute_output_spec(model.inputs)
    if isinstance(structure, dict):
        return sorted(structure)
    return getattr(model, "output_names", None) or range(len(model.outputs))


def _signature(model, signature):
    if signature not in model.signatures:
        raise ValueError(f"The SavedModel has the signatures {sorted(model.signatures)}; received {signature!r}.")
    function = model.signatures[signature]
    specs = dict(function.structured_input_signature[1])
    return lambda inputs: function(**inputs), specs


def _arguments(model):
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


def _scores_of(results, output, name):
    scores = taps.select_output(results, output, name)
    if not tf.as_dtype(getattr(scores, "dtype", "string")).is_floating:
        raise ValueError(f"Expected class scores, a tensor of floats, to explain; received {scores!r:.100}.")
    return scores


def _name(model):
    return getattr(model, "name", None) or getattr(model, "__name__", type(model).__name__)
