"""Carlini and Wagner's attack: on a linear model, where the smallest perturbation is known, and against Foolbox."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks

rng = np.random.default_rng(0)
WEIGHTS = rng.normal(size=(36, 4)).astype("float32")
X = rng.uniform(0.4, 0.6, size=(8, 6, 6, 1)).astype("float32")
SCORES = X.reshape(8, 36) @ WEIGHTS
Y = SCORES.argmax(1)
FEW = attacks.CarliniWagner(steps=300, binary_search_steps=7, initial_const=0.1)


def linear(x):
    return ops.reshape(x, (-1, 36)) @ WEIGHTS


def sizes(change):
    return np.linalg.norm(change.reshape(len(change), -1), axis=1)


def classes(x):
    return ops.convert_to_numpy(linear(x)).argmax(1)


def distance(n, a, b):
    """Of image n to the border between two classes of the linear model."""
    return abs(SCORES[n, a] - SCORES[n, b]) / np.linalg.norm(WEIGHTS[:, a] - WEIGHTS[:, b])


def test_untargeted_perturbations_of_a_linear_model_are_the_smallest():
    adversarial = FEW(linear, X, Y)
    assert (classes(adversarial) != Y).all()
    smallest = np.array([min(distance(n, y, k) for k in range(4) if k != y) for n, y in enumerate(Y)])
    assert (sizes(adversarial - X) >= 0.999 * smallest).all()
    np.testing.assert_allclose(sizes(adversarial - X), smallest, rtol=0.05)


@pytest.mark.parametrize("targeted", [False, True])
def test_a_confident_attack_leads_by_its_confidence(targeted):
    classes_of = np.argsort(SCORES, axis=1)[:, -2] if targeted else Y
    assert ((classes(FEW(linear, X, classes_of, targeted)) == classes_of) == targeted).all()
    confident = dataclasses.replace(FEW, confidence=0.5)
    scores = ops.convert_to_numpy(linear(confident(linear, X, classes_of, targeted)))
    others = np.where(np.eye(4)[classes_of] > 0, -np.inf, scores).max(1)
    lead = scores[np.arange(8), classes_of] - others
    assert ((lead if targeted else -lead) > 0.499).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_within_a_box_a_linear_model_is_fooled_where_it_can_be(targeted):
    ordered = np.argsort(SCORES, axis=1)
    targets = ordered[:, -2] if targeted else Y
    # Moving all pixels by epsilon, up or down, changes a difference of two scores by epsilon times this.
    reach = np.abs(WEIGHTS[:, :, None] - WEIGHTS[:, None]).sum(0)
    lead = SCORES[np.arange(8), Y][:, None] - SCORES
    least = np.array([min(lead[n, k] / reach[Y[n], k] for k in range(4) if k != Y[n]) for n in range(8)])
    if targeted:
        least = np.array([lead[n, targets[n]] / reach[Y[n], targets[n]] for n in range(8)])
    epsilon = float(np.sort(least)[3:5].mean())
    fooled_by = attacks.CarliniWagnerBox(epsilon, steps=400, abort_early=False)
    images = fooled_by(linear, X, targets, targeted=targeted)
    np.testing.assert_array_equal(classes(images) != Y, least < epsilon)
    assert np.abs(images - X).max() <= epsilon + 1e-6
    np.testing.assert_array_equal(images[least > epsilon], X[least > epsilon])
    np.testing.assert_array_equal(attacks.CarliniWagnerBox(0)(linear, X, Y), X)


def test_images_alone_cut_and_in_vain():
    singles = [FEW(linear, X[i : i + 1], Y[i : i + 1]) for i in range(8)]
    adversarial = FEW(linear, X, Y)
    np.testing.assert_allclose(adversarial, np.concatenate(singles), atol=1e-4)
    cut = attacks.CarliniWagner(0.01, steps=300, binary_search_steps=7, initial_const=0.1)(linear, X, Y)
    assert (sizes(cut - X) <= 0.01 + 1e-6).all()
    one_step = attacks.CarliniWagner(steps=1, binary_search_steps=1)
    np.testing.assert_array_equal(one_step(linear, X, Y), X)
    black_and_white = X.round()
    result = FEW(linear, black_and_white, classes(black_and_white))
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.tensorflow
@pytest.mark.peers
def test_finds_no_larger_perturbations_than_foolbox(digits):
    foolbox = pytest.importorskip("foolbox")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.layers[-1].kernel.assign(rng.normal(size=(64, 10)))
    x = digits[0][:20]
    y = model.predict(x, verbose=0).argmax(1)
    theirs = foolbox.attacks.L2CarliniWagnerAttack(steps=200, binary_search_steps=6, initial_const=0.1)
    _, (expected,), (success,) = theirs(
        foolbox.TensorFlowModel(model, bounds=(0, 1)),
        ops.convert_to_tensor(x),
        ops.convert_to_tensor(y),
        epsilons=[None],
    )
    adversarial = attacks.CarliniWagner(steps=200, binary_search_steps=6, initial_const=0.1)(model, x, y)
    fooled = model.predict(adversarial, verbose=0).argmax(1) != y
    np.testing.assert_array_equal(fooled, success)
    assert fooled.all()
    assert sizes(adversarial - x).mean() <= 1.05 * sizes(ops.convert_to_numpy(expected) - x).mean()


def linf_distance(n, a, b):
    """Of image n to the border between two classes of the linear model, in L-infinity."""
    return abs(SCORES[n, a] - SCORES[n, b]) / np.abs(WEIGHTS[:, a] - WEIGHTS[:, b]).sum()


@pytest.mark.parametrize("targeted", [False, True])
def test_linf_perturbations_of_a_linear_model_are_nearly_the_smallest(targeted):
    targets = np.argsort(SCORES, axis=1)[:, -2]
    attack = attacks.CarliniWagnerLinf(initial_const=0.1)
    adversarial = attack(linear, X, targets if targeted else Y, targeted)
    assert (classes(adversarial) == targets).all() if targeted else (classes(adversarial) != Y).all()
    smallest = [min(linf_distance(n, y, k) for k in range(4) if k != y) for n, y in enumerate(Y)]
    if targeted:  # at least as far as the border between the two
        smallest = [linf_distance(n, y, k) for n, (y, k) in enumerate(zip(Y, targets, strict=True))]
    size = np.abs(adversarial - X).max(axis=(1, 2, 3))
    assert (size >= 0.999 * np.array(smallest)).all()
    if not targeted:
        assert (size <= np.array(smallest) / attack.decrease_factor).all()


def test_linf_images_alone_cut_and_in_vain():
    attack = attacks.CarliniWagnerLinf(initial_const=0.1)
    adversarial = attack(linear, X, Y)
    singles = [attack(linear, X[i : i + 1], Y[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(adversarial[:2], np.concatenate(singles), atol=1e-4)
    cut = attacks.CarliniWagnerLinf(0.005, initial_const=0.1)(linear, X, Y)
    assert np.abs(cut - X).max() <= 0.005 + 1e-7
    np.testing.assert_array_equal(attacks.CarliniWagnerLinf(steps=1, initial_const=1)(linear, X, Y), X)
    assert attacks.CarliniWagnerLinf()(linear, X[:0], Y[:0]).shape == (0, 6, 6, 1)


@pytest.mark.peers
@pytest.mark.tensorflow
def test_finds_no_larger_linf_perturbations_than_art(digits):
    estimators = pytest.importorskip("art.estimators.classification")
    evasion = pytest.importorskip("art.attacks.evasion")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.layers[-1].kernel.assign(rng.normal(size=(64, 10)))
    x = digits[0][:2]
    y = model.predict(x, verbose=0).argmax(1)
    classifier = estimators.TensorFlowV2Classifier(
        model,
        nb_classes=10,
        input_shape=(8, 8, 1),
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )
    expected = evasion.CarliniLInfMethod(classifier, max_iter=100, initial_const=0.1, verbose=False).generate(x, y)
    adversarial = attacks.CarliniWagnerLinf(initial_const=0.1)(model, x, y)
    theirs, ours = (model.predict(each, verbose=0).argmax(1) != y for each in (expected, adversarial))
    assert ours.sum() >= theirs.sum()
    both = theirs & ours
    assert both.any()
    theirs, ours = (np.abs(each - x).max(axis=(1, 2, 3))[both].mean() for each in (expected, adversarial))
    assert ours <= 1.05 * theirs


def test_bad_settings_are_refused():
    for arguments in ({"epsilon": -1}, {"steps": 0}, {"binary_search_steps": 0}, {"confidence": -1}, {"step_size": -1}):
        ((name, value),) = arguments.items()
        with pytest.raises(ValueError, match=f"{name} must be .* received {value}"):
            attacks.CarliniWagner(**arguments)
    for arguments in ({"const_factor": 1}, {"decrease_factor": 1.0}, {"initial_const": 0}, {"smallest_limit": 0}):
        ((name, value),) = arguments.items()
        with pytest.raises(ValueError, match=f"{name} must be a number in .*received {value}"):
            attacks.CarliniWagnerLinf(**arguments)
