"""How much scores drop when what a map calls relevant is removed; maps may come from anywhere."""

import dataclasses
import warnings

import keras
import numpy as np
from keras import ops
from scipy import ndimage

from keras_capsvit import checks
from keras_capsvit.checks import maps_of_images, positive_int
from keras_capsvit.evaluate.judge import Judge

ORDERS = ("descending", "ascending")
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
):
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
            in ``x`` and the pixel alone; a float; or an array that broadcasts to ``x``.
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
    checks.choice("order", order, ORDERS)
    checks.choice("regions", regions, REGIONS)
    if regions == "pixels" and patch % 2 == 0:
        raise ValueError(f"Regions around pixels have an odd side; received regions={regions!r}, patch={patch}.")
    bounds = checks.bounds(bounds)
    ranks, count = (_ranks if regions == "grid" else _ranks_around)(maps if order == "ascending" else -maps, patch)
    steps = count if steps is None else steps
    positive_int("steps", steps, count)
    fill = _filling(fill, x, bounds, seed)
    judge = Judge(model)
    ids, clean = judge.of_targets(_batched(judge, x, batch_size), target)

    def perturbed(pairs):
        of, step = np.divmod(pairs, steps)
        replaced = ranks[of] <= step[:, None, None]
        return np.where(replaced[..., None], fill[of], x[of]), ids[of]

    scores = _streamed(judge, perturbed, len(x) * steps, batch_size).reshape(len(x), steps)
    curve = np.concatenate([np.zeros((len(x), 1)), clean[:, None] - scores], axis=1)
    return PerturbationCurve(curve, curve.mean(axis=1))


def ablation_drop(model, x, maps, *, mean, size=9, target=None, relative=False, batch_size=256):
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
    mean = _broadcast(mean, x, "mean")
    judge = Judge(model)
    ids, clean = judge.of_targets(_batched(judge, x, batch_size), target)

    def ablated(of):
        return np.where(squares[of][..., None], mean[of], x[of]), ids[of]

    drop = clean - _streamed(judge, ablated, len(x), batch_size)
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
    squares = [_squares(maps_of_images(one, x)[0], size) for one in maps]
    mean = _broadcast(mean, x, "mean")
    neurons = _activations(neurons)
    clean = _batched(neurons, x, batch_size)
    checks.of_shape("neurons must return an activation for each of the maps", (len(x), len(squares)), clean)
    after = [_batched(neurons, np.where(one[..., None], mean, x), batch_size) for one in squares]
    drop = np.stack([clean - one for one in after], axis=1)
    return drop / _magnitude(clean)[:, None] if relative else drop


def _ranks(maps, patch):
    """Of each pixel, the place of its region when regions are sorted by their sums, ``(b, H, W)``; and their number."""
    rows, columns = (np.arange(size) // patch for size in maps.shape[1:])
    sums = np.add.reduceat(maps.astype("float64"), np.arange(0, maps.shape[1], patch), axis=1)
    sums = np.add.reduceat(sums, np.arange(0, maps.shape[2], patch), axis=2)
    flat = sums.reshape(len(maps), -1)
    ranks = np.empty(flat.shape, "int32")
    places = np.arange(flat.shape[1], dtype="int32")[None]
    np.put_along_axis(ranks, np.argsort(flat, axis=1, kind="stable"), places, axis=1)
    return ranks.reshape(sums.shape)[:, rows][:, :, columns], flat.shape[1]


def _ranks_around(maps, patch):
    """Of each pixel, the place of the first pixel in order whose region it lies in; and the number of pixels."""
    ranks, count = _ranks(maps, 1)
    return ndimage.minimum_filter(ranks, size=(1, patch, patch), mode="nearest"), count


def _filling(fill, x, bounds, seed):
    if isinstance(fill, str):
        if fill != "random":
            raise ValueError(f'fill must be "random", a float or an array; received {fill!r:.60}.')
        if not checks.within(x, bounds):
            warnings.warn(
                f"Random values are drawn within bounds={bounds}, but pixels lie in [{x.min()}, {x.max()}]; give the "
                "bounds that images have, else what is filled in looks like none.",
                stacklevel=3,
            )
        low, high = checks.limits(bounds, x.shape[-1])
        return np.random.default_rng(seed).uniform(low, high, x.shape).astype("float32")
    return _broadcast(fill, x, "fill")


def _broadcast(values, x, name):
    values = checks.finite(checks.numbers(values, name).astype("float32"), name)
    try:
        return np.broadcast_to(values, x.shape)
    except ValueError:
        raise ValueError(f"Expected {name} that broadcasts to images {x.shape}; received {values.shape}.") from None


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


def _batched(function, x, batch_size):
    """Values of all images."""
    checks.batch_size(batch_size)
    return np.concatenate([function(x[first : first + batch_size]) for first in range(0, len(x), batch_size)])


def _streamed(judge, images_of, count, batch_size):
    """Scores ``(count,)`` of images that are made batch by batch, all of one size so that one trace serves them.

    ``images_of`` goes from indices ``(k,)`` to images and class ids ``(k,)``.
    """
    size = min(batch_size, count)
    scores = []
    for first in range(0, count, size):
        images, ids = images_of(np.arange(first, first + size).clip(max=count - 1))
        scores.append(judge(images)[np.arange(size), ids])
    return np.concatenate(scores)[:count].astype("float64")


def _finite(activations):
    activations = checks.numbers(activations, "activations of neurons")
    if not np.isfinite(activations).all():
        raise ValueError("neurons returned NaN or infinite activations.")
    return activations


def _magnitude(scores):
    if not scores.all():
        raise ValueError("A relative drop needs scores other than 0; received some that are 0. Take relative=False.")
    return np.abs(scores)
