"""One page about any image classifier: what it sees, where it breaks, and which explanation of it can be trusted.

    python examples/audit.py saved_models/digits_gracapsnet --images digits --epsilon 0.1 --quick --out audit/
    python examples/audit.py model.keras --images PICTURES --labels names.json --out audit/
    python examples/audit.py MobileNetV2 --weights mobilenet_v2.weights.h5 --images PICTURES --labels names.json
    python examples/audit.py resnet20_cifar10.npz --network ResNet --settings SETTINGS.json --images cifar10
    python examples/audit.py squeezenet.npz --network SqueezeNet --images PICTURES --labels imagenet.json

MODEL is a .keras file, the folder of a SavedModel (of this package, Keras or TensorFlow), a class of
keras.applications, "hub:" and a preset or folder of keras-hub, or a file of weights with --network, a class of this
package or SqueezeNet (see squeezenet.py). --images are a folder with a folder of pictures for each class (see
data.Pictures), the name of a data set (digits, or one of TFDS), or an .npz file of the arrays x and y (or x_test and
y_test).

Writes OUT/audit.html, which needs no other file, OUT/audit.json with every figure and how it was obtained, and a CSV of
every table in OUT/tables. Interrupted, the same command goes on with the step where it was. Needs
``pip install "keras-capsvit[report]"``; for corruptions, ``[corruptions]``, too.
"""

import argparse
import os
import pathlib
import shlex
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import any_model
import keras
import numpy as np
import pictures
import squeezenet

from keras_capsvit import data, report
from keras_capsvit.files import arrays_of, read_json

_ARRAYS = (("x", "y"), ("x_test", "y_test"), ("images", "labels"))


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--images", required=True, metavar="FOLDER_OR_TFDS_OR_NPZ")
    any_model.add_options(parser)
    parser.add_argument("--weights", default="imagenet", help="of a Keras application: imagenet, a file, or none")
    parser.add_argument("--labels", type=pathlib.Path, help="JSON list of class names, or of [synset, name]")
    parser.add_argument("--split", default="test", help="of a data set")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--epsilon", type=float, default=8 / 255, help="radius of attacks, in pixels of [0, 1]")
    parser.add_argument("--norm", default="linf", choices=("linf", "l2", "l1"))
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="a few minutes; says what it leaves out")
    effort.add_argument("--thorough", action="store_true", help="all images, more steps; hours")
    parser.add_argument("--only", nargs="+", metavar="PART", default=(), help=f"of {', '.join(report.PARTS)}, or steps")
    parser.add_argument("--skip", nargs="+", metavar="PART", default=(), help=f"such as {report.STEPS[-2]}")
    parser.add_argument("--name", help="of the model, on the page; default: its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saved_models") / "audit")
    args = parser.parse_args(arguments)
    any_model.check_options(parser, args)
    return args


def model_and_range(args):
    """The model, live or served, and the lowest and highest pixel that it takes."""
    if args.network == "SqueezeNet":
        return preprocessed(squeezenet.squeezenet(args.model), squeezenet.preprocess), (0.0, 1.0)
    if args.model.startswith("hub:"):
        return hub_model(args.model.removeprefix("hub:"))
    if isinstance(getattr(keras.applications, args.model, None), type(keras.applications.VGG16)):
        args.squeezenet = None
        classifier = pictures.classifier(args)
        return preprocessed(classifier.model, classifier.preprocess), (0.0, 1.0)
    args.model = pathlib.Path(args.model)
    named = args.images if args.images in data.DATASETS else None
    model = any_model.model_of(args, named)
    return model, any_model.pixel_range(args, model)


def preprocessed(model, preprocess):
    """A model of pixels in [0, 1], in front of which a 1x1 convolution does what ``preprocess`` does to channels."""
    shape = model.input_shape[1:]
    ends = np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype("float32")[:, None, None]
    black, *bright = np.asarray(preprocess(ends.copy()), "float64").reshape(4, 3)
    kernel = np.stack(bright) - black
    probe = np.random.default_rng(0).uniform(size=(1, 4, 4, 3)).astype("float32")
    if not np.allclose(probe @ kernel + black, preprocess(probe.copy()), rtol=1e-4, atol=1e-3):
        raise SystemExit(f"Expected {model.name} to scale and mix channels before anything else; it does more.")
    pixels = keras.layers.Conv2D(3, 1, trainable=False, name="preprocessing")
    whole = keras.Sequential([keras.Input(shape), pixels, model], name=model.name)
    pixels.set_weights([kernel[None, None].astype("float32"), black.astype("float32")])
    return whole


def hub_model(preset):
    """A classifier of keras-hub with its scaling of pixels in front, and the range of pixels."""
    try:
        import keras_hub
    except ImportError as error:
        raise SystemExit("Models of keras-hub need it: pip install keras-hub.") from error
    task = keras_hub.models.ImageClassifier.from_preset(preset)
    converter = getattr(task.preprocessor, "image_converter", None)
    scale, offset = (getattr(converter, name, None) for name in ("scale", "offset"))
    if scale is None and offset is None:
        return task, (0.0, 255.0)
    scaling = keras.layers.Rescaling(1.0 if scale is None else scale, 0.0 if offset is None else offset)
    return keras.Sequential([keras.Input(task.input_shape[1:]), scaling, task], name=task.name), (0.0, 255.0)


def class_names(args):
    """Names of classes, a list of str, or None where nothing tells them."""
    if args.labels:
        names = read_json(args.labels, "a JSON list of class names")
        if isinstance(names, dict) and all(str(k) in names for k in range(len(names))):
            names = [names[str(k)] for k in range(len(names))]
        if not isinstance(names, list):
            raise SystemExit(f"Expected a JSON list of class names in {args.labels}.")
        return [(name if isinstance(name, str) else str(name[-1])).replace("_", " ") for name in names]
    return list(data.info(args.images).class_names) if args.images in data.DATASETS else None


def name_of(model, args):
    """Name of a served model that has no card, that of its folder; None of others, which have their own."""
    served_without_card = not isinstance(model, keras.Model) and not getattr(model, "card", None)
    return pathlib.Path(args.model).name if served_without_card else None


def images_of(args, model, bounds, names):
    """The data set, in the range of pixels that the model takes, and the names of classes."""
    path = pathlib.Path(args.images)
    if path.is_dir():
        shape = model.input_shape[1:]
        if None in shape:
            raise SystemExit(f"Expected a model of images of one size; {args.model} takes {shape}.")
        folder = data.Pictures(path, shape, class_names=names, bounds=bounds)
        return folder, names or (folder.class_names if len(folder.class_names) == classes_of(model) else None)
    if path.suffix == ".npz":
        return scaled(data.from_arrays(*arrays_in(path)), bounds), names
    if args.images not in data.DATASETS:
        known = ", ".join(data.DATASETS)
        raise SystemExit(f"Expected --images to be a folder, an .npz file, or one of {known}; received {args.images}.")
    return scaled(data.load(args.images, split=args.split, data_dir=args.data_dir), bounds), names


def classes_of(model):
    """Number of classes of a model; None where it does not tell."""
    shape = getattr(model, "output_shape", None)
    return shape[-1] if isinstance(shape, tuple) else getattr(model, "card", {}).get("classes")


def arrays_in(path):
    """Images ``(n, H, W, C)`` and labels ``(n,)`` of an .npz file."""
    with arrays_of(path) as arrays:
        pair = next((pair for pair in _ARRAYS if set(pair) <= set(arrays.shapes)), None)
        if pair is None:
            raise SystemExit(f"Expected arrays x and y (or x_test and y_test) in {path}; it has {list(arrays.shapes)}.")
        x, y = (arrays.read(name) for name in pair)
    return (x[..., None] if x.ndim == 3 else x), y.reshape(-1)


def scaled(stream, bounds):
    """A stream of images in [0, 1], in another range."""
    low, high = bounds
    return stream.map(lambda x, y: (low + x * (high - low), y)) if (low, high) != (0.0, 1.0) else stream


def main():
    args = parse()
    out, command = args.out, f"python examples/audit.py {shlex.join(sys.argv[1:])}"
    try:
        names = class_names(args)
        model, bounds = model_and_range(args)
        dataset, names = images_of(args, model, bounds, names)
        audit = report.audit(
            model,
            dataset,
            class_names=names,
            bounds=bounds,
            epsilon=args.epsilon,
            norm=args.norm,
            effort="quick" if args.quick else "thorough" if args.thorough else "standard",
            only=args.only,
            skip=args.skip,
            seed=args.seed,
            out=out,
            name=args.name or name_of(model, args),
            command=command,
            on_step=lambda name, number, count: print(f"[{number}/{count}] {name}", flush=True),
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on from here.")
    print(f"{audit.write(out)}: {audit.results['subtitle']}")


if __name__ == "__main__":
    main()
