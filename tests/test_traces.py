"""After the first calls, no setting, seed, class or batch size is traced again; ``soak.py`` is the long run of it."""

import battery
import keras
import numpy as np
import pytest

from keras_capsvit import autodiff, evaluate, explain

TENSORFLOW = keras.backend.backend() == "tensorflow"
SHAPE = (battery.SIZE, battery.SIZE, 3)
QUICK = ("Saliency", "GradCAM", "GraphAttention")
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in battery.explainers()]


def images(count):
    return np.random.default_rng(count).uniform(size=(count, *SHAPE)).astype("float32")


def explainer_of(name):
    family, make = battery.EXPLAINERS.get(name, (battery.cnn, lambda model, scale: getattr(explain, name)(model)))
    return make(family(SHAPE), 1.0)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_an_explainer_is_traced_for_no_class_and_no_batch_size(name):
    explainer = explainer_of(name)
    for count in (8, 5):  # of one batch size a function knows that size only
        explainer(images(count))
        explainer(images(count), 1)
    before = autodiff.traces()
    for count in (5, 6, 7, 8):
        explainer(images(count))
        explainer(images(count), np.arange(count) % battery.CLASSES)
    assert autodiff.traces() == before


def test_explainers_of_one_model_share_what_is_compiled():
    model = battery.cnn(SHAPE)
    x = images(4)
    explain.Saliency(model, batch_size=4)(x, explain.Saliency(model).predicted(x))
    before = autodiff.traces()
    for steps in (1, 3):
        for baseline in (0.0, 0.5):
            paths = explain.IntegratedGradients(model, steps=steps, baseline=baseline, batch_size=4)
            explain.SmoothGrad(paths, 2, noise=0.1 * steps, seed=steps)(x)
    explain.InputXGradient(model, batch_size=4)(x)
    evaluate.judge.Judge(model)(x)
    assert autodiff.traces() == before


def test_what_is_shared_goes_with_its_model_and_sees_changed_weights():
    model = battery.cnn(SHAPE)
    x = images(2)
    before = explain.Saliency(model)(x)
    model.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    np.testing.assert_allclose(explain.Saliency(model)(x, explain.Saliency(model).predicted(x)), 2 * before, rtol=1e-4)


def test_traces_are_counted():
    function = autodiff.compiled(lambda x: x + 1)
    before = autodiff.traces()
    for count in (3, 3, 3):
        function(np.zeros(count, "float32"))
    assert autodiff.traces() == before + 1
