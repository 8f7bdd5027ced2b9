"""Models of ``keras.applications`` and keras-hub inside a user's own model with ``Rescaling`` and a softmax."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_capsvit import attacks, explain, serving, taps

pytestmark = pytest.mark.tensorflow
CLASSES = 3


def application(name, size=32, **settings):
    return lambda: getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(size, size, 3), **settings
    )


def hub(name, size=16, patch=4, **settings):
    def build():
        keras_hub = pytest.importorskip("keras_hub")
        sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "patch_size": patch, "image_shape": (size, size, 3)}
        return getattr(keras_hub.models, name)(**sizes, **settings)

    return build


BACKBONES = {
    "MobileNetV3Small": application("MobileNetV3Small", include_preprocessing=False),
    "EfficientNetV2B0": application("EfficientNetV2B0", include_preprocessing=False),
    "ConvNeXtTiny": application("ConvNeXtTiny", include_preprocessing=False),
    "DenseNet121": application("DenseNet121"),
    "ViT": hub("ViTBackbone", mlp_dim=16),
    "DeiT": hub("DeiTBackbone", intermediate_dim=16),
    "DINOv2": hub("DINOV2Backbone", intermediate_dim=16, num_register_tokens=2, position_embedding_shape=(16, 16, 3)),
}
# Class, distillation and register tokens.
PREFIX = {"ViT": 1, "DeiT": 2, "DINOv2": 3}


def brought(backbone):
    """The user's model, pixels in [0, 255] → probabilities; and its twin without nesting, [0, 1] → logits."""
    keras.utils.set_random_seed(0)
    head = layers.Dense(CLASSES, name="head")
    images = keras.Input(backbone.inputs[0].shape[1:])
    x = _features(backbone, images)
    twin = keras.Model(images, head(x))
    _as_if_trained(twin)
    pixels = keras.Input(images.shape[1:])
    probabilities = layers.Dense(CLASSES, activation="softmax", name="classifier")
    inner = keras.Model(images, probabilities(x), name="inner")
    probabilities.set_weights(head.get_weights())
    return keras.Model(pixels, inner(layers.Rescaling(1 / 255)(pixels)), name="outer"), twin


def _features(backbone, images):
    keyed = isinstance(backbone.input, dict)
    x = backbone({next(iter(backbone.input)): images} if keyed else images)
    return layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else x[:, 0]


def _as_if_trained(model):
    """Weights at which classes differ and batch normalisation is not the identity."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("moving_variance", "gamma"):
            variable.assign(random.uniform(0.8, 1.2, variable.shape))
        elif variable.name in ("bias", "beta", "moving_mean") or "token" in variable.name:
            variable.assign(random.normal(scale=0.1, size=variable.shape))


def close(received, expected, tolerance=2e-3):
    received, expected = (ops.convert_to_numpy(each).astype("float64") for each in (received, expected))
    assert np.abs(expected).max() > 0
    assert np.abs(received - expected).max() <= tolerance * np.abs(expected).max()


def check(name, tmp_path):
    model, twin = brought(BACKBONES[name]())
    x = np.random.default_rng(1).uniform(size=(2, *model.input_shape[1:])).astype("float32")
    pixels, y = 255 * x, np.array([0, 2])
    close(taps.scores(model)(pixels), twin(x))

    # Signed maps, because of an untrained network's Grad-CAM nothing may be positive; and a rule without small
    # denominators, which would make rounding large.
    close(explain.HiResCAM(model)(pixels, 1), explain.HiResCAM(twin)(x, 1))
    close(explain.LRP(model, channels=True)(pixels, 1), explain.LRP(twin, channels=True)(x, 1))
    if name in PREFIX:
        prefix, grid = taps.tokens(taps.scores(model))
        assert prefix == PREFIX[name] and grid == (4, 4)
        close(explain.AttentionRollout(model)(pixels), explain.AttentionRollout(twin)(x))
        attribution = explain.TransformerAttribution(model)(pixels, 1)
        close(attribution, explain.TransformerAttribution(twin)(x, 1))

    settings = {"step_size": 0.01, "steps": 2, "random_start": False}
    adversarial = attacks.PGD(0.02, **settings)(twin, x, y)
    own = attacks.PGD(255 * 0.02, **{**settings, "step_size": 2.55}, bounds=(0, 255))(model, pixels, y)
    # Signs of gradients near 0 fall either way.
    assert np.quantile(np.abs(own / 255 - adversarial), 0.97) < 1e-4

    serving.export(model, tmp_path, explainers={"cam": explain.HiResCAM(model)})
    served = serving.load(tmp_path)
    close(served(pixels), model(pixels), 1e-5)
    close(taps.scores(served)(pixels), twin(x))
    close(served.explain(pixels, 1, endpoint="cam")["maps"], explain.HiResCAM(twin)(x, 1))
    image = tf.io.encode_png(np.rint(pixels[0]).astype("uint8"))
    close(served.run("serve_bytes", encoded=[image.numpy()])["outputs"], model(np.rint(pixels[:1])), 1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in PREFIX])
def test_applications(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.peers
@pytest.mark.parametrize("name", PREFIX)
def test_keras_hub(name, tmp_path):
    check(name, tmp_path)
