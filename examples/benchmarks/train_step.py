"""Training steps of capsule networks against the step of their own two convolutions with a pooled linear head.

    python examples/benchmarks/train_step.py
    python examples/benchmarks/train_step.py --models capsnet rolled affcapsnet
    python examples/benchmarks/train_step.py --dtype mixed_bfloat16    # on a processor with units for it

All take turns in one process, so that a change of the machine's speed meets all of them; medians and their ratios. Peak
memory is that of a process of its own for each, which runs three steps.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from keras_capsvit import MarginLoss
from keras_capsvit.models import AffCapsNet, CapsNet, GraCapsNet

MODELS = {
    "gracapsnet": GraCapsNet,
    "capsnet": CapsNet,
    "rolled": lambda *args: CapsNet(*args, routing="rolled"),
    "uniform": lambda *args: CapsNet(*args, routing="uniform"),
    "affcapsnet": AffCapsNet,
}


def convolutions_of(model):
    """The convolutions of ``model`` with global average pooling and a linear classifier."""
    conv1, primary = model.get_layer("conv"), model.get_layer("primary_capsules")
    images = keras.Input(model.input_shape[1:])
    features = images
    for name, conv in (("first", conv1), ("second", primary.conv)):
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


def steppers(names, x, y):
    """Steps by name; models with convolutions of the same sizes share their reference."""
    logits_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps, reference_of = {}, {}
    for name in names:
        model = MODELS[name](x.shape[1:], 10)
        kernel = model.get_layer("conv").kernel_size[0]
        reference_of[name] = f"convolutions {kernel}x{kernel}"
        if reference_of[name] not in steps:
            steps[reference_of[name]] = stepper(convolutions_of(model), logits_loss, x, y)
        steps[name] = stepper(model, MarginLoss(), x, y)
    return steps, reference_of


def peak_memory(name, args):
    """Peak resident memory in MB of a process that runs three steps of a model, TensorFlow itself included."""
    command = [sys.executable, __file__, "--memory-of", name]
    command += ["--batch-size", str(args.batch_size), "--size", str(args.size), "--dtype", args.dtype]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gracapsnet"], choices=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=("float32", "mixed_bfloat16"), help="of both")
    parser.add_argument("--memory-of", choices=list(MODELS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    keras.config.set_dtype_policy(args.dtype)
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).uniform(size=(args.batch_size, args.size, args.size, 1)).astype("float32")
    y = np.arange(args.batch_size) % 10
    if args.memory_of:
        step = stepper(MODELS[args.memory_of](x.shape[1:], 10), MarginLoss(), x, y)
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    # Before this process grows: a child's peak counts from its parent's size on some systems.
    memory = {name: peak_memory(name, args) for name in args.models}
    steps, reference_of = steppers(args.models, x, y)
    times = {name: [] for name in steps}
    for turn in range(args.rounds + 3):
        for name, step in steps.items():
            seconds = step()
            if turn >= 3:  # traced and warm
                times[name].append(seconds)
    print(f"{'':18} median ms (range)          ratio  pairwise  peak MB")
    for name, seconds in times.items():
        line = (
            f"{name:18} {statistics.median(seconds) * 1e3:7.1f} ({min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f})"
        )
        if name in reference_of:
            reference = times[reference_of[name]]
            ratio = statistics.median(seconds) / statistics.median(reference)
            pairwise = statistics.median(b / a for a, b in zip(reference, seconds, strict=True))
            line = f"{line:44} {ratio:6.3f}  {pairwise:7.3f}  {memory[name]:8.0f}"
        print(line)
    print(
        f"batch {args.batch_size}, {args.size}x{args.size}, {args.dtype}, {args.rounds} rounds, "
        f"TF_ENABLE_ONEDNN_OPTS={os.environ['TF_ENABLE_ONEDNN_OPTS']}"
    )


if __name__ == "__main__":
    main()
