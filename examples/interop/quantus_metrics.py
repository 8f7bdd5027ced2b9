"""Quantus judges our explanations of a small graph capsule network, and calls our explainers to get them.

    python examples/interop/quantus_metrics.py                      # needs: pip install -e ".[peers]"
    python examples/interop/quantus_metrics.py --epochs 8 --examples 64

Quantus wants a Keras model whose last layer has an activation, and maps ``(n, 1, H, W)`` with ``channel_first=False``.
Its own explanations of Keras models need tf-explain; arrays from anywhere go into ``evaluate.aopc`` and the like.
"""

import argparse
import os
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from keras_capsvit import GraCapsNet, MarginLoss, data, evaluate, explain

# Quantus imports zennit where it finds it, which brings libraries that do not load beside every TensorFlow.
sys.modules.setdefault("zennit", None)
import quantus  # noqa: E402

PATCH = 4


def judged(model):
    """A model as Quantus takes it."""
    return keras.Sequential([keras.Input(model.input_shape[1:]), model, keras.layers.Activation("linear")])


def explain_func(model, inputs, targets, *, explainer, **_):
    """An explainer as Quantus calls it; ``explainer`` comes in ``explain_func_kwargs``."""
    return explainer(np.asarray(inputs), np.asarray(targets))[:, None]


def region_perturbation(model, x, y, maps=None, *, explainer=None, patch=PATCH, steps=9):
    """Drops ``(n, steps)`` of scores by Quantus, of maps ``(n, H, W)``, or of an explainer that it calls."""
    metric = quantus.RegionPerturbation(
        patch_size=patch,
        regions_evaluation=steps,
        perturb_baseline="black",
        normalise=False,
        disable_warnings=True,
    )
    source = {"a_batch": None, "explain_func": explain_func, "explain_func_kwargs": {"explainer": explainer}}
    if maps is not None:
        source = {"a_batch": np.asarray(maps)[:, None]}
    return np.array(metric(model, x, y, channel_first=False, softmax=False, batch_size=len(x), **source))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="of training")
    parser.add_argument("--examples", type=int, default=64, help="test images")
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    train, test = data.load("digits", batch_size=32, image_size=12)
    model = GraCapsNet((12, 12, 1), 10, filters=32, num_heads=8, primary_dim=8, capsule_dim=8)
    model.compile(keras.optimizers.Adam(0.01), MarginLoss(), metrics=["accuracy"])
    model.fit(train, epochs=args.epochs, verbose=0, shuffle=False)  # the stream shuffles itself
    x, y = data.take(test, args.examples)
    explainers = {
        "attention": explain.GraphAttention(model),
        "gradient": explain.Saliency(model),
        "random": explain.RandomMap(),
    }
    rows = []
    for name, explainer in explainers.items():
        maps = explainer(x, y)
        ours = evaluate.aopc(model, x, maps, patch=PATCH, fill=0, target=y).curve[:, 1:]
        theirs = region_perturbation(judged(model), x, y, maps)
        asked = region_perturbation(judged(model), x, y, explainer=explainer)
        sparseness = quantus.Sparseness(disable_warnings=True)
        sparse = sparseness(model=judged(model), x_batch=x, y_batch=y, a_batch=maps[:, None], channel_first=False)
        row = {"map": name, "our drop": ours.mean(), "drop by Quantus": theirs.mean(), "it asks": asked.mean()}
        rows.append({key: value if isinstance(value, str) else float(value) for key, value in row.items()})
        rows[-1]["sparseness by Quantus"] = float(np.mean(sparse))
    print(evaluate.Table(rows))


if __name__ == "__main__":
    main()
