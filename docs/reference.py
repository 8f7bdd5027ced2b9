"""Writes the pages of the reference: of every room a page, which lists what it has by the files that it is in."""

import importlib
import inspect
import pathlib
import re

import keras_capsvit

# Rooms in the order of use; those of ``data`` are public modules of their own.
ROOMS = (
    "models",
    "layers",
    "losses",
    "metrics",
    "schedules",
    "training",
    "data",
    "data.affine",
    "data.affine_sets",
    "data.corruptions",
    "data.multidigit",
    "explain",
    "attacks",
    "patches",
    "evaluate",
    "plot",
    "report",
    "serving",
    "taps",
    "ops",
    "autodiff",
)


def public_names(module):
    """Names that a module promises: its ``__all__``, or what it defines without an underscore; no modules."""
    listed = getattr(module, "__all__", None) or [
        name
        for name, member in vars(module).items()
        if not name.startswith("_") and getattr(member, "__module__", "") == module.__name__
    ]
    return [name for name in listed if not inspect.ismodule(getattr(module, name))]


def public():
    """Everything public: dict from the rooms to the names in them."""
    return {room: public_names(importlib.import_module(f"keras_capsvit.{room}")) for room in ROOMS}


def groups(room, names):
    """The names of a room by the files that define them, in the order of the files: dict from titles to names."""
    module = importlib.import_module(f"keras_capsvit.{room}")
    result = {}
    for name in names:
        source = inspect.getmodule(getattr(module, name))
        own = source is not None and source.__name__.startswith("keras_capsvit.") and source is not module
        title = inspect.getdoc(source).split("\n")[0].rstrip(".").split(": ")[0].split(" (")[0] if own else ""
        result.setdefault(title, []).append(name)
    return result


def page(room, names):
    """The page of a room, in reStructuredText."""
    title = f"keras_capsvit.{room}"
    module = importlib.import_module(title)
    lines = [title, "=" * len(title), "", inspect.getdoc(module), "", f".. currentmodule:: {title}", ""]
    constants = [name for name in names if not callable(getattr(module, name))]
    with_pages = [name for name in names if name not in constants]
    for group, members in groups(room, with_pages).items():
        if group:
            lines += [f".. rubric:: {group}", ""]
        lines += [".. list-table::", "   :widths: auto", ""]
        for name in members:
            lines += [f"   * - :py:obj:`{name}`", f"     - {summary_of(getattr(module, name))}"]
        lines += [""]
    if constants:
        lines += [".. rubric:: Constants", ""]
    for name in constants:
        value = getattr(module, name)
        items = ", ".join(f"``{item!r}``" for item in value)
        lines += [f".. py:data:: {name}", f"   :type: {type(value).__name__}", "", f"   Of {items}.", ""]
    lines += [".. toctree::", "   :hidden:", "", *(f"   {room}.{name}" for name in with_pages), ""]
    return "\n".join(lines)


def summary_of(member):
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(inspect.getdoc(member).split("\n\n")[0].split()).removesuffix("::")
    return re.split(r"(?<!\bEq)(?<!\bal)(?<=\.)\s+(?=[A-Z])", paragraph)[0]


def page_of(room, name):
    """The page of a class or function, in reStructuredText."""
    module = f"keras_capsvit.{room}"
    is_class = inspect.isclass(getattr(importlib.import_module(module), name))
    lines = [name, "=" * len(name), "", f".. currentmodule:: {module}", ""]
    lines += [f".. {'autoclass' if is_class else 'autofunction'}:: {name}"]
    return "\n".join([*lines, *(["   :members:", "   :show-inheritance:"] if is_class else []), ""])


def pages():
    """All pages: dict from their names to reStructuredText."""
    rooms = public()
    top = [name for name in keras_capsvit.__all__ if not inspect.ismodule(getattr(keras_capsvit, name))]
    index = [
        "Reference",
        "=========",
        "",
        "Every public name, with its signature, shapes and source. These are in the package itself, too, as in",
        "``from keras_capsvit import GraCapsNet``:",
        "",
        ", ".join(f":py:obj:`{name} <{_home(name, rooms)}>`" for name in sorted(top, key=str.lower)) + ".",
        "",
        ".. toctree::",
        "   :maxdepth: 1",
        "",
        *(f"   {room}" for room in rooms),
        "",
    ]
    result = {"index": "\n".join(index), **{room: page(room, names) for room, names in rooms.items()}}
    for room, names in rooms.items():
        module = importlib.import_module(f"keras_capsvit.{room}")
        result |= {f"{room}.{name}": page_of(room, name) for name in names if callable(getattr(module, name))}
    return result


def write(folder):
    """Write all pages, and delete those of names that are gone.

    Args:
        folder: pathlib.Path.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    texts = {f"{name}.rst": text for name, text in pages().items()}
    for path in folder.glob("*.rst"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or path.read_text() != text:  # Sphinx reads what is newer
            path.write_text(text)


def _home(name, rooms):
    (room,) = [room for room, names in rooms.items() if name in names]
    return f"keras_capsvit.{room}.{name}"
