"""Several explainers, measured on the same images."""

import functools
import itertools
import time

import numpy as np

from keras_capsvit import checks, taps
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.paired import interval, standard_error
from keras_capsvit.evaluate.progress import Progress
from keras_capsvit.evaluate.table import Table


def compare(model, explainers, dataset, metrics, *, target="predicted", batch_size=128, per_image=False, work=None):
    """Explain every image of a data set by several explainers, and measure the maps.

    Args:
        model: model, or callable ``x (b, H, W, C) → scores (b, M)``.
        explainers: dict from names to callables ``(x, target) → maps (b, H, W)``.
        dataset: see ``robustness``.
        metrics: dict from names to callables ``(model, x, y, maps) → values (b,)``; ``y`` are the classes explained.
        target: ``"predicted"`` or ``"label"``, the classes explained.
        batch_size: int >= 1, of a pair of arrays and of single examples. What a metric draws by an image's place in its
            batch, as ``aopc`` does, depends on it.
        per_image: bool, whether the values of each image are returned, too.
        work: path of a folder that values of each image are kept in, so that an interrupted comparison goes on; see
            ``robustness``.

    Returns:
        Table, a row for each explainer: ``explainer``; for each metric its mean, as ``"NAME std"`` its standard
        deviation over images, and the standard error of the mean and its 95 % confidence interval by Student's t, as
        ``"NAME se"``, ``"NAME 95 % low"`` and ``"NAME 95 % high"`` (NaN of one image); ``images`` (how many) and
        ``seconds_per_image`` of explaining. The first batch of a call, in which functions are compiled, does not count
        there unless there is no other. With ``per_image``, a pair of that and of a dict from explainers to dicts from
        metrics to arrays ``(images,)``, which ``paired_tests`` takes.

    Raises:
        ValueError: for no explainers or an empty data set; for maps and values of a wrong shape or not finite, with the
            name of what made them; and for a ``work`` that belongs to something else.

    Example::

        metrics = {"aopc": lambda model, x, y, maps: evaluate.aopc(model, x, maps, target=y).area}
        print(evaluate.compare(model, {"attention": explain.GraphAttention(model)}, test, metrics))
    """
    checks.booleans(per_image=per_image)
    checks.choice("target", target, ("predicted", "label"))
    explainers = checks.named("explainers", explainers, "callables (x, target) → maps (b, H, W)")
    metrics = checks.named("metrics", metrics, "callables (model, x, y, maps) → values (b,)")
    for name, explainer in explainers.items():
        taps.check_explainer(f"Explainer {name!r}", explainer)
    for name, metric in metrics.items():
        checks.function(f"Metric {name!r}", metric, "(model, x, y, maps) → values (b,)")
    if not explainers:
        raise ValueError("Expected at least one explainer; received none.")
    judge, settings = Judge(model), {"model": model, "explainers": explainers, "metrics": metrics, "target": target}
    calls = itertools.count()

    def measure(x, y):
        scores = judge(x)
        labels, predicted = (judge.of_targets(scores, ids)[0] for ids in (y, None))
        classes = labels if target == "label" else predicted
        measured = {"warm": np.full(len(x), next(calls) > 0)}
        for name, explainer in explainers.items():
            started = time.perf_counter()
            maps = explainer(x, classes)
            measured[f"{name}\nseconds"] = np.full(len(x), (time.perf_counter() - started) / max(len(x), 1))
            maps = _checked(name, maps, x)
            for metric, values_of in metrics.items():
                values = checks.numbers(values_of(model, x, classes, maps), f"values of metric {metric!r}").astype(
                    "float64"
                )
                checks.of_shape(f"Metric {metric!r} must return a value for each image", (len(x),), values)
                if not np.isfinite(values).all():
                    raise ValueError(f"Metric {metric!r} returned NaN or infinite values for maps of {name!r}.")
                measured[f"{name}\n{metric}\nvalues"] = values
        return measured

    total = checks.batches_in(dataset, batch_size)
    with Progress(work, "compare", settings, judges=[judge], total=total) as progress:
        for x, y in checks.batches_of(dataset, batch_size):
            progress.batch(functools.partial(measure, x, y), x, y)
    measured = progress.results()
    if not measured:
        raise ValueError("Expected at least one example; the data set is empty.")
    counted = measured["warm"] if measured["warm"].any() else np.ones_like(measured["warm"])
    values = {name: {metric: measured[f"{name}\n{metric}\nvalues"] for metric in metrics} for name in explainers}
    rows = []
    for name in explainers:
        row = {"explainer": name}
        for metric, of_metric in values[name].items():
            row |= {metric: float(of_metric.mean()), f"{metric} std": float(of_metric.std())}
            row[f"{metric} se"] = standard_error(of_metric)
            row[f"{metric} 95 % low"], row[f"{metric} 95 % high"] = interval(of_metric)
        time_each = float(measured[f"{name}\nseconds"][counted].mean())
        rows.append({**row, "images": len(counted), "seconds_per_image": time_each})
    return (Table(rows), values) if per_image else Table(rows)


def _checked(name, maps, x):
    try:
        return checks.maps_of_images(maps, x)[0]
    except ValueError as error:
        raise ValueError(f"Maps of explainer {name!r}: {error}") from None
