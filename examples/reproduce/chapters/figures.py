"""Figures as small files."""

import io

from PIL import Image

COLOURS = 128  # of maps over photographs, which have many more and need no more


def save(figure, path, *, dpi=80):
    """Write a matplotlib Figure as a PNG file of few colours, some 100 KB instead of a megabyte.

    Args:
        figure: matplotlib Figure.
        path: path of the file.
        dpi: float, pixels per inch.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi)
    write(Image.open(drawn), path)


def write(image, path):
    """Write a PIL image as a PNG file of few colours."""
    image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
