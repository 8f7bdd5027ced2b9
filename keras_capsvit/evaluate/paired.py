"""Whether explainers differ on the same images, or by chance."""

import itertools

import numpy as np
from scipy import stats

from keras_capsvit import checks
from keras_capsvit.evaluate.table import Table

TESTS = ("t", "wilcoxon")


def paired_tests(values, *, test="t") -> Table:
    """Differences of all pairs of explainers, image by image, by every metric.

    Args:
        values: dict from explainers to dicts from metrics to arrays ``(images,)``, as ``compare`` returns them with
            ``per_image=True``: of the same images in the same order.
        test: ``"t"``, Student's paired t-test; or ``"wilcoxon"``, the signed-rank test, of differences that are far
            from normal.

    Returns:
        Table, a row for each metric and pair: ``metric``, ``first``, ``second``, ``difference`` (mean of first less
        second), its 95 % confidence interval by Student's t, ``95 % low`` and ``95 % high``, the two-sided ``p`` that
        they do not differ, ``p by Holm``, which is adjusted for the number of pairs of the metric, and ``images``.
        Where all differences are 0, p is 1.

    Raises:
        ValueError: for fewer than two explainers or images, other metrics or numbers of images of some, and values that
            are not finite.

    Example::

        table, values = evaluate.compare(model, explainers, test, metrics, per_image=True)
        print(evaluate.paired_tests(values))
    """
    checks.choice("test", test, TESTS)
    values = _checked(values)
    rows = []
    for metric in next(iter(values.values())):
        pairs = []
        for first, second in itertools.combinations(values, 2):
            difference = values[first][metric] - values[second][metric]
            low, high = interval(difference)
            row = {"metric": metric, "first": first, "second": second, "difference": float(difference.mean())}
            pairs.append({**row, "95 % low": low, "95 % high": high, "p": _p(difference, test)})
        adjusted = _holm([row["p"] for row in pairs])
        rows += [{**row, "p by Holm": p, "images": len(difference)} for row, p in zip(pairs, adjusted, strict=True)]
    return Table(rows)


def interval(values):
    """95 % confidence interval of the mean of values ``(n,)`` by Student's t: two floats, NaN of a single value."""
    if len(values) < 2:
        return np.nan, np.nan
    reach = stats.t.ppf(0.975, len(values) - 1) * standard_error(values)
    return float(values.mean() - reach), float(values.mean() + reach)


def standard_error(values):
    """Standard error of the mean of values ``(n,)``, a float; NaN of a single value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else np.nan


def _checked(values):
    """The same values as float64 arrays."""
    of = "dicts from metrics to values (images,)"
    values = {
        name: checks.named(f"Values of {name!r}", each, of) for name, each in checks.named("values", values, of).items()
    }
    if len(values) < 2:
        raise ValueError(f"Expected values of at least two explainers; received those of {list(values)}.")
    metrics = next(iter(values.values()))
    count = None
    for name, each in values.items():
        if list(each) != list(metrics):
            raise ValueError(f"Expected the metrics {list(metrics)} of every explainer; {name!r} has {list(each)}.")
        for metric, numbers in each.items():
            subject = f"values of {name!r} by {metric!r}"
            numbers = checks.finite(checks.numbers(numbers, subject).astype("float64"), subject)
            if numbers.ndim != 1 or len(numbers) < 2:
                raise ValueError(f"Expected {subject}, one of each of at least two images; received {numbers.shape}.")
            count = count or len(numbers)
            checks.of_shape("Expected values of the same images of every explainer", (count,), numbers)
            each[metric] = numbers
    return values


def _p(difference, test):
    if not difference.any():
        return 1.0
    if test == "wilcoxon":
        return float(stats.wilcoxon(difference).pvalue)
    error = standard_error(difference)
    return float(2 * stats.t.sf(abs(difference.mean()) / error, len(difference) - 1)) if error else 0.0


def _holm(ps):
    """Holm's adjusted p-values."""
    order = np.argsort(ps, kind="stable")
    raised = np.asarray(ps)[order] * np.arange(len(ps), 0, -1)
    adjusted = np.empty(len(ps))
    adjusted[order] = np.maximum.accumulate(raised).clip(max=1)
    return adjusted.tolist()
