"""Accuracy that no patch can lower, beside what attacks leave of it: derandomised smoothing of a vision transformer.

    python examples/certified_patches.py --dataset digits --epochs 10 --size 2 --steps 50      # no download
    python examples/certified_patches.py --epochs 8 --vit-width 72 --vit-depth 4 --learning-rate 0.002 --steps 100

Two transformers of one size and recipe: ``plain`` sees whole images, ``smoothed`` (Salman et al. 2022) was trained on
columns of them and is the vote of all columns. For each: accuracy on test images; ``certified``, the share that stays
correct whatever a patch shows and wherever it lies, which is proved; and ``attacked``, the share that stays correct
under one adversarial patch at a random cell of the grid, which for the smoothed one raises the loss of the mean
probabilities of all columns. No attack can get below what is certified. Writes OUT/certified.json.
"""

import patch_models  # first, because it sets up TensorFlow

# isort: split
import time

import numpy as np
from keras import ops

from keras_capsvit import attacks, data, evaluate, taps
from keras_capsvit.patches import PatchGrid


def smoothed_scores(backbone, size, shape):
    """Log of the mean probabilities of all columns: a callable ``x (b, H, W, C) → (b, M)`` that has a gradient."""
    height, width, channels = shape
    visible = (np.arange(width) - np.arange(width)[:, None]) % width < size
    visible = visible[:, None, :, None].astype("float32")

    def scores(x):
        columns = ops.reshape(x[:, None] * visible, (-1, height, width, channels))
        probabilities = ops.softmax(backbone(columns, training=False))
        return ops.log(ops.mean(ops.reshape(probabilities, (-1, width, probabilities.shape[-1])), axis=1) + 1e-9)

    return scores


def of_plain(model, x, images, y):
    """Accuracy of a model, that under attack, and what is proved of it, which is nothing."""
    clean, attacked = (taps.predictions(model, each) == y for each in (x, images))
    return {"accuracy": clean.mean(), "attacked": (clean & attacked).mean(), "certified": 0.0}


def of_smoothed(backbone, x, images, y, args):
    """The same of the vote of all columns."""
    clean, attacked = (
        evaluate.certified_patch_accuracy(backbone, (each, y), args.patch_size, size=args.size) for each in (x, images)
    )
    both = clean.correct & attacked.correct
    return {"accuracy": clean.accuracy, "attacked": both.mean(), "certified": clean.certified_accuracy}


def main():
    parser = patch_models.options(__doc__, out="certified_patches")
    parser.add_argument("--size", type=int, default=4, help="width of the columns, in pixels")
    args = parser.parse_args()
    train, test = patch_models.streams(args)
    plain = patch_models.trained("vit", args.epochs, args, train, test)
    ablated = patch_models.trained(f"vit_of_columns_{args.size}", args.epochs, args, train, test, columns=args.size)
    x, y = data.take(test, args.examples)
    x, y = np.asarray(x), np.asarray(y)
    backbone = ablated.layers[-1]
    subjects = {"plain": plain, "smoothed": smoothed_scores(backbone, args.size, x.shape[1:])}
    attack = attacks.PatchAttack(
        args.patch_size, positions=PatchGrid(x.shape[1:], args.patch_size), steps=args.steps, seed=args.seed
    )
    # A batch of the smoothed model is as many ablations.
    batch_sizes = {"plain": args.batch_size, "smoothed": max(1, args.batch_size * 4 // x.shape[2])}

    rows = []
    for name, scores in subjects.items():
        started = time.perf_counter()
        images = patch_models.attacked(scores, attack, x, y, batch_sizes[name])
        measured = of_plain(plain, x, images, y) if name == "plain" else of_smoothed(backbone, x, images, y, args)
        seconds = round(time.perf_counter() - started)
        measured = {kind: float(share) for kind, share in measured.items()}
        rows.append({"model": name, "examples": len(x), **measured, "seconds": seconds})
        print(rows[-1], flush=True)
    table = evaluate.Table(rows)
    print(table)
    table.to_json(args.out / "certified.json", options=patch_models.settings(args))


if __name__ == "__main__":
    main()
