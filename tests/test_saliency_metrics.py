"""Metrics of explanations equal naive versions; those of Quantus are in test_interop.py."""

import re

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from keras_capsvit import evaluate, serving

rng = np.random.default_rng(0)
X = rng.uniform(size=(3, 7, 8, 2)).astype("float32")
MAPS = rng.normal(size=(3, 7, 8)).astype("float32")
WEIGHTS = rng.normal(size=(7 * 8 * 2, 4)).astype("float32")


def linear(x):
    return keras.ops.convert_to_tensor(np.tanh(np.reshape(x, (len(x), -1)) @ WEIGHTS))


def scored(x):
    return keras.ops.convert_to_numpy(linear(x))


def naive_curves(x, maps, patch, steps, filling, target, descending):
    curves = []
    for image, heatmap, fill, class_id in zip(x, maps, filling, target, strict=True):
        regions = []
        for top in range(0, image.shape[0], patch):
            for left in range(0, image.shape[1], patch):
                where = (slice(top, top + patch), slice(left, left + patch))
                regions.append((heatmap[where].sum(dtype="float64"), where))
        regions.sort(key=lambda region: -region[0] if descending else region[0])
        now, curve = image.copy(), [0.0]
        for _, where in regions[:steps]:
            now[where] = fill[where]
            curve.append(scored(image[None])[0, class_id] - scored(now[None])[0, class_id])
        curves.append(curve)
    return np.array(curves)


@pytest.mark.parametrize("order", ["descending", "ascending"])
@pytest.mark.parametrize("patch, steps", [(1, 20), (2, None), (3, 5), (7, None)])
def test_aopc_equals_a_naive_one(patch, steps, order):
    target = np.array([2, 0, 3])
    result = evaluate.aopc(linear, X, MAPS, patch=patch, steps=steps, fill=0.25, order=order, target=target)
    filling = np.full_like(X, 0.25)
    expected = naive_curves(X, MAPS, patch, steps, filling, target, order == "descending")
    np.testing.assert_allclose(result.curve, expected, atol=1e-5)
    np.testing.assert_allclose(result.area, expected.sum(axis=1) / expected.shape[1], atol=1e-5)


@pytest.mark.parametrize("patch, steps", [(1, 56), (3, 10), (5, None)])
def test_aopc_around_pixels_equals_a_naive_one(patch, steps):
    target = np.array([2, 0, 3])
    result = evaluate.aopc(linear, X, MAPS, patch=patch, regions="pixels", steps=steps, target=target, seed=4)
    filling = np.random.default_rng(4).uniform(size=X.shape).astype("float32")
    reach = patch // 2
    for k, (image, heatmap, fill) in enumerate(zip(X, MAPS, filling, strict=True)):
        now, clean = image.copy(), scored(image[None])[0, target[k]]
        order = np.argsort(-heatmap.ravel(), kind="stable")[: steps or heatmap.size]
        for step, (row, column) in enumerate(zip(*np.unravel_index(order, heatmap.shape), strict=True), 1):
            where = slice(max(row - reach, 0), row + reach + 1), slice(max(column - reach, 0), column + reach + 1)
            now[where] = fill[where]
            assert result.curve[k, step] == pytest.approx(clean - scored(now[None])[0, target[k]], abs=1e-5)


@given(st.integers(1, 40), st.integers(0, 3))
def test_aopc_depends_on_the_seed_not_on_the_batch_size(batch_size, seed):
    whole = evaluate.aopc(linear, X, MAPS, patch=3, seed=seed)
    parts = evaluate.aopc(linear, X, MAPS, patch=3, seed=seed, batch_size=batch_size)
    np.testing.assert_allclose(parts.curve, whole.curve, atol=1e-5)
    of_first_image = evaluate.aopc(linear, X[:1], MAPS[:1], patch=3, seed=seed)
    np.testing.assert_allclose(of_first_image.curve, whole.curve[:1], atol=1e-5)
    assert np.abs(evaluate.aopc(linear, X, MAPS, patch=3, seed=seed + 1).curve - whole.curve).max() > 1e-3


def test_aopc_fills_and_breaks_ties_as_it_says():
    seen = []

    def watching(x):
        seen.append(keras.ops.convert_to_numpy(x))
        return keras.ops.convert_to_tensor(seen[-1].sum(axis=(1, 2)))

    x = np.ones((1, 2, 4, 1), "float32")
    evaluate.aopc(watching, x, np.zeros((1, 2, 4)), patch=2, fill=-np.arange(8).reshape(2, 4, 1))
    one_filled, both_filled = seen[-1][..., 0]
    np.testing.assert_array_equal(one_filled, [[0, -1, 1, 1], [-4, -5, 1, 1]])
    np.testing.assert_array_equal(both_filled, [[0, -1, -2, -3], [-4, -5, -6, -7]])
    with pytest.warns(UserWarning, match=r"within bounds=\(5.0, 6.0\), but pixels lie in \[1.0, 1.0\]"):
        evaluate.aopc(watching, x, np.zeros((1, 2, 4)), patch=1, bounds=(5, 6))
    assert seen[-1][-1].min() >= 5
    assert seen[-1][-1].max() <= 6
    assert len(np.unique(seen[-1][-1])) == 8


def test_perfect_maps_have_larger_areas_than_others():
    weights = rng.uniform(size=(5, 5))
    x = np.ones((2, 5, 5, 1), "float32")

    def score(x):
        return keras.ops.sum(x[..., 0] * weights.astype("float32"), axis=(1, 2))[:, None]

    maps = np.stack([weights, rng.uniform(size=(5, 5))])
    best, middle = evaluate.aopc(score, x, maps, patch=1, fill=0).area
    worst = evaluate.aopc(score, x, maps, patch=1, fill=0, order="ascending").area[0]
    assert best > middle > worst


@pytest.mark.tensorflow
@pytest.mark.slow
def test_aopc_of_live_and_served_models_agree(small_model, digits, resized, tmp_path):
    model, x = small_model(), resized(4, 12)
    maps = rng.uniform(size=(4, 12, 12))
    serving.export(model, tmp_path)
    curves = [
        evaluate.aopc(each, x, maps, patch=4).curve for each in (model, serving.load(tmp_path), lambda x: model(x))
    ]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], atol=1e-5)


def test_aopc_of_a_keras_model(small_model, resized):
    model, x = small_model(), resized(2, 12)
    maps = rng.uniform(size=(2, 12, 12))
    curve = evaluate.aopc(model, x, maps, patch=4, steps=3, batch_size=4).curve
    assert curve.shape == (2, 4)
    np.testing.assert_allclose(curve, evaluate.aopc(lambda x: model(x), x, maps, patch=4, steps=3).curve, atol=1e-5)


def test_perturbation_says_what_is_wrong():
    bad = np.full_like(MAPS, np.nan)
    for wrong, message in [
        ({"maps": MAPS[:2]}, r"a map of shape \(7, 8\) for each of 3 images; received \(2, 7, 8\)"),
        ({"maps": MAPS[..., None]}, r"Expected maps of shape \(b, H, W\), not empty; received \(3, 7, 8, 1\)"),
        ({"maps": bad}, "Expected finite maps; received NaN"),
        ({"patch": 8}, "patch must be an integer from 1 to 7; received 8"),
        ({"patch": 2, "steps": 17}, "steps must be an integer from 1 to 16; received 17"),
        (
            {"fill": "noise"},
            r"fill must be one of \(.random., .black., .mean., .blur.\), a float or an array; received .noise.",
        ),
        ({"fill": np.zeros(3)}, r"Expected fill that broadcasts to images \(3, 7, 8, 2\); received \(3,\)"),
        ({"fill": np.nan}, "Expected finite fill"),
        ({"bounds": (1, 0)}, r"Expected bounds \(lowest, highest\).*received bounds=\(1, 0\)"),
        ({"order": "random"}, "order must be one of"),
        ({"target": 4}, "received"),
        ({"target": [0, 1]}, r"integer class ids of shape \(3,\); received shape \(2,\)"),
        ({"batch_size": 0}, "batch_size must be an integer from 1 to 2147483647; received 0"),
        ({"model": lambda x: linear(x)[:, 0]}, r"class scores of shape \(batch, classes\); <lambda> returns \(.*,\)"),
        ({"model": lambda x: linear(x) * np.nan}, "returned NaN or infinite scores"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate.aopc(**{"model": linear, "x": X, "maps": MAPS, **wrong})
    with pytest.raises(ValueError, match="size must be an integer from 1; received 0"):
        evaluate.ablation_drop(linear, X, MAPS, mean=0, size=0)
    with pytest.raises(ValueError, match="Expected mean that broadcasts"):
        evaluate.ablation_drop(linear, X, MAPS, mean=np.zeros((5, 5, 2)))
    with pytest.raises(ValueError, match="A relative drop needs scores other than 0"):
        evaluate.ablation_drop(lambda x: linear(x) * 0, X, MAPS, mean=0, relative=True)
    with pytest.raises(ValueError, match=r"an activation for each of the maps, of shape \(3, 2\); received \(3, 4\)"):
        evaluate.neuron_ablation(linear, X, np.stack([MAPS] * 2), mean=0)
    for maps in (MAPS, np.zeros((0, 3, 7, 8))):
        with pytest.raises(ValueError, match=r"Expected maps of shape \(neurons, b, H, W\)"):
            evaluate.neuron_ablation(linear, X, maps, mean=0)


def naive_ablation(image, heatmap, mean, size):
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    after = image.copy()
    for y in range(max(row - size // 2, 0), min(row - size // 2 + size, image.shape[0])):
        for x in range(max(column - size // 2, 0), min(column - size // 2 + size, image.shape[1])):
            after[y, x] = mean[y, x]
    return after


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20])
def test_ablation_equals_a_naive_one(size):
    mean, target = X.mean(axis=0), np.array([1, 1, 3])
    after = np.stack([naive_ablation(image, heatmap, mean, size) for image, heatmap in zip(X, MAPS, strict=True)])
    rows = np.arange(3)
    before = scored(X)[rows, target]
    expected = before - scored(after)[rows, target]
    settings = {"mean": mean, "size": size, "target": target}
    np.testing.assert_allclose(evaluate.ablation_drop(linear, X, MAPS, **settings), expected, atol=1e-6)
    relative = evaluate.ablation_drop(linear, X, MAPS, relative=True, batch_size=2, **settings)
    np.testing.assert_allclose(relative, expected / np.abs(before), atol=1e-5)
    heatmap = evaluate.ablation_drop(linear, X, MAPS, mean=0.5, target=1)
    np.testing.assert_array_equal(heatmap, evaluate.ablation_drop(linear, X, MAPS, mean=0.5, target=[1, 1, 1]))


def test_neuron_ablation_equals_a_naive_one_and_shows_the_diagonal():
    maps, mean = rng.normal(size=(4, 3, 7, 8)), X.mean(axis=0)
    result = evaluate.neuron_ablation(linear, X, maps, mean=mean, size=3)
    assert result.shape == (3, 4, 4)
    relative = evaluate.neuron_ablation(linear, X, maps, mean=mean, size=3, relative=True, batch_size=2)
    for image, i in np.ndindex(3, 4):
        after = naive_ablation(X[image], maps[i, image], mean, 3)
        expected = scored(X[image][None])[0] - scored(after[None])[0]
        np.testing.assert_allclose(result[image, i], expected, atol=1e-6)
        np.testing.assert_allclose(relative[image, i], expected / np.abs(scored(X[image][None])[0]), atol=1e-5)

    def quadrants(x):
        return keras.ops.stack(
            [keras.ops.sum(x[:, a : a + 4, b : b + 4], (1, 2, 3)) for a in (0, 4) for b in (0, 4)], 1
        )

    maps = np.zeros((4, 2, 8, 8))
    for i, (row, column) in enumerate([(1, 1), (1, 6), (6, 1), (6, 6)]):
        maps[i, :, row, column] = 1
    drops = evaluate.neuron_ablation(quadrants, np.ones((2, 8, 8, 1)), maps, mean=0, size=3)
    np.testing.assert_allclose(drops, np.tile(9 * np.eye(4), (2, 1, 1)), atol=1e-6)


def naive_hit(heatmap, mask, percent):
    positive = np.maximum(heatmap, 0).astype("float64")
    if not positive.any():
        return False
    values, kept = np.sort(positive.ravel())[::-1], 0.0
    for value in values:
        kept += value
        if kept >= percent / 100 * positive.ravel()[np.argsort(-positive.ravel())].cumsum()[-1]:
            break
    return all(mask[place] for place in np.ndindex(mask.shape) if positive[place] >= value)


BOXES = [(1, 2, 6, 7), [(0, 0, 3, 3), (2, 2, 7, 8)], [[0, 5, 7, 8]]]


def masks_of(boxes, shape=(7, 8)):
    masks = np.zeros((len(boxes), *shape), bool)
    for mask, of_mask in zip(masks, boxes, strict=True):
        for top, left, bottom, right in np.reshape(of_mask, (-1, 4)):
            mask[top:bottom, left:right] = True
    return masks


@given(st.integers(0, 1000))
def test_pointing_game_equals_a_naive_one(seed):
    maps = np.random.default_rng(seed).normal(size=(3, 7, 8)) ** 3
    masks, thresholds = masks_of(BOXES), [0.1, 5, 20, 60, 100]
    expected = [
        [naive_hit(heatmap.astype("float32"), mask, p) for p in thresholds]
        for heatmap, mask in zip(maps, masks, strict=True)
    ]
    result = evaluate.pointing_game(maps, BOXES, threshold=thresholds)
    np.testing.assert_array_equal(result, expected)
    assert (np.diff(result.astype(int), axis=1) <= 0).all()  # more energy is harder
    classic = evaluate.pointing_game(maps, BOXES)
    highest = [np.unravel_index(heatmap.argmax(), heatmap.shape) for heatmap in maps]
    np.testing.assert_array_equal(classic, [mask[place] for mask, place in zip(masks, highest, strict=True)])
    np.testing.assert_array_equal(evaluate.pointing_game(maps, masks.astype("uint8")), classic)
    np.testing.assert_array_equal(result[:, 0], classic)
    np.testing.assert_array_equal(evaluate.pointing_game(maps, masks, threshold=20), result[:, 2])


def test_pointing_game_at_its_ends():
    everywhere = np.ones((1, 4, 5), bool)
    corner = np.zeros((1, 4, 5))
    corner[0, 0, 0] = 1
    assert evaluate.pointing_game(corner, everywhere, threshold=100).all()
    assert not evaluate.pointing_game(np.zeros((1, 4, 5)), everywhere, threshold=[1, 100]).any()
    assert not evaluate.pointing_game(-corner, everywhere, threshold=1).any()
    far = [(0, 3, 1, 4)]
    assert [bool(evaluate.pointing_game(corner, far, tolerance=t)[0]) for t in (0, 2.9, 3)] == [False, False, True]
    assert evaluate.pointing_game(corner, far, threshold=50, tolerance=3).all()
    tied = np.zeros((1, 4, 5))
    tied[0, 0, 0] = tied[0, 0, 3] = 1
    assert not evaluate.pointing_game(tied, far).any()  # the first counts
    assert not evaluate.pointing_game(tied, far, threshold=50).any()  # both are kept


def test_patch_share():
    maps = np.zeros((3, 4, 5))
    maps[0, 1, 1], maps[0, 3, 3], maps[1, 1, 2] = -3, 1, 2
    result = evaluate.patch_share(maps, [(0, 0, 2, 3)] * 3)
    np.testing.assert_allclose(result["sum"], [0.75, 1, 0])
    np.testing.assert_array_equal(result["max"], [1, 1, 0])
    random = rng.normal(size=(3, 7, 8))
    masks = masks_of(BOXES)
    result = evaluate.patch_share(random, BOXES)
    for each, mask, total, most in zip(np.abs(random), masks, result["sum"], result["max"], strict=True):
        assert total == pytest.approx(each[mask].sum() / each.sum(), abs=1e-6)
        assert most == (each[mask].max() == each.max())


def test_localisation_says_what_is_wrong():
    for wrong, message in [
        (
            {"where": BOXES[:2]},
            r"Expected masks of shape \(3, 7, 8\), or boxes for each of 3 images; received boxes for 2",
        ),
        (
            {"where": [(0, 0, 3)] * 3},
            r"integers \(top, left, bottom, right\), or \(k, 4\) of them; received int64 \(3,\)",
        ),
        ({"where": [(0, 0, 3.5, 3)] * 3}, r"received float64 \(4,\)"),
        ({"where": [(0, 0, 8, 3)] * 3}, r"inside images of \(7, 8\) pixels, not empty; received \(0, 0, 8, 3\)"),
        ({"where": [(2, 0, 2, 3)] * 3}, r"received \(2, 0, 2, 3\)"),
        ({"where": MAPS}, r"Masks must be bool, or 0 and 1, of shape \(3, 7, 8\); received float32"),
        ({"where": masks_of(BOXES)[:2]}, r"of shape \(3, 7, 8\); received bool \(2, 7, 8\)"),
        ({"where": np.zeros_like(MAPS)}, r"an object in each image; the masks of images \[0 1 2\] are empty"),
        ({"threshold": 0}, "percentages above 0, at most 100; received 0"),
        ({"threshold": []}, "percentages"),
        ({"threshold": [50, 101]}, re.escape("received [50, 101]")),
        ({"tolerance": -1}, r"tolerance must be a number in \[0, inf\); received -1"),
        ({"maps": MAPS * np.inf}, "Expected finite maps"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate.pointing_game(**{"maps": MAPS, "where": BOXES, **wrong})


def test_rank_correlation_is_spearman():
    first, second = rng.normal(size=(2, 4, 5, 6)).astype("float32")
    second[0] = np.round(second[0])  # ties
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(evaluate.rank_correlation(first, second), expected, atol=1e-12)
    expected = [spearmanr(abs(a).ravel(), abs(b).ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(evaluate.rank_correlation(first, second, absolute=True), expected, atol=1e-12)
    np.testing.assert_allclose(evaluate.rank_correlation(first, 3 * first + 1), 1)
    np.testing.assert_allclose(evaluate.rank_correlation(first, -first), -1)
    np.testing.assert_array_equal(evaluate.rank_correlation(first, np.ones_like(first)), 0)
    with pytest.raises(ValueError, match=r"maps to compare of one shape, of shape \(4, 5, 6\); received \(2, 5, 6\)"):
        evaluate.rank_correlation(first, second[:2])


def two_layers():
    kinds = [keras.layers.Dense(5, activation="tanh", name="low"), keras.layers.Dense(3, name="top")]
    return keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), *kinds])


def weights_as_maps(model):
    """Explainer of what the weights are: products with the last layer's columns."""
    low, top = (keras.ops.convert_to_numpy(model.get_layer(name).kernel) for name in ("low", "top"))
    return lambda x, target: np.asarray(x)[..., 0] * (low @ top).T[np.broadcast_to(target, len(x))].reshape(-1, 4, 4)


def test_parameter_randomization_tells_what_depends_on_weights_and_restores_them():
    model, x = two_layers(), rng.uniform(size=(3, 4, 4, 1)).astype("float32")
    before = model.get_weights()
    result = evaluate.parameter_randomization(weights_as_maps, model, x)
    assert list(result) == ["top", "low"]
    assert all(each.shape == (3,) and (each < 0.999).all() for each in result.values())
    edges = evaluate.parameter_randomization(lambda model: lambda x, target: x[..., 0], model, x, target=1)
    np.testing.assert_allclose(list(edges.values()), 1)
    alone = evaluate.parameter_randomization(weights_as_maps, model, x, cascading=False)
    np.testing.assert_array_equal(alone["top"], result["top"])
    assert not np.allclose(alone["low"], result["low"])

    models = []

    def failing(model):
        if models:
            raise RuntimeError("no second time")
        models.append(model)
        return weights_as_maps(model)

    with pytest.raises(RuntimeError, match="no second time"):
        evaluate.parameter_randomization(failing, model, x)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match="Expected a model with trainable weights; empty has none"):
        evaluate.parameter_randomization(failing, keras.Sequential([keras.Input((2,))], name="empty"), x)


def test_class_sensitivity():
    model, x = two_layers(), rng.uniform(size=(3, 4, 4, 1)).astype("float32")
    explainer = weights_as_maps(model)
    np.testing.assert_allclose(evaluate.class_sensitivity(explainer, x, 1, 1), 1)
    expected = evaluate.rank_correlation(explainer(x, np.array([0, 1, 2])), explainer(x, 2))
    result = evaluate.class_sensitivity(explainer, x, np.array([0, 1, 2]), 2)
    np.testing.assert_array_equal(result, expected)
    assert result[2] == pytest.approx(1)
    assert (result[:2] < 0.999).all()


def test_conservation():
    kernel = rng.normal(size=(16, 3)).astype("float32")
    x = rng.uniform(size=(3, 4, 4, 1)).astype("float32")

    def score(x):
        return keras.ops.matmul(keras.ops.reshape(x, (-1, 16)), kernel)

    def products(x, target):
        return x[..., 0] * kernel.T[np.broadcast_to(target, len(x))].reshape(-1, 4, 4)

    np.testing.assert_allclose(evaluate.conservation(products, score, x), 1, rtol=1e-4)
    np.testing.assert_allclose(evaluate.conservation(lambda *a: 2 * products(*a), score, x, 1), 2, rtol=1e-4)
    with pytest.raises(ValueError, match=r"scores other than 0; those of images \[0 1 2\] are 0"):
        evaluate.conservation(products, lambda x: 0 * score(x), x)


def test_energy_inside_is_the_share_of_positive_relevance():
    random = np.random.default_rng(8)
    maps, masks = random.normal(size=(4, 6, 7)), random.uniform(size=(4, 6, 7)) < 0.3
    maps[3] = -1
    shares = evaluate.energy_inside(maps, masks)
    for share, heatmap, mask in zip(shares, maps, masks, strict=True):
        inside = everywhere = 0.0
        for row in range(6):
            for column in range(7):
                everywhere += max(heatmap[row, column], 0)
                inside += max(heatmap[row, column], 0) * mask[row, column]
        assert share == pytest.approx(inside / everywhere if everywhere else 0, abs=1e-6)
    np.testing.assert_allclose(evaluate.energy_inside(np.ones((2, 6, 7)), [(0, 0, 3, 7), (0, 0, 6, 1)]), [0.5, 1 / 7])
    for wrong in (np.ones((4, 5, 7)), [np.ones((5, 7))] * 4, [*np.ones((3, 6, 7)), np.ones((5, 7))]):
        with pytest.raises(ValueError, match=r"Masks must be bool, or 0 and 1, of shape \(4, 6, 7\)"):
            evaluate.pointing_game(maps, wrong)
