"""Patches under transformations: against a loop over pixels, and what the attack gains by expecting them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import checks
from keras_capsvit.attacks import PatchAttack, PatchTransforms
from keras_capsvit.patches import PatchGrid, apply_patch

SHAPE = (8, 10, 2)
X = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype("float32")
WEIGHTS = np.random.default_rng(1).normal(size=(np.prod(SHAPE), 4)).astype("float32")
ALL = {"translation": 2, "rotation": 40.0, "scale": (0.7, 1.4), "brightness": 0.2}


def linear(x):
    return 0.5 * ops.matmul(ops.reshape(x, (-1, WEIGHTS.shape[0])), WEIGHTS)


def scores_of(x):
    return 0.5 * x.reshape(len(x), -1).astype("float64") @ WEIGHTS


Y = scores_of(X).argmax(axis=1)


def seen(image, patches, places):
    """An image with patches, pixel by pixel."""
    result = image.astype("float64").copy()
    for patch, (top, left, cos, sin, brightness) in zip(patches, places, strict=True):
        height, width = patch.shape[:2]
        for row, column in np.ndindex(image.shape[:2]):
            v = (height - 1) / 2 + cos * (row - top) + sin * (column - left)
            u = (width - 1) / 2 - sin * (row - top) + cos * (column - left)
            if not (-0.5 <= v < height - 0.5 and -0.5 <= u < width - 0.5):
                continue
            v, u = min(max(v, 0), height - 1), min(max(u, 0), width - 1)
            shares = [
                (1 - abs(v - i)) * (1 - abs(u - j)) * patch[i, j]
                for i, j in np.ndindex(height, width)
                if abs(v - i) < 1 and abs(u - j) < 1
            ]
            result[row, column] = np.clip(np.sum(shares, axis=0) + brightness, 0, 1)
    return result


@pytest.mark.parametrize("size", [(3, 3), (2, 4), (1, 1)])
def test_patches_are_seen_as_a_loop_sees_them(size):
    patches = np.random.default_rng(2).uniform(size=(5, 2, *size, 2)).astype("float32")
    positions, seeing = np.array([(1, 2), (5, 6)]), PatchTransforms(draws=3, **ALL)
    views = seeing.apply(X, patches, positions, seed=4)
    places = seeing.draw(4, range(5), np.broadcast_to(positions, (5, 2, 2)), size, SHAPE[:2])[:, 0]
    assert views.shape == (5, 3, *SHAPE)
    for k, draw in np.ndindex(5, 3):
        np.testing.assert_allclose(views[k, draw], seen(X[k], patches[k], places[k, draw]), atol=2e-5)


@given(st.integers(0, 10**6), st.sampled_from([0, 1, 3, None]))
def test_positions_reach_as_far_as_they_may_and_no_farther(seed, translation):
    positions = np.random.default_rng(seed).integers([6, 7], size=(2, 1, 2))
    places = PatchTransforms(draws=400, translation=translation).draw(seed, [3, 9], positions, (3, 4), SHAPE[:2])
    corners = places[..., 0, :2] - [1, 1.5]
    far = 10 if translation is None else translation
    for k in range(2):
        expected = [
            sorted(set(np.clip(np.arange(at - far, at + far + 1), 0, last)))
            for at, last in zip(positions[k, 0], (5, 6), strict=True)
        ]
        assert [sorted(set(corners[k, 0, :, axis])) for axis in range(2)] == expected
    np.testing.assert_array_equal(places[..., 2:], np.broadcast_to([1.0, 0, 0], places[..., 2:].shape))


@pytest.mark.parametrize("targeted", [False, True])
def test_without_a_range_it_is_the_attack_without_transforms(targeted):
    y = (Y + 1) % 4 if targeted else Y
    attack = PatchAttack((2, 3), positions=PatchGrid(SHAPE, (2, 3)), num_patches=2, steps=40, step_size=0.04)
    plain = attack.run(linear, X, y, targeted)
    same = dataclasses.replace(attack, transforms=PatchTransforms(draws=1)).run(linear, X, y, targeted)
    assert len(set(plain.iterations)) > 2
    for name in ("images", "patches", "fooled", "iterations", "positions"):
        np.testing.assert_allclose(getattr(same, name), getattr(plain, name), atol=1e-6)


def test_a_step_is_along_the_mean_gradient_of_the_draws():
    seeing = PatchTransforms(draws=3, **{**ALL, "brightness": 0.0})
    attack = PatchAttack(2, positions=[(3, 4)], steps=2, step_size=0.01, early_stop=False, transforms=seeing)
    result = attack.run(linear, X, Y)
    assert result.iterations.tolist() == [2] * 5
    noise = np.random.default_rng(0).uniform(size=(2, 2, 2))
    places = seeing.draw([0, 2, 0], range(5), np.full((5, 1, 2), (3, 4)), (2, 2), SHAPE[:2], 16)
    for k in range(5):
        patch = noise.copy()
        for step in range(2):
            slope = np.zeros(8)
            for place in places[k, step]:
                black = seen(X[k], np.zeros((1, 2, 2, 2)), place)
                units = np.eye(8).reshape(8, 2, 2, 2)
                influence = np.array([seen(X[k], unit[None], place) - black for unit in units])
                scores = scores_of(seen(X[k], patch[None], place)[None])[0]
                probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                slope += influence.reshape(8, -1) @ (0.5 * WEIGHTS @ (probabilities - np.eye(4)[Y[k]]))
            patch = np.clip(patch + 0.01 * np.sign(slope.reshape(2, 2, 2)), 0, 1)
        np.testing.assert_allclose(result.patches[k, 0], patch, atol=1e-5)


@pytest.mark.parametrize("positions", [None, [(2, 3)]])
def test_a_batch_is_its_images_one_by_one_and_only_patches_change(positions):
    attack = PatchAttack(
        3, positions=positions, steps=40, step_size=0.06, seed=2, transforms=PatchTransforms(draws=4, **ALL)
    )
    y = Y.copy()
    y[1] = (y[1] + 1) % 4  # fooled before it begins
    numbers = np.array([4, 1, 7, 0, 2])
    together = attack.run(linear, X, y, numbers=numbers)
    assert len(set(together.iterations)) > 1
    for k in range(5):
        alone = attack.run(linear, X[k : k + 1], y[k : k + 1], numbers=numbers[k : k + 1])
        np.testing.assert_allclose(alone.images[0], together.images[k], atol=1e-5)
        assert alone.iterations[0] == together.iterations[k]
    inside = apply_patch(np.zeros_like(X), np.ones((3, 3, 2)), together.positions) > 0
    np.testing.assert_array_equal(together.images[~inside], X[~inside])
    assert 0 <= together.images.min() <= together.images.max() <= 1
    assert not np.array_equal(dataclasses.replace(attack, seed=3)(linear, X, y), together.images)
    np.testing.assert_array_equal(together.images, attack(linear, X, y, numbers=numbers))


def spot(x):
    """Class 1 where a bright pixel stands beside a dark one, anywhere; which a turned patch may no longer show."""
    edges = ops.sum(ops.relu(x[:, :, 1:, 0] - x[:, :, :-1, 0] - 0.3), axis=(1, 2))
    return ops.stack([0.6 + 0 * edges, edges], axis=1)


@pytest.mark.parametrize("universal", [False, True])
def test_what_expects_transformations_withstands_them(universal):
    x = np.full((6, 12, 12, 1), 0.5, "float32")
    seeing = PatchTransforms(draws=8, rotation=180.0, scale=(0.6, 1.0))
    settings = {"step_size": 0.05, "steps": 60, "early_stop": False, "universal": universal, "num_patches": 1}
    shares = []
    for transforms in (None, seeing):
        attack = PatchAttack(4, positions=[(4, 4)], transforms=transforms, **settings)
        result = attack.run(spot, x, np.zeros(6, int))
        views = PatchTransforms(draws=40, rotation=180.0, scale=(0.6, 1.0)).apply(
            x, result.patches, result.positions, seed=9
        )
        leads = np.diff(ops.convert_to_numpy(spot(views.reshape(-1, 12, 12, 1))), axis=1)
        shares.append(leads.mean())
    assert shares[1] > shares[0]


def test_one_trace_serves_all_ranges():
    traces = []

    def counted(x):
        traces.append(x.shape)
        return linear(x)

    attack = PatchAttack(2, positions=[(1, 1)], steps=2, step_size=0.01, transforms=PatchTransforms(draws=2))
    for size in (5, 4, 2):  # TensorFlow learns that batches differ in size
        attack(counted, X[:size], Y[:size])
    before = len(traces)
    for transforms in (PatchTransforms(draws=2, **ALL), PatchTransforms(draws=2, translation=None)):
        dataclasses.replace(attack, transforms=transforms, steps=20, seed=5, positions=None)(counted, X, Y)
    assert len(traces) == before


def test_bounds_of_channels():
    low, high = np.float32([0, -10]), np.float32([255, 10])
    attack = PatchAttack(2, steps=3, transforms=PatchTransforms(draws=2, **ALL), early_stop=False)
    plain = attack.run(linear, X, Y)
    scaled = dataclasses.replace(attack, bounds=(low, high)).run(
        lambda x: linear((x - low) / (high - low)), low + X * (high - low), Y
    )
    np.testing.assert_allclose((scaled.images - low) / (high - low), plain.images, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws must be an integer from 1"),
        ({"translation": -1}, "translation must be an integer from 0"),
        ({"translation": 0.5}, "translation must be an integer from 0"),
        ({"rotation": 200}, r"rotation must be a number in \[0, 180\]"),
        ({"scale": (1.2, 0.8)}, r"scale must be a pair of factors, 0 < low <= high; received \(1.2, 0.8\)"),
        ({"scale": (0, 1)}, "scale must be a pair"),
        ({"scale": 1.0}, "scale must be a pair"),
        ({"brightness": 1.5}, r"brightness must be a number in \[0, 1\]"),
    ],
)
def test_ranges_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PatchTransforms(**settings)


def test_what_does_not_go_with_transforms_is_refused():
    with pytest.raises(ValueError, match="transforms must be PatchTransforms or None; received 'rotation'"):
        PatchAttack(2, transforms="rotation")
    with pytest.raises(ValueError, match="A patch that moves has no pixels to stay close to"):
        PatchAttack(2, epsilon=0.1, transforms=PatchTransforms())
    with pytest.raises(ValueError, match="must lie within images"):
        PatchTransforms().apply(X, np.zeros((2, 2, 2)), (7, 9))
    with pytest.raises(ValueError, match="Pixels must lie within the bounds"):
        PatchTransforms().apply(X + 1, np.zeros((2, 2, 2)), (0, 0))
    with pytest.raises(checks.NoGradientError, match="exactly zero"):
        PatchAttack(2, steps=2, transforms=PatchTransforms()).run(lambda x: linear(ops.round(x)), X, Y)
