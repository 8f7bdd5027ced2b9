"""Remove and debias: pixels are replaced by what their neighbours say, which tells no class where they were."""

import functools

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from keras_capsvit import checks
from keras_capsvit.checks import maps_of_images
from keras_capsvit.evaluate.fills import limits_of
from keras_capsvit.evaluate.insertion import ScoreCurve, score_curve
from keras_capsvit.evaluate.judge import MEASURES, Judge, batched, streamed
from keras_capsvit.evaluate.regions import RELEVANCE_ORDERS, region_ranks

# Of the neighbours of a pixel that come after it in reading order: rows below, columns to the right, weight.
_NEIGHBOURS = ((0, 1, 1 / 6), (1, 0, 1 / 6), (1, 1, 1 / 12), (1, -1, 1 / 12))
_PIXELS = 2**14  # of images that are imputed together, on which the memory depends


def road(
    model,
    x,
    maps,
    *,
    shares=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    order="descending",
    measure="accuracy",
    noise=0.01,
    bounds=(0.0, 1.0),
    target=None,
    batch_size=256,
    seed=0,
) -> ScoreCurve:
    """Scores after the most or least relevant pixels are imputed: ROAD (Rong et al. 2022).

    Every removed pixel becomes the weighted mean of its neighbours, those beside it by 1/6 and the diagonal ones by
    1/12 (at the edge, of those that there are), which is a sparse linear system where neighbours are removed, too; and
    a little Gaussian noise. Unlike black regions, that does not tell which pixels were removed. Equally relevant pixels
    are removed in reading order.

    Args:
        model: see ``aopc``.
        x: images ``(b, H, W, C)``.
        maps: relevance ``(b, H, W)``.
        shares: numbers in (0, 1), ascending, of the pixels that are removed, rounded down to whole pixels.
        order: ``"descending"``, most relevant first (MoRF): low curves are good; or ``"ascending"``, least relevant
            first (LeRF): high curves are good.
        measure: what counts, see ``deletion``: of the ``"accuracy"``, the mean over images is the paper's curve.
        noise: float >= 0, standard deviation of the noise, relative to the range of ``bounds``. It depends on the seed,
            an image's place in ``x`` and the pixel alone.
        bounds: pair, the range of pixels, see ``aopc``.
        target: class id or ids ``(b,)`` that count, such as labels; None for the predicted class of the image.
        batch_size: int, images of all shares together per pass. It bounds the memory and does not change the result.
        seed: int, of the noise.

    Returns:
        ScoreCurve.

    Raises:
        ValueError: see ``aopc``; and for shares that leave no pixel, or remove none.

    Example::

        most = evaluate.road(model, x, maps, target=y).curve.mean(axis=0)
        least = evaluate.road(model, x, maps, target=y, order="ascending").curve.mean(axis=0)
    """
    maps, x = maps_of_images(maps, x)
    checks.integer("seed", seed)
    checks.batch_size(batch_size)
    checks.choice("order", order, RELEVANCE_ORDERS)
    checks.choice("measure", measure, MEASURES)
    checks.number("noise", noise, 0)
    low, high = limits_of(x, checks.bounds(bounds))
    ranks, pixels = region_ranks(maps, 1, order)
    shares = checks.numbers(shares, "shares").astype("float64")
    removed = np.floor(shares * pixels + 1e-6)
    if shares.ndim != 1 or not shares.size or not ((np.diff(shares, prepend=0) > 0) & (removed < pixels)).all():
        raise ValueError(f"shares must be ascending numbers above 0 and below 1; received {shares.tolist()!r:.60}.")
    if not removed[0]:
        raise ValueError(f"shares must be at least {1 / pixels:g}, one of {pixels} pixels; received {shares[0]:g}.")
    noise = np.random.default_rng(seed).standard_normal(x.shape, "float32") * np.float32(noise * (high - low))
    judge = Judge(model)
    ids, _ = judge.of_targets(batched(judge, x, batch_size), target)

    def without(pairs):
        of, step = np.divmod(pairs, len(shares))
        missing = ranks[of] < removed[step, None, None]
        return imputed(x[of], missing) + noise[of] * missing[..., None], ids[of]

    values = functools.partial(judge.measured, measure=measure)
    curve = streamed(values, without, len(x) * len(shares), batch_size).reshape(len(x), len(shares))
    return score_curve(shares, curve)


def imputed(x, missing):
    """Images ``(b, H, W, C)`` in which pixels ``missing (b, H, W)``, bool, not all, are means of their neighbours."""
    together = max(1, _PIXELS // missing[0].size)
    parts = (slice(start, start + together) for start in range(0, len(x), together))
    return np.concatenate([_imputed(x[part], missing[part]) for part in parts])


def _imputed(x, missing):
    """The same of all at once: one system of equations, which has a block for each image.

    A row of it says of a missing pixel: the sum of the weights of its neighbours, times the pixel, less the weighted
    neighbours that are missing, is the sum of the weighted ones that are known.
    """
    height, width = missing.shape[1:]
    count = np.count_nonzero(missing)
    if not count:
        return x
    numbers = np.cumsum(missing).reshape(missing.shape) - 1
    weights, known = np.zeros(count), np.zeros((count, x.shape[-1]))
    entries = []
    for down, right, weight in _NEIGHBOURS:
        before = np.s_[:, : height - down, max(-right, 0) : width - max(right, 0)]
        after = np.s_[:, down:, max(right, 0) : width - max(-right, 0)]
        for own, neighbour in ((before, after), (after, before)):
            weights[numbers[own][missing[own]]] += weight
            edge = missing[own] & ~missing[neighbour]
            known[numbers[own][edge]] += weight * x[neighbour][edge]
            inside = missing[own] & missing[neighbour]
            entries.append((numbers[own][inside], numbers[neighbour][inside], weight))
    rows, columns = (np.concatenate([entry[k] for entry in entries]) for k in (0, 1))
    between = np.concatenate([np.full(len(entry[0]), entry[2]) for entry in entries])
    matrix = sparse.diags_array(weights) - sparse.coo_array((between, (rows, columns)), (count, count))
    # Symmetric and diagonally dominant, so that no pivots are needed.
    factors = linalg.splu(matrix.tocsc(), "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    x = x.copy()
    x[missing] = factors.solve(known)
    return x
