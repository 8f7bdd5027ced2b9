"""Whether maps say what small changes of images do to scores, and change little with them (Yeh et al. 2019)."""

import functools

import numpy as np

from keras_capsvit import checks, taps
from keras_capsvit.checks import image_maps, positive_int
from keras_capsvit.evaluate.fills import filling, limits_of
from keras_capsvit.evaluate.judge import Judge, batched, streamed

PERTURBATIONS = ("gaussian", "square")


def infidelity(
    model,
    x,
    maps,
    *,
    perturbations="gaussian",
    samples=50,
    noise=0.2,
    size=4,
    fill="black",
    normalize=False,
    measure="score",
    bounds=(0.0, 1.0),
    target=None,
    batch_size=256,
    seed=0,
) -> np.ndarray:
    """How far relevance is from what perturbations do to the score of a class (Yeh et al. 2019): low values are good.

    ``E_I[(I · Φ(x) - (f(x) - f(x - I)))²]``, the mean over samples of a perturbation I. Relevance is that of a unit of
    a pixel, as gradients are: maps that share out the score, such as those of LRP, belong divided by the image.

    Args:
        model: see ``aopc``.
        x: images ``(b, H, W, C)``.
        maps: relevance Φ, ``(b, H, W, C)``, or ``(b, H, W)``, which counts for each channel alike.
        perturbations: ``"gaussian"``, I is noise in all pixels; ``"square"``, I is what a square at a random place
            inside the image loses when it is replaced; or an array ``(samples, b, H, W, C)`` of perturbations.
        samples: int, of what is drawn, which depends on the seed, the sample and the image's place in ``x``.
        noise: float > 0, standard deviation of the noise, relative to the range of ``bounds``.
        size: int, side of the square.
        fill: what replaces the pixels of the square, see ``aopc``.
        normalize: bool, whether maps are scaled by what fits best, for each image the factor
            ``E[I · Φ(x) (f(x) - f(x - I))] / E[(I · Φ(x))²]``, so that their unit does not matter.
        measure: what counts of the class, f: its ``"score"`` or ``"probability"``, see ``deletion``.
        bounds: pair, the range of pixels, see ``aopc``.
        target: class id or ids ``(b,)`` that count; None for the predicted class of the image.
        batch_size: int, perturbed images per pass. It bounds the memory and does not change the result.
        seed: int.

    Returns:
        NumPy array ``(b,)``.

    Raises:
        ValueError: see ``aopc``.

    Example::

        evaluate.infidelity(model, x, explain.Saliency(model, channels=True)(x), normalize=True)
    """
    x = checks.images(x, empty=False)
    relevance = _relevance(maps, x)
    checks.integer("seed", seed)
    checks.booleans(normalize=normalize)
    checks.choice("measure", measure, ("score", "probability"))
    changes, samples = _changes(perturbations, x, samples, noise, size, fill, checks.bounds(bounds), seed)
    judge = Judge(model)
    ids, _ = judge.of_targets(batched(judge, x, batch_size), target)
    products = np.zeros(len(x) * samples)

    def perturbed(pairs):
        of, sample = np.divmod(pairs, samples)
        change = changes(of, sample)
        products[pairs] = np.einsum("bhwc,bhwc->b", change, relevance[of], dtype="float64")
        return x[of] - change, ids[of]

    values = functools.partial(judge.measured, measure=measure)
    clean = streamed(values, lambda of: (x[of], ids[of]), len(x), batch_size)
    drops = clean[:, None] - streamed(values, perturbed, len(products), batch_size).reshape(len(x), samples)
    products = products.reshape(len(x), samples)
    if normalize:
        squares = np.square(products).sum(axis=1)
        products *= ((products * drops).sum(axis=1) / np.where(squares > 0, squares, 1))[:, None]
    return np.square(products - drops).mean(axis=1)


def max_sensitivity(
    explainer, x, target, *, radius=0.02, samples=10, bounds=(0.0, 1.0), batch_size=256, seed=0
) -> np.ndarray:
    """How much maps change in a small neighbourhood of the image (Yeh et al. 2019): low values are good.

    ``max_d ‖Φ(x + d) - Φ(x)‖ / ‖Φ(x)‖`` over random d, uniform in the ball ``‖d‖∞ <= r``; a lower bound of the maximum
    over the ball, which rises with the number of samples. Neighbours stay within ``bounds``, like images.

    Args:
        explainer: callable ``(x, target) → maps (b, H, W)``.
        x: images ``(b, H, W, C)``.
        target: class id or ids ``(b,)`` that are explained, the same of the image and its neighbours.
        radius: float > 0, r relative to the range of ``bounds``.
        samples: int, neighbours of each image, which depend on the seed, the sample and the image's place in ``x``.
        bounds: pair, the range of pixels, see ``aopc``.
        batch_size: int, images per call of the explainer.
        seed: int.

    Returns:
        NumPy array ``(b,)``.

    Raises:
        ValueError: for maps of zeros, which nothing is relative to, settings out of range, what is no map of each
            image, and what the explainer refuses.

    Example::

        evaluate.max_sensitivity(explain.SmoothGrad(explain.Saliency(model)), x, y)
    """
    taps.check_explainer("explainer", explainer)
    x = checks.images(x, empty=False)
    ids = checks.targets(target, len(x))
    checks.number("radius", radius, 0, without=(0,))
    positive_int("samples", samples)
    checks.integer("seed", seed)
    low, high = limits_of(x, checks.bounds(bounds))
    reach = np.float32(radius * (high - low))
    low, high = np.minimum(x, low), np.maximum(x, high)  # what lies outside already stays there
    explained = functools.partial(_explained, explainer)
    clean = streamed(explained, lambda of: (x[of], ids[of]), len(x), batch_size)
    norms = np.linalg.norm(clean, axis=(1, 2))
    if not norms.all():
        raise ValueError(f"Sensitivity needs maps other than 0; those of images {np.flatnonzero(norms == 0)} are 0.")

    def neighbours(pairs):
        of, sample = np.divmod(pairs, samples)
        moves = [_draw(seed, *each).uniform(-1, 1, x.shape[1:]) for each in zip(of, sample, strict=True)]
        return (x[of] + reach * np.stack(moves).astype("float32")).clip(low[of], high[of]), of

    def distances(images, of):
        return np.linalg.norm(explained(images, ids[of]) - clean[of], axis=(1, 2))

    changes = streamed(distances, neighbours, len(x) * samples, batch_size).reshape(len(x), samples)
    return changes.max(axis=1) / norms


def _relevance(maps, x):
    """Relevance ``(b, H, W, C or 1)`` of images, of which maps are that of every channel."""
    maps = checks.numbers(maps, "maps")
    if maps.ndim == 4:
        maps = checks.finite_array(maps, "maps", "(b, H, W) or (b, H, W, C)", 4)
        checks.of_shape("Expected relevance of each pixel of the images", x.shape, maps)
        return maps
    return checks.maps_of_images(maps, x)[0][..., None]


def _changes(perturbations, x, samples, noise, size, fill, bounds, seed):
    """A callable from images ``(k,)`` and samples ``(k,)``, ints, to perturbations ``(k, H, W, C)``; and how many."""
    positive_int("samples", samples)
    checks.number("noise", noise, 0, without=(0,))
    positive_int("size", size)
    checks.limits(bounds, x.shape[-1])
    if not isinstance(perturbations, str):
        axes = "(samples, b, H, W, C)"
        array = checks.finite_array(perturbations, "perturbations", axes, 5)
        checks.of_shape("Expected perturbations of the images", (len(array), *x.shape), array)
        return (lambda of, sample: array[sample, of]), len(array)
    checks.choice("perturbations", perturbations, PERTURBATIONS)
    if perturbations == "gaussian":
        low, high = limits_of(x, bounds, stacklevel=4)
        scale = np.float32(noise * (high - low))

        def gaussian(of, sample):
            draws = [_draw(seed, *each) for each in zip(of, sample, strict=True)]
            return scale * np.stack([each.standard_normal(x.shape[1:], "float32") for each in draws])

        return gaussian, samples
    positive_int("size", size, min(x.shape[1:3]))
    lost = x - filling(fill, x, bounds, seed)
    most = np.array(x.shape[1:3]) - size + 1

    def squares(of, sample):
        change = np.zeros((len(of), *x.shape[1:]), "float32")
        for k, each in enumerate(zip(of, sample, strict=True)):
            row, column = _draw(seed, *each).integers(most)
            square = np.s_[row : row + size, column : column + size]
            change[k][square] = lost[of[k]][square]
        return change

    return squares, samples


def _draw(seed, image, sample):
    return np.random.default_rng([seed, image, sample])


def _explained(explainer, x, ids):
    maps = image_maps(explainer(x, ids)).astype("float64")
    checks.of_shape("Expected a map of each image", x.shape[:3], maps)
    return maps
