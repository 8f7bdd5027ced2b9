"""Weights in Keras's own files, every tensor accounted for before the model changes and after."""

import pathlib
import tempfile
import warnings
import zipfile

import h5py
import numpy as np
from keras import ops

from keras_capsvit.models.checks import refuse_weights

EXPECTED = "Expected the tensors of a model built with the same arguments, saved by Keras 3."


def load_keras_weights(model, path):
    """Set every weight of a model from a file that Keras wrote; an optimizer keeps its state.

    Args:
        model: built keras.Model.
        path: pathlib.Path of an existing ``.keras`` or ``.weights.h5`` file.

    Raises:
        ValueError: if tensors are missing, left over, of a wrong shape, not finite, or are negative variances, and for
            a file that cannot be read; leaves the model as it was.
    """
    stored = _shapes(path)
    with tempfile.TemporaryDirectory() as folder:
        own = pathlib.Path(folder) / "model.weights.h5"
        model.save_weights(own)
        expected = _shapes(own)
    problems = [f"{name} is missing" for name in expected if name not in stored]
    problems += [f"{name} is left over" for name in stored if name not in expected]
    problems += [
        f"{name} has shape {stored[name]}, expected {shape}"
        for name, shape in expected.items()
        if stored.get(name, shape) != shape
    ]
    refuse_weights(problems, path, model, EXPECTED)
    optimizer = getattr(model, "optimizer", None)
    states = _copies(optimizer.variables if optimizer else ())
    before = _copies(model.variables)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            model.load_weights(path)
        problems = [problem for variable in model.weights for problem in _problems(variable)]
        refuse_weights(problems, path, model, EXPECTED)
    except Exception:
        _restore(before)
        raise
    finally:
        _restore(states)


def _shapes(path):
    """Shapes of the tensors of a file by their names in it, such as ``layers/dense/vars/0``, but of no optimizer."""
    shapes = {}

    def visit(name, entry):
        if isinstance(entry, h5py.Dataset) and "optimizer" not in name.split("/"):
            shapes[name] = entry.shape

    try:
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                file.visititems(visit)
        else:
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as part, h5py.File(part) as file:
                file.visititems(visit)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a {''.join(path.suffixes[-2:])} file that Keras 3 wrote: {error}") from error
    return shapes


def _problems(variable):
    values = ops.convert_to_numpy(variable)
    if not np.isfinite(values).all():
        return [f"{variable.path} is not all finite"]
    if variable.name in ("moving_variance", "variance") and values.min() < 0:
        return [f"{variable.path} has negative variances"]
    return []


def _copies(variables):
    return [(variable, np.array(ops.convert_to_numpy(variable))) for variable in variables]


def _restore(copies):
    for variable, values in copies:
        variable.assign(values)
