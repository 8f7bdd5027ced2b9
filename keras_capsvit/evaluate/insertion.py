"""How the scores of classes change while pixels are deleted or inserted in the order of their relevance."""

import dataclasses
import functools

import numpy as np

from keras_capsvit import checks
from keras_capsvit.checks import maps_of_images, positive_int
from keras_capsvit.evaluate.fills import filling
from keras_capsvit.evaluate.judge import MEASURES, Judge, batched, streamed
from keras_capsvit.evaluate.regions import RELEVANCE_ORDERS, region_ranks


@dataclasses.dataclass(frozen=True)
class ScoreCurve:
    """What counts of the classes of images, over the share of their pixels that was changed.

    Args:
        shares: array ``(k,)`` in [0, 1], ascending.
        curve: array ``(b, k)``, for each image what was measured at each share.
        area: array ``(b,)``, area under the curve by the trapezoidal rule, over the range of the shares: the mean
            height of the curve of each image. At a single share it is the value there.
    """

    shares: np.ndarray
    curve: np.ndarray
    area: np.ndarray


def deletion(
    model,
    x,
    maps,
    *,
    fill="black",
    steps=None,
    measure="probability",
    bounds=(0.0, 1.0),
    order="descending",
    target=None,
    batch_size=256,
    seed=0,
) -> ScoreCurve:
    """Scores while the most relevant pixels are replaced first (RISE, Petsiuk et al. 2018): low areas are good.

    Equally relevant pixels are changed in reading order.

    Args:
        model: see ``aopc``.
        x: images ``(b, H, W, C)``.
        maps: relevance ``(b, H, W)``.
        fill: what replaces pixels, see ``aopc``.
        steps: int, in how many steps of equally many pixels (up to one) all are changed; None for H, so that a step
            changes as many pixels as a row has (as the paper's code does).
        measure: what counts of the class: its ``"probability"``, the softmax of the scores, or the sigmoid of a model
            that ends in one (as in the paper); its ``"score"``, before these; or ``"accuracy"``, 1 where its score is
            the highest and else 0.
        bounds: pair, the range of pixels, see ``aopc``.
        order: ``"descending"`` relevance, or ``"ascending"``.
        target: class id or ids ``(b,)`` that count; None for the predicted class of the image.
        batch_size: int, images of all steps together per pass. It bounds the memory and does not change the result.
        seed: int, of random values.

    Returns:
        ScoreCurve of ``steps + 1`` shares, from 0 to 1.

    Raises:
        ValueError: see ``aopc``.

    Example::

        print(evaluate.deletion(model, x, explain.Saliency(model)(x)).area.mean())
    """
    maps, x = maps_of_images(maps, x)
    checks.integer("seed", seed)
    fill = filling(fill, x, checks.bounds(bounds), seed)
    return _curve(model, x, maps, x, fill, steps, measure, order, target, batch_size)


def insertion(
    model,
    x,
    maps,
    *,
    fill="blur",
    steps=None,
    measure="probability",
    bounds=(0.0, 1.0),
    order="descending",
    target=None,
    batch_size=256,
    seed=0,
) -> ScoreCurve:
    """Scores while the most relevant pixels are put first into an image of none (RISE, Petsiuk et al. 2018).

    High areas are good: few pixels suffice. See ``deletion`` for all else.

    Args:
        model: see ``aopc``.
        x: images ``(b, H, W, C)``.
        maps: relevance ``(b, H, W)``.
        fill: what there is before, see ``aopc``.
        steps: int, see ``deletion``.
        measure: see ``deletion``.
        bounds: pair, the range of pixels, see ``aopc``.
        order: ``"descending"`` relevance, or ``"ascending"``.
        target: class id or ids ``(b,)`` that count; None for the predicted class of the image.
        batch_size: int, images of all steps together per pass.
        seed: int, of random values.

    Returns:
        ScoreCurve of ``steps + 1`` shares, from 0 to 1.

    Raises:
        ValueError: see ``aopc``.
    """
    maps, x = maps_of_images(maps, x)
    checks.integer("seed", seed)
    fill = filling(fill, x, checks.bounds(bounds), seed)
    return _curve(model, x, maps, fill, x, steps, measure, order, target, batch_size)


def _curve(model, x, maps, start, end, steps, measure, order, target, batch_size):
    """ScoreCurve of images on the way from the first to the last."""
    checks.batch_size(batch_size)
    checks.choice("order", order, RELEVANCE_ORDERS)
    checks.choice("measure", measure, MEASURES)
    ranks, pixels = region_ranks(maps, 1, order)
    steps = positive_int("steps", min(x.shape[1], pixels) if steps is None else steps, pixels)
    changed = np.arange(steps + 1) * pixels // steps
    judge = Judge(model)
    ids, _ = judge.of_targets(batched(judge, x, batch_size), target)

    def between(pairs):
        of, step = np.divmod(pairs, steps + 1)
        return np.where((ranks[of] < changed[step, None, None])[..., None], end[of], start[of]), ids[of]

    values = functools.partial(judge.measured, measure=measure)
    curve = streamed(values, between, len(x) * (steps + 1), batch_size).reshape(len(x), steps + 1)
    return score_curve(changed / pixels, curve)


def score_curve(shares, curve):
    """ScoreCurve of shares ``(k,)`` and values ``(b, k)``, with its area."""
    width = shares[-1] - shares[0]
    area = np.trapezoid(curve, shares, axis=1) / width if len(shares) > 1 else curve[:, 0]
    return ScoreCurve(shares, curve, area)
