"""Steps of an audit in a folder: what is done is not done again."""

import json
from urllib.parse import quote

from keras_capsvit.files import read_json, remove_abandoned, replacing, write_text
from keras_capsvit.report.parts import ALWAYS

_KIND = "a step of an audit"
_REMEDY = "Delete the folder to start from the beginning, or pass another one as out."


class Kept:
    """Steps in a folder: a JSON file for each, written last, and a folder of its pictures."""

    def __init__(self, out, subject):
        self._folder = None if out is None else out / "steps"
        if out is None:
            return
        remove_abandoned(self._folder)
        about, settings = self._folder / "audit.json", json.loads(json.dumps(subject.described()))
        if about.exists():
            there = read_json(about, "the settings of an audit")
            names = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
            if names:
                raise ValueError(f"{self._folder.parent} holds an audit of other {', '.join(names)}. {_REMEDY}")
        else:
            write_text(about, json.dumps(settings, indent=1) + "\n")

    def read(self, step):
        """``(result, files)`` of a step that is done; None for others."""
        if self._folder is None or step.name in ALWAYS or not self._path(step).exists():
            return None
        result = read_json(self._path(step), _KIND, most=2**28)
        folder = self._pictures(step)
        try:
            return result, {
                file.name: file.read_bytes() for file in sorted(folder.iterdir())
            } if folder.exists() else {}
        except OSError:
            return None

    def write(self, step, result, files, complete):
        """Keep what came of a step; returns ``(result, files)``."""
        if self._folder is not None and complete and step.name not in ALWAYS:
            for name, data in files.items():
                with replacing(self._pictures(step) / name) as temporary:
                    temporary.write_bytes(data)
            write_text(self._path(step), json.dumps(result, indent=1, allow_nan=False) + "\n")
        return result, files

    def _path(self, step):
        return self._folder / f"{quote(step.name)}.json"

    def _pictures(self, step):
        return self._folder / step.name
