"""Networks of keras.applications and keras-hub: pixels in [0, 1], published sizes, taps, reload."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import DenseNet, SwinTransformer, attacks, taps

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.fixture
def swin():
    """Small: stages of 8x8 and 4x4 tokens, windows of 4x4."""
    pytest.importorskip("keras_hub")
    size = {"width": 8, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}
    return SwinTransformer("T/4", input_shape=(32, 32, 3), num_classes=5, mean=MEAN, std=STD, **size)


@pytest.fixture
def x():
    return np.random.default_rng(0).uniform(size=(3, 32, 32, 3)).astype("float32")


def replicate(network, head, x):
    """Logits from the parts: pixels normalised here, the network of others, the mean of its features, the head."""
    features = network.predict((x - np.array(MEAN)) / np.array(STD), verbose=0)
    kernel, bias = head.get_weights()
    return features.reshape(len(x), -1, features.shape[-1]).mean(axis=1) @ kernel + bias


@pytest.mark.long
def test_densenet_is_the_one_of_keras(x):
    model = DenseNet(input_shape=(32, 32, 3), mean=MEAN, std=STD)
    assert trainable(model) == 7_978_856  # as timm's densenet121
    theirs = keras.applications.DenseNet121(weights=None, include_top=False, input_shape=(32, 32, 3))
    theirs.set_weights(model.get_weights()[:-2])
    expected = replicate(theirs, model.get_layer("predictions"), x)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-3, atol=1e-4)
    assert taps.names(model) == ["features", "logits"]
    assert model.taps["features"].shape == (None, 1, 1, 1024)


@pytest.mark.slow
@pytest.mark.peers
def test_swin_has_the_published_size_and_is_reloaded(swin, x, tmp_path):
    assert trainable(SwinTransformer()) == 28_288_354
    assert taps.names(swin) == ["features", "logits"]
    features = ops.convert_to_numpy(taps.tap(swin, "features")(x))
    assert features.shape == (3, 4, 4, 16)
    logits = swin.predict(x, verbose=0)
    expected = replicate(swin.get_layer("backbone"), swin.get_layer("head"), x)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    adversarial = attacks.FGSM(0.1)(swin, x, logits.argmax(axis=1))
    assert np.abs(adversarial - x).max() == pytest.approx(0.1, abs=1e-6)
    swin.save(tmp_path / "swin.keras")
    again = keras.saving.load_model(tmp_path / "swin.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), logits)
    assert again.get_config() == swin.get_config()


@pytest.mark.slow
@pytest.mark.peers
def test_swin_learns(swin, x):
    swin.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = [swin.train_on_batch(x, np.array([0, 1, 4])) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_says_what_is_wrong(monkeypatch):
    with pytest.raises(ValueError, match=r"depth must be one of \(121, 169, 201\); received 20"):
        DenseNet(20)
    with pytest.raises(ValueError, match="smallest legal size is 32x32"):
        DenseNet(input_shape=(28, 32, 3))
    with pytest.raises(ValueError, match="mean and std are given together"):
        DenseNet(mean=MEAN)
    with pytest.raises(ValueError, match="multiples of 224; received images of 224x192"):
        SwinTransformer(input_shape=(224, 192, 3))
    with pytest.raises(ValueError, match=r"one entry per stage; received \(1, 1\) and \(3, 6, 12, 24\)"):
        SwinTransformer(depths=(1, 1))
    with pytest.raises(ValueError, match="window_size must be an integer from 1"):
        SwinTransformer(window_size=0)
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match="pip install keras-hub"):
        SwinTransformer()
