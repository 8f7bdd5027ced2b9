"""Shared by all tests: quiet logs, a fixed seed, the backend switch, and small models of real shape."""

import collections
import gc
import importlib
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import settings
from sklearn.datasets import load_digits

from keras_capsvit import GraCapsNet

try:
    import tensorflow as tf
except ImportError:  # with JAX alone
    tf = None

ROOT = pathlib.Path(__file__).parent.parent

# Tracing makes millions of objects that live; to look through them again and again takes a fifth of all time.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 100)
if tf:
    tf.random.set_seed(0)

_CASES_ON_JAX = 2  # of a parametrised test, by default
_SLOW_CASES = 3  # of a parametrised test; more are long

settings.register_profile("tests", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, where it is installed
def pytest_xdist_auto_num_workers(config):
    """One file, tests by their ids, or a selection from all by -k run in this process, where they can be debugged."""
    files = [argument for argument in config.args if "::" not in argument]
    if config.args_source is not config.ArgsSource.ARGS:
        return 0 if config.option.keyword else None
    return 0 if not files or (len(files) == 1 and files[0].endswith(".py")) else None


@pytest.hookimpl(tryfirst=True)  # before marks select
def pytest_collection_modifyitems(items):
    cases = collections.defaultdict(list)
    is_tensorflow = keras.backend.backend() == "tensorflow"
    for item in items:
        cases[item.fspath, item.originalname].append(item)
    for each in cases.values():
        samples = each[0].get_closest_marker("samples")
        slow = [item for item in each if item.get_closest_marker("slow") is not None]
        quick = [item for item in each if item not in slow]
        count = next(iter(samples.args), len(quick)) if samples else len(quick)
        if not is_tensorflow:  # cases differ in settings, which are the same on all backends
            count = min(count, _CASES_ON_JAX)
        slow += _left_over(quick, count, pytest.mark.slow)
        _left_over(slow, samples.kwargs.get("slow", _SLOW_CASES) if samples else _SLOW_CASES, pytest.mark.long)
    if not is_tensorflow:
        skip = pytest.mark.skip(reason="TensorFlow only")
        for item in items:
            if item.get_closest_marker("tensorflow"):
                item.add_marker(skip)


def _left_over(items, count, mark):
    """The items but for so many, spread over all; they get the mark."""
    kept = {int((n + 0.5) * len(items) / count) for n in range(min(count, len(items)))}
    left = [item for n, item in enumerate(items) if n not in kept]
    for item in left:
        item.add_marker(mark)
    return left


@pytest.fixture(autouse=True)
def seed(request, monkeypatch):
    """Every test draws the same numbers, whichever tests ran before it."""
    with monkeypatch.context() as patch:
        # Which nothing draws from, here or in the package, and which takes every kernel along that was made: a fifth of
        # the time of small tests.
        if tf:
            patch.setattr(tf.random, "set_seed", lambda seed: None)
        keras.utils.set_random_seed(0)
    if hasattr(request.module, "rng"):
        monkeypatch.setattr(request.module, "rng", np.random.default_rng(0))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """On JAX, what a file compiled goes after it: the memory maps of all files' programs exceed what Linux grants."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


@pytest.fixture(scope="session")
def digits():
    """All 1,797 real digits: images (n, 8, 8, 1) in [0, 1] and labels (n,)."""
    dataset = load_digits()
    return (dataset.images[..., None] / 16).astype("float32"), dataset.target.astype("int64")


@pytest.fixture
def small_model():
    """Builder of small graph capsule networks."""

    def build(input_shape=(12, 12, 1), num_classes=10, **kwargs):
        settings = {"num_heads": 4, "primary_dim": 4, "capsule_dim": 6, "filters": 16, **kwargs}
        return GraCapsNet(input_shape, num_classes, **settings)

    return build


@pytest.fixture
def double():
    """The small denominators of the epsilon rule amplify rounding; in double precision rules show, not rounding."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def fresh_process():
    """Run Python code in a new interpreter; returns what it printed."""

    def run(code, *args):
        done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def resized(digits):
    """First n digits, enlarged to size x size, with a number of channels."""

    def make(n, size, channels=1):
        images = keras.ops.image.resize(digits[0][:n], (size, size), data_format="channels_last")
        return np.repeat(keras.ops.convert_to_numpy(images), channels, axis=-1).clip(0, 1)

    return make


@pytest.fixture(scope="session")
def enlarged_digits():
    """Test images ``(5, 28, 28, 1)`` of the model in saved_models."""
    from keras_capsvit import data

    return data.take(data.load("digits", split="test"), 5)[0]


@pytest.fixture(scope="session")
def served_digits():
    """The model in saved_models."""
    from keras_capsvit import serving

    return serving.load(ROOT / "saved_models" / "digits_gracapsnet")


@pytest.fixture
def serve_example(monkeypatch):
    """Import of a file in examples/serve."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "serve")
    return importlib.import_module


@pytest.fixture
def serve_main(serve_example, monkeypatch, capsys):
    """Run a file in examples/serve in this process; returns the lines that it printed."""

    def run(name, *args):
        example = serve_example(name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        example.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture(scope="session")
def stand_in():
    """URL of examples/serve/server.py with the model in saved_models."""
    pytest.importorskip("waitress")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "serve")
        load_test = importlib.import_module("load_test")
    with load_test.stand_in(ROOT / "saved_models" / "digits_gracapsnet") as (url, name, _):
        assert name == "digits_gracapsnet"
        yield url


@pytest.fixture
def streams(digits, resized):
    """Digits (12, 12, 1) to train on, 160 in batches of 40, and the first 40 to judge by."""
    from keras_capsvit import data

    x, y = resized(160, 12), digits[1][:160]
    return data.from_arrays(x, y, batch_size=40), data.from_arrays(x[:40], y[:40], batch_size=40)
