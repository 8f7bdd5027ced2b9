"""Detection by reconstruction, and the attack that is aware of it."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import CapsNet, attacks, evaluate, taps

X = np.random.default_rng(0).uniform(size=(40, 12, 12, 1)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 40)
SETTINGS = {"kernel_size": 3, "filters": 6, "num_types": 2, "primary_dim": 4, "capsule_dim": 5}


@pytest.fixture(scope="module")
def capsnet():
    keras.utils.set_random_seed(0)
    return CapsNet((12, 12, 1), 3, reconstruction="conditional", reconstruction_units=(16,), **SETTINGS)


def errors(error, x):
    return ops.convert_to_numpy(error(ops.convert_to_tensor(x)))


def test_error_is_the_distance_to_what_the_winning_capsule_decodes(capsnet):
    adversarial = errors(attacks.reconstruction_error(capsnet), X)
    decoded = ops.convert_to_numpy(capsnet.reconstruct(X, capsnet.predict(X, verbose=0).argmax(1)))
    np.testing.assert_allclose(adversarial, np.linalg.norm((decoded - X).reshape(40, -1), axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match="has no tap 'reconstruction'"):
        attacks.reconstruction_error(CapsNet((12, 12, 1), 3, **SETTINGS))


@pytest.mark.slow
def test_steps_are_equations_5_and_6(capsnet):
    error = attacks.reconstruction_error(capsnet)
    attack = attacks.DetectionAware(0.1, error=error, beta=0.3, step_size=0.02, steps=3, random_start=False)
    fooling = attacks.FGSM(0.1, step_size=0.006)
    hiding = attacks.FGSM(0.1, step_size=0.014)
    objective = attacks.capsules(capsnet)

    class Hidden(attacks.Objective):
        def loss(self, x, y):
            return -error(x)

    hide = Hidden(objective.scores, capsnet)
    expected = X.copy()
    for _ in range(3):
        # FGSM's ball is around its own start; here it has to be around X, which small steps do not leave.
        expected = hiding(hide, fooling(objective, expected, Y), Y)
    np.testing.assert_allclose(attack(objective, X, Y), expected, atol=1e-5)


@pytest.mark.slow
def test_trades_fooling_for_hiding(capsnet):
    error = attacks.reconstruction_error(capsnet)
    objective = attacks.votes(capsnet)
    attack = attacks.DetectionAware(0.1, error=error, step_size=0.01, steps=20)
    result = {beta: dataclasses.replace(attack, beta=beta)(objective, X, Y) for beta in (0.0, 0.5, 1.0)}
    means = {beta: errors(error, x).mean() for beta, x in result.items()}
    assert means[0.0] < means[0.5] < means[1.0]
    losses = {beta: ops.convert_to_numpy(objective.loss(x, Y)).mean() for beta, x in result.items()}
    assert losses[0.0] < losses[0.5] < losses[1.0]
    for x in result.values():
        assert np.abs(x - X).max() <= 0.1 + 1e-6
    for targeted in (False, True):
        l2 = attacks.DetectionAware(0.5, error=error, norm="l2", steps=5)(objective, X, Y, targeted)
        assert np.linalg.norm((l2 - X).reshape(40, -1), axis=1).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("kind", [attacks.FGSM, attacks.BIM, attacks.PGD])
def test_the_aware_form_of_an_attack_has_its_ball_and_its_steps_twice(capsnet, kind):
    error = attacks.reconstruction_error(capsnet)
    plain = kind(0.1, bounds=(-1, 1), norm="l2", seed=5)
    aware = attacks.DetectionAware.of(plain, error=error, beta=0.9)
    for name in ("epsilon", "norm", "bounds", "seed", "random_start", "restarts"):
        assert getattr(aware, name) == getattr(plain, name)
    assert (aware.step, aware.steps, aware.beta) == (plain.step, 2 * plain.steps, 0.9)


def test_bad_settings_are_refused(capsnet):
    error = attacks.reconstruction_error(capsnet)
    for attack in (attacks.MIM(0.1), attacks.CarliniWagner()):
        with pytest.raises(ValueError, match="Expected FGSM, BIM or PGD, without decay; received"):
            attacks.DetectionAware.of(attack, error=error)
    for beta in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=rf"beta must be a number in \[0, 1\]; received {beta}"):
            attacks.DetectionAware(0.1, error=error, beta=beta)


WEIGHTS = np.random.default_rng(3).normal(size=(144, 3)).astype("float32")


def model(x):
    return ops.reshape(x, (-1, 144)) @ WEIGHTS


def brightness(x):
    return ops.mean(x, axis=(1, 2, 3))


def brighter(objective, x, y, targeted=False):
    """An attack whose result is known: every other image becomes brighter, the others are mirrored."""
    odd = (np.arange(len(x)) % 2)[:, None, None, None]
    return np.where(odd, np.clip(x + 0.4, 0, 1), x[:, :, ::-1])


@pytest.mark.parametrize("targeted", [False, True])
def test_rates_are_the_formulas(targeted):
    report = brighter(model, X, Y)
    threshold = evaluate.detection_threshold(brightness, (X, Y), percentile=90)
    assert threshold == pytest.approx(np.percentile(X.mean((1, 2, 3)), 90))
    classes, clean = (ops.convert_to_numpy(model(x)).argmax(1) for x in (report, X))
    targets = (clean + 1) % 3
    success = classes == targets if targeted else classes != Y
    assert 0 < (success & (report.mean((1, 2, 3)) <= threshold)).sum() < success.sum()
    for dataset in ((X, Y), [(X[:16], Y[:16]), (X[16:], Y[16:])]):
        result = evaluate.detection(
            model,
            brighter,
            dataset,
            error=brightness,
            threshold=threshold,
            targets=(lambda y: targets[: len(y)] if len(y) == 40 else _part(targets, y)) if targeted else None,
        )
        assert result.examples == 40
        assert result.success_rate == pytest.approx(success.mean())
        assert result.undetected_rate == pytest.approx((success & (report.mean((1, 2, 3)) <= threshold)).mean())
        assert result.flagged_clean == pytest.approx(0.1)
        assert result.threshold == threshold


def _part(targets, y):
    return targets[:16] if len(y) == 16 else targets[16:]


def test_what_is_no_error_is_refused():
    with pytest.raises(ValueError, match=r"of shape \(40,\); received \(40, 3\)"):
        evaluate.detection_threshold(model, (X, Y))
    with pytest.raises(ValueError, match="finite values; received NaN"):
        evaluate.detection_threshold(lambda x: brightness(x) * np.nan, (X, Y))
    with pytest.raises(ValueError, match=r"percentile must be a number in \(0, 100\); received 100"):
        evaluate.detection_threshold(brightness, (X, Y), percentile=100)
    for empty in ([], (X[:0], Y[:0])):
        with pytest.raises(ValueError, match="data set is empty"):
            evaluate.detection_threshold(brightness, empty)
    with pytest.raises(ValueError, match="data set is empty"):
        evaluate.detection(model, brighter, [], error=brightness, threshold=1.0)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_served_model_is_watched_like_the_live_one(capsnet, tmp_path):
    from keras_capsvit import serving

    serving.export(capsnet, tmp_path)
    served = serving.load(tmp_path)
    assert "reconstruction" in taps.names(served)
    results = []
    for each in (capsnet, served):
        error = attacks.reconstruction_error(each)
        attack = attacks.DetectionAware(0.1, error=error, steps=5)
        threshold = evaluate.detection_threshold(error, (X[:20], Y[:20]))
        results.append(
            evaluate.detection(
                each, attack, (X[20:], Y[20:]), error=error, threshold=threshold, objective=attacks.votes
            )
        )
    assert dataclasses.astuple(results[0]) == pytest.approx(dataclasses.astuple(results[1]), rel=1e-5)
