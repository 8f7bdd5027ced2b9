"""Robust accuracy of any image classifier under AutoAttack, and its record in the manner of RobustBench.

    python examples/autoattack.py model.keras --dataset cifar10 --epsilon 0.03137 --examples 1000
    python examples/autoattack.py saved_models/digits_gracapsnet --dataset digits --epsilon 0.1 --norm linf
    python examples/autoattack.py resnet20_cifar10.npz --network ResNet --settings SETTINGS.json --dataset cifar10

MODEL is a .keras file, the folder of a SavedModel, or a file of weights; the last needs --network, a class of this
package, and may have a JSON file of the settings of its constructor besides input_shape and num_classes, such as

    {"depth": 20, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

Where it is interrupted, the same command goes on after the last batch. Writes OUT/NAME.json, and prints it.
"""

import argparse
import functools
import json
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import any_model
import numpy as np

from keras_capsvit import attacks, data, evaluate
from keras_capsvit.evaluate.progress import place
from keras_capsvit.files import write_text

OBJECTIVES = ("capsules", "votes")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL")
    any_model.add_options(parser)
    parser.add_argument("--dataset", required=True, help="digits, mnist, fashion_mnist, cifar10, ...")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--epsilon", type=float, required=True, help="radius of the ball, in pixels of [0, 1]")
    parser.add_argument("--norm", default="linf", choices=attacks.AutoAttack.norms)
    parser.add_argument("--version", default="standard", choices=("standard", "plus", "rand"))
    parser.add_argument("--objective", choices=OBJECTIVES, help="of capsule networks; the natural one if not given")
    parser.add_argument("--precision", default="float32", choices=attacks.PRECISIONS, help="of gradients")
    parser.add_argument("--examples", type=int, default=1000, help="test images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the record; default: that of MODEL")
    parser.add_argument("--reported", type=float, help="published robust accuracy, in [0, 1]")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saved_models") / "autoattack")
    args = parser.parse_args()
    any_model.check_options(parser, args)
    return args


def attacked(model, kind, precision):
    """The objective of one of OBJECTIVES, None for the natural one, in a precision."""
    return attacks.in_precision(getattr(attacks, kind)(model) if kind else model, precision)


def main():
    args = parse()
    model = any_model.model_of(args, args.dataset)
    low, high = any_model.pixel_range(args, model)
    test = data.load(args.dataset, split="test", data_dir=args.data_dir)
    x, y = data.take(test, args.examples)
    x, scale = (low + np.asarray(x) * (high - low)).astype("float32"), high - low
    attack = attacks.AutoAttack(
        args.epsilon * scale, norm=args.norm, version=args.version, bounds=(low, high), seed=args.seed
    )
    name = args.name or args.model.stem
    report = evaluate.auto_attack(
        model,
        attack,
        (x, y),
        objective=functools.partial(attacked, kind=args.objective, precision=args.precision),
        batch_size=args.batch_size,
        work=place(
            args.out, "work", name, args.norm, args.version, args.epsilon, args.objective or "natural", args.precision
        ),
    )
    more = {"objective": args.objective} if args.objective else {}
    record = report.record(name, args.dataset, reported=args.reported, **more)
    text = json.dumps(record, indent=1)
    write_text(args.out / f"{name}.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
