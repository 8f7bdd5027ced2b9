"""Whether explanations depend on what they should depend on: the model's weights and the class."""

import keras
import numpy as np
from scipy.stats import rankdata

from keras_capsvit import checks, taps
from keras_capsvit.checks import image_maps, maps_of_images
from keras_capsvit.evaluate.judge import Judge


def rank_correlation(first, second, *, absolute=False):
    """Spearman rank correlation of maps, image by image.

    Args:
        first: maps ``(b, H, W)``.
        second: maps ``(b, H, W)``.
        absolute: bool, compare magnitudes.

    Returns:
        NumPy array ``(b,)`` in [-1, 1]; 0 where one of the two maps is constant.

    Raises:
        ValueError: for maps of different shapes, or not finite.
    """
    checks.booleans(absolute=absolute)
    first, second = image_maps(first), image_maps(second)
    checks.of_shape("Expected maps to compare of one shape", first.shape, second)
    ranks = []
    for maps in (first, second):
        flat = (np.abs(maps) if absolute else maps).reshape(len(maps), -1)
        rank = rankdata(flat, axis=1)
        ranks.append(rank - rank.mean(axis=1, keepdims=True))
    size = np.sqrt(np.prod([np.square(rank).sum(axis=1) for rank in ranks], axis=0))
    return np.prod(ranks, axis=0).sum(axis=1) / np.where(size > 0, size, 1)


def parameter_randomization(make_explainer, model, x, *, target=None, cascading=True, absolute=False, seed=0):
    """Similarity of explanations before and after layers lose what they learned (Adebayo et al. 2018).

    From the top layer to the bottom one, the values of every trainable weight of a layer are permuted; then the same
    classes are explained again. What stays similar does not explain the model. The weights are restored afterwards,
    whatever happens.

    Args:
        make_explainer: callable ``model → explainer``, which is called after each change.
        model: keras.Model.
        x: images ``(b, H, W, C)``.
        target: class id or ids ``(b,)``; None for what the unchanged model predicts.
        cascading: bool, whether layers above stay randomised, or one layer at a time is.
        absolute: bool, compare magnitudes.
        seed: int.

    Returns:
        dict from names of layers, top first, to rank correlations ``(b,)`` with the maps of the unchanged model.

    Raises:
        ValueError: for a model without trainable weights, and what the explainer refuses.

    Example::

        evaluate.parameter_randomization(explain.Saliency, model, x)
    """
    checks.booleans(cascading=cascading, absolute=absolute)
    checks.integer("seed", seed)
    checks.function("make_explainer", make_explainer, "from a model to an explainer")
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a keras.Model, whose weights are permuted; received {type(model).__name__}.")
    layers = [layer for layer in reversed(model.layers) if layer.trainable_variables]
    if not layers:
        raise ValueError(f"Expected a model with trainable weights; {model.name} has none.")
    x = checks.images(x, empty=False)
    judge = Judge(model)
    target = judge.of_targets(judge(x), target)[0]
    explainer = taps.check_explainer("What make_explainer returns", make_explainer(model))
    original = explainer(x, target)
    random = np.random.default_rng(seed)
    before = [(variable, variable.numpy()) for layer in layers for variable in layer.trainable_variables]
    similarities = {}
    try:
        for layer in layers:
            if not cascading:
                _restore(before)
            for variable in layer.trainable_variables:
                variable.assign(random.permutation(variable.numpy().ravel()).reshape(variable.shape))
            similarities[layer.name] = rank_correlation(original, make_explainer(model)(x, target), absolute=absolute)
    finally:
        _restore(before)
    return similarities


def class_sensitivity(explainer, x, first, second, *, absolute=False):
    """Similarity of the explanations of two classes, such as the most and the least likely one.

    Args:
        explainer: callable ``(x, target) → maps (b, H, W)``.
        x: images ``(b, H, W, C)``.
        first: class id or ids ``(b,)``.
        second: class id or ids ``(b,)``.
        absolute: bool, compare magnitudes.

    Returns:
        NumPy array ``(b,)``, rank correlations: 1 for explanations that do not tell the classes apart.

    Raises:
        ValueError: see ``rank_correlation``, and what the explainer refuses.
    """
    taps.check_explainer("explainer", explainer)
    x = checks.images(x, empty=False)
    first, second = (checks.targets(target, len(x)) for target in (first, second))
    return rank_correlation(explainer(x, first), explainer(x, second), absolute=absolute)


def conservation(explainer, scores, x, target=None):
    """How much of a score its relevance sums to; 1 if relevance is conserved.

    Args:
        explainer: callable ``(x, target) → maps (b, H, W)``.
        scores: model, or callable ``x (b, H, W, C) → scores (b, M)``: what the explainer explains, before any softmax.
        x: images ``(b, H, W, C)``.
        target: class id or ids ``(b,)``; None for the predicted class.

    Returns:
        NumPy array ``(b,)``, sum of relevance over score.

    Raises:
        ValueError: for scores of 0, targets that are no classes, maps that are not finite.
    """
    taps.check_explainer("explainer", explainer)
    x, judge = checks.images(x, empty=False), Judge(scores)
    ids, score = judge.of_targets(judge(x), target)
    if not score.all():
        raise ValueError(f"Conservation needs scores other than 0; those of images {np.flatnonzero(score == 0)} are 0.")
    return maps_of_images(explainer(x, ids), x)[0].sum(axis=(1, 2), dtype="float64") / score


def _restore(before):
    for variable, values in before:
        variable.assign(values)
