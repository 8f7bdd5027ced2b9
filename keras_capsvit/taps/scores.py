"""Class scores of any model before its softmax or sigmoid, and its intermediates along with them."""

import collections
import functools
import importlib
import warnings

import keras
import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks, private
from keras_capsvit.taps import declared
from keras_capsvit.taps.recording import Recorder, eagerly, run

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

_Ran = collections.namedtuple("_Ran", "returned output activation linear values attentions")
_Ran.__doc__ = """One pass.

Attributes:
    returned: tensor, the class scores as the model returns them; None of a served one.
    output: tensor, what its ``activation`` at the end, a str or None, is of; ``linear``, whether that is computed so.
    values: list of tensors, of layers; ``attentions``: of attentions.
"""

_SIZE = 64  # of images for a look, where any is taken
_NOISE = 8  # images that a model is asked what kind of scores it returns
_TINY = 1e-30  # probabilities below this count as this


class Scores:
    """Class scores of images, as a function ``x (b, H, W, C) → (b, M)``, float32, on either backend; see ``scores``.

    Attributes:
        model: what the scores are of.
        name: str.
        variables: list of keras.Variable, what the scores depend on besides the images.
        input_shape: tuple ``(H, W, C)``, None where the model leaves it open; None for a callable that tells none, and
            for a subclassed model.
        dtype: str, of the images that the model takes.
    """

    def __init__(self, model, output=None):
        check_output(output)
        self.model = model
        self.name = getattr(model, "name", None) or getattr(model, "__name__", type(model).__name__)
        self.variables = list(getattr(model, "variables", ()))
        self._declared = next((name for name in declared.SCORES if name in declared.own_names(model)), None)
        if self._declared and output is not None:
            raise ValueError(f"{self.name} has one output, its {self._declared}; received output={output!r}.")
        self._source = _source(model, output, self.name)
        self.input_shape, self.dtype = self._source.input_shape, self._source.dtype
        self._probabilities = None  # whether they are that, where no activation can be undone
        self._continues = None  # whether a model of integers can be run on floats
        self._opaque = False
        self._single = False  # whether the model has one output, as its last pass told
        self.seen, self.influences = {}, {}  # what ran, and what it means, by shape of the images; see ``points``

    @property
    def sample_shape(self):
        """Shape ``(H, W, C)`` of images for a look: ``input_shape``, or that of the first ones of a subclass."""
        return self.input_shape or _first_called_with(self.model)

    @functools.cached_property
    def kind(self):
        """``"lengths"`` of class capsules in [0, 1), or ``"logits"``."""
        if self._declared:
            return self._declared
        shape = self.sample_shape
        if declared.carrier(self.model) is None or shape is None or None in shape:
            return "logits"
        return "lengths" if eagerly(lambda: self._source.returns_lengths(self.noise(shape))) else "logits"

    def __call__(self, x):
        """Scores ``(b, M)`` of images ``(b, H, W, C)``, a tensor or an array."""
        if self._declared:
            return ops.cast(self._tap(x), "float32")
        if autodiff.executes_eagerly() and not self._opaque:
            return self._compiled(ops.convert_to_tensor(x))
        return self.recorded(ops.convert_to_tensor(x))[0]

    def probabilities(self, x):
        """Probabilities ``(b, M)`` of images ``(b, H, W, C)``: the softmax of the scores; of a single output ``z``,
        whose scores are ``(-z, z)``, its sigmoid."""
        scores = self(x)
        return ops.softmax(scores / 2 if self._single else scores)

    def recorded(self, x, layers=(), *, attention=False, offsets=None):
        """Scores, and what layers and attentions return on the way to them.

        Args:
            x: tensor ``(b, H, W, C)``.
            layers: names out of ``taps.layers(model)``.
            attention: bool, whether attentions are wanted.
            offsets: dict from names of layers, or positions of attentions, to tensors that are added to what they
                return, such as zeros: the gradient there is that with respect to the intermediate.

        Returns:
            ``(scores (b, M), list of the layers' tensors, list of attentions (b, heads, t, t))``.

        Raises:
            ValueError: for layers that the model does not run, a model without class scores, and one of integers that
                cannot be run on floats.
        """
        ran = self._forward(x, layers, attention, offsets)
        return self._as_scores(ran, x), ran.values, ran.attentions

    def intermediates(self, x, layers=(), *, attention=False):
        """What layers and attentions return, also of a model without class scores; see ``recorded``."""
        ran = self._forward(x, layers, attention)
        return ran.values, ran.attentions

    def answer(self, x):
        """What a live model returns, and its class scores, in one pass.

        Args:
            x: tensor ``(b, H, W, C)``.

        Returns:
            ``(output (b, N), scores (b, M))``: the output with its softmax or sigmoid, and the scores before it.
        """
        if self._declared:
            output = self.model(x, training=False)
            return output, ops.cast(output, "float32")
        ran = self._forward(x)
        return ran.returned, self._as_scores(ran, x)

    def _forward(self, x, layers=(), attention=False, offsets=None):
        return self._source.forward(x, layers, attention, offsets, self._continues_on_floats(x))

    def look(self, shape):
        """What runs in the model on images of a shape ``(H, W, C)``: see ``points.Seen``."""
        return eagerly(lambda: self._source.look(self.noise(shape)[:1]))

    @functools.cached_property
    def _tap(self):
        function = declared.tap(self.model, self._declared)
        arguments = {"training": False} if isinstance(function, keras.Layer) else {}
        return lambda x: function(x, **arguments)

    @functools.cached_property
    def _compiled(self):
        function = autodiff.compiled(lambda x: self.recorded(x)[0], self.variables)

        def call(x):
            try:
                return function(x)
            except (TypeError, NotImplementedError, AttributeError, ValueError):
                # A callable that leaves TensorFlow cannot be traced; it can still be asked.
                if isinstance(self.model, keras.Layer):
                    raise
                scores = self.recorded(x)[0]
                self._opaque = True
                return scores

        return call

    def _as_scores(self, ran, x):
        output = ran.output
        if len(output.shape) != 2:
            raise ValueError(
                f"Expected a model with class scores of shape (batch, classes); {self.name} returns "
                f"{tuple(output.shape)}."
            )
        output = ops.cast(output, "float32")
        self._single = single = output.shape[-1] == 1
        if single and ran.activation == "softmax":
            raise ValueError(f"{self.name} ends in the softmax of one unit, which is 1 for every image; use a sigmoid.")
        if ran.activation is None and not ran.linear and self._are_probabilities(x):
            tail = ops.log(ops.maximum(1 - output, _TINY)) if single else 0.0
            output = ops.log(ops.maximum(output, _TINY)) - tail
        return ops.concatenate([-output, output], axis=-1) if single else output

    def _are_probabilities(self, x):
        if self._probabilities is None:
            # Where traces serve images of any size they leave it open.
            self._probabilities = eagerly(lambda: self._look(tuple(size or _SIZE for size in x.shape[1:])))
            if self._probabilities:
                warnings.warn(
                    f"{self.name} returns probabilities by a computation that cannot be undone, so their logarithm is "
                    "taken for the class scores. Return logits where gradients and attacks matter: those of "
                    "probabilities near 0 and 1 vanish.",
                    stacklevel=2,
                )
        return self._probabilities

    def _look(self, shape):
        values = np.concatenate(
            [ops.convert_to_numpy(self._source.forward(images).output) for images in np.split(self.noise(shape), 2)]
        ).astype("float64")
        inside = np.all((values >= 0) & (values <= 1 + 1e-5))
        if values.shape[-1] == 1:
            return bool(inside and np.ptp(values) > 0)
        return bool(inside and np.allclose(values.sum(axis=-1), 1, atol=1e-3))

    def noise(self, shape):
        """Images for a look, an array, half of them with pixels in [0, 1] and half with pixels in [0, 255]."""
        if None in shape:
            raise ValueError(f"Expected images of a known size; {self.name} was called with {shape}.")
        noise = np.random.default_rng(0).uniform(size=(_NOISE, *shape))
        noise[_NOISE // 2 :] *= 255
        return noise.astype(self.dtype)

    def _continues_on_floats(self, x):
        """Whether the model takes integers, and ``x`` has to go round the cast to these; or an error."""
        if self._source.integers is None or not keras.backend.is_float_dtype(x.dtype):
            return False
        if self._continues is None:
            self._continues = eagerly(lambda: self._same_on_floats(tuple(x.shape[1:])))
        if not self._continues:
            raise ValueError(
                f"{self.name} takes {self._source.integers} images and does not compute the same from floats, so that "
                "no gradient reaches its pixels. Expected a model whose first step casts them to floats; pass the part "
                "of it that follows."
            )
        return True

    def _same_on_floats(self, shape):
        images = np.floor(250 * np.random.default_rng(0).uniform(size=(2, *shape))).astype(self.dtype)
        exact = ops.convert_to_numpy(self._source.forward(images).output)
        try:
            floats, between = (
                ops.convert_to_numpy(self._source.forward((images + more).astype("float32"), continued=True).output)
                for more in (0.0, 0.5)
            )
        except (TypeError, ValueError):
            return False
        # Between integers the scores change, unless the model rounds by itself.
        return bool(np.allclose(exact, floats, rtol=1e-4, atol=1e-5) and not np.array_equal(floats, between))


class _Live:
    """Keras models, layers, and callables."""

    def __init__(self, model, output, name):
        self._model, self._output, self._name = model, output, name
        self.input_shape, self.dtype, self.integers = None, "float32", None
        if isinstance(model, keras.Model):
            self.input_shape, self.dtype = _input_of(model, name)
            _check_layout(model, self.input_shape or _first_called_with(model), name)
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
                return _Ran(returned, output, program.activation, program.ends_linearly, [], [])
        output, activation = (returned, None) if before is None else before
        return _Ran(returned, output, activation, linear, values, recorder.attention)

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
                return self._run_on_array(x, error)
            raise ValueError(
                f"Expected a model or a callable of tensors; {self._name} leaves {keras.backend.backend()} on the way "
                f"to its scores, so that it has no gradient. Pass the model itself instead of its predict."
            ) from error

    def _run_on_array(self, x, error):
        """What a function of NumPy arrays returns, which failed on a tensor."""
        try:
            return self._model(np.array(ops.convert_to_numpy(x)))  # a copy, because arrays may be written to
        except Exception:
            raise error from None

    def _selected(self, outputs):
        names = getattr(self._model, "output_names", None) or ()
        if isinstance(outputs, list | tuple) and len(names) == len(outputs):
            outputs = dict(zip(names, outputs, strict=True))
        elif isinstance(outputs, dict) and set(names) == set(outputs):
            outputs = {name: outputs[name] for name in names}
        return chosen_output(outputs, self._output, self._name)


class _Served:
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
        return _graphs().Program(lambda x: chosen_output(self._function(x), self._output, self._name), self._spec)

    def forward(self, x, layers=(), attention=False, offsets=None, continued=False):
        program = self.program
        squares = program.attentions if attention else []
        offsets = {squares[key] if isinstance(key, int) else key: value for key, value in (offsets or {}).items()}
        missing = [name for name in layers if name not in program.points]
        if missing:
            raise ValueError(f"Expected nodes of {self._name}; received {missing}. See taps.layers.")
        output, values = program.run(ops.convert_to_tensor(x), (*layers, *squares), offsets, continued)
        values, attentions = values[: len(layers)], values[len(layers) :]
        return _Ran(None, output, program.activation, program.ends_linearly, values, attentions)

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


def _source(model, output, name):
    function_and_spec = served_function(model)
    if function_and_spec is not None:
        return _Served(*function_and_spec, output, name)
    if not callable(model):
        raise ValueError(
            f"Expected a model, live or served, or a callable x → class scores; received {type(model).__name__}."
        )
    return _Live(model, output, name)


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


def check_output(output):
    """Refuse what is no name and no position of an output, and not None; otherwise return it."""
    return output if output is None or isinstance(output, str) else checks.integer("output", output, low=-(2**31))


def chosen_output(outputs, output, name):
    """One of several outputs.

    Args:
        outputs: tensor, or a dict, list or tuple of such.
        output: str or int, or None for the only one.
        name: str, of the model, for the message.

    Raises:
        ValueError: lists the outputs.
    """
    check_output(output)
    if not isinstance(outputs, dict | list | tuple):
        if output not in (None, 0):
            raise ValueError(f"{name} has one output; received output={output!r}. Leave it out.")
        return outputs
    by_name = outputs if isinstance(outputs, dict) else dict(enumerate(outputs))
    if output is None and len(by_name) == 1:
        return next(iter(by_name.values()))
    if isinstance(output, int) and output not in by_name and -len(by_name) <= output < len(by_name):
        return list(by_name.values())[output]
    if output is None and "outputs" in by_name:  # what serving.export calls the scores beside what comes with them
        output = "outputs"
    if output not in by_name:
        raise ValueError(
            f"Expected output= to name one of the outputs of {name}, {list(by_name)}; received {output!r}. What has no "
            "such argument takes taps.scores(model, output) in place of the model."
        )
    return by_name[output]


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


def _first_called_with(model):
    """Shape ``(H, W, C)`` of the images that a subclassed model was first called with; None if it is not known."""
    shape = (model.get_build_config() or {}).get("input_shape") if isinstance(model, keras.Model) else None
    sizes = isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape)
    return tuple(shape[1:]) if sizes else None


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


def scores(model, output=None):
    """Class scores of a model, before any softmax, sigmoid or log-softmax at its end.

    The end is looked for where the model runs: a layer's activation, a layer of its own, an op in a subclass's
    ``call``, in a nested model, in the graph of a SavedModel. One sigmoid output ``(b, 1)`` with the logit ``z`` is a
    model of two classes with the scores ``(-z, z)``, and so is a single output without a sigmoid. Of probabilities that
    are computed otherwise (a mean over models, say) the logarithm is taken, with a warning.

    Args:
        model: Keras model of any kind, what ``serving.load`` or ``tf.saved_model.load`` returned, or callable
            ``x (b, H, W, C) → scores (b, M)``; or Scores, which are returned as they are.
        output: str or int, of a model with several outputs.

    Returns:
        Scores, a callable ``x (b, H, W, C) → (b, M)``, float32: the tap ``lengths`` or ``logits`` of a model that
        declares it.

    Raises:
        ValueError: for several inputs or outputs, channels in front, and what is no model; when called, for what is no
            class scores.
    """
    return model if isinstance(model, Scores) and output is None else Scores(model, output)


def predictions(model, x):
    """Classes that a model predicts.

    Args:
        model: see ``scores``.
        x: images ``(b, H, W, C)``.

    Returns:
        int array ``(b,)``, the classes of the highest scores: of one sigmoid output 1 where it is above 1/2.

    Raises:
        ValueError: for images of another size, NaN or infinite ones, and such scores.
    """
    x, subject = checks.images(x, empty=False), scores(model)
    checks.of_size(x, subject.input_shape, subject.name)
    with checks.running(subject.name, x):
        values = checks.finite(checks.numbers(subject(ops.convert_to_tensor(x)), "scores"), f"scores of {subject.name}")
    if values.shape[:1] != x.shape[:1]:
        raise ValueError(f"Expected scores of {len(x)} images from {subject.name}; received {values.shape}.")
    return values.argmax(axis=-1)
