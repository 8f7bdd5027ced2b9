"""Accuracy of GraCapsNet on MNIST and the like (thesis Table 3.1), with the settings of the README's table.

    python examples/reproduce/gracapsnet.py --dataset mnist --epochs 5
    python examples/reproduce/gracapsnet.py --dataset fashion_mnist --epochs 10

Interrupted, the same command goes on after the last finished epoch. Writes a JSON with the accuracy of every epoch
and how it was obtained, by default beside this script in results/.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from provenance import write_json

from keras_capsvit import GraCapsNet, MarginLoss, data

PUBLISHED = {"mnist": 0.9950, "fashion_mnist": 0.931, "cifar10": 0.8221}


def shifted(stream, pixels, shape, batch_size, seed):
    """Move every image by up to ``pixels`` in both directions, zeros coming in (Sabour et al. 2017, MNIST)."""

    def move(image, label):
        padded = tf.pad(image, [[pixels, pixels], [pixels, pixels], [0, 0]])
        return tf.image.random_crop(padded, shape, seed=seed), label

    batches = stream.cardinality()
    stream = stream.unbatch().map(move).batch(batch_size)
    return stream.apply(tf.data.experimental.assert_cardinality(batches)).prefetch(tf.data.AUTOTUNE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist", choices=list(PUBLISHED))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.003, help="first learning rate of the cosine decay")
    parser.add_argument("--shift", type=int, default=0, help="move training images by up to so many pixels")
    parser.add_argument("--reconstruction", choices=["conditional", "unconditional"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, default="saved_models", help="for checkpoints and the model")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    args = parser.parse_args()
    name = f"gracapsnet_{args.dataset}_{args.epochs}_epochs_seed_{args.seed}"
    if args.shift:
        name += f"_shift_{args.shift}"
    if args.reconstruction:
        name += f"_{args.reconstruction}"
    out = args.out or pathlib.Path(__file__).parent / "results" / f"{name}.json"

    keras.utils.set_random_seed(args.seed)
    about = data.info(args.dataset)
    train, test = data.load(args.dataset, batch_size=args.batch_size, data_dir=args.data_dir, seed=args.seed)
    if args.shift:
        train = shifted(train, args.shift, about.image_shape, args.batch_size, args.seed)
    model = GraCapsNet(about.image_shape, about.num_classes, reconstruction=args.reconstruction)
    schedule = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.epochs * len(train))
    model.compile(keras.optimizers.Adam(schedule), MarginLoss(), metrics=["accuracy"])

    folder = args.work / name
    folder.mkdir(parents=True, exist_ok=True)
    resuming = (folder / "checkpoint").exists()  # a finished training deletes it
    started = time.perf_counter()
    model.fit(
        train,
        validation_data=test,
        epochs=args.epochs,
        shuffle=False,  # the stream shuffles itself
        callbacks=[
            keras.callbacks.BackupAndRestore(folder / "checkpoint"),
            keras.callbacks.CSVLogger(folder / "epochs.csv", append=resuming),
        ],
    )
    model.save(folder / "model.keras")
    write_json(
        out,
        result={
            "test_accuracy": model.evaluate(test, return_dict=True)["accuracy"],
            "published": PUBLISHED[args.dataset],
            "epochs": (folder / "epochs.csv").read_text().splitlines(),
        },
        options=args,
        model=model.get_config(),
        test_examples=sum(len(y) for _, y in test),
        seconds=round(time.perf_counter() - started),
    )
    print(f"Wrote {out}")


if __name__ == "__main__":
    main()
