"""Export to SavedModels that TF Serving serves, and loading them back as models (TensorFlow backend)."""

import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_capsvit import taps

DEFAULT = "serving_default"


def export(model, path):
    """Write ``path/<version>/``, a SavedModel with dynamic batch size that TF Serving loads as it is.

    Signatures, each from ``images (b, H, W, C)`` float32 in [0, 1]:

    - ``serving_default`` → ``{"outputs": (b, M)}``, what ``model(x)`` returns;
    - ``explain``, where the model has graph attention → ``{"outputs": (b, M), "class": (b,), "maps": (b, h, w, M)}``,
      the class scores, the predicted class, and the attention averaged over heads for each class (thesis Eq. 3.7);
    - one per tap → ``{"outputs": ...}``.

    Args:
        model: functional Keras model with one input.
        path: str or path of the folder that TF Serving calls the model's base path.

    Returns:
        pathlib.Path of the new version folder, one above the highest version in ``path``.

    Raises:
        ValueError: on a backend other than TensorFlow, or for a model without a fixed input.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Export needs the tensorflow backend; received {keras.backend.backend()!r}. Save the model as .keras and "
            "load it in a process with KERAS_BACKEND=tensorflow."
        )
    if len(getattr(model, "inputs", None) or ()) != 1:
        raise ValueError("Expected a functional model with one input; build or call the model first.")
    path = pathlib.Path(path)
    version = 1 + max((int(p.name) for p in path.glob("*") if p.name.isdigit()), default=0)
    signature = [tf.TensorSpec((None, *model.inputs[0].shape[1:]), "float32", name="images")]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(DEFAULT, _outputs(model), signature)
    for name in taps.names(model):
        archive.add_endpoint(name, _outputs(taps.tap(model, name)), signature)
    if "attention" in taps.names(model):
        archive.add_endpoint("explain", _explain(model), signature)
    archive.write_out(str(path / str(version)), verbose=False)
    return path / str(version)


def _outputs(function):
    return lambda images: {"outputs": function(images)}


def _explain(model):
    forward = taps.tap(model, ["lengths", "attention"])

    def explain(images):
        lengths, attention = forward(images)
        return {"outputs": lengths, "class": tf.argmax(lengths, axis=-1), "maps": tf.reduce_mean(attention, axis=3)}

    return explain


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
        version = max((int(p.name) for p in path.glob("*") if p.name.isdigit()), default=None)
    folder = path if version is None else path / str(version)
    if not (folder / "saved_model.pb").is_file():
        raise FileNotFoundError(
            f"Expected a SavedModel in {folder.resolve()} (a folder with saved_model.pb, or with version folders 1, 2, "
            "...); found none. Write one with serving.export."
        )
    return ServedModel(tf.saved_model.load(str(folder)))


class ServedModel:
    """A loaded SavedModel: ``served(x)`` gives class scores ``(b, M)``; ``served.taps`` its intermediates by name.

    Args:
        loaded: what ``tf.saved_model.load`` returned.
    """

    def __init__(self, loaded):
        self._loaded = loaded  # its variables live as long as this reference
        self.name = "served_model"
        self.input_shape = tuple(loaded.signatures[DEFAULT].structured_input_signature[1]["images"].shape)
        self.taps = {name: self._endpoint(name) for name in loaded.signatures if name not in (DEFAULT, "explain")}
        self._call = self._endpoint(DEFAULT)

    def __call__(self, x):
        """Class scores ``(b, M)`` of images ``(b, H, W, C)``."""
        return self._call(x)

    def explain(self, x):
        """Scores, predicted class and attention maps of images ``(b, H, W, C)``, a dict (see ``export``)."""
        if "explain" not in self._loaded.signatures:
            raise ValueError(f"The exported model has no attention to explain with; it has {sorted(self.taps)}.")
        return self._run("explain", x)

    def predict(self, x, batch_size=128):
        """Class scores ``(n, M)`` of images ``(n, H, W, C)`` as a NumPy array, in batches of int ``batch_size``."""
        return np.concatenate([self(x[i : i + batch_size]).numpy() for i in range(0, len(x), batch_size)])

    def _endpoint(self, name):
        return lambda x: self._run(name, x)["outputs"]

    def _run(self, name, x):
        x = tf.convert_to_tensor(x, "float32")
        if len(x.shape) != len(self.input_shape) or not x.shape.is_compatible_with(self.input_shape):
            raise ValueError(f"Expected images of shape {self.input_shape}; received {tuple(x.shape)}.")
        return self._loaded.signatures[name](images=x)
