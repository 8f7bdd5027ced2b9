"""A file that is damaged and read: what comes of it, and how much memory that takes."""

import pathlib
import re
import shutil
import sys
import traceback
import warnings

import numpy as np

from damaged.kinds import KINDS

_RUN = ("os.system", "subprocess.Popen", "pickle.find_class", "os.exec", "os.posix_spawn")


class Trials:
    """Trials in a folder; whole files of a kind are made when the first of it comes.

    Args:
        folder: path.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self._ready, self._events, self._watching = {}, [], False
        sys.addaudithook(self._hear)

    def run(self, kind, damage, seed):
        """Outcome, what was said, and the megabytes that reading took."""
        if kind not in self._ready:
            self._ready[kind] = self._prepared(kind)
        files, whole, marker = self._ready[kind]
        place = self.folder / kind / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(files, place)
        file, *_ = KINDS[kind].damage(damage, place, np.random.default_rng(seed), marker)
        before = _memory(reset=True)
        self._events, self._watching = [], True
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                values = KINDS[kind].read(place)
            outcome, text = self._judged(kind, damage, whole, values, heard, file), ""
        except KINDS[kind].errors as error:
            text = f"{type(error).__name__}: {error}"
            outcome = "documented" if file.name in str(error) or file.parent.name in str(error) else "UNDOCUMENTED"
            if not KINDS[kind].unchanged():
                outcome, text = "WRONG", f"refused, but something was changed: {text}"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome = "UNDOCUMENTED"
            text = f"{type(error).__name__} in {pathlib.Path(place.filename).name}:{place.lineno}: {error}"
        finally:
            self._watching = False
        memory = _memory() - before
        if self._events or marker.exists():
            outcome, text = "CODE RAN", f"{self._events} {text}"
            marker.unlink(missing_ok=True)
        return outcome, text[:400], memory

    def _prepared(self, kind):
        files = self.folder / kind / "whole"
        files.mkdir(parents=True)
        KINDS[kind].make(files)
        return files, KINDS[kind].read(files), self.folder / "code_ran"

    def _judged(self, kind, damage, whole, values, heard, file):
        if any(file.name in str(warning.message) for warning in heard):
            return "documented"
        same = len(values) == len(whole) and all(map(_same, whole, values))
        if same:
            return "right"
        alike = [np.shape(a) == np.shape(b) and np.isfinite(b).all() for a, b in zip(whole, values, strict=False)]
        unnoticeable = damage in KINDS[kind].unnoticed and len(values) == len(whole) and all(alike)
        return "alike" if unnoticeable else "WRONG"

    def _hear(self, event, arguments):
        if self._watching and event in _RUN:
            self._events.append(f"{event}{arguments!r:.100}")


def _same(expected, received):
    expected, received = np.asarray(expected), np.asarray(received)
    return expected.shape == received.shape and expected.dtype == received.dtype and bool((expected == received).all())


def _memory(reset=False):
    """Megabytes in use, if the mark is reset, or the most in use since; 0 where the system does not tell."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    name = "VmRSS" if reset else "VmHWM"
    return int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1]) / 1024
