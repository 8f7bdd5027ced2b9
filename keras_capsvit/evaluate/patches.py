"""How well models withstand corrupted and adversarial patches (thesis chapter 7)."""

import dataclasses
import functools
import time

import numpy as np

from keras_capsvit import checks, taps
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.progress import Progress
from keras_capsvit.evaluate.table import Table
from keras_capsvit.patches import PatchGrid, apply_patch


def classified_correctly(models, dataset, *, batch_size=128):
    """Examples that all models classify correctly, which are those that fooling rates are of.

    Args:
        models: dict from names to models, or callables ``x (b, H, W, C) → scores (b, M)``.
        dataset: see ``robustness``.
        batch_size: int >= 1, of a pair of arrays and of single examples.

    Returns:
        List of batches ``(x, y)``, arrays; without batches of which none is left.

    Raises:
        ValueError: for no models, and what is none; and for a data set that is none.
    """
    models = checks.named("models", models, "models")
    if not models:
        raise ValueError("Expected at least one model; received none.")
    judges, batches, examples = [Judge(model) for model in models.values()], [], 0
    for x, y in checks.batches_of(dataset, batch_size):
        examples += len(x)
        right = np.all([judge.correct(x, y) for judge in judges], axis=0)
        if right.any():
            batches.append((x[right], y[right]))
    if not examples:
        raise ValueError("Expected at least one example; the data set is empty.")
    return batches


def fooling_rate(models, perturb, dataset, *, batch_size=128, work=None) -> Table:
    """Share of the images classified correctly by all models that each misclassifies when perturbed (thesis 7.3).

    Args:
        models: dict from names to models, or callables ``x (b, H, W, C) → scores (b, M)``.
        perturb: callable ``(model, x, y) → images``: an attack, made on every model anew; or, with ``model`` and ``y``
            not looked at, a natural corruption.
        dataset: see ``robustness``.
        batch_size: int >= 1, of a pair of arrays and of single examples.
        work: path of a folder that what was measured of each image is kept in, so that an interrupted call goes on; see
            ``robustness``.

    Returns:
        Table, a row for each model: ``model``, ``examples``, ``fooling_rate`` (NaN without examples) and
        ``seconds_per_example``; if ``perturb`` has a method ``run`` like PatchAttack's, also ``mean_iterations`` and
        ``median_iterations`` of those fooled.

    Example::

        noise = lambda model, x, y: corrupt_patches(x, grid, grid.draw(len(x), 16), "gaussian_noise")
        print(evaluate.fooling_rate({"vit": vit, "resnet": resnet}, noise, test))
    """
    taps.check_no_model("perturb", perturb, "(model, x, y) → images", "Give an attack, such as attacks.PatchAttack(4).")
    batches = classified_correctly(models, dataset, batch_size=batch_size)
    judges, settings = {name: Judge(model) for name, model in models.items()}, {"models": models, "perturb": perturb}

    def measure(name, x, y, start):
        started = time.perf_counter()
        numbers = {"numbers": start + np.arange(len(x))} if hasattr(perturb, "prepare") else {}
        result = perturb.run(models[name], x, y, **numbers) if hasattr(perturb, "run") else None
        images = checks.images(perturb(models[name], x, y, **numbers) if result is None else result.images)
        checks.of_shape("perturb must return an image for each", x.shape, images)
        measured = {"fooled": judges[name].classes(images) != y}
        if hasattr(result, "iterations"):
            measured["iterations"] = np.asarray(result.iterations)
        return {**measured, "seconds": np.full(len(x), (time.perf_counter() - started) / len(x))}

    total = len(models) * len(batches)
    with Progress(work, "fooling_rate", settings, judges=judges.values(), total=total) as progress:
        for name in models:
            count = 0
            for x, y in batches:
                progress.batch(functools.partial(measure, name, x, y, count), x, y, name)
                count += len(x)
    examples, measured = sum(len(y) for _, y in batches), progress.results()
    rows = []
    for number, name in enumerate(models):
        part = slice(number * examples, (number + 1) * examples)
        fooled = measured["fooled"][part] if batches else np.zeros(0, bool)
        row = {"model": name, "examples": examples, "fooling_rate": _share([fooled])}
        if "iterations" in measured or (not batches and hasattr(perturb, "run")):
            iterations = measured["iterations"][part][fooled] if batches else np.zeros(0)
            for kind in ("mean", "median"):
                row[f"{kind}_iterations"] = float(getattr(np, kind)(iterations)) if iterations.size else float("nan")
        seconds = float(measured["seconds"][part].mean()) if batches else float("nan")
        rows.append({**row, "seconds_per_example": seconds})
    return Table(rows)


def position_map(model, attack, dataset, grid, *, batch_size=128, work=None) -> np.ndarray:
    """Fooling rate of a patch at every position of a grid (thesis Fig. 7.6).

    Args:
        model: model, or callable ``x (b, H, W, C) → scores (b, M)``.
        attack: PatchAttack; its positions are set.
        dataset: see ``robustness``.
        grid: PatchGrid.
        batch_size: int >= 1, of a pair of arrays and of single examples.
        work: path of a folder that what was measured of each image is kept in, so that an interrupted call goes on; see
            ``robustness``.

    Returns:
        Array ``(rows, columns)`` of floats in [0, 1], of the images classified correctly; NaN if there are none.

    Raises:
        ValueError: for an attack or a grid of another type, and what the attack refuses.
    """
    if not isinstance(grid, PatchGrid) or not hasattr(attack, "positions"):
        kinds = type(attack).__name__, type(grid).__name__
        raise ValueError(f"Expected a PatchAttack and a PatchGrid; received {kinds[0]} and {kinds[1]}.")
    batches = classified_correctly({"model": model}, dataset, batch_size=batch_size)
    judge, settings = Judge(model), {"model": model, "attack": attack, "grid": grid}

    def measure(position, x, y):
        there = dataclasses.replace(attack, positions=position[None])
        return {"fooled": judge.classes(there(model, x, y)) != y}

    total = len(grid.positions) * len(batches)
    with Progress(work, "position_map", settings, judges=[judge], total=total) as progress:
        for position in grid.positions:
            for x, y in batches:
                progress.batch(functools.partial(measure, position, x, y), x, y, str(position))
    fooled = progress.results().get("fooled", np.zeros(0)).reshape(len(grid.positions), -1)
    rates = fooled.mean(axis=1) if fooled.size else np.full(len(fooled), np.nan)
    return rates.reshape(grid.rows, grid.columns)


def shift_table(model, x, y, result, shifts) -> Table:
    """Whether patches still fool a model that are moved on the image they were made on (thesis Table 7.4).

    Args:
        model: model, or callable ``x (b, H, W, C) → scores (b, M)``.
        x: clean images ``(b, H, W, C)``, all classified correctly.
        y: class ids ``(b,)``.
        result: PatchResult for them.
        shifts: list of pairs of ints ``(dy, dx)``, pixels downwards and to the right.

    Returns:
        Table, a row for each shift: ``dy``, ``dx``, ``examples`` and ``fooling_rate``, of the images on which the moved
        patches still lie wholly; NaN if there are none.
    """
    x, judge, rows = checks.images(x), Judge(model), []
    y = checks.class_ids(y, len(x))
    shifts = checks.integers("shifts", shifts, (None, 2), "(n, 2), pixels (dy, dx)", low=None)
    _check_result(result, x)
    room = np.array(x.shape[1:3]) - result.patches.shape[-3:-1]
    for shift in shifts.tolist():
        moved = result.positions + np.array(shift)
        fits = np.all((moved >= 0) & (moved <= room), axis=(1, 2))
        patches = result.patches[fits] if result.patches.ndim == 5 else result.patches
        fooled = ~judge.correct(apply_patch(x[fits], patches, moved[fits]), y[fits])
        rows.append({"dy": shift[0], "dx": shift[1], "examples": int(fits.sum()), "fooling_rate": _share([fooled])})
    return Table(rows)


def patch_transfer(models, x, y, results) -> Table:
    """Whether patches fool other models on the same image, and the same model on other images (Tables 7.7, 7.8).

    Args:
        models: dict from names to models, or callables ``x (b, H, W, C) → scores (b, M)``.
        x: clean images ``(b, H, W, C)``, all classified correctly by all models.
        y: class ids ``(b,)``.
        results: dict from the same names to PatchResult for these images, of patches for each.

    Returns:
        Table, a row for each model that patches were made on: ``made_on``; its fooling rates on all, by name; and
        ``other_images``, the fooling rate on it with the patches of each image put on the next image.

    Raises:
        ValueError: for results of universal patches, which are those of all images.
    """
    models, results = checks.named("models", models, "models"), checks.named("results", results, "PatchResults")
    if not models or not set(results) <= set(models):
        raise ValueError(f"Expected results of the models {list(models)}; received results of {list(results)}.")
    x, judges, rows = checks.images(x), {name: Judge(model) for name, model in models.items()}, []
    y = checks.class_ids(y, len(x))
    for name, result in results.items():
        _check_result(result, x)
        if result.patches.ndim != 5:
            raise ValueError("Expected results with patches for each image; received a universal patch.")
        there = {target: _share([~judge.correct(result.images, y)]) for target, judge in judges.items()}
        moved = apply_patch(x, np.roll(result.patches, 1, axis=0), np.roll(result.positions, 1, axis=0))
        rows.append({"made_on": name, **there, "other_images": _share([~judges[name].correct(moved, y)])})
    return Table(rows)


def _check_result(result, x):
    """Refuse what is no PatchResult for images."""
    parts = ("images", "patches", "positions")
    if not all(hasattr(result, part) for part in parts) or np.shape(result.images) != x.shape:
        kind = f"one for images of {np.shape(result.images)}" if hasattr(result, "images") else type(result).__name__
        raise ValueError(f"Expected the PatchResult of an attack on these images, {x.shape}; received {kind}.")


def _share(fooled):
    fooled = np.concatenate([[], *fooled])
    return float(fooled.mean()) if fooled.size else float("nan")
