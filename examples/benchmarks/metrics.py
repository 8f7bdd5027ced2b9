"""Metrics of explanations against the forward passes that they need, and against Quantus.

    python examples/benchmarks/metrics.py
    python examples/benchmarks/metrics.py --images 16 --rounds 1 --metrics deletion ROAD

On a small ConvNet for 28x28 images, not trained, in equal batches; as many perturbed images for both. All take turns in
one process; medians, ranges, and ratios to the first row: the forward passes alone, compiled, of as many images in as
large batches, or the calls of the explainer alone. Metrics of maps alone are the first row themselves. Quantus (``pip
install quantus``) is left out where it is not installed; it has no insertion.
"""

import argparse
import importlib
import os
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from timing import add_clock, alternate, noise, report

from keras_capsvit import autodiff, evaluate, explain
from keras_capsvit.models import ConvNetAvg

SHAPE, STEPS, SQUARE, SAMPLES = (28, 28, 1), 28, 4, 10
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BLOCKS = (SHAPE[0] // SQUARE) ** 2


class Subject:
    """What is measured: a model, images, maps and masks; with Quantus, if it is installed."""

    def __init__(self, images, batch_size):
        keras.utils.set_random_seed(0)
        self.model = ConvNetAvg(SHAPE, 10, kernel_size=3, filters=32)
        self.x, self.batch_size = noise(images, *SHAPE), batch_size
        self.explainer = explain.Saliency(self.model, batch_size=batch_size)
        self.y = self.model.predict(self.x, verbose=0).argmax(axis=-1)
        self.maps = self.explainer(self.x, self.y)
        self.masks = np.zeros(self.maps.shape, bool)
        self.masks[:, 7:21, 7:21] = True
        self._forward = autodiff.compiled(lambda x: self.model(x, training=False), self.model.variables)
        self._judged = keras.Sequential([keras.Input(SHAPE), self.model, keras.layers.Activation("linear")])
        sys.modules["zennit"] = None  # Quantus imports it for explanations that are not needed here
        try:
            self.quantus = importlib.import_module("quantus")
        except ImportError:
            self.quantus = None

    def forward(self, times):
        """Forward passes of all images, several times."""
        for _ in range(times):
            for start in range(0, len(self.x), self.batch_size):
                keras.ops.convert_to_numpy(self._forward(self.x[start : start + self.batch_size]))

    def explain(self, times):
        for _ in range(times):
            self.explainer(self.x, self.y)

    def ours(self, function, **settings):
        settings = {"target": self.y, "batch_size": self.batch_size, **settings}
        return function(self.model, self.x, self.maps, **settings)

    def theirs(self, name, **settings):
        metric = getattr(self.quantus, name)(disable_warnings=True, **settings)
        arguments = {
            "x_batch": self.x,
            "y_batch": self.y,
            "a_batch": self.maps[:, None],
            "s_batch": self.masks[:, None],
        }
        explained = {
            "explain_func": lambda model, inputs, targets, **_: self.explainer(np.asarray(inputs), targets)[:, None]
        }
        how = {"channel_first": False, "softmax": False, "batch_size": self.batch_size}
        return metric(self._judged, **arguments, **explained, **how)


def rows(subject):
    """Of each metric, by name: dicts from rows to what is run."""
    forward, ours, theirs = subject.forward, subject.ours, subject.theirs
    flipping = {"features_in_step": STEPS, "perturb_baseline": "black", "return_auc_per_sample": False}
    squares = {"perturbations": "square", "size": SQUARE, "samples": BLOCKS}
    blocks = {"perturb_patch_sizes": [SQUARE], "n_perturb_samples": 1}
    near = {"samples": SAMPLES, "radius": 0.1, "batch_size": subject.batch_size}
    percentages = [100 * share for share in SHARES]
    maps, masks = subject.maps, subject.masks
    return {
        f"deletion, {STEPS} steps": {
            "forward passes": lambda: forward(STEPS + 1),
            "evaluate.deletion": lambda: ours(evaluate.deletion, steps=STEPS),
            "Quantus": lambda: theirs("PixelFlipping", **flipping),
        },
        f"insertion, {STEPS} steps": {
            "forward passes": lambda: forward(STEPS + 1),
            "evaluate.insertion": lambda: ours(evaluate.insertion, steps=STEPS),
        },
        f"ROAD, {len(SHARES)} shares": {
            "forward passes": lambda: forward(len(SHARES)),
            "evaluate.road": lambda: ours(evaluate.road, shares=SHARES),
            "Quantus": lambda: theirs("ROAD", percentages=percentages),
        },
        f"infidelity, {BLOCKS} squares": {
            "forward passes": lambda: forward(BLOCKS + 1),
            "evaluate.infidelity": lambda: ours(evaluate.infidelity, **squares),
            "Quantus": lambda: theirs("Infidelity", **blocks),
        },
        f"sensitivity of Saliency, {SAMPLES} samples": {
            "explainer": lambda: subject.explain(SAMPLES + 1),
            "evaluate.max_sensitivity": lambda: evaluate.max_sensitivity(
                subject.explainer, subject.x, subject.y, **near
            ),
            "Quantus": lambda: theirs("MaxSensitivity", nr_samples=SAMPLES, lower_bound=0.1),
        },
        "sparseness": {
            "evaluate.sparseness": lambda: evaluate.sparseness(maps),
            "Quantus": lambda: theirs("Sparseness"),
        },
        "complexity": {
            "evaluate.complexity": lambda: evaluate.complexity(maps),
            "Quantus": lambda: theirs("Complexity"),
        },
        "rank accuracy": {
            "evaluate.rank_accuracy": lambda: evaluate.rank_accuracy(maps, masks),
            "Quantus": lambda: theirs("RelevanceRankAccuracy"),
        },
        "mass accuracy": {
            "evaluate.energy_inside": lambda: evaluate.energy_inside(maps, masks),
            "Quantus": lambda: theirs("RelevanceMassAccuracy"),
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64, help="64 is the default of Quantus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--metrics", nargs="+", help="beginnings of their names; all if not given")
    add_clock(parser)
    args = parser.parse_args()
    subject = Subject(args.images, args.batch_size)
    for name, runs in rows(subject).items():
        if args.metrics is None or name.startswith(tuple(args.metrics)):
            if subject.quantus is None:
                runs.pop("Quantus", None)
            print(f"{name}, {args.images} images, batch {args.batch_size}")
            report(alternate(runs, args.rounds, clock=args.clock))


if __name__ == "__main__":
    main()
