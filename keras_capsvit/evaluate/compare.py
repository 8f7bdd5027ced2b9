"""Several explainers, measured on the same images."""

import time

import numpy as np

from keras_capsvit.evaluate.checks import expect, image_maps
from keras_capsvit.evaluate.robustness import batches_of, classes_of
from keras_capsvit.evaluate.table import Table


def compare(model, explainers, dataset, metrics, *, target="predicted"):
    """Explain every image of a data set by several explainers, and measure the maps.

    Args:
        model: callable ``x (b, H, W, C) → scores (b, M)``.
        explainers: dict from names to callables ``(x, target) → maps (b, H, W)``.
        dataset: iterable of batches ``(x, y)`` with class ids ``y (b,)``, a ``tf.data.Dataset`` for one; or one pair of
            arrays.
        metrics: dict from names to callables ``(model, x, y, maps) → values (b,)``; ``y`` are the classes explained.
        target: ``"predicted"`` or ``"label"``, the classes explained.

    Returns:
        Table, a row for each explainer: ``explainer``, for each metric its mean and, as ``"NAME std"``, its standard
        deviation over images, ``images`` (how many) and ``seconds_per_image`` of explaining. The first batch, in which
        functions are compiled, does not count there unless it is the only one.

    Raises:
        ValueError: for no explainers or an empty data set; for maps and values of a wrong shape or not finite, with the
            name of what made them.

    Example::

        metrics = {"aopc": lambda model, x, y, maps: evaluate.aopc(model, x, maps, target=y).area}
        print(evaluate.compare(model, {"attention": explain.GraphAttention(model)}, test, metrics))
    """
    if target not in ("predicted", "label"):
        raise ValueError(f'target must be "predicted" or "label"; received {target!r}.')
    if not explainers:
        raise ValueError("Expected at least one explainer; received none.")
    values = {name: {metric: [] for metric in metrics} for name in explainers}
    seconds, sizes = {name: [] for name in explainers}, []
    for x, y in batches_of(dataset):
        classes = classes_of(model, x) if target == "predicted" else y
        sizes.append(len(x))
        for name, explainer in explainers.items():
            started = time.perf_counter()
            maps = explainer(x, classes)
            seconds[name].append(time.perf_counter() - started)
            maps = _checked(name, maps, x)
            for metric, measure in metrics.items():
                found = np.asarray(measure(model, x, classes, maps), "float64")
                expect(f"Metric {metric!r} must return a value for each image", (len(x),), found)
                if not np.isfinite(found).all():
                    raise ValueError(f"Metric {metric!r} returned NaN or infinite values for maps of {name!r}.")
                values[name][metric].append(found)
    if not sizes:
        raise ValueError("Expected at least one example; the data set is empty.")
    counted = slice(1, None) if len(sizes) > 1 else slice(None)
    rows = []
    for name in explainers:
        row = {"explainer": name}
        for metric, found in values[name].items():
            found = np.concatenate(found)
            row |= {metric: float(found.mean()), f"{metric} std": float(found.std())}
        time_each = sum(seconds[name][counted]) / sum(sizes[counted])
        rows.append({**row, "images": sum(sizes), "seconds_per_image": time_each})
    return Table(rows)


def _checked(name, maps, x):
    try:
        return image_maps(maps, x)[0]
    except ValueError as error:
        raise ValueError(f"Maps of explainer {name!r}: {error}") from None
