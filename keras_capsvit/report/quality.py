"""How good the explanations of a model are, measured, and which one to trust."""

import functools

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
_SIGNIFICANT = 0.05
_DEPENDS = 0.5  # rank correlation above which a map does not depend on the weights
_ALIKE = 0.95  # ... and above which it does not tell two classes apart
_LABELS = {
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


def measures(subject, done):
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
    settings = {"per_image": True, "batch_size": len(x), "work": subject.work("compare")}
    table, values = evaluate.compare(subject.model, fits, (x, y), measured, **settings)
    predicted, second = (ids[numbers] for ids in (subject.predictions.predicted, subject.predictions.second))
    for name, explainer in fits.items():
        if name == BASELINE:
            continue
        try:
            found = evaluate.max_sensitivity(explainer, x, predicted, batch_size=subject.batch_size, **sensitive)
        except ValueError as error:
            section.left_out.append(f"Max-sensitivity of {name}: {error}")
        else:
            values[name]["sensitivity"] = found
        values[name]["classes"] = evaluate.class_sensitivity(explainer, x, predicted, second)
    seconds = dict(zip(table["explainer"], table["seconds_per_image"], strict=True))
    rows = []
    for name, of_name in values.items():
        row = {"explainer": name}
        for metric in _LABELS:
            mean, (low, high) = np.nan, (np.nan, np.nan)
            if metric in of_name:
                mean, (low, high) = of_name[metric].mean(), interval(of_name[metric])
            row |= {_LABELS[metric]: mean, f"{_LABELS[metric]}, low": low, f"{_LABELS[metric]}, high": high}
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
            pair = {"measure": _LABELS[metric], "explainer": name, "better by": sign * row["difference"]}
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
        ax.set(xlabel=f"{_LABELS[metric]} ({direction})", ylabel="explainer")

    caption = f"{_LABELS[metric][0].upper()}{_LABELS[metric][1:]}, mean and 95 % interval; {direction}, best on top."
    best = order[-1]
    alt = f"{_LABELS[metric]} of {len(order)} explainers; best is {best} with {means[-1]:.3g}, a random map has "
    alt += f"{means[order.index(BASELINE)]:.3g}."
    return diagram(draw, (4.6, 0.9 + 0.2 * len(order))), caption, alt


def randomisation(subject, done):
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
        make = functools.partial(_refreshed, explainer)
        settings = {"target": target, "absolute": True, "seed": subject.seed}
        try:
            found = evaluate.parameter_randomization(make, whole, x, **settings)
        except (ValueError, TypeError) as error:
            section.left_out.append(f"Randomisation check of {name}: {error}")
            continue
        finally:
            _refreshed(explainer, subject.model)
        (values,) = found.values()
        low, high = interval(values)
        rows.append({"explainer": name, "rank correlation": values.mean(), "low": low, "high": high})
    section.table("randomisation", "Maps before and after all weights were permuted", rows, note=_PERMUTED)
    same = [row["explainer"] for row in rows if row["rank correlation"] > _DEPENDS]
    section.figure("unchanged", "Explainers that hardly depend on the weights", len(same), "count")
    section.say(
        f"These maps hardly change when the model forgets all it learned: {', '.join(same)}."
        if same
        else "All maps change when the model forgets all that it learned, as they should."
    )
    return section


def _refreshed(explainer, model):
    """The explainer of the weights that the model has now: most read them, relevance keeps a copy."""
    if hasattr(explainer, "refresh"):
        explainer.refresh()
    return explainer


_PERMUTED = "Rank correlation of magnitudes; near 0, maps depend on what was learned, and near 1 on the image alone."


def trust(subject, done):
    """Which explanation to trust here, in a sentence."""
    section = Section()
    if "quality.measures" not in done or not done["quality.measures"]["tables"]:
        section.left_out.append("Which explanation to trust: nothing was measured of them.")
        return section
    tables = {table["name"]: table["rows"] for table in done["quality.measures"]["tables"]}
    unchanged = _unchanged(done)
    rows = ranking(tables["measures"], tables["against_random"], unchanged)
    section.table("ranking", "Explainers in order", rows, {"better than random in": "count"}, note=_RULE)
    best = rows[0]
    if best["better than random in"] and best["depends on the weights"] != "no":
        section.figure("best", "Explanation to trust first", best["explainer"], "text", headline=True)
        section.say(_sentence(best, rows, tables["measures"]))
    else:
        section.figure("best", "Explanation to trust first", "none", "text", headline=True)
        section.say(
            "Trust none of these explanations here: on these images none is better than a random map beyond chance, or "
            "those that are do not depend on the weights."
        )
    if unchanged is None:
        section.left_out.append("Whether maps depend on the weights: the randomisation check was not made.")
    section.how = "evaluate.paired_tests(values)  # of every explainer and the random map, see the steps above"
    return section


def _sentence(best, rows, measured):
    """Which explainer to trust and why, in words."""
    text = (
        f"Trust {best['explainer']} first here: in {best['better than random in']} of {len(FAITHFUL)} measures it is "
        "better than a random map beyond chance, and none with as many has a better mean rank over the measures "
        f"({best['mean rank']:.1f} of {len(rows)})."
    )
    if best["depends on the weights"] == "not checked":
        text += " Whether it depends on what the model learned was not checked."
    if best["tells classes apart"] == "no":
        text += " It hardly tells classes apart, so that it shows what the model sees rather than why it says so."
    sensitivity = next(row for row in measured if row["explainer"] == best["explainer"])[_LABELS["sensitivity"]]
    if sensitivity is not None:
        text += f" Small noise changes its maps by up to {100 * sensitivity:.0f} %."
    others = [row["explainer"] for row in rows[1:3] if row["better than random in"]]
    return text + (f" Next come {' and '.join(others)}." if len(others) > 1 else "")


_RULE = (
    "In front are explainers that depend on the weights, where that was checked, and among them those that tell the "
    "first two classes apart; among these, those that are better than a random map in more measures (p by Holm below "
    "0.05); among these, those with the best mean rank over the measures."
)


def _unchanged(done):
    """Names of explainers that do not depend on the weights; None where it was not checked."""
    tables = done.get("quality.randomisation", {}).get("tables")
    if not tables:
        return None
    return {row["explainer"] for row in tables[0]["rows"] if row["rank correlation"] > _DEPENDS}


def ranking(measured, against_random, unchanged):
    """Explainers, the one to trust first in front.

    Args:
        measured: list of dicts, a row for each explainer with a mean by each measure.
        against_random: list of dicts, rows of ``measure``, ``explainer``, ``better by`` and ``p by Holm``.
        unchanged: set of names that do not depend on the weights, or None.

    Returns:
        List of dicts: ``explainer``, ``better than random in`` (number of measures), ``mean rank``, ``tells classes
        apart`` (``"yes"`` or ``"no"``), and ``depends on the weights``, ``"yes"``, ``"no"`` or ``"not checked"``.
    """
    names = [row["explainer"] for row in measured if row["explainer"] != BASELINE]
    ranks = {name: [] for name in names}
    for metric, better in FAITHFUL.items():
        means = {row["explainer"]: row[_LABELS[metric]] for row in measured if row["explainer"] in ranks}
        for place, name in enumerate(sorted(means, key=means.get, reverse=better), 1):
            ranks[name].append(place)
    alike = {row["explainer"]: row[_LABELS["classes"]] for row in measured}
    rows = []
    for name in names:
        beats = sum(
            row["explainer"] == name and row["better by"] > 0 and row["p by Holm"] < _SIGNIFICANT
            for row in against_random
        )
        depends = "not checked" if unchanged is None else "no" if name in unchanged else "yes"
        row = {"explainer": name, "better than random in": beats, "mean rank": float(np.mean(ranks[name]))}
        rows.append(
            {**row, "tells classes apart": "no" if alike[name] > _ALIKE else "yes", "depends on the weights": depends}
        )
    return sorted(rows, key=_place)


def _place(row):
    untrue = row["depends on the weights"] == "no", row["tells classes apart"] == "no"
    return (*untrue, -row["better than random in"], row["mean rank"])


def _arguments(settings):
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
