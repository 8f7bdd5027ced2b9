"""Published weights: arrays by name, read from ``.npz`` or ``.safetensors`` into a model's variables."""

import fnmatch
import math
import pathlib

import numpy as np
from keras import ops

from keras_capsvit.files import arrays_of, check_exists
from keras_capsvit.layers import PatchEmbedding, resize_positions
from keras_capsvit.models.checks import refuse_weights
from keras_capsvit.models.keras_files import load_keras_weights
from keras_capsvit.models.published import FORMATS, from_torch, published_names, sources, torch_shape

_MOST_POSITIONS = 2**16  # of a file, to be resized


def load_weights(model, path):
    """Set every weight of a model from a file of named arrays in Keras's layouts.

    Args:
        model: functional or sequential model, of this package or another, without a model inside.
        path: path of an ``.npz`` (read without pickle) or ``.safetensors`` file (needs the safetensors package). Arrays
            are called as ``models.published.published_names(model)`` says; kernels are ``(height, width, in, out)``,
            dense weights ``(in, out)``. PyTorch has ``(out, in, height, width)`` and ``(out, in)``: transpose by
            ``(2, 3, 1, 0)`` and ``(1, 0)``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if arrays are missing, left over, of a wrong shape, not finite in the model's precision, or are
            negative variances; names the first ten, counts all, and leaves the model as it was. Also for a file that is
            damaged, encrypted or of another type. Arrays of other names and shapes are not read. Weights that
            ``published_names`` has no name for are refused, too.
        ImportError: for ``.safetensors`` without the safetensors package.

    Example::

        model = ResNet20((32, 32, 3), 10, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        load_weights(model, "resnet20_cifar10.npz")
    """
    path, variables, values = pathlib.Path(path), published_names(model), {}
    with _opened(path) as arrays:
        problems = [f"{name} is missing" for name in variables if name not in arrays]
        problems += [f"{name} is left over" for name in arrays if name not in variables]
        for name in filter(arrays.__contains__, variables):
            values[name], faults = _read(arrays, name, tuple(variables[name].shape), variables[name].dtype)
            problems += faults
    refuse_weights(
        problems,
        path,
        model,
        "Expected the arrays of published_names(model), kernels as (height, width, in, out) and dense weights as "
        "(in, out).",
    )
    for name, variable in variables.items():
        variable.assign(values[name])


def load_weights_from(model, path, *, interpolate_positions=False, skip=()):
    """Set every weight of a model from a file as timm, torchvision, Hugging Face, or Keras wrote it.

    Args:
        model: ``VisionTransformer``, ``DeiT``, ``LeViT``, ``MLPMixer``, ``ResNet18``, ``ResNet50``, ``AlexNet``,
            ``GoogLeNet``, or another model of this package made of convolutions, normalisations and dense layers.
        path: path of a ``.safetensors`` file (needs the safetensors package) or an ``.npz``, with the names and
            layouts of timm, of torchvision's AlexNet, GoogLeNet and ResNet, or of Hugging Face's ViT, DeiT (with
            teacher) and ResNet for image classification; or of Keras's own ``.keras`` or ``.weights.h5``. Files do not
            have the constants of normalisations: ``epsilon``, ``mean`` and ``std`` are given to the model's
            constructor.
        interpolate_positions: pair of ints ``(h, w)``, the grid of patches that the file's position embeddings are
            for; they are resized to the model's (``layers.resize_positions``). True for a square grid or one of the
            model's proportions; if both or neither is possible, an error asks for the pair. False for no resizing.
        skip: str or strs, patterns such as ``"head.*"`` of tensors of the file that are left there. Weights of them
            stay as they are.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if tensors are missing, left over, of a wrong shape, not finite in the model's precision, or are
            negative variances; names the first ten, counts all, and leaves the model as it was. Also for a file that is
            damaged, encrypted or of another type, and positions whose grid is not known. Tensors of other names and
            shapes are not read, and nothing that a file holds is run.
        ImportError: for ``.safetensors`` without the safetensors package.

    Example::

        model = DeiT("Ti/16", input_shape=(384, 384, 3), num_classes=10)
        load_weights_from(model, "deit_tiny.safetensors", interpolate_positions=True, skip=["head.*"])
    """
    path = pathlib.Path(path)
    if path.suffix == ".keras" or path.name.endswith(".weights.h5"):
        if interpolate_positions or skip:
            raise ValueError(
                f"skip and interpolate_positions are for files of timm and Hugging Face; received {path.name}, which "
                "Keras wrote. Leave them out."
            )
        check_exists(path, f"a {''.join(path.suffixes[-2:])} file")
        load_keras_weights(model, path)
        return
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    names, values = published_names(model), {}
    with _opened(path, ", .keras or .weights.h5") as arrays:
        rules = min(FORMATS.values(), key=lambda rules: sum(_missing(names, rules, arrays)))
        targets = {name: (variable, sources(name, rules)) for name, variable in names.items()}
        targets = {
            name: target for name, target in targets.items() if not any(_skipped(part, skip) for part in target[1])
        }
        if not targets:
            raise ValueError(
                f"Expected skip to leave tensors to load; received {skip}, which matches all of {path.name}."
            )
        used = {source for _, parts in targets.values() for source in parts}
        problems = [f"{source} is missing" for source in used if source not in arrays]
        problems += [f"{name} is left over" for name in arrays if not (name in used or _skipped(name, skip))]
        for name, (variable, parts) in targets.items():
            if not all(source in arrays for source in parts):
                continue
            expected = torch_shape(variable)
            shape = (expected[0] // len(parts), *expected[1:])
            resized = variable.name == "positions" and interpolate_positions
            if resized:
                shape = _shape_to_resize(model, arrays.shapes[parts[0]], shape)
            tensors, faults = zip(*(_read(arrays, part, shape, variable.dtype) for part in parts), strict=True)
            problems += (fault for of_part in faults for fault in of_part)
            if not any(faults):
                tensor = np.concatenate(tensors) if len(tensors) > 1 else tensors[0]
                tensor = _resized(model, tensor, interpolate_positions) if resized else tensor
                values[name] = from_torch(variable, tensor)
    hint = " Positions of another grid need interpolate_positions." if "pos" in str(problems) else ""
    refuse_weights(
        problems,
        path,
        model,
        "Expected this network's tensors as timm, torchvision or Hugging Face name them; those not wanted go into "
        "skip." + hint,
    )
    for name, value in values.items():
        names[name].assign(value)


def _missing(names, rules, arrays):
    return (source not in arrays for name in names for source in sources(name, rules))


def _skipped(name, skip):
    # A counter that PyTorch keeps beside running statistics and uses only without a momentum.
    return name.endswith(".num_batches_tracked") or any(fnmatch.fnmatchcase(name, pattern) for pattern in skip)


def _embedding(model):
    (embedding,) = (layer for layer in model.layers if isinstance(layer, PatchEmbedding))
    return embedding


def _shape_to_resize(model, stored, expected):
    """Shape of positions that may be read to be resized: the stored one, where only the number of patches differs."""
    likely = len(stored) == 3 and (stored[0], stored[2]) == (expected[0], expected[2])
    return stored if likely and _embedding(model).num_prefix_tokens < stored[1] <= _MOST_POSITIONS else expected


def _resized(model, positions, grid):
    """Positions ``(1, t, d)`` resized from a grid, or True for the only likely one, to the model's; see ``_grid``."""
    embedding = _embedding(model)
    patches = positions.shape[1] - embedding.num_prefix_tokens
    grid = _grid(patches, embedding.grid) if grid is True else tuple(np.ravel(grid).tolist())
    if len(grid) != 2 or math.prod(grid) != patches:
        raise ValueError(
            f"Expected interpolate_positions to be the grid (h, w) of the file's {patches} patches; received {grid}."
        )
    return ops.convert_to_numpy(resize_positions(positions[0], grid, embedding.grid))[None]


def _grid(patches, model_grid):
    """Grid of a number of patches: square, or as wide for its height as the model's; refuses none and two of them."""
    rows, columns = (size // math.gcd(*model_grid) for size in model_grid)
    scale = math.isqrt(patches // (rows * columns))
    side = math.isqrt(patches)
    likely = sorted({grid for grid in ((side, side), (scale * rows, scale * columns)) if math.prod(grid) == patches})
    if len(likely) != 1:
        raise ValueError(
            f"The file does not say which grid its {patches} patches have: "
            f"{' or '.join(map(str, likely)) or 'neither a square nor the proportions of the model'}; the model's is "
            f"{model_grid}. Pass the file's as interpolate_positions=(h, w)."
        )
    return likely[0]


def _read(arrays, name, expected, dtype):
    """Values of an array for a variable of a shape and dtype, None where they do not fit, and the list of reasons."""
    shape = arrays.shapes[name]
    if shape != expected:
        return None, [f"{name} has shape {shape}, expected {expected}"]
    if name not in arrays.floats:
        return None, [f"{name} is not all finite floats"]
    array = arrays.read(name)
    with np.errstate(over="ignore"):
        fits = np.isfinite(array.astype(np.dtype(dtype))).all()
    if not fits:
        of_dtype = f" of {dtype}" if np.isfinite(array).all() else ""
        return None, [f"{name} is not all finite floats{of_dtype}"]
    if name.endswith(".running_var") and array.min(initial=0) < 0:
        return None, [f"{name} has negative variances"]
    return array, []


def _opened(path, more_kinds=""):
    if path.suffix not in (".npz", ".safetensors"):
        kinds = f".npz, .safetensors{more_kinds}" if more_kinds else ".npz or .safetensors"
        raise ValueError(f"Expected a {kinds} file; received {path.name}.")
    return arrays_of(path)
