"""How good the explanations of a model are, measured."""

import functools
import time

import keras
import numpy as np

from keras_capsvit import evaluate
from keras_capsvit.evaluate.paired import interval
from keras_capsvit.report.drawing import COLOURS, INK, diagram
from keras_capsvit.report.explainers import BASELINE
from keras_capsvit.report.sections import Section

# Measures of whether maps say what the scores depend on, and whether high values are good.
FAITHFUL = {"aopc": True, "insertion": True, "deletion": False, "infidelity": False}
_SIDE = 7  # regions along a side of AOPC
_RANDOMISED = 8  # images
DEPENDS = 0.5  # rank correlation of maps above which they do not depend on the weights
LABELS = {
    "aopc": "AOPC",
    "insertion": "insertion",
    "deletion": "deletion",
    "infidelity": "infidelity",
    "sensitivity": "max-sensitivity",
    "classes": "second class alike",
}


def _aopc(model, x, y, maps, **settings):
    return evaluate.aopc(model, x, maps, target=y, **settings).area


def _insertion(model, x, y, maps, **settings):
    return evaluate.insertion(model, x, maps, target=y, **settings).area


def _deletion(model, x, y, maps, **settings):
    return evaluate.deletion(model, x, maps, target=y, **settings).area


def _infidelity(model, x, y, maps, **settings):
    return evaluate.infidelity(model, x, maps, target=y, **settings)


def metrics(subject):
    """The measures of FAITHFUL as ``evaluate.compare`` takes them, a dict by name, and their settings."""
    side = max(1, min(subject.shape[:2]) // _SIDE)
    shared = {"bounds": subject.bounds, "seed": subject.seed, "batch_size": subject.batch_size}
    measure = "score" if subject.kind == "lengths" else "probability"
    curve = {**shared, "measure": measure, "steps": subject.effort.steps}
    squares = {"perturbations": "square", "size": side, "normalize": True, "samples": subject.effort.samples}
    settings = {
        "aopc": {**shared, "patch": side, "steps": min(subject.effort.steps, _regions(subject.shape, side))},
        "insertion": curve,
        "deletion": curve,
        "infidelity": {**shared, **squares},
    }
    functions = {"aopc": _aopc, "insertion": _insertion, "deletion": _deletion, "infidelity": _infidelity}
    return {name: functools.partial(functions[name], **settings[name]) for name in settings}, settings


def _regions(shape, side):
    """How many regions AOPC cuts an image into."""
    return -(-shape[0] // side) * -(-shape[1] // side)


def measures(subject, results):
    """Every explainer by every measure, with intervals."""
    numbers = subject.drawn(subject.effort.judged)
    fits, _ = subject.explainers
    measured, settings = metrics(subject)
    how = "\n".join(
        f"evaluate.{name}(model, x, maps, target=predicted, {_arguments(each)})" for name, each in settings.items()
    )
    sensitive = {"samples": subject.effort.samples, "bounds": subject.bounds, "seed": subject.seed}
    how += f"\nevaluate.max_sensitivity(explainer, x, predicted, {_arguments(sensitive)})"
    how += "\nevaluate.class_sensitivity(explainer, x, predicted, second)"
    section = Section(how=how, numbers=numbers.tolist())
    x, y = subject.read(numbers)
    predicted, second = (ids[numbers] for ids in (subject.predictions.predicted, subject.predictions.second))
    values, seconds = {}, {}
    for name, explainer in fits.items():
        settings = {"per_image": True, "batch_size": len(x), "work": subject.work("compare", name)}
        values |= evaluate.compare(subject.model, {name: explainer}, (x, y), measured, **settings)[1]
        explainer(x, predicted)  # compiled for so many images
        started = time.perf_counter()
        explainer(x, predicted)
        seconds[name] = (time.perf_counter() - started) / len(x)
        if name == BASELINE:
            continue
        try:
            changes = evaluate.max_sensitivity(explainer, x, predicted, batch_size=subject.batch_size, **sensitive)
        except ValueError as error:
            section.left_out.append(f"Max-sensitivity of {name}: {error}")
        else:
            values[name]["sensitivity"] = changes
        values[name]["classes"] = evaluate.class_sensitivity(explainer, x, predicted, second)
    rows = []
    for name, of_name in values.items():
        row = {"explainer": name}
        for metric in LABELS:
            mean, (low, high) = np.nan, (np.nan, np.nan)
            if metric in of_name:
                mean, (low, high) = of_name[metric].mean(), interval(of_name[metric])
            row |= {LABELS[metric]: mean, f"{LABELS[metric]}, low": low, f"{LABELS[metric]}, high": high}
        rows.append({**row, "of an image": seconds[name]})
    section.table("measures", "Means over images and 95 % intervals", rows, {"of an image": "ms"}, note=_NOTE)
    rows = _against_random(values)
    section.table("against_random", "Against a random map, image by image", rows, note=_AGAINST)
    section.say(
        f"{len(fits) - 1} explainers and a random map on {len(x)} images of the data set, drawn by the seed; the "
        "predicted class is explained."
    )
    for metric, better in FAITHFUL.items():
        section.plot(metric, *_bars(metric, better, values))
    return section


_NOTE = (
    "Higher is better for AOPC and insertion, lower for deletion, infidelity and max-sensitivity. Infidelity is of "
    "maps that are scaled by the factor that fits best. The last is the rank correlation of the maps of the predicted "
    "and of the second class, 1 of explainers that do not tell classes apart."
)
_AGAINST = (
    "Differences are signed so that positive ones are better than random; p is that of the paired t-test, adjusted by "
    "Holm for the explainers of a measure."
)


def _against_random(values):
    """Rows: of every explainer and measure, how it differs from a random map on the same images."""
    if len(next(iter(values.values()))["aopc"]) < 2:
        raise ValueError("Expected at least two images to judge explanations on.")
    rows = []
    for metric, better in FAITHFUL.items():
        pairs = []
        for name in values:
            if name == BASELINE:
                continue
            both = {each: {metric: values[each][metric]} for each in (name, BASELINE)}
            (row,) = evaluate.paired_tests(both).rows
            sign = 1 if better else -1
            ends = sorted((sign * row["95 % low"], sign * row["95 % high"]))
            pair = {"measure": LABELS[metric], "explainer": name, "better by": sign * row["difference"]}
            pairs.append({**pair, "low": ends[0], "high": ends[1], "p": row["p"]})
        order, highest = np.argsort([pair["p"] for pair in pairs], kind="stable"), 0.0
        for place, k in enumerate(order):
            highest = max(highest, min(1.0, pairs[k]["p"] * (len(pairs) - place)))
            pairs[k]["p by Holm"] = highest
        rows += pairs
    return rows


def _bars(metric, better, values):
    order = sorted(values, key=lambda name: values[name][metric].mean(), reverse=not better)
    means = [float(values[name][metric].mean()) for name in order]
    ends = [interval(values[name][metric]) for name in order]
    direction = "higher is better" if better else "lower is better"

    def draw(ax):
        places = np.arange(len(order))
        colours = [COLOURS[7] if name == BASELINE else COLOURS[0] for name in order]
        ax.barh(places, means, color=colours, height=0.7)
        reach = np.abs(np.transpose(ends) - means)
        ax.errorbar(means, places, xerr=reach, fmt="none", ecolor=INK, elinewidth=1)
        ax.set_yticks(places, order)
        ax.tick_params(axis="y", length=0, labelsize=8)
        ax.locator_params(axis="x", nbins=5)
        ax.ticklabel_format(axis="x", scilimits=(-2, 3), useMathText=False)
        ax.set(xlabel=f"{LABELS[metric]} ({direction})", ylabel="explainer")

    caption = f"{LABELS[metric][0].upper()}{LABELS[metric][1:]}, mean and 95 % interval; {direction}, best on top."
    best = order[-1]
    alt = f"{LABELS[metric]} of {len(order)} explainers; best is {best} with {means[-1]:.3g}, a random map has "
    alt += f"{means[order.index(BASELINE)]:.3g}."
    return diagram(draw, (4.6, 0.9 + 0.2 * len(order))), caption, alt


def randomisation(subject, results):
    """Whether explanations depend on what the model learned (Adebayo et al. 2018)."""
    numbers = subject.drawn(min(_RANDOMISED, subject.effort.judged))
    section = Section(
        how="whole = keras.Sequential([keras.Input(x.shape[1:]), model])  # so that all layers change at once\n"
        "evaluate.parameter_randomization(make_explainer, whole, x, target=predicted, absolute=True, seed=seed)",
        numbers=numbers.tolist(),
    )
    if not isinstance(subject.model, keras.Model):
        section.left_out.append(
            "Randomisation check: the weights of a model that is served cannot be changed. Pass the .keras file."
        )
        return section
    x, _ = subject.read(numbers)
    target, fits = subject.predictions.predicted[numbers], subject.explainers[0]
    whole = keras.Sequential([keras.Input(x.shape[1:]), subject.model], name="whole")
    rows = []
    for name, explainer in fits.items():
        if name == BASELINE:
            continue
        settings = {"target": target, "absolute": True, "seed": subject.seed}
        try:
            correlations = evaluate.parameter_randomization(lambda _, same=explainer: same, whole, x, **settings)
        except (ValueError, TypeError) as error:
            section.left_out.append(f"Randomisation check of {name}: {error}")
            continue
        (values,) = correlations.values()
        low, high = interval(values)
        rows.append({"explainer": name, "rank correlation": values.mean(), "low": low, "high": high})
    section.table("randomisation", "Maps before and after all weights were permuted", rows, note=_PERMUTED)
    same = [row["explainer"] for row in rows if row["rank correlation"] > DEPENDS]
    section.figure("unchanged", "Explainers that hardly depend on the weights", len(same), "count")
    section.say(
        f"These maps hardly change when the model forgets all it learned: {', '.join(same)}."
        if same
        else "All maps change when the model forgets all that it learned, as they should."
    )
    return section


_PERMUTED = "Rank correlation of magnitudes; near 0, maps depend on what was learned, and near 1 on the image alone."


def _arguments(settings):
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
