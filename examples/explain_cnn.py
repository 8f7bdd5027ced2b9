"""What in a picture speaks for a class: LRP, CLRP1 and CLRP2 side by side, for any classifier (thesis Fig. 2.3).

    python examples/explain_cnn.py zebra.jpg --model VGG16                     # Keras fetches the weights
    python examples/explain_cnn.py zebra.jpg --model saved_models/vgg/1 --range 0 1
    python examples/explain_cnn.py both.jpg --squeezenet squeezenet.npz --classes 340 386 --names synsets.json

A SavedModel takes RGB pixels in --range. The file of SqueezeNet holds arrays of the Caffe model (see squeezenet.py).
Without --classes the two with the highest scores are explained. Writes OUT: a row per picture and class.

--rules are z_plus, which suits every network here. Those of the thesis are for networks with fully connected layers:
they share relevance evenly among all that global average pooling averages, also where nothing is.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pictures
import squeezenet
import tensorflow as tf

from keras_capsvit import explain, plot
from keras_capsvit.files import reading


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=pathlib.Path)
    parser.add_argument("--model", default="VGG16", help="class of keras.applications, or folder of a SavedModel")
    parser.add_argument("--weights", default="imagenet", help="of the Keras application: imagenet, a file, or none")
    parser.add_argument("--squeezenet", type=pathlib.Path, metavar="NPZ", help="explain SqueezeNet instead")
    parser.add_argument("--range", nargs=2, type=float, default=(0, 1), help="of the pixels that a SavedModel takes")
    parser.add_argument("--classes", nargs="+", type=int)
    parser.add_argument("--names", type=pathlib.Path, help="JSON list of class names, or of [synset, name]")
    parser.add_argument("--rules", default="z_plus", help="see explain.LRP")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("explanations.png"))
    return parser.parse_args()


def keras_model(args):
    """SqueezeNet or a model of keras.applications, its image size, and preprocessing of pixels in [0, 1]."""
    if args.squeezenet:
        return squeezenet.squeezenet(args.squeezenet), squeezenet.SIZE, squeezenet.preprocess
    model = getattr(keras.applications, args.model)(weights=None if args.weights == "none" else args.weights)
    modules = [module for name, module in sys.modules.items() if name.startswith("keras.src.applications.")]
    module = next(m for m in modules if hasattr(m, args.model) and hasattr(m, "preprocess_input"))
    return model, model.input_shape[1], lambda x: module.preprocess_input(255 * x)


def classifier(args):
    """Model, scores of a batch, image size, and preprocessing of pixels in [0, 1]."""
    if args.squeezenet or hasattr(keras.applications, args.model):
        model, size, preprocess = keras_model(args)
        return model, model, size, preprocess
    with reading(args.model, "a SavedModel"):
        model = tf.saved_model.load(args.model)
    served = model.signatures["serving_default"]
    ((name, spec),) = served.structured_input_signature[1].items()
    low, high = args.range
    return model, lambda x: next(iter(served(**{name: x}).values())), spec.shape[1], lambda x: low + x * (high - low)


def read(path, size):
    """Pixels ``(size, size, 3)`` in [0, 1]."""
    with pictures.opened(path), reading(path, "a picture"):
        image = tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)
    return tf.image.resize(tf.cast(image, "float32") / 255, (size, size), antialias=True).numpy().clip(0, 1)


def input_range(preprocess, size):
    """Lowest and highest preprocessed pixels; preprocessing keeps their order, so black and white are the bounds."""
    ends = [np.asarray(preprocess(np.full((1, size, size, 3), end, "float32")))[0] for end in (0, 1)]
    return np.minimum(*ends), np.maximum(*ends)


def named(path):
    if path is None:
        return str
    return pictures.names_of(path)


def main():
    args = parse()
    model, score, size, preprocess = classifier(args)
    images = np.stack([read(path, size) for path in args.images])
    x = np.asarray(preprocess(images.copy()), "float32")
    scores = np.asarray(score(tf.constant(x)))
    classes = np.argsort(-scores)[:, :2] if args.classes is None else np.tile(args.classes, (len(x), 1))
    settings = {"rules": args.rules, "input_range": input_range(preprocess, size)}
    explainers = {
        "LRP": explain.LRP(model, **settings),
        "CLRP1": explain.CLRP(model, "others", **settings),
        "CLRP2": explain.CLRP(model, "negated", **settings),
    }
    maps = {name: explainer(x, classes).reshape(-1, size, size) for name, explainer in explainers.items()}
    name_of = named(args.names)
    titles = [
        f"{path.name}: {name_of(label)}\n{scores[i, label]:.2f}"
        for i, path in enumerate(args.images)
        for label in classes[i]
    ]
    images = np.repeat(images, classes.shape[1], axis=0)
    plot.comparison(images, maps, titles=titles).savefig(args.out, dpi=160)
    print(f"{len(titles)} explanations each of {', '.join(maps)} in {args.out}")


if __name__ == "__main__":
    main()
