"""Pictures: heat maps over images, grids of them, and sweeps through a decoder."""

import numpy as np
from matplotlib.figure import Figure


def overlay(image, heatmap, *, ax=None, alpha=0.55, cmap="jet", vmin=None, vmax=None):
    """Draw a heat map over an image, as in thesis Fig. 3.4: blue for little relevance, dark red for much.

    Args:
        image: array ``(H, W, C)`` or ``(H, W)`` in [0, 1].
        heatmap: array ``(H, W)``.
        ax: matplotlib axes to draw on; None for a new figure.
        alpha: float, opacity of the heat map.
        cmap: str, matplotlib colour map.
        vmin: float or None, value of the first colour; None for the minimum.
        vmax: float or None, value of the last colour; None for the maximum.

    Returns:
        The matplotlib image of the heat map, for a colour bar (``.figure`` is the figure).

    Raises:
        ValueError: if the two differ in height or width, or the map is not finite.
    """
    image, heatmap = np.asarray(image), np.asarray(heatmap)
    if heatmap.shape != image.shape[:2]:
        raise ValueError(f"Expected a heat map of shape {image.shape[:2]}; received {heatmap.shape}.")
    if not np.isfinite(heatmap).all():
        raise ValueError("Expected a finite heat map; received NaN or infinite values.")
    if ax is None:
        ax = Figure(figsize=(3, 3), layout="constrained").subplots()
    _show(ax, image)
    return ax.imshow(heatmap, cmap=cmap, alpha=alpha, vmin=vmin, vmax=vmax)


def grid(images, maps, *, titles=None, columns=8, cmap="jet", label="attention"):
    """Images in one row, their heat maps over them in the next, on one colour scale with a colour bar.

    Args:
        images: array ``(n, H, W, C)`` in [0, 1].
        maps: array ``(n, H, W)``.
        titles: n strings over the images, such as ``titles_of`` makes; or None.
        columns: int, images in a row.
        cmap: str, matplotlib colour map.
        label: str, name of the mapped quantity, beside the colour bar.

    Returns:
        matplotlib Figure (``.savefig(path)``).

    Raises:
        ValueError: if the numbers of images, maps and titles differ, or there are none.
    """
    images, maps = np.asarray(images), np.asarray(maps)
    titles = [""] * len(images) if titles is None else list(titles)
    if not len(images) or len(maps) != len(images) or len(titles) != len(images):
        raise ValueError(
            f"Expected as many maps and titles as images, at least 1; received {len(images)} images, {len(maps)} maps, "
            f"{len(titles)} titles."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.25 * columns + 0.9, 2.8 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    drawn = None
    for i, (image, heatmap, title) in enumerate(zip(images, maps, titles, strict=True)):
        row, column = divmod(i, columns)
        _show(axes[2 * row, column], image)
        axes[2 * row, column].set_title(title, fontsize=8)
        drawn = overlay(image, heatmap, ax=axes[2 * row + 1, column], cmap=cmap, vmin=maps.min(), vmax=maps.max())
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.solids.set(alpha=1)
    return figure


def sweep(images, offsets, dims=None):
    """Decoded images of a capsule, one row per moved dimension, one column per offset (thesis Fig. 3.7, 4.4 and 5.4).

    Args:
        images: array ``(n_dims, n_offsets, H, W, C)`` in [0, 1], what ``evaluate.sweep`` returns.
        offsets: n_offsets floats, over the columns.
        dims: n_dims ints, beside the rows; None for 0, 1, 2, ...

    Returns:
        matplotlib Figure (``.savefig(path)``).

    Raises:
        ValueError: for images of another rank, none, or numbers of dimensions or offsets that differ from theirs.
    """
    images, offsets = np.asarray(images), list(offsets)
    dims = list(range(len(images))) if dims is None else list(dims)
    if images.ndim != 5 or not images.size or images.shape[:2] != (len(dims), len(offsets)):
        raise ValueError(
            f"Expected images of shape (dimensions, offsets, height, width, channels), at least 1; received shape "
            f"{images.shape} with {len(dims)} dimensions and {len(offsets)} offsets."
        )
    figure = Figure(figsize=(0.7 * len(offsets) + 0.7, 0.7 * len(dims) + 0.3), layout="constrained")
    axes = figure.subplots(len(dims), len(offsets), squeeze=False)
    for row, dim in enumerate(dims):
        for column, image in enumerate(images[row]):
            _show(axes[row, column], image)
        axes[row, 0].text(-0.1, 0.5, f"dim {dim}", transform=axes[row, 0].transAxes, ha="right", va="center", size=8)
    for ax, offset in zip(axes[0], offsets, strict=True):
        ax.set_title(f"{offset:+.2f}", fontsize=8)
    return figure


def titles_of(lengths, class_names):
    """Titles ``class length`` for ``grid``.

    Args:
        lengths: array ``(n, M)``, what a capsule network returns.
        class_names: M strings.

    Returns:
        List of n str, the predicted class and its capsule's length, such as ``"Bag\\n0.91"``.
    """
    lengths = np.asarray(lengths)
    return [f"{class_names[row.argmax()]}\n{row.max():.2f}" for row in lengths]


def _show(ax, image):
    ax.axis("off")
    ax.imshow(image.squeeze() if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
