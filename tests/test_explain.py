import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_capsvit import explain


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
