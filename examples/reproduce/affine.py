"""Robustness to affine transformations (thesis Table 5.1): train on expanded_mnist, test on affine_mnist.

    python examples/reproduce/affine.py --seeds 0 1

Every model gets the same budget. The default is one that two CPU cores can do: a quarter of the thesis's channels and
capsule types, fewer images and epochs. The thesis's is
``--filters 256 --num-types 32 --train 60000 --epochs 100 --stop-at 0.9922``. Interrupted, the same command goes on
after the last finished epoch; "seconds" count from there. Writes results/affine.json.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from provenance import read_rows, write_json

from keras_capsvit import data, training
from keras_capsvit.models import AffCapsNet, CapsNet, ConvNetAvg, ConvNetFC

SHAPE = (40, 40, 1)
MILD_SHEAR = 11.3  # degrees, slopes within 0.2; affine_mnist's own 45 are the thesis's
PUBLISHED = {  # accuracy on AffNIST, which affine_mnist is not
    "ConvNetFC": 0.66,
    "CapsNet": 0.79,
    "CapsNet, no routing": 0.8181,
    "AffCapsNet, dynamic routing": 0.8903,
    "AffCapsNet": 0.9321,
    "ConvNetAvg": 0.9411,
}


def build(name, args):
    """The model of a row of Table 5.1."""
    capsules = {"filters": args.filters, "num_types": args.num_types, "reconstruction": "conditional"}
    if name == "ConvNetFC":
        return ConvNetFC(SHAPE, 10, filters=(args.filters, args.filters, args.filters // 2))
    if name == "ConvNetAvg":
        return ConvNetAvg(SHAPE, 10, filters=args.filters)
    if name == "AffCapsNet":
        return AffCapsNet(SHAPE, 10, **capsules)
    if name == "AffCapsNet, dynamic routing":
        return CapsNet(SHAPE, 10, shared_transform=True, **capsules)
    return CapsNet(SHAPE, 10, routing="uniform" if name.endswith("no routing") else "dynamic", **capsules)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--num-types", type=int, default=8)
    parser.add_argument("--train", type=int, default=20000, help="training images, each moved anew in every epoch")
    parser.add_argument("--test", type=int, default=10000, help="test images, each deformed once")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--stop-at", type=float, help="accuracy on expanded_mnist at which training ends")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, default="saved_models/affine", help="for checkpoints")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "affine.json", help="JSON file"
    )
    args = parser.parse_args()
    rows = read_rows(args.out, args, more=("seeds", "models"))
    for seed in args.seeds:
        for name in args.models:
            if any((row["model"], row["seed"]) == (name, seed) for row in rows):
                continue
            keras.utils.set_random_seed(seed)
            streams = {"data_dir": args.data_dir, "seed": seed}
            train = data.load("expanded_mnist", split=f"train[:{args.train}]", **streams)
            clean = data.load("expanded_mnist", split=f"test[:{args.test}]", **streams)
            affine = data.load("affine_mnist", split=f"test[:{args.test}]", **streams)
            mild = data.load("affine_mnist", split=f"test[:{args.test}]", shear=MILD_SHEAR, **streams)
            model = build(name, args)
            loss = "margin" if "Caps" in name else "cross_entropy"
            recipe = training.Recipe(args.epochs, learning_rate=args.learning_rate, loss=loss, stop_at=args.stop_at)
            started = time.perf_counter()
            work = args.work / f"{name}_seed_{seed}"
            history = training.fit(model, train, clean, recipe, work=work, verbose=2)
            seconds = round(time.perf_counter() - started)
            rows.append(
                {
                    "model": name,
                    "seed": seed,
                    "parameters": model.count_params(),
                    "epochs": history.epoch[-1] + 1,
                    "accuracy": history.history["val_accuracy"][-1],
                    "affine_accuracy": model.evaluate(affine, verbose=0, return_dict=True)["accuracy"],
                    "mild_shear_accuracy": model.evaluate(mild, verbose=0, return_dict=True)["accuracy"],
                    "published": PUBLISHED[name],
                    "seconds": seconds,
                }
            )
            print(rows[-1], flush=True)
            write_json(args.out, result=rows, options=args)


if __name__ == "__main__":
    main()
