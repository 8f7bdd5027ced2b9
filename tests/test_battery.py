"""Explainers and attacks on three kinds of models that stand for all that people bring; ``battery.py`` has them all."""

import battery
import keras
import numpy as np
import pytest

from keras_capsvit import attacks, explain, taps

NAMES = [*battery.explainers(), *battery.attack_classes()]


@pytest.mark.samples(6, slow=40)
@pytest.mark.parametrize(
    "kind",
    [battery.STAND_FOR_ALL[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in battery.STAND_FOR_ALL[1:])],
)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_as_on_the_plain_twin_or_refused_by_name(name, kind):
    result = battery.outcome(name, kind)
    if result is None:
        pytest.skip("does not apply")
    assert battery.allowed(name, kind, result), result


@pytest.mark.parametrize("name", battery.explainers())
def test_the_model_of_now_is_explained(name):
    """After its weights, and then one of its activations, became others."""
    kind = battery.KINDS["functional"]
    family, make = battery.family_and_make(name)
    model, x = family(kind.shape), battery.images(kind)
    try:
        explainer = make(model, 1.0)
    except NotImplementedError:
        pytest.skip("of another backend")
    first = explainer(x, 1)
    model.set_weights([1.5 * weight[..., ::-1] for weight in model.get_weights()])
    second = explainer(x, 1)
    twin = family(kind.shape)
    twin.set_weights(model.get_weights())
    np.testing.assert_allclose(second, make(twin, 1.0)(x, 1), rtol=1e-5, atol=1e-6)
    for each in (model, twin):
        layer = next(layer for layer in each.layers if getattr(layer, "activation", None) is keras.activations.relu)
        layer.activation = keras.activations.softplus
    predicted = explainer.predicted(x)
    third = explainer(x, 1)
    anew = make(twin, 1.0)
    np.testing.assert_allclose(third, anew(x, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(predicted, anew.predicted(x))
    assert not np.allclose(second, first, rtol=1e-3) and not np.allclose(third, second, rtol=1e-3)


def test_a_callable_has_the_weights_of_now():
    kind = battery.KINDS["functional"]
    models, x, y = [battery.cnn(kind.shape) for _ in range(2)], battery.images(kind), np.array([0, 1, 2])

    def ensemble(x):
        return models[0](x) + models[1](x)

    explainer, attack = explain.Saliency(ensemble), attacks.PGD(0.1, steps=2)
    before = explainer(x, y), attack(ensemble, x, y), taps.scores(ensemble)(x)
    for model in models:
        model.set_weights([1.5 * weight[..., ::-1] for weight in model.get_weights()])
    after = explainer(x, y), attack(ensemble, x, y), taps.scores(ensemble)(x)
    anew = (
        explain.Saliency(lambda x: ensemble(x))(x, y),
        attack(lambda x: ensemble(x), x, y),
        models[0](x) + models[1](x),
    )
    for old, own, expected in zip(before, after, anew, strict=True):
        old, own, expected = map(keras.ops.convert_to_numpy, (old, own, expected))
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)
        assert not np.allclose(own, old, rtol=1e-3)


def test_everything_is_enrolled():
    assert {"LRP", "Saliency", "GraphAttention", "SmoothGrad"} <= set(battery.explainers())
    assert {"PGD", "DeepFool", "PatchAttack"} <= set(battery.attack_classes())
    assert set(battery.EXPLAINERS) <= set(battery.explainers()) and set(battery.ATTACKS) <= set(NAMES)


def test_a_wrong_map_is_noticed(monkeypatch):
    """The battery itself: an explainer that sees the softmax, as some did, is not let through."""

    class OfProbabilities(battery.explain.Saliency):
        def __init__(self, model):
            super().__init__(lambda x: keras.ops.add(model(x), 0.0))

    monkeypatch.setattr(battery.explain, "Saliency", OfProbabilities)
    assert battery.outcome("Saliency", "functional").startswith("same")
    assert not battery.allowed("Saliency", "softmax head", battery.outcome("Saliency", "softmax head"))
