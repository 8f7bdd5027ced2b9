"""The rows: tables and figures of the thesis, each with settings (``chapters/chapter_N.toml``) and code beside them."""

import dataclasses
import functools
import importlib
import pathlib
import re
import tomllib
import types
from collections.abc import Callable

CHAPTERS = pathlib.Path(__file__).parent / "chapters"
PROFILES = ("smoke", "cpu", "gpu", "full")
REQUIRED = ("title", "lines", "claim", "published", "profiles")
# Of a row's settings, words and numbers to compare with: what is measured does not depend on them.
WORDS = ("title", "lines", "claim", "published", "order", "equal", "above", "below", "tolerance", "minutes", "seeds")
WORDS += ("scaled", "unit", "finding", "earlier", "needs", "curve_x", "curve_y", "like", "not_run")
_FUNCTIONS = {}


def sizes(table):
    """Settings that change what is measured, a dict.

    Args:
        table: dict of a row or a profile.
    """
    return {name: value for name, value in table.items() if name not in (*WORDS, "profiles")}


def row(name):
    """Decorator: the function ``(setting, run) → dict`` that measures a row.

    Args:
        name: str, the row's id, a table of the chapter's TOML file.

    Raises:
        ValueError: for a row that has a function already.
    """

    def keep(function: Callable):
        if name in _FUNCTIONS and _FUNCTIONS[name].__qualname__ != function.__qualname__:
            raise ValueError(f"Row {name} is measured by {_FUNCTIONS[name].__qualname__} already.")
        _FUNCTIONS[name] = function
        return function

    return keep


@dataclasses.dataclass(frozen=True)
class Row:
    """A row.

    Args:
        name: str, its id, such as ``"3.T1"``.
        chapter: int.
        table: dict, its table of the TOML file.
    """

    name: str
    chapter: int
    table: dict

    def setting(self, profile):
        """Settings of a profile, a SimpleNamespace: those of the row, and over them those of the profile.

        Raises:
            ValueError: for a profile that the row does not have.
        """
        if profile not in self.table["profiles"]:
            raise ValueError(
                f"Row {self.name} has the profiles {', '.join(self.table['profiles'])}; received {profile}."
            )
        merged = {name: value for name, value in self.table.items() if name != "profiles"}
        return types.SimpleNamespace(**{**merged, **self.table["profiles"][profile]})

    def seeds(self, profile):
        """Seeds that are run unless others are asked for, a list of int."""
        return self.table.get("seeds", {}).get(profile, [0])

    def minutes(self, profile):
        """Minutes that one seed takes on the machine that ``speed.REFERENCE`` describes, a float; None if not known."""
        return self.table.get("minutes", {}).get(profile)

    def needs(self, profile):
        """Names of data sets, packages, weights and pictures, a list of str."""
        return getattr(self.setting(profile), "needs", [])

    @property
    def function(self):
        """The function that measures the row; imports the modules of its chapter."""
        for path in sorted(CHAPTERS.glob(f"chapter_{self.chapter}*.py")):
            importlib.import_module(f"chapters.{path.stem}")
        if self.name not in _FUNCTIONS:
            raise ValueError(f"chapters/chapter_{self.chapter}*.py have no function for row {self.name}.")
        return _FUNCTIONS[self.name]


@functools.cache
def registry(folder=CHAPTERS):
    """All rows by their names, in the order of the files.

    Args:
        folder: path of the TOML files.

    Returns:
        dict from str to Row.

    Raises:
        ValueError: for a row without what every row has; names it.
    """
    rows = {}
    for path in sorted(pathlib.Path(folder).glob("chapter_*.toml")):
        chapter = int(re.fullmatch(r"chapter_(\d+)", path.stem)[1])
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            missing = [key for key in REQUIRED if key not in table]
            missing += [f"profiles.{each}" for each in PROFILES if each not in table.get("profiles", {})]
            if missing or name in rows:
                raise ValueError(f"{path.name}: row {name} has no {', '.join(missing)}, or is there twice.")
            rows[name] = Row(name, chapter, _with_sizes_of(rows, name, table))
    return rows


def _with_sizes_of(rows, name, table):
    """The table, with the sizes of the row that it is ``like`` where it has none of its own."""
    if "like" not in table:
        return table
    if table["like"] not in rows:
        raise ValueError(f"Row {name} is like {table['like']}, which has to come before it.")
    model_table = rows[table["like"]].table
    profiles = {
        profile: {**sizes(model_table), **sizes(model_table["profiles"][profile]), **sizes(table), **own}
        for profile, own in table["profiles"].items()
    }
    return {**table, "profiles": profiles}


def select(only=None, chapters=None):
    """The rows asked for.

    Args:
        only: list of ids; None for all.
        chapters: list of int; None for all.

    Returns:
        List of Row.

    Raises:
        ValueError: for an unknown id or chapter; names those there are.
    """
    rows = registry()
    unknown = [name for name in only or () if name not in rows]
    known = sorted({each.chapter for each in rows.values()})
    unknown += [str(number) for number in chapters or () if number not in known]
    if unknown:
        raise ValueError(f"Unknown: {', '.join(unknown)}. Rows are {', '.join(rows)}; chapters {known}.")
    selected = [rows[name] for name in only] if only else list(rows.values())
    return [each for each in selected if not chapters or each.chapter in chapters]
