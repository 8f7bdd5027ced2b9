"""Chapter 7, patches: how often corrupted and adversarial ones fool a vision transformer and a ResNet."""

import numpy as np
from rows import row

from chapters import chapter_7_attention, chapter_7_positions, chapter_7_training  # noqa: F401, rows of theirs
from chapters.chapter_7_networks import Comparison, network
from chapters.plain import in_percent, known
from keras_capsvit import data, evaluate
from keras_capsvit.data.corruptions import corrupt_patches


@row("7.T2")
def patches(setting, run):
    """Fooling rates of naturally corrupted patches, and of one to four adversarial ones."""
    comparison, measured = Comparison.of(setting, run), {}
    for count in setting.of_196:
        rates = corrupted(comparison, count / 196)
        measured |= {f"{name}, {count} of 196 corrupted": rate for name, rate in rates.items()}
    for count in range(1, setting.most_patches + 1):
        rates = comparison.fooling_rates(f"{count} adversarial", comparison.attack(num_patches=count))
        measured |= {f"{name}, {count} adversarial": in_percent(each["fooling_rate"]) for name, each in rates.items()}
    return {"measured": known(measured), "notes": comparison.note}


@row("7.F2")
def larger_patches(setting, run):
    """The same of larger patches of either kind."""
    comparison, measured = Comparison.of(setting, run), {}
    curves = {f"{name}, {kind}": [] for kind in ("corrupted", "adversarial") for name in comparison.models}
    for label, cells in setting.sizes.items():
        natural = corrupted(comparison, setting.share, cells)
        rates = comparison.fooling_rates(f"adversarial, {label}", comparison.attack(cells))
        for name, rate in natural.items():
            curves[f"{name}, corrupted"].append(rate)
            curves[f"{name}, adversarial"].append(in_percent(rates[name]["fooling_rate"]))
        measured |= {f"{name}, {label}": values[-1] for name, values in curves.items()}
    sizes = [comparison.size(cells) for cells in setting.sizes.values()]
    curves = {name: {"x": sizes, "y": values} for name, values in curves.items()}
    return {"measured": known(measured), "curves": curves, "notes": comparison.note}


@row("7.F9")
def families(setting, run):
    """One adversarial patch on networks of several families."""
    models = {name: network(name, setting, run) for name in setting.families}
    comparison = Comparison.of(setting, run, models)
    rates = comparison.fooling_rates("1 adversarial", comparison.attack())
    measured = {name: in_percent(each["fooling_rate"]) for name, each in rates.items()}
    return {"measured": known(measured), "notes": comparison.note}


@row("7.IP")
def imperceptible(setting, run):
    """Patches whose pixels change by no more than 8/255, of several sizes."""
    comparison, measured = Comparison.of(setting, run), {}
    for label, cells in setting.sizes.items():
        rates = comparison.fooling_rates(label, comparison.attack(cells, epsilon=8 / 255))
        measured |= {f"{name}, {label}": in_percent(each["fooling_rate"]) for name, each in rates.items()}
    return {"measured": known(measured), "notes": comparison.note}


@row("7.TG")
def targeted(setting, run):
    """How often a patch brings about a class that was drawn for the image."""
    comparison = Comparison.of(setting, run)
    targets = evaluate.random_targets(data.info(setting.dataset).num_classes, run.seed)(comparison.y)

    def measure(model):
        return in_percent(comparison.attack().run(model, comparison.x, targets, targeted=True).fooled.mean())

    rates = {name: run.step(name, lambda model=model: measure(model)) for name, model in comparison.models.items()}
    return {"measured": known(rates), "notes": comparison.note}


@row("7.IT")
def iterations(setting, run):
    """Steps that it takes until a patch fools, of the images that it fools."""
    comparison, measured = Comparison.of(setting, run), {}
    rates = comparison.fooling_rates("1 adversarial", comparison.attack())
    for name, each in rates.items():
        measured |= {name: each["mean_iterations"], f"{name}, median": each["median_iterations"]}
    return {"measured": known(measured), "notes": comparison.note}


def corrupted(comparison, share, cells=1):
    """Fooling rates of corrupted patches, the mean over corruptions.

    Args:
        comparison: Comparison.
        share: float in (0, 1], of all places of the grid.
        cells: int, patches of the transformer along a side.

    Returns:
        dict from names of networks to percentages.
    """
    grid, seed = comparison.grid(cells), comparison.run.seed
    count = max(1, round(share * len(grid)))
    places, rates = grid.draw(len(comparison.x), count, seed=seed), []
    for kind in comparison.setting.corruptions:
        images = corrupt_patches(comparison.x, grid, places, kind, seed=seed)
        rates.append(comparison.fooling_rates(f"{count} of {cells} cells, {kind}", lambda *_, images=images: images))
    return {name: in_percent(np.mean([each[name]["fooling_rate"] for each in rates])) for name in comparison.models}
