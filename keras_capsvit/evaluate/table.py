"""A small table of results that prints, and writes JSON and CSV."""

import csv
import dataclasses
import importlib.metadata
import json
import platform

import keras

from keras_capsvit.files import replacing, write_text


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of named values.

    Args:
        rows: list of dicts from column names to str, int, float or bool; columns are in the order of their first row.

    Raises:
        ValueError: for rows that are none.

    Example::

        print(table)
        table.to_csv("robustness.csv")
    """

    rows: list

    def __post_init__(self):
        if not isinstance(self.rows, tuple | list) or not all(isinstance(row, dict) for row in self.rows):
            raise ValueError(f"Expected rows, a list of dicts from column names to values; received {self.rows!r:.60}.")

    @property
    def columns(self):
        """Names of the columns, a list of str."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __getitem__(self, name):
        """The values of a column, a list; None where a row has none."""
        if name not in self.columns:
            raise KeyError(f"No column {name!r}; there are {self.columns}.")
        return [row.get(name) for row in self.rows]

    def __str__(self):
        cells = [self.columns] + [[_text(row.get(name)) for name in self.columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numeric = [not any(isinstance(value, str) for value in self[name]) for name in self.columns]
        lines = []
        for line in cells:
            aligned = zip(line, widths, numeric, strict=True)
            lines.append("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in aligned))
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self, path, **how):
        """Write ``{"result": rows, **how, "versions": versions()}``.

        Args:
            path: str or path of the file; its folder is made.
            how: how the result was obtained, anything that JSON takes.
        """
        write_text(path, json.dumps({"result": self.rows, **how, "versions": versions()}, indent=1) + "\n")

    def to_csv(self, path):
        """Write a line of column names and a line per row.

        Args:
            path: str or path of the file; its folder is made.
        """
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


def versions():
    """Versions that a result of this process depends on.

    Returns:
        dict from names, of Python, the backend and packages, to str; without packages that are not installed.
    """
    installed = {"python": platform.python_version(), "backend": keras.backend.backend()}
    for name in ("keras-capsvit", "keras", "tensorflow", "jax", "numpy"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _text(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
