"""Export a trained model for TF Serving: endpoints, explainers, warm-up requests, model card.

    python examples/serve/export.py saved_models/gracapsnet_digits/model.keras saved_models/mine --dataset digits
    python examples/serve/export.py model.keras saved_models/mine --dataset cifar10 --explainers lrp --taps votes

Writes the next version folder in OUT, judges the reloaded SavedModel on the test images, and prints how to serve it.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from keras_capsvit import data, explain, load_model, serving
from keras_capsvit.taps import input_range

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "svhn_cropped")
EXPLAINERS = {
    "saliency": explain.Saliency,
    "input_x_gradient": explain.InputXGradient,
    "lrp": lambda model: explain.LRP(model, "epsilon"),
    "clrp": lambda model: explain.CLRP(model, rules="epsilon"),
}


def write(model, path, dataset, test, *, explainers, taps=None, trained=None):
    """Export a model with a card that says what it is, and judge what was written.

    Args:
        model: trained Keras model of images in [0, 1], or in the range that its first layers tell.
        path: of the folder of version folders.
        dataset: str, what ``test`` is called in ``data.DATASETS``.
        test: its stream of test images; the first warms the server up.
        explainers: names in ``EXPLAINERS``.
        taps: names of taps, or None for all.
        trained: str for the card, how the model was trained.

    Returns:
        pathlib.Path of the version folder, and the ServedModel in it.
    """
    x, y = data.take(test, sum(len(labels) for _, labels in test))
    low, high = input_range(model) or (0.0, 1.0)
    x = low + (high - low) * x
    scores = model.predict(x, verbose=0)
    card = {
        "class_names": data.info(dataset).class_names,
        "accuracy": {"value": float(np.mean(scores.argmax(-1) == y)), "images": len(x), "of": f"{dataset}, test"},
        "trained": trained,
    }
    folder = serving.export(
        model,
        path,
        taps=taps,
        explainers={name: EXPLAINERS[name](model) for name in explainers},
        warmup=x[:1],
        input_range=(low, high),
        card={name: value for name, value in card.items() if value is not None},
    )
    served = serving.load(folder)
    np.testing.assert_allclose(served.predict(x), scores, atol=1e-5)
    return folder, served


def report(folder, served):
    """Print where the version is, how large, what it does, and how it is served and asked."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    base = folder.resolve().parent
    accuracy = served.card["accuracy"]["value"]
    print(f"{folder}: {size / 1e6:.2f} MB, accuracy {accuracy:.2%}, endpoints {', '.join(served.endpoints)}")
    print(
        f"Serve it: docker run -p 8500:8500 -p 8501:8501 -v {base}:/models/{base.name} -e MODEL_NAME={base.name} "
        f"tensorflow/serving\nAsk it: python examples/serve/client.py {base.name} IMAGE --signature serve_bytes"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help=".keras file")
    parser.add_argument("out", type=pathlib.Path, help="folder of version folders")
    parser.add_argument("--dataset", required=True, choices=DATASETS, help="whose test images judge it")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--explainers", nargs="*", default=[], choices=list(EXPLAINERS), help="further endpoints")
    parser.add_argument("--taps", nargs="*", help="intermediates with endpoints of their own; default: all")
    parser.add_argument("--trained", help="for the model card: how it was trained")
    args = parser.parse_args()
    model = load_model(args.model)
    where = {"data_dir": args.data_dir, "image_size": model.input_shape[1:3]}
    test = data.load(args.dataset, split="test", **where)
    how = {"explainers": args.explainers, "taps": args.taps, "trained": args.trained}
    report(*write(model, args.out, args.dataset, test, **how))


if __name__ == "__main__":
    main()
