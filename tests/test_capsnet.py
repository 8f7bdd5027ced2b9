import keras
import numpy as np
import pytest
import replicas
from keras import ops

from keras_capsvit import MarginLoss, attacks, explain, taps
from keras_capsvit.autodiff import value_and_gradient
from keras_capsvit.layers import DynamicRouting
from keras_capsvit.models import AffCapsNet, CapsNet, ConvNetCR, ConvNetCRSF, ConvNetR, GraCapsNet, ResNet18, ResNet20

SMALL = {"filters": 8, "kernel_size": 5}
CAPS = {**SMALL, "num_types": 3, "primary_dim": 4, "capsule_dim": 9}
TENSORFLOW = keras.backend.backend() == "tensorflow"
# Only TensorFlow runs a step without compiling it, which takes longer than the step.
DTYPES = ["float32", "mixed_float16", "mixed_bfloat16"] if TENSORFLOW else ["float32"]
ROUTINGS = ["dynamic", "rolled", "trainable", "uniform", "em", "self"]


def compiled(model, loss=None, learning_rate=1e-3, metrics=("accuracy",)):
    model.compile(keras.optimizers.Adam(learning_rate), loss or MarginLoss(), metrics=list(metrics))
    return model


def with_routing(routing, *, input_shape=(12, 12, 1), num_classes=10, **kwargs):
    dims = {"primary_dim": 9} if routing in ("em", "self") else {}
    return CapsNet(input_shape, num_classes, routing=routing, **{**CAPS, **dims, **kwargs})


def test_published_sizes():
    assert CapsNet((28, 28, 1), 10).count_params() == 6_804_224
    assert CapsNet((40, 40, 1), 10, reconstruction="conditional").count_params() == 13_475_648  # 13.5 M
    assert AffCapsNet((40, 40, 1), 10, reconstruction="conditional").count_params() == 7_578_688  # 7.5 M
    assert CapsNet((28, 28, 1), 10).taps["votes"].shape == (None, 1152, 10, 16)


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (lambda backbone: CapsNet((32, 32, 3), 10, backbone=backbone, kernel_size=3, primary_dim=16), 5.81),
        (lambda backbone: CapsNet((32, 32, 3), 10, routing="em", backbone=backbone, kernel_size=3), 0.91),
        (lambda backbone: CapsNet((32, 32, 3), 10, routing="self", backbone=backbone, kernel_size=3), 0.93),
        (
            lambda backbone: GraCapsNet(
                (32, 32, 3), 10, backbone=backbone, kernel_size=1, num_heads=16, shared_transform=True
            ),
            0.28,
        ),
    ],
)
def test_published_sizes_on_resnet20(build, millions):
    model = build(ResNet20((32, 32, 3), 10))
    assert round(model.count_params() / 1e6, 2) == millions
    assert "backbone" in [layer.name for layer in model.layers]


def test_convnets_with_decoder_have_the_size_of_capsnet():
    same = ConvNetCRSF((28, 28, 1), 10).count_params()
    assert same == CapsNet((28, 28, 1), 10, reconstruction="conditional").count_params()
    assert ConvNetCR((28, 28, 1), 10).count_params() == same + 160  # the dense layer's bias
    assert ConvNetR((28, 28, 1), 10).count_params() == same + 160 + 161 * 10


@pytest.mark.parametrize("routing", ROUTINGS)
def test_taps_agree_with_the_output(routing, resized):
    model = with_routing(routing)
    x = resized(3, 12)
    names = ["primary_capsules", "votes", "coupling", "contributions", "capsules", "lengths"]
    assert taps.names(model) == sorted(names)
    primary, votes, coupling, contributions, capsules, lengths = taps.tap(model, names)(x)
    assert contributions.shape == (3, 2, 2, 10)
    inputs = 2 * 2 * 3
    assert primary.shape == (3, 2, 2, 3, 9 if routing in ("em", "self") else 4)
    assert votes.shape == (3, inputs, 1 if routing == "self" else 10, 9)
    assert coupling.shape == (3, inputs, 10)
    np.testing.assert_allclose(np.linalg.norm(capsules, axis=-1), lengths, atol=1e-6)
    np.testing.assert_allclose(model(x), lengths, atol=1e-6)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("num_classes", [2, 10])
def test_initial_lengths_leave_a_slope(routing, num_classes, resized):
    model = CapsNet((28, 28, 1), num_classes, routing=routing, filters=32, num_types=8)
    lengths = ops.convert_to_numpy(model(resized(16, 28)))
    assert 0.05 < lengths.mean() < 0.75


@pytest.mark.parametrize(("size", "num_classes"), [(20, 2), (20, 100), (28, 10), (40, 10)])
@pytest.mark.parametrize("build", [CapsNet, AffCapsNet])
def test_initial_lengths_for_any_size_and_class_count(build, size, num_classes, resized):
    lengths = ops.convert_to_numpy(build((size, size, 1), num_classes, filters=32, num_types=8)(resized(16, size)))
    assert 0.05 < lengths.mean() < 0.7


@pytest.mark.parametrize(
    "routing", ["dynamic", *(pytest.param(each, marks=pytest.mark.slow) for each in (*ROUTINGS[1:], "affine"))]
)
def test_learns_within_the_first_epochs(routing, digits, resized):
    x, y = resized(600, 12), digits[1][:600]
    if routing == "affine":
        model = AffCapsNet((12, 12, 1), 10, **{**CAPS, "num_types": 8, "filters": 16})
    else:
        model = with_routing(routing, num_types=8, filters=16)
    compiled(model, learning_rate=5e-3)
    start = model.evaluate(x, y, verbose=0, return_dict=True)
    history = model.fit(x, y, epochs=4, batch_size=25, verbose=0).history
    assert history["loss"][-1] < 0.7 * start["loss"]
    assert history["accuracy"][-1] > 0.4  # chance: 0.1


@pytest.mark.samples(9)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("routing", [*ROUTINGS, "affine", "convnet_r", "convnet_cr"])
@pytest.mark.parametrize(("size", "num_classes"), [((9, 13, 3), 2), ((12, 10, 1), 200)])
def test_trains_a_step_at_any_size_and_precision(dtype, routing, size, num_classes):
    x = np.random.default_rng(0).uniform(size=(4, *size)).astype("float32")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        if routing.startswith("convnet"):
            model = {"convnet_r": ConvNetR, "convnet_cr": ConvNetCR}[routing](size, num_classes, **SMALL)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        else:
            affine = {"routing": "uniform", "shared_transform": True} if routing == "affine" else {"routing": routing}
            model = with_routing(**affine, input_shape=size, num_classes=num_classes, reconstruction="conditional")
            loss = MarginLoss()
        model.compile(keras.optimizers.Adam(1e-3), loss, run_eagerly=TENSORFLOW)
        logs = model.train_on_batch(x, np.arange(4) % num_classes, return_dict=True)
        assert model(x).dtype == "float32"
    finally:
        keras.config.set_dtype_policy(before)
    assert np.isfinite(list(logs.values())).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.samples(1)
@pytest.mark.parametrize("build", [ConvNetR, ConvNetCR])
def test_convnets_with_decoder(build, digits, resized):
    x, y = resized(300, 12), digits[1][:300]
    model = build((12, 12, 1), 10, **SMALL, group_dim=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    history = compiled(model, loss, 3e-3).fit(x, y, epochs=3, batch_size=25, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["reconstruction_error"][-1] < history["reconstruction_error"][0]
    groups, logits = taps.tap(model, ["capsules", "logits"])(x[:5])
    assert groups.shape == (5, 10, 4)
    np.testing.assert_array_equal(model(x[:5]), logits)
    if build is ConvNetCR:
        np.testing.assert_allclose(logits, np.sum(groups, axis=2), atol=1e-5)
        winner = ops.argmax(logits, axis=1)
        np.testing.assert_allclose(model.reconstruct(x[:5]), model.reconstruct(x[:5], winner), atol=1e-6)
    assert model.reconstruct(x[:5]).shape == (5, 12, 12, 1)


@pytest.mark.slow
@pytest.mark.parametrize("reconstruction", ["conditional", "unconditional"])
def test_two_digits_are_reconstructed_one_by_one(reconstruction, resized):
    parts = np.stack([resized(8, 12), resized(16, 12)[8:]], axis=1)
    x = np.maximum(parts[:, 0], parts[:, 1])
    y = {"classes": np.stack([np.arange(8), np.arange(8) + 2], axis=1), "parts": parts}
    model = with_routing("dynamic", reconstruction=reconstruction, reconstruction_weight=1.0)
    compiled(model, metrics=())
    metrics = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    if reconstruction == "conditional":
        decoded = [ops.convert_to_numpy(model.reconstruct(x, y["classes"][:, k])) for k in range(2)]
        expected = sum(np.square(decoded[k] - parts[:, k]).sum((1, 2, 3)).mean() for k in range(2))
    else:
        expected = np.square(ops.convert_to_numpy(model.reconstruct(x)) - x).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(metrics["reconstruction_error"], expected, rtol=1e-4)
    present = np.zeros((8, 10))
    np.put_along_axis(present, y["classes"], 1, axis=1)
    margin = float(MarginLoss()(present, model(x)))
    np.testing.assert_allclose(metrics["loss"], margin + expected, rtol=1e-4)
    model.fit(x, y, batch_size=8, verbose=0)
    with pytest.raises(ValueError, match="class ids between 0 and 9"):
        model.fit(x, {**y, "classes": y["classes"] + 5}, verbose=0)


@pytest.mark.long
def test_reload_in_a_fresh_process(tmp_path, fresh_process):
    one_more = {**CAPS, "primary_dim": 9}
    built = [
        CapsNet((12, 12, 1), 3, **CAPS),
        CapsNet((12, 12, 1), 3, routing="em", reconstruction="conditional", **one_more),
        CapsNet((12, 12, 1), 3, routing="self", **CAPS),
        CapsNet((12, 12, 1), 3, routing=DynamicRouting(2, rolled=True), **CAPS),
        AffCapsNet((12, 12, 1), 3, reconstruction="unconditional", **CAPS),
        ConvNetCRSF((12, 12, 1), 3, **CAPS),
        ConvNetR((12, 12, 1), 3, **SMALL),
        ConvNetCR((12, 12, 1), 3, **SMALL),
        GraCapsNet((12, 12, 1), 3, pooling="top_k", num_heads=2, filters=8),
        CapsNet((16, 16, 3), 3, backbone=ResNet20((16, 16, 3), 5), **{**CAPS, "kernel_size": 3}),
        GraCapsNet((16, 16, 3), 3, backbone=ResNet20((16, 16, 3), 5), kernel_size=None, num_heads=8),
    ]
    for k, model in enumerate(built):
        model.save(tmp_path / f"{k}.keras")
        np.save(tmp_path / f"x{k}.npy", np.random.default_rng(k).uniform(size=(2, *model.input_shape[1:])))
    code = """
import pathlib, sys
import keras, numpy as np
import keras_capsvit
folder = pathlib.Path(sys.argv[1])
for path in folder.glob("*.keras"):
    model = keras.saving.load_model(path)
    np.save(folder / f"y{path.stem}.npy", np.asarray(model(np.load(folder / f"x{path.stem}.npy"))))
"""
    fresh_process(code, tmp_path)
    for k, model in enumerate(built):
        np.testing.assert_array_equal(np.load(tmp_path / f"y{k}.npy"), model(np.load(tmp_path / f"x{k}.npy")))
        assert type(model).from_config(model.get_config()).count_params() == model.count_params()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CapsNet((28, 28, 1), 10, routing="none"), "routing must be one of .*; received 'none'"),
        (lambda: CapsNet((16, 16, 1), 10), "too small .* smallest legal size is 17x17"),
        (lambda: CapsNet((28, 28, 1), 1), "num_classes must be an integer from 2 .*; received 1"),
        (lambda: CapsNet((28, 28), 10), r"\(height, width, channels\).*received \(28, 28\)"),
        (lambda: CapsNet((28, 28, 1), 10, routing="em", primary_dim=8), "same square number; received 8 and 16"),
        (
            lambda: AffCapsNet((28, 28, 1), 10, routing="dynamic"),
            "sets routing='uniform' itself; received routing='dynamic'",
        ),
        (lambda: GraCapsNet((28, 28, 1), 10, pooling="max"), "pooling must be one of .*'top_k'.*'max'"),
        (
            lambda: CapsNet((16, 16, 3), 10, backbone=ResNet20((16, 16, 3), 10), kernel_size=None),
            r"num_types \* capsule_dim must be the number of channels; received 32 \* 8 for 64",
        ),
        (
            lambda: CapsNet((8,), 10, backbone=keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])),
            r"\(height, width, channels\)",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_backbone_without_feature_maps_is_refused():
    flat = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match=r"shape \(batch, height, width, channels\); received shape \(None, 144\)"):
        CapsNet((12, 12, 1), 3, backbone=flat, **CAPS)


def test_capsules_of_chapter_6_on_resnet18():
    shape = (32, 32, 3)
    settings = {"backbone": ResNet18(shape, 10), "kernel_size": None, "num_types": 64}
    model = CapsNet(shape, 10, batch_norm=True, **settings)
    assert model.taps["primary_capsules"].shape == (None, 4, 4, 64, 8)
    assert model.taps["votes"].shape == (None, 1024, 10, 16)
    assert model.count_params() - CapsNet(shape, 10, **settings).count_params() == 4 * 512


def with_batch_norm():
    convolution = keras.layers.Conv2D(16, 5, strides=2, activation="relu", data_format="channels_last")
    backbone = keras.Sequential([keras.Input((12, 12, 3)), convolution])
    return CapsNet((12, 12, 3), 10, backbone=backbone, kernel_size=None, num_types=2, batch_norm=True)


def test_batch_normalisation_between_features_and_capsules(tmp_path):
    model = with_batch_norm()
    x = np.random.default_rng(0).uniform(size=(8, 12, 12, 3)).astype("float32")
    compiled(model, metrics=()).fit(x, np.arange(8), epochs=2, verbose=0)
    norm = model.get_layer("primary_capsules").norm
    gamma, beta, mean, variance = map(ops.convert_to_numpy, norm.weights)
    assert mean.max() > 0
    features = ops.convert_to_numpy(model.get_layer("backbone")(x))
    channels = ((features - mean) / np.sqrt(variance + 1e-5) * gamma + beta).reshape(8, 4, 4, 2, 8)
    primary = taps.tap(model, "primary_capsules")(x)
    np.testing.assert_allclose(primary, np.apply_along_axis(replicas.squash, -1, channels), atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_config()["batch_norm"] is True
    np.testing.assert_array_equal(again(x), model(x))
    moved = attacks.FGSM(0.1)(attacks.votes(model), x, ops.convert_to_numpy(ops.argmax(model(x), axis=1)))
    assert np.abs(moved - x).max() == pytest.approx(0.1, abs=1e-6)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_relevance_goes_through_the_batch_normalisation():
    model = with_batch_norm()
    x = np.random.default_rng(0).uniform(size=(2, 12, 12, 3)).astype("float32")
    compiled(model, metrics=()).fit(x, np.arange(2), epochs=1, verbose=0)
    gradient = explain.LRP(model, "gradient", channels=True)(x, 1)
    _, expected = value_and_gradient(lambda x: model(x)[:, 1], model.variables)(x)
    np.testing.assert_allclose(gradient, ops.convert_to_numpy(expected), atol=1e-6)
    assert np.isfinite(explain.LRP(model, input_range=(0, 1))(x, 1)).all()


def test_routing_layer_of_the_users():
    model = CapsNet((12, 12, 1), 3, routing=DynamicRouting(1), **CAPS)
    twin = CapsNet((12, 12, 1), 3, routing="uniform", **CAPS)
    twin.set_weights(model.get_weights())
    x = np.random.default_rng(0).uniform(size=(2, 12, 12, 1)).astype("float32")
    np.testing.assert_allclose(model(x), twin(x), atol=1e-6)
