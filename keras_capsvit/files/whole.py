"""Files and folders that appear whole or not at all, and what writers that were killed left behind."""

import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import time
import uuid

_PREFIX = ".tmp-"
_DAY = 24 * 60 * 60


def aside(folder, name=""):
    """A new hidden path in a folder to write to before renaming; it names this process, for ``remove_abandoned``."""
    owner = (*_here(), str(os.getpid()), _start(os.getpid()))
    return pathlib.Path(folder) / f"{_PREFIX}{'-'.join(owner)}-{uuid.uuid4().hex}{name}"


@contextlib.contextmanager
def replacing(path):
    """A path to write a file to that then takes the place of ``path``: readers see the old file or the whole new one.

    What was written is flushed to the disk before it is renamed; after an exception, or a kill, the old file is as it
    was. The folder is made.

    Args:
        path: path of the file.

    Yields:
        pathlib.Path in the same folder, with the same suffix.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(path.parent, path.suffix)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file, whole or not at all; see ``replacing``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_abandoned(folder):
    """Remove what writers that are gone left in a folder under a name of ``aside``.

    A writer is gone if this machine has run since and no process of its number and start is there. What another
    machine writes is left; so is what was written before a restart of this one (or in another container of the same
    name), for a day.

    Args:
        folder: path of a folder, which need not exist.
    """
    host, system = _here()
    for path in pathlib.Path(folder).glob(f"{_PREFIX}*"):
        parts = path.name.removeprefix(_PREFIX).split("-")
        if len(parts) != 5 or parts[0] != host:
            continue
        _, then, process, start, _ = parts
        runs = start == "0" or _start(process) == start
        if runs if then == system else _age(path) < _DAY:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _here():
    """What tells this machine from others, and this start of it, and the numbering of processes, from others."""
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:12]
    try:
        system = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        system = ""
    return host, hashlib.sha256(system.encode()).hexdigest()[:12]


def _start(number):
    """When a process of a number started, in ticks of the system, a str; "0" if that is not known or none runs."""
    try:
        # Behind the name, which is in brackets and may hold spaces: from the third field, the state, to the 22nd.
        fields = pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return "0" if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return "0"


def _age(path):
    """Seconds since anything in a path was written."""
    times = [part.lstat().st_mtime for part in (path, *path.rglob("*")) if part.exists()]
    return time.time() - max(times, default=time.time())


def _flush(path):
    """Have the system write a file, or the names in a folder, to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
