"""How figures of the gallery's scripts get onto its pages: what a block ends with is shown, as a notebook shows it."""

import weakref

import matplotlib.figure
from sphinx_gallery.scrapers import figure_rst

_SHOWN = weakref.WeakSet()


def scraped(block, block_vars, gallery_conf):
    """Save the figure that a block ended with; see the scrapers of sphinx-gallery."""
    figure = block_vars["example_globals"].get("___")  # of this block, or of an earlier one
    if not isinstance(figure, matplotlib.figure.Figure) or figure in _SHOWN:
        return ""
    _SHOWN.add(figure)
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=120)
    return figure_rst([path], gallery_conf["src_dir"])
