"""Adversarial patches: against a replica of the loop, and their properties."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import ConvNetAvg, attacks, evaluate
from keras_capsvit.patches import PatchGrid, apply_patch, cut_patches, random_positions

SHAPE = (8, 10, 2)
X = np.random.default_rng(0).uniform(size=(9, *SHAPE)).astype("float32")
WEIGHTS = np.random.default_rng(1).normal(size=(np.prod(SHAPE), 4)).astype("float32")
GRID = PatchGrid(SHAPE, 2)


def linear(x):
    return 0.5 * ops.matmul(ops.reshape(x, (-1, WEIGHTS.shape[0])), WEIGHTS)


def scores_of(x):
    return 0.5 * x.reshape(len(x), -1).astype("float64") @ WEIGHTS


Y = scores_of(X).argmax(axis=1)


@pytest.fixture(scope="module")
def convnet():
    keras.utils.set_random_seed(0)
    return ConvNetAvg(SHAPE, 3, kernel_size=3, filters=6)


def replica(x, y, attack, positions, targeted=False):
    """The loop, image by image, with the gradient of the cross-entropy of linear scores."""
    noise = np.random.default_rng(attack.seed).uniform(size=(len(positions[0]), *attack.patch_size, x.shape[-1]))
    result, fooled, iterations = [], [], []
    for image, label, places in zip(x, y, positions, strict=True):
        low, high = image.copy(), image.copy()
        start = image.copy()
        for k, (top, left) in enumerate(places):
            place = slice(top, top + attack.patch_size[0]), slice(left, left + attack.patch_size[1])
            radius = np.inf if attack.epsilon is None else attack.epsilon
            low[place] = np.maximum(0, image[place] - radius)
            high[place] = np.minimum(1, image[place] + radius)
            start[place] = low[place] + noise[k] * (high[place] - low[place])
        for step in range(attack.steps + 1):
            scores = scores_of(start[None])[0]
            done = (scores.argmax() == label) == targeted
            if (done and attack.early_stop) or step == attack.steps:
                break
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            gradient = (0.5 * WEIGHTS @ (probabilities - np.eye(4)[label])).reshape(image.shape)
            moved = start + np.float32(attack.step_size) * np.sign(gradient) * (-1 if targeted else 1)
            start = np.clip(moved, low, high).astype("float32")
        result.append(start)
        fooled.append(done)
        iterations.append(step)
    return np.array(result), np.array(fooled), np.array(iterations)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    "attack",
    [
        attacks.PatchAttack(3, positions=[(2, 4)], steps=4, step_size=0.03),
        attacks.PatchAttack((2, 4), positions=[(0, 0), (5, 6)], steps=5, step_size=0.01, epsilon=0.2, seed=3),
        attacks.PatchAttack(2, positions=GRID, num_patches=2, steps=3, step_size=0.05),
        attacks.PatchAttack(2, num_patches=3, steps=20, step_size=0.04, early_stop=False),
    ],
    ids=["one", "bounded", "grid", "to the end"],
)
def test_the_loop_is_the_one_of_the_paper(attack, targeted):
    y = (Y + 1) % 4 if targeted else Y
    result = attack.run(linear, X, y, targeted)
    values, fooled, iterations = replica(X, y, attack, result.positions, targeted)
    np.testing.assert_allclose(result.images, values, atol=1e-6)
    np.testing.assert_array_equal(result.fooled, fooled)
    np.testing.assert_array_equal(result.iterations, iterations)
    assert targeted or not attack.early_stop or 0 < fooled.sum() < len(fooled)
    np.testing.assert_array_equal(result.images, attack(linear, X, y, targeted))
    np.testing.assert_array_equal(apply_patch(X, result.patches, result.positions), result.images)
    judged = scores_of(result.images).argmax(axis=1)
    np.testing.assert_array_equal(result.fooled, (judged == y) == targeted)


@given(
    st.integers(0, 5),
    st.sampled_from([None, 0.0, 0.1]),
    st.sampled_from([None, GRID, ((6, 8),), ((0, 0), (1, 1))]),
    st.booleans(),
)
def test_pixels_outside_stay_and_inside_stay_within_bounds(seed, epsilon, positions, targeted):
    attack = attacks.PatchAttack(2, positions=positions, epsilon=epsilon, steps=6, step_size=0.2, seed=seed)
    result = attack.run(linear, X, Y, targeted)
    inside = apply_patch(np.zeros_like(X), np.ones((2, 2, 2)), result.positions) > 0
    np.testing.assert_array_equal(result.images[~inside], X[~inside])
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    if epsilon is not None:
        assert np.abs(result.images - X).max() <= epsilon + 1e-6
    np.testing.assert_array_equal(result.patches, cut_patches(result.images, result.positions, 2))


def test_a_batch_is_its_images_one_by_one(convnet):
    y = convnet.predict(X, verbose=0).argmax(axis=1)
    y[::3] = (y[::3] + 1) % 3  # fooled before they begin
    attack = attacks.PatchAttack(4, positions=[(2, 3)], steps=15, step_size=0.1)
    together = attack.run(convnet, X, y)
    assert len(set(together.iterations.tolist())) >= 2
    assert not together.iterations[::3].any()
    for k in range(len(X)):
        alone = attack.run(convnet, X[k : k + 1], y[k : k + 1])
        assert (alone.fooled[0], alone.iterations[0]) == (together.fooled[k], together.iterations[k])
        np.testing.assert_allclose(alone.images[0], together.images[k], atol=1e-5)


def test_fooled_images_leave_the_batch(monkeypatch):
    sizes, take = [], ops.take
    monkeypatch.setattr(ops, "take", lambda x, indices, axis: sizes.append(len(indices)) or take(x, indices, axis=axis))
    result = attacks.PatchAttack(3, positions=[(2, 4)], steps=40, step_size=0.03).run(linear, X, Y)
    left = sizes[1::5]  # of each departure one take is of those who leave, and four are of the state
    if keras.backend.backend() == "tensorflow":
        times = np.unique(result.iterations[result.fooled])
        after = [int(np.sum((result.iterations > t) | ~result.fooled)) for t in times]
        assert left == [count for count in after if count]
    else:
        assert set(left) <= {9, 4, 2, 1, 0}


def test_one_trace_serves_all_settings():
    traces = []

    def counted(x):
        traces.append(x.shape)
        return linear(x)

    attack = attacks.PatchAttack(2, positions=GRID, steps=2, step_size=0.001)
    for size in (9, 4, 2):  # TensorFlow learns that batches differ in size
        attack(counted, X[:size], Y[:size])
        dataclasses.replace(attack, step_size=0.2, steps=20)(counted, X[:size], Y[:size])
        dataclasses.replace(attack, step_size=0.0)(counted, X[:size], Y[:size])
    before = len(traces)
    for changes in ({"positions": [(1, 1)]}, {"patch_size": 3, "positions": None}, {"epsilon": 0.1}, {"seed": 4}):
        dataclasses.replace(attack, **changes)(counted, X, Y)
    assert len(traces) == before


def test_seeds_reproduce_and_differ():
    attack = attacks.PatchAttack(2, steps=3)
    result = attack.run(linear, X, Y)
    again, reseeded = attack.run(linear, X, Y), dataclasses.replace(attack, seed=1).run(linear, X, Y)
    np.testing.assert_array_equal(result.images, again.images)
    assert not np.array_equal(result.positions, reseeded.positions)
    assert len({tuple(each) for each in result.positions[:, 0].tolist()}) > 1


def test_a_universal_patch_is_steps_of_the_mean_loss():
    attack = attacks.PatchAttack(
        3, positions=[(2, 4), (0, 0)], universal=True, steps=12, step_size=0.07, batch_size=len(X)
    )
    result = attack.run(linear, X, Y)
    patches = np.random.default_rng(0).uniform(size=(2, 3, 3, 2))
    for _ in range(12):
        images = apply_patch(X.astype("float64"), patches, [(2, 4), (0, 0)])
        scores = scores_of(images)
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        gradient = (0.5 * (probabilities - np.eye(4)[Y]) @ WEIGHTS.T).reshape(X.shape)
        slope = cut_patches(gradient, [(2, 4), (0, 0)], 3).sum(axis=0)
        patches = np.clip(patches + 0.07 * np.sign(slope), 0, 1)
    np.testing.assert_allclose(result.patches, patches, atol=1e-5)
    np.testing.assert_allclose(result.images, apply_patch(X, result.patches, [(2, 4), (0, 0)]), atol=1e-6)
    np.testing.assert_array_equal(result.fooled, scores_of(result.images).argmax(axis=1) != Y)
    assert result.iterations.tolist() == [12] * len(X)


def test_a_universal_patch_at_random_positions_reaches_the_wanted_class():
    bright = lambda x: ops.mean(x, axis=(1, 2))  # noqa: E731  class 0 or 1 by the brighter channel, wherever it is
    x = np.random.default_rng(2).uniform(0.4, 0.6, size=(10, *SHAPE)).astype("float32")
    attack = attacks.PatchAttack(3, universal=True, steps=30, step_size=0.05, batch_size=4)
    for targets in (0, 1):
        result = attack.run(bright, x, np.full(10, targets), targeted=True)
        assert result.patches.shape == (1, 3, 3, 2)
        assert result.patches[..., targets].min() > 0.9
        assert result.patches[..., 1 - targets].max() < 0.1
        assert result.fooled.all()
        assert len(np.unique(result.positions.reshape(-1, 2), axis=0)) > 1
        moved = apply_patch(x, result.patches, random_positions(SHAPE, 3, len(x), seed=5))
        assert np.all(moved.mean(axis=(1, 2)).argmax(axis=1) == targets)


def test_it_fits_into_robust_accuracy(convnet):
    y = convnet.predict(X, verbose=0).argmax(axis=1)
    attack = attacks.PatchAttack((8, 10), positions=[(0, 0)], steps=30, step_size=0.1)
    result = attack.run(convnet, X, y)
    assert evaluate.robust_accuracy(convnet, attack, (X, y)) == pytest.approx(1 - result.fooled.mean())
    assert evaluate.success_rate(convnet, attack, (X, y), targets=lambda y: (y + 1) % 3) > 0


def test_no_images_are_no_trouble():
    for universal in (False, True):
        result = attacks.PatchAttack(2, universal=universal, steps=2).run(linear, X[:0], Y[:0])
        assert result.images.shape == (0, *SHAPE)
        assert result.fooled.shape == result.iterations.shape == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 0}, "patch_size must be an integer from 1"),
        ({"patch_size": 2, "epsilon": -0.1}, "epsilon must be a number in"),
        ({"patch_size": 2, "steps": 0}, "steps must be an integer from 1"),
        ({"patch_size": 2, "num_patches": 0}, "num_patches must be an integer from 1"),
        ({"patch_size": 2, "epsilon": 0.1, "universal": True}, "A universal patch has no image to stay close to"),
        ({"patch_size": 2, "bounds": (1, 0)}, "Expected bounds"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        attacks.PatchAttack(**settings)


def test_positions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"must lie within images of \(8, 10\); received the position \(7, 0\)"):
        attacks.PatchAttack(2, positions=[(7, 0)]).run(linear, X, Y)
    with pytest.raises(ValueError, match="Positions must be integers"):
        attacks.PatchAttack(2, positions=[(0.5, 0)]).run(linear, X, Y)
    with pytest.raises(ValueError, match="Pixels must lie within the bounds"):
        attacks.PatchAttack(2).run(linear, X + 1, Y)


def test_universal_patches_of_several_sizes_on_one_model():
    model = keras.Sequential([keras.Input((8, 10, 2)), keras.layers.Flatten(), keras.layers.Dense(3)])
    x, y = np.random.default_rng(0).uniform(size=(4, 8, 10, 2)).astype("float32"), np.array([0, 1, 2, 0])
    for size in (2, 3, (4, 2), 2):
        for count in (1, 2):
            attack = attacks.PatchAttack(size, num_patches=count, steps=2, universal=True)
            expected = np.broadcast_to(size, 2)
            assert attack.run(model, x, y).patches.shape == (count, *expected, 2)
            again = attack.run(keras.models.clone_model(model), x[:3], y[:3])  # of another model, and fewer images
            assert again.images.shape == (3, 8, 10, 2)
