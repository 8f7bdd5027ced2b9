"""Explanations of a GraCapsNet against forward passes and input gradients, and AOPC against Quantus.

    python examples/benchmarks/explanations.py
    python examples/benchmarks/explanations.py --batch-size 32 --steps 5 --samples 2 --rounds 2 --images 50

GraCapsNet for 28x28 images, not trained; AOPC also on ConvNetAvg with 3x3 kernels and 32 channels, run once, tracing
included. All take turns in one process; medians, ranges, and ratios to the first row, which costs what an explanation
should cost: a forward pass, or as many compiled input gradients as it takes. Quantus (``pip install quantus``) is left
out where it is not installed.
"""

import argparse
import importlib
import os
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from timing import add_clock, alternate, noise, report

from keras_capsvit import GraCapsNet, autodiff, evaluate, explain, taps
from keras_capsvit.models import ConvNetAvg

TARGET = 3


def attention(model, x):
    """Rows of the built-in explanation, the forward pass first, and what of it the attention needs."""
    size = len(x)
    forward = autodiff.compiled(lambda x: model(x, training=False), model.variables)
    primary = taps.tap(model, "primary_capsules")
    capsules = autodiff.compiled(lambda x: keras.ops.sum(primary(x, training=False), axis=(1, 2, 3)), model.variables)
    explainer = explain.GraphAttention(model, batch_size=size)
    return {
        "model.predict": lambda: model.predict(x, batch_size=size, verbose=0),
        "compiled forward": lambda: keras.ops.convert_to_numpy(forward(x)),
        "primary capsules": lambda: keras.ops.convert_to_numpy(capsules(x)),
        "GraphAttention": lambda: explainer(x, TARGET),
        "of the predicted": lambda: explainer(x),
    }


def gradients(model, x, count, explainer):
    """Rows of an explainer of so many gradients per image: as many gradients alone, and the explainer."""
    scores = keras.ops.one_hot(TARGET, model.output_shape[-1])
    gradient = autodiff.value_and_gradient(
        lambda x: keras.ops.sum(model(x, training=False) * scores, axis=-1), model.variables
    )

    def alone():
        for _ in range(count):
            slope = keras.ops.convert_to_numpy(gradient(x)[1])
        return slope

    return {f"{count} gradients": alone, "explainer": lambda: explainer(x, TARGET)}


def perturbation(model, images, patch, regions, theirs):
    """Rows of AOPC: Quantus's region perturbation, in batches of ``theirs``, then the same of this package."""
    x = noise(images, *model.input_shape[1:])
    maps = explain.RandomMap()(x)
    y = model.predict(x, verbose=0).argmax(axis=-1)
    rows = {}
    sys.modules["zennit"] = None  # Quantus imports it for explanations that are not needed here
    try:
        quantus = importlib.import_module("quantus")
    except ImportError:
        print("  Quantus is not installed")
    else:
        judged = keras.Sequential([keras.Input(x.shape[1:]), model, keras.layers.Activation("linear")])
        metric = quantus.RegionPerturbation(
            patch_size=patch, regions_evaluation=regions, perturb_baseline="uniform", normalise=False
        )
        settings = {"a_batch": maps[:, None], "channel_first": False, "softmax": False, "batch_size": theirs}
        rows["Quantus"] = lambda: metric(judged, x, y, **settings)
    rows["evaluate.aopc"] = lambda: evaluate.aopc(model, x, maps, patch=patch, steps=regions, target=y)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50, help="of integrated gradients")
    parser.add_argument("--samples", type=int, default=10, help="of SmoothGrad")
    parser.add_argument("--images", type=int, default=1000, help="of AOPC; 0 leaves it out")
    parser.add_argument("--patch", type=int, default=2, help="pixels, of AOPC; 2 makes 196 regions")
    parser.add_argument("--regions", type=int, default=100, help="how many of them are perturbed")
    parser.add_argument("--quantus-batch", type=int, default=64, help="images per batch of Quantus; 64 is its default")
    parser.add_argument("--rounds", type=int, default=5)
    add_clock(parser)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = GraCapsNet((28, 28, 1), 10)
    for size in sorted({1, args.batch_size}):
        x = noise(size, *model.input_shape[1:])
        print(f"built-in explanation, batch {size}")
        report(alternate(attention(model, x), args.rounds, clock=args.clock))
    settings = {"batch_size": args.batch_size}
    saliency = explain.Saliency(model, **settings)
    integrated = explain.IntegratedGradients(model, steps=args.steps, **settings)
    for title, count, explainer in (
        ("Saliency", 1, saliency),
        (f"SmoothGrad of Saliency, {args.samples} samples", args.samples, explain.SmoothGrad(saliency, args.samples)),
        (f"IntegratedGradients, {args.steps} steps", args.steps, integrated),
    ):
        runs = gradients(model, x, count, explainer)
        print(f"{title}, batch {args.batch_size}")
        report(alternate(runs, args.rounds, clock=args.clock))
    if args.images:
        small = ConvNetAvg(model.input_shape[1:], 10, kernel_size=3, filters=32)
        for name, judged in (("small ConvNet", small), ("GraCapsNet", model)):
            runs = perturbation(judged, args.images, args.patch, args.regions, args.quantus_batch)
            print(f"AOPC, {name}, {args.images} images, {args.regions} patches of {args.patch}")
            report(alternate(runs, 1, warm_up=0, clock=args.clock))


if __name__ == "__main__":
    main()
