"""APGD: against a naive copy in NumPy, against torchattacks, where the best is known, and its properties."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from apgd_of_peers import network, visited
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import attacks, autodiff, caches
from keras_capsvit.attacks import base_objective
from keras_capsvit.attacks.losses import LOSSES
from keras_capsvit.attacks.norms import NORMS

SHAPE, CLASSES = (5, 6, 2), 6
WEIGHTS = network(np.random.default_rng(3), 60, CLASSES)
X = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype("float32")
EPSILON = {"linf": 0.01, "l2": 0.1, "l1": 2.0}


def smooth(x):
    hidden, last = (ops.cast(each, x.dtype) for each in WEIGHTS)
    return ops.tanh(ops.reshape(x, (-1, 60)) @ hidden) @ last


def scores_of(x):
    return ops.convert_to_numpy(smooth(ops.convert_to_tensor(x)))


Y = scores_of(X).argmax(axis=1)


def sizes(change, norm):
    change = change.reshape(len(change), -1).astype("float64")
    return {"linf": np.abs(change).max(1), "l2": np.linalg.norm(change, axis=1), "l1": np.abs(change).sum(1)}[norm]


def run_eagerly(monkeypatch):
    def eagerly(function, variables):
        return lambda *args: function(*map(ops.convert_to_tensor, args))

    monkeypatch.setattr(autodiff, "compiled", eagerly)
    monkeypatch.setattr(base_objective, "_COMPILED", caches.Cache(64))


def ours(monkeypatch, attack, x, y, start):
    """Images that the attack looks at, from a start that is given, in double precision."""
    seen = []

    def recording(x):
        seen.append(ops.convert_to_numpy(x))
        return smooth(x)

    run_eagerly(monkeypatch)
    x, start = x.astype("float64"), start.astype("float64")
    attack._attempt(attacks.Objective(recording, None), x, y, y, start, False, len(x))
    return np.stack(seen)


def slopes(x, y, loss):
    """Losses and their gradients, by hand."""
    (hidden, last), rows = WEIGHTS, np.arange(len(x))
    inner = np.tanh(x.reshape(len(x), -1) @ hidden)
    z, own = inner @ last, np.eye(CLASSES)[y]
    if loss == "ce":
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        losses, dz = -np.log(p[rows, y]), p - own
    else:
        order = np.argsort(-z, axis=1)
        best = np.where(order[:, 0] == y, order[:, 1], order[:, 0])
        top, third = np.eye(CLASSES)[order[:, 0]], np.eye(CLASSES)[order[:, 2]]
        up, width = z[rows, best] - z[rows, y], z[rows, order[:, 0]] - z[rows, order[:, 2]]
        losses = up / width
        dz = (np.eye(CLASSES)[best] - own) / width[:, None] - (up / width**2)[:, None] * (top - third)
    return losses, ((dz @ last.T * (1 - inner**2)) @ hidden.T).reshape(x.shape)


def naive(x, y, start, norm, loss, epsilon, steps, rho=0.75):
    """Images that APGD looks at, image by image, as the paper has it."""

    def back(images):
        change = images - x
        if norm == "linf":
            return np.clip(x + np.clip(change, -epsilon, epsilon), 0, 1)
        return np.clip(x + change * min(1, epsilon / max(np.linalg.norm(change), 1e-12)), 0, 1)

    k, rises, size, old = max(int(0.22 * steps), 1), 0, 2 * epsilon, start
    check, halved, then, before = k, True, None, 0.0
    (best_loss,), slope = slopes(start, y, loss)
    seen, now, best, best_slope = [start], start, start, slope
    for i in range(steps):
        moved = back(now + size * (np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope)))
        a = 0.75 if i else 1.0
        now, old = back(now + a * (moved - now) + (1 - a) * (now - old)), now
        seen.append(now)
        (value,), slope = slopes(now, y, loss)
        rises, before = rises + (value > before), value
        if value > best_loss:
            best, best_slope, best_loss = now, slope, value
        if i + 1 == check:
            halved = bool(rises <= rho * k or (not halved and then >= best_loss))
            then, rises, k = best_loss, 0, max(k - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
            check += k
            if halved:
                size, now, slope = size / 2, best, best_slope
    return np.stack(seen)


def starts(norm, seed=4):
    random = np.random.default_rng(seed)
    moves = [NORMS[norm].surface(random, SHAPE, EPSILON[norm]) for _ in X]
    return np.clip(X + np.stack(moves), 0, 1).astype("float32")


@pytest.mark.tensorflow
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_a_naive_copy(norm, loss, monkeypatch):
    attack = attacks.APGD(EPSILON[norm], norm=norm, loss=loss, steps=20)
    start = starts(norm)
    adversarial = ours(monkeypatch, attack, X, Y, start)
    x, begun = X.astype("float64"), start.astype("float64")
    one_by_one = [
        naive(x[i : i + 1], Y[i : i + 1], begun[i : i + 1], norm, loss, EPSILON[norm], 20) for i in range(len(X))
    ]
    np.testing.assert_allclose(adversarial, np.concatenate(one_by_one, axis=1), atol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.peers
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_torchattacks_step_for_step(norm, loss, monkeypatch):
    pytest.importorskip("torchattacks")
    name = {"linf": "Linf", "l2": "L2"}[norm]
    expected = visited(X, Y, WEIGHTS, 0, norm=name, loss=loss, eps=EPSILON[norm], steps=20)
    attack = attacks.APGD(EPSILON[norm], norm=norm, loss=loss, steps=20)
    np.testing.assert_allclose(ours(monkeypatch, attack, X, Y, expected[0]), expected, atol=1e-5)


def scaled(x):
    return 0.1 * smooth(x)


def projected(change, room, epsilon):
    """The closest change of one image within the L1 ball and the room on its side, by trying thresholds."""
    low, high = 0.0, np.abs(change).max()
    for _ in range(60):
        middle = (low + high) / 2
        above = np.clip(np.abs(change) - middle, 0, room).sum() > epsilon
        low, high = (middle, high) if above else (low, middle)
    threshold = high if np.minimum(np.abs(change), room).sum() > epsilon else 0
    return np.sign(change) * np.clip(np.abs(change) - threshold, 0, room)


@autodiff.compiled
def into_the_ball(x, images, epsilon):
    return NORMS["l1"].region(x, epsilon, np.float32([-2, 5]))(images)


@given(st.integers(0, 10**6), st.floats(0, 8), st.sampled_from([0.01, 0.3, 3.0]))
def test_the_l1_ball_within_bounds(seed, epsilon, size):
    random = np.random.default_rng(seed)
    x = random.uniform(-2, 5, size=(3, 2, 4, 1)).astype("float32")
    change = (size * random.normal(size=x.shape)).astype("float32")
    moves = ops.convert_to_numpy(into_the_ball(x, x + change, np.float32(epsilon))) - x
    for own, moved, image in zip(moves, (x + change) - x, x, strict=True):
        room = np.where(moved > 0, 5 - image, image + 2).astype("float64")
        np.testing.assert_allclose(own, projected(moved.astype("float64"), room, epsilon), atol=2e-5)


def naive_l1(x, y, start, epsilon, steps):
    """Images that APGD looks at in L1, of one image, as the authors' code has it."""
    seen, wide = [], math.ceil(0.3 * steps)
    for radius, count in ((3 * epsilon, wide), (2 * epsilon, wide), (epsilon, steps - 2 * wide)):

        def back(images, radius=radius):
            change = images - x
            return x + projected(change, np.where(change > 0, 1 - x, x), radius)

        now = best = back(start)
        (best_loss,), slope = slopes(now, y, "ce")
        seen.append(now)
        best_slope, size, changed = slope, radius, np.count_nonzero(now - x)
        most = -(-2 * changed // 3)  # divided by 1.5
        for i in range(count):
            least = np.sort(np.abs(slope).ravel())[np.clip(60 - most, 0, 59)]
            signs = np.sign(slope) * (np.abs(slope) >= least)
            now = back(now + size * signs / np.abs(signs).sum())
            seen.append(now)
            (value,), slope = slopes(now, y, "ce")
            if value > best_loss:
                best, best_slope, best_loss = now, slope, value
            if (i + 1) % max(int(0.04 * count), 1) == 0:
                fewer = np.count_nonzero(best - x)
                sparser, most = 20 * fewer < 19 * changed, -(-2 * fewer // 3)
                size, changed = radius if sparser else max(size / 1.5, radius / 10), fewer
                if sparser:
                    now, slope = best, best_slope
        start = best
    return np.stack(seen)


@pytest.mark.tensorflow
def test_equals_a_naive_copy_in_l1(monkeypatch):
    start = (X + np.random.default_rng(4).normal(size=X.shape)).astype("float32")
    adversarial = ours(monkeypatch, attacks.APGD(2.0, norm="l1", steps=30), X[:2], Y[:2], start[:2])
    x, begun = X.astype("float64"), start.astype("float64")
    one_by_one = [naive_l1(x[i : i + 1], Y[i : i + 1], begun[i : i + 1], 2.0, 30) for i in range(2)]
    np.testing.assert_allclose(adversarial, np.concatenate(one_by_one, axis=1), atol=1e-5)


def test_sparse_steps_take_the_largest_gradients():
    gradient = np.random.default_rng(0).normal(size=(2, 5, 4, 1)).astype("float32")
    for count in (5, 0, 1, 20, 30):
        step = ops.convert_to_numpy(NORMS["l1"].sparse(gradient, np.int32([count, count])))
        np.testing.assert_allclose(np.abs(step).sum((1, 2, 3)), 1, rtol=1e-6)
        for own, slope in zip(step.ravel().reshape(2, 20), gradient.reshape(2, 20), strict=True):
            largest = np.argsort(-np.abs(slope))[: min(max(count, 1), 20)]
            assert set(np.flatnonzero(own)) == set(largest)
            np.testing.assert_array_equal(np.sign(own[largest]), np.sign(slope[largest]))


@pytest.mark.parametrize("norm", EPSILON)
def test_two_classes_of_a_linear_model_end_at_the_best_point(norm):
    """The margin's gradient is one vector, so the highest loss of the ball is known."""
    random = np.random.default_rng(1)
    x = random.uniform(0.45, 0.55, size=(4, *SHAPE)).astype("float32")
    normal = random.normal(size=60).astype("float32")
    weights = np.stack([0 * normal, normal], axis=1)

    def linear(x):
        return ops.reshape(x, (-1, 60)) @ weights

    epsilon = {"linf": 0.1, "l2": 0.3, "l1": 0.4}[norm]
    adversarial = attacks.APGD(epsilon, norm=norm, loss="margin", steps=60)(linear, x, np.zeros(4, int))
    gained = (adversarial - x).reshape(4, 60) @ normal
    dual = {"linf": np.abs(normal).sum(), "l2": np.linalg.norm(normal), "l1": np.abs(normal).max()}[norm]
    np.testing.assert_allclose(gained, epsilon * dual, rtol=0.1 if norm == "l1" else 2e-3)  # sparse by and by


@pytest.mark.parametrize(
    ("norm", "loss"), [("linf", "ce"), pytest.param("l2", "dlr_targeted", marks=pytest.mark.slow), ("l1", "dlr")]
)
def test_what_an_attack_promises(norm, loss):
    """Ball and bounds; single images are those of a batch; seeds; other numbers are not traced again."""
    attack = attacks.APGD(EPSILON[norm], norm=norm, loss=loss, steps=6, restarts=2, targets=2)
    for targeted in (False, True):
        labels = (Y + 1) % CLASSES if targeted else Y
        adversarial = attack(scaled, X, labels, targeted)
        assert adversarial.dtype == np.float32
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        assert (sizes(adversarial - X, norm) <= EPSILON[norm] * (1 + 1e-5)).all()
        leads = np.stack([scores_of(images)[np.arange(5), labels] for images in (X, adversarial)])
        assert ((leads[1] > leads[0]) == targeted).mean() > 0.7
    before = autodiff.traces()
    for changes in ({"seed": 1}, {"epsilon": 0.02}, {"steps": 9}, {"restarts": 1, "targets": 1}, {"rho": 0.5}):
        dataclasses.replace(attack, **changes)(scaled, X, Y)
    if keras.backend.backend() == "tensorflow":  # JAX compiles for every number of images that are left
        assert autodiff.traces() == before
    singly = [attack(scaled, X[i : i + 1], Y[i : i + 1], numbers=[i]) for i in range(5)]
    np.testing.assert_allclose(np.concatenate(singly), attack(scaled, X, Y), atol=2e-4)
    np.testing.assert_array_equal(attack(scaled, X, Y), attack(scaled, X, Y))


def test_losses_are_the_equations_and_know_no_scale():
    z, rows, targets = scores_of(X).astype("float64"), np.arange(5), (Y + 2) % CLASSES
    high = -np.sort(-z, axis=1)
    up = np.where(high[:, 0] == z[rows, Y], high[:, 1], high[:, 0]) - z[rows, Y]
    expected = {
        "ce": np.log(np.exp(z).sum(1)) - z[rows, Y],
        "margin": up,
        "dlr": up / (high[:, 0] - high[:, 2]),
        "dlr_targeted": (z[rows, targets] - z[rows, Y]) / (high[:, 0] - (high[:, 2] + high[:, 3]) / 2),
    }
    tensors = [ops.convert_to_tensor(each) for each in (X, Y.astype("int32"), targets.astype("int32"))]
    for name, make in LOSSES.items():
        for change in (lambda z: z, lambda z: 7 * z + 3):
            losses, scores = make(attacks.Objective(lambda x, change=change: change(smooth(x)), None))(*tensors)
            if "dlr" in name or change(0) == 0:
                np.testing.assert_allclose(losses, expected[name], rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(scores, change(z), rtol=1e-3, atol=1e-4)


def test_too_few_classes_are_refused():
    for loss, count, needed in (("dlr", 2, 3), ("dlr_targeted", 3, 4)):
        model = lambda x, count=count: smooth(x)[:, :count]  # noqa: E731
        message = rf"loss='{loss}' .* needs at least {needed} classes; received scores of {count}. Use loss=\"margin\""
        with pytest.raises(ValueError, match=message):
            attacks.APGD(0.1, loss=loss)(model, X, 0 * Y)
        assert attacks.APGD(0.1, loss="margin", steps=1)(model, X, 0 * Y).shape == X.shape


@pytest.mark.parametrize("norm", EPSILON)
def test_starts_lie_on_the_ball_and_depend_on_the_number(norm):
    far = np.full((6, *SHAPE), 50, "float32")
    attack = attacks.APGD(1.0, norm=norm, bounds=(0, 100))
    start = attack.begin(far)
    if norm != "l1":  # of which every start is cut to the ball later
        np.testing.assert_allclose(sizes(start - far, norm), 1, rtol=1e-5)
    np.testing.assert_array_equal(attack.begin(far[:2], numbers=[4, 1]), start[[4, 1]])
    for different in (attack.begin(far, 1), dataclasses.replace(attack, seed=1).begin(far)):
        assert np.abs(different - start).max() > 0.01


def test_the_first_image_that_fools_is_kept_and_fooled_ones_stay():
    wrong = np.where(np.arange(5) < 2, (Y + 1) % CLASSES, Y)
    attack = attacks.APGD(0.3, steps=10, keep="first")
    adversarial = attack(smooth, X, wrong)
    np.testing.assert_array_equal(adversarial[:2], X[:2])
    assert (scores_of(adversarial).argmax(1) != wrong).all()
    best = dataclasses.replace(attack, keep="best")(smooth, X, wrong)
    own = [
        ops.convert_to_numpy(attacks.logits(smooth).loss(*map(ops.convert_to_tensor, (i, wrong))))
        for i in (adversarial, best)
    ]
    assert (own[1] >= own[0]).all()
    assert np.abs(best[:2] - X[:2]).max() > 0.01


@pytest.mark.slow
def test_targets_reach_what_one_class_does_not():
    """Each further class can only add images that are fooled."""
    attack = attacks.APGD(0.035, loss="dlr_targeted", steps=10, keep="first")
    fooled = [scores_of(dataclasses.replace(attack, targets=count)(smooth, X, Y)).argmax(1) != Y for count in (1, 3, 9)]
    assert (fooled[0] <= fooled[1]).all()
    assert (fooled[1] <= fooled[2]).all()


@pytest.mark.tensorflow
def test_gradients_of_a_model_that_draws_are_averaged():
    generator = keras.random.SeedGenerator(0)

    def noisy(x):
        return smooth(x + 0.3 * keras.random.normal(ops.shape(x), seed=generator))

    with pytest.warns(UserWarning, match="differ from call to call"):
        adversarial = attacks.APGD(0.05, steps=8, eot_iter=20)(noisy, X, Y)
    own = [scores_of(images)[np.arange(5), Y] for images in (X, adversarial)]
    assert own[1].mean() < own[0].mean() - 0.3


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")
def test_jax_draws_the_same_so_that_averaging_is_refused():
    with pytest.raises(ValueError, match=r"eot_iter=2 averages over what a model draws, .* expected eot_iter=1"):
        attacks.APGD(0.05, eot_iter=2)(smooth, X, Y)


@pytest.mark.slow
@pytest.mark.parametrize("norm", EPSILON)
def test_eager_and_compiled_are_the_same(norm, monkeypatch):
    attack = attacks.APGD(EPSILON[norm], norm=norm, steps=5, loss="margin")
    compiled = attack(scaled, X, Y)
    run_eagerly(monkeypatch)
    np.testing.assert_allclose(attack(scaled, X, Y), compiled, atol=1e-5)


def test_bad_settings_are_refused():
    for arguments, message in (
        ({"epsilon": -1}, "epsilon must be a number .* received -1"),
        ({"steps": 0}, "steps must be an integer from 1 .*; received 0"),
        ({"targets": 0}, "targets must be an integer from 1 .*; received 0"),
        ({"eot_iter": 1.5}, "eot_iter must be an integer from 1 .*; received 1.5"),
        ({"rho": 2}, r"rho must be a number in \[0, 1\]; received 2"),
        ({"loss": "cw"}, r"loss must be one of \('ce', 'dlr', 'dlr_targeted', 'margin'\); received 'cw'"),
        ({"keep": "last"}, r"keep must be one of \('best', 'first'\); received 'last'"),
        ({"norm": "l0"}, r"\('linf', 'l2', 'l1'\); received 'l0'"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.APGD(**{"epsilon": 0.1, **arguments})
    assert attacks.APGD(0.1)(smooth, X[:0], Y[:0]).shape == (0, *SHAPE)
