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
                plot.sweep(images_of[0, : len(dims)], offsets, dims).savefig(run.figure(title.replace(" ", "_")), dpi=50)
    return {"measured": measured}


@row("5.T5")
def compactness(setting, run):
    measured = {}
    for title, _, model, images, labels in of_datasets(setting, run):
        represent = taps.tap(model, "capsules")
        scores = run.step(title, lambda: evaluate.compactness(represent, images, labels))  # noqa: B023, called here
        measured |= {f"{title}, {FACTORS[factor]}": score for factor, score in scores.items()}
        measured[f"{title}, mean of factors"] = np.mean(list(scores.values()))
    return {"measured": measured}
