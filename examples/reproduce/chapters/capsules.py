"""Models of thesis chapters 4 and 5: built by name, and trained once for all rows that compare them."""

import dataclasses

import numpy as np

from chapters.shared import recipe
from keras_capsvit import evaluate, taps
from keras_capsvit.layers import CapsuleMask
from keras_capsvit.models import CapsNet, ConvNetAvg, ConvNetCR, ConvNetFC, ConvNetR

# Class, sizes in setting.models, loss. Group sums are read by a sigmoid each (thesis 5.3.3).
CONVNETS = {
    "ConvNet-FC": (ConvNetFC, "convnet_fc", "cross_entropy"),
    "ConvNet-Avg": (ConvNetAvg, "convnet_avg", "cross_entropy"),
    "ConvNet-R": (ConvNetR, "convnet_r", "cross_entropy"),
    "ConvNet-CR": (ConvNetCR, "convnet_r", "binary_cross_entropy"),
}
# Options of CapsNet. ConvNet-CR-SF is CapsNet without routing, so that both are one model here.
CAPSNETS = {
    "Dynamic-R": {},
    "Rolled-R": {"routing": "rolled"},
    "Trainable-R": {"routing": "trainable"},
    "No-R": {"routing": "uniform"},
    "CapsNet": {},
    "CapsNet-NoR": {"routing": "uniform"},
    "ConvNet-CR-SF": {"routing": "uniform"},
    "Aff-CapsNet-DR": {"shared_transform": True},
    "Aff-CapsNet": {"routing": "uniform", "shared_transform": True},
}
MILD_SHEAR = 11.3  # degrees, slopes within 0.2; affine_mnist's own 45 are the thesis's


def build(name, sizes, **options):
    """Callable from ``data.Info`` to a model.

    Args:
        name: str, of ``CONVNETS`` or ``CAPSNETS``.
        sizes: dict from ``capsnet`` and the names in ``CONVNETS`` to constructor arguments; {} for the thesis's.
        **options: constructor arguments of this model, over those.
    """

    def of(info):
        shape = (info.image_shape, info.num_classes)
        if name in CONVNETS:
            kind, where, _ = CONVNETS[name]
            return kind(*shape, **{**sizes.get(where, {}), **options})
        base = {"reconstruction": "conditional", **sizes.get("capsnet", {})}
        return CapsNet(*shape, **{**base, **CAPSNETS[name], **options})

    return of


def trained(setting, run, title, name, dataset, *, loss=None, examine=None, reading=None, **options):
    """A trained model of a name in ``CONVNETS`` or ``CAPSNETS``.

    Args:
        setting: has ``models``, ``recipes``, ``train``, ``validation``.
        run: Run.
        title: str, what the record calls it.
        name: str.
        dataset: str.
        loss: str; None for the margin loss of capsule networks, or the one of ``CONVNETS``.
        examine: see ``Run.trained``.
        reading: dict, options of ``data.load``.
        **options: of the model.
    """
    loss = loss or (CONVNETS[name][2] if name in CONVNETS else "margin")
    return run.trained(
        title,
        build(name, setting.models, **options),
        dataset,
        dataclasses.replace(recipe(setting, dataset, name), loss=loss),
        train=setting.train,
        test=setting.validation,
        examine=examine,
        **reading or {},
    )


def million_parameters(name, info, **options):
    """Size of a model as large as the thesis's, in million parameters with the decoder, float."""
    return build(name, {}, **options)(info).count_params() / 1e6


def deformed(setting, run):
    """Deformed test images by name, ``(images, labels)`` each, and what they are, a str.

    ``deformed`` are those of AffNIST where the user has its files, else of affine_mnist, made here; ``slopes within
    0.2`` are of affine_mnist with less shear.
    """
    try:
        images = run.data("affnist", "test", setting.validation)
        note = "Deformed images are AffNIST's."
    except FileNotFoundError:
        images = run.data("affine_mnist", "test", setting.validation)
        note = "Deformed images are of affine_mnist, made here by the published ranges; they are not AffNIST."
    mild = run.data("affine_mnist", "test", setting.validation, shear=MILD_SHEAR)
    return {"deformed": images, "slopes within 0.2": mild}, note


def affine(setting, run, title, name, **options):
    """Train on digits at random positions, test on deformed ones (Tables 4.2, 5.1 to 5.3, S.1).

    Args:
        setting, run, title, name, **options: see ``trained``; ``setting.stop_at`` is the accuracy on images that are
            not deformed at which models are compared: numbers are of the first epoch that reaches it, or of the last.

    Returns:
        dict with ``measured``, ``curves`` and ``notes`` of this model, names begin with ``title``.
    """
    sets, note = deformed(setting, run)

    def examine(model):
        return {name: accuracy(model, *images) for name, images in sets.items()}

    trained(setting, run, title, name, "expanded_mnist", examine=examine, **options)
    clean = run.epochs(title)["val_accuracy"]
    by_epoch = run.examined(title)
    epoch = at_accuracy(clean, setting.stop_at)
    measured = {title: by_epoch[epoch]["deformed"], f"{title}, not deformed": 100 * clean[epoch]}
    measured[f"{title}, slopes within 0.2"] = by_epoch[epoch]["slopes within 0.2"]
    curves = {
        f"{title}, not deformed": [100 * value for value in clean],
        f"{title}, deformed": [each["deformed"] for each in by_epoch],
    }
    return {"measured": measured, "curves": curves, "notes": note}


def joined(results):
    """One result of several dicts with ``measured``, ``curves`` and the same ``notes``."""
    results = list(results)
    measured = {name: value for each in results for name, value in each["measured"].items()}
    curves = {name: values for each in results for name, values in each["curves"].items()}
    return {"measured": measured, "curves": curves, "notes": results[0]["notes"]}


def at_accuracy(accuracies, threshold):
    """Index of the first accuracy that is not below a threshold, or of the last one, int."""
    reached = [index for index, value in enumerate(accuracies) if value >= threshold]
    return reached[0] if reached else len(accuracies) - 1


def accuracy(model, images, labels):
    """Accuracy in %, float."""
    return 100 * float(np.mean(model.predict(images, batch_size=250, verbose=0).argmax(axis=1) == labels))


def overlaps(setting, run, title, name, *, loss=None, pairs=None, **options):
    """Accuracy in % of a model of overlapping digits: both have to be right (MultiMNIST, thesis 5.3.2).

    Args:
        setting, run, title, name, loss, **options: see ``trained``; ConvNets learn by binary cross-entropy.
        pairs: int, images made of each digit; None for ``setting.pairs``.
    """
    capsules = name in CAPSNETS
    reading = {"pairs": pairs or setting.pairs, "parts": capsules}
    loss = loss or ("margin" if capsules else "binary_cross_entropy")
    model = trained(setting, run, title, name, "multi_mnist", loss=loss, reading=reading, **options)
    _, test, _ = run.streams("multi_mnist", test=setting.test, pairs=1, parts=False)
    return run.step(title, lambda: 100 * model.evaluate(test, verbose=0, return_dict=True)["accuracy"])


def sweeps(model, images, labels, offsets):
    """Decoded images, each dimension of the true class's capsule moved, ``(n, dims, offsets, H, W, C)``."""
    capsules = taps.tap(model, "capsules")(images)
    if model.reconstruction == "conditional":
        capsules = CapsuleMask()(capsules, labels)
    return np.stack(
        [
            evaluate.sweep(model.decoder, each, int(label), offsets=offsets)
            for each, label in zip(np.asarray(capsules), labels, strict=True)
        ]
    )


def response(decoded):
    """How much images change while a dimension moves: the range of a pixel, mean over pixels, in % of its range.

    Args:
        decoded: array ``(n, dims, offsets, H, W, C)`` in [0, 1], of ``sweeps``.

    Returns:
        Array ``(n, dims)``.
    """
    return 100 * (decoded.max(axis=2) - decoded.min(axis=2)).mean(axis=(2, 3, 4))
