"""PGD against as many separately compiled input gradients, and against the same attack of other libraries.

    python examples/benchmarks/attacks.py
    python examples/benchmarks/attacks.py --models resnet20 --steps 10

The small ConvNet is ConvNetAvg with 3x3 kernels and 32 channels. All take turns in one process; medians and ratios
to the gradients alone. Libraries that are not installed (``pip install -e ".[peers]"``) are left out. Then: robust
accuracy with fooled examples leaving the batch, against attacking every example to the end. Then: APGD in every norm
against as many gradients as it takes; in bfloat16, too, where this machine is faster so.
"""

import argparse
import importlib
import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from timing import add_clock, alternate, noise, report

from keras_capsvit import attacks, autodiff, evaluate
from keras_capsvit.models import ConvNetAvg, ResNet20

MODELS = {
    "convnet": lambda: ConvNetAvg((28, 28, 1), 10, kernel_size=3, filters=32),
    "resnet20": lambda: ResNet20((32, 32, 3), 10),
}
EPSILON, STEP = 0.1, 0.01


def gradients(model, x, y, steps):
    """As many gradients of the loss as the attack has steps, one compiled call each."""
    objective = attacks.logits(model)
    gradient = autodiff.value_and_gradient(objective.loss, objective.variables)

    def run():
        for _ in range(steps):
            slope = gradient(x, y)[1]
        return slope.numpy()

    return run


def ours(model, x, y, steps):
    """PGD of this package."""
    pgd = attacks.PGD(EPSILON, step_size=STEP, steps=steps)
    return lambda: pgd(model, x, y)


def cleverhans(model, x, y, steps):
    """PGD of Cleverhans inside tf.function."""
    pgd = importlib.import_module("cleverhans.tf2.attacks.projected_gradient_descent").projected_gradient_descent
    limits = {"clip_min": 0.0, "clip_max": 1.0, "rand_init": True, "sanity_checks": False}
    compiled = tf.function(lambda x, y: pgd(model, x, EPSILON, STEP, steps, np.inf, y=y, **limits))
    return lambda: compiled(tf.constant(x), tf.constant(y)).numpy()


def foolbox(model, x, y, steps):
    """PGD of Foolbox."""
    library = importlib.import_module("foolbox")
    pgd = library.attacks.LinfPGD(abs_stepsize=STEP, steps=steps)
    target = library.TensorFlowModel(model, bounds=(0, 1))
    return lambda: pgd.run(target, tf.constant(x), tf.constant(y), epsilon=EPSILON).numpy()


def art(model, x, y, steps):
    """PGD of the Adversarial Robustness Toolbox."""
    estimators = importlib.import_module("art.estimators.classification")
    evasion = importlib.import_module("art.attacks.evasion")
    classifier = estimators.TensorFlowV2Classifier(
        model,
        nb_classes=10,
        input_shape=x.shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )
    settings = {"eps": EPSILON, "eps_step": STEP, "max_iter": steps, "num_random_init": 1, "batch_size": len(x)}
    pgd = evasion.ProjectedGradientDescentTensorFlowV2(classifier, **settings, verbose=False)
    return lambda: pgd.generate(x, y)


def installed(model, x, y, steps):
    """Runs by name, of what can be imported."""
    runs = {"gradients alone": gradients(model, x, y, steps), "keras_capsvit": ours(model, x, y, steps)}
    for make in (cleverhans, foolbox, art):
        try:
            runs[make.__name__] = make(model, x, y, steps)
        except ImportError:
            continue
    return runs


def apgd(model, x, y, steps):
    """APGD in every norm, of ``steps`` gradients each; in L1 it is three runs, each of which takes one more."""
    runs = {"gradients alone": gradients(model, x, y, steps)}
    for norm, more in (("linf", 1), ("l2", 1), ("l1", 3)):
        attack = attacks.APGD(EPSILON if norm == "linf" else 10 * EPSILON, norm=norm, steps=steps - more)
        runs[f"APGD {norm}"] = lambda attack=attack: attack(model, x, y)
    quickest, attack = attacks.in_precision(model, images=x), attacks.APGD(EPSILON, steps=steps - 1)
    if quickest.precision != "float32":
        runs["APGD linf bfloat16"] = lambda: attack(quickest, x, y)
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["convnet"], choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    add_clock(parser)
    args = parser.parse_args()
    for name in args.models:
        keras.utils.set_random_seed(0)
        model = MODELS[name]()
        x = noise(args.batch_size, *model.input_shape[1:])
        y = model.predict(x, verbose=0).argmax(axis=1)
        print(f"{name}, PGD-{args.steps}, batch {args.batch_size}, {args.rounds} rounds; seconds, ratio")
        report(alternate(installed(model, x, y, args.steps), args.rounds, clock=args.clock))
        pgd = attacks.PGD(EPSILON, step_size=STEP, steps=args.steps)
        outcomes = {}

        def judge(early, model=model, x=x, y=y, pgd=pgd, outcomes=outcomes):
            outcomes[early] = evaluate.robustness(model, pgd, (x, y), early=early).robust_accuracy

        runs = {"to the end": lambda: judge(False), "fooled ones leave": lambda: judge(True)}
        report(alternate(runs, args.rounds, clock=args.clock))
        print(f"  robust accuracy {outcomes[False]:.4f} to the end, {outcomes[True]:.4f} if fooled ones leave")
        print(f"{name}, APGD of {args.steps} gradients")
        report(alternate(apgd(model, x, y, args.steps), args.rounds, clock=args.clock))


if __name__ == "__main__":
    main()
