"""The page of an audit: one HTML file that needs no other, made of what JSON keeps and of pictures."""

import base64
import importlib
import importlib.resources
import re

from keras_capsvit.report.sections import written

_KINDS = {"svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg"}


def page(results, files):
    """HTML of an audit, with all pictures inside.

    Args:
        results: dict, see ``Audit.results``.
        files: dict from names of pictures, ``"STEP/FILE"``, to their bytes.

    Returns:
        str, a whole HTML document. Names of classes and of models are escaped.

    Raises:
        ImportError: without Jinja2.
    """
    jinja2 = _jinja2()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"written": written, "raw": _raw, "breakable": _breakable}
    environment.globals["source"] = lambda step, file: _embedded(files[f"{step}/{file}"], file)
    template = importlib.resources.files("keras_capsvit.report").joinpath("template.html").read_text(encoding="utf-8")
    headlines = [
        {"part": part["name"], "step": step["name"], **figure}
        for part in results["parts"]
        for step in part["steps"]
        for figure in step["figures"]
        if figure.get("headline")
    ]
    return environment.from_string(template).render(results=results, headlines=headlines)


def check_template_library():
    """Refuse to begin where the page could not be written in the end."""
    _jinja2()


def _jinja2():
    try:
        return importlib.import_module("jinja2")
    except ImportError as error:
        raise ImportError('The page of an audit needs Jinja2: pip install "keras-capsvit[report]".') from error


def _embedded(data, file):
    kind = _KINDS[file.rpartition(".")[2]]
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _breakable(name):
    """A name in camel case that may be broken before its capitals; escaped."""
    markup = importlib.import_module("markupsafe").Markup  # of which Jinja2 is made
    return markup("<wbr>").join(re.split("(?<=[a-z])(?=[A-Z])", name))


def _raw(value):
    """A value as a program reads it from the page: that of the JSON."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
