"""How much scores drop when what a map calls relevant is removed; maps may come from anywhere."""

import dataclasses
import functools

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.checks import maps_of_images, positive_int
from keras_capsvit.evaluate.fills import broadcast, filling
from keras_capsvit.evaluate.judge import Judge, batched, streamed
from keras_capsvit.evaluate.regions import RELEVANCE_ORDERS, ranks_around, region_ranks

REGIONS = ("grid", "pixels")


@dataclasses.dataclass(frozen=True)
class PerturbationCurve:
    """What perturbing the regions of images, one after the other, does to the scores of their classes.

    Args:
        curve: array ``(b, steps + 1)``, score of the clean image minus that after k steps; 0 at k = 0.
        area: array ``(b,)``, mean of the curve: AOPC of each image (thesis 3.4.2).
    """

    curve: np.ndarray
    area: np.ndarray


def aopc(
    model,
    x,
    maps,
    *,
    patch=5,
    regions="grid",
    steps=None,
    fill="random",
    bounds=(0.0, 1.0),
    order="descending",
    target=None,
    batch_size=256,
    seed=0,
) -> PerturbationCurve:
    """Area over the perturbation curve (Samek et al. 2017; thesis 3.4.2, Fig. 3.5).

    Regions are replaced one after the other in the order of their relevance, equal ones in reading order.

    Args:
        model: model, which runs compiled; or callable ``x (b, H, W, C) → scores (b, M)``, as it is. What counts are
            scores before a softmax or sigmoid at the end, if there is one, so both twins have the same curve.
        x: images ``(b, H, W, C)``.
        maps: relevance ``(b, H, W)``.
        patch: int, side of a region in pixels.
        regions: ``"grid"``, images are cut from the upper left corner into regions, those at the right and lower edge
            may be smaller, and the relevance of a region is its sum (Samek et al.); or ``"pixels"``, a region lies
            around every pixel and has the relevance of that pixel, so regions overlap (thesis; ``patch`` is odd).
        steps: int, how many regions are replaced; None for all.
        fill: what replaces pixels: ``"random"``, uniform within ``bounds``, which depends on the seed, an image's place
            in ``x`` and the pixel alone; ``"black"``, the lower bound; ``"mean"``, the mean of the image, per channel;
            ``"blur"``, the image after a Gaussian filter of 5 pixels; a float; or an array that broadcasts to ``x``.
        bounds: pair, the range of pixels and of random values: numbers, or sequences of one number per channel.
        order: ``"descending"`` relevance, or ``"ascending"``, under which a good map has a small area.
        target: class id or ids ``(b,)`` whose score counts; None for the predicted class of the clean image.
        batch_size: int, images per pass. It bounds the memory and does not change the result.
        seed: int.

    Returns:
        PerturbationCurve.

    Raises:
        ValueError: for maps that do not fit the images or are not finite, settings out of range, targets that are no
            classes, and scores that are not finite. Pixels outside the bounds of random values are warned of.

    Example::

        curve = evaluate.aopc(model, x, explain.GraphAttention(model)(x), steps=30)
        print(curve.area.mean(), curve.area.std())
    """
    maps, x = maps_of_images(maps, x)
    checks.integer("seed", seed)
    checks.batch_size(batch_size)
    positive_int("patch", patch, min(x.shape[1:3]))
    checks.choice("order", order, RELEVANCE_ORDERS)
    checks.choice("regions", regions, REGIONS)
    if regions == "pixels" and patch % 2 == 0:
        raise ValueError(f"Regions around pixels have an odd side; received regions={regions!r}, patch={patch}.")
    bounds = checks.bounds(bounds)
    ranks, count = (region_ranks if regions == "grid" else ranks_around)(maps, patch, order)
    steps = count if steps is None else steps
    positive_int("steps", steps, count)
    fill = filling(fill, x, bounds, seed)
    judge = Judge(model)
    scores = functools.partial(judge.measured, measure="score")
    ids, clean = judge.of_targets(batched(judge, x, batch_size), target)

    def perturbed(pairs):
        of, step = np.divmod(pairs, steps)
        replaced = ranks[of] <= step[:, None, None]
        return np.where(replaced[..., None], fill[of], x[of]), ids[of]

    after = streamed(scores, perturbed, len(x) * steps, batch_size).reshape(len(x), steps)
    curve = np.concatenate([np.zeros((len(x), 1)), clean[:, None] - after], axis=1)
    return PerturbationCurve(curve, curve.mean(axis=1))


def ablation_drop(model, x, maps, *, mean, size=9, target=None, relative=False, batch_size=256) -> np.ndarray:
    """Drop of a class score when the square around the maximum of a map is replaced by the mean (thesis Table 2.1).

    Args:
        model: model, or callable ``x (b, H, W, C) → scores (b, M)``; its scores before any softmax count.
        x: images ``(b, H, W, C)``.
        maps: relevance ``(b, H, W)``; the first of equal maxima in reading order counts.
        mean: what replaces pixels, an array that broadcasts to an image: the mean image of the data set, as the model
            takes it.
        size: int, side of the square; what sticks out of the image is cut off.
        target: class id or ids ``(b,)``; None for the predicted class.
        relative: bool, divide by the magnitude of the score before.
        batch_size: int, images per pass.

    Returns:
        NumPy array ``(b,)``, score before minus score after.

    Raises:
        ValueError: see ``aopc``; and for scores of 0 if ``relative``.
    """
    maps, x = maps_of_images(maps, x)
    checks.booleans(relative=relative)
    squares = _squares(maps, size)
    mean = broadcast(mean, x, "mean")
    judge = Judge(model)
    scores = functools.partial(judge.measured, measure="score")
    ids, clean = judge.of_targets(batched(judge, x, batch_size), target)

    def ablated(of):
        return np.where(squares[of][..., None], mean[of], x[of]), ids[of]

    drop = clean - streamed(scores, ablated, len(x), batch_size)
    return drop / _magnitude(clean) if relative else drop


def neuron_ablation(neurons, x, maps, *, mean, size=9, relative=False, batch_size=256):
    """How every neuron reacts when the patch of one is ablated (thesis Fig. 2.5 c).

    Maps that tell neurons apart have the highest drop of each row on the diagonal.

    Args:
        neurons: callable ``x (b, H, W, C) → activations (b, n)``.
        x: images ``(b, H, W, C)``.
        maps: relevance ``(n, b, H, W)``, of each neuron.
        mean: see ``ablation_drop``.
        size: int, side of the square around the maximum of a map.
        relative: bool, divide by the magnitude of the activation before.
        batch_size: int, images per pass.

    Returns:
        NumPy array ``(b, n, n)``: row i, column j is the drop of neuron j when the patch of neuron i is ablated.

    Raises:
        ValueError: for maps that fit neither images nor neurons, values that are not finite, and activations of 0 if
            ``relative``.
    """
    checks.booleans(relative=relative)
    checks.function("neurons", neurons, "x (b, H, W, C) → activations (b, n)")
    maps = checks.finite_array(maps, "maps", "(neurons, b, H, W)", 4)
    x = checks.images(x, empty=False)
    squares = [_squares(maps_of_images(of_neuron, x)[0], size) for of_neuron in maps]
    mean = broadcast(mean, x, "mean")
    neurons = _activations(neurons)
    clean = batched(neurons, x, batch_size)
    checks.of_shape("neurons must return an activation for each of the maps", (len(x), len(squares)), clean)
    after = [batched(neurons, np.where(square[..., None], mean, x), batch_size) for square in squares]
    drop = np.stack([clean - activations for activations in after], axis=1)
    return drop / _magnitude(clean)[:, None] if relative else drop


def _squares(maps, size):
    """Masks ``(b, H, W)`` of the squares around the maxima."""
    positive_int("size", size)
    row, column = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[1:])
    near = []
    for centre, length in zip((row, column), maps.shape[1:], strict=True):
        offset = np.arange(length)[None] - centre[:, None] + size // 2
        near.append((offset >= 0) & (offset < size))
    return near[0][:, :, None] & near[1][:, None, :]


def _activations(neurons):
    """A callable from images to finite activations ``(b, n)``, NumPy."""

    def activations(x):
        compiled = isinstance(neurons, keras.Model)
        with checks.running("neurons", x):
            values = _finite(neurons.predict_on_batch(x) if compiled else neurons(ops.convert_to_tensor(x)))
        if values.ndim != 2 or len(values) != len(x):
            raise ValueError(f"neurons must return activations ({len(x)}, n) of images; received {values.shape}.")
        return values

    return activations


def _finite(activations):
    activations = checks.numbers(activations, "activations of neurons")
    if not np.isfinite(activations).all():
        raise ValueError("neurons returned NaN or infinite activations.")
    return activations


def _magnitude(scores):
    if not scores.all():
        raise ValueError("A relative drop needs scores other than 0; received some that are 0. Take relative=False.")
    return np.abs(scores)
