"""Memory and time of training capsule networks of 1,000 classes on 64x64 images, all of a batch or a few at a time.

    python examples/benchmarks/many_classes.py
    python examples/benchmarks/many_classes.py --networks gracapsnet --images-at-once 0 1 4 16

Every row is a process of its own, which trains with Adam: its most memory (the resident set), and the median seconds of
a step after the first. 0 is the whole batch at once.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# 64x64 pixels give 10x10 nodes so; with 32 types the transformations to 1,000 classes have 410 million weights, and
# 8 types are a quarter of that.
CAPSNET = {"strides": (2, 2), "num_types": 8}
NETWORKS = {
    "capsnet": ("CapsNet", CAPSNET),
    "capsnet rolled": ("CapsNet", {**CAPSNET, "routing": "rolled"}),
    "capsnet em": ("CapsNet", {**CAPSNET, "routing": "em", "filters": 64}),
    "affcapsnet": ("AffCapsNet", CAPSNET),
    "gracapsnet": ("GraCapsNet", {}),
}


def measure(name, images_at_once, batch_size, classes, steps):
    """Print what a training takes."""
    import numpy as np

    import keras_capsvit

    kind, settings = NETWORKS[name]
    model = getattr(keras_capsvit, kind)((64, 64, 3), classes, images_at_once=images_at_once or None, **settings)
    model.compile("adam", keras_capsvit.MarginLoss())
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(batch_size, 64, 64, 3)).astype("float32"), random.integers(0, classes, batch_size)
    seconds = []
    for _ in range(1 + steps):
        started = time.perf_counter()
        model.train_on_batch(x, y)
        seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{model.count_params() / 1e6:.0f} {memory:.1f} {statistics.median(seconds[1:]):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--images-at-once", nargs="+", type=int, default=[0, 4])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        measure(args.row[0], int(args.row[1]), args.batch_size, args.classes, args.steps)
        return
    print(f"{'network':16} {'at once':>8} {'parameters, M':>14} {'memory, GiB':>12} {'s per step':>11}")
    shared = ["--batch-size", args.batch_size, "--classes", args.classes, "--steps", args.steps]
    for name in args.networks:
        for count in args.images_at_once:
            command = [sys.executable, __file__, *shared, "--row", name, count]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            values = done.stdout.split() if done.returncode == 0 else ["-", f"ended with {done.returncode}", "-"]
            parameters, memory, seconds = values if len(values) == 3 else values[-3:]
            print(f"{name:16} {count or 'all':>8} {parameters:>14} {memory:>12} {seconds:>11}", flush=True)


if __name__ == "__main__":
    main()
