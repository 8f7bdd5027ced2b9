"""Settings of Sphinx, which builds this site. The reference is written before, from what is public."""

import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import elsewhere  # noqa: E402
import reference  # noqa: E402

import keras_capsvit  # noqa: E402

project = "keras_capsvit"
author = "the keras_capsvit developers"
release = version = keras_capsvit.__version__
html_title = f"{project} {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery/*", "audit/*"]

myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Call arguments", "params_style")]
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # of Keras, in another markup
autodoc_typehints = "signature"

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "gallery_pages",
    "backreferences_dir": "gallery_pages/used",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "show_memory": False,
    "min_reported_time": 1000,
    "download_all_examples": False,
    "abort_on_example_error": True,
    "show_signature": False,
    "capture_repr": (),
    "image_scrapers": ("figures.scraped",),
    "first_notebook_cell": "%matplotlib inline",
}

html_theme = "furo"
html_show_sourcelink = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"sidebar_hide_name": False}

reference.write(HERE / "api")
elsewhere.write(HERE / "elsewhere")


def setup(app):
    app.connect("source-read", elsewhere.linked)
