"""Weights in Keras's own files, every tensor accounted for before the model changes and after.

Keras itself reads only a file that it wrote a moment before, into which checked values were put: nothing else of a file
that came from elsewhere reaches it, and no layer or function that such a file names is made or run.
"""

import itertools
import math
import pathlib
import shutil
import tempfile
import warnings
import zipfile

import h5py
import numpy as np
from keras import ops

from keras_capsvit.files import reading, refuse
from keras_capsvit.models.checks import refuse_weights

EXPECTED = "Expected the tensors of a model built with the same arguments, saved by Keras 3."
WEIGHTS = "model.weights.h5"  # in a .keras archive
_REMEDY = "Save the model again, or copy or download the file again."


def load_keras_weights(model, path):
    """Set every weight of a model from a file that Keras wrote; an optimizer keeps its state.

    Args:
        model: built keras.Model.
        path: pathlib.Path of an existing ``.keras`` or ``.weights.h5`` file.

    Raises:
        ValueError: if tensors are missing, left over, of a wrong shape, not finite, or are negative variances, and for
            a file that cannot be read; leaves the model as it was.
    """
    kind = _kind(path)
    with tempfile.TemporaryDirectory() as folder:
        own = pathlib.Path(folder) / "own.weights.h5"
        model.save_weights(own)
        with reading(path, kind, _REMEDY):
            _fill(own, _weights_file(path, folder, kind), path, model, kind)
        before = [(variable, np.array(ops.convert_to_numpy(variable))) for variable in model.variables]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            model.load_weights(own)
    problems = [problem for variable in model.weights for problem in _problems(variable)]
    if problems:
        for variable, values in before:
            variable.assign(values)
    refuse_weights(problems, path, model, EXPECTED)


def stored_shapes(path):
    """Shapes of the tensors of a ``.keras`` or ``.weights.h5`` file, by their names in it."""
    with tempfile.TemporaryDirectory() as folder, reading(path, _kind(path), _REMEDY):
        stored = _weights_file(path, folder, _kind(path))
        with h5py.File(stored, "r") as file:
            return {name: tensor.shape for name, tensor in _tensors(file).items()}


def _kind(path):
    return f"a {''.join(path.suffixes[-2:])} file that Keras 3 wrote"


def _weights_file(path, folder, kind):
    """Path of the HDF5 file of the weights: the file itself, or what a .keras archive holds, copied to a folder."""
    if path.suffix != ".keras":
        return path
    copy = pathlib.Path(folder) / "copied.h5"
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename == WEIGHTS]
        if len(entries) != 1:
            refuse(path, kind, f"it holds {len(entries)} files {WEIGHTS}", _REMEDY)
        (entry,) = entries
        if entry.flag_bits & 1:
            refuse(path, kind, f"its {WEIGHTS} is encrypted", "Write it without a password.")
        if entry.compress_type != zipfile.ZIP_STORED:
            refuse(path, kind, f"its {WEIGHTS} is compressed, which Keras does not do", "Save the model by Keras.")
        with archive.open(entry) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
    return copy


def _fill(own, stored, path, model, kind):
    """Put the tensors of a file in the place of those in a model's own, after all of their headers were compared."""
    with h5py.File(own, "r+") as target, h5py.File(stored, "r") as source:
        expected, received = _tensors(target), _tensors(source)
        problems = [f"{name} is missing" for name in expected if name not in received]
        problems += [f"{name} is left over" for name in received if name not in expected]
        problems += [
            f"{name} has shape {received[name].shape}, expected {tensor.shape}"
            for name, tensor in expected.items()
            if name in received and received[name].shape != tensor.shape
        ]
        refuse_weights(problems, path, model, EXPECTED)
        for name, tensor in expected.items():
            _check_plain(name, received[name], tensor, path, kind)
        _check_apart(received, path, kind)
        for name, tensor in expected.items():
            with np.errstate(over="ignore"):
                tensor[...] = received[name][()].astype(tensor.dtype, copy=False)


def _tensors(file):
    """The tensors of a file by their names in it, such as ``layers/dense/vars/0``, but of no optimizer."""
    tensors = {}

    def visit(name, entry):  # links to elsewhere are not followed
        if isinstance(entry, h5py.Dataset) and "optimizer" not in name.split("/"):
            tensors[name] = entry

    file.visititems(visit)
    return tensors


def _check_plain(name, tensor, expected, path, kind):
    """Refuse a tensor that lies in another file, is compressed, or is of another type than Keras writes."""
    if tensor.external or tensor.is_virtual:
        refuse(path, kind, f"the values of {name} are said to lie in another file", _REMEDY)
    if tensor.chunks is not None:
        refuse(path, kind, f"{name} is compressed or in chunks, which Keras does not do", "Save the model by Keras.")
    same = tensor.dtype == expected.dtype
    if not same and not (tensor.dtype.kind == expected.dtype.kind == "f" and tensor.dtype.isnative):
        refuse(path, kind, f"{name} is of {tensor.dtype}, expected {expected.dtype}", _REMEDY)
    if not tensor.id.get_type().equal(h5py.h5t.py_create(tensor.dtype, logical=True)):
        refuse(path, kind, f"the numbers of {name} are coded in an unknown way", _REMEDY)


def _check_apart(tensors, path, kind):
    """Refuse tensors whose values lie in the same bytes of the file, as where an address is damaged."""
    places = []
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        if tensor.id.get_storage_size() == size and tensor.id.get_offset() is not None:
            places.append((tensor.id.get_offset(), size, name))
        elif size:
            refuse(path, kind, f"the values of {name} are not there", _REMEDY)
    places.sort()
    for (start, size, name), (following, _, next_name) in itertools.pairwise(places):
        if start + size > following:
            refuse(path, kind, f"{name} and {next_name} lie in the same place", _REMEDY)


def _problems(variable):
    values = ops.convert_to_numpy(variable)
    if not np.isfinite(values).all():
        return [f"{variable.path} is not all finite"]
    if variable.name in ("moving_variance", "variance") and values.min(initial=0) < 0:
        return [f"{variable.path} has negative variances"]
    return []
