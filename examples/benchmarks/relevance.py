"""LRP and CLRP against one input gradient, and against zennit on the same architecture in PyTorch.

    python examples/benchmarks/relevance.py                        # VGG16, 224x224, batches 1 and 8, two threads
    python examples/benchmarks/relevance.py --size 32 --batches 1 --rounds 2

All take turns; medians of seconds. zennit (``pip install -e ".[peers]"``) runs in a process of its own, which waits
while the others run; it is left out where it is not installed. Memory is the peak of the process so far.
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

import numpy as np

RULES = {"rules": "z_plus", "input_range": (0, 1)}
CHANNELS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
CLASSES = 1000


def images(batch, size):
    return np.random.default_rng(0).uniform(size=(batch, size, size, 3)).astype("float32")


def ours(size, threads):
    """Runs by name from images, and seconds it took to build LRP and to trace and run it once."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    import keras

    from keras_capsvit import autodiff, explain

    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    model(images(1, size))
    target = keras.ops.one_hot(1, CLASSES)
    gradient = autodiff.value_and_gradient(lambda x: keras.ops.sum(model(x, training=False) * target, axis=-1))
    forward = autodiff.compiled(lambda x: model(x, training=False))
    started = time.perf_counter()
    lrp = explain.LRP(model, **RULES)
    built = time.perf_counter() - started
    lrp(images(1, size), 1)
    first_map = time.perf_counter() - started
    others, negated = explain.CLRP(model, "others", **RULES), explain.CLRP(model, "negated", **RULES)
    runs = {
        "forward": lambda x: forward(x).numpy(),
        "gradient": lambda x: gradient(x)[1].numpy(),
        "LRP": lambda x: lrp(x, 1),
        "CLRP1": lambda x: others(x, 1),
        "CLRP2": lambda x: negated(x, 1),
        "LRP, 5 targets": lambda x: lrp(x, np.tile(np.arange(5), (len(x), 1))),
        "CLRP1, 5 targets": lambda x: others(x, np.tile(np.arange(5), (len(x), 1))),
    }
    return runs, built, first_map


class Zennit:
    """zennit in a process of its own: ``runs()`` by name, each from images, timed over there."""

    def __init__(self, size, threads):
        command = [sys.executable, __file__, "--serve-zennit", "--size", str(size), "--threads", str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, **pipes)
        self.works = self.process.stdout.readline().strip() == "ready"

    def seconds(self, name, batch):
        print(name, batch, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve_zennit(size, threads):
    """Answer lines ``what batch`` with the seconds that took, until there are no more."""
    import torch

    library = torch.library.Library("torchvision", "DEF")  # zennit imports it, which does not work beside every torch
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from zennit.attribution import Gradient
    from zennit.composites import SpecialFirstLayerMapComposite
    from zennit.rules import Pass, ZBox, ZPlus
    from zennit.types import Activation, Convolution, Linear

    torch.set_num_threads(threads)
    net, channels, side = [], 3, size
    for width in CHANNELS:
        if width == "pool":
            net.append(torch.nn.MaxPool2d(2))
            side //= 2
        else:
            net += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
    net.append(torch.nn.Flatten())
    for inputs, width in ((channels * side * side, 4096), (4096, 4096)):
        net += [torch.nn.Linear(inputs, width), torch.nn.ReLU()]
    net = torch.nn.Sequential(*net, torch.nn.Linear(4096, CLASSES))
    box = ZBox(low=torch.zeros(1, 3, size, size), high=torch.ones(1, 3, size, size))
    layers = [(Activation, Pass()), (Convolution, ZPlus()), (Linear, ZPlus())]
    composite = SpecialFirstLayerMapComposite(layers, [(Convolution, box)])
    target = torch.nn.functional.one_hot(torch.tensor([1]), CLASSES)

    def gradient(x):
        x.requires_grad_()
        return torch.autograd.grad((net(x) * target).sum(), x)[0]

    def lrp(x):
        with Gradient(model=net, composite=composite) as attributor:
            return attributor(x, lambda y: y * target)[1]

    runs = {"gradient": gradient, "LRP": lrp}
    print("ready", flush=True)
    for line in sys.stdin:
        name, batch = line.split()
        x = torch.tensor(images(int(batch), size).transpose(0, 3, 1, 2).copy())
        started = time.perf_counter()
        runs[name](x)
        print(time.perf_counter() - started, flush=True)


def alternate(runs, zennit, batch, size, rounds):
    """Seconds by name, in turns, after one round to warm up."""
    x = images(batch, size)
    times = {}
    for turn in range(rounds + 1):
        once = {}
        for name, run in runs.items():
            started = time.perf_counter()
            run(x)
            once[name] = time.perf_counter() - started
        if zennit.works:
            once |= {f"torch {name}": zennit.seconds(name, batch) for name in ("gradient", "LRP")}
        if turn:
            for name, seconds in once.items():
                times.setdefault(name, []).append(seconds)
    return times


def report(times, batch):
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"batch {batch:2}            median   (range)            to gradient, LRP")
    for name, seconds in times.items():
        ratios = "".join(f"{medians[name] / medians[unit]:9.3f}" for unit in ("gradient", "LRP"))
        print(f"  {name:18} {medians[name]:7.3f} s ({min(seconds):.3f} to {max(seconds):.3f}) {ratios}")
    print(f"  five targets to one, CLRP1: {medians['CLRP1, 5 targets'] / medians['CLRP1']:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve-zennit", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve_zennit:
        return serve_zennit(args.size, args.threads)
    runs, built, first_map = ours(args.size, args.threads)
    print(f"VGG16, {args.size}x{args.size}, {args.threads} threads, {args.rounds} rounds")
    print(f"LRP built in {built:.2f} s, first map after {first_map:.2f} s")
    zennit = Zennit(args.size, args.threads)
    for batch in args.batches:
        report(alternate(runs, zennit, batch, args.size, args.rounds), batch)
        print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB", flush=True)
    zennit.close()
    return None


if __name__ == "__main__":
    main()
