"""How figures of the gallery's scripts get onto its pages: what a block ends with is shown, as a notebook shows it."""

import matplotlib.figure
from sphinx_gallery.scrapers import figure_rst


def scraped(block, block_vars, gallery_conf):
    """Save the figure that a block ended with; see the scrapers of sphinx-gallery."""
    figure = block_vars["example_globals"].pop("___", None)
    if not isinstance(figure, matplotlib.figure.Figure):
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=120)
    return figure_rst([path], gallery_conf["src_dir"])
