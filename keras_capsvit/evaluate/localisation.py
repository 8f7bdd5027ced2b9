"""Whether maps point at what they should: at objects in boxes or masks, or at adversarial patches."""

import numpy as np
from keras import ops
from scipy import ndimage

from keras_capsvit import checks
from keras_capsvit.checks import image_maps, number
from keras_capsvit.evaluate.regions import region_ranks


def pointing_game(maps, where, *, threshold=None, tolerance=0) -> np.ndarray:
    """Whether maps point at the object of their class (Zhang et al. 2018; thesis 2.5.2, Fig. 2.4).

    Args:
        maps: relevance ``(b, H, W)``; take ``np.abs`` of signed maps whose sign does not matter.
        where: objects, as a mask array ``(b, H, W)`` of bool or 0 and 1; or for each image a box ``(top, left, bottom,
            right)`` in pixels, the last two exclusive, or several such ``(k, 4)``, of which the union counts.
        threshold: None for the classic game: a hit if the maximum lies on the object (the first of equal maxima in
            reading order). Or a percentage in (0, 100], or several, of the thesis's game: the highest values that hold
            that share of a map's energy, the sum of its positive values, are kept; a hit if all of them lie on the
            object. A map without a positive value is a miss.
        tolerance: float, pixels that may lie between the object and what counts as on it.

    Returns:
        NumPy array of bool ``(b,)``, or ``(b, len(threshold))``; the accuracy is its mean.

    Raises:
        ValueError: for maps that are not finite, boxes or masks that do not fit them or are empty, or settings out of
            range.

    Example::

        hits = evaluate.pointing_game(maps, boxes, threshold=[5, 25, 50])
    """
    maps = image_maps(maps)
    inside = _masks(where, maps.shape)
    number("tolerance", tolerance, 0)
    if tolerance:
        inside = np.stack([ndimage.distance_transform_edt(~mask) <= tolerance for mask in inside])
    flat, inside = maps.reshape(len(maps), -1), inside.reshape(len(maps), -1)
    if threshold is None:
        return inside[np.arange(len(flat)), flat.argmax(axis=1)]
    shares = checks.numbers(threshold, "threshold").astype("float64")
    if shares.ndim > 1 or not shares.size or not ((shares > 0) & (shares <= 100)).all():
        raise ValueError(f"threshold must be percentages above 0, at most 100; received {threshold!r}.")
    positive = flat.clip(min=0)
    lowest = _lowest_kept(positive, shares.reshape(-1) / 100)
    outside = np.where(inside, -np.inf, positive).max(axis=1)
    hits = (lowest > outside[:, None]) & positive.any(axis=1)[:, None]
    return hits if shares.ndim else hits[:, 0]


def energy_inside(maps, where) -> np.ndarray:
    """Share of the positive relevance that lies on the object: the pointing game by energy (Wang et al. 2020, Eq. 5).

    Of maps without negative values it is the relevance mass accuracy of Arras et al. 2022.

    Args:
        maps: relevance ``(b, H, W)``; negative values do not count.
        where: objects, see ``pointing_game``.

    Returns:
        NumPy array ``(b,)`` in [0, 1]; 0 of a map without a positive value.

    Raises:
        ValueError: see ``pointing_game``.

    Example::

        share = evaluate.energy_inside(explain.CLRP(model)(x, y), boxes)
        print(share.mean(), share.std(ddof=1) / len(share) ** 0.5)
    """
    positive = image_maps(maps).clip(min=0).astype("float64")
    inside = np.where(_masks(where, positive.shape), positive, 0).sum(axis=(1, 2))
    total = positive.sum(axis=(1, 2))
    return inside / np.where(total > 0, total, 1)


def rank_accuracy(maps, where) -> np.ndarray:
    """Share of the K most relevant pixels that lie on the object, which has K (Arras et al. 2022).

    It is their relevance rank accuracy; their relevance mass accuracy is ``energy_inside``.

    Args:
        maps: relevance ``(b, H, W)``; of equal values the first in reading order count.
        where: objects, see ``pointing_game``.

    Returns:
        NumPy array ``(b,)`` in [0, 1].

    Raises:
        ValueError: see ``pointing_game``.
    """
    maps = image_maps(maps)
    inside = _masks(where, maps.shape)
    sizes = inside.sum(axis=(1, 2))
    highest = region_ranks(maps, 1)[0] < sizes[:, None, None]
    return (highest & inside).sum(axis=(1, 2)) / sizes


def patch_share(maps, where) -> dict[str, np.ndarray]:
    """How much of maps lies in a patch (thesis 7.5.1, Table 7.3).

    Args:
        maps: gradients or relevance ``(b, H, W)``; magnitudes count.
        where: the patches, see ``pointing_game``.

    Returns:
        dict of arrays ``(b,)``: ``"sum"``, share in [0, 1] of the sum that lies inside, and ``"max"``, 1.0 where the
        maximum lies inside and 0.0 elsewhere; both 0 of a map of zeros.

    Raises:
        ValueError: see ``pointing_game``.
    """
    maps = np.abs(image_maps(maps)).astype("float64")
    inside = np.where(_masks(where, maps.shape), maps, 0)
    total, most = maps.sum(axis=(1, 2)), maps.max(axis=(1, 2))
    return {
        "sum": inside.sum(axis=(1, 2)) / np.where(total > 0, total, 1),
        "max": ((inside.max(axis=(1, 2)) == most) & (most > 0)).astype("float64"),
    }


def _lowest_kept(positive, shares):
    """Lowest of the highest values that hold shares of the energy, ``(b, shares)``."""
    ordered = -np.sort(-positive.astype("float64"), axis=1)
    energy = ordered.cumsum(axis=1)
    last = np.stack([np.searchsorted(row, shares * row[-1]) for row in energy])
    return np.take_along_axis(ordered, last, axis=1)


def _masks(where, shape):
    """Masks ``(b, H, W)`` of bool, of masks or boxes."""
    if not isinstance(where, tuple | list | np.ndarray) and not ops.is_tensor(where):
        raise ValueError(f"Expected masks of shape {shape}, or boxes for each image; received {type(where).__name__}.")
    where = ops.convert_to_numpy(where) if ops.is_tensor(where) else where
    if _are_masks(where):
        try:
            masks = np.asarray(where)
        except ValueError:  # of different sizes
            masks = np.zeros(0)
        if masks.shape != shape or not np.isin(masks, (0, 1)).all():
            sizes = sorted({np.shape(mask) for mask in where})
            raise ValueError(
                f"Masks must be bool, or 0 and 1, of shape {shape}; received {masks.dtype} "
                f"{masks.shape if masks.size else sizes}."
            )
        masks = masks.astype(bool)
    else:
        if len(where) != shape[0]:
            raise ValueError(
                f"Expected masks of shape {shape}, or boxes for each of {shape[0]} images; received boxes for "
                f"{len(where)}."
            )
        masks = np.stack([_filled(boxes, shape[1:]) for boxes in where])
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise ValueError(f"Expected an object in each image; the masks of images {empty} are empty.")
    return masks


def _are_masks(where):
    """Whether these are masks: arrays ``(H, W)``, one per image, and no ``(k, 4)`` of integers."""
    return len(where) > 0 and all(
        np.ndim(mask) == 2 and (np.shape(mask)[1] != 4 or np.asarray(mask).dtype.kind != "i") for mask in where
    )


def _filled(boxes, shape):
    """Mask ``(H, W)`` of the union of boxes."""
    boxes = checks.numbers(boxes, "boxes")
    mask = np.zeros(shape, bool)
    if boxes.shape[-1:] != (4,) or boxes.ndim > 2 or not np.issubdtype(boxes.dtype, np.integer):
        raise ValueError(
            f"Expected boxes of integers (top, left, bottom, right), or (k, 4) of them; received {boxes.dtype} "
            f"{boxes.shape}."
        )
    for top, left, bottom, right in boxes.reshape(-1, 4):
        if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
            raise ValueError(
                f"Expected boxes (top, left, bottom, right) inside images of {shape} pixels, not empty; received "
                f"{(int(top), int(left), int(bottom), int(right))}."
            )
        mask[top:bottom, left:right] = True
    return mask
