"""How a result was obtained, written beside it."""

import json

from keras_capsvit import evaluate

PLACES = ("out", "work", "data_dir")  # options that say where, not how


def write_json(path, *, result, options, **how):
    """Write ``result`` with how it was obtained and the versions of this process.

    Args:
        path: pathlib.Path of the file; its folder is made.
        result: what was measured; anything JSON takes.
        options: argparse.Namespace, the script's options; those that name places are left out.
        **how: model, sample counts, seconds.
    """
    options = {name: value for name, value in vars(options).items() if name not in PLACES}
    path.parent.mkdir(parents=True, exist_ok=True)
    how |= {"versions": evaluate.versions()}
    path.write_text(json.dumps({"result": result, "options": options, **how}, indent=1) + "\n")
