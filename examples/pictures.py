"""Pictures from files, where their objects lie, and classifiers that look at them: what the examples share."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable

import keras
import numpy as np
import squeezenet
from PIL import Image

from keras_capsvit import load_model, serving, taps
from keras_capsvit.data.pictures import opened
from keras_capsvit.files import read_json, reading


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model with what it needs to look at pictures.

    Attributes:
        model: live or served model.
        size: ``(height, width)`` of its images.
        preprocess: callable from pixels ``(b, H, W, 3)`` in [0, 1] to what the model takes.
        range: pair of floats or arrays ``(3,)``, the lowest and highest values of what it takes.
    """

    model: object
    size: tuple
    preprocess: Callable
    range: tuple


def add_model(parser):
    """Options that ``classifier`` reads."""
    parser.add_argument(
        "--model", help="a .keras file, the folder of a SavedModel, or a class of keras.applications", metavar="MODEL"
    )
    parser.add_argument("--weights", default="imagenet", help="of a Keras application: imagenet, a file, or none")
    parser.add_argument("--range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of the pixels that a file takes")
    parser.add_argument("--squeezenet", type=pathlib.Path, metavar="NPZ", help="SqueezeNet with these weights instead")


def classifier(args):
    """The Classifier that the options name."""
    if args.squeezenet:
        size = (squeezenet.SIZE, squeezenet.SIZE)
        return Classifier(squeezenet.squeezenet(args.squeezenet), size, squeezenet.preprocess, squeezenet.input_range())
    if hasattr(keras.applications, args.model):
        return _application(args)
    model = load_model(args.model) if args.model.endswith(".keras") else serving.load(args.model)
    pixels = args.range or taps.input_range(model) or getattr(model, "card", {}).get("input", {}).get("range")
    if pixels is None:
        raise SystemExit(f"{args.model} does not tell the range of its pixels; pass --range LOW HIGH.")
    low, high = pixels
    return Classifier(model, tuple(model.input_shape[1:3]), lambda x: low + x * (high - low), (low, high))


def _application(args):
    weights = None if args.weights == "none" else args.weights
    model = getattr(keras.applications, args.model)(weights=weights)
    # The module that belongs to the class: keras.applications.vgg16 to VGG16.
    modules = (module for module in vars(keras.applications).values() if hasattr(module, "preprocess_input"))
    module = next(module for module in modules if hasattr(module, args.model))

    def preprocess(x):
        return np.asarray(module.preprocess_input(255 * np.asarray(x)), "float32")

    # Preprocessing keeps the order of pixels, so what it makes of black and white are the bounds.
    ends = [preprocess(np.full((1, 1, 1, 3), end, "float32"))[0, 0, 0] for end in (0, 1)]
    return Classifier(model, tuple(model.input_shape[1:3]), preprocess, (np.minimum(*ends), np.maximum(*ends)))


def read(path, size):
    """Pixels ``(height, width, 3)`` in [0, 1] of a picture."""
    with opened(path) as image:
        resized = image.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(resized, "float32") / 255


def objects(folder, file, size):
    """The objects of the pictures that a JSON file names.

    Args:
        folder: path of the pictures.
        file: path of the JSON file. An entry per picture: ``{"boxes": [[top, left, bottom, right], ...], "class": 19}``
            in pixels of the picture, ``{"mask": "file.png", "values": [1], "class": 19}``, or, with several objects and
            boxes in pixels of an original of ``width`` and ``height``, ``{"width": ..., "height": ..., "objects":
            [{"imagenet_class": 19, "boxes_xywh": [[x, y, w, h], ...]}]}``.
        size: ``(height, width)`` to resize to.

    Returns:
        List of tuples, one per object: name of the picture, class id or None, mask ``(height, width)`` of bool.
    """
    with reading(file, "a JSON file of objects in pictures"):
        return list(_objects(folder, read_json(file, "a JSON file of objects in pictures"), size))


def _objects(folder, entries, size):
    for name, entry in entries.items():
        if "objects" in entry:
            shape = (entry["height"], entry["width"])
            for record in entry["objects"]:
                boxes = [(y, x, y + h, x + w) for x, y, w, h in record["boxes_xywh"]]
                yield name, record["imagenet_class"], _resized(_filled(boxes, shape), size)
            continue
        if "mask" in entry:
            with opened(folder / entry["mask"]) as image:
                mask = np.isin(np.asarray(image.convert("L")), entry.get("values", list(range(1, 256))))
        else:
            with opened(folder / name) as image:
                mask = _filled(entry["boxes"], image.size[::-1])
        yield name, entry.get("class"), _resized(mask, size)


def names_of(path):
    """Callable from class ids to names, of a JSON list of names or of ``[synset, name]``."""
    if path is None:
        return lambda number: f"class {number}"
    kind = "a JSON list of class names"
    with reading(path, kind):
        names = [name if isinstance(name, str) else name[-1] for name in read_json(path, kind)]
    return lambda number: names[number].replace("_", " ")


def _filled(boxes, shape):
    mask = np.zeros(shape, bool)
    for box in boxes:
        top, left, bottom, right = (round(end) for end in box)
        mask[max(top, 0) : bottom, max(left, 0) : right] = True
    return mask


def _resized(mask, size):
    resized = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
    if resized.any():
        return resized
    # A box so small that no pixel centre lies in it.
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    resized = np.zeros(size, bool)
    resized[rows[0] * size[0] // mask.shape[0], columns[0] * size[1] // mask.shape[1]] = True
    return resized


if __name__ == "__main__":
    sys.exit("This file is what the other examples share; run one of these.")
