"""Several devices and several processes train what one trains, by examples/train.py."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from keras_capsvit import training

TRAIN = pathlib.Path(__file__).parent.parent / "examples" / "train.py"
CAPSULES = '{"num_types": 2, "primary_dim": 4, "capsule_dim": 4, "filters": 8, "reconstruction": "conditional"}'
NETWORKS = {
    "GraCapsNet": ('{"num_heads": 4, "primary_dim": 4, "capsule_dim": 6, "filters": 8}',),
    "CapsNet": (CAPSULES, "--recipe", "capsnet"),
    "VisionTransformer": (
        '{"variant": "Ti/7", "width": 16, "depth": 1, "num_heads": 2, "mlp_units": 16}',
        *("--recipe", "resnet18", "--learning-rate", "0.01"),
    ),
}
# Some virtual machines lose wake-ups of processes with many threads, which then wait for ever.
_ATTEMPTS, _SECONDS = 2, 180
BATCHES = ("--batch-size", "128", "--dataset", "digits", "--deterministic")  # 11 steps per epoch


def command(backend, name, work, *options, epochs=1):
    """Arguments and environment of a training."""
    settings, *more = NETWORKS[name]
    arguments = [sys.executable, TRAIN, name, "--settings", settings, *BATCHES, *more]
    arguments += ["--epochs", epochs, "--work", work, *options]
    return {"args": list(map(str, arguments)), "env": {**os.environ, "KERAS_BACKEND": backend}}


def trained(backend, name, work, *options, epochs=1):
    """Rows of epochs.csv of a training."""
    asked = command(backend, name, work, *options, epochs=epochs)
    for attempt in range(_ATTEMPTS):
        with subprocess.Popen(**asked, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                errors = process.communicate(timeout=_SECONDS * epochs)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                shutil.rmtree(work, ignore_errors=True)
                assert attempt + 1 < _ATTEMPTS, f"no end after {_SECONDS * epochs} seconds"
                continue
        assert process.returncode == 0, errors[-3000:]
        break
    return rows(work)


def rows(work):
    with open(work / "epochs.csv") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def assert_same(ours, expected, tolerance=1e-4):
    assert len(ours) == len(expected)
    for row, expected_row in zip(ours, expected, strict=True):
        assert row["loss"] == pytest.approx(expected_row["loss"], rel=tolerance)
        assert row["val_loss"] == pytest.approx(expected_row["val_loss"], rel=tolerance)


def check_processes(tmp_path, name, *options, epochs=1):
    pytest.importorskip("jax")
    expected = trained("jax", name, tmp_path / "alone", *options, epochs=epochs)
    assert_same(trained("jax", name, tmp_path / "shared", *options, "--here", 2, epochs=epochs), expected)


@pytest.mark.slow  # one minute, but nothing else in CI has several processes
@pytest.mark.tensorflow
def test_two_processes_train_what_one_does(tmp_path):
    check_processes(tmp_path, "GraCapsNet")


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_devices_on_jax_train_what_one_does(tmp_path, monkeypatch):
    pytest.importorskip("jax")
    expected = trained("jax", "GraCapsNet", tmp_path / "alone")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert_same(trained("jax", "GraCapsNet", tmp_path / "shared"), expected)


# In one order for all epochs: to build a model Keras reads a batch more under a strategy, so that every
# epoch has the order of the next one then.
ON_DEVICES = """
import contextlib, json, sys
import keras
import tensorflow as tf
import keras_capsvit
from keras_capsvit import attacks, data, training

name, settings, devices, adversarial, epochs = sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:])
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
names = [device.name for device in tf.config.list_logical_devices("CPU")]
scope = tf.distribute.MirroredStrategy(names).scope() if devices > 1 else contextlib.nullcontext()
keras.utils.set_random_seed(0)
x, y = data.take(data.load("digits", split="test", batch_size=352), 352)
stream = data.from_arrays(x, y, batch_size=32)
loss = "cross_entropy" if name == "VisionTransformer" else "margin"
recipe = training.Recipe(epochs=epochs, learning_rate=0.003, loss=loss)
with scope:
    model = getattr(keras_capsvit, name)(input_shape=(28, 28, 1), num_classes=10, **settings)
    if adversarial:
        history = training.adversarial_fit(model, stream, stream, recipe, attacks.PGD(0.05, steps=2), verbose=0)
    else:
        history = training.fit(model, stream, stream, recipe, verbose=0)
print(json.dumps(history.history))
"""


def on_devices(fresh_process, name, devices, adversarial=False, epochs=1):
    """Rows of losses of a training on so many devices of TensorFlow."""
    printed = fresh_process(ON_DEVICES, name, NETWORKS[name][0], devices, int(adversarial), epochs).splitlines()[-1]
    losses = json.loads(printed)
    return [dict(zip(losses, row, strict=True)) for row in zip(*losses.values(), strict=True)]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_devices_train_what_one_does(fresh_process):
    assert_same(*(on_devices(fresh_process, "GraCapsNet", devices) for devices in (2, 1)))


# Fifty steps and more.
@pytest.mark.long
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("adversarial", [False, True], ids=["natural", "adversarial"])
@pytest.mark.parametrize("kind", ["processes", "devices"])
def test_fifty_steps_of_several_are_those_of_one(tmp_path, fresh_process, name, adversarial, kind):
    if kind == "processes":
        check_processes(
            tmp_path, name, *(("--adversarial", 0.05, "--attack-steps", 2) if adversarial else ()), epochs=5
        )
    else:
        assert_same(*(on_devices(fresh_process, name, devices, adversarial, epochs=5) for devices in (2, 1)))


@pytest.mark.long
@pytest.mark.tensorflow
def test_a_killed_process_costs_an_epoch_and_nothing_else(tmp_path):
    pytest.importorskip("jax")
    expected = trained("jax", "GraCapsNet", tmp_path / "whole", "--here", 2, epochs=4)
    work = tmp_path / "killed"
    with subprocess.Popen(
        **command("jax", "GraCapsNet", work, "--here", 2, epochs=4), stdout=subprocess.PIPE, text=True
    ) as launcher:
        until = time.monotonic() + 600
        while not (work / "epochs.csv").exists() or len(rows(work)) < 2:
            assert launcher.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        os.kill(child_of(launcher.pid, "--process 1"), signal.SIGKILL)
        said = launcher.communicate(timeout=900)[0]
    assert launcher.returncode == 0
    assert "A process ended with" in said and "-9" in said
    assert rows(work) == expected


def child_of(parent, arguments):
    """Process id of the child of a process whose command has these arguments."""
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            status, said = (path / "stat").read_text(), (path / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it is gone
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent and arguments in said:
            return int(path.name)
    raise AssertionError(f"no child with {arguments}")


@pytest.mark.tensorflow
def test_processes_share_the_rows_of_every_batch():
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices((np.arange(12), {"a": np.arange(12) * 2})).batch(6)
    parts = [list(training.share(stream, 3, number).as_numpy_iterator()) for number in range(3)]
    assert [part[0][0].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [part[1][1]["a"].tolist() for part in parts] == [[12, 14], [16, 18], [20, 22]]
    assert training.share(stream) is stream
    assert int(training.share(stream, 3, 0).cardinality()) == 2
    with pytest.raises(ValueError, match=r"batches that 4 processes share evenly; received one of 6"):
        training.share(stream.map(lambda x, y: (tf.ensure_shape(x, (6,)), y)), 4, 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="4 processes share evenly"):
        list(training.share(stream, 4, 0))
    with pytest.raises(ValueError, match="number must be an integer from 0 to 2; received 3"):
        training.share(stream, 3, 3)
    with pytest.raises(ValueError, match="count must be"):
        training.share(stream, 0)
    with pytest.raises(ValueError, match=r"Expected a tf\.data\.Dataset of batches to share; received list"):
        training.share([1, 2], 2, 0)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("GraphNet",), "GraphNet is no class of keras_capsvit"),
        (("CapsNet", "--here", "2"), "set KERAS_BACKEND=jax"),
        (("CapsNet", "--processes", "2"), "set KERAS_BACKEND=jax"),
    ],
)
def test_what_cannot_be_trained_together_is_said(options, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(TRAIN.parent)
    import train

    with pytest.raises(SystemExit):
        train.parse(list(options))
    assert message in capsys.readouterr().err
