"""Several explainers, measured on the same images."""

import time

import numpy as np

from keras_capsvit.checks import batches_of, booleans, choice, function, image_maps, named, numbers, of_shape
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.table import Table


def compare(model, explainers, dataset, metrics, *, target="predicted", batch_size=128, per_image=False):
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

    Returns:
        Table, a row for each explainer: ``explainer``, for each metric its mean and, as ``"NAME std"`` and ``"NAME
        se"``, its standard deviation over images and the standard error of the mean (NaN of one image), ``images`` (how
        many) and ``seconds_per_image`` of explaining. The first batch, in which functions are compiled, does not count
        there unless it is the only one. With ``per_image``, a pair of that and of a dict from explainers to dicts from
        metrics to arrays ``(images,)``.

    Raises:
        ValueError: for no explainers or an empty data set; for maps and values of a wrong shape or not finite, with the
            name of what made them.

    Example::

        metrics = {"aopc": lambda model, x, y, maps: evaluate.aopc(model, x, maps, target=y).area}
        print(evaluate.compare(model, {"attention": explain.GraphAttention(model)}, test, metrics))
    """
    booleans(per_image=per_image)
    choice("target", target, ("predicted", "label"))
    explainers = named("explainers", explainers, "callables (x, target) → maps (b, H, W)")
    metrics = named("metrics", metrics, "callables (model, x, y, maps) → values (b,)")
    for name, explainer in explainers.items():
        function(f"Explainer {name!r}", explainer, "(x, target) → maps (b, H, W)")
    for name, metric in metrics.items():
        function(f"Metric {name!r}", metric, "(model, x, y, maps) → values (b,)")
    if not explainers:
        raise ValueError("Expected at least one explainer; received none.")
    values = {name: {metric: [] for metric in metrics} for name in explainers}
    judge, seconds, sizes = Judge(model), {name: [] for name in explainers}, []
    for x, y in batches_of(dataset, batch_size):
        classes = judge.of_targets(judge(x), None if target == "predicted" else y)[0]
        sizes.append(len(x))
        for name, explainer in explainers.items():
            started = time.perf_counter()
            maps = explainer(x, classes)
            seconds[name].append(time.perf_counter() - started)
            maps = _checked(name, maps, x)
            for metric, measure in metrics.items():
                found = numbers(measure(model, x, classes, maps), f"values of metric {metric!r}").astype("float64")
                of_shape(f"Metric {metric!r} must return a value for each image", (len(x),), found)
                if not np.isfinite(found).all():
                    raise ValueError(f"Metric {metric!r} returned NaN or infinite values for maps of {name!r}.")
                values[name][metric].append(found)
    if not sizes:
        raise ValueError("Expected at least one example; the data set is empty.")
    counted = slice(1, None) if len(sizes) > 1 else slice(None)
    values = {
        name: {metric: np.concatenate(parts) for metric, parts in of_metrics.items()}
        for name, of_metrics in values.items()
    }
    rows = []
    for name in explainers:
        row = {"explainer": name}
        for metric, measured in values[name].items():
            row |= {metric: float(measured.mean()), f"{metric} std": float(measured.std())}
            row[f"{metric} se"] = float(measured.std(ddof=1) / len(measured) ** 0.5) if len(measured) > 1 else np.nan
        time_each = sum(seconds[name][counted]) / sum(sizes[counted])
        rows.append({**row, "images": sum(sizes), "seconds_per_image": time_each})
    return (Table(rows), values) if per_image else Table(rows)


def _checked(name, maps, x):
    try:
        return image_maps(maps, x)[0]
    except ValueError as error:
        raise ValueError(f"Maps of explainer {name!r}: {error}") from None
