"""How a result was obtained, written beside it."""

import json

from keras_capsvit import evaluate
from keras_capsvit.files import read_json, reading, write_text

PLACES = ("out", "work", "data_dir")  # options that say where, not how


def write_json(path, *, result, options, **how):
    """Write ``result`` with how it was obtained and the versions of this process.

    Args:
        path: pathlib.Path of the file; its folder is made.
        result: what was measured; anything JSON takes.
        options: argparse.Namespace, the script's options; those that name places are left out.
        **how: model, sample counts, seconds.
    """
    how |= {"versions": evaluate.versions()}
    write_text(path, json.dumps({"result": result, "options": _how(options), **how}, indent=1) + "\n")


def read_rows(path, options, *, more):
    """Rows that an interrupted run wrote, or one that this run adds to.

    Args:
        path: pathlib.Path of the JSON file of ``write_json``, which need not exist.
        options: argparse.Namespace, the script's options.
        more: names of options that only say which rows there are to be.

    Returns:
        List of dicts.

    Raises:
        ValueError: for a file that is damaged, or that was obtained with other options; names both.
    """
    if not path.exists():
        return []
    kind = "a JSON file of results"
    stored = read_json(path, kind)
    with reading(path, kind, "Delete it, or pass another one as --out."):
        rows, before = stored["result"], stored["options"]
    here = json.loads(json.dumps(_how(options)))
    others = [name for name in {**before, **here} if name not in more and before.get(name) != here.get(name)]
    if others:
        there = "; ".join(f"{name} {before.get(name)} there, {here.get(name)} here" for name in others)
        raise ValueError(f"{path} holds rows of other options: {there}. Delete it, or pass another one as --out.")
    return rows


def _how(options):
    return {name: value for name, value in vars(options).items() if name not in PLACES}
