"""What representations mean: decoded images of moved dimensions, and semantic compactness (thesis 5.3.3)."""

import numpy as np
from rows import row

from chapters import capsules
from chapters.chapter_4 import classifier
from chapters.shared import TITLES
from keras_capsvit import evaluate, plot, taps

MODELS = ("ConvNet-R", "ConvNet-CR", "ConvNet-CR-SF", "CapsNet")
FACTORS = {
    "rotation": "rotation",
    "trans_x": "translation x",
    "trans_y": "translation y",
    "scale": "scale",
    "shear_x": "shear x",
    "shear_y": "shear y",
}


def of_datasets(setting, run):
    """Title, model, and test images and labels, of each model and data set; capsule networks are those of row 4.T1."""
    same = {"CapsNet": "Dynamic-R", "ConvNet-CR-SF": "No-R"}
    for dataset in setting.datasets:
        images = run.data(dataset, "test", setting.images)
        for name in MODELS:
            title = f"{name} on {TITLES[dataset]}"
            if name in same:
                _, model = classifier(setting, run, same[name], dataset)
            else:
                model = capsules.trained(setting, run, title, name, dataset)
            yield title, name, model, *images


@row("5.F4")
def decoded(setting, run):
    """How much decoded images change over offsets as small as capsules' are, and as large as ConvNets' have to be."""
    measured = {}
    for title, name, model, images, labels in of_datasets(setting, run):
        for width in (setting.small, setting.large):
            offsets = np.linspace(-width, width, setting.offsets)
            images_of = capsules.sweeps(model, images, labels, offsets)
            changes = capsules.response(images_of)
            measured[f"{title}, by up to {width:g}"] = changes.mean()
            if width == (setting.large if name in capsules.CONVNETS else setting.small):
                dims = range(min(setting.dims, images_of.shape[1]))
                plot.sweep(images_of[0, : len(dims)], offsets, dims).savefig(
                    run.figure(title.replace(" ", "_")), dpi=50
                )
    return {"measured": measured}


@row("5.T5")
def compactness(setting, run):
    """Scores as the thesis defines them, and "pooled" ones, which are as small as those that it reports."""
    measured = {}
    for title, _, model, images, labels in of_datasets(setting, run):
        represent = taps.tap(model, "capsules")
        scores = run.step(title, lambda: evaluate.compactness(represent, images, labels))  # noqa: B023, called here
        measured |= {f"{title}, {FACTORS[factor]}": score for factor, score in scores.items()}
        measured[f"{title}, mean of factors"] = np.mean(list(scores.values()))
        scores = run.step(f"{title} pooled", lambda: pooled_compactness(represent, images, labels))  # noqa: B023
        measured[f"{title}, mean of factors, pooled"] = np.mean(list(scores.values()))
    return {"measured": measured}


def pooled_compactness(represent, images, labels, at_once=20):
    """Semantic compactness of variances that are averaged over images before they are divided by their sum.

    ``evaluate.compactness`` averages the scores of single images. Here a dimension counts only where it reacts to a
    factor in all images.

    Args:
        represent: callable from images to class capsules ``(b, j, e)``, of which the true class is kept.
        images: array ``(n, H, W, C)``.
        labels: class ids ``(n,)``.
        at_once: int, images whose variants are in memory.

    Returns:
        dict from factors to float in [0, log e].
    """
    scores = {}
    for factor, degrees in evaluate.FACTORS.items():
        variances = []
        for start in range(0, len(images), at_once):
            varied = np.asarray(evaluate.vary(images[start : start + at_once], factor, degrees))
            capsules = np.asarray(represent(varied.reshape(-1, *images.shape[1:])), "float64")
            ids = np.repeat(labels[start : start + at_once], len(degrees))
            own = capsules[np.arange(len(ids)), ids].reshape(len(varied), len(degrees), -1)
            variances.append(own.var(axis=1))
        mean = np.concatenate(variances).mean(axis=0)
        share = mean / mean.sum()
        scores[factor] = float(np.sum(share * np.log(np.where(share > 0, share * len(share), 1))))
    return scores
