"""Whole models from ``.keras`` files, without running what a file says, and not larger than its weights."""

import json
import math
import pathlib
import zipfile

import keras

from keras_capsvit.files import check_exists, reading, refuse
from keras_capsvit.models.keras_files import load_keras_weights, stored_shapes
from keras_capsvit.private import without_values

_KIND = "a .keras file of a model"
_REMEDY = "Save the model again, or copy or download the file again."
_CONFIG = "config.json"
_LARGEST = 2**24  # bytes of a configuration
_PACKAGES = ("keras", "keras_hub", "builtins")  # of classes and functions that may be made without being registered


def load_model(path) -> keras.Model:
    """Read a model that ``model.save`` wrote, as ``keras.saving.load_model`` does, from wherever the file may come.

    No code of the file is run: lambdas are refused, and so are classes and functions that are neither Keras's nor
    registered (``keras.saving.register_keras_serializable``). Weights are checked as ``load_weights_from`` does, and
    before the model is built, so that it asks for no more memory than the file has weights.

    Args:
        path: path of a ``.keras`` file.

    Returns:
        keras.Model, compiled if it was; the optimizer starts anew.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for a file that is damaged, of another kind, or holds weights that do not fit, are not finite or are
            negative variances; and for what could run code.

    Example::

        model = load_model("saved_models/gracapsnet.keras")
    """
    path = pathlib.Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"Expected a .keras file, which model.save writes; received {path.name}.")
    check_exists(path, _KIND)
    with reading(path, _KIND, _REMEDY):
        config = _config(path)
        _check_objects(config, path)
        # Without values: as many variables as the configuration asks for may not fit into memory.
        with without_values():
            model = _model_of(_without_compiling(config))
            needed = sum(math.prod(variable.shape) for variable in model.weights)
        there = sum(map(math.prod, stored_shapes(path).values()))
        if needed > there:
            refuse(path, _KIND, f"its {_CONFIG} asks for {needed:,} weights, of which it holds {there:,}", _REMEDY)
        model = _model_of(config)
    load_keras_weights(model, path)
    return model


def _model_of(config):
    model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    if not isinstance(model, keras.Model):
        raise ValueError(f"it describes no model, but a {type(model).__name__}")
    return model


def _without_compiling(config):
    """A configuration without what makes an optimizer and metrics, which have to have values."""
    if isinstance(config, list):
        return [_without_compiling(part) for part in config]
    if not isinstance(config, dict):
        return config
    return {name: _without_compiling(part) for name, part in config.items() if name != "compile_config"}


def _config(path):
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(_CONFIG)
        if entry.flag_bits & 1:
            refuse(path, _KIND, f"its {_CONFIG} is encrypted", "Write it without a password.")
        if entry.file_size > _LARGEST:
            refuse(path, _KIND, f"its {_CONFIG} has {entry.file_size:,} bytes, more than {_LARGEST:,}", _REMEDY)
        return json.loads(archive.read(entry))


def _check_objects(config, path):
    """Refuse what a configuration names that could run code."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, dict):
            waiting.extend(part.values())
            name, module = part.get("class_name"), part.get("module")
            if name in ("Lambda", "__lambda__"):
                refuse(path, _KIND, "it holds a lambda, whose code is not run", "Use a registered layer instead.")
            if module is None or not isinstance(name, str):
                continue
            known = keras.saving.get_registered_object(part.get("registered_name"))
            if known is None and str(module).split(".")[0] not in _PACKAGES:
                refuse(
                    path,
                    _KIND,
                    f"it names {module}.{name}, which is not registered",
                    "If you know it, import its module first and register it there by "
                    "keras.saving.register_keras_serializable.",
                )
