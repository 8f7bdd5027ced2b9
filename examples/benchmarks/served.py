"""Attacks and explanations on a served model against the same on the live one.

    python examples/benchmarks/served.py
    python examples/benchmarks/served.py --models capsnet --rounds 20 --processor

Models are not trained. Pairs take turns in one process: medians, ranges, and ratios to the live model. That both find
the same is what ``tests/test_serving.py`` checks.
"""

import argparse
import os
import tempfile

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from timing import add_clock, alternate, noise, report

from keras_capsvit import CapsNet, GraCapsNet, attacks, explain, serving
from keras_capsvit.models import ResNet20

MODELS = {
    "gracapsnet": lambda: GraCapsNet((28, 28, 1), 10),
    "capsnet": lambda: CapsNet((28, 28, 1), 10, filters=64, num_types=8),
    "resnet20": lambda: ResNet20((32, 32, 3), 10),
}
GOALS = {"gracapsnet": ["capsules"], "capsnet": ["capsules", "votes"], "resnet20": ["logits"]}


def work(name, model, x, y):
    """What is done with a model, by name."""
    pgd = attacks.PGD(0.03, steps=5)
    objectives = {goal: getattr(attacks, goal)(model) for goal in GOALS[name]}
    done = {f"PGD, {goal}": lambda subject=subject: pgd(subject, x, y) for goal, subject in objectives.items()}
    explainers = {
        "LRP": explain.LRP(model, "epsilon"),
        "CLRP": explain.CLRP(model, rules="epsilon"),
        "Saliency": explain.Saliency(model),
    }
    if name == "gracapsnet":
        explainers["GraphAttention"] = explain.GraphAttention(model)
    return done | {kind: lambda subject=subject: subject(x, y) for kind, subject in explainers.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    add_clock(parser)
    args = parser.parse_args()
    for name in args.models:
        keras.utils.set_random_seed(0)
        model = MODELS[name]()
        x = noise(args.batch_size, *model.input_shape[1:])
        y = model.predict(x, verbose=0).argmax(axis=-1)
        with tempfile.TemporaryDirectory() as folder:
            served = serving.load(serving.export(model, folder))
            both = work(name, model, x, y), work(name, served, x, y)
            for kind in both[0]:
                print(f"{name}, {kind}, batch {args.batch_size}")
                report(alternate({"live": both[0][kind], "served": both[1][kind]}, args.rounds, clock=args.clock))


if __name__ == "__main__":
    main()
