"""Records: what was measured of a row with a seed, and how, one JSON file each."""

import functools
import hashlib
import json
import os
import pathlib
import platform
import subprocess

import keras

from keras_capsvit import evaluate
from keras_capsvit.files import read_json, reading, write_text

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = pathlib.Path(__file__).parent / "results"
_KIND = "a record of a row"


def plain(value):
    """Numbers and arrays of NumPy, in lists and dicts, as JSON takes them."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def path_of(folder, row, profile, seed):
    """Path of the record of a row (its name), a profile and a seed."""
    return pathlib.Path(folder) / f"{row}_{profile}_seed_{seed}.json"


def write(folder, record):
    """Write a record, whole or not at all; returns its path.

    Args:
        folder: path.
        record: dict with ``row``, ``profile``, ``seed`` and ``measured``, all that JSON takes.
    """
    path = path_of(folder, record["row"], record["profile"], record["seed"])
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read(path):
    """A record, a dict; FileError for a file that is damaged or none."""
    record = read_json(path, _KIND)
    with reading(path, _KIND, "Delete it and run the row again."):
        for name in ("row", "profile", "seed", "measured", "setting"):
            record[name]
    return record


def of_row(folder, row, profile=None):
    """Records of a row, by profile and seed.

    Args:
        folder: path.
        row: str, the row's name.
        profile: str; None for all.

    Returns:
        List of pairs ``(path, record)``.
    """
    paths = sorted(pathlib.Path(folder).glob(f"{row}_{profile or '*'}_seed_*.json"))
    return [(path, read(path)) for path in paths]


def digest(value):
    """Short SHA-256 of what JSON takes, a str of 16 characters; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def environment():
    """Versions, hardware and the code that runs, a dict."""
    return {"versions": evaluate.versions(), "hardware": hardware(), **code()}


def hardware():
    """Name of the processor, cores this process may use, and the accelerator or None, a dict."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "accelerator": _accelerator()}


@functools.cache
def code():
    """What was run: the commit, with ``+`` where files differ from it, and Git's hash of the package at that commit.

    It is that of the first call: a process runs what it has loaded, whatever is committed while it runs. The hash stays
    where a history is written anew. Without Git both are None.

    Returns:
        dict with ``commit`` and ``package``.
    """
    commit, package = _git("rev-parse", "--short=12", "HEAD"), _git("rev-parse", "--short=12", "HEAD:keras_capsvit")
    paths = ["keras_capsvit", "examples/reproduce/*.py", "examples/reproduce/chapters"]
    if commit and _git("status", "--porcelain", "--", *paths):
        commit, package = f"{commit}+", f"{package}+"
    return {"commit": commit, "package": package}


def _git(*arguments):
    """What a command of Git prints; None where there is no Git or no repository."""
    try:
        process = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()


def _processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _accelerator():
    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_physical_devices("GPU")
        return tf.config.experimental.get_device_details(devices[0]).get("device_name") if devices else None
    return None
