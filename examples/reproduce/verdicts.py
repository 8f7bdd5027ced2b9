"""What measured numbers say about published ones."""

import dataclasses
import statistics

REPRODUCED, HOLDS, FAILS, NOT_RUN = "reproduced", "trend holds", "does not hold", "not run"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One of the four words, and why, a str."""

    word: str
    why: str


def summary(measured):
    """Mean and standard deviation over seeds.

    Args:
        measured: list of dicts from names to floats, one of each seed.

    Returns:
        dict from names to ``(mean, standard deviation, number of seeds)``; of a single seed the deviation is None.
    """
    result = {}
    for name in dict.fromkeys(name for each in measured for name in each):
        values = [each[name] for each in measured if each.get(name) is not None]
        if values:
            result[name] = (
                statistics.fmean(values),
                statistics.stdev(values) if len(values) > 1 else None,
                len(values),
            )
    return result


def verdict(table, measured):
    """What the seeds of a row say: see ``Verdict``.

    ``reproduced``: every published number is measured, no mean is further from it than the row's tolerance, and all
    comparisons hold. ``trend holds``: the comparisons that could be made hold, or at least half of the published
    numbers are measured and within the tolerance. ``does not hold``: a comparison does not, or a row without
    comparisons is outside of its tolerance. ``not run``: nothing was measured that says anything.

    Args:
        table: dict of the row, with ``published``; optional are ``tolerance`` (float, in the unit of the numbers),
            ``order`` (pairs of names, the first of which has to be larger), ``equal`` (names a, b and how far apart
            they may be), ``above`` and ``below`` (dict from names to bounds).
        measured: list of dicts from names to floats, one of each seed.

    Returns:
        Verdict.
    """
    numbers = summary(measured)
    means = {name: mean for name, (mean, _, _) in numbers.items()}
    if not means:
        return Verdict(NOT_RUN, "not measured yet")
    broken = [f"{name} is not a number" for name, mean in means.items() if mean != mean]
    if broken:
        return Verdict(FAILS, "; ".join(broken))
    checks = list(_comparisons(table, means, numbers))
    failed = [text for holds, text in checks if not holds]
    published, tolerance = table["published"], table.get("tolerance")
    near = {name: abs(means[name] - published[name]) for name in published if name in means}
    within = tolerance is not None and near and max(near.values()) <= tolerance
    if failed:
        held = f"{len(checks) - len(failed)} of {len(checks)} comparisons hold"
        return Verdict(FAILS, f"{held}; not: {'; '.join(failed)}")
    held = [_all(len(checks), "comparison", "holds", "hold")] if checks else []
    if within:
        told = [f"{len(near)} of {len(published)} published numbers within {tolerance:g}", *held]
        if len(near) < len(published) and not checks and 2 * len(near) < len(published):
            return Verdict(NOT_RUN, f"{told[0]}, the others not measured")
        return Verdict(REPRODUCED if len(near) == len(published) else HOLDS, "; ".join(told))
    if checks:
        missing = [f"{len(published) - len(near)} published numbers not measured"] if len(near) < len(published) else []
        return Verdict(HOLDS, "; ".join(held + missing))
    if near and tolerance is not None:
        name = max(near, key=near.get)
        return Verdict(FAILS, f"{name}: {means[name]:.4g} measured, {published[name]:.4g} published")
    return Verdict(NOT_RUN, "what was measured cannot be compared")


def _all(count, noun, singular, plural):
    return f"the {noun} {singular}" if count == 1 else f"all {count} {noun}s {plural}"


def _comparisons(table, means, numbers):
    """Pairs of whether a comparison holds, and its text; without those whose numbers are not measured."""
    for larger, smaller in table.get("order", ()):
        if larger in means and smaller in means:
            text = f"{larger} ({means[larger]:.4g}) > {smaller} ({means[smaller]:.4g})"
            if _alike(numbers[larger], numbers[smaller]):
                text += ", which differ by less than their seeds"
            yield means[larger] > means[smaller], text
    for first, second, apart in table.get("equal", ()):
        if first in means and second in means:
            text = f"{first} ({means[first]:.4g}) within {apart:g} of {second} ({means[second]:.4g})"
            yield abs(means[first] - means[second]) <= apart, text
    for name, bound in table.get("above", {}).items():
        if name in means:
            yield means[name] > bound, f"{name} ({means[name]:.4g}) > {bound:g}"
    for name, bound in table.get("below", {}).items():
        if name in means:
            yield means[name] < bound, f"{name} ({means[name]:.4g}) < {bound:g}"


def _alike(first, second):
    """Whether two means of several seeds differ by less than the standard deviation of their difference."""
    if None in (first[1], second[1]):
        return False
    return abs(first[0] - second[0]) < (first[1] ** 2 + second[1] ** 2) ** 0.5
