"""Which adjacency? GraCapsNet with several sigma, with and without degree normalisation, at equal budget.

    python examples/reproduce/sigma.py

Trains one model per adjacency on the same Fashion-MNIST images for the same number of steps; sigma 0 is the identity.
Finished models are kept in the JSON, so that an interrupted run goes on.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from provenance import write_json

from keras_capsvit import GraCapsNet, MarginLoss, data

ADJACENCIES = [(0, False), *((sigma, normalize) for sigma in (0.5, 1, 2, 4) for normalize in (False, True))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--train", type=int, default=6400, help="training images")
    parser.add_argument("--test", type=int, default=4000, help="test images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.003)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "sigma.json")
    args = parser.parse_args()
    about = data.info(args.dataset)
    rows = json.loads(args.out.read_text())["result"] if args.out.exists() else []
    for seed in args.seeds:
        for sigma, normalize in ADJACENCIES:
            key = {"sigma": sigma, "normalize": normalize, "seed": seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            keras.utils.set_random_seed(seed)
            splits = (f"train[:{args.train}]", f"test[:{args.test}]")
            train, test = data.load(
                args.dataset, split=splits, batch_size=args.batch_size, data_dir=args.data_dir, seed=seed
            )
            model = GraCapsNet(about.image_shape, about.num_classes, sigma=sigma, normalize=normalize)
            schedule = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.epochs * len(train))
            model.compile(keras.optimizers.Adam(schedule), MarginLoss(), metrics=["accuracy"])
            started = time.perf_counter()
            history = model.fit(train, epochs=args.epochs, shuffle=False, verbose=0).history
            found = model.evaluate(test, verbose=0, return_dict=True)
            row = {"train_loss": history["loss"][-1], "test_loss": found["loss"], "test_accuracy": found["accuracy"]}
            rows.append({**key, **row, "seconds": round(time.perf_counter() - started)})
            print(rows[-1], flush=True)
            write_json(args.out, result=rows, options=args)


if __name__ == "__main__":
    main()
