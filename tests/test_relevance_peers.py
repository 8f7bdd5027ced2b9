"""Relevance against zennit and LXT, with the same weights in PyTorch."""

import importlib.util
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import as_if_trained, vit

from keras_capsvit import explain

pytestmark = [pytest.mark.tensorflow, pytest.mark.peers]
X = np.random.default_rng(0).uniform(size=(3, 12, 12, 3)).astype("float32")
TARGETS = np.array([0, 3, 1])
layers = keras.layers

SUMS = ("*", "proportional", {"epsilon": 1e-6})  # zennit's, for residual sums and average pooling

# By the names of relevance_of_peers.py: rules, and range of the input.
RULES = {
    "z_plus": ("z_plus", None),
    "z_plus_box": ("z_plus", (0, 1)),
    "epsilon": ("epsilon", None),
    "epsilon_plus_box": ("epsilon_plus", (0, 1)),
    "alpha2_beta1": ("alpha2_beta1", None),
    "gamma": ("gamma", None),
    "epsilon_gamma_box": ("epsilon_gamma_box", (0, 1)),
    "flat": ("z_plus", None, ("input", "flat")),
    "w_square": ("z_plus", None, ("input", "w_square")),
}


def chain():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            layers.MaxPooling2D(2),
            layers.Conv2D(10, 3, name="conv2"),
            layers.BatchNormalization(name="bn2"),
            layers.ReLU(),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(12, activation="relu", name="fc1"),
            layers.Dense(5, name="fc2"),
        ]
    )


def residual():
    """Residual sum, concatenation, depthwise and strided convolutions, global average."""
    images = keras.Input((12, 12, 3))
    features = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1")(images)
    deep = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(features)
    deep = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 1, name="pointwise")(deep))
    summed = layers.ReLU()(layers.Add()([features, deep]))
    joined = layers.Concatenate()([summed, features])
    last = layers.Conv2D(12, 3, strides=2, activation="relu", name="conv2")(joined)
    scores = layers.Dense(5, name="fc2")(layers.GlobalAveragePooling2D()(last))
    return keras.Model(images, scores)


def peer(package, make, folder):
    """A model as after a training, and what a peer says about it."""
    for needed in ("torch", package):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
    keras.utils.set_random_seed(0)
    model = as_if_trained(make())
    arrays = {v.path.removeprefix(f"{model.name}/"): v.numpy() for v in model.weights}
    np.savez(folder / "weights.npz", x=X, targets=TARGETS, **arrays)
    script = pathlib.Path(__file__).parent / "relevance_of_peers.py"
    command = [sys.executable, script, make.__name__, folder / "weights.npz", folder / "relevance.npz"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "relevance.npz") as stored:
        return model, dict(stored)


@pytest.fixture(scope="module", params=[chain, residual], ids=lambda make: make.__name__)
def pair(request, tmp_path_factory):
    return peer("zennit", request.param, tmp_path_factory.mktemp("zennit"))


def difference(result, expected):
    return np.abs(result - expected).max() / np.abs(expected).max()


def test_the_models_are_the_same(pair):
    model, theirs = pair
    np.testing.assert_allclose(theirs["scores"], model(X), atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_rules_equal_zennit(pair, name):
    model, theirs = pair
    rules, input_range, *own = RULES[name]
    maps = explain.LRP(model, [*own, SUMS, rules], input_range=input_range, channels=True)(X, TARGETS)
    assert difference(maps, theirs[name]) <= 1e-5


@pytest.mark.parametrize("variant", ["others", "negated"])
def test_contrast_equals_two_passes_of_zennit(pair, variant):
    model, theirs = pair
    maps = explain.CLRP(model, variant, rules=[SUMS, "z_plus"], input_range=(0, 1), channels=True)(X, TARGETS)
    assert difference(maps, theirs[variant]) <= 1e-4


def test_transformer_equals_lxt(double, tmp_path):
    model, theirs = peer("lxt", vit, tmp_path)
    np.testing.assert_allclose(theirs["scores"], model(X), atol=1e-5)
    # LXT adds its stabiliser without regard to the sign, so only a negligible one is comparable.
    alike = [("*", rule, {"epsilon": 1e-14}) for rule in ("epsilon", "uniform", "proportional")]
    maps = explain.LRP(model, [*alike, "attn_lrp"], channels=True)(X, TARGETS)
    assert difference(maps, theirs["attn_lrp"]) <= 1e-5
