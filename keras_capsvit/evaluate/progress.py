"""Long evaluations that go on where they were interrupted: results of every image, kept in a file batch by batch."""

import json
import pathlib
import time
from urllib.parse import quote

import keras
import numpy as np

from keras_capsvit.evaluate.describe import described, digest
from keras_capsvit.evaluate.table import versions
from keras_capsvit.files import FileError, arrays_of, remove_abandoned, replacing

_SECONDS = 1.0  # at most, between what was measured and what is in the file
# Arrays of the file, beside ...
_SETTINGS, _BATCHES, _SIZES, _DIGEST = "settings", "batches", "sizes", "digest of the others"
_RESULT = "result "  # ... what begins so
_REMEDY = "Delete it to start from the beginning, or pass another folder as work."


class Progress:
    """What was measured of every image, batch by batch; with a folder it is kept there. A context manager.

    An evaluation that is interrupted, or whose process is killed, and then called again the same way reads what is
    there, measures the rest, and gives the same result to the bit. A finished one is read as a whole. The file belongs
    to what it was measured on: the settings, the weights of the models, and the images and labels of every batch.

    Args:
        work: path of a folder, in which ``NAME.npz`` is kept; None to keep nothing.
        name: str, of the evaluation.
        settings: dict of everything that results depend on besides images and labels: models, explainers, attacks,
            numbers, functions; see ``describe.described``.
        judges: iterable of Judge. Of models that do not tell their weights the scores of the first batch count.
        shown: callable from a dict of arrays, as ``results`` returns it, to a dict from names to floats that the bar
            shows; None for none.
        total: int, number of batches, for the bar that is shown if there is a folder; None if it is not known.

    Raises:
        ValueError: on entering, for a file that is damaged or belongs to another evaluation, with what differs.

    Example::

        with Progress("work", "norms", {"model": model}) as progress:
            for x, y in batches:
                progress.batch(lambda x=x: {"norm": measure(model, x)}, x, y)
        norms = progress.results()["norm"]
    """

    def __init__(self, work, name, settings, *, judges=(), shown=None, total=None):
        self.path = None if work is None else pathlib.Path(work) / f"{name}.npz"
        self._unknown = [judge for judge in judges if not judge.variables]
        self._shown = shown
        self._digests, self._parts, self._next, self._written = [], [], 0, 0
        if self.path:
            self._settings = {**described(settings), "versions": versions()}
            self._bar = keras.utils.Progbar(total, unit_name="batch")

    def __enter__(self):
        if self.path and self.path.exists():
            self._read()
        if self.path:
            remove_abandoned(self.path.parent)
        self._time = time.monotonic()
        return self

    def __exit__(self, kind, *_):
        if self.path and len(self._parts) > self._written:
            self._write()
        if self.path and kind is None and self._bar.target is None:
            self._bar.update(self._next, finalize=True)

    def batch(self, measure, x, y, label=""):
        """Results of the next batch: those of the file, or else what is measured now.

        Args:
            measure: callable without arguments that returns a dict from str to arrays ``(b, ...)``, the same names for
                all batches.
            x: images ``(b, H, W, C)``.
            y: class ids ``(b,)``.
            label: str, which batch it is, where the same images come several times.

        Raises:
            ValueError: if the file holds results of other images, labels or scores in this place.
        """
        if not self.path:
            self._parts.append(measure())
            return
        unknown = [] if self._next or not len(x) else self._unknown
        key = digest(label, x, y, *(judge(x).astype("float16") for judge in unknown))
        if self._next == len(self._parts):
            self._parts.append(measure())
            self._digests.append(key)
        elif self._digests[self._next] != key:
            raise ValueError(
                f"{self.path} holds results of other images, labels or models: batch {self._next} differs. {_REMEDY}"
            )
        self._next += 1
        shown = self._shown(self.results()) if self._shown else {}
        self._bar.stateful_metrics.update(shown)  # shown as they are, not as means over batches
        self._bar.update(self._next, values=list(shown.items()))
        if time.monotonic() - self._time > _SECONDS and len(self._parts) > self._written:
            self._write()

    def results(self):
        """dict from names to arrays of all images that came, ``(n, ...)``; empty if none came."""
        parts = self._parts[: self._next] if self.path else self._parts
        return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def _read(self):
        try:
            with arrays_of(self.path) as arrays:
                if arrays.compressed:
                    raise KeyError("arrays as they are, not compressed")
                stored = {name: arrays.read(name) for name in arrays}
            if stored.pop(_DIGEST).tobytes() != _digest(stored):
                raise KeyError("results as they were written")
            settings = dict(json.loads(stored.pop(_SETTINGS).tobytes()))
            sizes = stored.pop(_SIZES)
            self._digests = [key.tobytes() for key in stored.pop(_BATCHES)]
            ends = np.cumsum(sizes)
            if len(sizes) != len(self._digests) or any(len(rows) != sum(sizes) for rows in stored.values()):
                raise KeyError("results of each batch")
        except FileError as error:
            raise FileError(f"{error} {_REMEDY}") from None
        except (KeyError, ValueError, TypeError) as error:
            raise FileError(f"{self.path} holds no results of an evaluation: {error!r}. {_REMEDY}") from None
        names = [name for name in {**settings, **self._settings} if settings.get(name) != self._settings.get(name)]
        if names:
            there = (f"{name}: {_brief(settings, name)} there, {_brief(self._settings, name)} here" for name in names)
            raise ValueError(f"{self.path} holds results of another evaluation: {'; '.join(there)}. {_REMEDY}")
        split = {name.removeprefix(_RESULT): np.split(rows, ends[:-1]) for name, rows in stored.items()}
        self._parts = [{name: rows[k] for name, rows in split.items()} for k in range(len(sizes))]
        self._written = len(self._parts)

    def _write(self):
        rows = {_RESULT + name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        sizes = [len(next(iter(part.values()), ())) for part in self._parts]
        settings = np.frombuffer(json.dumps(self._settings).encode(), "uint8")
        batches = np.frombuffer(b"".join(self._digests), "uint8").reshape(len(sizes), -1)
        arrays = {_SETTINGS: settings, _BATCHES: batches, _SIZES: np.array(sizes), **rows}
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays, **{_DIGEST: np.frombuffer(_digest(arrays), "uint8")})
        self._written, self._time = len(self._parts), time.monotonic()


def place(work, *names):
    """Folder for a part of an evaluation, such as a row of a table; None without a folder of the whole."""
    return None if work is None else pathlib.Path(work).joinpath(*(quote(str(name), safe=" ,+-=()") for name in names))


def _digest(arrays):
    return digest(*(part for name in sorted(arrays) for part in (name, arrays[name])))


def _brief(settings, name):
    text = json.dumps(settings.get(name))
    return text if len(text) < 160 else f"{text[:150]}..."
