"""Numbers that single scripts measured before there were rows, read from the JSON files that they wrote."""

import re

import records

from keras_capsvit.files import read_json

_SEGMENT = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<filter>[^\]]+)\])?")


def read(entry, folder=records.RESULTS):
    """What an entry of a row's ``earlier`` says.

    Args:
        entry: dict with ``file``, ``command``, ``values`` (names to paths such as ``result.test_accuracy`` or
            ``result[model=CapsNet,seed=0].affine_accuracy``; several rows that match count as seeds), optionally
            ``scale`` (factor) and ``note``.
        folder: path of the files.

    Returns:
        List of dicts from names to floats, one of each seed.

    Raises:
        ValueError: for a path that leads nowhere; names file and path.
    """
    content = read_json(folder / entry["file"], "a result of an earlier script")
    values = {name: _values(content, path, entry["file"]) for name, path in entry["values"].items()}
    count = max(map(len, values.values()))
    scale = entry.get("scale", 1)
    return [{name: scale * each[k] for name, each in values.items() if k < len(each)} for k in range(count)]


def _values(content, path, file):
    places = [content]
    for segment in re.findall(r"(?:[^.\[\]]|\[[^\]]*\])+", path):
        match = _SEGMENT.fullmatch(segment)
        try:
            places = [place[match["name"]] for place in places]
        except (KeyError, TypeError):
            places = []
        if match["filter"]:
            pairs = [pair.split("=") for pair in match["filter"].split(",")]
            rows = [row for place in places for row in place]
            places = [row for row in rows if all(str(row.get(key)) == value for key, value in pairs)]
    if not places:
        raise ValueError(f"Expected numbers at {path} in {file}; there is nothing.")
    return [float(place) for place in places]
