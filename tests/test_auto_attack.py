"""AutoAttack: which attacks, on which images, and what it warns of."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
from apgd_of_peers import network
from keras import ops

from keras_capsvit import attacks, evaluate

SHAPE, CLASSES = (5, 6, 2), 6
WEIGHTS = [each.astype("float32") for each in network(np.random.default_rng(3), 60, CLASSES)]
X = np.random.default_rng(0).uniform(size=(8, *SHAPE)).astype("float32")
FEW = {"apgd": attacks.APGD(1, steps=4, keep="first"), "square": attacks.Square(1, queries=30)}


def smooth(x):
    return ops.tanh(ops.reshape(x, (-1, 60)) @ WEIGHTS[0]) @ WEIGHTS[1]


def rounded(x):
    return smooth(ops.cast(ops.cast(x * 64, "int32"), "float32") / 64)


def classes_of(x, model=smooth):
    return ops.convert_to_numpy(model(ops.convert_to_tensor(x))).argmax(axis=1)


Y = classes_of(X)
WRONG = np.where(np.arange(8) == 2, (Y + 1) % CLASSES, Y)


def auto(epsilon=0.03, **settings):
    return attacks.AutoAttack(epsilon, version="custom", **{"attacks": FEW, **settings})


@pytest.mark.filterwarnings("ignore:Robust accuracy may be lower")
def test_each_attack_gets_what_is_left():
    result = auto(0.02).run(smooth, X, WRONG)
    left, broken = np.arange(8) != 2, np.full(8, "", object)
    broken[2] = "clean"
    expected, accuracy = X.copy(), {"clean": 7 / 8}
    for name, attack in FEW.items():
        rows = np.flatnonzero(left)
        images = dataclasses.replace(attack, epsilon=0.02)(smooth, X[rows], WRONG[rows], numbers=rows)
        fooling = classes_of(images) != WRONG[rows]
        expected[rows[fooling]], broken[rows[fooling]], left[rows[fooling]] = images[fooling], name, False
        accuracy[name] = left.mean()
    assert 0 < left.sum() < 7
    np.testing.assert_allclose(result.images, expected, atol=1e-6)
    np.testing.assert_array_equal(result.images[2], X[2])
    assert result.broken_by.tolist() == broken.tolist()
    assert result.robust_accuracy == accuracy
    np.testing.assert_array_equal(result.fooled, classes_of(result.images) != WRONG)
    assert (result.queries > 0).tolist() == [name in ("square", "") for name in broken]
    assert evaluate.robust_accuracy(smooth, auto(0.02), (X, WRONG), batch_size=3) == list(accuracy.values())[-1]


def test_versions_are_those_of_the_authors():
    for norm in ("linf", "l2", "l1"):
        l1 = norm == "l1"
        standard = attacks.AutoAttack(0.1, norm=norm).sequence()
        assert list(standard) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert [standard["apgd-ce"].restarts, standard["apgd-t"].targets] == ([5, 5] if l1 else [1, 9])
        assert {attack.norm for attack in standard.values()} == {norm}
        plus = attacks.AutoAttack(0.1, norm=norm, version="plus").sequence()
        assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
        assert [plus[name].restarts for name in plus] == [5, 5, 5, 1, 1, 1]
        assert [plus["apgd-t"].targets, plus["fab-t"].targets, plus["square"].queries] == [9, 9, 5000]
    rand = attacks.AutoAttack(0.1, version="rand").sequence()
    assert [(attack.loss, attack.eot_iter, attack.steps) for attack in rand.values()] == [
        ("ce", 20, 100),
        ("dlr", 20, 100),
    ]
    assert attacks.AutoAttack(0.1, version="plus").sequence(3)["apgd-dlr"].loss == "margin"


def test_nothing_else_runs_once_all_are_fooled():
    result = auto(attacks={"apgd": FEW["apgd"], "never": attacks.Square(1)}, epsilon=0.5).run(smooth, X, WRONG)
    assert set(result.robust_accuracy) == {"clean", "apgd"}
    assert result.robust_accuracy["apgd"] == 0
    assert not result.queries.any()


def test_what_gradients_miss_is_reported():
    y = classes_of(X, rounded)
    gradients = pytest.warns(UserWarning, match="no gradient reached the images that were left for apgd.*rounding")
    square = pytest.warns(UserWarning, match=r"Square fooled \d+.\d% of the images, which attacks by gradients did not")
    with gradients, square:
        result = auto(0.3).run(rounded, X, y)
    assert set(result.broken_by) <= {"square", ""}
    with pytest.raises(ValueError, match="gradient is exactly zero"):
        auto(attacks={"apgd": FEW["apgd"]}).run(rounded, X, y)


@pytest.mark.tensorflow
def test_random_scores_and_probabilities_are_reported():
    generator = keras.random.SeedGenerator(0)

    def noisy(x):
        return smooth(x) + keras.random.normal((CLASSES,), seed=generator)

    with pytest.warns(UserWarning, match="differ from call to call. Take version='rand'"):
        auto().run(noisy, X, Y)
    with pytest.warns(UserWarning, match="probabilities"):
        auto().run(attacks.Objective(lambda x: ops.softmax(smooth(x)), None), X, Y)


def test_few_classes_are_attacked_by_the_margin(monkeypatch):
    sequence = attacks.AutoAttack.sequence

    def shorter(self, classes=10):
        short = {"apgd-ce": {"steps": 2}, "apgd-t": {"steps": 3}}
        return {n: dataclasses.replace(a, **short[n]) for n, a in sequence(self, classes).items() if n in short}

    monkeypatch.setattr(attacks.AutoAttack, "sequence", shorter)
    model = lambda x: smooth(x)[:, :2]  # noqa: E731
    with pytest.warns(UserWarning, match="Of 2 classes .* so APGD raises the margin"):
        result = attacks.AutoAttack(0.2).run(model, X, classes_of(X, model))
    assert result.fooled.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.AutoAttack(1e-3).run(smooth, X, Y)


KINDS = {
    "apgd": attacks.APGD(1, steps=3, keep="first"),
    "apgd-t": attacks.APGD(1, steps=3, loss="dlr_targeted", targets=9, keep="first"),
    "fab-t": attacks.FAB(steps=3, targets=9),
    "square": attacks.Square(1, queries=10),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Robust accuracy may be lower")
@pytest.mark.parametrize(("classes", "count", "epsilon"), [(1000, 3, 0.01), (6, 1, 0.05), (6, 4, 0.0), (4, 4, 0.03)])
def test_any_number_of_classes_and_images_and_no_radius(classes, count, epsilon):
    weights = [each.astype("float32") for each in network(np.random.default_rng(3), 60, classes)]

    def model(x):
        return ops.tanh(ops.reshape(x, (-1, 60)) @ weights[0]) @ weights[1]

    x = X[:count]
    y = classes_of(x, model)
    result = auto(epsilon, attacks=KINDS).run(model, x, y)
    assert result.images.shape == x.shape
    assert np.abs(result.images - x).max() <= epsilon * (1 + 1e-5)
    np.testing.assert_array_equal(result.fooled, classes_of(result.images, model) != y)
    assert result.robust_accuracy["clean"] == 1
    alone = auto(epsilon, attacks=KINDS).run(model, x[-1:], y[-1:], numbers=[count - 1])
    np.testing.assert_allclose(alone.images, result.images[-1:], atol=1e-5)
    if not epsilon:
        np.testing.assert_array_equal(result.images, x)
        assert not result.fooled.any()


def test_bad_settings_are_refused():
    for arguments, message in (
        ({"version": "best"}, r"version must be one of .*; received 'best'"),
        ({"version": "custom"}, "Expected attacks with version='custom'"),
        ({"attacks": FEW}, "Expected attacks with version='custom'"),
        ({"version": "custom", "attacks": {}}, "attacks"),
        ({"version": "custom", "attacks": {"a": smooth}}, "Expected attacks of this package"),
        ({"version": "custom", "attacks": {"clean": FEW["apgd"]}}, "other than 'clean'"),
        (
            {"version": "custom", "attacks": {"p": attacks.PGD(1)}, "norm": "l1"},
            "Expected attacks in the norm 'l1'; 'p'",
        ),
        ({"version": "custom", "attacks": {"c": attacks.CarliniWagner(1)}}, "Expected attacks in the norm 'linf'; 'c'"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.AutoAttack(0.1, **arguments)
    changed = dataclasses.replace(auto(), epsilon=0.2, bounds=(-1, 1), seed=3).sequence()
    assert {(each.epsilon, each.bounds, each.seed) for each in changed.values()} == {(0.2, (-1.0, 1.0), 3)}
    assert auto().run(smooth, X[:0], Y[:0]).images.shape == (0, *SHAPE)
