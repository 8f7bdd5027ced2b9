"""Explainers and attacks on three kinds of models that stand for all that people bring; ``battery.py`` has them all."""

import battery
import keras
import pytest

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
