"""Infidelity, sensitivity, sparseness, complexity and rank accuracy: naive versions, and values that are known."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from keras_capsvit import evaluate, explain

rng = np.random.default_rng(0)
X = rng.uniform(size=(3, 5, 6, 2)).astype("float32")
MAPS = rng.normal(size=(3, 5, 6)).astype("float32")
WEIGHTS = rng.normal(size=(5 * 6 * 2, 4)).astype("float32")
TARGET = np.array([2, 0, 3])


def logits(x):
    return keras.ops.convert_to_tensor(np.tanh(np.reshape(x, (len(x), -1)) @ WEIGHTS))


def linear(x):
    return keras.ops.convert_to_tensor(np.reshape(x, (len(x), -1)) @ WEIGHTS)


GRADIENTS = WEIGHTS.T[TARGET].reshape(X.shape)  # of ``linear``


def measured(image, target, measure):
    scores = keras.ops.convert_to_numpy(logits(image[None]))[0].astype("float64")
    return scores[target] if measure == "score" else np.exp(scores[target]) / np.exp(scores).sum()


def naive_infidelity(relevance, changes, normalize, measure):
    """Of changes ``(samples, b, H, W, C)``."""
    values = []
    for k, image in enumerate(X):
        pairs = []
        for change in changes[:, k]:
            product = 0.0
            for place in np.ndindex(image.shape):
                product += float(change[place]) * float(relevance[k][place if relevance.ndim == 4 else place[:2]])
            pairs.append((product, measured(image, TARGET[k], measure) - measured(image - change, TARGET[k], measure)))
        factor = sum(p * d for p, d in pairs) / sum(p * p for p, _ in pairs) if normalize else 1
        values.append(sum((factor * p - d) ** 2 for p, d in pairs) / len(pairs))
    return values


def gaussian_changes(samples, scale, seed):
    return np.array(
        [
            [scale * np.random.default_rng([seed, k, sample]).standard_normal(X.shape[1:], "float32") for k in range(3)]
            for sample in range(samples)
        ]
    )


def square_changes(samples, size, fill, seed):
    changes = np.zeros((samples, *X.shape), "float32")
    for sample, k in np.ndindex(samples, 3):
        top, left = np.random.default_rng([seed, k, sample]).integers([6 - size, 7 - size])
        where = (sample, k, slice(top, top + size), slice(left, left + size))
        changes[where] = X[where[1:]] - fill
    return changes


@pytest.mark.parametrize("measure", ["score", "probability"])
@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_equals_a_naive_one(normalize, measure):
    settings = {"normalize": normalize, "measure": measure, "target": TARGET, "samples": 6, "seed": 4, "batch_size": 5}
    settings["bounds"] = (0, 2)
    channels = np.random.default_rng(1).normal(size=X.shape).astype("float32")
    gaussian, square = gaussian_changes(6, 0.4, 4), square_changes(6, 3, 0.25, 4)
    for maps in (MAPS, channels):
        for given_changes, own in (
            (gaussian, {"noise": 0.2}),
            (square, {"perturbations": "square", "size": 3, "fill": 0.25}),
            (square, {"perturbations": square, "samples": 1}),
        ):
            result = evaluate.infidelity(logits, X, maps, **{**settings, **own})
            expected = naive_infidelity(maps, given_changes, normalize, measure)
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_linear_model_are_faithful_in_any_unit():
    for perturbations in evaluate.PERTURBATIONS:
        settings = {"perturbations": perturbations, "target": TARGET}
        np.testing.assert_allclose(evaluate.infidelity(linear, X, GRADIENTS, **settings), 0, atol=1e-8)
        assert (evaluate.infidelity(linear, X, 2 * GRADIENTS, **settings) > 0.01).all()
        scaled = evaluate.infidelity(linear, X, -7 * GRADIENTS, normalize=True, **settings)
        np.testing.assert_allclose(scaled, 0, atol=1e-8)
    nothing = evaluate.infidelity(linear, X, 0 * MAPS, target=TARGET, samples=4)
    np.testing.assert_array_equal(
        evaluate.infidelity(linear, X, 0 * MAPS, target=TARGET, samples=4, normalize=True), nothing
    )
    assert (nothing > 0.01).all()


def network(*front, last=()):
    keras.utils.set_random_seed(0)
    kinds = [layers.Conv2D(3, 3, activation="tanh"), layers.Flatten(), layers.Dense(4)]
    return keras.Sequential([keras.Input((5, 6, 2)), *front, *kinds, *last])


@pytest.mark.parametrize("perturbations", evaluate.PERTURBATIONS)
def test_infidelity_of_twins(perturbations):
    settings = {"perturbations": perturbations, "size": 2, "samples": 5, "target": TARGET}
    plain = evaluate.infidelity(network(), X, MAPS, **settings)
    assert (plain > 1e-3).all()
    softmax = evaluate.infidelity(network(last=[layers.Softmax()]), X, MAPS, **settings)
    np.testing.assert_allclose(softmax, plain, rtol=1e-4)
    wide = network(layers.Rescaling(1 / 255))
    scaled = evaluate.infidelity(wide, X * 255, MAPS / 255, bounds=(0, 255), **settings)
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)
    of_first_image = evaluate.infidelity(network(), X[:1], MAPS[:1], batch_size=2, **{**settings, "target": TARGET[:1]})
    np.testing.assert_allclose(of_first_image, plain[:1], rtol=1e-4)


def test_sensitivity_equals_a_naive_one():
    seen = []

    def explainer(x, target):
        seen.append(len(x))
        return np.square(np.asarray(x, "float64")).sum(axis=-1) * (target + 1)[:, None, None]

    result = evaluate.max_sensitivity(explainer, X, TARGET, radius=0.1, samples=4, bounds=(-1, 1), seed=5, batch_size=5)
    assert max(seen) == 5
    for k, image in enumerate(X):
        clean = explainer(image[None], TARGET[k : k + 1])[0]
        ratios = []
        for sample in range(4):
            move = 0.2 * np.random.default_rng([5, k, sample]).uniform(-1, 1, image.shape)
            moved = explainer((image + move.astype("float32")).clip(-1, 1)[None], TARGET[k : k + 1])[0]
            ratios.append(np.sqrt(((moved - clean) ** 2).sum()) / np.sqrt((clean**2).sum()))
        assert result[k] == pytest.approx(max(ratios), rel=1e-5)


def test_sensitivity_of_explainers():
    model, wide = network(), network(layers.Rescaling(1 / 255))
    plain = evaluate.max_sensitivity(explain.Saliency(model), X, TARGET)
    assert (plain > 1e-3).all()
    scaled = evaluate.max_sensitivity(explain.Saliency(wide), X * 255, TARGET, bounds=(0, 255))
    np.testing.assert_allclose(scaled, plain, rtol=1e-3)
    constant = evaluate.max_sensitivity(
        explain.Saliency(lambda x: keras.ops.matmul(keras.ops.reshape(x, (-1, 60)), WEIGHTS)), X, 1
    )
    np.testing.assert_allclose(constant, 0, atol=1e-6)  # the gradient of a linear model is the same everywhere
    more = evaluate.max_sensitivity(explain.Saliency(model), X, TARGET, samples=30)
    assert (more >= plain).all()
    wider = evaluate.max_sensitivity(explain.Saliency(model), X, TARGET, radius=0.2)
    assert (wider > plain).all()


def test_neighbours_stay_within_the_bounds():
    seen = []

    def explainer(x, target):
        seen.append(np.asarray(x))
        return seen[-1][..., 0]

    evaluate.max_sensitivity(explainer, X, 0, radius=0.5)
    assert (seen[-1].min(), seen[-1].max()) == (0, 1)
    with pytest.warns(UserWarning, match="pixels within bounds"):
        evaluate.max_sensitivity(explainer, 3 * X, 0, radius=0.1, samples=4)
    moved = np.abs(seen[-1].reshape(3, 4, *X.shape[1:]) - 3 * X[:, None])
    assert 0.05 < moved.max() <= 0.1 + 1e-6


def naive_gini(heatmap):
    """Half the mean difference of all pairs, relative to the mean."""
    values = np.abs(heatmap.ravel()).astype("float64")
    total = sum(abs(a - b) for a in values for b in values)
    return total / (2 * len(values) * values.sum())


def naive_entropy(heatmap):
    values = np.abs(heatmap.ravel()).astype("float64")
    return -sum(v / values.sum() * np.log(v / values.sum()) for v in values if v)


@given(st.integers(0, 1000))
def test_sparseness_and_complexity_equal_naive_ones(seed):
    maps = np.random.default_rng(seed).normal(size=(3, 4, 5)).astype("float32") ** 3
    maps[1] = np.round(maps[1])  # with zeros and ties
    maps[1, 0, 0] = 2
    sparseness, complexity = evaluate.sparseness(maps), evaluate.complexity(maps)
    np.testing.assert_allclose(sparseness, [naive_gini(each) for each in maps], atol=1e-9)
    np.testing.assert_allclose(complexity, [naive_entropy(each) for each in maps], atol=1e-9)
    for scale in (-1, 1000.0):
        np.testing.assert_allclose(evaluate.sparseness(scale * maps), sparseness, atol=1e-6)
        np.testing.assert_allclose(evaluate.complexity(scale * maps), complexity, atol=1e-5)
    shuffled = np.random.default_rng(seed).permutation(maps.reshape(3, -1), axis=1).reshape(maps.shape)
    np.testing.assert_allclose(evaluate.sparseness(shuffled), sparseness, atol=1e-12)


def test_sparseness_and_complexity_at_their_ends():
    maps = np.zeros((4, 10, 10))
    maps[0, 3, 4], maps[1], maps[3, :5, :] = -3, 0.7, 1
    np.testing.assert_allclose(evaluate.sparseness(maps), [0.99, 0, 0, 0.5], atol=1e-12)
    np.testing.assert_allclose(evaluate.complexity(maps), [0, np.log(100), np.log(100), np.log(50)], atol=1e-12)


@given(st.integers(0, 1000))
def test_rank_accuracy_equals_a_naive_one(seed):
    random = np.random.default_rng(seed)
    maps, masks = np.round(random.normal(size=(3, 4, 5)), 1), random.uniform(size=(3, 4, 5)) < 0.4
    masks[:, 0, 0] = True
    for value, heatmap, mask in zip(evaluate.rank_accuracy(maps, masks), maps, masks, strict=True):
        highest = sorted(np.ndindex(mask.shape), key=lambda place, heatmap=heatmap: -heatmap[place])[: mask.sum()]
        assert value == pytest.approx(np.mean([mask[place] for place in highest]))
    np.testing.assert_array_equal(evaluate.rank_accuracy(masks, masks), 1)
    np.testing.assert_array_equal(evaluate.rank_accuracy(np.ones((1, 4, 5)), [(0, 0, 2, 5)]), 1)
    np.testing.assert_array_equal(evaluate.rank_accuracy(np.ones((1, 4, 5)), [(2, 0, 4, 5)]), 0)  # the first count


def pixels(x, target):
    return np.asarray(x)[..., 0]


def test_says_what_is_wrong():
    for wrong, message in [
        ({"maps": MAPS[:2]}, r"a map of shape \(5, 6\) for each of 3 images; received \(2, 5, 6\)"),
        (
            {"maps": X[..., :1]},
            r"relevance of each pixel of the images, of shape \(3, 5, 6, 2\); received \(3, 5, 6, 1\)",
        ),
        ({"maps": X * np.nan}, "Expected finite maps"),
        ({"maps": "maps"}, "Expected maps as an array of numbers; received strings"),
        ({"measure": "accuracy"}, r"measure must be one of \('score', 'probability'\); received 'accuracy'"),
        ({"perturbations": "noise"}, r"perturbations must be one of \('gaussian', 'square'\); received 'noise'"),
        ({"perturbations": X}, r"Expected perturbations of shape \(samples, b, H, W, C\), not empty; received \(3, 5,"),
        (
            {"perturbations": X[None, :2]},
            r"perturbations of the images, of shape \(1, 3, 5, 6, 2\); received \(1, 2, 5",
        ),
        ({"perturbations": X[None] * np.inf}, "Expected finite perturbations"),
        ({"noise": 0}, r"noise must be a number in \(0, inf\); received 0"),
        ({"samples": 0}, "samples must be an integer from 1; received 0"),
        ({"perturbations": "square", "size": 6}, "size must be an integer from 1 to 5; received 6"),
        ({"normalize": "no"}, "normalize must be True or False; received 'no'"),
        ({"target": -1}, "class ids"),
        ({"model": lambda x: logits(x) * np.nan}, "returned NaN or infinite scores"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate.infidelity(**{"model": logits, "x": X, "maps": MAPS, **wrong})
    for function, arguments in ((evaluate.infidelity, (logits, X, MAPS)), (evaluate.max_sensitivity, (pixels, X, 0))):
        with pytest.warns(UserWarning, match=r"pixels within bounds=\(0.0, 0.5\), but pixels lie in \[0.0"):
            function(*arguments, bounds=(0, 0.5))
    for wrong, message in [
        ({"explainer": 3}, r"explainer must be a callable \(x, target\) → maps \(b, H, W\); received 3"),
        ({"explainer": lambda x, target: 0 * pixels(x, target)}, r"other than 0; those of images \[0 1 2\] are 0"),
        ({"explainer": lambda x, target: np.asarray(x)}, r"Expected maps of shape \(b, H, W\)"),
        (
            {"explainer": lambda x, target: pixels(x, target)[:2]},
            r"a map of each image, of shape \(3, 5, 6\); received",
        ),
        ({"explainer": lambda x, target: pixels(x, target) / 0.0}, "Expected finite maps"),
        ({"target": [0, 1]}, r"Targets must be integer class ids of shape \(3,\)"),
        ({"radius": 0}, r"radius must be a number in \(0, inf\); received 0"),
        ({"samples": 1.5}, "samples must be an integer from 1; received 1.5"),
        ({"bounds": (1, 0)}, "Expected bounds"),
    ]:
        with np.errstate(all="ignore"), pytest.raises(ValueError, match=message):
            evaluate.max_sensitivity(**{"explainer": pixels, "x": X, "target": TARGET, **wrong})
    for measure in (evaluate.sparseness, evaluate.complexity):
        with pytest.raises(ValueError, match="Expected finite maps; received NaN or infinite values, 90 of 90"):
            measure(MAPS * np.nan)
        with pytest.raises(ValueError, match=r"Expected maps of shape \(b, H, W\), not empty; received \(5, 6\)"):
            measure(MAPS[0])
    with pytest.raises(ValueError, match=r"an object in each image; the masks of images \[0 1 2\] are empty"):
        evaluate.rank_accuracy(MAPS, MAPS > 100)
