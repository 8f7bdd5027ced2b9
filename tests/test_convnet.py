"""ConvNets' sizes, and what all models that return logits have in common (residual networks as well)."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import taps
from keras_capsvit.models.convnet import VGG19, ConvNetAvg, ConvNetFC
from keras_capsvit.models.resnet import ResNet18, ResNet20

NORMALIZATION = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
# small builder, an odd image size it takes, shape of its feature map there
SMALL = {
    "ConvNetFC": (lambda *a: ConvNetFC(*a, kernel_size=3, filters=(4, 6), units=(8,)), (5, 8, 1), (1, 4, 6)),
    "ConvNetAvg": (lambda *a: ConvNetAvg(*a, kernel_size=3, filters=4), (7, 10, 1), (2, 3, 4)),
    "VGG19": (lambda *a: VGG19(*a, filters=2), (33, 70, 3), (1, 2, 16)),
    "ResNet20": (lambda *a: ResNet20(*a, filters=2, **NORMALIZATION), (5, 9, 3), (2, 3, 8)),
    "ResNet20 fc": (lambda *a: ResNet20(*a, filters=2, head="fc"), (7, 4, 1), (2, 1, 8)),
    "ResNet18": (lambda *a: ResNet18(*a, filters=2), (9, 3, 3), (2, 1, 16)),
}
TENSORFLOW = keras.backend.backend() == "tensorflow"
# JAX compiles these for minutes; they are made of what the others are made of.
NAMES = [name for name in SMALL if TENSORFLOW or name not in ("VGG19", "ResNet20 fc", "ResNet18")]


def images(n, shape):
    return np.random.default_rng(0).uniform(size=(n, *shape)).astype("float32")


def trained_step(build, shape, num_classes):
    """A model that was trained for one step, its loss, and its weights before and after."""
    model = build(shape, num_classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, run_eagerly=TENSORFLOW)  # where tracing takes longer than the step
    before = [ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    metrics = model.train_on_batch(images(4, shape), np.arange(4) % num_classes)
    after = [ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    return model, metrics, before, after


@pytest.mark.parametrize("kernel_size, size", [(5, 35.4), (11, 16.19)])
def test_sizes_of_convnet_fc_in_the_thesis(kernel_size, size):
    count = ConvNetFC((40, 40, 1), 10, kernel_size=kernel_size).count_params()
    assert abs(count / 1e6 - size) < 0.06
    assert count == 35_445_522 or kernel_size != 5


@pytest.mark.parametrize("kernel_size, size", [(3, 0.59), (5, 1.70), (7, 3.23), (9, 5.30), (11, 7.96)])
def test_sizes_of_convnet_avg_in_the_thesis(kernel_size, size):
    count = ConvNetAvg((40, 40, 1), 10, kernel_size=kernel_size).count_params()
    assert abs(count / 1e6 - size) < 0.06
    assert count == 5_332_234 or kernel_size != 9


def test_size_of_vgg19():
    model = VGG19((32, 32, 3), 10)
    statistics = sum(int(np.prod(v.shape)) for v in model.non_trainable_variables)
    assert (model.count_params() - statistics, statistics) == (20_040_522, 11_008)
    assert model.taps["features"].shape == (None, 1, 1, 512)


@pytest.mark.samples(3)
@pytest.mark.parametrize("name", NAMES)
def test_taps_and_one_step(name):
    build, shape, features = SMALL[name]
    model, loss, before, after = trained_step(build, shape, 200)
    x = images(2, shape)
    assert taps.names(model) == ["features", "logits"]
    assert taps.tap(model, "features")(x).shape == (2, *features)
    np.testing.assert_array_equal(taps.tap(model, "logits")(x), model(x))
    assert np.isfinite(loss)
    assert model.output_shape == (None, 200)
    assert all(np.isfinite(weight).all() for weight in after)
    assert np.mean([np.any(old != new) for old, new in zip(before, after, strict=True)]) > 0.9


@pytest.mark.samples(5)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "ResNet20 fc"])
def test_mixed_precision(name, policy):
    build, shape, _ = SMALL[name]
    keras.mixed_precision.set_global_policy(policy)
    try:
        model, loss, _, after = trained_step(build, shape, 2)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert np.isfinite(loss)
    assert all(np.isfinite(weight).all() for weight in after)
    outputs = model(images(2, shape))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert keras.backend.standardize_dtype(model.taps["features"].dtype) == policy.removeprefix("mixed_")
    assert np.isfinite(outputs).all()


@pytest.mark.long
def test_reload_in_a_fresh_process(fresh_process, tmp_path):
    expected = {}
    for name in NAMES:
        build, shape, _ = SMALL[name]
        model = build(shape, 3)
        for variable in model.variables:  # statistics as well
            variable.assign(variable + 0.1)
        parts = {name: model}
        if name == "ResNet20":
            parts["backbone"] = taps.tap(model, "features")
        x = images(2, shape)
        for part, each in parts.items():
            each.save(tmp_path / f"{part}.keras")
            np.save(tmp_path / f"{part} images.npy", x)
            expected[part] = each(x)
    code = """
import pathlib, sys, keras, numpy as np
import keras_capsvit.models.convnet, keras_capsvit.models.resnet
folder = pathlib.Path(sys.argv[1])
for path in folder.glob("*.keras"):
    x = np.load(folder / f"{path.stem} images.npy")
    np.save(folder / f"{path.stem} found.npy", keras.saving.load_model(path)(x))
"""
    fresh_process(code, tmp_path)
    for name, values in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name} found.npy"), values, rtol=1e-5, err_msg=name)


def test_says_what_is_wrong():
    for call, message in [
        (lambda: ConvNetFC((12, 28, 1), 10), "12x28 are too small .* smallest legal size is 13x13"),
        (lambda: ConvNetAvg((28, 16, 1), 10), "28x16 are too small .* smallest legal size is 17x17"),
        (lambda: VGG19((31, 32, 3), 10), "31x32 are too small .* smallest legal size is 32x32"),
        (lambda: ConvNetAvg((28, 28), 10), r"\(height, width, channels\).*received \(28, 28\)"),
        (lambda: ResNet18((32, 0, 3), 10), r"positive ints; received \(32, 0, 3\)"),
        (lambda: ResNet20((32, 32, 3), 1), "an integer from 2 .*; received 1"),
        (lambda: VGG19((32, 32, 3), 10.0), "an integer from 2 .*; received 10.0"),
        (lambda: ConvNetFC((28, 28, 1), 10, units=(328, 0)), r"units must be positive ints.*0\)"),
        (lambda: ConvNetAvg((28, 28, 1), 10, kernel_size=2.5), "kernel_size must .* received 2.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_smallest_legal_sizes():
    assert ConvNetFC((13, 13, 1), 2, filters=(2, 2, 2)).taps["features"].shape == (None, 1, 1, 2)
    assert ConvNetAvg((17, 17, 1), 2, filters=2).taps["features"].shape == (None, 1, 1, 2)
    assert np.isfinite(ResNet20((1, 1, 1), 2, filters=2)(np.ones((1, 1, 1, 1)))).all()
