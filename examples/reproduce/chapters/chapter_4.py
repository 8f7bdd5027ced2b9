"""Routing in capsule networks, and affine robustness (thesis chapter 4)."""

import numpy as np
from matplotlib.figure import Figure
from rows import row

from chapters import capsules
from chapters.shared import TITLES, percent
from keras_capsvit import evaluate, plot, taps
from keras_capsvit.layers import DynamicRouting, UniformRouting
from keras_capsvit.losses import MarginLoss

ROUTINGS = ("Dynamic-R", "Rolled-R", "Trainable-R", "No-R")
COMPARED = ("Dynamic-R", "No-R")
AT_ONCE = 50  # images whose votes are in memory


def classifier(setting, run, name, dataset):
    """A capsule network that classifies single objects, and its title; agreement is measured after every epoch."""
    title = f"{name} on {TITLES[dataset]}"
    parts = {split: run.data(dataset, split, setting.examined) for split in ("train", "test")}

    def examine(model):
        return {split: agreement(model, *examples) for split, examples in parts.items()}

    return title, capsules.trained(setting, run, title, name, dataset, examine=examine)


def agreement(model, images, labels):
    """Agreement of votes on the target and on other classes (Eq. 4.7), a dict of floats."""
    routed = taps.tap(model, ["votes", "capsules", "coupling"])
    starts = range(0, len(images), AT_ONCE)
    terms = [
        evaluate.agreement(*routed(images[start : start + AT_ONCE]), labels[start : start + AT_ONCE])
        for start in starts
    ]
    sizes = [len(labels[start : start + AT_ONCE]) for start in starts]
    target, others = np.average(terms, axis=0, weights=sizes)
    return {"target": float(target), "others": float(others)}


@row("4.T1")
def routings(setting, run):
    measured, curves = {}, {}
    for dataset in setting.datasets:
        _, test, _ = run.streams(dataset, test=setting.test)
        for name in ROUTINGS:
            title, model = classifier(setting, run, name, dataset)
            measured[title] = run.step(title, lambda model=model, test=test: percent(model, test))
            curves[title] = [100 * value for value in run.epochs(title)["val_accuracy"]]
    return {"measured": measured, "curves": curves}


@row("4.F1")
def gradients(setting, run):
    _, model = classifier(setting, run, "Dynamic-R", "mnist")
    images, labels = run.data("mnist", "test", setting.images)
    votes = np.asarray(taps.tap(model, "votes")(images))
    loss = MarginLoss(reduction=None)
    routes = {"unrolled": DynamicRouting(), "rolled": DynamicRouting(rolled=True), "uniform": UniformRouting()}
    at_votes = {
        name: evaluate.vote_gradients(route, votes, lambda lengths: loss(labels, lengths))
        for name, route in routes.items()
    }
    measured = {}
    for name in ("rolled", "uniform"):
        pair = at_votes["unrolled"], at_votes[name]
        per_image = cosines(*(each.reshape(len(images), -1) for each in pair))
        measured[f"{name} and unrolled, cosine per image"] = per_image.mean()
        measured[f"{name} and unrolled, cosine per vote"] = cosines(*pair).mean()
    lengths = {name: np.linalg.norm(each) for name, each in at_votes.items()}
    measured["rolled by unrolled, length"] = lengths["rolled"] / lengths["unrolled"]
    draw_gradients(at_votes, run.seed).savefig(run.figure("gradients"), dpi=80)
    return {"measured": measured, "notes": f"{len(per_image)} of {len(images)} images have a loss above 0."}


def cosines(first, second):
    """Cosines of rows along the last axis, without rows one of which is zero; array ``(n,)``."""
    first, second = (each.reshape(-1, each.shape[-1]).astype("float64") for each in (first, second))
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(axis=-1)[lengths > 0] / lengths[lengths > 0]


def draw_gradients(at_votes, seed, count=6):
    """Gradients at votes drawn from those that have one, a line each for unrolled and rolled routing (Fig. 4.1)."""
    unrolled, rolled = (at_votes[name].reshape(-1, at_votes[name].shape[-1]) for name in ("unrolled", "rolled"))
    strength = np.linalg.norm(unrolled, axis=-1)
    candidates = np.flatnonzero(strength >= np.quantile(strength, 0.9))
    drawn = np.random.default_rng(seed).choice(candidates, min(count, len(candidates)), replace=False)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for ax, vote in zip(figure.subplots(2, -(-len(drawn) // 2), squeeze=False).flat, drawn, strict=False):
        ax.plot(unrolled[vote], color="tab:blue", label="unrolled")
        ax.plot(rolled[vote], color="goldenrod", label="rolled")
        ax.tick_params(labelsize=6)
        ax.set_title(f"vote {vote}, by dimension", fontsize=7)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


@row("4.F2")
def agreements(setting, run):
    measured, curves = {}, {}
    for name in COMPARED:
        title, _ = classifier(setting, run, name, "mnist")
        by_epoch = run.examined(title)
        for split in ("train", "test"):
            for term in ("target", "others"):
                curves[f"{name}, {term}, {split}"] = [each[split][term] for each in by_epoch]
        for when, epoch in (("first", by_epoch[0]), ("last", by_epoch[-1])):
            measured |= {f"{name}, {term}, {when} epoch": value for term, value in epoch["test"].items()}
    return {"measured": measured, "curves": curves}


@row("4.F4")
def dimensions(setting, run):
    measured = {}
    images, labels = run.data("mnist", "test", setting.images)
    for name in COMPARED:
        _, model = classifier(setting, run, name, "mnist")
        decoded = capsules.sweeps(model, images, labels, evaluate.OFFSETS)
        changes = capsules.response(decoded)
        measured[f"{name}, all dimensions"] = changes.mean()
        measured[f"{name}, the most responsive dimension"] = changes.max(axis=1).mean()
        strongest = changes.argmax(axis=1)[: setting.shown]
        shown = decoded[np.arange(len(strongest)), strongest]
        plot.sweep(shown, evaluate.OFFSETS, strongest).savefig(run.figure(name), dpi=60)
    return {"measured": measured}


@row("4.F5")
def reconstruction(setting, run):
    titles = {name: classifier(setting, run, name, "mnist")[0] for name in COMPARED}
    curves = {name: run.epochs(title)["val_reconstruction_error"] for name, title in titles.items()}
    return {"measured": {name: errors[-1] for name, errors in curves.items()}, "curves": curves}


@row("4.X")
def budget(setting, run):
    """Whether comparisons of rows 4.T1 and 4.F5 change with more epochs."""
    measured, curves = {}, {}
    _, test, _ = run.streams("mnist", test=setting.test)
    for name in COMPARED:
        title, model = classifier(setting, run, name, "mnist")
        measured[name] = run.step(title, lambda model=model: percent(model, test))
        measured[f"{name}, reconstruction error"] = run.epochs(title)["val_reconstruction_error"][-1]
        curves[name] = [100 * value for value in run.epochs(title)["val_accuracy"]]
    return {"measured": measured, "curves": curves}


@row("4.MM")
def overlapping(setting, run):
    names = {"Dynamic-R": "CapsNet", "No-R": "CapsNet-NoR"}
    return {"measured": {name: capsules.overlaps(setting, run, name, model) for name, model in names.items()}}


@row("4.T2")
def deformed(setting, run):
    names = {
        "CNN": "ConvNet-FC",
        "Dynamic-R": "CapsNet",
        "No-R": "CapsNet-NoR",
        "Aff-CapsNet + No-R": "Aff-CapsNet",
    }
    return capsules.joined(capsules.affine(setting, run, name, model) for name, model in names.items())


@row("4.F6")
def by_epoch(setting, run):
    names = ("CapsNet-NoR", "Aff-CapsNet", "CapsNet", "Aff-CapsNet-DR")
    return capsules.joined(capsules.affine(setting, run, name, name) for name in names)
