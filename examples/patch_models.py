"""What the patch examples share: options, data, and a vision transformer and a ResNet, trained by the same recipe."""

import argparse
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from keras_capsvit import data, evaluate, load_model, training
from keras_capsvit.layers import Ablation
from keras_capsvit.models import ResNet18, VisionTransformer

CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}


def options(description, *, out):
    """Parser of the options that both have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, nargs="+", help=".keras files; trained in WORK if not given")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("saved_models") / "patch_models")
    parser.add_argument("--dataset", default="cifar10", help="cifar10, digits, mnist, ...")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--image-size", type=int, help="side to resize images to")
    parser.add_argument("--epochs", type=int, default=30, help="of training, as are the next seven")
    parser.add_argument("--resnet-epochs", type=int, nargs="+", help="if others; a ResNet for each, by the same recipe")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--shift", type=int, default=4, help="of augmentation, in pixels")
    parser.add_argument("--vit-width", type=int, default=128)
    parser.add_argument("--vit-depth", type=int, default=6)
    parser.add_argument("--resnet-filters", type=int, default=21)
    parser.add_argument("--patch-size", type=int, default=4, help="of the transformer, and of what is attacked")
    parser.add_argument("--examples", type=int, default=256, help="images classified correctly by all, at most")
    parser.add_argument("--steps", type=int, default=1000, help="of the attack; the thesis's are 10,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saved_models") / out)
    return parser


def streams(args):
    """Training and test stream."""
    where = {"data_dir": args.data_dir, "image_size": args.image_size, "seed": args.seed}
    return data.load(args.dataset, batch_size=args.batch_size, **where)


def models(args, train, test):
    """The models by name: those of ``--models``, or those in WORK, trained if they are not there yet."""
    if args.models:
        return {path.stem: load_model(path) for path in args.models}
    epochs = {f"resnet_{count}": count for count in args.resnet_epochs or ()} or {"resnet": args.epochs}
    return {name: trained(name, count, args, train, test) for name, count in {"vit": args.epochs, **epochs}.items()}


def trained(name, epochs, args, train, test, *, columns=None):
    """A model that is in WORK, or else trained; with ``columns``, on columns of images so wide, its last layer."""
    path = args.work / f"{name}.keras"
    if path.exists():
        return load_model(path)
    keras.utils.set_random_seed(args.seed)
    model = _new(name, args, train.element_spec[0].shape[1:])
    if columns is not None:
        model = keras.Sequential([keras.Input(model.input_shape[1:]), Ablation(columns, seed=args.seed), model])
    print(f"{name}: {model.count_params():,} parameters")
    flip = args.dataset == "cifar10"
    recipe = training.Recipe(
        epochs,
        args.batch_size,
        learning_rate=args.learning_rate,
        schedule="cosine",
        loss="cross_entropy",
        shift=args.shift,
        flip=flip,
    )
    moved = data.augment(train, shift=recipe.shift, flip=recipe.flip, seed=args.seed)
    training.fit(model, moved, test, recipe, work=args.work / name)
    model.save(path)
    return model


def _new(name, args, image_shape):
    common = {"num_classes": data.info(args.dataset).num_classes, "input_shape": tuple(image_shape)}
    common |= CIFAR10 if args.dataset == "cifar10" else {}
    if name.startswith("resnet"):
        return ResNet18(filters=args.resnet_filters, **common)
    heads = max(1, args.vit_width // 32)
    size = {"width": args.vit_width, "depth": args.vit_depth, "num_heads": heads}
    return VisionTransformer(f"Ti/{args.patch_size}", **size, **common)


def examples(args, networks, test):
    """Images and labels that all models classify correctly, the first ``--examples`` of the test stream."""
    batches = evaluate.classified_correctly(networks, test)
    if not batches:
        raise SystemExit("No test image is classified correctly by all models; train them longer.")
    x, y = (np.concatenate(arrays)[: args.examples] for arrays in zip(*batches, strict=True))
    return x, y


def attacked(model, attack, x, y, batch_size):
    """Adversarial images of all of ``x``, made batch by batch."""
    numbers = np.arange(len(x))
    parts = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    return np.concatenate([attack(model, x[part], y[part], numbers=numbers[part]) for part in parts])


def clean(networks, test):
    """How large the models are and how accurate."""
    rows = []
    for name, model in networks.items():
        right = np.concatenate([model.predict_on_batch(x).argmax(-1) == y for x, y in test.as_numpy_iterator()])
        rows.append({"model": name, "parameters": model.count_params(), "test_accuracy": float(right.mean())})
    return evaluate.Table(rows)


def settings(args):
    """The options that say how a result was obtained, not where things are; of training only if it was here."""
    unused = ("data_dir", "models", "work", "out")
    if args.models:
        unused += (
            "epochs",
            "resnet_epochs",
            "batch_size",
            "learning_rate",
            "shift",
            "vit_width",
            "vit_depth",
            "resnet_filters",
        )
    return {name: value for name, value in vars(args).items() if name not in unused}
