"""Weights as timm and Hugging Face write them: every tensor accounted for, and the same outputs."""

import importlib.util
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import (
    ConvNetAvg,
    DeiT,
    LeViT,
    MLPMixer,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    VisionTransformer,
    load_weights_from,
    taps,
)
from keras_capsvit.layers import resize_positions
from keras_capsvit.models.published import FORMATS, published_names, sources, torch_shape

MODELS = {
    "vit_Ti": lambda: VisionTransformer("Ti/16", epsilon=1e-12),
    "vit_S": lambda: VisionTransformer("S/16", epsilon=1e-12),
    "deit_Ti": lambda: DeiT("Ti/16", distilled=True, epsilon=1e-12),
    "deit_S": lambda: DeiT("S/16", distilled=True, epsilon=1e-12),
    "resnet18": lambda: ResNet18((224, 224, 3), 1000, stem="7x7"),
    "resnet34": lambda: ResNet34(),
    "resnet50": lambda: ResNet50(),
    "resnet101": lambda: ResNet101(),
    "levit_128S": lambda: LeViT("128S"),
}
SMALL = {
    "vit": lambda **kwargs: VisionTransformer(
        "Ti/4", **{"input_shape": (16, 16, 3), "num_classes": 3, "width": 8, "depth": 2, "num_heads": 2, **kwargs}
    ),
    "mixer": lambda **kwargs: MLPMixer(
        "S/4", input_shape=(16, 16, 3), num_classes=3, width=8, depth=2, token_units=5, channel_units=7
    ),
    "levit": lambda **kwargs: LeViT(
        "128S", input_shape=(40, 24, 3), num_classes=3, widths=(8, 10), depths=(1, 2), num_heads=(2, 3), key_dim=4
    ),
    "resnet18": lambda **kwargs: ResNet18((16, 16, 3), 3, filters=4, stem="7x7"),
    "resnet50": lambda **kwargs: ResNet50((32, 32, 3), 3, filters=4),
}
ROWS = [
    ("vit", "timm"),
    ("vit", "Hugging Face (ViT)"),
    ("vit", "Hugging Face (ViT, transformers 5)"),
    ("vit", "Hugging Face (DeiT)"),
    ("mixer", "timm"),
    ("levit", "timm (LeViT)"),
    ("resnet18", "as they are"),
    ("resnet18", "timm"),
    ("resnet50", "Hugging Face (ResNet)"),
]


def written(model, style):
    """A file's arrays in a style, with random values, and the values that the model's weights have to get."""
    rng, arrays, values = np.random.default_rng(0), {}, {}
    for name, variable in published_names(model).items():
        array = np.exp(rng.normal(size=torch_shape(variable))).astype("float32")
        result = sources(name, FORMATS[style])
        arrays.update(zip(result, np.split(array, len(result)), strict=True))
        if variable.name == "kernel":
            array = np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim == 4 else array.T
        values[name] = array[0] if variable.name == "positions" else array
    return arrays, values


@pytest.fixture
def save(tmp_path):
    """Write arrays as .npz; returns the path."""

    def write(arrays, name="weights.npz"):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return write


@pytest.mark.parametrize(("kind", "style"), ROWS)
def test_every_tensor_arrives(kind, style, save):
    model = SMALL[kind](distilled="DeiT" in style)
    arrays, values = written(model, style)
    load_weights_from(model, save({**arrays, "bn1.num_batches_tracked": np.array(3)}))
    for name, variable in published_names(model).items():
        np.testing.assert_array_equal(variable, values[name], err_msg=name)
    assert len(values) == len(model.weights)


def test_names_are_the_published_ones():
    arrays, _ = written(SMALL["vit"](distilled=True), "timm")
    assert {"cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.attn.qkv.bias"} < set(arrays)
    assert arrays["pos_embed"].shape == (1, 18, 8)
    assert arrays["patch_embed.proj.weight"].shape == (8, 3, 4, 4)
    assert {"norm.weight", "head.weight", "head_dist.bias", "blocks.0.mlp.fc1.weight"} < set(arrays)
    arrays, _ = written(SMALL["vit"](distilled=True), "Hugging Face (DeiT)")
    assert arrays["deit.encoder.layer.1.attention.attention.key.weight"].shape == (8, 8)
    assert {"cls_classifier.bias", "distillation_classifier.bias", "deit.layernorm.bias"} < set(arrays)
    arrays, _ = written(SMALL["mixer"](), "timm")
    assert {"stem.proj.weight", "blocks.1.mlp_tokens.fc2.bias", "blocks.0.mlp_channels.fc1.weight"} < set(arrays)
    arrays, _ = written(SMALL["levit"](), "timm (LeViT)")
    assert arrays["stages.0.blocks.0.attn.attention_biases"].shape == (2, 3 * 2)
    assert {"stem.conv4.linear.weight", "stem.conv1.bn.running_var", "head.bn.weight", "head_dist.linear.bias"} < set(
        arrays
    )
    assert {"stages.1.blocks.1.attn.proj.ln.bn.bias", "stages.1.blocks.0.mlp.ln2.linear.weight"} < set(arrays)
    assert {"stages.1.downsample.attn_downsample.q.ln.linear.weight", "stages.0.blocks.0.attn.qkv.bn.weight"} < set(
        arrays
    )
    arrays, _ = written(SMALL["resnet50"](), "timm")
    assert {"layer1.0.downsample.0.weight", "layer4.2.bn3.running_var", "fc.weight"} < set(arrays)


def test_what_does_not_fit_is_named_and_nothing_changes(save):
    model = SMALL["vit"]()
    before = model.get_weights()
    arrays, _ = written(model, "Hugging Face (ViT)")
    key = "vit.encoder.layer.1.attention.attention.key"
    del arrays[f"{key}.weight"]
    arrays[f"{key}.bias"] = np.zeros(9, "float32")
    arrays["classifier.weight"] = arrays["classifier.weight"].T
    arrays["vit.layernorm.bias"][0] = np.inf
    arrays["vit.pooler.dense.bias"] = np.zeros(8, "float32")
    arrays["vit.embeddings.position_embeddings"] = np.zeros((1, 26, 8), "float32")
    with pytest.raises(ValueError, match=r"weights.npz does not fit vit: .*need interpolate_positions") as caught:
        load_weights_from(model, save(arrays))
    for problem in [
        f"{key}.weight is missing",
        "classifier.weight has shape (8, 3), expected (3, 8)",
        "vit.layernorm.bias is not all finite floats",
        "vit.pooler.dense.bias is left over",
        "vit.embeddings.position_embeddings has shape (1, 26, 8), expected (1, 17, 8)",
    ]:
        assert problem in str(caught.value)
    arrays[f"{key}.weight"] = np.zeros((8, 8), "float32")
    with pytest.raises(ValueError, match=r"key.bias has shape \(9,\), expected \(8,\)"):
        load_weights_from(model, save(arrays))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_new_head_on_published_weights(save):
    published = SMALL["vit"](num_classes=7)
    arrays, values = written(published, "timm")
    model = SMALL["vit"]()
    head = [ops.convert_to_numpy(variable) for variable in model.get_layer("head").weights]
    load_weights_from(model, save({**arrays, "pre_logits.bias": np.zeros(2)}), skip=["head.*", "pre_logits.*"])
    np.testing.assert_array_equal(published_names(model)["norm.bias"], values["norm.bias"])
    for old, new in zip(head, model.get_layer("head").weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_one_pattern_is_not_taken_for_its_letters(save):
    arrays, values = written(SMALL["vit"](num_classes=7), "timm")
    model = SMALL["vit"]()
    load_weights_from(model, save(arrays), skip="head.*")
    np.testing.assert_array_equal(published_names(model)["norm.bias"], values["norm.bias"])
    with pytest.raises(ValueError, match=r"skip to leave tensors to load; received \('\*',\), which matches all"):
        load_weights_from(model, save(arrays), skip="*")


def test_positions_of_another_grid(save):
    arrays, values = written(SMALL["vit"](input_shape=(12, 12, 3), distilled=True), "timm")
    model = SMALL["vit"](input_shape=(20, 16, 3), distilled=True)
    load_weights_from(model, save(arrays), interpolate_positions=True)
    result, stored = published_names(model)["patch_embed.positions"], values["patch_embed.positions"]
    np.testing.assert_array_equal(result[:2], stored[:2])
    expected = ops.image.resize(stored[2:].reshape(1, 3, 3, 8), (5, 4), interpolation="bicubic", antialias=True)
    np.testing.assert_allclose(result[2:], ops.reshape(expected, (20, 8)), atol=1e-6)
    arrays["pos_embed"] = arrays["pos_embed"][:, :-1]
    with pytest.raises(ValueError, match=r"which grid its 8 patches have: neither .*; the model's is \(5, 4\)\. Pass"):
        load_weights_from(model, save(arrays), interpolate_positions=True)


@pytest.mark.parametrize(("size", "grid"), [((8, 24, 3), (2, 6)), ((8, 24, 3), True), ((8, 12, 3), (2, 3))])
def test_positions_of_grids_that_are_not_square(save, size, grid):
    arrays, values = written(SMALL["vit"](input_shape=size), "timm")
    stored = values["patch_embed.positions"]
    model = SMALL["vit"](input_shape=(16, 48, 3))  # 4x12 patches
    load_weights_from(model, save(arrays), interpolate_positions=grid)
    rows, columns = size[0] // 4, size[1] // 4
    theirs = stored[1:].reshape(1, rows, columns, 8)
    expected = ops.image.resize(theirs, (4, 12), interpolation="bicubic", antialias=True)
    positions = published_names(model)["patch_embed.positions"]
    np.testing.assert_allclose(positions[1:], ops.reshape(expected, (48, 8)), atol=1e-6)
    np.testing.assert_array_equal(positions[0], stored[0])


def test_grids_of_positions_are_never_guessed(save):
    arrays, values = written(SMALL["vit"](input_shape=(24, 24, 3)), "timm")  # 6x6 patches, as many as 3x12
    model = SMALL["vit"](input_shape=(8, 32, 3))
    path = save(arrays)
    with pytest.raises(ValueError, match=r"its 36 patches have: \(3, 12\) or \(6, 6\); the model's is \(2, 8\)\. Pass"):
        load_weights_from(model, path, interpolate_positions=True)
    for grid, received in [((5, 7), r"\(5, 7\)"), (6, r"\(6,\)"), ((1, 6, 6), r"\(1, 6, 6\)")]:
        with pytest.raises(ValueError, match=rf"grid \(h, w\) of the file's 36 patches; received {received}"):
            load_weights_from(model, path, interpolate_positions=grid)
    load_weights_from(model, path, interpolate_positions=(6, 6))
    assert not np.isnan(ops.convert_to_numpy(published_names(model)["patch_embed.positions"])).any()
    same = SMALL["vit"](input_shape=(12, 48, 3))  # 3x12: the same number on another grid
    load_weights_from(same, path, interpolate_positions=(6, 6))
    positions = ops.convert_to_numpy(published_names(same)["patch_embed.positions"])
    assert np.abs(positions - values["patch_embed.positions"]).max() > 0.1


def small_resnet(**kwargs):
    return ResNet((8, 8, 3), 3, filters=2, **kwargs)


SAVED = ("model.keras", "model.weights.h5")


def saved(model, path):
    (model.save if path.suffix == ".keras" else model.save_weights)(path)
    return path


@pytest.mark.parametrize("file", SAVED)
def test_files_of_keras(tmp_path, file):
    model, receiver = SMALL["vit"](), SMALL["vit"](temperature=2.0, dropout=0.1)
    load_weights_from(receiver, saved(model, tmp_path / file))
    for ours, theirs in zip(receiver.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert receiver.temperature == 2.0  # a setting, not a weight
    with pytest.raises(FileNotFoundError, match=rf"Expected a .* file at .*missing\.{file}; there is no such file"):
        load_weights_from(model, tmp_path / f"missing.{file}")
    with pytest.raises(ValueError, match=rf"skip and interpolate_positions are .* received {file}, which Keras wrote"):
        load_weights_from(model, tmp_path / file, skip=["head.*"])
    with pytest.raises(ValueError, match=r"Expected a .npz, .* or .weights.h5 file; received weights.h5"):
        load_weights_from(model, tmp_path / "weights.h5")
    (tmp_path / file).write_text("something else")
    with pytest.raises(ValueError, match=rf"{file} cannot be read as a {file[5:]} file that Keras 3 wrote"):
        load_weights_from(model, tmp_path / file)


@pytest.mark.samples(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("file", SAVED)
def test_files_of_keras_that_do_not_fit_change_nothing(tmp_path, file):
    def refused(source, message):
        before = model.get_weights()
        with pytest.raises(ValueError, match=rf"{file} does not fit resnet20: {message}"):
            load_weights_from(model, saved(source, tmp_path / file))
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)

    model = small_resnet()
    kernel = "layers/normalized_conv2d/conv/vars/0"
    refused(small_resnet(depth=32), r".*; and \d+ more, \d+ in all\. Expected the tensors of a model built")
    refused(small_resnet(head="fc"), r"layers/dense/vars/0 has shape \(256, 3\), expected \(8, 3\); .*is left over")
    refused(ResNet((8, 8, 1), 3, filters=2), rf"{kernel} has shape \(3, 3, 1, 2\), expected \(3, 3, 3, 2\)\.")
    without_head = keras.Model(model.input, model.taps["features"])
    refused(without_head, r"layers/dense/vars/0 is missing; layers/dense/vars/1 is missing\.")

    def changed(index, value):
        altered = small_resnet()
        weights = altered.get_weights()
        weights[index].flat[0] = value
        altered.set_weights(weights)
        return altered

    names = [variable.path for variable in model.weights]
    variance = next(index for index, name in enumerate(names) if name.endswith("moving_variance"))
    refused(changed(0, np.nan), "conv1_normalized/conv1/kernel is not all finite")
    refused(changed(-1, np.inf), "linear/bias is not all finite")
    refused(changed(variance, -0.1), "conv1_normalized/bn1/moving_variance has negative variances")


@pytest.mark.samples(1)
@pytest.mark.parametrize("file", SAVED)
def test_files_of_keras_leave_the_optimizer_alone(tmp_path, file):
    def trained(epochs):
        model = ConvNetAvg((8, 8, 3), 3, kernel_size=3, filters=2)
        model.compile("adam", "mse")
        model.fit(np.ones((2, 8, 8, 3)), np.ones((2, 3)), epochs=epochs, verbose=0)
        return model

    model, source = trained(2), trained(1)
    before = [ops.convert_to_numpy(variable).copy() for variable in model.optimizer.variables]
    load_weights_from(model, saved(source, tmp_path / file))
    np.testing.assert_array_equal(model.get_weights()[0], source.get_weights()[0])
    for old, new in zip(before, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_of_many_problems_ten_are_named_and_all_are_counted(save):
    model = SMALL["vit"]()
    arrays, _ = written(model, "timm")
    few = dict(list(arrays.items())[:3])
    with pytest.raises(ValueError, match=rf"and {len(arrays) - 13} more, {len(arrays) - 3} in all\.") as caught:
        load_weights_from(model, save(few))
    assert str(caught.value).count("is missing") == 10


def test_the_names_of_the_cifar_networks_and_half_precision(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    model = small_resnet(depth=32)
    arrays, values = written(model, "as they are")
    assert {"conv1.weight", "layer1.4.bn2.running_mean", "layer3.0.conv1.weight", "linear.weight"} < set(arrays)
    assert arrays["linear.weight"].shape == (3, 8)
    for dtype in (bfloat16, np.float16, np.float64):
        numpy.save_file({name: array.astype(dtype) for name, array in arrays.items()}, tmp_path / "half.safetensors")
        load_weights_from(model, tmp_path / "half.safetensors")
        for name, variable in published_names(model).items():
            np.testing.assert_array_equal(variable, values[name].astype(dtype).astype("float32"), err_msg=name)
    broken = {name: array.astype(bfloat16) for name, array in arrays.items()}
    broken["conv1.weight"][0, 0, 0, 0] = np.nan
    numpy.save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"conv1.weight is not all finite floats"):
        load_weights_from(model, tmp_path / "broken.safetensors")
    integers = {**arrays, "linear.bias": np.zeros(3, "int32")}
    numpy.save_file(integers, tmp_path / "integers.safetensors")
    with pytest.raises(ValueError, match=r"linear.bias is not all finite floats"):
        load_weights_from(model, tmp_path / "integers.safetensors")


def test_a_model_with_a_model_inside_is_refused():
    nested = keras.Sequential([keras.Input((16, 16, 3)), SMALL["vit"]()], name="outer")
    with pytest.raises(ValueError, match=r"outer has vit, a model with .*Load that one instead"):
        published_names(nested)


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """Folder with Hugging Face's models, each with its files and outputs."""
    for needed in ("torch", "transformers", "safetensors"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
    folder = tmp_path_factory.mktemp("peers")
    command = [sys.executable, pathlib.Path(__file__).parent / "weights_of_peers.py", folder, *MODELS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.peers
@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_those_of_hugging_face(peers, name):
    with np.load(peers / name / "outputs.npz") as arrays:
        expected = dict(arrays)
    images = expected.pop("images")
    model = MODELS[name]()
    tapped = taps.tap(model, [*expected, "features"])
    # Hugging Face counts the layers of LeViT's stages so that their names depend on the depths.
    for file in ("timm",) if "levit" in name else ("model", "timm", "memory"):
        for variable in model.weights:
            variable.assign(np.zeros(variable.shape))
        load_weights_from(model, peers / name / f"{file}.safetensors")
        for tapped_name, theirs, ours in zip(
            expected, expected.values(), tapped.predict(images, verbose=0), strict=False
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=f"{file} {tapped_name}")
        assert np.abs(expected["logits"]).max() > 0.1
    np.testing.assert_allclose(model.predict(images, verbose=0), expected["logits"], atol=1e-4)
    if "attention_0" in expected:
        assert expected["attention_0"].max() > 0.05  # far from the uniform 1 / 197


@pytest.mark.peers
def test_positions_equal_those_of_torch(peers):
    with np.load(peers / "positions.npz") as stored:
        arrays = dict(stored)
    positions = arrays.pop("positions")[0].transpose(1, 2, 0).reshape(16, 24)
    for name, expected in arrays.items():
        size, _, mode = name.rpartition("_")
        size = tuple(map(int, size.strip("()").split(",")))
        resized = resize_positions(np.concatenate([positions[:1], positions]), (4, 4), size, interpolation=mode)
        np.testing.assert_allclose(resized[1:], expected[0].transpose(1, 2, 0).reshape(-1, 24), atol=1e-5)
        np.testing.assert_array_equal(resized[0], positions[0])
