"""Objectives and gradient attacks: against Cleverhans, against formulas, and their properties."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import CapsNet, ConvNetAvg, attacks, autodiff, caches, taps
from keras_capsvit.attacks import base_objective
from keras_capsvit.attacks.objectives import ORDERS

X = np.random.default_rng(0).uniform(size=(6, 12, 12, 1)).astype("float32")
Y = np.array([0, 1, 2, 2, 1, 0])
ALL = [
    attacks.FGSM(0.1),
    attacks.BIM(0.1, step_size=0.02, steps=5),
    attacks.MIM(0.1, step_size=0.03, steps=4),
    attacks.PGD(0.1, step_size=0.02, steps=5),
]
ALL += [dataclasses.replace(attack, epsilon=0.8, step_size=attack.step * 8, norm="l2") for attack in ALL]
NAMES = [f"{type(attack).__name__}-{attack.norm}" for attack in ALL]


@pytest.fixture(scope="module")
def convnet():
    keras.utils.set_random_seed(0)
    return ConvNetAvg((12, 12, 1), 3, kernel_size=3, filters=6)


@pytest.fixture(scope="module")
def capsnet():
    keras.utils.set_random_seed(0)
    return CapsNet((12, 12, 1), 3, kernel_size=3, filters=6, num_types=2, primary_dim=4, capsule_dim=5)


@pytest.fixture(scope="module")
def smooth():
    """A capsule network without kinks, at which rounding decides which gradient is taken."""
    keras.utils.set_random_seed(0)
    features = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Conv2D(6, 3, strides=2, activation="tanh")])
    return CapsNet((12, 12, 1), 3, backbone=features, kernel_size=3, num_types=2, primary_dim=4, capsule_dim=5)


def losses(objective, x, y=Y):
    return ops.convert_to_numpy(objective.loss(ops.convert_to_tensor(x), ops.convert_to_tensor(y)))


def classes(objective, x):
    return ops.convert_to_numpy(objective(ops.convert_to_tensor(x))).argmax(axis=1)


def cross_entropy(logits, y=Y):
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(y)), y]


def squashed(s):
    n = np.linalg.norm(s, axis=-1, keepdims=True)
    return n / (1 + n**2) * s


def test_losses_of_the_objectives_are_the_equations(capsnet, convnet):
    np.testing.assert_allclose(losses(attacks.logits(convnet), X), cross_entropy(convnet.predict(X)), rtol=1e-4)
    lengths = capsnet.predict(X)
    np.testing.assert_allclose(losses(attacks.capsules(capsnet), X), cross_entropy(np.log(lengths)), rtol=1e-4)
    votes = ops.convert_to_numpy(taps.tap(capsnet, "votes")(X))
    assert votes.shape == (6, capsnet.taps["votes"].shape[1], 3, 5)
    expected = (
        cross_entropy(np.log(np.linalg.norm(squashed(votes.mean(1)), axis=-1))),
        cross_entropy(np.log(np.linalg.norm(squashed(votes).mean(1), axis=-1))),
        np.mean(
            [cross_entropy(np.log(np.linalg.norm(squashed(votes[:, i]), axis=-1))) for i in range(votes.shape[1])], 0
        ),
    )
    for order, loss in zip(ORDERS, expected, strict=True):
        np.testing.assert_allclose(losses(attacks.votes(capsnet, order), X), loss, rtol=1e-4)


def test_a_model_stands_for_its_natural_objective(capsnet, convnet):
    assert attacks.natural(capsnet) is attacks.capsules(capsnet)
    assert attacks.natural(convnet) is attacks.logits(convnet)
    assert attacks.natural(attacks.votes(capsnet)) is attacks.votes(capsnet)
    attack = attacks.BIM(0.1, steps=2)
    np.testing.assert_array_equal(attack(capsnet, X, Y), attack(attacks.capsules(capsnet), X, Y))


def test_combined_losses_are_summed(capsnet):
    parts = attacks.capsules(capsnet), attacks.votes(capsnet)
    both = attacks.combined(*parts)
    assert both is attacks.combined(*parts)
    np.testing.assert_allclose(losses(both, X), losses(parts[0], X) + losses(parts[1], X), rtol=1e-5)
    np.testing.assert_array_equal(both(ops.convert_to_tensor(X)), parts[0](ops.convert_to_tensor(X)))
    assert (losses(both, attacks.BIM(0.1)(both, X, Y)) > losses(both, X)).all()
    with pytest.raises(ValueError, match="at least one objective"):
        attacks.combined()


def test_votes_never_run_the_routing(capsnet, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the routing ran")

    monkeypatch.setattr(type(capsnet.get_layer("routing")), "call", refuse)
    for order in ORDERS:
        assert np.isfinite(attacks.BIM(0.1, steps=2)(attacks.votes(capsnet, order), X, Y)).all()


def test_objectives_that_a_model_has_not_are_refused(capsnet, convnet):
    with pytest.raises(ValueError, match=r"has no tap 'votes'; it has \['features', 'logits'\]"):
        attacks.votes(convnet)
    with pytest.raises(ValueError, match="has no tap 'lengths'"):
        attacks.capsules(convnet)
    with pytest.raises(ValueError, match=r"lengths of capsules, not logits; use attacks.capsules or .votes"):
        attacks.logits(capsnet)
    with pytest.raises(ValueError, match=r"order must be one of .*; received 'squash'"):
        attacks.votes(capsnet, "squash")


@pytest.mark.tensorflow
@pytest.mark.peers
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equal_cleverhans(smooth, norm, targeted):
    fgm = pytest.importorskip("cleverhans.tf2.attacks.fast_gradient_method").fast_gradient_method
    from cleverhans.tf2.attacks.basic_iterative_method import basic_iterative_method
    from cleverhans.tf2.attacks.momentum_iterative_method import momentum_iterative_method
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    epsilon, step = (0.1, 0.03) if norm == "linf" else (0.8, 0.25)
    order = np.inf if norm == "linf" else 2
    limits = {"clip_min": 0.0, "clip_max": 1.0, "y": ops.convert_to_tensor(Y), "targeted": targeted}
    for objective in (attacks.capsules(smooth), attacks.votes(smooth)):
        x = ops.convert_to_tensor(X)
        pairs = [
            (attacks.FGSM(epsilon, norm=norm), fgm(objective, x, epsilon, order, **limits)),
            (
                attacks.BIM(epsilon, step_size=step, steps=4, norm=norm),
                basic_iterative_method(objective, x, epsilon, step, 4, order, sanity_checks=False, **limits),
            ),
            (
                attacks.PGD(epsilon, step_size=step, steps=4, norm=norm, random_start=False),
                projected_gradient_descent(
                    objective, x, epsilon, step, 4, order, rand_init=False, sanity_checks=False, **limits
                ),
            ),
            (
                attacks.MIM(epsilon, step_size=step, steps=4, norm=norm),
                momentum_iterative_method(
                    objective, x, epsilon, step, 4, order, decay_factor=1.0, sanity_checks=False, **limits
                ),
            ),
        ]
        for attack, expected in pairs:
            last = dataclasses.replace(attack, keep="last")
            np.testing.assert_allclose(last(objective, X, Y, targeted), expected, atol=1e-6, err_msg=str(attack))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_momentum_decays(decay):
    """Dong et al. 2018, Eq. 6 and 7, of scores whose gradients turn from step to step."""
    weights = np.random.default_rng(5).normal(size=(2, 144, 3)).astype("float32")

    def scores(x):
        flat = ops.reshape(x, (-1, 144))
        return flat @ weights[0] + ops.square(flat) @ weights[1]

    attack = attacks.MIM(0.2, step_size=0.05, steps=4, decay=decay, keep="last")
    x, momentum = X.copy(), np.zeros_like(X)
    for _ in range(4):
        gradient = ops.convert_to_numpy(autodiff.gradient(attacks.logits(scores).loss)(ops.convert_to_tensor(x), Y)[1])
        momentum = decay * momentum + gradient / np.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
        x = np.clip(np.clip(x + 0.05 * np.sign(momentum), X - 0.2, X + 0.2), 0, 1)
    np.testing.assert_allclose(attack(scores, X, Y), x, atol=1e-6)


@pytest.mark.samples(2)
@pytest.mark.parametrize("attack", ALL, ids=NAMES)
def test_attacks_move_the_loss_and_leave_their_input_alone(attack, capsnet):
    for objective in (attacks.capsules(capsnet), attacks.votes(capsnet)):
        before = X.copy()
        adversarial = attack(objective, X, Y)
        np.testing.assert_array_equal(X, before)
        assert (losses(objective, adversarial) > losses(objective, X)).all()
        assert (losses(objective, attack(objective, X, Y, targeted=True)) < losses(objective, X)).all()


@settings(max_examples=12)
@given(st.sampled_from(ALL), st.floats(0, 2), st.integers(0, 3), st.booleans())
def test_results_lie_in_the_ball_and_the_bounds(attack, epsilon, seed, targeted):
    attack = dataclasses.replace(attack, epsilon=epsilon, seed=seed)
    x = X.round(seed) if seed else X.round()  # many pixels on the bounds
    adversarial = attack(linear, x, Y, targeted)
    assert (adversarial.shape, adversarial.dtype) == (x.shape, x.dtype)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    change = (adversarial - x).reshape(len(x), -1)
    size = np.abs(change).max(1) if attack.norm == "linf" else np.linalg.norm(change, axis=1)
    assert (size <= epsilon + 1e-6).all()


WEIGHTS = np.random.default_rng(3).normal(size=(144, 3)).astype("float32")


def linear(x):
    return ops.reshape(x, (-1, 144)) @ WEIGHTS


@pytest.mark.samples(2)
@pytest.mark.parametrize("attack", ALL[:3] + ALL[4:7], ids=NAMES[:3] + NAMES[4:7])
def test_a_batch_is_its_images_one_by_one(attack, capsnet):
    objective = attacks.capsules(capsnet)
    one_by_one = [attack(objective, X[i : i + 1], Y[i : i + 1]) for i in range(len(X))]
    np.testing.assert_allclose(attack(objective, X, Y), np.concatenate(one_by_one), atol=1e-5)


EAGER = [*ALL[2:4], ALL[5], attacks.DeepFool(steps=3), attacks.CarliniWagner(steps=4, binary_search_steps=2)]
EAGER += [attacks.FAB(norm="l1", steps=4)]


@pytest.mark.slow
@pytest.mark.parametrize("attack", EAGER, ids=lambda attack: f"{type(attack).__name__}-{attack.norm}")
def test_eager_and_compiled_find_the_same(attack, smooth, monkeypatch):
    compiled = attack(attacks.capsules(smooth), X, Y)

    def eagerly(function, variables):
        return lambda *args: function(*map(ops.convert_to_tensor, args))

    monkeypatch.setattr(autodiff, "compiled", eagerly)
    monkeypatch.setattr(base_objective, "_COMPILED", caches.Cache(64))
    objective = attacks.capsules(smooth)
    np.testing.assert_allclose(attack(objective, X, Y), compiled, atol=1e-5)


def test_seeds_reproduce_and_differ(capsnet):
    for norm in ("linf", "l2"):
        pgd = attacks.PGD(0.5, step_size=0.01, steps=2, norm=norm)
        adversarial = pgd(capsnet, X, Y)
        np.testing.assert_array_equal(pgd(capsnet, X, Y), adversarial)
        assert np.abs(dataclasses.replace(pgd, seed=1)(capsnet, X, Y) - adversarial).max() > 0.01


def test_random_starts_fill_the_ball():
    far = np.full((4000, 2, 2, 1), 5.0, "float32")
    starts = {n: attacks.PGD(1.0, norm=n, bounds=(0, 10)).begin(far)[0] - far for n in ("linf", "l2")}
    box = starts["linf"].reshape(-1, 4)
    assert np.abs(box).max() <= 1.0001
    np.testing.assert_allclose(np.abs(box).mean(0), 0.5, atol=0.03)
    radii = np.linalg.norm(starts["l2"].reshape(-1, 4), axis=1)
    assert radii.max() <= 1.0001
    np.testing.assert_allclose(np.mean(radii**4), 0.5, atol=0.03)  # uniform in volume
    np.testing.assert_allclose(starts["l2"].mean(0), 0, atol=0.03)


@pytest.mark.slow
def test_each_image_keeps_its_best_restart(capsnet):
    objective = attacks.capsules(capsnet)
    pgd = attacks.PGD(0.3, step_size=0.01, steps=2, restarts=3)
    for attack in (pgd, dataclasses.replace(pgd, keep="last")):
        alone = [attack.advance(objective, X, Y, attack.begin(X, restart), 2)[0] for restart in range(3)]
        alone = [ops.convert_to_numpy(images) for images in alone]
        adversarial = attack(objective, X, Y)
        fooled = np.any([classes(objective, images) != Y for images in alone], axis=0)
        assert (classes(objective, adversarial) != Y)[fooled].all()
        highest = np.max([losses(objective, images) for images in alone], axis=0)
        assert (losses(objective, adversarial) >= highest - 1e-5)[~fooled].all()
        assert len(set(np.argmax([losses(objective, images) for images in alone], axis=0))) > 1


def test_one_trace_per_attack_objective_and_shape(capsnet):
    traces = 0

    def counted(x):
        nonlocal traces
        traces += 1
        return linear(x)

    objective = attacks.logits(counted)
    attack = attacks.PGD(0.1, step_size=0.01, steps=7)
    attack(objective, X, Y)
    after_first = traces
    for seed in range(3):
        dataclasses.replace(attack, seed=seed)(objective, X * 0.5, Y, targeted=True)
    assert traces == after_first
    assert after_first < 10  # not once per step


def test_new_weights_are_seen():
    model = ConvNetAvg((12, 12, 1), 3, kernel_size=3, filters=4)
    attack = attacks.FGSM(0.1)
    before = attack(model, X, Y)
    model.layers[-1].kernel.assign(-1.0 * model.layers[-1].kernel)
    assert np.abs(attack(model, X, Y) - before).max() > 0.1


def test_an_attacked_model_is_saved_as_ever(tmp_path):
    model = ConvNetAvg((12, 12, 1), 3, kernel_size=3, filters=4)
    expected = attacks.FGSM(0.1)(model, X, Y)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(attacks.FGSM(0.1)(keras.models.load_model(tmp_path / "model.keras"), X, Y), expected)


def test_linear_model_is_attacked_optimally():
    # The gradient of the loss of two classes is a multiple of one fixed vector, so one step is the best perturbation.
    weights = WEIGHTS[:, :2]
    normal = (weights[:, 1] - weights[:, 0]).reshape(12, 12, 1)
    x, y = np.full((2, 12, 12, 1), 0.5, "float32"), np.array([0, 1])
    direction = np.stack([normal, -normal])

    def model(x):
        return ops.reshape(x, (-1, 144)) @ weights

    for attack in (attacks.FGSM(0.1), attacks.BIM(0.1, step_size=0.04), attacks.PGD(0.1, step_size=0.05)):
        np.testing.assert_allclose(attack(model, x, y), x + 0.1 * np.sign(direction), atol=1e-6)
    unit = direction / np.sqrt(np.square(direction).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(attacks.FGSM(0.3, norm="l2")(model, x, y), x + 0.3 * unit, atol=1e-6)


def half_blind(x):
    """Sure of the first class, whatever else is in the image, where its first pixel is dark."""
    return ops.cast(x[:, 0, 0] > 0.5, "float32") * linear(x) + np.float32([[3, 2, 1]])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_and_zero_gradients_give_no_nan(norm):
    def saturated(x):
        return 1e-30 * linear(x)

    with pytest.raises(ValueError, match=r"exactly zero for all of 6 images that are not fooled.*differentiable"):
        attacks.MIM(0.1, norm=norm)(lambda x: 0.0 * linear(x) + np.float32([3, 2, 1]), X, 0 * Y)
    with pytest.warns(UserWarning, match="zero for 3 of 6 images"):
        attacks.MIM(0.1, norm=norm)(half_blind, np.concatenate([X[:3] / 3, X[3:] / 3 + 0.6]), 0 * Y)
    moved = attacks.FGSM(0.1, norm=norm, bounds=(-1, 2))(saturated, X, Y) - X
    size = np.abs(moved).max((1, 2, 3)) if norm == "linf" else np.sqrt(np.square(moved).sum((1, 2, 3)))
    np.testing.assert_allclose(size, 0.1, rtol=1e-4)


def test_what_makes_attacks_look_weak_is_reported():
    with pytest.warns(UserWarning, match=r"probabilities \(rows sum to 1\).*return logits"):
        attacks.FGSM(0.1)(attacks.Objective(lambda x: ops.softmax(linear(x)), None), X, Y)
    generator = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="differ from call to call"):
        attacks.FGSM(0.1)(lambda x: linear(x) + generator.normal(), X, Y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[0], Y[:1], r"Expected images of shape \(batch, height, width, channels\); received \(12, 12, 1\)"),
        (X * np.nan, Y, "Expected finite images; received NaN or infinite values, 864"),
        (X * 255, Y, r"within the bounds \[0.0, 1.0\]; received values in .*Scale the images"),
        (X - 0.1, Y, "within the bounds"),
        (X, Y[:5], r"class ids of shape \(6,\); received shape \(5,\)"),
        (X, np.eye(4)[Y], "One-hot rows would have 3 columns"),
        (X, Y / 2, "of float64, not all of them integers"),
        (X, Y.astype(str), "labels as an array of numbers; received strings"),
        (X, Y - 1, "class ids from 0; received values between -1"),
        (X, Y + 1, "class ids between 0 and 2; received values between 1 and 3"),
        (X, Y + 2**32, "class ids from 0; received values between 4294967296"),
    ],
)
def test_bad_input_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        attacks.FGSM(0.1)(linear, x, y)


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match=r"scores of shape \(batch, classes\); .* returns \(.*12, 12, 1\)"):
        attacks.FGSM(0.1)(lambda x: x, X, Y)
    with pytest.raises(ValueError, match="NaN or infinite scores on the clean images"):
        attacks.FGSM(0.1)(lambda x: linear(x) / 0.0, X, Y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, r"epsilon must be a number in \[0, inf\); received -0.1"),
        ({"epsilon": np.nan}, "epsilon must be a number .* received nan"),
        ({"epsilon": 0.1, "step_size": -1}, "step_size must be a number .* received -1"),
        ({"epsilon": 0.1, "steps": 0}, "steps must be an integer from 1 .*; received 0"),
        ({"epsilon": 0.1, "norm": "l1"}, r"one of \('linf', 'l2'\); received 'l1'"),
        ({"epsilon": 0.1, "bounds": (1, 0)}, r"Expected bounds .*received bounds=\(1, 0\)"),
        ({"epsilon": 0.1, "restarts": 2, "random_start": False}, "random_start=True"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        attacks.PGD(**arguments)


def test_float_error_at_the_bounds_is_tolerated_and_an_empty_batch_is_fine():
    adversarial = attacks.FGSM(0.1)(linear, np.where(X > 0.5, 1 + 5e-7, -5e-7), Y)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert attacks.FGSM(0.1)(linear, X[:0], Y[:0]).shape == (0, 12, 12, 1)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_served_model_is_attacked_like_the_live_one(capsnet, tmp_path):
    from keras_capsvit import serving

    serving.export(capsnet, tmp_path)
    served = serving.load(tmp_path)
    for objective in (attacks.capsules, attacks.votes):
        for attack in (attacks.PGD(0.1, step_size=0.03, steps=5), attacks.MIM(0.5, norm="l2")):
            expected = attack(objective(capsnet), X, Y)
            np.testing.assert_allclose(attack(objective(served), X, Y), expected, atol=1e-5)
