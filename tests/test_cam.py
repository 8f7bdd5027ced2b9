"""Class activation maps against tf-keras-vis, NumPy, and the same network in other clothes."""

import importlib
import sys

import keras
import numpy as np
import pytest
from networks import vit

from keras_capsvit import CapsNet, autodiff, explain, taps

layers, ops = keras.layers, keras.ops

OF_TF_KERAS_VIS = {
    explain.GradCAM: "gradcam.Gradcam",
    explain.GradCAMPlusPlus: "gradcam_plus_plus.GradcamPlusPlus",
    explain.LayerCAM: "layercam.Layercam",
    explain.ScoreCAM: "scorecam.Scorecam",
}
CAMS = (explain.GradCAM, explain.GradCAMPlusPlus, explain.LayerCAM, explain.HiResCAM, explain.EigenCAM)


def named(kind):
    return kind.__name__


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype("float32")


def network(end=None, units=4):
    """Functional network for images of 9x7 pixels and 2 channels, the same weights every time."""
    x = inputs = keras.Input((9, 7, 2))
    x = layers.Conv2D(6, 3, activation="relu", name="first")(x)
    x = layers.Conv2D(5, 3, activation="tanh", name="second")(x)
    model = keras.Model(inputs, layers.Dense(units, activation=end, name="scores")(layers.Flatten()(x)))
    rng = np.random.default_rng(3)
    for variable in model.weights:
        variable.assign(rng.normal(scale=0.3, size=variable.shape) * (len(variable.shape) > 1))
    return model


def enlarged(maps, size):
    return ops.convert_to_numpy(ops.image.resize(maps[..., None], size, data_format="channels_last"))[..., 0]


def at_layer(model, name, x, ids):
    """Values of a layer, gradients of class scores there, and the scores, of a model that goes straight on from it."""
    values = ops.convert_to_numpy(keras.Model(model.inputs, model.get_layer(name).output)(x))
    rest = keras.Sequential(model.layers[model.layers.index(model.get_layer(name)) + 1 :])
    of_class = np.eye(model.output_shape[-1], dtype="float32")[ids]
    scores, gradient = autodiff.value_and_gradient(lambda v: ops.sum(rest(v) * of_class, -1), model.variables)(values)
    return values, ops.convert_to_numpy(gradient), ops.convert_to_numpy(scores)


def replica(kind, a, g, score):
    """One image: values and gradient ``(h, w, c)``, position by position."""
    height, width, channels = a.shape
    if kind is explain.EigenCAM:
        rows = a.reshape(-1, channels)
        projected = (rows @ np.linalg.svd(rows)[2][0]).reshape(height, width)
        return projected * np.sign(projected.sum())
    result = np.zeros((height, width))
    for k in range(channels):
        if kind is explain.GradCAM:
            weight = np.full((height, width), g[..., k].mean())
        elif kind is explain.GradCAMPlusPlus:
            shares = np.zeros((height, width))
            for i in range(height):
                for j in range(width):
                    slope = g[i, j, k]
                    shares[i, j] = slope**2 / (2 * slope**2 + slope**3 * a[..., k].sum()) if slope else 0
            shares /= shares.sum() or 1
            weight = np.full((height, width), (shares * np.maximum(np.exp(score) * g[..., k], 0)).sum())
        else:
            weight = np.maximum(g[..., k], 0) if kind is explain.LayerCAM else g[..., k]
        result += weight * a[..., k]
    return result if kind is explain.HiResCAM else np.maximum(result, 0)


@pytest.mark.parametrize("kind", CAMS, ids=named)
def test_maps_are_those_of_loops(kind):
    model, x, ids = network(), images(3, 9, 7, 2), np.array([2, 0, 3])
    for name, explainer in (("first", kind(model, layer="first", batch_size=2)), ("second", kind(model))):
        values = zip(*at_layer(model, name, x, ids), strict=True)
        expected = np.stack([replica(kind, *(v.astype("float64") for v in each)) for each in values])
        maps = explainer(x, ids)
        np.testing.assert_allclose(maps, enlarged(expected, (9, 7)), rtol=1e-5, atol=1e-5)
        assert maps.dtype == "float32"
        assert maps.std() > 1e-3
    predicted = ops.convert_to_numpy(model(x)).argmax(-1)
    np.testing.assert_array_equal(explainer(x), explainer(x, predicted))


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", OF_TF_KERAS_VIS, ids=named)
def test_maps_are_those_of_tf_keras_vis(kind, capfd):
    pytest.importorskip("tf_keras_vis")
    from tf_keras_vis.utils.scores import CategoricalScore

    model, x, ids = network(), images(3, 9, 7, 2), [2, 0, 3]
    module, name = OF_TF_KERAS_VIS[kind].split(".")
    library = getattr(importlib.import_module(f"tf_keras_vis.{module}"), name)(model)
    settings = {"penultimate_layer": "first", "expand_cam": False, "normalize_cam": False}
    expected = np.asarray(library(CategoricalScore(ids), x, **settings))
    capfd.readouterr()
    maps = kind(model, layer="first", batch_size=2)(x, ids)
    assert capfd.readouterr().out == ""
    np.testing.assert_allclose(maps, enlarged(expected, (9, 7)), rtol=1e-5, atol=1e-5)


def test_high_resolution_maps_sum_to_the_score_less_its_bias():
    model, x = network(), images(3, 9, 7, 2)
    model.get_layer("scores").bias.assign([1.0, 2.0, 3.0, 4.0])
    inputs = keras.Input((5, 3, 2))  # on its own grid nothing is enlarged
    same = keras.Model(
        inputs, model.get_layer("scores")(layers.Reshape((75,))(layers.Conv2D(5, 1, name="last")(inputs)))
    )
    x = images(3, 5, 3, 2)
    maps = explain.HiResCAM(same)(x, [1, 2, 3])
    expected = ops.convert_to_numpy(same(x))[range(3), [1, 2, 3]] - [2, 3, 4]
    np.testing.assert_allclose(maps.sum((1, 2)), expected, rtol=1e-5)
    assert maps.min() < 0


def test_eigen_maps_know_no_class():
    explainer, x = explain.EigenCAM(network()), images(3, 9, 7, 2)
    np.testing.assert_array_equal(explainer(x, 1), explainer(x))
    with pytest.raises(ValueError, match="class ids between 0 and 3"):
        explainer(x, 4)


@keras.saving.register_keras_serializable(package="test_cam")
class Ending(keras.Model):
    """A subclass that ends in a softmax."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return ops.softmax(self.inner(255 * x))


def rescaled(inner, dtype="float32"):
    inputs = keras.Input((9, 7, 2), dtype=dtype)
    return keras.Model(inputs, inner(layers.Rescaling(1 / 255)(inputs)))


def two_outputs():
    model = network("softmax")
    late = layers.Dense(3, name="other")(
        layers.Flatten()(layers.Conv2D(2, 3, name="late")(model.get_layer("second").output))
    )
    return keras.Model(model.inputs, {"scores": model.output, "other": late})


TWINS = {
    "softmax": (lambda: network("softmax"), 1),
    "Sequential with softmax": (lambda: keras.Sequential([network(), layers.Softmax()]), 1),
    "nested in 0..255": (lambda: rescaled(network("softmax")), 255),
    "nested twice": (lambda: keras.Sequential([rescaled(keras.Sequential([network("softmax")]))]), 255),
    "integers": (lambda: rescaled(network("softmax"), "uint8"), 255),
    "subclass": (lambda: Ending(rescaled(network())), 1),
    "callable with layers": (lambda: (lambda model: lambda x: ops.softmax(model(x)))(network()), 1),
}


@pytest.mark.samples(2)
@pytest.mark.parametrize("twin", TWINS)
def test_twins_have_the_same_maps(twin):
    make, scale = TWINS[twin]
    x = np.round(255 * images(2, 9, 7, 2)) / 255
    for kind in (explain.GradCAM, explain.EigenCAM):
        np.testing.assert_allclose(kind(make())(scale * x, [3, 1]), kind(network())(x, [3, 1]), atol=1e-5)
    np.testing.assert_allclose(
        explain.LayerCAM(make(), layer="first")(scale * x), explain.LayerCAM(network(), layer="first")(x), atol=1e-5
    )


def test_one_sigmoid_has_two_classes():
    x, model = images(2, 9, 7, 2), network("sigmoid", units=1)
    two = network(units=2)
    for variable, own in zip(two.weights[:-2], model.weights[:-2], strict=True):
        variable.assign(own)
    kernel = ops.convert_to_numpy(model.weights[-2])
    two.weights[-2].assign(np.concatenate([-kernel, kernel], axis=1))
    for target in (0, 1, None):
        np.testing.assert_allclose(explain.GradCAM(model)(x, target), explain.GradCAM(two)(x, target), atol=1e-6)
    assert explain.GradCAM(model)(x, 0).max() > 1e-3
    with pytest.raises(ValueError, match="class ids between 0 and 1; received values between 2 and 2"):
        explain.GradCAM(model)(x, 2)


def test_maps_of_one_of_several_outputs_are_of_what_leads_to_it():
    x, model = images(2, 9, 7, 2), two_outputs()
    np.testing.assert_allclose(explain.GradCAM(model, output="scores")(x), explain.GradCAM(network())(x), atol=1e-6)
    late = explain.GradCAM(model, output="other", layer="late")(x, 1)
    np.testing.assert_allclose(explain.GradCAM(model, output="other")(x, 1), late)
    with pytest.raises(ValueError, match=r"name one of the outputs of .*'other'"):
        explain.GradCAM(model)(x)


@pytest.mark.samples(1)
@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", CAMS, ids=named)
def test_served_models_have_the_maps_of_live_ones(kind, tmp_path):
    import tensorflow as tf

    from keras_capsvit import serving

    model, x, ids = network("softmax"), images(2, 9, 7, 2), np.array([3, 1])
    expected = kind(model)(x, ids)
    serving.export(model, tmp_path / "ours", explainers={"cam": kind(model)})
    served = serving.load(tmp_path / "ours")
    np.testing.assert_allclose(served.explain(x, ids, endpoint="cam")["maps"], expected, atol=1e-5)
    np.testing.assert_allclose(served.explain(x, endpoint="cam")["maps"], kind(model)(x), atol=1e-5)
    np.testing.assert_allclose(kind(served)(x, ids), expected, atol=1e-5)
    model.export(tmp_path / "foreign", verbose=False)
    foreign = tf.saved_model.load(tmp_path / "foreign")
    np.testing.assert_allclose(kind(foreign)(x, ids), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_maps_of_tokens():
    import tensorflow as tf

    model, x = vit(), images(2, 12, 12, 3)
    both = keras.Model(model.inputs, [model.get_layer("norm1a").output, model.output])
    with tf.GradientTape() as tape:
        tokens, scores = both(x)
        score = tf.gather(scores, [3, 1], axis=1, batch_dims=1)
    values, gradient = (t.numpy()[:, 1:].reshape(2, 3, 3, 8) for t in (tokens, tape.gradient(score, tokens)))
    for kind in CAMS:
        expected = np.stack([replica(kind, *each) for each in zip(values, gradient, score.numpy(), strict=True)])
        np.testing.assert_allclose(kind(model)(x, [3, 1]), enlarged(expected, (12, 12)), rtol=1e-4, atol=1e-5)
    nested = keras.Sequential([keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), model, layers.Softmax()])
    np.testing.assert_allclose(explain.GradCAM(nested)(255 * x), explain.GradCAM(model)(x), atol=1e-5)


def test_classifier_of_1x1_convolutions_behind_the_pooling():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="last")(inputs)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    model = keras.Model(inputs, layers.Flatten()(layers.Conv2D(5, 1, name="classifier")(x)))
    x = images(2, 8, 8, 3)
    maps = explain.GradCAM(model)(x)
    np.testing.assert_array_equal(maps, explain.GradCAM(model, layer="last")(x))
    assert maps.std(axis=(1, 2)).min() > 1e-4
    with pytest.raises(ValueError, match="larger than 1x1, or all maps are constant; 'classifier'"):
        explain.GradCAM(model, layer="classifier")


@pytest.mark.tensorflow
@pytest.mark.slow
def test_votes_of_capsules_are_no_map(tmp_path):
    import tensorflow as tf

    model, x = CapsNet((16, 16, 3), 3, filters=8, num_types=2, kernel_size=5), images(2, 16, 16, 3)
    assert taps.feature_map(taps.scores(model)).grid == (4, 4)
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    assert taps.feature_map(taps.scores(served)).grid == (4, 4)
    np.testing.assert_allclose(explain.EigenCAM(model)(x), explain.EigenCAM(served)(x), atol=1e-4)


def test_channels_in_front_are_refused():
    inputs = keras.Input((8, 10, 3))
    x = layers.ZeroPadding2D(1, data_format="channels_first", name="padded")(layers.Permute((3, 1, 2))(inputs))
    x = layers.ReLU(name="activated")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten(data_format="channels_last")(x)))
    for layer in (None, "padded", "activated"):
        with pytest.raises(ValueError, match=r"'(padded|activated)' of .*, with channels in front \(data_format="):
            explain.GradCAM(model, layer=layer)
    again = layers.ZeroPadding2D(1, data_format="channels_last", name="behind")(layers.Permute((2, 3, 1))(x))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(again)))
    assert explain.GradCAM(model)(images(2, 8, 10, 3)).shape == (2, 8, 10)


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_the_exponential_of_large_scores_changes_the_scale_alone(size):
    model, x = network(), images(2, 9, 7, 2)
    scores, expected = ops.convert_to_numpy(model(x)), explain.GradCAMPlusPlus(model)(x, 2)
    model.get_layer("scores").bias.assign([size] * 4)
    maps = explain.GradCAMPlusPlus(model)(x, 2)
    (highest, before), score = (each.max((1, 2), keepdims=True) for each in (maps, expected)), scores[:, 2, None, None]
    np.testing.assert_allclose(maps / highest, expected / before, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(highest, before * np.exp(np.sign(size) * 60 - score), rtol=1e-4)


def test_smoothed_maps_average_those_of_noisy_images():
    explainer, x = explain.GradCAM(network(), batch_size=4), images(3, 9, 7, 2)
    np.testing.assert_allclose(explain.SmoothGrad(explainer, 3, noise=0)(x), explainer(x), atol=1e-6)
    ranges = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)
    noise = np.random.default_rng(5).standard_normal((2, 9, 7, 2), "float32")
    expected = np.mean([explainer(x + 0.2 * ranges * each, 1) for each in noise], axis=0)
    np.testing.assert_allclose(explain.SmoothGrad(explainer, 2, noise=0.2, seed=5)(x, 1), expected, atol=1e-6)


def test_sizes_that_a_model_leaves_open():
    keras.utils.set_random_seed(1)
    convolution, head = layers.Conv2D(4, 3, activation="relu"), layers.Dense(3)
    convolution.build((None, None, None, 2))

    def model(*size):
        inputs = keras.Input((*size, 2))
        return keras.Model(inputs, head(layers.GlobalAveragePooling2D()(convolution(inputs))))

    explainer = explain.GradCAM(model(None, None))
    for size in ((8, 6), (7, 9), (8, 6)):
        x = images(2, *size, 2)
        np.testing.assert_allclose(explainer(x, 1), explain.GradCAM(model(*size))(x, 1), atol=1e-6)


def test_mixed_precision():
    exact, x = network(), images(2, 9, 7, 2)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    for kind in CAMS:
        maps, expected = kind(model)(x, 1), kind(exact)(x, 1)
        assert maps.dtype == "float32"
        assert np.abs(maps - expected).max() < 0.1 * np.abs(expected).max()


def test_says_what_is_wrong():
    model, x = network(), images(2, 9, 7, 2)
    explainer = explain.GradCAM(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"images of shape \(None, 9, 7, 2\), .*; received \(2, 9, 8, 2\)"):
            explainer(images(2, 9, 8, 2))
        explainer(x)
    with pytest.raises(ValueError, match=r"has no tap 'third'; it has .* and the layers .*'second'"):
        explain.GradCAM(model, layer="third")
    with pytest.raises(ValueError, match=r"layer with an output \(b, h, w, c\) or tokens .*'scores' returns"):
        explain.GradCAM(model, layer="scores")
    with pytest.raises(ValueError, match=r"feature map \(b, h, w, c\) larger than 1x1, or tokens"):
        explain.GradCAM(keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(2)]))
    with pytest.raises(ValueError, match=r"Several ids per image, of shape \(batch, k\), are taken by LRP, CLRP"):
        explainer(x, [[0, 1], [2, 3]])


@pytest.mark.tensorflow
def test_score_cam_of_models_that_are_not_functional(monkeypatch):
    pytest.importorskip("tf_keras_vis")
    x = images(2, 9, 7, 2)
    expected = explain.ScoreCAM(network())(x)
    sequential = keras.Sequential([network(), layers.Softmax()])
    np.testing.assert_allclose(explain.ScoreCAM(sequential)(x), expected, atol=1e-5)
    np.testing.assert_allclose(explain.ScoreCAM(rescaled(network("softmax")))(255 * x), expected, atol=1e-5)
    model = network()
    np.testing.assert_allclose(explain.ScoreCAM(lambda x: model(x))(x), explain.ScoreCAM(model)(x), atol=1e-5)
    monkeypatch.setitem(sys.modules, "tf_keras_vis.scorecam", None)
    with pytest.raises(ImportError, match="pip install tf-keras-vis"):
        explain.ScoreCAM(network())


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="says that TensorFlow is needed")
def test_tensorflow_is_asked_for():
    with pytest.raises(ValueError, match="needs the tensorflow backend"):
        explain.ScoreCAM(network())
