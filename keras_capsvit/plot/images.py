"""Pictures of images: heat maps over them, explainers side by side, sweeps through a decoder, adversarial ones."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from keras_capsvit import checks
from keras_capsvit.plot.drawing import (
    check_look,
    check_text,
    colour_bar,
    label_row,
    maps_of,
    pictures,
    relative,
    scale,
    show,
    titles_for,
    titles_of_rows,
)


def overlay(image, heatmap, *, ax=None, alpha=0.55, cmap=None, vmin=None, vmax=None):
    """Draw a heat map over an image, as in thesis Fig. 3.4: blue for little relevance, dark red for much.

    A map with negative values has a scale with white for zero, blue for less, red for more. A constant map, which
    shows no place above another, has the colour of little relevance.

    Args:
        image: array ``(H, W, C)`` or ``(H, W)`` in [0, 1].
        heatmap: array ``(H, W)``.
        ax: matplotlib axes to draw on; None for a new figure.
        alpha: float, opacity of the heat map.
        cmap: str, matplotlib colour map; None for ``"jet"``, or ``"seismic"`` for negative values without ends given.
        vmin: float, value of the first colour; None, with ``vmax``, for the minimum, or minus the largest magnitude if
            there are negative values.
        vmax: float, value of the last colour; None, with ``vmin``, for the maximum, or the largest magnitude if there
            are negative values.

    Returns:
        The matplotlib image of the heat map, for a colour bar (``.figure`` is the figure).

    Raises:
        ValueError: if the two differ in height or width, the map is not finite, or pixels lie outside [0, 1]; for
            axes, an opacity, colours and ends that are none.
    """
    image, heatmap = checks.numbers(image, "an image"), checks.numbers(heatmap, "a heat map")
    checks.finite_array(heatmap, "heat map", "(H, W)", 2)
    check_look(alpha, cmap)
    low = heatmap.min() if vmin is None else checks.number("vmin", vmin)
    high = heatmap.max() if vmax is None else checks.number("vmax", vmax)
    if low > high:
        raise ValueError(f"vmin must not exceed vmax, by default the ends of the map; received {low} and {high}.")
    if ax is not None and not hasattr(ax, "imshow"):
        raise ValueError(f"ax must be axes of matplotlib, or None for a new figure; received {type(ax).__name__}.")
    if image.ndim not in (2, 3):
        raise ValueError(f"Expected an image of shape (H, W, C) or (H, W); received {image.shape}.")
    image = pictures(image[None] if image.ndim == 3 else image[None, ..., None])[0]
    if heatmap.shape != image.shape[:2]:
        raise ValueError(f"Expected a heat map of shape {image.shape[:2]}; received {heatmap.shape}.")
    if ax is None:
        ax = Figure(figsize=(3, 3), layout="constrained").subplots()
    show(ax, image)
    colours = "jet"
    if vmin is None and vmax is None:
        colours, vmin, vmax = scale(heatmap)
    return ax.imshow(heatmap, cmap=cmap or colours, alpha=alpha, vmin=vmin, vmax=vmax)


def grid(images, maps, *, titles=None, columns=8, cmap=None, label="attention") -> Figure:
    """Images in one row, their heat maps over them in the next, on one colour scale with a colour bar.

    The scale is that of ``overlay`` for all maps together.

    Args:
        images: array ``(n, H, W, C)`` in [0, 1].
        maps: array ``(n, H, W)``.
        titles: n strings over the images, such as ``titles_of`` makes; or None.
        columns: int, images in a row.
        cmap: str, matplotlib colour map; None for ``"jet"``, and ``"seismic"`` if any map has negative values.
        label: str, name of the mapped quantity, beside the colour bar.

    Returns:
        matplotlib Figure (``.savefig(path)``).

    Raises:
        ValueError: if the numbers of images, maps and titles differ, or there are none; for maps that are not finite.
    """
    images = pictures(images)
    maps = maps_of(maps, images)
    titles = titles_for(titles, len(images))
    checks.positive_int("columns", columns)
    check_look(1, cmap)
    check_text("label", label)
    colours, low, high = scale(maps)
    columns = min(columns, len(images))
    lines = -(-len(images) // columns)
    figure = Figure(figsize=(1.25 * columns + 0.9, 2.8 * lines), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    drawn = None
    for i, (image, heatmap, title) in enumerate(zip(images, maps, titles, strict=True)):
        row, column = divmod(i, columns)
        show(axes[2 * row, column], image)
        axes[2 * row, column].set_title(title, fontsize=8)
        drawn = overlay(image, heatmap, ax=axes[2 * row + 1, column], cmap=cmap or colours, vmin=low, vmax=high)
    colour_bar(figure, drawn, axes, label, shrink=0.8)
    return figure


def comparison(images, maps, *, titles=None, label="relevance") -> Figure:
    """A row per image: the image, then the map of each explainer over it, on fixed colour scales.

    Explainers have units of their own, so every map is divided by the 99.5 % quantile of its magnitudes and clipped; it
    shows where, not how much, relevance lies. An explainer whose maps have negative values is drawn on [-1, 1], white
    for zero; any other on [0, 1]. A constant map, which shows no place above another, is drawn as zero.

    Args:
        images: array ``(n, H, W, C)`` in [0, 1].
        maps: dict from names of explainers to arrays ``(n, H, W)``.
        titles: n strings over the images, such as class names; or None. Long ones are wrapped.
        label: str, name of the mapped quantity, beside the colour bar.

    Returns:
        matplotlib Figure (``.savefig(path)``).

    Raises:
        ValueError: for no images or explainers, maps of another shape or not finite, or titles of another number.
    """
    images = pictures(images)
    maps = {name: maps_of(each, images) for name, each in checks.named("maps", maps, "maps").items()}
    if not maps:
        raise ValueError("Expected the maps of at least one explainer; received none.")
    titles = titles_for(titles, len(images))
    check_text("label", label)
    signed = {name: bool((each < 0).any()) for name, each in maps.items()}
    shape = (len(images), 1 + len(maps))
    width = 1.5 * shape[1] + 0.9 * len(set(signed.values()))
    figure = Figure(figsize=(width, 1.75 * shape[0] + 0.2), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for row, image, title in zip(axes, images, titles, strict=True):
        show(row[0], image)
        row[0].set_title(textwrap.fill(title, 18), fontsize=8)
    for ax, name in zip(axes[0, 1:], maps, strict=True):
        ax.set_title(textwrap.fill(name, 18), fontsize=8)
    drawn = {}
    for column, (name, heatmaps) in zip(axes[:, 1:].T, maps.items(), strict=True):
        colours, low = ("seismic", -1) if signed[name] else ("jet", 0)
        for ax, image, heatmap in zip(column, images, heatmaps, strict=True):
            pale = 0.4 + 0.6 * image.mean(axis=-1)
            drawn[signed[name]] = overlay(pale, relative(heatmap), ax=ax, alpha=0.7, cmap=colours, vmin=low, vmax=1)
    for kind in drawn.values():
        colour_bar(figure, kind, axes, f"{label} / its 99.5 % quantile", shrink=min(1, 3 / shape[0]))
    return figure


def sweep(images, offsets, dims=None) -> Figure:
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
    images = checks.finite(checks.numbers(images, "images"), "images")
    offsets = checks.finite_array(offsets, "offsets", "(n_offsets,)", 1)
    dims = np.arange(len(images) if images.ndim else 0) if dims is None else dims
    dims = checks.integers("dims", dims, (None,), "(n_dims,)").tolist()
    if images.ndim != 5 or not images.size or images.shape[:2] != (len(dims), len(offsets)):
        raise ValueError(
            f"Expected images of shape (dimensions, offsets, height, width, channels), at least 1; received shape "
            f"{images.shape} with {len(dims)} dimensions and {len(offsets)} offsets."
        )
    figure = Figure(figsize=(0.7 * len(offsets) + 0.7, 0.7 * len(dims) + 0.3), layout="constrained")
    axes = figure.subplots(len(dims), len(offsets), squeeze=False)
    for row, dim in enumerate(dims):
        for column, image in enumerate(images[row]):
            show(axes[row, column], image)
        label_row(axes[row, 0], f"dim {dim}")
    for ax, offset in zip(axes[0], offsets, strict=True):
        ax.set_title(f"{offset:+.2f}", fontsize=8)
    return figure


def adversarial(images, found, *, titles=None) -> Figure:
    """Images in one row; below, for each attack, what it made of them, and its perturbation on one colour scale.

    Args:
        images: array ``(n, H, W, C)`` in [0, 1].
        found: dict from names of attacks to adversarial images ``(n, H, W, C)``.
        titles: dict from these names, and ``"clean"``, to n strings, such as ``titles_of`` makes; or None.

    Returns:
        matplotlib Figure (``.savefig(path)``). Perturbations are means over channels.

    Raises:
        ValueError: for no images or attacks, adversarial images of another shape, or titles of another number.
    """
    images = pictures(images)
    titles = titles_of_rows(titles, len(images))
    attacked = {name: pictures(each) for name, each in checks.named("found", found, "images").items()}
    shapes = {name: each.shape for name, each in attacked.items()}
    if not attacked or set(shapes.values()) != {images.shape}:
        raise ValueError(
            f"Expected images of shape (n, height, width, channels), at least 1, and adversarial ones of the same; "
            f"received {images.shape} and {shapes}."
        )
    shown_by_name = {"clean": images} | attacked
    largest = max(np.abs(each - images).mean(axis=-1).max() for each in attacked.values()) or 1.0
    figure = Figure(figsize=(1.1 * len(images) + 1.6, 1.35 * (1 + 2 * len(attacked))), layout="constrained")
    axes = figure.subplots(1 + 2 * len(attacked), len(images), squeeze=False)
    row = 0
    for name, shown in shown_by_name.items():
        for ax, image, title in zip(axes[row], shown, titles.get(name, [""] * len(images)), strict=True):
            show(ax, image)
            ax.set_title(title, fontsize=8)
        label_row(axes[row, 0], name)
        row += 1
        if name in attacked:
            for ax, change in zip(axes[row], (shown - images).mean(axis=-1), strict=True):
                ax.axis("off")
                drawn = ax.imshow(change, cmap="RdBu_r", vmin=-largest, vmax=largest)
            label_row(axes[row, 0], "change")
            row += 1
    bar = figure.colorbar(drawn, ax=axes[2::2], shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("change of pixels", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def rows(images, *, titles=None) -> Figure:
    """Rows of images, with the rows' names beside them.

    Args:
        images: dict from names to arrays ``(n, H, W, C)`` in [0, 1], all of one shape.
        titles: dict from names of rows to n strings over their images; or None.

    Returns:
        matplotlib Figure (``.savefig(path)``).

    Raises:
        ValueError: for no images, images of different shapes, or titles of another number.
    """
    images = {name: pictures(each) for name, each in checks.named("images", images, "images").items()}
    shapes = {name: each.shape for name, each in images.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"Expected images of one shape (n, height, width, channels), at least 1; received {shapes}.")
    count = len(next(iter(images.values())))
    titles = titles_of_rows(titles, count)
    figure = Figure(figsize=(1.1 * count + 1.6, 1.35 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), count, squeeze=False)
    for line, (name, shown) in zip(axes, images.items(), strict=True):
        for ax, image, title in zip(line, shown, titles.get(name, [""] * count), strict=True):
            show(ax, image)
            ax.set_title(title, fontsize=8)
        label_row(line[0], name)
    return figure


def titles_of(lengths, class_names) -> list[str]:
    """Titles ``class length`` for ``grid``.

    Args:
        lengths: array ``(n, M)``, what a capsule network returns.
        class_names: M strings.

    Returns:
        List of n str, the predicted class and its capsule's length, such as ``"Bag\\n0.91"``.

    Raises:
        ValueError: for lengths that are not finite or of another shape, and another number of names.
    """
    lengths = checks.finite_array(lengths, "lengths", "(n, M)", 2, empty=True)
    if not isinstance(class_names, tuple | list | np.ndarray) or len(class_names) != lengths.shape[1]:
        raise ValueError(f"Expected a list of {lengths.shape[1]} names of classes; received {class_names!r:.60}.")
    return [f"{class_names[row.argmax()]}\n{row.max():.2f}" for row in lengths]
