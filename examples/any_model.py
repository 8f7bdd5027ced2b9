"""What the examples share that take any classifier: where it comes from, and the range of its pixels."""

import pathlib

import keras_capsvit
from keras_capsvit import data, load_model, load_weights, load_weights_from, serving, taps
from keras_capsvit.files import read_json


def add_options(parser):
    """Options for a model that is a .keras file, the folder of a SavedModel, or a file of weights."""
    parser.add_argument("--network", help="class of this package that a file of weights is of")
    parser.add_argument("--settings", type=pathlib.Path, help="JSON file of the settings of its constructor")
    parser.add_argument("--range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of the pixels that MODEL takes")


def check_options(parser, args):
    """End the program for options that do not go together."""
    if args.settings and not args.network:
        parser.error("--settings are those of a --network")


def model_of(args, dataset=None):
    """The model, live or served.

    Args:
        args: what the options were, with ``model``, a path.
        dataset: str, whose images and classes a --network is for.
    """
    if args.network:
        if dataset is None:
            raise SystemExit("A --network is made for the images and classes of a --dataset; give one.")
        about = data.info(dataset)
        settings = read_json(args.settings, "a JSON file of settings") if args.settings else {}
        model = getattr(keras_capsvit, args.network)(
            input_shape=about.image_shape, num_classes=about.num_classes, **settings
        )
        # An .npz of this package's own names, or what others wrote.
        (load_weights if args.model.suffix == ".npz" else load_weights_from)(model, args.model)
        return model
    return load_model(args.model) if args.model.suffix == ".keras" else serving.load(args.model)


def pixel_range(args, model):
    """Lowest and highest pixel that the model takes: what was given, or what the model or its card tells."""
    pixels = args.range or taps.input_range(model) or getattr(model, "card", {}).get("input", {}).get("range")
    if pixels is None:
        raise SystemExit(f"{args.model} does not tell the range of its pixels; pass --range LOW HIGH.")
    low, high = map(float, pixels)
    return low, high
