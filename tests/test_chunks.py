"""Capsule networks that vote, route and pool a few images at a time: the same numbers, forwards and backwards."""

import collections
import re

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import CapsNet, GraCapsNet, MarginLoss, attacks, autodiff, load_model, taps

SHAPE, CLASSES = (10, 10, 1), 5
SMALL = {"num_types": 2, "primary_dim": 4, "capsule_dim": 4, "filters": 4, "kernel_size": 3}
NETWORKS = {
    "dynamic": lambda **settings: CapsNet(SHAPE, CLASSES, **SMALL, **settings),
    "rolled": lambda **settings: CapsNet(SHAPE, CLASSES, routing="rolled", **SMALL, **settings),
    "trainable": lambda **settings: CapsNet(SHAPE, CLASSES, routing="trainable", **SMALL, **settings),
    "uniform, shared": lambda **settings: CapsNet(
        SHAPE, CLASSES, routing="uniform", shared_transform=True, **SMALL, **settings
    ),
    "em": lambda **settings: CapsNet(SHAPE, CLASSES, routing="em", **SMALL, **settings),
    "self": lambda **settings: CapsNet(SHAPE, CLASSES, routing="self", **SMALL, **settings),
    "gracapsnet": lambda **settings: GraCapsNet(
        SHAPE, CLASSES, num_heads=2, primary_dim=4, capsule_dim=4, filters=4, **settings
    ),
}


def data(n=7):
    random = np.random.default_rng(0)
    return random.uniform(size=(n, *SHAPE)).astype("float32"), np.arange(n) % CLASSES


def both(name, size=3, **settings):
    """A network, and its twin of the same weights that runs a few images at a time."""
    whole, few = NETWORKS[name](**settings), NETWORKS[name](images_at_once=size, **settings)
    values = weights(whole)
    assert set(weights(few)) == set(values)
    for name, weight in named(few).items():
        weight.assign(values[name])
    return whole, few


def named(model):
    """Variables by their paths without the numbers of layers, and how many of that name there were before."""
    seen, variables = collections.Counter(), {}
    for weight in model.weights:
        path = re.sub(r"_\d+", "", weight.path)
        variables[path, seen[path]] = weight
        seen[path] += 1
    return variables


def weights(model):
    return {name: ops.convert_to_numpy(weight) for name, weight in named(model).items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_few_images_at_a_time_train_as_all_do(name):
    networks, (x, y) = both(name), data()
    np.testing.assert_allclose(*(model.predict(x, verbose=0) for model in networks), rtol=1e-5, atol=1e-6)
    losses = []
    for model in networks:
        model.compile(keras.optimizers.SGD(0.5), MarginLoss())
        losses.append([model.train_on_batch(x, y) for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    expected = weights(networks[0])
    for name, ours in weights(networks[1]).items():
        np.testing.assert_allclose(ours, expected[name], rtol=1e-4, atol=1e-6, err_msg=str(name))


@pytest.mark.samples(2)
@pytest.mark.parametrize("name", ["dynamic", "gracapsnet", "em"])
def test_gradients_taps_and_attacks_are_the_same(name):
    networks, (x, y) = both(name, size=2), data(5)
    gradients = []
    for model in networks:
        goal = attacks.capsules(model)
        gradients.append(ops.convert_to_numpy(autodiff.value_and_gradient(goal.loss, goal.variables)(x, y)[1]))
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)
    for tap in ("capsules", "contributions"):
        values = [ops.convert_to_numpy(taps.tap(model, tap)(x)) for model in networks]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)
    examples = [attacks.PGD(0.1, steps=3)(model, x, y) for model in networks]
    np.testing.assert_allclose(*examples, atol=1e-5)


def test_decoder_file_and_sizes(tmp_path):
    whole, few = both("dynamic", size=2, reconstruction="conditional")
    x, y = data(4)
    np.testing.assert_allclose(*(ops.convert_to_numpy(each.reconstruct(x, y)) for each in (whole, few)), atol=1e-6)
    few.save(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    assert again.get_config()["images_at_once"] == 2
    for n in (1, 2, 4):  # fewer than a chunk, and whole ones
        np.testing.assert_allclose(again(x[:n]), whole(x[:n]), rtol=1e-5, atol=1e-6)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="images_at_once must be"):
            NETWORKS["dynamic"](images_at_once=wrong)
