"""Square attack: against naive replicas, its properties, and on what has no gradient and leaves the graph."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from replicas import square_change, square_heaps

from keras_capsvit import attacks, evaluate
from keras_capsvit.attacks import windows
from keras_capsvit.batches import generators

SHAPE, CLASSES, COUNT = (9, 8, 2), 4, 6
WEIGHTS = np.random.default_rng(0).normal(size=(*SHAPE, CLASSES)).astype("float32")


def linear(x):
    return ops.einsum("bhwc,hwcm->bm", x, WEIGHTS)


def of_arrays(x):
    """The same as a function that takes and returns arrays only."""
    return np.einsum("bhwc,hwcm->bm", x.copy(), WEIGHTS)


def images(seed=1, count=COUNT):
    return np.random.default_rng(seed).uniform(0.1, 0.9, size=(count, *SHAPE)).astype("float32")


def labels(x):
    return of_arrays(x).argmax(axis=1)


def margins(x, y):
    scores = of_arrays(x[None])[0].astype("float64")
    return scores[y] - np.delete(scores, y).max()


SCHEDULE = ((0, 10), (1, 50), (2, 200), (3, 500), (4, 1000), (5, 2000), (6, 4000), (7, 6000), (8, 8000))


def side_of(number, queries, p, smallest):
    """Published schedule, query by query."""
    it = int(number / queries * 10_000)
    halvings = next((halvings for halvings, last in SCHEDULE if it <= last), 9)
    side = max(round((p / 2**halvings * SHAPE[0] * SHAPE[1]) ** 0.5), smallest)
    if smallest == 3 and side % 2 == 0:
        side += 1
    return min(side, min(SHAPE[:2]) - (smallest == 3 and min(SHAPE[:2]) % 2 == 0))


def drawn(attack, number, query):
    """Corners, whether the pattern is turned, and signs of a query of an image."""
    (random,) = generators([attack.seed, 0, 1 + query // 256], [number])
    uniform = random.random((query % 256 + 1, 5 + SHAPE[2]))[-1]
    return uniform[:4], uniform[4] < 0.5, np.where(uniform[5:] < 0.5, -1.0, 1.0)


def naive(attack, x, y, number):
    """One image by plain loops and slices, in float64, from the start that the attack has."""
    start = windows.WINDOWS[attack.norm].start(
        x[None], generators([attack.seed, 0, 0], [number]), attack.epsilon, attack.limits(x[None])
    )[0]
    best, loss, queries, epsilon = start.astype("float64"), margins(start, y), 1, attack.epsilon
    for query in range(attack.queries - 1):
        if loss <= 0:
            break
        side = side_of(query, attack.queries, attack.p, 1 if attack.norm == "linf" else 3)
        uniform, turned, signs = drawn(attack, number, query)
        top, left, top2, left2 = (int(u * (n - side + 1)) for u, n in zip(uniform, 2 * SHAPE[:2], strict=True))
        window = np.s_[top : top + side, left : left + side]
        if attack.norm == "linf":
            image = best.copy()
            image[window] = x[window] + epsilon * signs
        else:
            image = x + square_change(
                best - x, window, np.s_[top2 : top2 + side, left2 : left2 + side], turned, signs, epsilon
            )
        image = np.clip(image, 0, 1)
        new, queries = margins(image, y), queries + 1
        if new < loss:
            best, loss = image, new
    return best, queries


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.03), ("l2", 0.3)])
def test_the_same_as_a_naive_replica(norm, epsilon):
    attack = attacks.Square(epsilon, norm=norm, queries=300, seed=3)  # of two chunks
    x = images()
    y = labels(x)
    result = attack.run(linear, x, y, numbers=range(10, 10 + COUNT))
    expected, queries = zip(*(naive(attack, x[k], y[k], 10 + k) for k in range(COUNT)), strict=True)
    assert 0 < result.fooled.sum() < COUNT
    # In L2 what is moved on is what is left of windows, differences of nearly equal numbers in float32.
    np.testing.assert_allclose(result.images, expected, atol=1e-5 if norm == "linf" else 1e-3)
    np.testing.assert_array_equal(result.queries, queries)
    np.testing.assert_array_equal(result.fooled, labels(result.images) != y)
    np.testing.assert_allclose(result.loss, [margins(*each) for each in zip(result.images, y, strict=True)], atol=1e-4)


def test_windows_shrink_as_published():
    for norm, smallest in (("linf", 1), ("l2", 3)):
        for queries, p in ((7, 0.8), (5000, 0.3), (20_000, 1.0)):
            side = windows.sides(p, SHAPE, norm)[windows.levels(np.arange(queries), queries)]
            few = np.unique(np.linspace(0, queries - 1, 300).astype(int))
            np.testing.assert_array_equal(side[few], [side_of(number, queries, p, smallest) for number in few])


def test_starts_are_stripes_or_tiles_on_the_edge_of_the_ball():
    x = np.full((3, 25, 26, 2), 0.5, "float32")
    stripes, tiles = (
        windows.WINDOWS[norm].start(x, generators(0, range(3)), 0.2, np.float32([0, 1])) - x for norm in ("linf", "l2")
    )
    np.testing.assert_allclose(np.abs(stripes), 0.2, atol=1e-6)
    np.testing.assert_array_equal(stripes, np.broadcast_to(stripes[:, :1], x.shape))
    assert len(np.unique(stripes[:, 0].reshape(3, -1), axis=0)) == 3
    np.testing.assert_allclose(np.sqrt(np.square(tiles).sum(axis=(1, 2, 3))), 0.2, rtol=1e-5)
    tile = tiles[1, 5:10, 10:15, 1]
    assert (
        min(
            np.abs(s * t - tile * np.linalg.norm(square_heaps(5)) / np.linalg.norm(tile)).max()
            for s in (1, -1)
            for t in (square_heaps(5), square_heaps(5).T)
        )
        < 1e-5
    )


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from([("linf", "ce"), ("l2", "margin"), ("l1", "margin")]),
    st.floats(0, 3),
    st.integers(0, 99),
    st.sampled_from([(0, 1), (-3, 252.0)]),
    st.booleans(),
)
def test_ball_bounds_seeds_and_single_images(kind, epsilon, seed, bounds, targeted):
    norm, loss = kind
    span = bounds[1] - bounds[0]
    epsilon = epsilon / 10 if norm == "linf" else epsilon
    x = (images(seed) * span + bounds[0]).astype("float32")
    each = tuple((float(limit), float(limit)) for limit in bounds)
    attack = attacks.Square(epsilon * span, norm=norm, queries=8, seed=seed, loss=loss, bounds=each)
    y = (labels(x) + targeted) % CLASSES
    result = attack.run(linear, x, y, targeted)
    change = np.abs(result.images.astype("float64") - x).reshape(COUNT, -1)
    size = {"linf": change.max(1), "l2": np.sqrt(np.square(change).sum(1)), "l1": change.sum(1)}[norm]
    assert result.images.dtype == "float32"
    assert (size <= epsilon * span * (1 + 1e-5) + 1e-5 * span).all()
    assert result.images.min() >= bounds[0] and result.images.max() <= bounds[1]
    np.testing.assert_array_equal(attack(linear, x, y, targeted), result.images)
    single = attack(linear, x[-1:], y[-1:], targeted, numbers=[COUNT - 1])
    tolerance = 0 if norm == "linf" else 1e-4 * span
    np.testing.assert_allclose(single, result.images[-1:], rtol=0, atol=tolerance)
    if epsilon > 0.1:
        assert np.abs(dataclasses.replace(attack, seed=seed + 1)(linear, x, y, targeted) - result.images).max() > 0


def test_functions_of_arrays_are_asked_no_more_than_counted():
    x, asked = images(), []
    y = labels(x)

    def counted(x):
        asked.append(len(x.copy()))
        return of_arrays(x)

    attack = attacks.Square(0.04, queries=25, restarts=2)
    objective = attacks.logits(counted)
    attack(objective, x[:1], y[:1])  # looked at
    asked.clear()
    result, expected = attack.run(objective, x, y), attack.run(linear, x, y)
    np.testing.assert_allclose(result.images, expected.images, atol=1e-6)
    np.testing.assert_array_equal(result.queries, expected.queries)
    assert sum(asked) == COUNT + result.queries.sum()
    assert 0 < result.fooled.sum() < COUNT and set(result.queries[~result.fooled]) == {50}


def test_what_has_no_gradient_is_attacked():
    def rounded(x):
        return linear(ops.round(x * 255) / 255)

    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(CLASSES, use_bias=False)])
    model.set_weights([WEIGHTS.reshape(-1, CLASSES)])
    x = images()
    y = labels(x)
    attack = attacks.Square(0.2, queries=8)
    expected = attack.run(linear, x, y)
    assert 0 < expected.fooled.sum() < COUNT
    for subject in (rounded, lambda x: model.predict(x, verbose=0), model):
        fooled = attack.run(subject, x, y).fooled
        np.testing.assert_array_equal(fooled, expected.fooled)
    assert evaluate.robust_accuracy(of_arrays, attack, (x, y)) == pytest.approx(1 - expected.fooled.mean())
    with pytest.raises(ValueError, match="gradient is exactly zero"):
        attacks.FGSM(0.2)(rounded, x, y)
    with pytest.raises(ValueError, match="pass the model itself, not its predict method"):
        attacks.FGSM(0.2)(of_arrays, x, y)


def test_fooled_images_stay_and_wanted_classes_are_reached():
    x = images()
    y = labels(x)
    attack = attacks.Square(0.3, queries=200)
    already = attack.run(linear, x, (y + 1) % CLASSES)
    np.testing.assert_array_equal(already.images, x)
    assert already.fooled.all() and not already.queries.any()
    for loss in ("margin", "ce"):
        result = dataclasses.replace(attack, loss=loss).run(linear, x, (y + 1) % CLASSES, targeted=True)
        assert result.fooled.mean() > 0.5
        np.testing.assert_array_equal(result.fooled, labels(result.images) == (y + 1) % CLASSES)
    assert attack(linear, x[:0], y[:0]).shape == (0, *SHAPE)


def test_cross_entropy_of_combined_objectives_sees_all_of_them():
    x = images()
    y = labels(x)
    mirrored = attacks.logits(lambda x: linear(x[:, ::-1]))
    attack = attacks.Square(0.01, queries=30, loss="ce")
    both = attack.run(attacks.combined(attacks.logits(linear), mirrored), x, y)
    losses = [
        ops.convert_to_numpy(each.loss(ops.convert_to_tensor(both.images), y))
        for each in (attacks.logits(linear), mirrored)
    ]
    left = ~both.fooled
    np.testing.assert_allclose(both.loss[left], -sum(losses)[left], rtol=1e-4)
    assert np.abs(attack(linear, x, y) - both.images).max() > 0


def test_small_and_narrow_images():
    def brightness(x):
        return ops.mean(x, axis=(1, 2, 3))[:, None] * np.float32([[3, -1]])

    for shape in ((1, 1, 1), (2, 7, 3)):
        x = np.random.default_rng(0).uniform(size=(3, *shape)).astype("float32")
        for norm in ("linf", "l1"):  # l2 is like l1 here
            result = attacks.Square(0.1, norm=norm, queries=9, p=1.0)(brightness, x, np.zeros(3, int))
            assert result.shape == x.shape and np.isfinite(result).all() and (result != x).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, r"epsilon must be a number in \[0, inf\); received -0.1"),
        ({"p": 0}, r"p must be a number in \(0, 1\]; received 0"),
        ({"queries": 0}, "queries must be an integer from 1 .*; received 0"),
        ({"restarts": 1.5}, "restarts must be an integer from 1 .*; received 1.5"),
        ({"norm": "l0"}, r"norm must be one of \('linf', 'l2', 'l1'\); received 'l0'"),
        ({"loss": "dlr"}, r"loss must be one of \('margin', 'ce'\); received 'dlr'"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        attacks.Square(**{"epsilon": 0.1, **arguments})


def test_scores_that_are_not_finite_are_refused():
    x = images()
    y = labels(x)

    def near(x):
        return linear(x) + ops.sqrt(0.95 - ops.max(x))

    def near_of_arrays(x):
        return of_arrays(x) + (0 if x.copy().max() < 0.95 else np.nan)

    for function in (near, near_of_arrays):
        with pytest.raises(ValueError, match="NaN or infinite values; expected a model of finite scores"):
            attacks.Square(0.3, queries=30)(function, x, y)


@pytest.mark.long
@pytest.mark.tensorflow
def test_a_served_model_is_attacked_like_the_live_one(small_model, tmp_path):
    from keras_capsvit import serving

    model = small_model((8, 8, 1), CLASSES)
    serving.export(model, tmp_path)
    served = serving.load(tmp_path)
    x = images()[:, :8, :, :1]
    y = model.predict(x, verbose=0).argmax(axis=1)
    for norm in ("linf", "l2", "l1"):
        attack = attacks.Square(0.2, norm=norm, queries=30)
        np.testing.assert_allclose(attack(served, x, y), attack(model, x, y), atol=1e-5)
