"""FAB: on linear models, where its answer is known; against its published steps in NumPy; and against torchattacks."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.fab import FAB

NORMS = ("linf", "l2", "l1")
WIDE = (-9.0, 9.0)  # bounds that no perturbation here meets


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


WEIGHTS, HIDDEN, OUT = numbers(0, 36, 4), numbers(1, 36, 12) / 4, numbers(2, 12, 4)
X = np.random.default_rng(3).uniform(0.4, 0.6, size=(10, 6, 6, 1)).astype("float32")


def linear(x):
    return ops.reshape(x, (-1, 36)) @ WEIGHTS


def curved(x):
    return ops.tanh(ops.reshape(x, (-1, 36)) @ HIDDEN) @ OUT


def classes(model, x):
    return ops.convert_to_numpy(model(ops.convert_to_tensor(x))).argmax(axis=1)


def sizes(change, norm):
    change = np.abs(change.reshape(len(change), -1).astype("float64"))
    return {"linf": change.max(1), "l2": np.sqrt(np.square(change).sum(1)), "l1": change.sum(1)}[norm]


def dual(w, norm):
    return {"linf": np.abs(w).sum(-1), "l2": np.sqrt(np.square(w).sum(-1)), "l1": np.abs(w).max(-1)}[norm]


def distances(norm):
    """Of every image to the border of every other class of the linear model, ``(10, 3)``, the nearest first."""
    scores, ways = X.reshape(10, 36) @ WEIGHTS, np.full((10, 4), np.inf)
    for n, y in enumerate(scores.argmax(1)):
        for k in set(range(4)) - {y}:
            ways[n, k] = (scores[n, y] - scores[n, k]) / dual(WEIGHTS[:, k] - WEIGHTS[:, y], norm)
    return np.sort(ways, axis=1)[:, :3]


@pytest.mark.parametrize("targets", [None, 3, 100])
def test_linear_model_is_left_by_the_shortest_way(targets, norm="l2"):
    y = classes(linear, X)
    adversarial = FAB(norm=norm, steps=5, targets=targets, bounds=WIDE)(linear, X, y)
    assert (classes(linear, adversarial) != y).all()
    np.testing.assert_allclose(sizes(adversarial - X, norm), distances(norm)[:, 0], rtol=2e-3)


def test_targeted_reaches_the_wanted_class(norm="l2"):
    scores = X.reshape(10, 36) @ WEIGHTS
    y, targets = scores.argmax(1), np.argsort(scores, axis=1)[:, -2]
    adversarial = FAB(norm=norm, steps=10, bounds=WIDE)(linear, X, targets, targeted=True)
    assert (classes(linear, adversarial) == targets).all()
    gap = scores[np.arange(10), y] - scores[np.arange(10), targets]
    way = gap / dual((WEIGHTS[:, targets] - WEIGHTS[:, y]).T, norm)
    # The border between the two is as near as the wanted class can be; a third class may lie in between.
    assert (sizes(adversarial - X, norm) >= 0.999 * way).all()
    assert np.median(sizes(adversarial - X, norm) / way) == pytest.approx(1, rel=2e-3)
    np.testing.assert_array_equal(FAB(norm=norm, steps=2, bounds=WIDE)(linear, X, y, targeted=True), X)


def replica(x, y, norm, steps, start=None, alpha_max=0.1, eta=1.05, beta=0.9):
    """Algorithm 1 of one image of the curved model, in double precision and without bounds."""

    def scores(x):
        return np.tanh(x @ HIDDEN.astype("float64")) @ OUT.astype("float64")

    def onto(w, gap):
        if norm == "linf":
            return gap / np.abs(w).sum() * np.sign(w)
        if norm == "l2":
            return gap / (w @ w) * w
        largest = np.arange(len(w)) == np.abs(w).argmax()
        return largest * gap / w[largest]

    x = x.ravel().astype("float64")
    point, best, smallest, others = (x if start is None else start), None, np.inf, [k for k in range(4) if k != y]

    def lead(x):
        return scores(x)[others].max() - scores(x)[y]

    for _ in range(steps):
        slopes = HIDDEN * (1 - np.tanh(point @ HIDDEN) ** 2) @ OUT
        margins = scores(point)[others] - scores(point)[y]
        normals = (slopes[:, others] - slopes[:, [y]]).T
        k = np.argmin(np.abs(margins) / dual(normals, norm))
        way, way_back = onto(normals[k], -margins[k]), onto(normals[k], -margins[k] + normals[k] @ (point - x))
        a, b = sizes(way[None], norm)[0], sizes(way_back[None], norm)[0]
        alpha = min(a / (a + b), alpha_max)
        point = (1 - alpha) * (point + eta * way) + alpha * (x + eta * way_back)
        if scores(point).argmax() != y:
            if sizes((point - x)[None], norm)[0] < smallest and lead(point) > 1e-5 * np.abs(scores(point)).max():
                best, smallest = point, sizes((point - x)[None], norm)[0]
            point = (1 - beta) * x + beta * point

    correct = x
    for _ in range(3):
        share = (min(2e-5 * np.abs(scores(best)).max(), lead(best)) - lead(correct)) / (lead(best) - lead(correct))
        between = correct + share * (best - correct)
        if lead(between) > 1e-5 * np.abs(scores(between)).max():
            best = between
        else:
            correct = between
    return best.reshape(6, 6, 1)


@pytest.mark.parametrize("norm", NORMS)
def test_steps_are_the_published_ones(norm):
    y = classes(curved, X)
    adversarial = FAB(norm=norm, steps=6, bounds=WIDE)(curved, X, y)
    expected = np.stack([replica(each, label, norm, 6) for each, label in zip(X, y, strict=True)])
    np.testing.assert_allclose(adversarial, expected, atol=2e-4)
    hyperparameters = {"alpha_max": 0.4, "eta": 1.3, "beta": 0.5}
    adversarial = FAB(norm=norm, steps=4, bounds=WIDE, **hyperparameters)(curved, X, y)
    expected = np.stack([replica(each, label, norm, 4, **hyperparameters) for each, label in zip(X, y, strict=True)])
    np.testing.assert_allclose(adversarial, expected, atol=2e-4)


def test_restarts_begin_half_as_far_away_as_epsilon():
    def flat(x):
        """No gradient where the mean change from grey is below 0.04, all else of the second class."""
        far = ops.relu(ops.mean(ops.abs(x - 0.5), axis=(1, 2, 3)) - 0.04)
        return ops.stack([0 * far + 1e-3, far], axis=1)

    grey, y = np.full((5, 6, 6, 1), 0.5, "float32"), np.zeros(5, int)
    attack = FAB(0.22, steps=5, restarts=2)
    adversarial = attack(flat, grey, y)
    assert (classes(flat, adversarial) == 1).all()
    for changed in ({"epsilon": 0.12}, {"restarts": 1}):
        with pytest.raises(ValueError, match="gradient is exactly zero"):
            dataclasses.replace(attack, **changed)(flat, grey, y)
    np.testing.assert_array_equal(attack(flat, grey, y), adversarial)
    assert np.abs(dataclasses.replace(attack, seed=1)(flat, grey, y) - adversarial).max() > 1e-3
    assert np.abs(attack(flat, grey, y, numbers=range(5, 10)) - adversarial).max() > 1e-3
    # Without epsilon, half as far as the bounds are apart.
    assert (classes(flat, dataclasses.replace(attack, epsilon=None)(flat, grey, y)) == 1).all()


def test_images_leave_when_epsilon_is_reached_and_stay_as_they_were_when_it_is_not():
    y, way = classes(linear, X), distances("l2")[:, 0]
    epsilon = float(np.median(way))
    adversarial = FAB(epsilon, norm="l2", steps=5)(linear, X, y)
    within, fooled = way < 0.99 * epsilon, classes(linear, adversarial) != y
    assert fooled[within].all() and not fooled[way > epsilon].any()
    assert (sizes(adversarial - X, "l2") <= epsilon * (1 + 1e-6)).all()
    np.testing.assert_array_equal(adversarial[way > epsilon], X[way > epsilon])
    np.testing.assert_array_equal(FAB(steps=2)(linear, X, (y + 1) % 4), X)  # fooled before
    # The second class may be nearer than the first, but what fools within epsilon is not tried again.
    one_target, three_targets = (FAB(9, norm="l2", steps=5, targets=targets)(linear, X, y) for targets in (1, 3))
    np.testing.assert_array_equal(three_targets, one_target)


def sine(x):
    return ops.sin(ops.reshape(x, (-1, 18)) @ numbers(4, 18, 5))


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from([("linf", None), ("l1", 2)]))
def test_found_images_keep_ball_and_bounds_whatever_batch_they_are_in(seed, norm_and_targets):
    norm, targets = norm_and_targets
    random = np.random.default_rng(seed)
    low = random.uniform(-3, 0, 2).astype("float32")
    high = low + np.float32(random.uniform(1, 4, 2))
    x = random.uniform(low, high, size=(4, 3, 3, 2)).astype("float32")
    y = random.integers(0, 5, 4)
    epsilon = float(random.uniform(0.1, 0.6)) * {"linf": 1, "l2": 3, "l1": 9}[norm]
    attack = FAB(epsilon, norm=norm, steps=5, restarts=2, targets=targets, bounds=(low, high), seed=seed)
    adversarial = attack(sine, x, y)
    assert adversarial.dtype == "float32" and (adversarial >= low).all() and (adversarial <= high).all()
    assert (sizes(adversarial - x, norm) <= epsilon * (1 + 1e-5)).all()
    moved = np.abs(adversarial - x).max(axis=(1, 2, 3)) > 0
    assert (classes(sine, adversarial)[moved] != y[moved]).all()
    among_others = attack(sine, x[[2, 0, 2, 0]], y[[2, 0, 2, 0]], numbers=[2, 0, 7, 8])
    np.testing.assert_allclose(among_others[:2], adversarial[[2, 0]], atol=2e-4)


@pytest.mark.slow
def test_a_batch_is_its_images_one_by_one():
    y, attack = classes(curved, X), FAB(norm="l2", steps=4, restarts=2, bounds=WIDE)
    singles = [attack(curved, X[n : n + 1], y[n : n + 1], numbers=[n]) for n in range(4)]
    np.testing.assert_allclose(np.concatenate(singles), attack(curved, X, y)[:4], atol=2e-4)


def test_further_starts_and_targets_are_one_function():
    y, attack = classes(linear, X), FAB(9, norm="l2", steps=2, targets=1)
    attack(linear, X, y)
    before = autodiff.traces()
    for changed in ({"targets": 3}, {"restarts": 3, "seed": 4}, {"epsilon": 8, "eta": 1.2}, {"epsilon": None}):
        dataclasses.replace(attack, **changed)(linear, X, y)
    assert autodiff.traces() == before


def blind(x):
    """Sure of the first class where the first pixel is dark, whatever else is in the image."""
    return ops.cast(x[:, 0, 0] > 0.5, "float32") * linear(x) + np.float32([[3, 2, 1, 0]])


def test_images_without_a_gradient_stay_as_they_are():
    x = X.copy()
    x[:, 0, 0], x[:5, 0, 0] = 1.0, 0.0
    y = classes(blind, x)
    with pytest.warns(UserWarning, match="zero for 5 of 10 images"):
        adversarial = FAB(steps=4)(blind, x, y)
    np.testing.assert_array_equal(adversarial[:5], x[:5])
    assert (classes(blind, adversarial)[5:] != y[5:]).all()
    with pytest.raises(ValueError, match="exactly zero for all of 10 images that are not fooled"):
        FAB(steps=4)(blind, x[:5].repeat(2, axis=0), y[:5].repeat(2))


def test_equal_scores_and_tiny_gradients():
    def even(x):  # the first two classes have the same score everywhere
        scores = linear(x)
        return 1e-20 * ops.stack([scores[:, 0], scores[:, 0], scores[:, 1]], axis=1)

    y = classes(even, X)
    adversarial = FAB(norm="l2", steps=5, bounds=WIDE)(even, X, y)
    assert np.isfinite(adversarial).all()
    assert (classes(even, adversarial) != y).mean() > 0.8


def test_steps_that_end_on_the_border_but_for_rounding_turn_back():
    """The first step falls a little short of the border, and so little further a class leads by rounding alone."""

    def offset(x):
        scores = ops.tanh(ops.mean(x, axis=(1, 2))) - 0.5
        return 100.0 + ops.concatenate([0 * scores, scores], axis=1)

    x = np.full((4, 6, 6, 1), 0.3, "float32") - np.linspace(0, 0.02, 4, dtype="float32")[:, None, None, None]
    adversarial = FAB(steps=10)(offset, x, np.zeros(4, int))
    np.testing.assert_allclose(sizes(adversarial - x, "linf"), np.arctanh(0.5) - x[:, 0, 0, 0], rtol=0.02)


def test_bad_settings_are_refused(monkeypatch):
    for arguments, message in (
        ({"epsilon": -1}, "epsilon must be a number .* received -1"),
        ({"norm": "l0"}, r"norm must be one of \('linf', 'l2', 'l1'\); received 'l0'"),
        ({"targets": 0}, "targets must be .* received 0"),
        ({"restarts": 0}, "restarts must be .* received 0"),
        ({"eta": 0.5}, r"eta must be a number in \[1, inf\); received 0.5"),
        ({"alpha_max": 2}, r"alpha_max must be a number in \[0, 1\]; received 2"),
    ):
        with pytest.raises(ValueError, match=message):
            FAB(**arguments)
    monkeypatch.setattr(checks.settings, "_physical_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"gradients of all borders, of shape \(10, 3, 6, 6, 1\).*Set targets"):
        FAB(steps=1)(linear, X, classes(linear, X))


SIZE = {"linf": ("Linf", 1.0), "l2": ("L2", 100.0), "l1": ("L1", 1000.0)}


@pytest.mark.tensorflow
@pytest.mark.peers
@pytest.mark.parametrize("targets", [None, 9])
@pytest.mark.parametrize("norm", NORMS)
def test_perturbations_are_as_small_as_those_of_torchattacks(norm, targets, digits):
    torch = pytest.importorskip("torch")
    torchattacks = pytest.importorskip("torchattacks")
    keras.utils.set_random_seed(0)
    images, labels = digits
    convolution = keras.layers.Conv2D(8, 3, activation="relu")
    model = keras.Sequential([keras.Input((8, 8, 1)), convolution, keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images[:1000], labels[:1000], epochs=10, verbose=0)
    kernel, bias, weights, offset = (torch.tensor(each) for each in model.get_weights())

    class Twin(torch.nn.Module):
        def forward(self, x):
            x = torch.relu(torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias))
            return x.permute(0, 2, 3, 1).flatten(1) @ weights + offset

    x, y = images[1000:1100], model.predict(images[1000:1100], verbose=0).argmax(1)
    name, epsilon = SIZE[norm]  # which all images are fooled within, so that both stop after the first target
    theirs = torchattacks.FAB(Twin().eval(), norm=name, eps=epsilon, multi_targeted=targets is not None)
    inputs = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(y)
    if norm != "l1":
        expected = theirs(*inputs)
    elif targets is None:  # its call fails in L1, not what it calls
        expected = theirs.attack_single_run(*inputs)
    else:
        theirs.target_class = 2
        expected = theirs.attack_single_run_targeted(*inputs)
    expected = expected.numpy().transpose(0, 2, 3, 1)
    adversarial = FAB(epsilon, norm=norm, targets=targets)(model, x, y)
    ours, others = (model.predict(images, verbose=0).argmax(1) != y for images in (adversarial, expected))
    assert ours.mean() > 0.98 and others.mean() > 0.98
    mean, reference = (sizes(images - x, norm)[ours & others].mean() for images in (adversarial, expected))
    assert mean == pytest.approx(reference, rel=0.02)
