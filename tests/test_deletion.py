"""Insertion, deletion and ROAD equal naive versions, and are the same of twins; Quantus is in test_interop.py."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_capsvit import evaluate
from keras_capsvit.evaluate.road import imputed

rng = np.random.default_rng(0)
X = rng.uniform(size=(3, 6, 7, 2)).astype("float32")
MAPS = np.round(rng.normal(size=(3, 6, 7)), 1).astype("float32")  # with ties
WEIGHTS = rng.normal(size=(6 * 7 * 2, 4)).astype("float32")
TARGET = np.array([2, 0, 3])
CHANGES = {"deletion": evaluate.deletion, "insertion": evaluate.insertion}


def logits(x):
    return keras.ops.convert_to_tensor(np.tanh(np.reshape(x, (len(x), -1)) @ WEIGHTS))


def scored(image, target, measure="probability"):
    scores = keras.ops.convert_to_numpy(logits(image[None]))[0].astype("float64")
    if measure == "accuracy":
        return float(scores.argmax() == target)
    return scores[target] if measure == "score" else np.exp(scores[target]) / np.exp(scores).sum()


def naive_order(heatmap, descending=True):
    places = list(np.ndindex(heatmap.shape))
    return sorted(places, key=lambda place: -heatmap[place] if descending else heatmap[place])


def naive_curve(start, end, heatmap, steps, target, measure, descending):
    order, now, changed = naive_order(heatmap, descending), start.copy(), 0
    shares, curve = [0.0], [scored(now, target, measure)]
    for step in range(1, steps + 1):
        for place in order[changed : step * len(order) // steps]:
            now[place] = end[place]
        changed = step * len(order) // steps
        shares.append(changed / len(order))
        curve.append(scored(now, target, measure))
    area = sum((b - a) * (u + v) / 2 for a, b, u, v in zip(shares, shares[1:], curve, curve[1:], strict=False))
    return shares, curve, area


@pytest.mark.parametrize("measure", ["probability", "score", "accuracy"])
@pytest.mark.parametrize(
    ("steps", "order"), [(None, "descending"), (5, "ascending"), (42, "descending"), (1, "ascending")]
)
@pytest.mark.parametrize("kind", CHANGES)
def test_curves_equal_naive_ones(kind, steps, order, measure):
    settings = {"steps": steps, "order": order, "measure": measure, "target": TARGET, "fill": 0.25}
    result = CHANGES[kind](logits, X, MAPS, batch_size=7, **settings)
    assert result.curve.shape == (3, (steps or 6) + 1)
    for k, image in enumerate(X):
        ends = (image, np.full_like(image, 0.25))
        ends = ends if kind == "deletion" else ends[::-1]
        shares, curve, area = naive_curve(*ends, MAPS[k], steps or 6, TARGET[k], measure, order == "descending")
        np.testing.assert_allclose(result.shares, shares)
        np.testing.assert_allclose(result.curve[k], curve, atol=1e-5)
        assert result.area[k] == pytest.approx(area, abs=1e-5)


def gaussian_blur(image, sigma=5.0):
    """Of one image, pixel by pixel; beyond the edge it goes on as it ends."""
    reach = round(4 * sigma)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    blurred = np.zeros(image.shape)
    for row, column in np.ndindex(image.shape[:2]):
        rows = (row + offsets).clip(0, image.shape[0] - 1)
        columns = (column + offsets).clip(0, image.shape[1] - 1)
        blurred[row, column] = np.einsum("r,c,rcd->d", weights, weights, image[rows][:, columns])
    return blurred


def test_what_is_filled_in():
    seen = []

    def watching(x):
        seen.append(keras.ops.convert_to_numpy(x))
        return logits(x)

    ends = {}
    bounds = ((-1.0, -2.0), (1.0, 3.0))
    for fill in ("black", "mean", "blur", "random"):
        evaluate.deletion(watching, X, MAPS, fill=fill, steps=1, bounds=bounds, target=0, seed=3)
        ends[fill] = seen[-1][1::2]
        evaluate.insertion(watching, X, MAPS, fill=fill, steps=1, bounds=bounds, target=0, seed=3)
        np.testing.assert_array_equal(seen[-1][::2], ends[fill])
        np.testing.assert_array_equal(seen[-1][1::2], X)
    np.testing.assert_array_equal(ends["black"], np.broadcast_to([-1, -2], X.shape))
    np.testing.assert_allclose(ends["mean"], np.broadcast_to(X.mean(axis=(1, 2), keepdims=True), X.shape), rtol=1e-6)
    np.testing.assert_allclose(ends["blur"], [gaussian_blur(image) for image in X], atol=1e-5)
    drawn = np.random.default_rng(3).uniform(*bounds, X.shape)
    np.testing.assert_allclose(ends["random"], drawn, rtol=1e-6)
    with pytest.warns(UserWarning, match=r"pixels within bounds=\(5.0, 6.0\), but pixels lie in \[0.0"):
        evaluate.deletion(logits, X, MAPS, bounds=(5, 6))
    with pytest.warns(UserWarning, match=r"pixels within bounds=\(0.0, 0.5\), but pixels lie in \[0.0"):
        evaluate.road(logits, X, MAPS, bounds=(0, 0.5))


def network(*front, units=4, last=()):
    keras.utils.set_random_seed(0)
    kinds = [layers.Conv2D(3, 3, activation="tanh"), layers.Flatten(), layers.Dense(units)]
    return keras.Sequential([keras.Input((6, 7, 2)), *front, *kinds, *last])


MEASUREMENTS = {**CHANGES, "road": evaluate.road}


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_twins_are_measured_alike(kind):
    measure, settings = MEASUREMENTS[kind], {"measure": "probability", "target": TARGET}
    plain = measure(network(), X, MAPS, **settings).curve
    assert np.ptp(plain) > 0.01
    softmax = measure(network(last=[layers.Softmax()]), X, MAPS, **settings).curve
    np.testing.assert_allclose(softmax, plain, atol=1e-5)
    model = network()
    np.testing.assert_allclose(measure(lambda x: model(x), X, MAPS, **settings).curve, plain, atol=1e-5)
    wide = measure(network(layers.Rescaling(1 / 255)), X * 255, MAPS, bounds=(0, 255), **settings).curve
    np.testing.assert_allclose(wide, plain, atol=1e-5)
    parts = measure(network(), X, MAPS, batch_size=5, **settings).curve
    np.testing.assert_allclose(parts, plain, atol=1e-5)


def test_probabilities_of_one_sigmoid_are_what_it_says():
    model = network(units=1, last=[layers.Activation("sigmoid")])
    predicted = model.predict(X, verbose=0)[:, 0]
    for target, expected in ((1, predicted), (0, 1 - predicted)):
        for subject in (model, lambda x: model(x)):
            curve = evaluate.deletion(subject, X, MAPS, steps=2, target=target).curve
            np.testing.assert_allclose(curve[:, 0], expected, atol=1e-6)
    assert np.ptp(predicted) > 1e-3


def test_good_maps_have_better_areas_than_bad_ones():
    weights = np.random.default_rng(1).normal(size=(6, 6))
    x = np.ones((1, 6, 6, 1), "float32")

    def score(x):
        total = keras.ops.sum(x[..., 0] * weights.astype("float32"), axis=(1, 2))
        return keras.ops.stack([total, -total], axis=1)

    def areas(maps):
        settings = {"fill": 0, "measure": "score", "target": 0}
        return [change(score, x, maps[None], **settings).area[0] for change in CHANGES.values()]

    (low, high), (other_low, other_high) = areas(weights), areas(np.random.default_rng(2).normal(size=(6, 6)))
    assert low < other_low
    assert high > other_high


NEIGHBOURS = [(r, c, 1 / 6 if 0 in (r, c) else 1 / 12) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]


def naive_imputation(image, missing):
    """Of one image, by a dense system of equations."""
    unknown = list(zip(*np.nonzero(missing), strict=True))
    matrix, right = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), image.shape[-1]))
    for k, (row, column) in enumerate(unknown):
        for down, across, weight in NEIGHBOURS:
            place = row + down, column + across
            if not (0 <= place[0] < image.shape[0] and 0 <= place[1] < image.shape[1]):
                continue
            matrix[k, k] += weight
            if missing[place]:
                matrix[k, unknown.index(place)] -= weight
            else:
                right[k] += weight * image[place]
    filled = image.copy()
    filled[missing] = np.linalg.solve(matrix, right)
    return filled


def test_imputation_equals_a_naive_one():
    random = np.random.default_rng(0)
    x = random.uniform(size=(5, 6, 7, 2)).astype("float32")
    missing = random.uniform(size=(5, 6, 7)) < np.array([0.1, 0.5, 0.95, 0, 0.3])[:, None, None]
    missing[:, 0, 0], missing[1, 5, 6] = [True, False, False, False, True], True
    expected = [naive_imputation(*each) for each in zip(x, missing, strict=True)]
    assert missing[2].sum() > 36 and not missing[3].any()
    np.testing.assert_allclose(imputed(x, missing), expected, atol=1e-6)
    many = imputed(np.tile(x, (400, 1, 1, 1)), np.tile(missing, (400, 1, 1)))  # more than are imputed together
    np.testing.assert_allclose(many, np.tile(expected, (400, 1, 1, 1)), atol=1e-6)
    flat = np.full_like(x, 0.3)
    np.testing.assert_allclose(imputed(flat, missing), flat, rtol=1e-6)  # of a constant nothing is lost


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_road_equals_a_naive_one(order):
    shares = [0.05, 0.3, 0.9]
    settings = {"shares": shares, "order": order, "target": TARGET, "bounds": (0, 2), "noise": 0.05, "seed": 4}
    noise = 0.1 * np.random.default_rng(4).standard_normal(X.shape, "float32")
    for measure in ("accuracy", "probability"):
        result = evaluate.road(logits, X, MAPS, measure=measure, batch_size=4, **settings)
        for k, j in np.ndindex(3, 3):
            missing = np.zeros((6, 7), bool)
            for place in naive_order(MAPS[k], order == "descending")[: int(shares[j] * 42)]:
                missing[place] = True
            image = naive_imputation(X[k], missing) + noise[k] * missing[..., None]
            assert result.curve[k, j] == pytest.approx(scored(image, TARGET[k], measure), abs=1e-5)
        heights = [
            (b - a) * (result.curve[:, k] + result.curve[:, k + 1]) / 2
            for k, (a, b) in enumerate([(0.05, 0.3), (0.3, 0.9)])
        ]
        np.testing.assert_allclose(result.area, sum(heights) / 0.85, atol=1e-12)
    alone = evaluate.road(logits, X, MAPS, shares=[0.5])
    np.testing.assert_array_equal(alone.area, alone.curve[:, 0])


def test_says_what_is_wrong():
    for measure in MEASUREMENTS.values():
        for wrong, message in [
            ({"maps": MAPS[:2]}, r"a map of shape \(6, 7\) for each of 3 images; received \(2, 6, 7\)"),
            ({"maps": MAPS * np.nan}, "Expected finite maps"),
            ({"x": X * np.inf}, "Expected finite images"),
            ({"measure": "loss"}, r"measure must be one of \('probability', 'score', 'accuracy'\); received 'loss'"),
            ({"order": "random"}, r"order must be one of \('descending', 'ascending'\)"),
            ({"target": 4}, "class ids between 0 and 3; received values between 4 and 4"),
            ({"bounds": (1, 0)}, r"Expected bounds \(lowest, highest\)"),
            ({"seed": -1}, "seed must be an integer from 0; received -1"),
            ({"batch_size": 0}, "batch_size must be an integer from 1"),
            ({"model": lambda x: logits(x) * np.nan}, "returned NaN or infinite scores"),
        ]:
            with pytest.raises(ValueError, match=message):
                measure(**{"model": logits, "x": X, "maps": MAPS, **wrong})
    with pytest.raises(ValueError, match="steps must be an integer from 1 to 42; received 43"):
        evaluate.deletion(logits, X, MAPS, steps=43)
    with pytest.raises(
        ValueError, match=r"fill must be one of \('random', 'black', 'mean', 'blur'\), a float or an arr"
    ):
        evaluate.insertion(logits, X, MAPS, fill="white")
    for shares in ([], [0.5, 0.5], [0.0, 0.5], [0.5, 1.0], [1 - 1e-9], [np.nan], 0.5):
        with pytest.raises(ValueError, match="shares must be ascending numbers above 0 and below 1"):
            evaluate.road(logits, X, MAPS, shares=shares)
    with pytest.raises(ValueError, match=r"shares must be at least 0.0238095, one of 42 pixels; received 0.02"):
        evaluate.road(logits, X, MAPS, shares=[0.02, 0.5])
    with pytest.raises(ValueError, match=r"noise must be a number in \[0, inf\); received -1"):
        evaluate.road(logits, X, MAPS, noise=-1)


@pytest.mark.tensorflow
@pytest.mark.parametrize("end", ["softmax", "sigmoid"])
def test_probabilities_of_served_models_are_those_of_live_ones(end, tmp_path):
    from keras_capsvit import serving

    model = network(units=4 if end == "softmax" else 1, last=[layers.Activation(end)])
    model.export(tmp_path, verbose=False)
    live, served = (
        evaluate.deletion(each, X, MAPS, target=1, steps=3).curve for each in (model, serving.load(tmp_path))
    )
    np.testing.assert_allclose(served, live, atol=1e-5)
    np.testing.assert_allclose(live[:, 0], model.predict(X, verbose=0)[:, 1 if end == "softmax" else 0], atol=1e-5)
