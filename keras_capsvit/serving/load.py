"""Loading SavedModels, what ``export`` wrote and others, as models."""

import functools
import pathlib
import warnings

import numpy as np
import tensorflow as tf

from keras_capsvit import autodiff, checks
from keras_capsvit.files import FileError, read_json, reading, refuse
from keras_capsvit.serving.endpoints import DEFAULT, EXPLAIN
from keras_capsvit.serving.export import CARD, newest

_MOST_TOGETHER = 16  # lists of taps whose functions are kept
_IMAGES, _OUTPUTS = "images", "outputs"  # of what ``export`` wrote


def load(path, version=None, *, signature=None, input=None, output=None) -> "ServedModel":
    """Load a SavedModel; it is called, explained, attacked and evaluated like a live model.

    Of what ``export`` wrote nothing needs to be named. Of a SavedModel that Keras or TensorFlow wrote, names that leave
    no choice are found.

    Args:
        path: what ``export`` was given; or a folder with ``saved_model.pb``.
        version: int, or None for the highest.
        signature: str, the signature that computes class scores; None for ``serving_default``, or the only one.
        input: str, the input of it that takes the images; None for ``images``, or the only one.
        output: str, the output of it that is class scores; None for ``outputs``, or the only one.

    Returns:
        ServedModel. A ``model_card.json`` that is damaged is left out with a warning: nothing is computed from it.

    Raises:
        FileNotFoundError: if there is no SavedModel; names the folder that was searched.
        ValueError: for a SavedModel that is damaged or incomplete; if a name is needed, or there is none such, with the
            signatures, inputs and outputs.
    """
    path = pathlib.Path(path)
    if version is None and not (path / "saved_model.pb").is_file():
        version = newest(path)
    folder = path if version is None else path / str(version)
    if not (folder / "saved_model.pb").is_file():
        raise FileNotFoundError(
            f"Expected a SavedModel in {folder.resolve()} (a folder with saved_model.pb, or with version folders 1, 2, "
            "...); found none. Write one with serving.export."
        )
    with reading(folder, "a SavedModel", "Export the model again, or copy the folder again."):
        loaded = tf.saved_model.load(str(folder))
    return ServedModel(
        loaded,
        _card(folder / CARD),
        signature=signature,
        input=input,
        output=output,
    )


def _card(path):
    """What a model card says; nothing, with a warning, if it cannot be read."""
    kind = "a model card"
    if not path.is_file():
        return {}
    try:
        card = read_json(path, kind)
        if not isinstance(card, dict) or not isinstance(card.get("name", ""), str) or not _tells_range(card):
            refuse(path, kind, "it is no object with a name and an input range")
    except FileError as error:
        warnings.warn(
            f"The model is loaded without its card, so its name and the range of its pixels are not known: {error}",
            stacklevel=3,
        )
        return {}
    return card


def _tells_range(card):
    """Whether the range of pixels that a card names is one, or none."""
    pixels = card.get("input", {}).get("range") if isinstance(card.get("input", {}), dict) else ()
    if pixels is None:
        return True
    numbers = isinstance(pixels, list) and [type(end) in (int, float) for end in pixels] == [True, True]
    return numbers and pixels[0] < pixels[1]


class ServedModel:
    """A loaded SavedModel: ``served(x)`` gives class scores as it returns them; ``served.taps`` its intermediates.

    Args:
        loaded: what ``tf.saved_model.load`` returned.
        card: dict, its model card.
        signature: str, see ``load``; and so are ``input`` and ``output``.

    Attributes:
        taps: dict from names to callables of images; empty for what ``export`` did not write.
        endpoints: sorted list of str, everything that ``run`` knows: the signatures.
        card: dict, what ``model_card.json`` says.
        centres: dict from names of taps to where their nodes look, see ``taps.centres``.
        input_shape: tuple ``(None, H, W, C)``.
        parameters: int, how many weights the signature reads.
    """

    def __init__(self, loaded, card=None, *, signature=None, input=None, output=None):
        self._loaded = loaded  # its variables live as long as this reference
        self._several = functools.lru_cache(_MOST_TOGETHER)(self._traced_together)
        self.card = card or {}
        self.name = self.card.get("name", "served_model")
        self.endpoints = sorted(getattr(loaded, "signatures", {}))
        if not self.endpoints:
            raise ValueError(
                "Expected a SavedModel with signatures; received one without. Pass tf.saved_model.save(..., "
                "signatures=...) a tf.function of images."
            )
        self._signature = self._named("signature", self.endpoints, signature, DEFAULT)
        self._input = self._named("input", self._inputs(self._signature), input, _IMAGES)
        self._output = self._named("output", self._outputs(self._signature), output, _OUTPUTS)
        self.input_shape = tuple(self._inputs(self._signature)[self._input].shape)
        variables = loaded.signatures[self._signature].variables
        self.parameters = sum(variable.shape.num_elements() for variable in variables)
        self.taps = {}
        if self._signature == DEFAULT and set(self._outputs(DEFAULT)) == {_OUTPUTS, "class"}:  # written by ``export``
            names = [name for name in self.endpoints if set(self._outputs(name)) == {_OUTPUTS}]
            self.taps = {name: self._tap(name) for name in names}
        told = loaded.centres() if self.taps and hasattr(loaded, "centres") else {}
        self.centres = {name: [side.numpy() for side in sides] for name, sides in told.items()}

    def __call__(self, x):
        """Class scores ``(b, M)`` of images ``(b, H, W, C)``, with the softmax or sigmoid that the model ends in."""
        return self.run(self._signature, **{self._input: x})[self._output]

    def predict(self, x, batch_size=128):
        """Class scores ``(n, M)`` of images ``(n, H, W, C)`` as a NumPy array, in batches of int ``batch_size``."""
        starts = range(0, max(len(x), 1), checks.batch_size(batch_size))
        return np.concatenate([self(x[start : start + batch_size]).numpy() for start in starts])

    def explain(self, x, target=None, *, endpoint=EXPLAIN):
        """Scores, predicted classes and maps of images.

        Args:
            x: images ``(b, H, W, C)``.
            target: class id or ids ``(b,)``, -1 or None for the predicted class; only of explainers that take one.
            endpoint: str, ``explain`` or the name that an explainer was exported by.

        Returns:
            dict of the tensors ``outputs (b, M)``, ``class (b,)`` and ``maps``, see ``export``.

        Raises:
            ValueError: if there is no such endpoint, and for a target that the endpoint does not take.
        """
        explainers = [name for name in self.endpoints if "maps" in self._outputs(name)]
        if endpoint not in explainers:
            raise ValueError(f"The exported model has no explanation {endpoint!r}; it has {explainers}.")
        inputs = set(self._inputs(endpoint))
        inputs_by_name = dict.fromkeys(inputs - {"target"}, x)
        if "target" in inputs:
            ids = np.asarray(checks.PREDICTED if target is None else target)
            inputs_by_name["target"] = np.broadcast_to(ids, len(x)) if ids.ndim == 0 else ids
        elif target is not None:
            raise ValueError(f"{endpoint!r} explains all classes at once and takes no target.")
        return self.run(endpoint, **inputs_by_name)

    def run(self, endpoint, **inputs):
        """What an endpoint answers.

        Args:
            endpoint: str, one of ``endpoints``.
            **inputs: by the names of its signature: ``images``, ``target``, ``encoded`` of what ``export`` wrote.

        Returns:
            dict of tensors.

        Raises:
            ValueError: for another endpoint, and inputs of other names, types or shapes.
            tf.errors.InvalidArgumentError: for what only the values tell: an empty batch, NaN, undecodable bytes.
        """
        if endpoint not in self.endpoints:
            raise ValueError(f"The exported model has no endpoint {endpoint!r}; it has {self.endpoints}.")
        specs = self._inputs(endpoint)
        if set(inputs) != set(specs):
            raise ValueError(f"{endpoint!r} takes {sorted(specs)}; received {sorted(inputs)}.")
        return self._loaded.signatures[endpoint](**{name: _fitted(specs[name], inputs[name]) for name in specs})

    def together(self, names):
        """Callable from images to the list of several taps, in one pass."""
        spec = self._inputs(self._signature)[self._input]
        several = self._several(tuple(names))
        return lambda x: several(_fitted(spec, x))

    def _traced_together(self, names):
        spec = self._inputs(self._signature)[self._input]

        def several(images):  # compiled, so that what nobody asks for is not computed
            tapped = self._loaded.tapped(images)
            return [tapped[name] for name in names]

        images = tf.TensorSpec(spec.shape, spec.dtype)
        return tf.function(autodiff.counted(several), [images], autograph=False)

    def traced_function(self):
        """``(function, tf.TensorSpec of its images)``, what ``taps`` reads the graph of.

        Raises:
            ValueError: for a signature with further inputs.
        """
        specs = self._inputs(self._signature)
        if len(specs) > 1:
            raise ValueError(
                f"Expected a signature that takes images only; {self._signature!r} takes {sorted(specs)}. Load another "
                f"one with signature=, or pass a callable that has the others' values inside, such as lambda x: "
                f"served.run({self._signature!r}, {self._input}=x, ...)[{self._output!r}]."
            )
        function = self._loaded.signatures[self._signature]
        return (lambda x: function(**{self._input: x})[self._output]), specs[self._input]

    def _tap(self, endpoint):
        return lambda x: self.run(endpoint, **{_IMAGES: x})[_OUTPUTS]

    def _inputs(self, endpoint):
        return self._loaded.signatures[endpoint].structured_input_signature[1]

    def _outputs(self, endpoint):
        return self._loaded.signatures[endpoint].structured_outputs

    def _named(self, kind, names, received, usual):
        """One of several names: that which was given, or the only one, or the usual one."""
        names = sorted(names)
        name = names[0] if received is None and len(names) == 1 else usual if received is None else received
        if name not in names:
            signatures = [
                f"{each!r}: {sorted(self._inputs(each))} → {sorted(self._outputs(each))}" for each in self.endpoints
            ]
            raise ValueError(
                f"Expected {kind}= to name one of {names}; received {received!r}. The SavedModel has the signatures "
                f"{'; '.join(signatures)}."
            )
        return name


def _fitted(spec, value):
    """An input as a tensor of what a signature takes."""
    if not tf.is_tensor(value):  # NumPy would cut zeros off the end of bytes
        value = tf.convert_to_tensor(value if spec.dtype == tf.string else np.asarray(value))
    if spec.dtype.is_integer and value.dtype.is_floating and tf.executing_eagerly():
        whole = tf.cast(value, spec.dtype)
        value = whole if np.array_equal(tf.cast(whole, value.dtype), value) else value
    kinds = (("floating numbers", "is_floating"), ("integers", "is_integer"))
    for kind, belongs in kinds:
        if getattr(spec.dtype, belongs) and not getattr(value.dtype, belongs):
            raise ValueError(f"Expected {spec.name} of {kind}, as {spec.dtype.name}; received {value.dtype.name}.")
    if spec.dtype.is_integer and not _holds(spec.dtype, value):
        raise ValueError(
            f"Expected {spec.name} from {spec.dtype.min} to {spec.dtype.max}, as {spec.dtype.name}; received others."
        )
    if spec.dtype == tf.string and value.dtype != tf.string:
        raise ValueError(f"Expected {spec.name} of bytes, as strings; received {value.dtype.name}.")
    if not value.shape.is_compatible_with(spec.shape):
        raise ValueError(f"Expected {spec.name} of shape {tuple(spec.shape)}; received {tuple(value.shape)}.")
    return value if value.dtype == spec.dtype else tf.cast(value, spec.dtype)


def _holds(dtype, value):
    """Whether a dtype of integers can have these; in a graph nobody knows."""
    if value.dtype == dtype or not tf.executing_eagerly() or not tf.size(value):
        return True
    return dtype.min <= value.numpy().min() and value.numpy().max() <= dtype.max
