"""Compare variants of a model at one small budget, the same for all; an interrupted comparison goes on."""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from provenance import read_rows, write_json

from keras_capsvit import data, training

MEASURED = {"train_loss": "loss", "loss": "val_loss", "accuracy": "val_accuracy"}


def parse(description, *, dataset, out, **more):
    """Options of a comparison; ``out`` is the name of its JSON in results/, ``more`` are options of one of them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=dataset)
    parser.add_argument("--train", type=int, default=6400, help="training images")
    parser.add_argument("--validation", type=int, default=4000, help="images to judge by, the last of the training set")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.003, help="first learning rate of the cosine decay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data-dir")
    parser.add_argument(
        "--dtype", default="float32", help="such as mixed_bfloat16, faster on processors with its units"
    )
    parser.add_argument("--out", type=pathlib.Path)
    for name, option in more.items():
        parser.add_argument(f"--{name}", **option)
    args = parser.parse_args()
    if args.out is None:
        args.out = pathlib.Path(__file__).parent / "results" / out.format(dataset=args.dataset)
    keras.config.set_dtype_policy(args.dtype)
    return args


def compare(args, variants, build, examine=lambda model, images: [{}]):
    """Train every variant with every seed and judge it on held-out training images; a JSON row or more for each.

    Args:
        args: what ``parse`` returned.
        variants: list of dict, what distinguishes the variants; ``learning_rate`` in it overrides the option.
        build: callable ``(variant, info) → keras.Model``.
        examine: callable ``(model, images) → list of dict``, what else is measured on held-out images, a row each.
    """
    about = data.info(args.dataset)
    splits = (f"train[:{args.train}]", f"train[-{args.validation}:]")
    rows = read_rows(args.out, args, more=("seeds",))
    for seed in args.seeds:
        for variant in variants:
            key = {**variant, "seed": seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            keras.utils.set_random_seed(seed)
            train, held_out = data.load(
                args.dataset, split=splits, batch_size=args.batch_size, data_dir=args.data_dir, seed=seed
            )
            model = build(variant, about)
            rate = variant.get("learning_rate", args.learning_rate)
            recipe = training.Recipe(args.epochs, args.batch_size, learning_rate=rate, schedule="cosine")
            started = time.perf_counter()
            history = training.fit(model, train, held_out, recipe, verbose=0).history
            row = {name: history[measured][-1] for name, measured in MEASURED.items()}
            row["seconds"] = round(time.perf_counter() - started)
            images = next(iter(held_out.unbatch().batch(args.validation)))[0].numpy()
            for more in examine(model, images):
                rows.append({**key, **row, **more})
                print(rows[-1], flush=True)
            write_json(args.out, result=rows, options=args)
