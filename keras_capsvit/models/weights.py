"""Published weights: arrays by name, read from ``.npz`` or ``.safetensors`` into a model's variables."""

import pathlib
import zipfile

import numpy as np

from keras_capsvit.layers import NormalizedConv2D

# Variables of Keras's layers → what published weights call them.
PUBLISHED = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def published_names(model):
    """Names of a model's variables in published weights.

    A layer's name with dots for underscores, then ``weight`` and ``bias`` (of convolutions and dense layers, and the
    scale and offset of batch normalisation), ``running_mean`` and ``running_var``; for example
    ``layer2.0.bn1.running_mean`` of a ResNet, ``features.3.weight`` of a VGG19, ``linear.bias``.

    Args:
        model: ``ConvNetFC``, ``ConvNetAvg``, ``VGG19``, ``ResNet20``, ``ResNet18``, or another model of convolutions,
            batch normalisations and dense layers.

    Returns:
        dict from str to keras.Variable, all variables of the model.

    Raises:
        ValueError: for a model with other variables; lists them.
    """
    names = {
        f"{layer.name.replace('_', '.')}.{PUBLISHED[variable.name]}": variable
        for layer in _parts(model)
        for variable in layer.variables
        if variable.name in PUBLISHED
    }
    found = {id(variable) for variable in names.values()}
    others = [variable.path for variable in model.variables if id(variable) not in found]
    if others:
        raise ValueError(
            f"Expected layers that hold {', '.join(PUBLISHED)} and nothing else; {model.name} also has "
            f"{', '.join(others)}. Save and load it as .keras instead."
        )
    return names


def _parts(model):
    for layer in model.layers:
        yield from (layer.conv, layer.norm) if isinstance(layer, NormalizedConv2D) else (layer,)


def load_weights(model, path):
    """Set every variable of a model from a file of named arrays.

    Args:
        model: a model of this package that ``published_names`` knows.
        path: path of an ``.npz`` (read without pickle) or ``.safetensors`` file (needs the safetensors package). Arrays
            are called as ``published_names(model)`` says; kernels are ``(height, width, in, out)``, dense
            weights ``(in, out)``. PyTorch has ``(out, in, height, width)`` and ``(out, in)``: transpose by
            ``(2, 3, 1, 0)`` and ``(1, 0)``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if arrays are missing, left over, of a wrong shape, not finite, or are negative variances; lists all
            of them, and leaves the model as it was. Also for a file that cannot be read and another file type.
        ImportError: for ``.safetensors`` without the safetensors package.

    Example::

        model = ResNet20((32, 32, 3), 10, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        load_weights(model, "resnet20_cifar10.npz")
    """
    path = pathlib.Path(path)
    variables, arrays = published_names(model), _read(path)
    problems = [f"{name} is missing" for name in variables if name not in arrays]
    problems += [f"{name} is left over" for name in arrays if name not in variables]
    for name in variables.keys() & arrays.keys():
        expected, array = tuple(variables[name].shape), arrays[name]
        if array.shape != expected:
            problems.append(f"{name} has shape {array.shape}, expected {expected}")
        elif not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            problems.append(f"{name} is not all finite floats")
        elif name.endswith(".running_var") and array.min() < 0:
            problems.append(f"{name} has negative variances")
    if problems:
        raise ValueError(
            f"{path.name} does not fit {model.name}: {'; '.join(sorted(problems))}. Expected the arrays of "
            "published_names(model), kernels as (height, width, in, out) and dense weights as (in, out)."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _read(path):
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"Expected a .npz or .safetensors file; received {path.name}.")
    if not path.is_file():
        raise FileNotFoundError(f"No weights at {path}; give the path of an existing .npz or .safetensors file.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a .npz file of plain arrays: {error}") from error


def _read_safetensors(path):
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            f"Reading {path.name} needs the safetensors package: install it, or convert the file to .npz."
        ) from error
    try:
        return load_file(path)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a .safetensors file of float arrays NumPy knows: {error}") from error
