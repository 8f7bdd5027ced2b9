"""Explainers that an export refuses, in our words: of another model, and what returns no maps."""

import keras
import numpy as np
import pytest

from keras_capsvit import explain, models

pytestmark = pytest.mark.tensorflow


def build():
    return models.ConvNetAvg((8, 8, 1), 3, kernel_size=3, filters=4)


EXPLAINERS = {
    "Saliency": lambda model: explain.Saliency(model),
    "InputXGradient": lambda model: explain.InputXGradient(model),
    "GradCAM": lambda model: explain.GradCAM(model),
    "FeatureMapAttention": lambda model: explain.FeatureMapAttention(model),
    "LRP": lambda model: explain.LRP(model),
    "GuidedBackprop": lambda model: explain.GuidedBackprop(model),
    "callable": lambda model: lambda x, ids: keras.ops.max(model(x), axis=1)[:, None, None] * x[..., 0],
}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_explainers_of_another_model_are_refused(name, tmp_path):
    from keras_capsvit import serving

    model = build()
    message = f"explainer 'other' to be made of {model.name}, the model that is exported; it reads variables of another"
    with pytest.raises(ValueError, match=message):
        serving.export(model, tmp_path, explainers={"other": EXPLAINERS[name](build())})
    assert not list(tmp_path.iterdir())


class OnTensors:
    """Not of this package, but with its interface."""

    def __init__(self, function):
        self.function = function

    def __call__(self, x, target=None):
        raise NotImplementedError

    def on_tensors(self, x, ids):
        return self.function(x, ids)


@pytest.mark.parametrize("wrap", [lambda function: function, OnTensors], ids=["callable", "on_tensors"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, ids: ids,
        lambda x, ids: keras.ops.cast(ids, "float32")[:, None, None],
        lambda x, ids: x[:0, ..., 0],
        lambda x, ids: x[:1, ..., 0],
        lambda x, ids: x[keras.ops.cast(ids, "int32") > 99],
        lambda x, ids: keras.ops.concatenate([x, x]),
        lambda x, ids: x[:, 1:],
        lambda x, ids: keras.ops.sum(x),
    ],
)
def test_what_returns_no_maps_is_refused(function, wrap, tmp_path):
    from keras_capsvit import serving

    with pytest.raises(ValueError, match=r"Expected explainer 'wrong' to return a map for each of b="):
        serving.export(build(), tmp_path, taps=[], explainers={"wrong": wrap(function)})
    assert not list(tmp_path.iterdir())


def test_what_returns_maps_is_exported(tmp_path):
    from keras_capsvit import serving

    model, x = build(), np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype("float32")
    explainers = {"first": lambda x, ids: x[..., 0], "second": OnTensors(lambda x, ids: 2 * x)}
    served = serving.load(serving.export(model, tmp_path, explainers=explainers).parent)
    for name, expected in (("first", x[..., 0]), ("second", 2 * x)):
        np.testing.assert_allclose(served.explain(x, 1, endpoint=name)["maps"], expected, rtol=1e-6)
