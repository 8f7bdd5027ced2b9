"""How a model runs, live or served: what it returns, and what its layers and attentions return on the way."""

import collections
import functools
import importlib

import keras
import numpy as np
from keras import ops

from keras_capsvit import autodiff, private
from keras_capsvit.taps import declared
from keras_capsvit.taps.outputs import select_output
from keras_capsvit.taps.recording import Recorder, run

Seen = collections.namedtuple("Seen", "shapes kinds attentions before formats whole grid")
Seen.__doc__ = """What ran in a model on one image, in order.

Attributes:
    shapes: dict from names of layers to shapes of their outputs without the batch.
    kinds: dict from the same names to names of the layers' classes.
    attentions: list of shapes ``(1, heads, t, t)``; ``before``: for each, how many layers had run before it.
    formats: dict from names of layers to their ``data_format``, or None.
    whole: set of the names of layers that return one row per image, and not one per window.
    grid: ``(h, w)`` of the patches, where a tap of the model declares it; else None.
"""

Pass = collections.namedtuple("Pass", "returned output activation linear values attentions")
Pass.__doc__ = """One pass.

Attributes:
    returned: tensor, the class scores as the model returns them; None of a served one.
    output: tensor, what its ``activation`` at the end, a str or None, is of; ``linear``, whether that is computed so.
    values: list of tensors, of layers; ``attentions``: of attentions.
"""


def runner_of(model, output, name):
    """What runs a model: Live, or Served."""
    function_and_spec = served_function(model)
    if function_and_spec is not None:
        return Served(*function_and_spec, output, name)
    if not callable(model):
        raise ValueError(
            f"Expected a model, live or served, or a callable x → class scores; received {type(model).__name__}."
        )
    return Live(model, output, name)


class Live:
    """Keras models, layers, and callables."""

    def __init__(self, model, output, name):
        self._model, self._output, self._name = model, output, name
        self.input_shape, self.dtype, self.integers = None, "float32", None
        if isinstance(model, keras.Model):
            self.input_shape, self.dtype = _input_of(model, name)
            _check_layout(model, self.input_shape or first_called_with(model), name)
            inside = [layer for layer in private.inner_layers(model) if getattr(layer, "inputs", None)]
            self.integers = _integers([self.dtype, *(tensor.dtype for layer in inside for tensor in layer.inputs)])
        elif getattr(model, "input_shape", None):
            self.input_shape = tuple(model.input_shape[1:])

    def forward(self, x, layers=(), attention=False, offsets=None, continued=False):
        recorder = Recorder(layers, attention=attention, offsets=offsets, keeps_floats=continued)
        returned = self._selected(self._run(x, recorder))
        missing = [name for name in layers if name not in recorder.outputs]
        if missing:
            raise ValueError(f"Expected layers that {self._name} runs; received {missing}. See taps.layers.")
        values = [recorder.outputs[name] for name in layers]
        returned = returned if ops.is_tensor(returned) else _as_tensor(returned, self._name)
        before, linear = recorder.before_activation(returned), False
        if before is None and keras.backend.backend() == "tensorflow" and not autodiff.executes_eagerly():
            graphs = _graphs()
            before, linear = graphs.before_activation(returned), returned.op.type in graphs.LINEAR_ENDS
            if before is None and returned.op.type in graphs.CALLS and not (layers or attention):
                program = graphs.program_of(lambda x: self._selected(self._model(x)), x.shape[1:], x.dtype)
                output = program.run(x)[0]
                return Pass(returned, output, program.activation, program.ends_linearly, [], [])
        output, activation = (returned, None) if before is None else before
        return Pass(returned, output, activation, linear, values, recorder.attention)

    def look(self, x):
        recorder = Recorder(None, attention=True)
        returned = self._run(x, recorder)
        if self._output is not None:
            self._selected(returned)
        kinds = {name: type(layer).__name__ for name, layer in recorder.operations.items()}
        shapes = {name: tuple(value.shape[1:]) for name, value in recorder.outputs.items()}
        formats = {name: getattr(layer, "data_format", None) for name, layer in recorder.operations.items()}
        attentions = [tuple(each.shape) for each in recorder.attention]
        whole = {name for name, value in recorder.outputs.items() if value.shape[:1] == (1,)}
        features = getattr(declared.carrier(self._model), "taps", {}).get("features")
        grid = tuple(features.shape[1:3]) if len(getattr(features, "shape", ())) == 4 else None
        return Seen(shapes, kinds, attentions, recorder.before, formats, whole, grid)

    def returns_lengths(self, x):
        recorder = Recorder()
        output = self._selected(self._run(x, recorder))
        return any(out is output and "lengths" in declared.own_names(model) for model, _, out in recorder.tapped)

    def _run(self, x, recorder):
        x = ops.convert_to_tensor(x)
        input_names = getattr(self._model, "input", None) if getattr(self._model, "inputs", None) else None
        try:
            return run(self._model, dict.fromkeys(input_names, x) if isinstance(input_names, dict) else x, recorder)
        except (NotImplementedError, TypeError, AttributeError, RuntimeError) as error:
            traced = type(error).__name__.startswith("Tracer")  # of JAX
            if keras.backend.backend() == "tensorflow":
                traced = not autodiff.executes_eagerly()
            if isinstance(self._model, keras.Layer):
                raise
            if not traced:
                return on_array(self._model, x, error)
            raise ValueError(
                f"Expected a model or a callable of tensors; {self._name} leaves {keras.backend.backend()} on the way "
                f"to its scores, so that it has no gradient. Pass the model itself instead of its predict."
            ) from error

    def _selected(self, outputs):
        names = getattr(self._model, "output_names", None) or ()
        if isinstance(outputs, list | tuple) and len(names) == len(outputs):
            outputs = dict(zip(names, outputs, strict=True))
        elif isinstance(outputs, dict) and set(names) == set(outputs):
            outputs = {name: outputs[name] for name in names}
        return select_output(outputs, self._output, self._name)


class Served:
    """Functions of SavedModels (TensorFlow)."""

    def __init__(self, function, spec, output, name):
        if spec.shape.rank is None or spec.shape[0] is not None:
            raise ValueError(
                f"Expected images (b, H, W, C) of any number b; {name} takes {spec.shape}. Save it with a "
                "tf.TensorSpec((None, H, W, C)), or pass a callable that asks it image by image."
            )
        self._function, self._spec, self._output, self._name = function, spec, output, name
        self.input_shape, self.dtype = tuple(spec.shape[1:]), spec.dtype.name
        self.integers = _integers([self.dtype])

    @functools.cached_property
    def program(self):
        return _graphs().Program(lambda x: select_output(self._function(x), self._output, self._name), self._spec)

    def forward(self, x, layers=(), attention=False, offsets=None, continued=False):
        program = self.program
        squares = program.attentions if attention else []
        offsets = {squares[key] if isinstance(key, int) else key: value for key, value in (offsets or {}).items()}
        missing = [name for name in layers if name not in program.points]
        if missing:
            raise ValueError(f"Expected nodes of {self._name}; received {missing}. See taps.layers.")
        output, values = program.run(ops.convert_to_tensor(x), (*layers, *squares), offsets, continued)
        values, attentions = values[: len(layers)], values[len(layers) :]
        return Pass(None, output, program.activation, program.ends_linearly, values, attentions)

    def look(self, x):
        program = self.program
        x, names = ops.convert_to_tensor(x), list(program.points)
        attentions = [tuple(each.shape) for each in program.run(x, program.attentions)[1]]
        windowed = [name for name in names if len(program.points[name]) == 3 and any(a[0] != 1 for a in attentions)]
        rows = program.run(x, windowed)[1] if windowed else []
        return Seen(
            {name: shape[1:] for name, shape in program.points.items()},
            {name: program.op(name) for name in names},
            attentions,
            [names.index(name) for name in program.attentions],
            {name: program.data_format(name) for name in names},
            set(names) - {name for name, value in zip(windowed, rows, strict=True) if value.shape[0] != 1},
            None,
        )

    def returns_lengths(self, x):
        return False


def served_function(model):
    """``(function, tf.TensorSpec)`` of the images of a loaded SavedModel; None for anything else."""
    if hasattr(model, "traced_function"):  # what serving.load returns
        return model.traced_function()
    if isinstance(model, keras.Layer) or not getattr(model, "signatures", None):
        return None
    signatures = model.signatures
    key = "serving_default" if "serving_default" in signatures else next(iter(signatures))
    specs = signatures[key].structured_input_signature[1]
    if len(specs) != 1:
        raise ValueError(f"Expected a SavedModel with one input; its signature {key!r} takes {sorted(specs)}.")
    ((name, spec),) = specs.items()
    return (lambda x: signatures[key](**{name: x})), spec


def on_array(function, x, error):
    """What a function of NumPy arrays returns for a tensor, on which it failed with ``error``."""
    try:
        return function(np.array(ops.convert_to_numpy(x)))  # a copy, because arrays may be written to
    except Exception:
        raise error from None


def first_called_with(model):
    """Shape ``(H, W, C)`` of the images that a subclassed model was first called with; None if it is not known."""
    shape = (model.get_build_config() or {}).get("input_shape") if isinstance(model, keras.Model) else None
    sizes = isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape)
    return tuple(shape[1:]) if sizes else None


def _input_of(model, name):
    """Shape ``(H, W, C)`` and dtype of the only input of a Keras model; (None, float32) where it does not tell."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        shape = getattr(model, "input_shape", None)
        return (tuple(shape[1:]) if isinstance(shape, tuple) else None), "float32"
    if len(inputs) != 1:
        raise ValueError(
            f"Expected a model with one input, the images; {name} has {[tensor.name for tensor in inputs]}. Make one "
            "of it that has the others' values inside: lambda x: model([x, others])."
        )
    return tuple(inputs[0].shape[1:]), keras.backend.standardize_dtype(inputs[0].dtype)


def _integers(dtypes):
    """The first integer type among those of the inputs of a model and the models inside it; or None."""
    return next((dtype for dtype in map(keras.backend.standardize_dtype, dtypes) if "int" in dtype), None)


def _check_layout(model, shape, name):
    """Refuse a model of images with channels in front."""
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3, 4) or shape[-1] in (1, 3, 4):
        return
    layers = [layer for layer in private.inner_layers(model) if getattr(layer, "data_format", "") == "channels_first"]
    if layers:
        height, width = shape[1:]
        raise ValueError(
            f"Expected images (b, H, W, C); {name} takes {(None, *shape)}, with channels in front (data_format="
            f"'channels_first' in {layers[0].name}). Put keras.layers.Permute((3, 1, 2)) in front of it: "
            f"keras.Sequential([keras.Input(({height}, {width}, {shape[0]})), keras.layers.Permute((3, 1, 2)), model])."
        )


def _as_tensor(output, name):
    try:
        return ops.convert_to_tensor(output)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected class scores (batch, classes) from {name}; received {type(output).__name__}."
        ) from error


def _graphs():
    return importlib.import_module("keras_capsvit.taps.graphs")
