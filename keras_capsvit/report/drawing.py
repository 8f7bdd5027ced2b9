"""Diagrams as SVG that follow the colours of the reader's system, and small pictures as PNG or JPEG."""

import io
import re
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

_INK = "#010203"  # stands for the colour of text, which the page's light or dark look decides
_STYLE = "<style>svg{color:#1d2430}@media(prefers-color-scheme:dark){svg{color:#e4e8ee}}</style>"
_LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "keras_capsvit",
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.facecolor": "none",
    "legend.edgecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = ("#3b7dd8", "#e08214", "#2a9d6f", "#c2416b", "#7b61c9", "#8c6d31", "#2aa1b3", "#8a8f98")
INK = _INK
_LARGEST = 128  # side of a small picture in pixels
_SMALLEST = 56  # ... which smaller images are enlarged to, without smoothing


def diagram(draw, size=(4.4, 3.2)):
    """An SVG file, bytes.

    Args:
        draw: callable that draws on a matplotlib axes it is given.
        size: pair, inches.
    """
    known = {name: value for name, value in _LOOK.items() if name in matplotlib.rcParams}
    with matplotlib.rc_context(known), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts draw it
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        for text in figure.findobj(matplotlib.text.Text):
            text.set_parse_math(False)  # names of classes may have dollars
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue().decode(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"(<svg[^>]*>)", lambda match: match[1] + _STYLE, text, count=1)
    return text.encode()


def tile(picture):
    """A small picture as bytes of a PNG file, or of a JPEG file where it was made smaller.

    Args:
        picture: array ``(H, W, 1 or 3)`` or ``(H, W)`` in [0, 1].
    """
    values = np.rint(255 * np.clip(picture, 0, 1)).astype("uint8")
    image = Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values)
    longest = max(image.size)
    buffer = io.BytesIO()
    if longest > _SMALLEST:
        factor = min(1.0, _LARGEST / longest)
        size = tuple(max(1, round(factor * side)) for side in image.size)
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=82)
    else:
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def over(picture, heatmap):
    """A map over an image, paled: array ``(H, W, 3)`` in [0, 1].

    The map is divided by the 99.5 % quantile of its magnitudes: dark red for much, blue for negative values, none for
    zero.

    Args:
        picture: array ``(H, W, C)`` in [0, 1].
        heatmap: array ``(H, W)``.
    """
    grey = np.repeat(0.45 + 0.55 * picture.mean(axis=-1, keepdims=True), 3, axis=-1)
    largest = np.quantile(np.abs(heatmap), 0.995) or np.abs(heatmap).max() or 1.0
    values = np.clip(heatmap / largest, -1, 1)
    if np.ptp(heatmap) == 0:
        values = np.zeros_like(values)
    colours = matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * values)[..., :3]
    opacity = 0.85 * np.abs(values)[..., None] ** 0.7
    return (1 - opacity) * grey + opacity * colours


def heat(values, rows, columns, *, label, xlabel, ylabel, low=0.0, high=1.0, written="{:.0f}", size=None):
    """A table of numbers as a coloured diagram, an SVG file.

    Args:
        values: array ``(r, c)``, NaN where nothing was measured.
        rows: r names.
        columns: c names.
        label: str, beside the bar of colours.
        xlabel: str.
        ylabel: str.
        low: float, value of the first colour.
        high: float, value of the last.
        written: str, format of the numbers in the fields; None for none.
        size: pair, inches; None for one that fits.
    """

    def draw(ax):
        drawn = ax.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        ax.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 3 else 0)
        ax.set_yticks(range(len(rows)), rows)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.tick_params(length=0, labelsize=8)
        bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.8)
        bar.set_label(label)
        bar.outline.set_visible(False)
        ax.spines[:].set_visible(False)
        if written is not None:
            middle = (low + high) / 2
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    colour = "#111111" if value > middle else "#ffffff"
                    ax.text(column, row, written.format(value), ha="center", va="center", fontsize=7, color=colour)

    size = size or (min(7.5, 2.0 + 0.34 * len(columns)), min(8.0, 1.3 + 0.27 * len(rows)))
    return diagram(draw, size)
