"""What a step of an audit came to, in a form that JSON keeps and the page shows: no number stands anywhere else."""

import dataclasses
import math

import numpy as np

UNITS = ("", "count", "share", "ms", "seconds", "text")  # how numbers of a kind are written on the page
_NOTHING = "\N{EM DASH}"  # where nothing was measured
_JPEG = b"\xff\xd8"  # how such a file begins


@dataclasses.dataclass
class Section:
    """Figures, tables and pictures of one step.

    Args:
        how: str, the Python that gives the same figures by hand.
        figures: list of dicts, see ``figure``.
        sentences: list of str.
        tables: list of dicts, see ``table``.
        pictures: list of dicts, see ``plot``, ``gallery`` and ``grid``.
        left_out: list of str, what was not run, and why.
        numbers: list of ints, the images that were looked at by their numbers in the data set; None for all.
        files: dict from names of pictures to their bytes.
    """

    how: str = ""
    figures: list = dataclasses.field(default_factory=list)
    sentences: list = dataclasses.field(default_factory=list)
    tables: list = dataclasses.field(default_factory=list)
    pictures: list = dataclasses.field(default_factory=list)
    left_out: list = dataclasses.field(default_factory=list)
    numbers: list | None = None
    files: dict = dataclasses.field(default_factory=dict)

    def figure(self, name, label, value, unit="", *, low=None, high=None, headline=False):
        """Add a figure.

        Args:
            name: str, of which there is one in the section.
            label: str, what it is.
            value: int, float, bool, str; NaN where nothing was measured.
            unit: str, one of UNITS.
            low: float, lower end of its 95 % confidence interval; None without one, and so is ``high``.
            high: float.
            headline: bool, whether it stands at the top of the page, too.
        """
        added = {"name": name, "label": label, "value": plain(value), "unit": unit}
        if low is not None:
            added |= {"low": plain(low), "high": plain(high)}
        self.figures.append(added | ({"headline": True} if headline else {}))

    def table(self, name, title, rows, units=None, *, note=""):
        """Add a table.

        Args:
            name: str.
            title: str.
            rows: list of dicts from columns to values.
            units: dict from columns to UNITS; None for none.
            note: str, what stands below it.
        """
        columns = list(dict.fromkeys(column for row in rows for column in row))
        self.tables.append(
            {
                "name": name,
                "title": title,
                "columns": [{"name": column, "unit": (units or {}).get(column, "")} for column in columns],
                "rows": [{column: plain(value) for column, value in row.items()} for row in rows],
                "note": note,
            }
        )

    def plot(self, name, drawn, caption, alt):
        """Add a diagram, bytes of an SVG file, with its caption and what it shows in words."""
        self.files[f"{name}.svg"] = drawn
        self.pictures.append({"kind": "plot", "name": name, "file": f"{name}.svg", "caption": caption, "alt": alt})

    def gallery(self, name, caption, tiles):
        """Add small pictures side by side.

        Args:
            name: str.
            caption: str.
            tiles: list of tuples ``(bytes of a PNG or JPEG file, title, alt)``.
        """
        entries = [self._tile(f"{name}-{k}", *tile) for k, tile in enumerate(tiles)]
        self.pictures.append({"kind": "gallery", "name": name, "caption": caption, "tiles": entries})

    def grid(self, name, caption, columns, rows):
        """Add a table of small pictures.

        Args:
            name: str.
            caption: str.
            columns: list of str.
            rows: list of pairs of a title and tiles, as of ``gallery``, one for each column.
        """
        entries = [
            {"title": title, "tiles": [self._tile(f"{name}-{r}-{k}", *tile) for k, tile in enumerate(tiles)]}
            for r, (title, tiles) in enumerate(rows)
        ]
        self.pictures.append(
            {"kind": "grid", "name": name, "caption": caption, "columns": list(columns), "rows": entries}
        )

    def say(self, sentence):
        """Add a sentence."""
        self.sentences.append(sentence)

    def __getitem__(self, name):
        """Value of a figure by its name."""
        return next(figure["value"] for figure in self.figures if figure["name"] == name)

    def as_json(self):
        """Everything but the files, as JSON takes it."""
        entries = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "files"}
        return {**entries, "numbers": None if self.numbers is None else [int(number) for number in self.numbers]}

    def _tile(self, name, data, title, alt):
        file = f"{name}.jpg" if data.startswith(_JPEG) else f"{name}.png"
        self.files[file] = data
        return {"file": file, "title": title, "alt": alt}


def plain(value):
    """A number or str as JSON takes it; None for NaN and what is infinite, which JSON has not."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def percent(value):
    """A share as text."""
    return "not measured" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def written(value, unit=""):
    """A number as the page writes it.

    Args:
        value: int, float, bool, str or None.
        unit: str, one of UNITS.

    Returns:
        str; an em dash where nothing was measured.
    """
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if unit == "share":
        return percent(value)
    if unit == "ms":
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.2f} s"
    if unit == "seconds":
        return f"{value:.1f} s"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"
