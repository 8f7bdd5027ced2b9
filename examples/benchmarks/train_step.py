"""Training step of GraCapsNet against the step of its own two convolutions with a pooled linear head.

    python examples/benchmarks/train_step.py

The two take turns in one process, so that a change of the machine's speed meets both; medians and their ratio.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from keras_capsvit import GraCapsNet, MarginLoss


def convolutions_only(model):
    """The convolutions of ``model`` with global average pooling and a linear classifier."""
    first, primary = model.get_layer("conv"), model.get_layer("primary_capsules")
    images = keras.Input(model.input_shape[1:])
    features = images
    for name, conv in (("first", first), ("second", primary.conv)):
        features = keras.layers.Conv2D.from_config({**conv.get_config(), "name": name})(features)
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(images, keras.layers.Dense(model.output_shape[-1])(pooled))


def stepper(model, loss, x, y):
    """Callable that runs one training step of Keras's own compiled train function and waits for it."""
    model.compile("adam", loss)
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors((x, y)).repeat())

    def step():
        started = time.perf_counter()
        logs = model.train_function(batches)
        float(logs["loss"])
        return time.perf_counter() - started

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).uniform(size=(args.batch_size, args.size, args.size, 1)).astype("float32")
    y = np.arange(args.batch_size) % 10
    model = GraCapsNet(x.shape[1:], 10)
    steps = {
        "convolutions": stepper(
            convolutions_only(model), keras.losses.SparseCategoricalCrossentropy(from_logits=True), x, y
        ),
        "GraCapsNet": stepper(model, MarginLoss(), x, y),
    }
    times = {name: [] for name in steps}
    for turn in range(args.rounds + 3):
        for name, step in steps.items():
            seconds = step()
            if turn >= 3:  # traced and warm
                times[name].append(seconds)
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, found in times.items():
        print(f"{name:13} {medians[name] * 1e3:7.1f} ms   ({min(found) * 1e3:.1f} to {max(found) * 1e3:.1f})")
    pairs = [b / a for a, b in zip(*times.values(), strict=True)]
    print(
        f"ratio of medians {medians['GraCapsNet'] / medians['convolutions']:.3f}, median of pairwise ratios "
        f"{statistics.median(pairs):.3f}; batch {args.batch_size}, {args.size}x{args.size}, "
        f"TF_ENABLE_ONEDNN_OPTS={os.environ['TF_ENABLE_ONEDNN_OPTS']}"
    )


if __name__ == "__main__":
    main()
