"""Gradient explainers, guided gradients, feature map attention, and what all explainers refuse."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_capsvit import explain, taps
from keras_capsvit.explain.base import mean_over_samples
from keras_capsvit.models import ConvNetAvg

layers, ops = keras.layers, keras.ops

GRADIENTS = {
    "saliency": explain.Saliency,
    "input x gradient": explain.InputXGradient,
    "integrated": lambda model, **settings: explain.IntegratedGradients(model, steps=3, **settings),
    "smooth": lambda model, **settings: explain.SmoothGrad(explain.Saliency(model, **settings), 3),
    "smooth integrated": lambda model, **settings: explain.SmoothGrad(
        explain.IntegratedGradients(model, steps=2, **settings), 3
    ),
}


def images(batch, *shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(batch, *shape)).astype("float32")


def conv_net(activation="relu", end=None):
    """Functional network for images of 9x7 pixels and 2 channels, 4 classes."""
    x = inputs = keras.Input((9, 7, 2))
    x = layers.Conv2D(6, 3, activation=activation, name="first")(x)
    x = layers.Conv2D(5, 3, activation=activation, name="second")(x)
    return keras.Model(inputs, layers.Dense(4, activation=end, name="scores")(layers.Flatten()(x)))


def quadratic(x):
    """Scores ``(b, 2)`` of images with eight values: ``sum x^2`` and ``sum n x_n``, whose gradients are known."""
    flat = ops.reshape(x, (-1, 8))
    return ops.stack([ops.sum(flat**2, -1), ops.sum(flat * ops.arange(8, dtype="float32"), -1)], axis=-1)


def test_closed_forms():
    x, slopes = images(3, 2, 2, 2), np.arange(8).reshape(2, 2, 2)
    np.testing.assert_allclose(explain.Saliency(quadratic)(-x, 0), (2 * x).max(-1), rtol=1e-6)
    np.testing.assert_allclose(explain.Saliency(quadratic, channels=True)(-x, 0), -2 * x, rtol=1e-6)
    expected = np.stack([2 * x[0] ** 2, x[1] * slopes, x[2] * slopes])
    np.testing.assert_allclose(explain.InputXGradient(quadratic)(x, [0, 1, 1]), expected.sum(-1), rtol=1e-6)
    # The midpoint rule is exact for gradients that are linear.
    integrated = explain.IntegratedGradients(quadratic, steps=4, baseline=slopes, channels=True)
    np.testing.assert_allclose(integrated(x, 0), x**2 - slopes**2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", GRADIENTS)
def test_no_target_is_the_predicted_class_of_the_image(name):
    explainer = GRADIENTS[name](quadratic)
    x = images(6, 2, 2, 2)
    x[:2, 0] = 3  # here the squares win
    predicted = np.asarray(quadratic(ops.convert_to_tensor(x))).argmax(-1)
    assert set(predicted) == {0, 1}
    np.testing.assert_array_equal(explainer(x), explainer(x, predicted))


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
@pytest.mark.parametrize("baseline", [0.0, np.float32([0.2, 0.9]), images(1, 9, 7, 2, seed=1)[0]])
def test_integrated_gradients_are_complete(activation, baseline):
    model, x = conv_net(activation), images(5, 9, 7, 2)
    difference = np.asarray(model(x) - model(np.zeros_like(x) + baseline))[:, 3]
    maps = explain.IntegratedGradients(model, baseline=baseline)(x, 3)
    np.testing.assert_allclose(maps.sum((1, 2)), difference, rtol=0.01)


def test_integrated_gradients_are_those_of_a_loop():
    model, x, steps = conv_net("tanh"), images(2, 9, 7, 2), 5
    gradient = explain.Saliency(model, channels=True)
    expected = x * np.mean([gradient(x * (k + 0.5) / steps, 1) for k in range(steps)], axis=0)
    maps = explain.IntegratedGradients(model, steps=steps, channels=True, batch_size=3)(x, 1)
    np.testing.assert_allclose(maps, expected, atol=1e-6)


@pytest.mark.parametrize("base", [GRADIENTS["saliency"], GRADIENTS["integrated"]])
def test_smooth_grad_without_noise_is_its_base(base):
    model, x = conv_net(), images(4, 9, 7, 2)
    explainer = base(model, batch_size=4)
    np.testing.assert_array_equal(explain.SmoothGrad(explainer, 10, noise=0)(x), explainer(x))
    other_batches = explain.SmoothGrad(base(model, batch_size=7), 3, noise=0)(x)
    np.testing.assert_allclose(other_batches, explainer(x), atol=1e-6)


def test_smooth_grad_averages_signed_gradients_of_noisy_images():
    model, x = conv_net(), images(3, 9, 7, 2) * np.float32([1, 0.5, 0.1])[:, None, None, None]
    ranges = (x.max((1, 2, 3)) - x.min((1, 2, 3)))[:, None, None, None]
    noise = np.random.default_rng(5).standard_normal((4, 9, 7, 2), "float32")
    gradient = explain.Saliency(model, channels=True)
    expected = np.mean([gradient(x + 0.2 * ranges * draw, 2) for draw in noise], axis=0)
    smooth = explain.SmoothGrad(explain.Saliency(model), 4, noise=0.2, seed=5)
    np.testing.assert_allclose(smooth(x, 2), np.abs(expected).max(-1), atol=1e-6)
    assert np.abs(explain.SmoothGrad(explain.Saliency(model), 4, noise=0.2, seed=6)(x, 2) - smooth(x, 2)).max() > 1e-3


def test_smooth_grad_as_captum_averages_absolute_gradients_under_noise_in_units_of_pixels():
    model, x = conv_net(), images(3, 9, 7, 2)
    noise = np.random.default_rng(3).standard_normal((4, 9, 7, 2), "float32")
    gradient = explain.Saliency(model, channels=True)
    expected = np.mean([np.abs(gradient(x + 0.3 * each, 1)).max(-1) for each in noise], axis=0)
    captum = explain.SmoothGrad(explain.Saliency(model), 4, noise=0.3, relative=False, signed=False, seed=3)
    np.testing.assert_allclose(captum(x, 1), expected, atol=1e-6)
    inside = captum.on_tensors(ops.convert_to_tensor(x), ops.convert_to_tensor(np.int32([1, 1, 1])))
    np.testing.assert_allclose(ops.convert_to_numpy(inside), expected, atol=1e-6)
    with pytest.raises(ValueError, match="signed"):
        explain.SmoothGrad(explain.Saliency(model), signed=None)


def test_smooth_grad_of_any_callable():
    def squares(x, target):
        return (x**2).sum(-1) * target[:, None, None]

    x = images(2, 3, 3, 1)
    np.testing.assert_allclose(explain.SmoothGrad(squares, 3, noise=0)(x, [1, 2]), squares(x, np.array([1, 2])))
    with pytest.raises(ValueError, match="Pass target=: function does not tell the predicted classes"):
        explain.SmoothGrad(squares)(x)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_batch_is_its_images_one_by_one(name):
    model, x = conv_net(), images(5, 9, 7, 2)
    for channels in (False, True):
        maps = GRADIENTS[name](model, channels=channels, batch_size=4)(x)
        assert maps.shape == (x.shape if channels else x.shape[:3])
        assert maps.dtype == "float32"
        singles = [GRADIENTS[name](model, channels=channels)(x[i : i + 1]) for i in range(5)]
        np.testing.assert_allclose(maps, np.concatenate(singles), atol=2e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20))
def test_streams_are_equal_batches_that_fit(count, samples, batch_size):
    values, sizes = np.random.default_rng(0).normal(size=(count, samples, 2)), set()

    def function(image, sample):
        sizes.add(len(image))
        return values[image, sample]

    np.testing.assert_allclose(mean_over_samples(function, count, samples, batch_size), values.mean(1), rtol=1e-5)
    assert len(sizes) == 1
    assert max(sizes) <= batch_size


def test_one_trace_for_all_batches_and_samples():
    traces = []

    def scores(x):
        traces.append(x.shape)
        return quadratic(x)

    explainer = explain.SmoothGrad(explain.IntegratedGradients(scores, steps=7, batch_size=4), 5)
    explainer(images(3, 2, 2, 2), 1)
    del traces[:]
    explainer(images(3, 2, 2, 2), 0)
    assert not traces


def test_lengths_of_capsule_networks_and_weights_that_change(small_model):
    model, x = small_model((12, 12, 3)), images(2, 12, 12, 3)
    saliency, integrated = explain.Saliency(model), explain.IntegratedGradients(model)
    maps = integrated(x, 4)
    lengths = taps.tap(model, "lengths")
    np.testing.assert_allclose(maps.sum((1, 2)), np.asarray(lengths(x) - lengths(0 * x))[:, 4], rtol=0.01, atol=1e-5)
    before = saliency(x, 4)
    model.layers[1].kernel.assign(model.layers[1].kernel * 1.5)
    after = saliency(x, 4)
    assert np.abs(before - after).max() > 1e-4 * before.max()
    np.testing.assert_allclose(after, explain.Saliency(model)(x, 4), atol=1e-6)


def with_weights_of(model, make):
    twin = make()
    twin.set_weights(model.get_weights())
    return twin


def rescaled(model, dtype="float32"):
    inputs = keras.Input((9, 7, 2), dtype=dtype)
    return keras.Model(inputs, model(layers.Rescaling(1 / 255)(inputs)))


TWINS = {
    "softmax": lambda model: with_weights_of(model, lambda: conv_net(end="softmax")),
    "Sequential": lambda model: keras.Sequential([model, layers.Softmax()]),
    "nested in 0..255": lambda model: keras.Sequential([rescaled(model), layers.Softmax()]),
    "integers": lambda model: keras.Sequential([rescaled(model, "uint8"), layers.Softmax()]),
    "integers inside": lambda model: keras.Sequential([keras.Input((9, 7, 2)), rescaled(model, "uint8")]),
    "callable": lambda model: lambda x: ops.softmax(model(x)),
    "one of two outputs": lambda model: keras.Model(
        model.inputs, {"a": ops.softmax(model.output), "b": model.output[:, :1]}
    ),
}


@pytest.mark.samples(3)
@pytest.mark.parametrize("twin", TWINS)
def test_twins_have_the_same_maps(twin):
    model, x = conv_net(), np.round(255 * images(2, 9, 7, 2)) / 255
    scale = 1 if twin in ("softmax", "Sequential", "callable", "one of two outputs") else 255
    settings = {"output": "a"} if twin == "one of two outputs" else {}
    twin_model = TWINS[twin](model)
    maps = explain.Saliency(twin_model, **settings)(scale * x, [3, 1])
    np.testing.assert_allclose(scale * maps, explain.Saliency(model)(x, [3, 1]), atol=1e-6)
    maps = explain.IntegratedGradients(twin_model, steps=2, **settings)(scale * x)
    np.testing.assert_allclose(maps, explain.IntegratedGradients(model, steps=2)(x), atol=1e-6)
    if settings:
        with pytest.raises(ValueError, match=r"name one of the outputs of .*\['a', 'b'\]"):
            explain.Saliency(twin_model)(x)


def test_one_sigmoid_has_two_classes():
    inputs = keras.Input((2, 2, 2))
    z = layers.Dense(1, name="z")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Activation("sigmoid")(z))
    x, kernel = images(4, 2, 2, 2), ops.convert_to_numpy(model.get_layer("z").kernel).reshape(2, 2, 2)
    explainer = explain.Saliency(model, channels=True)
    for target, sign in ((0, -1), (1, 1)):
        np.testing.assert_allclose(explainer(x, target), np.stack([sign * kernel] * 4), rtol=1e-6)
    predicted = (ops.convert_to_numpy(model(x))[:, 0] > 0.5).astype(int)
    np.testing.assert_array_equal(explainer(x), explainer(x, predicted))
    with pytest.raises(ValueError, match="class ids between 0 and 1; received values between 2 and 2"):
        explainer(x, 2)


@pytest.mark.parametrize("make", [explain.Saliency, lambda model: explain.SmoothGrad(explain.Saliency(model))])
def test_no_map_of_zeros_where_no_gradient_passes(make):
    model, x = conv_net(), 255 * images(2, 9, 7, 2)
    explainer = make(lambda x: model(ops.cast(ops.cast(x, "uint8"), "float32")))
    with pytest.raises(ValueError, match="No gradient reaches the pixels of <lambda>, although its scores depend on"):
        explainer(x)
    assert not explain.Saliency(quadratic)(np.zeros((2, 2, 2, 2)), 0).any()
    assert not make(lambda x: 0 * model(x))(x).any()


@pytest.mark.parametrize("make", [explain.Saliency, lambda model: explain.SmoothGrad(explain.Saliency(model))])
def test_images_of_another_size_are_refused_before_and_after_a_call(make):
    explainer = make(conv_net())
    for _ in range(2):
        for shape in ((9, 8, 2), (9, 7, 3)):
            with pytest.raises(
                ValueError, match=r"images of shape \(None, 9, 7, 2\), as .* takes them; received \(1, 9"
            ):
                explainer(images(1, *shape))
        explainer(images(1, 9, 7, 2))


@pytest.mark.samples(1)
@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["capsules", "convolutions"])
def test_served_models_have_the_maps_of_live_ones(kind, small_model, tmp_path):
    from keras_capsvit import serving

    model = small_model() if kind == "capsules" else ConvNetAvg((12, 12, 1), 4, kernel_size=3, filters=6)
    serving.export(model, tmp_path)
    served, x = serving.load(tmp_path), images(3, 12, 12, 1)
    explainers = [
        explain.Saliency,
        GRADIENTS["smooth integrated"],
        explain.GraphAttention if kind == "capsules" else explain.FeatureMapAttention,
    ]
    for make in explainers:
        np.testing.assert_allclose(make(served)(x), make(model)(x), atol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("rule", ["plain", "guided"])
def test_gradients_equal_those_of_tf_keras_vis(rule):
    vis = pytest.importorskip("tf_keras_vis.saliency")
    from tf_keras_vis.utils import model_modifiers, scores

    model, x = conv_net(), images(4, 9, 7, 2)
    guided = model_modifiers.GuidedBackpropagation() if rule == "guided" else None
    score = scores.CategoricalScore([0, 1, 2, 3])
    expected = vis.Saliency(model, model_modifier=guided)(score, x, normalize_map=False)
    maps = (explain.GuidedBackprop if guided else explain.Saliency)(model)(x, [0, 1, 2, 3])
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    if guided:
        assert np.abs(maps - explain.Saliency(model)(x, [0, 1, 2, 3])).max() > 1e-3


@pytest.mark.tensorflow
def test_changed_gradients_cut_at_relus():
    model = keras.Sequential([keras.Input((1, 4, 1)), layers.ReLU(), layers.Flatten(), layers.Dense(1, use_bias=False)])
    model.layers[-1].kernel.assign([[1.0], [-2.0], [3.0], [-4.0]])
    x = np.float32([1, 1, -1, -1]).reshape(1, 1, 4, 1)
    np.testing.assert_allclose(explain.GuidedBackprop(model)(x, 1).ravel(), [1, 0, 0, 0])
    np.testing.assert_allclose(explain.DeconvNet(model)(x, 1).ravel(), [1, 0, 3, 0])
    # The one output speaks for class 1, and with the opposite sign for class 0.
    np.testing.assert_allclose(explain.DeconvNet(model)(x, 0).ravel(), [0, 2, 0, 4])
    assert explain.DeconvNet(model, channels=True)(x, 1).shape == (1, 1, 4, 1)
    smooth = explain.SmoothGrad(explain.DeconvNet(model), 3, noise=0)
    np.testing.assert_allclose(smooth(x, 1).ravel(), [1, 0, 3, 0])


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="says that TensorFlow is needed")
def test_tensorflow_is_asked_for():
    with pytest.raises(ValueError, match="needs the tensorflow backend"):
        explain.GuidedBackprop(conv_net())


def test_feature_map_attention():
    model, x = ConvNetAvg((10, 12, 1), 3, kernel_size=3, filters=4), images(3, 10, 12, 1)
    features = np.asarray(taps.tap(model, "features")(x)).mean(-1)
    expected = ops.image.resize(features[..., None], (10, 12), data_format="channels_last")[..., 0]
    np.testing.assert_allclose(explain.FeatureMapAttention(model, batch_size=2)(x), expected, atol=1e-6)
    plain, x = conv_net(), images(2, 9, 7, 2)
    np.testing.assert_array_equal(
        explain.FeatureMapAttention(plain)(x), explain.FeatureMapAttention(plain, "second")(x, 3)
    )
    features_of_first = np.asarray(keras.Model(plain.input, plain.get_layer("first").output)(x)).mean(-1)
    expected = ops.image.resize(features_of_first[..., None], (9, 7), data_format="channels_last")[..., 0]
    np.testing.assert_allclose(explain.FeatureMapAttention(plain, "first")(x), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"layer with an output \(b, h, w, c\) or tokens .*'scores' returns"):
        explain.FeatureMapAttention(plain, "scores")
    with pytest.raises(ValueError, match=r"feature map \(b, h, w, c\) larger than 1x1, or tokens; quadratic has"):
        explain.FeatureMapAttention(quadratic)(images(1, 2, 2, 2))


def test_random_maps_belong_to_images():
    x = images(40, 9, 7, 2)
    maps = explain.RandomMap(3)(x)
    assert maps.shape == (40, 9, 7)
    assert 0 <= maps.min() < 0.01 < 0.99 < maps.max() < 1
    assert abs(maps.mean() - 0.5) < 0.03
    np.testing.assert_array_equal(maps[::-2], explain.RandomMap(3)(x[::-2], target=1))
    assert np.abs(maps - explain.RandomMap(4)(x)).max() > 0.5
    assert np.abs(maps[0] - maps[1]).max() > 0.5


@pytest.mark.parametrize("make", [explain.Saliency, lambda model: explain.SmoothGrad(explain.Saliency(model))])
def test_says_what_is_wrong(make):
    explainer, x = make(conv_net()), images(2, 9, 7, 2)
    with pytest.raises(ValueError, match=r"channels\); received \(9, 7, 2\)"):
        explainer(x[0])
    x[1, 2, 3, 0] = np.nan
    with pytest.raises(ValueError, match="finite images; received NaN or infinite values, 1 of"):
        explainer(x)
    x = images(2, 9, 7, 2)
    with pytest.raises(ValueError, match="class ids between 0 and 3; received values between 2 and 4"):
        explainer(x, [2, 4])
    with pytest.raises(ValueError, match="class ids from 0; received values between -1"):
        explainer(x, -1)
    with pytest.raises(ValueError, match=r"ids of shape \(2,\); received shape \(3,\)"):
        explainer(x, [1, 2, 3])
    with pytest.raises(ValueError, match=r"of float64, not all of them integers"):
        explainer(x, 0.5)
    with pytest.raises(ValueError, match=r"Several ids per image, of shape \(batch, k\), are taken by LRP, CLRP"):
        explainer(x, [[0, 1], [2, 3]])
    assert explainer(x[:0]).shape == (0, 9, 7)
    assert explainer(x[:0], 2).shape == (0, 9, 7)


def test_refuses_settings_and_models():
    model, x = conv_net(), images(2, 9, 7, 2)
    with pytest.raises(ValueError, match="batch_size must be an integer from 1 to 2147483647; received 0"):
        explain.Saliency(model, batch_size=0)
    with pytest.raises(ValueError, match=r"steps must be an integer from 1; received 2\.5"):
        explain.IntegratedGradients(model, steps=2.5)
    with pytest.raises(ValueError, match="samples must be an integer from 1; received 0"):
        explain.SmoothGrad(explain.Saliency(model), 0)
    with pytest.raises(ValueError, match=r"noise must be a number in \[0, inf\); received -1"):
        explain.SmoothGrad(explain.Saliency(model), noise=-1)
    with pytest.raises(ValueError, match=r"images of shape \(9, 7, 2\); received \(7, 3\)"):
        explain.IntegratedGradients(model, baseline=np.zeros((7, 3)))(x)
    with pytest.raises(ValueError, match=r"scores of shape \(batch, classes\); <lambda> returns \(1, 9, 7, 2\)"):
        explain.Saliency(lambda x: x)(x, 0)
    for outside in (lambda x: model.predict(np.asarray(x), verbose=0), model.predict):
        with pytest.raises(
            ValueError, match=r"a callable of tensors; .* leaves .*Pass the model itself instead of its"
        ):
            explain.Saliency(outside)(x, 1)
    with pytest.raises(ValueError, match="Saliency found NaN or infinite values"):
        explain.Saliency(lambda x: ops.sqrt(ops.sum(x, axis=(1, 2))))(0 * x)
