"""Regions of images in the order of their relevance."""

import numpy as np
from scipy import ndimage

RELEVANCE_ORDERS = ("descending", "ascending")


def region_ranks(maps, patch, order="descending"):
    """Places of the regions of a grid when they are sorted by their sums, equal ones in reading order.

    Args:
        maps: relevance ``(b, H, W)``.
        patch: int, side of a region in pixels; 1 for the pixels themselves.
        order: one of RELEVANCE_ORDERS.

    Returns:
        For each pixel the place of its region, from 0, an array ``(b, H, W)``; and the number of regions.
    """
    maps = (-maps if order == "descending" else maps).astype("float64")
    rows, columns = (np.arange(size) // patch for size in maps.shape[1:])
    sums = np.add.reduceat(maps, np.arange(0, maps.shape[1], patch), axis=1)
    sums = np.add.reduceat(sums, np.arange(0, maps.shape[2], patch), axis=2)
    flat = sums.reshape(len(maps), -1)
    ranks = np.empty(flat.shape, "int32")
    places = np.arange(flat.shape[1], dtype="int32")[None]
    np.put_along_axis(ranks, np.argsort(flat, axis=1, kind="stable"), places, axis=1)
    return ranks.reshape(sums.shape)[:, rows][:, :, columns], flat.shape[1]


def ranks_around(maps, patch, order="descending"):
    """The same of the regions around all pixels, which overlap: for each pixel that of the first that it lies in."""
    ranks, count = region_ranks(maps, 1, order)
    return ndimage.minimum_filter(ranks, size=(1, patch, patch), mode="nearest"), count
