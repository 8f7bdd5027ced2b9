"""Loading what ``export`` wrote, as a model."""

import json
import pathlib

import numpy as np
import tensorflow as tf

from keras_capsvit.serving.endpoints import DEFAULT, EXPLAIN, PREDICTED
from keras_capsvit.serving.export import CARD, newest


def load(path, version=None):
    """Load an exported model; it is called, tapped, explained and attacked like the live one.

    Args:
        path: what ``export`` was given; or a version folder itself.
        version: int, or None for the highest.

    Returns:
        ServedModel.

    Raises:
        FileNotFoundError: if there is no SavedModel; names the folder that was searched.
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
    card = folder / CARD
    return ServedModel(tf.saved_model.load(str(folder)), json.loads(card.read_text()) if card.is_file() else {})


class ServedModel:
    """A loaded SavedModel: ``served(x)`` gives class scores ``(b, M)``; ``served.taps`` its intermediates by name.

    Args:
        loaded: what ``tf.saved_model.load`` returned.
        card: dict, its model card.

    Attributes:
        taps: dict from names to callables of images.
        endpoints: sorted list of str, everything that ``run`` knows.
        card: dict, what ``model_card.json`` says.
        input_shape: tuple ``(None, H, W, C)``.
    """

    def __init__(self, loaded, card=None):
        self._loaded = loaded  # its variables live as long as this reference
        self.card = card or {}
        self.name = self.card.get("name", "served_model")
        self.endpoints = sorted(loaded.signatures)
        self.input_shape = tuple(self._inputs(DEFAULT)["images"].shape)
        taps = (name for name in self.endpoints if set(loaded.signatures[name].structured_outputs) == {"outputs"})
        self.taps = {name: self._outputs(name) for name in taps if name != DEFAULT}
        self._call = self._outputs(DEFAULT)

    def __call__(self, x):
        """Class scores ``(b, M)`` of images ``(b, H, W, C)``."""
        return self._call(x)

    def predict(self, x, batch_size=128):
        """Class scores ``(n, M)`` of images ``(n, H, W, C)`` as a NumPy array, in batches of int ``batch_size``."""
        starts = range(0, max(len(x), 1), batch_size)
        return np.concatenate([self(x[first : first + batch_size]).numpy() for first in starts])

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
        explainers = [name for name in self.endpoints if "maps" in self._loaded.signatures[name].structured_outputs]
        if endpoint not in explainers:
            raise ValueError(f"The exported model has no explanation {endpoint!r}; it has {explainers}.")
        if "target" in self._inputs(endpoint):
            ids = np.asarray(PREDICTED if target is None else target)
            return self.run(endpoint, images=x, target=np.broadcast_to(ids, len(x)) if ids.ndim == 0 else ids)
        if target is not None:
            raise ValueError(f"{endpoint!r} explains all classes at once and takes no target.")
        return self.run(endpoint, images=x)

    def run(self, endpoint, **inputs):
        """What an endpoint answers.

        Args:
            endpoint: str, one of ``endpoints``.
            **inputs: by the names of its signature: ``images``, ``target``, ``encoded``.

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
        spec = self._inputs(DEFAULT)["images"]

        @tf.function(autograph=False)
        def several(images):  # compiled, so that what nobody wants is not computed
            found = self._loaded.tapped(images)
            return [found[name] for name in names]

        return lambda x: several(_fitted(spec, x))

    def traced_function(self):
        """``(function, tf.TensorSpec of its images)``, what ``taps`` reads the graph of."""
        return (lambda x: self._loaded.signatures[DEFAULT](images=x)), self._inputs(DEFAULT)["images"]

    def _outputs(self, endpoint):
        return lambda x: self.run(endpoint, images=x)["outputs"]

    def _inputs(self, endpoint):
        return self._loaded.signatures[endpoint].structured_input_signature[1]


def _fitted(spec, value):
    """An input as a tensor of what a signature takes."""
    if not tf.is_tensor(value):  # NumPy would cut zeros off the end of bytes
        value = tf.convert_to_tensor(value if spec.dtype == tf.string else np.asarray(value))
    kinds = (("floating numbers", "is_floating"), ("integers", "is_integer"))
    for kind, belongs in kinds:
        if getattr(spec.dtype, belongs) and not getattr(value.dtype, belongs):
            raise ValueError(f"Expected {spec.name} of {kind}, as {spec.dtype.name}; received {value.dtype.name}.")
    if spec.dtype == tf.string and value.dtype != tf.string:
        raise ValueError(f"Expected {spec.name} of bytes, as strings; received {value.dtype.name}.")
    if not value.shape.is_compatible_with(spec.shape):
        raise ValueError(f"Expected {spec.name} of shape {tuple(spec.shape)}; received {tuple(value.shape)}.")
    return value if value.dtype == spec.dtype else tf.cast(value, spec.dtype)
