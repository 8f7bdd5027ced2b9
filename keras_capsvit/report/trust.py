"""Which explanation of a model to trust first, by a rule that stands on the page."""

import numpy as np

from keras_capsvit.report.explainers import BASELINE
from keras_capsvit.report.quality import DEPENDS, FAITHFUL, LABELS
from keras_capsvit.report.sections import Section

_SIGNIFICANT = 0.05
_ALIKE = 0.95  # rank correlation of the maps of two classes above which they are not told apart


def trust(subject, results):
    """Which explanation to trust here, in a sentence."""
    section = Section()
    if "quality.measures" not in results or not results["quality.measures"]["tables"]:
        section.left_out.append("Which explanation to trust: nothing was measured of them.")
        return section
    tables = {table["name"]: table["rows"] for table in results["quality.measures"]["tables"]}
    unchanged = _unchanged(results)
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
    sensitivity = next(row for row in measured if row["explainer"] == best["explainer"])[LABELS["sensitivity"]]
    if sensitivity is not None:
        text += f" Small noise changes its maps by up to {100 * sensitivity:.0f} %."
    runners_up = [row["explainer"] for row in rows[1:3] if row["better than random in"]]
    return text + (f" Next come {' and '.join(runners_up)}." if len(runners_up) > 1 else "")


_RULE = (
    "In front are explainers that depend on the weights, where that was checked, and among them those that tell the "
    "first two classes apart; among these, those that are better than a random map in more measures (p by Holm below "
    "0.05); among these, those with the best mean rank over the measures."
)


def _unchanged(results):
    """Names of explainers that do not depend on the weights; None where it was not checked."""
    tables = results.get("quality.randomisation", {}).get("tables")
    if not tables:
        return None
    return {row["explainer"] for row in tables[0]["rows"] if row["rank correlation"] > DEPENDS}


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
        means = {row["explainer"]: row[LABELS[metric]] for row in measured if row["explainer"] in ranks}
        for place, name in enumerate(sorted(means, key=means.get, reverse=better), 1):
            ranks[name].append(place)
    alike = {row["explainer"]: row[LABELS["classes"]] for row in measured}
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
