"""AlexNet and GoogLeNet, against loops in NumPy, published counts, and torchvision."""

import importlib.util
import math
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import AlexNet, GoogLeNet, load_weights_from, taps
from keras_capsvit.layers import AveragePoolTo
from keras_capsvit.models import flops
from keras_capsvit.models.published import published_names, torch_shape

SMALL = {
    "alexnet": lambda size=(70, 91, 3), **kwargs: AlexNet(size, 3, filters=2, units=5, **kwargs),
    "googlenet": lambda size=(33, 46, 3), **kwargs: GoogLeNet(size, 3, filters=4, **kwargs),
}


def arrays_of(model):
    """Random values for every weight, named and laid out as torchvision has them."""
    random, arrays = np.random.default_rng(0), {}
    for name, variable in published_names(model).items():
        name = name.replace("linear.", "fc.").replace("_branch", ".branch")
        values = random.normal(scale=0.5, size=torch_shape(variable))
        arrays[name] = (np.exp(values) if name.endswith("running_var") else values).astype("float32")
    return arrays


def convolved(x, kernel, strides=1, pad=0):
    """A map ``(c, h, w)`` and a kernel ``(out, in, k, k)``."""
    x, size = np.pad(x, ((0, 0), (pad, pad), (pad, pad))), kernel.shape[-1]
    rows, columns = (range(0, pixels - size + 1, strides) for pixels in x.shape[1:])
    windows = [[np.tensordot(kernel, x[:, r : r + size, c : c + size], 3) for c in columns] for r in rows]
    return np.array(windows).transpose(2, 0, 1)


def max_pooled(x, size, strides, pad=0, up=False):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    rounded = math.ceil if up else math.floor
    rows, columns = (rounded((pixels - size) / strides) + 1 for pixels in x.shape[1:])
    starts = [[(strides * r, strides * c) for c in range(columns)] for r in range(rows)]
    return np.array([[x[:, r : r + size, c : c + size].max((1, 2)) for r, c in row] for row in starts]).transpose(
        2, 0, 1
    )


def averaged(x, cells):
    """Means over ``cells x cells`` windows of a map ``(c, h, w)``."""

    def windows(pixels):
        return [slice(k * pixels // cells, -(-(k + 1) * pixels // cells)) for k in range(cells)]

    rows, columns = map(windows, x.shape[1:])
    return np.array([[x[:, r, c].mean((1, 2)) for c in columns] for r in rows]).transpose(2, 0, 1)


def alexnet(x, arrays):
    for index, strides, pad in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        x = convolved(x, arrays[f"features.{index}.weight"], strides, pad)
        x = np.maximum(x + arrays[f"features.{index}.bias"][:, None, None], 0)
        x = max_pooled(x, 3, 2) if index in (0, 3, 10) else x
    features, x = x, averaged(x, 6).ravel()
    for index in (1, 4, 6):
        x = arrays[f"classifier.{index}.weight"] @ x + arrays[f"classifier.{index}.bias"]
        x = np.maximum(x, 0) if index < 6 else x
    return features, x


def googlenet(x, arrays):
    def conv(x, name, strides=1):
        kernel = arrays[f"{name}.conv.weight"]
        x = convolved(x, kernel, strides, kernel.shape[-1] // 2)
        mean, variance, scale, offset = (
            arrays[f"{name}.bn.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return np.maximum((x - mean) / np.sqrt(variance + 1e-3) * scale + offset, 0)

    def inception(x, name):
        return np.concatenate(
            [
                conv(x, f"{name}.branch1"),
                conv(conv(x, f"{name}.branch2.0"), f"{name}.branch2.1"),
                conv(conv(x, f"{name}.branch3.0"), f"{name}.branch3.1"),
                conv(max_pooled(x, 3, 1, pad=1), f"{name}.branch4.1"),
            ]
        )

    x = max_pooled(conv(x, "conv1", 2), 3, 2, up=True)
    x = max_pooled(conv(conv(x, "conv2"), "conv3"), 3, 2, up=True)
    for stage, pool in (("3ab", 3), ("4abcde", 2), ("5ab", None)):
        for letter in stage[1:]:
            x = inception(x, f"inception{stage[0]}{letter}")
        x = max_pooled(x, pool, 2, up=True) if pool else x
    return x, arrays["fc.weight"] @ x.mean((1, 2)) + arrays["fc.bias"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "replica"), [("alexnet", alexnet), ("googlenet", googlenet)])
def test_computes_what_loops_compute(name, replica, tmp_path):
    mean, std = (0.2, 0.5, 0.6), (0.3, 0.2, 0.4)
    model = SMALL[name](mean=mean, std=std)
    arrays = arrays_of(model)
    auxiliary = {"aux1.fc1.weight": np.zeros((2, 2), "float32"), "aux2.conv.bn.bias": np.zeros(2, "float32")}
    np.savez(tmp_path / "weights.npz", **arrays, **auxiliary)
    load_weights_from(model, tmp_path / "weights.npz", skip="aux*")
    images = np.random.default_rng(1).uniform(size=(2, *model.input_shape[1:])).astype("float32")
    expected = [replica(((image - mean) / std).transpose(2, 0, 1), arrays) for image in images]
    features, logits = taps.tap(model, ["features", "logits"])(images)
    scale = np.abs(expected[0][0]).max()
    maps = [each.transpose(1, 2, 0) for each, _ in expected]
    np.testing.assert_allclose(features, maps, atol=1e-4 * scale, rtol=1e-4)
    rows = [each for _, each in expected]
    np.testing.assert_allclose(logits, rows, atol=1e-4 * np.abs(rows).max(), rtol=1e-4)
    assert np.ptp(rows, axis=0).max() > 1e-2 * np.abs(rows).max()  # the logits depend on the images
    np.testing.assert_allclose(model(images), logits, rtol=1e-5, atol=1e-5 * np.abs(rows).max())


def test_names_are_those_of_torchvision():
    names = arrays_of(SMALL["alexnet"]())
    assert list(names)[:2] == ["features.0.weight", "features.0.bias"]
    assert names["classifier.1.weight"].shape == (5, 6 * 6 * 8)
    assert len(names) == 16
    names = arrays_of(SMALL["googlenet"]())
    assert {"conv1.conv.weight", "conv3.bn.running_var", "inception3a.branch1.conv.weight", "fc.bias"} < set(names)
    assert {"inception4e.branch2.0.bn.bias", "inception5b.branch4.1.conv.weight"} < set(names)
    assert len(names) == 57 * 5 + 2


@pytest.mark.slow
def test_published_sizes():
    model = AlexNet()
    assert model.count_params() == 61_100_840
    assert model.taps["features"].shape == (None, 6, 6, 256)
    assert flops(model) == 714_188_480  # 0.71 G
    model = GoogLeNet()
    assert sum(math.prod(variable.shape) for variable in model.trainable_variables) == 6_624_904
    assert model.taps["features"].shape == (None, 7, 7, 1024)
    assert flops(model) == 1_498_376_192  # 1.5 G


@pytest.mark.slow
def test_sizes_of_a_small_googlenet():
    # Half of the paper's channels.
    model = GoogLeNet((15, 15, 1), 10, filters=32)
    kernels = 7 * 7 * 1 * 32 + 32 * 32 + 9 * 32 * 96
    channels = 32 + 32 + 96
    inputs = 96
    table = [
        *((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64)),
        *((160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64)),
        *((256, 160, 320, 32, 128, 128), (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
    ]
    for row in table:
        branch1, reduced3, branch2, reduced5, branch3, branch4 = (each // 2 for each in row)
        kernels += inputs * (branch1 + reduced3 + reduced5 + branch4) + 9 * (reduced3 * branch2 + reduced5 * branch3)
        channels += branch1 + reduced3 + branch2 + reduced5 + branch3 + branch4
        inputs = branch1 + branch2 + branch3 + branch4
    assert inputs == 512
    assert model.count_params() == kernels + 4 * channels + 513 * 10


@pytest.mark.slow
@pytest.mark.parametrize("size", [15, 47])
def test_googlenet_takes_images_of_any_size(size):
    model = GoogLeNet((size, size + 1, 1), 2, filters=1)
    pixels = [math.ceil(each / 2) for each in (size, size + 1)]
    for pool in (3, 3, 3, 2):
        pixels = [math.ceil((each - pool) / 2) + 1 for each in pixels]
    assert model.taps["features"].shape == (None, *pixels, 6 + 6 + 2 + 2)


@pytest.mark.parametrize(("pixels", "cells"), [((7, 9), (3, 6)), ((6, 4), (6, 6)), ((2, 5), (1, 7)), ((8, 3), (4, 1))])
def test_average_pooling_to_a_size(pixels, cells):
    x = np.random.default_rng(0).normal(size=(2, *pixels, 3)).astype("float32")
    layer = AveragePoolTo(cells)
    rows, columns = (
        [slice(k * size // count, -(-(k + 1) * size // count)) for k in range(count)]
        for size, count in zip(pixels, cells, strict=True)
    )
    expected = np.stack([np.stack([x[:, r, c].mean((1, 2)) for c in columns], 1) for r in rows], 1)
    assert expected.shape == layer.compute_output_shape(x.shape) == (2, *cells, 3)
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    assert AveragePoolTo.from_config(layer.get_config()).size == cells


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", pytest.param("googlenet", marks=pytest.mark.long)])
def test_trains_and_reloads(name, tmp_path):
    model = SMALL[name](dropout=0.3, mean=(0.5,) * 3, std=(0.2,) * 3)
    x = np.random.default_rng(0).uniform(size=(2, *model.input_shape[1:])).astype("float32")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()
    model.train_on_batch(x, np.array([0, 1]))
    assert any(np.abs(old - new).max() > 0 for old, new in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)
    assert taps.names(loaded) == ["features", "logits"]


def test_says_what_is_wrong():
    for make, message in [
        (lambda: AlexNet((62, 63, 3), 3), "Images of 62x63 are too small .* smallest legal size is 63x63"),
        (lambda: GoogLeNet((20, 14, 3), 3), "Images of 20x14 are too small .* smallest legal size is 15x15"),
        (lambda: AlexNet(dropout=1), r"dropout must be a number .*; received 1"),
        (lambda: GoogLeNet(aux_logits=False), "GoogLeNet, which are .*; received the unknown 'aux_logits'"),
        (lambda: AlexNet(unit=3), "Did you mean 'units'"),
        (lambda: AveragePoolTo(0), r"size must be .*; received 0"),
        (lambda: AveragePoolTo(2)(keras.Input((None, 3, 1))), "needs images of known size; received shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """Folder with torchvision's weights and outputs."""
    for needed in ("torch", "torchvision", "safetensors"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
    folder = tmp_path_factory.mktemp("peers")
    command = [sys.executable, pathlib.Path(__file__).parent / "convnets_of_peers.py", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.peers
@pytest.mark.parametrize(("name", "make"), [("alexnet", AlexNet), ("googlenet", GoogLeNet)])
def test_logits_equal_those_of_torchvision(peers, name, make):
    with np.load(peers / f"{name}.npz") as stored:
        outputs = dict(stored)
    for index in range(2):
        images, expected = outputs[f"images_{index}"], outputs[f"logits_{index}"]
        model = make(images.shape[1:])
        load_weights_from(model, peers / f"{name}.safetensors", skip="aux*")
        error = np.abs(ops.convert_to_numpy(model(images)) - expected).max()
        assert error < 1e-4 * np.abs(expected).max()
        assert np.ptp(expected, axis=0).max() > 1e-2 * np.abs(expected).max()
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    assert trained == outputs["parameters"]
