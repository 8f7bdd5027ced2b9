import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import AlexNet, DeiT, taps
from keras_capsvit.layers import StandardizedConv2D
from keras_capsvit.models.published import published_names
from keras_capsvit.models.residual import PadChannels
from keras_capsvit.models.resnet import ResNet18, ResNet20, ResNet50
from keras_capsvit.models.weights import load_weights


def convolved(x, kernel, strides=1):
    """One image, padded by half a kernel on every side."""
    half = kernel.shape[0] // 2
    padded = np.pad(x, ((half, half), (half, half), (0, 0)))
    size = kernel.shape[0]
    rows, columns = (range(0, n, strides) for n in x.shape[:2])
    return np.array(
        [[np.tensordot(padded[r : r + size, c : c + size], kernel, 3) for c in columns] for r in rows],
    )


class Replica:
    """A residual network in plain NumPy, one image at a time, from arrays by their published names."""

    def __init__(self, arrays):
        self.arrays = arrays

    def conv(self, x, name, strides=1):
        return convolved(x, self.arrays[f"{name}.weight"], strides)

    def norm(self, x, name):
        mean, variance, scale, offset = (
            self.arrays[f"{name}.{each}"] for each in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + offset

    def block(self, x, name, strides):
        y = np.maximum(self.norm(self.conv(x, f"{name}.conv1", strides), f"{name}.bn1"), 0)
        y = self.norm(self.conv(y, f"{name}.conv2"), f"{name}.bn2")
        if f"{name}.shortcut.0.weight" in self.arrays:
            x = self.norm(self.conv(x, f"{name}.shortcut.0", strides), f"{name}.shortcut.1")
        elif strides > 1:
            quarter = y.shape[-1] // 4
            kept, x = x[::2, ::2], np.zeros_like(y)
            x[..., quarter : quarter + kept.shape[-1]] = kept
        return np.maximum(x + y, 0)

    def features(self, x, stages, depth):
        x = np.maximum(self.norm(self.conv(x, "conv1"), "bn1"), 0)
        for stage in range(1, stages + 1):
            for block in range(depth):
                x = self.block(x, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
        return x

    def logits(self, x):
        return x @ self.arrays["linear.weight"] + self.arrays["linear.bias"]


def random_arrays(model):
    """Every variable of the model by its published name, with values that leave nothing at its start."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, variable in published_names(model).items():
        normal = rng.normal(scale=0.3, size=variable.shape)
        arrays[name] = (np.exp(normal) if name.endswith("running_var") else normal).astype("float32")
    return arrays


@pytest.fixture
def saved(tmp_path):
    """Write arrays as .npz; returns the path."""

    def save(arrays, name="weights.npz"):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return save


@pytest.fixture
def x():
    return np.random.default_rng(1).uniform(size=(2, 5, 8, 3)).astype("float32")


def parameters(model):
    trainable = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    return trainable, model.count_params() - trainable


def test_published_sizes():
    avg = ResNet20((32, 32, 3), 10, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert parameters(avg) == (269_722, 1_376)  # .27 M; He et al. 2016, Table 6
    assert avg.taps["features"].shape == (None, 8, 8, 64)
    # .89 M: instead of the dense layer of 650, a convolution, its normalisation, and the dense layer on 8x8x512
    fc = ResNet20((32, 32, 3), 10, head="fc")
    assert parameters(fc) == (269_722 - 650 + 294_912 + 1_024 + 327_690, 1_376 + 1_024)
    assert parameters(fc)[0] == 892_698
    resnet18 = ResNet18((32, 32, 3), 10)
    assert parameters(resnet18) == (11_173_962, 9_600)
    assert resnet18.taps["features"].shape == (None, 4, 4, 512)


@pytest.mark.slow
def test_published_sizes_for_imagenet():
    resnet18 = ResNet18((224, 224, 3), 1000, stem="7x7")
    assert parameters(resnet18)[0] == 11_689_512
    assert resnet18.taps["features"].shape == (None, 7, 7, 512)
    assert parameters(ResNet50())[0] == parameters(ResNet50(norm="group", weight_standardization=True))[0] == 25_557_032


def test_standardised_kernels():
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype("float32")
    layer = StandardizedConv2D(4, 3, padding="same", use_bias=False)
    layer.build(x.shape)
    kernel = ops.convert_to_numpy(layer.kernel)
    standard = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-6)
    np.testing.assert_allclose(layer(x), [convolved(image, standard) for image in x], atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("make", [ResNet18, ResNet50])
def test_group_norm_and_weight_standardisation_train_and_reload(make, tmp_path):
    x = np.random.default_rng(0).uniform(size=(2, 33, 21, 3)).astype("float32")
    model = make(
        (33, 21, 3),
        3,
        filters=4,
        stem="7x7",
        norm="group",
        weight_standardization=True,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.array([0, 1]), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    for arguments, message in [({"stem": "5x5"}, "stem must be one of"), ({"norm": "layer"}, "norm must be one of")]:
        with pytest.raises(ValueError, match=message):
            make((32, 32, 3), 3, **arguments)


@pytest.mark.parametrize("head", ["avg", "fc"])
def test_resnet20_computes_what_loops_compute(x, saved, head):
    mean, std = (0.2, 0.5, 0.6), (0.3, 0.2, 0.4)
    model = ResNet20(x.shape[1:], 3, filters=4, head=head, mean=mean, std=std)
    arrays = random_arrays(model)
    load_weights(model, saved(arrays))
    replica = Replica(arrays)
    expected = []
    for image in x:
        features = replica.features((image - mean) / std, stages=3, depth=3)
        if head == "avg":
            expected.append(replica.logits(features.mean((0, 1))))
        else:
            wide = replica.norm(replica.conv(features, "head_conv"), "head_bn")
            expected.append(replica.logits(np.maximum(wide, 0).ravel()))
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-4)


def test_resnet18_computes_what_loops_compute(x, saved):
    model = ResNet18(x.shape[1:], 3, filters=3)
    arrays = random_arrays(model)
    load_weights(model, saved(arrays))
    expected = [Replica(arrays).features(image, stages=4, depth=2) for image in x]
    np.testing.assert_allclose(taps.tap(model, "features")(x), expected, rtol=1e-4, atol=1e-4)
    logits = [Replica(arrays).logits(features.mean((0, 1))) for features in expected]
    np.testing.assert_allclose(model(x), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_batches_of_another_size_leave_memory_alone(fresh_process):
    # As strided convolutions, the shortcuts crashed the process here.
    code = """
import keras, numpy as np
from keras_capsvit import ResNet18
model = ResNet18((16, 16, 1), 10, filters=8)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
for size in 4 * [128] + 4 * [29]:
    loss = model.train_on_batch(np.ones((size, 16, 16, 1)), np.zeros(size, int))
print(np.isfinite(loss))
"""
    assert fresh_process(code).split()[-1] == "True"


def test_shortcut_without_parameters():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    result = ops.convert_to_numpy(PadChannels(8)(x))
    assert result.shape == PadChannels(8).compute_output_shape(x.shape) == (2, 3, 2, 8)
    np.testing.assert_array_equal(result[..., 2:5], x[:, ::2, ::2])
    np.testing.assert_array_equal(result[..., [0, 1, 5, 6, 7]], 0)


def test_says_what_is_wrong_with_the_model():
    for arguments, message in [
        ({"head": "max"}, r"head must be one of \('avg', 'fc'\); received 'max'"),
        ({"mean": (0.5, 0.5, 0.5)}, "together or not at all; received mean=.*std=None"),
        ({"mean": (0.5,), "std": (0.5,)}, "Expected 3 values each"),
        ({"mean": 0.5, "std": 0.5}, "Expected 3 values each"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0, 0.5)}, "positive std; received"),
        ({"mean": (0.5, np.nan, 0.5), "std": (0.5,) * 3}, "finite means"),
    ]:
        with pytest.raises(ValueError, match=message):
            ResNet20((8, 8, 3), 10, **arguments)


def test_published_names():
    names = published_names(ResNet20((32, 32, 3), 10))
    assert len(names) == 19 * 5 + 2
    assert names["conv1.weight"].shape == (3, 3, 3, 16)
    assert names["layer3.2.bn2.running_var"].shape == (64,)
    assert names["linear.weight"].shape == (64, 10)
    assert "layer2.0.shortcut.1.running_mean" in published_names(ResNet18((8, 8, 3), 10, filters=2))
    assert list(published_names(keras.Sequential([keras.Input((3,)), keras.layers.PReLU(name="slope")]))) == [
        "slope.alpha"
    ]


def test_weights_without_a_name_of_their_own_are_refused():
    dense = [keras.layers.Dense(3, use_bias=False, name=name) for name in ("fc_1", "fc1", "fc.1")]
    with pytest.raises(ValueError, match=r"alike also has 1 others: alike/fc\.1/kernel\. Save and load it as \.keras"):
        published_names(keras.Sequential([keras.Input((3,)), *dense], name="alike"))

    class Scaled(keras.Sequential):
        def __init__(self):
            super().__init__([keras.Input((3,)), keras.layers.Dense(3)], name="scaled")
            self.scale = self.add_weight(name="scale")

    with pytest.raises(ValueError, match=r"scaled also has 1 others: scaled/scale"):
        published_names(Scaled())


@pytest.mark.parametrize(
    "build",
    [
        lambda: AlexNet((70, 91, 3), 3, filters=2, units=5),
        lambda: DeiT("Ti/8", input_shape=(16, 16, 3), num_classes=3, depth=1),
    ],
)
def test_networks_with_dropout_and_tokens_are_set_whole(build, saved):
    model = build()
    arrays = random_arrays(model)
    load_weights(model, saved(arrays))
    assert len(arrays) == len(model.weights)
    for name, variable in published_names(model).items():
        np.testing.assert_array_equal(variable, arrays[name])


def test_everything_that_does_not_fit_is_listed_and_nothing_changes(saved):
    model = ResNet20((8, 8, 3), 10, filters=4)
    before = model.get_weights()
    arrays = random_arrays(model)
    del arrays["bn1.running_mean"]
    arrays["layer4.0.conv1.weight"] = np.zeros((3, 3, 4, 4), "float32")
    arrays["linear.weight"] = arrays["linear.weight"].T
    arrays["layer1.0.bn1.bias"][1] = np.nan
    arrays["layer1.0.bn2.bias"] = np.arange(4)
    arrays["layer1.0.bn1.running_var"][2] = -0.1
    with pytest.raises(ValueError, match=r"weights.npz does not fit resnet20: .*published_names\(model\)") as caught:
        load_weights(model, saved(arrays))
    for problem in [
        "bn1.running_mean is missing",
        "layer4.0.conv1.weight is left over",
        "linear.weight has shape (10, 16), expected (16, 10)",
        "layer1.0.bn1.bias is not all finite floats",
        "layer1.0.bn2.bias is not all finite floats",
        "layer1.0.bn1.running_var has negative variances",
    ]:
        assert problem in str(caught.value)
    assert str(caught.value).count(";") == 5
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_files_that_cannot_be_read(saved, tmp_path, monkeypatch):
    model = ResNet20((8, 8, 3), 10, filters=4)
    with pytest.raises(FileNotFoundError, match=r"Expected an .npz file .* at .*missing.npz; there is no such"):
        load_weights(model, tmp_path / "missing.npz")
    with pytest.raises(ValueError, match=r"Expected a .npz or .safetensors file; received weights.pth"):
        load_weights(model, tmp_path / "weights.pth")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    for path in (
        tmp_path / "text.npz",
        tmp_path / "empty.npz",
        saved({"conv1.weight": np.array([{"an": "object"}])}, "objects.npz"),
    ):
        with pytest.raises(ValueError, match=f"{path.name} cannot be read as an .npz file of plain arrays"):
            load_weights(model, path)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"Reading weights.safetensors needs the safetensors package: install it"):
        load_weights(model, tmp_path / "weights.safetensors")


def test_safetensors(x, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    model = ResNet18((5, 8, 3), 3, filters=2)
    arrays = random_arrays(model)
    numpy.save_file(arrays, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    for name, variable in published_names(model).items():
        np.testing.assert_array_equal(variable, arrays[name])
    assert np.isfinite(model(x)).all()
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match=r"broken\.safetensors cannot be read as a \.safetensors file"):
        load_weights(model, tmp_path / "broken.safetensors")
