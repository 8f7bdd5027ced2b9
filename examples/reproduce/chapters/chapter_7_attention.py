"""Chapter 7: what patches do to gradients and attention, and attention that is smoothed."""

import numpy as np
from matplotlib.patches import Rectangle
from rows import row

from chapters.chapter_7_networks import Comparison, attention, gradient, network
from chapters.figures import save
from chapters.plain import in_percent, known
from keras_capsvit import evaluate, plot, taps
from keras_capsvit.data.corruptions import corrupt_patches
from keras_capsvit.patches import boxes

TOWARDS = {"true": lambda y: y, "predicted": lambda y: None}


@row("7.T3")
def gradients(setting, run):
    """Share of gradients that lies in the adversarial patch, and how often their maximum does."""
    comparison, measured = Comparison.of(setting, run), {}
    for label, cells in setting.sizes.items():
        for name, model in comparison.models.items():

            def measure(name=name, model=model, cells=cells):
                result, shares = comparison.results(cells)[name], {}
                if not result.fooled.any():
                    return shares
                images, y = result.images[result.fooled], comparison.y[result.fooled]
                where = boxes(result.positions[result.fooled], comparison.size(cells))
                for towards, target in TOWARDS.items():
                    maps = gradient(model, images, target(y))
                    for kind, values in evaluate.patch_share(maps, where).items():
                        shares[f"{kind} towards the {towards} class"] = _mean(values)
                return shares

            shares = run.step(f"{name}, {label}", measure)
            measured |= {f"{name} {kind}, {label}": value for kind, value in shares.items()}
    return {"measured": known(measured), "notes": f"{comparison.note} Maps are of those that are fooled."}


@row("7.F3")
@row("7.F4")
@row("7.F5")
def maps(setting, run):
    """Maps of clean, corrupted and attacked images, and the share of them that lies in the patch."""
    comparison, measured, pictures = Comparison.of(setting, run), {}, {}
    results = comparison.results()
    cells = comparison.grid().draw(len(comparison.x), seed=run.seed)  # those that the attack draws, too
    corrupted = corrupt_patches(comparison.x, comparison.grid(), cells, "gaussian_noise", seed=run.seed)
    shown = np.argsort(~np.all([each.fooled for each in results.values()], axis=0), kind="stable")[: setting.shown]
    for name, result in results.items():
        model, where = comparison.models[name], boxes(result.positions, comparison.size())
        kinds = {"clean": comparison.x, "corrupted": corrupted, "attacked": result.images}
        for kind in setting.kinds:
            images = kinds[kind]
            heatmaps = gradient(model, images, None) if setting.map == "gradient" else attention(model, images)
            values = evaluate.patch_share(heatmaps, where)["sum"]
            measured[f"{name}, {kind}"] = _mean(values[result.fooled])
            pictures[f"{name}, {kind}"] = images[shown], heatmaps[shown], where[shown, 0]
    save(draw(pictures), run.figure("maps"))
    fooled = " and ".join(f"{int(each.fooled.sum())} ({name})" for name, each in results.items())
    return {"measured": known(measured), "notes": f"Of the images that the patch fools, {fooled}."}


@row("7.F8")
def smoothed(setting, run):
    """Accuracy, and fooling rate of a patch, by the temperature of the softmax of attention."""
    model, (x, y) = network("ViT", setting, run), run.data(setting.dataset, "test", setting.test)
    models = {"ViT": model}
    correct = np.ones(len(x), bool)
    for model.temperature in setting.temperatures:
        correct &= taps.predictions(model, x) == y
    few = np.flatnonzero(correct)[: setting.examples]
    comparison = Comparison(setting, run, models, x[few], y[few])
    measured, curves = {}, {"accuracy": [], "fooling rate": []}
    for temperature in setting.temperatures:

        def measure(temperature=temperature):
            model.temperature = temperature
            images = comparison.attack()(model, comparison.x, comparison.y)
            accuracy, wrong = taps.predictions(model, x) == y, taps.predictions(model, images) != comparison.y
            return {"accuracy": in_percent(accuracy.mean()), "fooling rate": in_percent(wrong.mean())}

        for kind, value in run.step(f"temperature {temperature}", measure).items():
            measured[f"{kind}, T = {temperature:g}"] = value
            curves[kind].append(value)
    model.temperature = 1.0  # it is another row's model, too
    curves = {name: {"x": setting.temperatures, "y": values} for name, values in curves.items()}
    return {
        "measured": known(measured),
        "curves": curves,
        "notes": f"Of {len(few)} images correct at all temperatures.",
    }


def draw(pictures):
    """Images with their maps over them, each on its own scale, and the patch in a frame.

    Args:
        pictures: dict from names of rows to images ``(n, H, W, C)``, maps ``(n, H, W)`` and boxes ``(n, 4)``.

    Returns:
        matplotlib Figure.
    """
    figure = plot.rows({name: images for name, (images, *_) in pictures.items()})
    for number, (_, heatmaps, where) in enumerate(pictures.values()):
        axes = figure.axes[number * len(heatmaps) : (number + 1) * len(heatmaps)]
        for ax, heatmap, (top, left, bottom, right) in zip(axes, heatmaps, where, strict=True):
            ax.imshow(heatmap, cmap="jet", alpha=0.45)
            frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="white")
            ax.add_patch(frame)
    return figure


def _mean(shares):
    return in_percent(np.mean(shares)) if len(shares) else None
