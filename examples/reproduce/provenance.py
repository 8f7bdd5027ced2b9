"""How a result was obtained, written beside it."""

import importlib.metadata
import json
import platform

import keras


def write_json(path, *, result, **how):
    """Write ``result`` with ``how`` it was obtained and the versions and machine of this process.

    Args:
        path: pathlib.Path of the file; its folder is made.
        result: what was measured; anything JSON takes.
        **how: settings, seeds, sample counts, seconds; what JSON does not take is written as str.
    """
    packages = ("keras-capsvit", "keras", "tensorflow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    machine = {"python": platform.python_version(), "backend": keras.backend.backend(), **versions}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"result": result, **how, "versions": machine}, indent=1, default=str) + "\n")
