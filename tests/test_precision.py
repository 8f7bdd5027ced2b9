"""Gradients in bfloat16, judged in float32: those of a twin that was built so, and nothing is left on the model."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, autodiff, evaluate, private, taps
from keras_capsvit.attacks import precision
from keras_capsvit.models import CapsNet, VisionTransformer

layers = keras.layers
TENSORFLOW = keras.backend.backend() == "tensorflow"
SHAPE = (8, 8, 1)


def network(dtype="float32", size=SHAPE):
    """A ConvNet that is nested and normalised, always of the same weights."""
    body = [layers.Conv2D(6, 3, dtype=dtype), layers.BatchNormalization(dtype=dtype), layers.ReLU(dtype=dtype)]
    inner = keras.Sequential([keras.Input(size), *body], name="inner")
    head = [layers.GlobalAveragePooling2D(dtype=dtype), layers.Dense(4, activation="softmax", dtype=dtype)]
    model = keras.Sequential([keras.Input(size), inner, *head], name="network")
    random = np.random.default_rng(0)
    draw = {True: random.normal, False: lambda size: random.uniform(0.1, 1, size)}
    model.set_weights([draw[weight.ndim > 1](size=weight.shape) for weight in model.get_weights()])
    return model


def capsnet():
    return CapsNet(SHAPE, 3, filters=4, kernel_size=3, num_types=2, primary_dim=4, capsule_dim=4)


def transformer():
    return VisionTransformer("Ti/4", input_shape=SHAPE, num_classes=3, width=8, depth=1, num_heads=2, mlp_units=8)


def images(n=6):
    return np.random.default_rng(1).uniform(size=(n, *SHAPE)).astype("float32")


def gradient_of(objective, x, y):
    return ops.convert_to_numpy(autodiff.value_and_gradient(objective.loss, objective.variables)(x, y)[1])


def test_gradients_are_those_of_a_twin_in_bfloat16():
    model, x, y = network(), images(), np.arange(6) % 4
    lowered = gradient_of(attacks.in_precision(model, "bfloat16"), x, y)
    np.testing.assert_array_equal(lowered, gradient_of(attacks.natural(network("mixed_bfloat16")), x, y))
    full = gradient_of(attacks.natural(model), x, y)
    assert np.abs(lowered - full).max() > 1e-4 * np.abs(full).max()


OBJECTIVES = [
    (network, attacks.logits),
    (capsnet, attacks.capsules),
    (capsnet, attacks.votes),
    (capsnet, lambda model: attacks.combined(attacks.capsules(model), attacks.votes(model))),
    (transformer, attacks.natural),
]


def served(model, folder):
    serving = pytest.importorskip("keras_capsvit.serving")
    serving.export(model, folder / "model", input_range=(0, 1))
    return serving.load(folder / "model")


def check_gradients(objective):
    x, y = images(), np.arange(6) % 3
    lowered = attacks.in_precision(objective, "bfloat16")
    assert (objective.precision, lowered.precision) == ("float32", "bfloat16")
    full, lowered = (gradient_of(each, x, y).reshape(6, -1) for each in (objective, lowered))
    assert not np.array_equal(full, lowered)
    cosine = (full * lowered).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(lowered, axis=1)
    assert cosine.min() > 0.95


@pytest.mark.samples(3)
@pytest.mark.parametrize(("make", "of"), OBJECTIVES)
def test_gradients_point_where_those_in_float32_do(make, of):
    check_gradients(of(make()))


@pytest.mark.skipif(not TENSORFLOW, reason="serving is TensorFlow's")
@pytest.mark.samples(1)
@pytest.mark.parametrize(("make", "of"), OBJECTIVES)
def test_gradients_of_served_models_do(make, of, tmp_path):
    check_gradients(of(served(make(), tmp_path)))


@pytest.mark.slow
@pytest.mark.skipif(not TENSORFLOW, reason="serving is TensorFlow's")
def test_attacks_on_a_served_model_are_in_bfloat16(tmp_path, recwarn):
    model, x, y = served(transformer(), tmp_path), images(), np.arange(6) % 3
    objective = attacks.in_precision(model, "bfloat16")
    scores = objective.scored(x)
    examples, exact = (attacks.PGD(0.1, steps=5)(each, x, y) for each in (objective, model))
    assert 0 < np.abs(examples - exact).max() <= 0.2
    assert "differ from call to call" not in "".join(str(warning.message) for warning in recwarn)
    assert attacks.PatchFool(steps=3).run(objective, x, y).images.shape == x.shape
    np.testing.assert_array_equal(objective.scored(x), scores)
    np.testing.assert_array_equal(attacks.natural(model).scored(x), scores)


class Raised(attacks.Objective):
    """An objective with a loss of its own."""

    def loss(self, x, y):
        return -2 * self(x)[:, 0]


@pytest.mark.skipif(not TENSORFLOW, reason="serving is TensorFlow's")
def test_a_loss_of_ones_own_on_a_served_model(tmp_path):
    model = served(network(), tmp_path)
    check_gradients(Raised(attacks.logits(model).scores, model))
    lowered = attacks.in_precision(Raised(attacks.logits(model).scores, model), "bfloat16")
    loss, scores = lowered.loss_and_scores(ops.convert_to_tensor(images()), np.zeros(6, int))
    np.testing.assert_array_equal(loss, -2 * scores[:, 0])


def test_nothing_is_left_on_the_model():
    model, x = network(), images()
    parts = [model, *private.inner_layers(model)]
    before, scores = [part.dtype_policy for part in parts], model(x)
    objective = attacks.in_precision(model, "bfloat16")
    attacks.FGSM(0.1)(objective, x, np.zeros(6, int))
    assert [part.dtype_policy for part in parts] == before
    with pytest.raises(RuntimeError, match="midway"), taps.computing_in_bfloat16(model):
        raise RuntimeError("midway")
    assert [part.dtype_policy for part in parts] == before
    np.testing.assert_array_equal(model(x), scores)
    np.testing.assert_array_equal(objective.scored(x), attacks.natural(model).scored(x))
    gone = weakref.ref(model)
    del model, objective, parts
    gc.collect()
    assert gone() is None


def test_what_counts_is_judged_in_float32():
    """In bfloat16 all of these images are of class 0; in float32 every other is."""
    lead = np.float32([5e-4, -5e-4, 5e-4, -5e-4])
    model = keras.Sequential([keras.Input((1, 1, 1)), layers.Flatten(), layers.Dense(2)])
    model.set_weights([np.float32([[1, 0]]), np.float32([0, 0.5])])
    x, y = 0.5 + lead.reshape(4, 1, 1, 1), np.zeros(4, int)
    objective = attacks.in_precision(model, "bfloat16")
    assert not np.any(ops.convert_to_numpy(objective(x)).argmax(axis=1))
    attack = attacks.AutoAttack(0, version="custom", attacks={"apgd": attacks.APGD(1, steps=2, loss="margin")})
    result = attack.run(objective, x, y)
    np.testing.assert_array_equal(result.fooled, lead < 0)
    report = evaluate.auto_attack(model, attack, (x, y), objective=lambda m: attacks.in_precision(m, "bfloat16"))
    assert report.precision == report.record("n", "d")["precision"] == "bfloat16"
    assert report.robust_accuracy == 0.5


def test_auto_takes_what_takes_less_time(monkeypatch):
    model = network()
    for seconds, expected in (([1, 2], "float32"), ([2, 1], "bfloat16")):
        monkeypatch.setattr(precision, "_seconds", lambda objectives, x, seconds=seconds: seconds)
        assert attacks.in_precision(model).precision == expected
    monkeypatch.undo()
    assert attacks.in_precision(model).precision in ("float32", "bfloat16")  # measured
    assert attacks.in_precision(attacks.logits(model), "float32") is attacks.logits(model)


def test_an_attack_in_bfloat16_fools_as_many():
    model, x = network(), images(32)
    y = model.predict(x, verbose=0).argmax(axis=1)
    attack = attacks.PGD(0.2, steps=10)
    expected, lowered = (
        evaluate.robust_accuracy(model, attack, (x, y), objective=lambda m, p=p: attacks.in_precision(m, p))
        for p in ("float32", "bfloat16")
    )
    assert expected < 0.7
    assert lowered == pytest.approx(expected, abs=2 / 32)


def test_what_has_no_layers_is_refused():
    with pytest.raises(ValueError, match=r"precision must be one of .*; received 'float16'"):
        attacks.in_precision(network(), "float16")
    with pytest.raises(ValueError, match=r"needs a Keras model, .* or a served one; received function"):
        attacks.in_precision(lambda x: x[:, 0, 0], "bfloat16")
    with pytest.raises(ValueError, match=r"which network does not tell; pass images=\."):
        attacks.in_precision(network(size=(None, None, 1)))
    assert attacks.in_precision(network(size=(None, None, 1)), images=images()).precision in attacks.PRECISIONS
