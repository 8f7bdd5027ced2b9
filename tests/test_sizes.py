"""Images of another size than a model takes, before and after it was called once."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, explain, models

SIZES = r"Expected images .*received \(2, 12, 12, 1\)"
KERAS = "incompatible|imensions must be equal"  # what Keras and backends say, of models that tell no size


def images(size):
    return np.random.default_rng(0).uniform(size=(2, size, size, 1)).astype("float32")


def linear(x):
    kernel = np.random.default_rng(1).normal(size=(64, 3)).astype("float32")
    return ops.matmul(ops.reshape(x, (-1, x.shape[1] * x.shape[2])), kernel)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model that does not tell the size of its images, and takes one alone."""

    def __init__(self):
        super().__init__()
        self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(3)

    def call(self, x):
        return self.dense(self.flatten(x))


def subclassed():
    model = Subclassed()
    model(images(8))
    return model


MODELS = {
    "capsules": lambda: models.GraCapsNet((8, 8, 1), 3, num_heads=2, filters=4),
    "convolutions": lambda: models.ConvNetAvg((8, 8, 1), 3, kernel_size=3, filters=4),
    "subclassed": subclassed,
    "callable": lambda: linear,
}
CALLS = {
    "saliency": lambda model: explain.Saliency(model),
    "integrated gradients": lambda model: explain.IntegratedGradients(model, steps=2),
    "smoothed": lambda model: explain.SmoothGrad(explain.Saliency(model), 2),
    "FGSM": lambda model: lambda x: attacks.FGSM(0.1)(model, x, np.array([0, 1])),
    "patches": lambda model: lambda x: attacks.PatchAttack(2, steps=1)(model, x, np.array([0, 1])),
}


@pytest.mark.samples(8)
@pytest.mark.parametrize("of", MODELS)
@pytest.mark.parametrize("name", CALLS)
def test_another_size_is_refused_also_after_a_call(name, of):
    call, told = CALLS[name](MODELS[of]()), of in ("capsules", "convolutions")
    with pytest.raises(ValueError, match=SIZES if told else f"{SIZES}|{KERAS}"):
        call(images(12))
    assert call(images(8)).shape[:3] == (2, 8, 8)
    told = told or isinstance(call, explain.base.Explainer)  # which know then that it is the size
    with pytest.raises(ValueError, match=SIZES if told else f"{SIZES}|{KERAS}"):
        call(images(12))


def test_maps_of_models_that_keep_their_size():
    model = MODELS["capsules"]()
    for explainer in (explain.GraphAttention(model), explain.GradCAM(model)):
        assert explainer(images(8)).shape == (2, 8, 8)
        with pytest.raises(ValueError, match=SIZES):
            explainer(images(12))


@pytest.mark.tensorflow
def test_relevance_of_another_size():
    explainer = explain.LRP(MODELS["convolutions"]())
    assert explainer(images(8)).shape == (2, 8, 8)
    with pytest.raises(ValueError, match=r"Expected input of shape \(None, 8, 8, 1\); received \(2, 12, 12, 1\)"):
        explainer(images(12))


def test_models_of_any_size_take_several():
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(3, 3, activation="relu", padding="same")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    calls = [explain.Saliency(model), explain.GradCAM(model), *(CALLS[name](model) for name in ("FGSM", "patches"))]
    for call in (*calls, lambda x: attacks.PatchAttack(2, steps=1, universal=True)(model, x, np.array([0, 1]))):
        for size in (8, 12, 10):
            assert call(images(size)).shape[:3] == (2, size, size)
