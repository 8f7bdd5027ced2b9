"""What pictures share: checked images, maps and titles, and how they are drawn."""

import matplotlib
import numpy as np

from keras_capsvit import checks


def pictures(images):
    """Images ``(n, H, W, C)`` in [0, 1], at least one, an array."""
    checks.images(images, bounds=(0, 1), empty=False)
    return checks.numbers(images, "images")


def maps_of(maps, images):
    """Finite maps ``(n, H, W)`` of images, a float64 array."""
    checks.maps_of_images(maps, images)
    return checks.numbers(maps, "maps").astype("float64")


def titles_for(titles, count):
    """Titles of images, a list of strings."""
    if titles is None:
        return [""] * count
    if not isinstance(titles, tuple | list | np.ndarray) or len(titles) != count:
        raise ValueError(f"Expected a list of {count} titles, one for each image; received {titles!r:.60}.")
    return list(map(str, titles))


def titles_of_rows(titles, count):
    named = {} if titles is None else checks.named("titles", titles, "lists of titles")
    return {name: titles_for(each, count) for name, each in named.items()}


def check_text(name, value):
    if not isinstance(value, str | None):
        raise ValueError(f"{name} must be a string; received {value!r:.60}.")


def check_look(alpha, cmap):
    """Refuse an opacity out of range and a colour map that is none."""
    checks.number("alpha", alpha, 0, 1)
    if isinstance(cmap, matplotlib.colors.Colormap):
        return
    if cmap is not None and (not isinstance(cmap, str) or cmap not in matplotlib.colormaps):
        raise ValueError(f"cmap must name a colour map of matplotlib, such as 'jet'; received {cmap!r:.60}.")


def scale(maps):
    """Colours of maps, and the values of the first and the last of them."""
    low, high = maps.min(), maps.max()
    if low == high:
        return "jet", low, low + 1
    if low < 0:
        largest = max(-low, high)
        return "seismic", -largest, largest
    return "jet", low, high


def relative(heatmap):
    """A map by the 99.5 % quantile of its magnitudes, in [-1, 1]; zero for a constant one."""
    if heatmap.min() == heatmap.max():
        return np.zeros_like(heatmap)
    return (heatmap / (np.quantile(np.abs(heatmap), 0.995) or np.abs(heatmap).max())).clip(-1, 1)


def colour_bar(figure, drawn, axes, label, *, shrink):
    bar = figure.colorbar(drawn, ax=axes, shrink=shrink, aspect=30, pad=0.01)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.solids.set(alpha=1)


def label_row(ax, text):
    ax.text(-0.1, 0.5, text, transform=ax.transAxes, ha="right", va="center", size=8)


def show(ax, image):
    ax.axis("off")
    ax.imshow(image.squeeze() if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
