"""``set_deterministic``: two runs, and an interrupted one, are the same bit by bit for every family."""

import random

import keras
import numpy as np
import pytest

from keras_capsvit import training
from keras_capsvit.layers import CapsuleInitializer

pytestmark = pytest.mark.tensorflow

# In a process of its own, because operations stay deterministic until it ends.
RUNS = """
import hashlib, os, pathlib, sys, tempfile
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
from keras_capsvit import data, models, training
from keras_capsvit.training import progress

SHAPE = (12, 12, 1)
CONV = {"filters": 4, "kernel_size": 3}
CAPSULES = {**CONV, "num_types": 2, "primary_dim": 4, "capsule_dim": 4}
DECODER = {"reconstruction": "conditional", "reconstruction_units": (8,)}
SIZE = {"input_shape": SHAPE, "num_classes": 3, "width": 8, "depth": 1, "dropout": 0.3, "drop_path": 0.3}
FAMILIES = {
    "GraCapsNet": lambda: models.GraCapsNet(SHAPE, 3, num_heads=2, filters=4, **DECODER),
    "CapsNet": lambda: models.CapsNet(SHAPE, 3, **CAPSULES, **DECODER),
    "CapsNet, EM": lambda: models.CapsNet(SHAPE, 3, **CAPSULES, routing="em"),
    "AffCapsNet": lambda: models.AffCapsNet(SHAPE, 3, **CAPSULES),
    "ConvNetAvg": lambda: models.ConvNetAvg(SHAPE, 3, **CONV),
    "ConvNetFC": lambda: models.ConvNetFC(SHAPE, 3, kernel_size=3, filters=(4, 4), units=(8,)),
    "ConvNetCR": lambda: models.ConvNetCR(SHAPE, 3, **CONV, group_dim=4, reconstruction_units=(8,)),
    "ResNet20": lambda: models.ResNet20(input_shape=SHAPE, num_classes=3),
    "MLPMixer": lambda: models.MLPMixer("S/4", **SIZE, token_units=8, channel_units=8),
    "VisionTransformer": lambda: models.VisionTransformer("Ti/4", **SIZE, num_heads=2, mlp_units=8),
    "DeiT": lambda: models.DeiT("Ti/4", **SIZE, num_heads=2, mlp_units=12),
}


class Cut(Exception):
    pass


def train(build, work, cut=False):
    training.set_deterministic(3)
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(24, *SHAPE)).astype("float32"), random.integers(3, size=24)
    stream = data.augment(data.from_arrays(x, y, batch_size=8, shuffle=True), shift=1, flip=True)
    model = build()
    loss = "margin" if "lengths" in model.taps else "cross_entropy"
    original = progress.Progress.on_epoch_end

    def before(self, epoch, logs=None):
        if cut and epoch == 1:
            raise Cut
        original(self, epoch, logs)

    progress.Progress.on_epoch_end = before
    try:
        history = training.fit(model, stream, None, training.Recipe(2, loss=loss), work=work, verbose=0).history
    finally:
        progress.Progress.on_epoch_end = original
    return hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest(), history


for name in sys.argv[1:] or FAMILIES:
    build = FAMILIES[name]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        once, again = (train(build, folder / str(k)) for k in range(2))
        try:
            train(build, folder / "cut", cut=True)
        except Cut:
            resumed = train(build, folder / "cut")
    print("SAME" if once == again == resumed else "OTHER", name, once[0])
"""


def check(lines, families):
    assert [line.split()[0] for line in lines] == ["SAME"] * families
    assert len({line.split()[-1] for line in lines}) == families  # and not all of them nothing


@pytest.mark.long
def test_families_train_the_same(fresh_process):
    check(fresh_process(RUNS, "GraCapsNet", "CapsNet", "DeiT").splitlines(), 3)


@pytest.mark.long
def test_every_family_trains_the_same(fresh_process):
    check(fresh_process(RUNS).splitlines(), 11)


def test_it_seeds_all_and_asks_for_deterministic_operations(monkeypatch):
    """Not for real, because that holds until the process ends."""
    import tensorflow as tf

    asked, draws = [], []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    for seed in (5, 5, 6):
        training.set_deterministic(seed)
        numbers = [random.random(), np.random.uniform()]  # noqa: NPY002, the generators that are seeded
        weights = (CapsuleInitializer()((1, 1)), keras.initializers.RandomNormal()((1, 1)))
        draws.append([*numbers, *(float(each[0, 0]) for each in weights), float(tf.random.uniform(()))])
    assert len(asked) == 3
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_what_is_no_seed_is_refused(monkeypatch):
    for seed in (-1, 2**32, 1.5, None, True, "0"):
        with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294967295"):
            training.set_deterministic(seed)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="needs the tensorflow or the jax backend; received KERAS_BACKEND='torch'"):
        training.set_deterministic(0)
