"""Every attack, enrolled by itself: the same on a network and its twins, stronger with epsilon, never silently weak."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, evaluate

layers = keras.layers
KINDS = {
    name: kind
    for name in attacks.__all__
    if isinstance(kind := getattr(attacks, name), type)
    and issubclass(kind, attacks.Attack)
    and kind not in (attacks.Attack, attacks.GradientAttack)
}


def brightness(x):
    return ops.mean(x, axis=(1, 2, 3))


# What an attack needs to take little time; new attacks run with epsilon alone.
FEW = {
    "APGD": {"steps": 8},
    "AutoAttack": {"version": "custom", "attacks": {"apgd": attacks.APGD(1, steps=6)}},
    "CarliniWagner": {"steps": 60, "binary_search_steps": 4},
    "CarliniWagnerBox": {"steps": 20},
    "CarliniWagnerLinf": {"steps": 60, "initial_const": 0.1, "largest_const": 2, "abort_early": False},
    "DeepFool": {"steps": 20},
    "FAB": {"steps": 10},
    "DetectionAware": {"steps": 6, "error": brightness},
    "PatchAttack": {"patch_size": 3, "steps": 30, "positions": [(1, 1), (2, 3)]},
    "PatchFool": {"patch_size": 3, "steps": 6},
    "PGD": {"steps": 8, "restarts": 2},
    "Square": {"queries": 60},
}
BY_GRADIENTS = [name for name, kind in KINDS.items() if kind.uses_gradients]


def attack_of(name, epsilon=0.1, **settings):
    return KINDS[name](**{**FEW.get(name, {}), "epsilon": epsilon, **settings})


def images(n=8):
    return np.random.default_rng(0).uniform(0.1, 0.9, size=(n, 6, 7, 3)).astype("float32")


def network(*front, head="logits"):
    """A smooth network, without kinks at which rounding would decide, always of the same weights."""
    random = np.random.default_rng(3)
    kernel, weights = random.normal(size=(3, 3, 3, 6)) / 4, random.normal(size=(120, 4)) / 6
    if "sigmoid" in head:
        weights = np.concatenate([-weights[:, :1], weights[:, :1]][-1 if head == "sigmoid" else 0 :], axis=1)
    last = layers.Dense(weights.shape[1], activation=head if head in ("softmax", "sigmoid") else None)
    convolution = layers.Conv2D(6, 3, activation="tanh")
    model = keras.Sequential([keras.Input((6, 7, 3)), *front, convolution, layers.Flatten(), last])
    model.set_weights([kernel, np.zeros(6), weights, np.zeros(weights.shape[1])])
    return model


def predicted(model, x):
    return model.predict(x, verbose=0).argmax(axis=1)


@pytest.mark.samples(4)
@pytest.mark.parametrize("name", KINDS)
def test_pixels_up_to_255_are_attacked_as_those_up_to_1(name):
    model, wide = network(), network(layers.Rescaling(1 / 255))
    x, y = images(), predicted(network(), images())
    narrow = attack_of(name)
    scaled = dataclasses.replace(narrow, epsilon=narrow.epsilon * 255, bounds=(0, 255))
    for targeted in (False, True):
        labels = (y + 1) % 4 if targeted else y
        adversarial, twin = narrow(model, x, labels, targeted), scaled(wide, x * 255, labels, targeted)
        assert np.abs(adversarial - x).max() > 0.004
        # Where signs of tiny gradients differ by rounding, single pixels do.
        assert np.mean(np.abs(twin / 255 - adversarial) < 1e-3) > 0.99
    expected = evaluate.robustness(model, narrow, (x, y))
    result = evaluate.robustness(wide, scaled, (x * 255, y))
    assert (result.accuracy, result.robust_accuracy) == (expected.accuracy, expected.robust_accuracy)
    np.testing.assert_allclose(result.norms["l2"] / 255, expected.norms["l2"], rtol=1e-2)


@pytest.mark.samples(slow=8)
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_bounds_of_each_channel(name):
    """Channels that a model standardises by itself, against channels that come standardised."""
    mean, deviation = np.float32([0.4, 0.5, 0.6]), np.float32([0.5, 0.5, 0.5])
    standard = ((0 - mean) / deviation, (1 - mean) / deviation)
    model = network(layers.Rescaling(1 / deviation, offset=-mean / deviation))
    x, y = images(), predicted(model, images())
    plain = attack_of(name)
    attack = dataclasses.replace(plain, epsilon=2 * plain.epsilon, bounds=standard)
    adversarial, twin = plain(model, x, y), attack(network(), (x - mean) / deviation, y)
    twin = twin * deviation + mean
    if name == "CarliniWagnerLinf":  # rounding decides whether a last search, from a limit 10 % lower, succeeds
        size, twin_size = (np.abs(each - x).max(axis=(1, 2, 3)).mean() for each in (adversarial, twin))
        assert twin_size == pytest.approx(size, rel=0.05)
    else:
        assert np.mean(np.abs(twin - adversarial) < 2e-3) > 0.99


@pytest.mark.samples(4)
@pytest.mark.parametrize("name", KINDS)
def test_bounds_of_each_channel_are_those_of_all_if_they_are_the_same(name):
    x, model = images(), network()
    y = predicted(model, x)
    plain = attack_of(name)
    each = dataclasses.replace(plain, bounds=([0, 0, 0], [1, 1, 1]))
    np.testing.assert_allclose(each(model, x, y), plain(model, x, y), atol=1e-6)


@pytest.mark.samples(2)
@pytest.mark.parametrize("name", KINDS)
def test_accuracy_falls_with_epsilon(name):
    model = network()
    x = images(24)
    y = predicted(model, x)
    attack = attack_of(name)
    sweep = [dataclasses.replace(attack, epsilon=epsilon) for epsilon in (0, 0.01, 0.03, 0.1, 0.3)]
    robust = [evaluate.robust_accuracy(model, variant, (x, y)) for variant in sweep]
    assert robust == sorted(robust, reverse=True)
    assert robust[0] == 1
    assert robust[-1] < 0.7
    if hasattr(attack, "step"):
        np.testing.assert_allclose(
            [variant.step for variant in sweep], [variant.epsilon * attack.step / 0.1 for variant in sweep]
        )


@pytest.mark.parametrize("name", [name for name in attacks.PRESETS if name.startswith("foolbox")])
def test_presets_scale_with_epsilon(name):
    preset = attacks.preset(name, 0.1)
    if hasattr(preset, "step"):
        assert dataclasses.replace(preset, epsilon=0.3).step == pytest.approx(3 * preset.step)
    assert dataclasses.replace(preset, epsilon=0.3) == attacks.preset(name, 0.3)


@pytest.mark.samples(4)
@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_what_no_gradient_reaches_is_refused(name):
    model = network()

    def rounded(x):
        return model(ops.cast(ops.cast(x * 255, "int32"), "float32") / 255)

    x = ops.convert_to_numpy(ops.cast(ops.cast(images() * 255, "int32"), "float32") / 255)
    y = ops.convert_to_numpy(rounded(ops.convert_to_tensor(x))).argmax(axis=1)
    with pytest.raises(ValueError, match="gradient is exactly zero for all of 8 images that are not fooled"):
        attack_of(name)(rounded, x, y)
    with pytest.raises(ValueError, match="gradient is exactly zero"):
        evaluate.robust_accuracy(rounded, attack_of(name), (x, y))
    attack_of(name)(rounded, x, (y + 1) % 4)  # fooled before


@pytest.mark.samples(slow=6)
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_weights_that_became_nan_are_refused(name):
    model = network()
    x, y = images(), predicted(network(), images())
    attack_of(name)(model, x, y)
    model.layers[-1].bias.assign([np.nan] * 4)
    with pytest.raises(ValueError, match="NaN"):
        attack_of(name)(model, x, y)
    with pytest.raises(ValueError, match="NaN"):
        evaluate.robust_accuracy(model, attack_of(name), (x, y))


@pytest.mark.samples(slow=6)
@pytest.mark.slow
@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_callables_that_leave_the_graph_are_refused(name):
    model = network()
    x, y = images(), predicted(network(), images())
    for leaves in (model.predict, lambda x: ops.convert_to_numpy(model(x))):
        with pytest.raises(ValueError, match="pass the model itself, not its predict method"):
            attack_of(name)(leaves, x, y)


def test_an_attack_without_a_radius_says_so():
    with pytest.raises(ValueError, match=r"Expected epsilon, .*PGD\(0.03\), or .*PGD\(8, bounds=\(0, 255\)\)"):
        attacks.PGD()
    with pytest.raises(ValueError, match=r"step_size or relative_step; received both, 0.1 and 0.2"):
        attacks.PGD(0.1, step_size=0.1, relative_step=0.2)
    with pytest.raises(ValueError, match=r"keep must be one of \('best', 'last'\); received 'first'"):
        attacks.PGD(0.1, keep="first")


def overshooting(x):
    """Class 1 only in a narrow band of brightness, across which large steps go to and fro."""
    lead = 0.06 - ops.abs(ops.mean(x, axis=(1, 2, 3)) - 0.5)
    return ops.stack([0 * lead, 100 * lead], axis=1)


def test_what_fooled_on_the_way_is_kept():
    x = np.full((3, 4, 4, 1), 0.38, "float32") + np.float32([0, 0.01, 0.02])[:, None, None, None]
    y = np.zeros(3, int)
    attack = attacks.BIM(0.4, step_size=0.09, steps=2)
    best, last = attack(overshooting, x, y), dataclasses.replace(attack, keep="last")(overshooting, x, y)
    brightness = [result.mean(axis=(1, 2, 3)) for result in (best, last)]
    np.testing.assert_allclose(brightness[0], [0.47, 0.48, 0.49], atol=1e-6)  # after one step
    np.testing.assert_allclose(brightness[1], [0.56, 0.57, 0.58], atol=1e-6)
    assert evaluate.robust_accuracy(overshooting, attack, (x, y)) == 0


def test_the_best_of_all_steps_and_restarts_is_kept():
    model = network()
    x, y = images(), predicted(network(), images())
    objective = attacks.logits(model)
    attack = attacks.PGD(0.3, step_size=0.25, steps=6, restarts=3)
    tried = []
    for restart in range(3):
        state = attack.begin(x, restart)
        for _ in range(6):
            tried.append(np.asarray(ops.convert_to_numpy(state.images)))
            state = attack.advance(objective, x, y, state, 1)
        tried.append(ops.convert_to_numpy(state.images))
    fooled = np.stack([predicted(model, each) != y for each in tried])
    losses = np.stack([ops.convert_to_numpy(objective.loss(ops.convert_to_tensor(each), y)) for each in tried])
    expected = np.where(fooled.any(0), np.where(fooled, losses, -np.inf).max(0), losses.max(0))
    adversarial = attack(model, x, y)
    np.testing.assert_allclose(ops.convert_to_numpy(objective.loss(adversarial, y)), expected, rtol=1e-4)
    np.testing.assert_array_equal(predicted(model, adversarial) != y, fooled.any(0))


def test_random_starts_depend_on_the_number_of_an_image_alone():
    model, x = network(), images()
    y = predicted(model, x)
    for norm in ("linf", "l2"):
        attack = attacks.PGD(0.1, steps=2, norm=norm)
        whole = attack(model, x, y)
        parts = [attack(model, x[k : k + 3], y[k : k + 3], numbers=range(k, min(k + 3, 8))) for k in (0, 3, 6)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
        assert np.abs(attack(model, x, y, numbers=range(8, 16)) - whole).max() > 0.01


# Scores before a softmax or a sigmoid are what counts; `taps.scores` finds them.
HEADS = {"softmax": "logits", "sigmoid": "two logits of a sigmoid"}


@pytest.mark.samples(slow=14)
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", KINDS)
def test_a_model_that_returns_probabilities_is_attacked_like_its_logits(name, head):
    model, twin = network(head=head), network(head=HEADS[head])
    x, y = images(), predicted(twin, images())
    attack = attack_of(name)
    assert np.mean(np.abs(attack(model, x, y) - attack(twin, x, y)) < 1e-3) > 0.99
    result, expected = (evaluate.robustness(each, attack, (x, y)) for each in (model, twin))
    assert (result.accuracy, result.robust_accuracy) == (1, expected.robust_accuracy)


@pytest.mark.parametrize("head", HEADS)
def test_a_model_that_returns_probabilities_is_measured_like_its_logits(head):
    model, twin = network(head=head), network(head=HEADS[head])
    x, y, maps = images(), predicted(twin, images()), images()[..., 0]
    measures = {
        "aopc": lambda each: evaluate.aopc(each, x, maps, steps=3, patch=2).curve,
        "ablation": lambda each: evaluate.ablation_drop(each, x, maps, mean=0, size=3),
        "insertion": lambda each: evaluate.insertion(each, x, maps, measure="score").curve,
        "road": lambda each: evaluate.road(each, x, maps, measure="score").curve,
        "infidelity": lambda each: evaluate.infidelity(each, x, maps, samples=3),
        "relative": lambda each: evaluate.ablation_drop(each, x, maps, mean=0, size=3, relative=True),
        "conservation": lambda each: evaluate.conservation(lambda x, target: maps + target[:, None, None], each, x),
        "correct": lambda each: evaluate.classified_correctly({"one": each}, (x, y))[0][0],
        "transfer": lambda each: evaluate.transfer_matrix({"one": each}, attacks.FGSM(0.1), (x, y))["one"],
        "predicted": lambda each: evaluate.compare(
            each, {"maps": lambda x, y: maps + y[:, None, None]}, (x, y), {"sum": total}
        )["sum"],
    }
    for name, measure in measures.items():
        np.testing.assert_allclose(measure(model), measure(twin), rtol=1e-4, atol=1e-5, err_msg=name)


def total(model, x, y, maps):
    return maps.sum(axis=(1, 2))


def test_measurements_of_pixels_up_to_255():
    model, wide = network(), network(layers.Rescaling(1 / 255))
    x, maps = images(), images()[..., 0]
    narrow = evaluate.aopc(model, x, maps, patch=2, steps=4)
    scaled = evaluate.aopc(wide, x * 255, maps, patch=2, steps=4, bounds=(0, 255))
    np.testing.assert_allclose(scaled.curve, narrow.curve, atol=1e-4)
    with pytest.warns(UserWarning, match="give the bounds that images have"):
        evaluate.aopc(wide, x * 255, maps, patch=2, steps=4)
    mean = x.mean(axis=0)
    np.testing.assert_allclose(
        evaluate.ablation_drop(wide, x * 255, maps, mean=mean * 255, size=3),
        evaluate.ablation_drop(model, x, maps, mean=mean, size=3),
        atol=1e-4,
    )
    norms, scaled = (evaluate.perturbation_norms(s * x, s * (x + 0.1)) for s in (1, 255))
    np.testing.assert_allclose(scaled["linf"] / 255, norms["linf"], rtol=1e-4)
    np.testing.assert_array_equal(scaled["l0"], norms["l0"])
