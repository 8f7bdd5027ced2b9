"""What the attack examples share: options, data, and a network with a decoder, loaded or trained."""

import argparse
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from keras_capsvit import CapsNet, ConvNetCR, ConvNetR, data, load_model, training
from keras_capsvit.evaluate.progress import place

TRAINING = ("epochs", "dtype", "learning_rate", "filters", "num_types")  # options
NETWORKS = {
    "capsnet": lambda shape, classes, args, **how: CapsNet(
        shape, classes, num_types=args.num_types, reconstruction="conditional", **how
    ),
    "cnn_r": lambda shape, classes, args, **how: ConvNetR(shape, classes, **how),
    "cnn_cr": lambda shape, classes, args, **how: ConvNetCR(shape, classes, **how),
}


def options(description, *, epochs, examples, out):
    """Parser of the options that all of them have; the arguments are defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="digits, mnist, fashion_mnist, ...")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--image-size", type=int, help="side to resize images to")
    parser.add_argument("--model", type=pathlib.Path, help=".keras file; trained and written to OUT if not given")
    parser.add_argument("--network", default="capsnet", choices=list(NETWORKS), help="what to train")
    parser.add_argument("--epochs", type=int, default=epochs, help="of training")
    parser.add_argument("--dtype", default="float32", help="of training, such as mixed_bfloat16; judged in float32")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="the first")
    parser.add_argument("--filters", type=int, default=64, help="of the convolutions; the thesis's are 256")
    parser.add_argument("--num-types", type=int, default=8, help="capsule types; the thesis's are 32")
    parser.add_argument("--epsilon", type=float, default=0.1, help="radius of the L-infinity ball")
    parser.add_argument("--examples", type=int, default=examples, help="test images that are attacked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saved_models") / out)
    return parser


def streams(args):
    """Training and test stream."""
    where = {"data_dir": args.data_dir, "image_size": args.image_size, "seed": args.seed}
    return data.load(args.dataset, batch_size=32 if args.dataset == "digits" else 128, **where)


def new(args, image_shape):
    """A network with a decoder, not trained, of the dtype policy that is set."""
    keras.utils.set_random_seed(args.seed)
    kernel = 9 if min(image_shape[:2]) >= 24 else 5
    classes = data.info(args.dataset).num_classes
    return NETWORKS[args.network](image_shape, classes, args, kernel_size=kernel, filters=args.filters)


def trained(args, train, test):
    """The network of ``--model``; or a new one, trained and written to OUT/model.keras, in float32."""
    if args.model is not None:
        return load_model(args.model)
    image_shape = train.element_spec[0].shape[1:]
    keras.config.set_dtype_policy(args.dtype)
    model = new(args, image_shape)
    print(f"{model.name}: {model.count_params():,} parameters")
    training.fit(model, train, test, recipe(args), work=args.out)
    if args.dtype != "float32":
        keras.config.set_dtype_policy("float32")
        weights = model.get_weights()
        model = new(args, image_shape)
        model.set_weights(weights)
        model.compile(metrics=["accuracy"])
    model.save(args.out / "model.keras")
    return model


def recipe(args):
    """How it is trained."""
    return training.Recipe(args.epochs, learning_rate=args.learning_rate, schedule="cosine")


def work(args, *names):
    """Folder in OUT/work that keeps what was measured of a ``--model``; None of a network that this run trained."""
    return None if args.model is None else place(args.out, "work", *names)


def batches(x, y, size=128):
    """Batches of arrays."""
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def settings(args):
    """The options that say how a result was obtained, not where things are; of training only those that were used."""
    unused = ("data_dir", "model", "out") + (() if args.model is None else TRAINING)
    return {name: value for name, value in vars(args).items() if name not in unused}
