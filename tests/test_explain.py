import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_capsvit import explain, taps


def test_map_is_the_head_average_of_the_attention_of_the_predicted_class(small_model, resized):
    model = small_model((13, 15, 1))
    x = np.pad(resized(5, 13), ((0, 0), (0, 0), (1, 1), (0, 0)))
    maps = explain.GraphAttention(model, batch_size=2)(x)
    assert maps.shape == (5, 13, 15)
    lengths, attention = (np.asarray(t) for t in taps.tap(model, ["lengths", "attention"])(x))
    predicted = lengths.argmax(-1)
    np.testing.assert_allclose(maps, explain.GraphAttention(model)(x, target=predicted), atol=1e-6)
    node_maps = attention.mean(axis=3)
    np.testing.assert_allclose(node_maps.sum(axis=(1, 2)), 1, atol=1e-5)
    for target in (3, np.array([3] * 5)):
        expected = node_maps[..., 3]
        found = explain.GraphAttention(model)(x, target=target)
        assert found.min() >= expected.min() - 1e-6
        assert found.max() <= expected.max() + 1e-6
        peaks = [np.unravel_index(m.argmax(), m.shape) for m in found]
        nodes = [np.unravel_index(m.argmax(), m.shape) for m in expected]
        for peak, node in zip(peaks, nodes, strict=True):
            scale = np.array(found.shape[1:]) / expected.shape[1:]
            assert np.all(np.abs((np.array(peak) + 0.5) / scale - (np.array(node) + 0.5)) <= 0.75)


def test_grid_of_the_input_size_is_the_attention_itself(small_model, resized):
    model = small_model((6, 6, 1), kernel_size=1, strides=(1, 1))
    x = resized(3, 6)
    attention = np.asarray(taps.tap(model, "attention")(x))
    np.testing.assert_allclose(explain.GraphAttention(model)(x, target=2), attention.mean(axis=3)[..., 2], atol=1e-6)


def test_says_what_is_wrong(small_model, resized):
    explainer = explain.GraphAttention(small_model())
    x = resized(3, 12)
    with pytest.raises(ValueError, match="class ids between 0 and 9; received values between 10 and 10"):
        explainer(x, target=10)
    with pytest.raises(ValueError, match=r"ids of shape \(3,\); received shape \(2,\)"):
        explainer(x, target=[1, 2])
    with pytest.raises(ValueError, match=r"channels\); received \(12, 12, 1\)"):
        explainer(x[0])
    with pytest.raises(
        ValueError, match=r"with the taps 'lengths' and 'attention'; received a model that declares \[\]"
    ):
        explain.GraphAttention(lambda x: x)
    assert explainer(x[:0]).shape == (0, 12, 12)


@pytest.mark.slow
def test_graph_attention_of_a_network_inside_another(small_model, resized):
    inner, x = small_model(), resized(3, 12)
    expected = explain.GraphAttention(inner)(x)
    for last in ([], [layers.Softmax()]):
        outer = keras.Sequential([keras.Input((12, 12, 1)), layers.Rescaling(1 / 255), inner, *last])
        explainer = explain.GraphAttention(outer)
        np.testing.assert_allclose(explainer(255 * x), expected, atol=1e-6)
        np.testing.assert_allclose(explainer(255 * x, 3), explain.GraphAttention(inner)(x, 3), atol=1e-6)
    with pytest.raises(ValueError, match=r"class scores are the lengths .* has other layers behind these"):
        explain.GraphAttention(keras.Sequential([keras.Input((12, 12, 1)), inner, layers.Dense(10)]))


@pytest.mark.slow
@pytest.mark.tensorflow
def test_graph_attention_of_a_served_network(small_model, resized, tmp_path):
    from keras_capsvit import serving

    model, x = small_model(), resized(3, 12)
    serving.export(model, tmp_path, taps=["attention", "lengths"])
    served = serving.load(tmp_path)
    for target in (None, 3):
        maps = explain.GraphAttention(served)(x, target)
        np.testing.assert_allclose(maps, explain.GraphAttention(model)(x, target), atol=1e-6)


def convolutions():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", name="first"),
            layers.Conv2D(3, 3, activation="relu", name="second"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ],
        name="convolutions",
    )


def test_feature_maps_of_nested_models_and_backbones():
    model, x = convolutions(), np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype("float32")
    outer = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), model, layers.Softmax()])
    backbone = keras.Model(model.inputs, model.get_layer("second").output)
    for layer in ("first", "second"):
        values = ops.convert_to_numpy(keras.Model(model.inputs, model.get_layer(layer).output)(x)).mean(-1)
        expected = ops.image.resize(values[..., None], (8, 8), data_format="channels_last")[..., 0]
        expected = ops.convert_to_numpy(expected)
        for name in (layer, f"convolutions/{layer}"):
            np.testing.assert_allclose(explain.FeatureMapAttention(outer, name)(255 * x), expected, atol=1e-6)
        np.testing.assert_allclose(explain.FeatureMapAttention(backbone, layer)(x), expected, atol=1e-6)
    np.testing.assert_allclose(explain.FeatureMapAttention(outer)(255 * x), expected, atol=1e-6)
    np.testing.assert_allclose(explain.FeatureMapAttention(backbone)(x), expected, atol=1e-6)


@pytest.mark.tensorflow
def test_feature_maps_of_a_foreign_saved_model(tmp_path):
    import tensorflow as tf

    model, x = convolutions(), np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype("float32")
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    maps = explain.FeatureMapAttention(served)(x)
    np.testing.assert_allclose(maps, explain.FeatureMapAttention(model)(x), atol=1e-6)
