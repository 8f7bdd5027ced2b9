"""DeepFool: on linear models, where its answer is known, and against Foolbox."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import CapsNet, attacks

rng = np.random.default_rng(0)
WEIGHTS = rng.normal(size=(36, 4)).astype("float32")
X = rng.uniform(0.4, 0.6, size=(20, 6, 6, 1)).astype("float32")
Y = (X.reshape(20, 36) @ WEIGHTS).argmax(1)


def linear(x):
    return ops.reshape(x, (-1, 36)) @ WEIGHTS


def sizes(change, norm):
    change = change.reshape(len(change), -1)
    return np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)


def distances(norm):
    """Of every image to the nearest border of a linear model."""
    scores = X.reshape(20, 36) @ WEIGHTS
    ways = np.full((20, 4), np.inf)
    for n, y in enumerate(Y):
        for k in set(range(4)) - {y}:
            w = WEIGHTS[:, k] - WEIGHTS[:, y]
            length = np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)
            ways[n, k] = (scores[n, y] - scores[n, k]) / length
    return ways.min(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_model_is_left_by_the_shortest_way(norm):
    adversarial = attacks.DeepFool(norm=norm)(linear, X, Y)
    assert (ops.convert_to_numpy(linear(adversarial)).argmax(1) != Y).all()
    np.testing.assert_allclose(sizes(adversarial - X, norm), 1.02 * (distances(norm) + 1e-4), rtol=1e-3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_targeted_reaches_the_wanted_class(norm):
    scores = X.reshape(20, 36) @ WEIGHTS
    targets = np.argsort(scores, axis=1)[:, -2]
    adversarial = attacks.DeepFool(norm=norm)(linear, X, targets, targeted=True)
    assert (ops.convert_to_numpy(linear(adversarial)).argmax(1) == targets).all()
    gap = scores[np.arange(20), Y] - scores[np.arange(20), targets]
    normal = WEIGHTS[:, targets] - WEIGHTS[:, Y]
    way = gap / (np.abs(normal).sum(0) if norm == "linf" else np.linalg.norm(normal, axis=0))
    # The border between the two is as near as the wanted class can be; a third class may lie in between.
    size = sizes(adversarial - X, norm)
    assert (size >= 1.01 * way).all()
    assert np.median(size / (1.02 * (way + 1e-4))) == pytest.approx(1, rel=1e-3)
    reached = ops.convert_to_numpy(linear(X)).argmax(1)
    np.testing.assert_array_equal(attacks.DeepFool(norm=norm)(linear, X, reached, targeted=True), X)


def test_no_image_goes_beyond_epsilon_or_moves_once_it_is_fooled():
    way = distances("l2")
    epsilon = float(np.median(way))
    adversarial = attacks.DeepFool(epsilon)(linear, X, Y)
    assert (sizes(adversarial - X, "l2") <= epsilon + 1e-6).all()
    fooled = ops.convert_to_numpy(linear(adversarial)).argmax(1) != Y
    assert fooled[way < 0.97 * epsilon].all()
    assert not fooled[way > epsilon].any()
    wrong = (Y + 1) % 4
    np.testing.assert_array_equal(attacks.DeepFool()(linear, X, wrong), X)


@pytest.mark.slow
def test_a_batch_is_its_images_one_by_one():
    keras.utils.set_random_seed(0)
    model = CapsNet((12, 12, 1), 5, kernel_size=3, filters=6, num_types=2, primary_dim=4, capsule_dim=5)
    x = np.random.default_rng(1).uniform(size=(4, 12, 12, 1)).astype("float32")
    for objective in (attacks.capsules(model), attacks.votes(model)):
        attack = attacks.DeepFool(candidates=3)
        y = ops.convert_to_numpy(objective(x)).argmax(1)
        adversarial = attack(objective, x, y)
        assert (ops.convert_to_numpy(objective(adversarial)).argmax(1) != y).all()
        singles = [attack(objective, x[i : i + 1], y[i : i + 1]) for i in range(4)]
        np.testing.assert_allclose(adversarial, np.concatenate(singles), atol=1e-4)


@pytest.mark.tensorflow
@pytest.mark.peers
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_finds_no_longer_ways_than_foolbox(norm, digits):
    foolbox = pytest.importorskip("foolbox")
    keras.utils.set_random_seed(0)
    images, labels = digits
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images[:1000], labels[:1000], epochs=4, verbose=0)
    x, y = images[1000:1100], model.predict(images[1000:1100], verbose=0).argmax(1)
    theirs = foolbox.attacks.L2DeepFoolAttack() if norm == "l2" else foolbox.attacks.LinfDeepFoolAttack()
    _, (expected,), (success,) = theirs(
        foolbox.TensorFlowModel(model, bounds=(0, 1)),
        ops.convert_to_tensor(x),
        ops.convert_to_tensor(y),
        epsilons=[None],
    )
    adversarial = attacks.DeepFool(norm=norm)(model, x, y)
    fooled = model.predict(adversarial, verbose=0).argmax(1) != y
    np.testing.assert_array_equal(fooled, success)
    assert fooled.mean() > 0.95
    ours, foolboxs = (sizes(ops.convert_to_numpy(each) - x, norm)[fooled].mean() for each in (adversarial, expected))
    assert ours <= 1.01 * foolboxs


def test_bad_settings_are_refused():
    for arguments, message in (
        ({"epsilon": -1}, "epsilon must be a number .* received -1"),
        ({"steps": 0}, "steps must be an integer from 1 .*; received 0"),
        ({"candidates": 1}, "candidates must be an integer from 2; received 1"),
        ({"norm": "l1"}, "received 'l1'"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.DeepFool(**arguments)
