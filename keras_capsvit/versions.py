"""Versions that the tests ran on, and a warning under others; and what needs TensorFlow where it is not installed."""

import importlib.metadata
import importlib.util
import sys
import warnings

# Lowest and newest that tests ran on, see .ci/versions. A patch release counts as the release that it mends.
TESTED = {
    "Python": ("3.11", "3.13"),
    "tensorflow": ("2.18", "2.21"),
    "keras": ("3.8", "3.15"),
    "numpy": ("2.0", "2.5"),
}


def warn_of_untested():
    """Warn, in one line, of versions that no test ran on; a package that is not installed has none."""
    untested = {}
    for name, (lowest, newest) in TESTED.items():
        version = _installed(name)
        if version is not None and not _release(lowest) <= _release(version) <= _release(newest):
            untested[name] = version
    if untested:
        installed = ", ".join(f"{name} {version}" for name, version in untested.items())
        tested = ", ".join(f"{name} {TESTED[name][0]} to {TESTED[name][1]}" for name in untested)
        warnings.warn(f"keras_capsvit is not tested with {installed}; its tests ran on {tested}.", stacklevel=2)


def require_tensorflow(name):
    """Refuse to import a part of the package that is TensorFlow's where that is not installed.

    Args:
        name: str, of the part.

    Raises:
        ModuleNotFoundError: without TensorFlow.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(
            f"{name} needs TensorFlow, whichever backend Keras has, and it is not installed: pip install tensorflow. "
            "Without it, on JAX, there are models, layers, losses, attacks, gradient explainers and measurements.",
            name="tensorflow",
        )


def _installed(name):
    if name == "Python":
        return "{}.{}".format(*sys.version_info)
    for package in (name, f"{name}-cpu"):  # TensorFlow has a release without GPUs under another name
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _release(version):
    """The first two numbers of a version, ints."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in f"{version}.0".split(".")[:2])
