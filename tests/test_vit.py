import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import DeiT, MLPMixer, VisionTransformer, autodiff, explain, taps
from keras_capsvit.layers import MLP, MultiHeadSelfAttention, PatchEmbedding, TransformerBlock, gelu

SMALL = {"width": 32, "depth": 2, "num_heads": 4}


def vit(variant="Ti/8", **kwargs):
    return VisionTransformer(variant, **{"input_shape": (32, 24, 3), "num_classes": 5, **SMALL, **kwargs})


def mixer(**kwargs):
    return MLPMixer("S/8", input_shape=(32, 24, 3), num_classes=5, width=16, depth=2, token_units=6, **kwargs)


@pytest.fixture
def x():
    return np.random.default_rng(0).uniform(size=(3, 32, 24, 3)).astype("float32")


def shaken(model):
    """Values at which nothing is at its start: offsets are not 0, attention is not uniform."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign_add(rng.normal(scale=0.2, size=variable.shape))
    return model


def norm(x, scale, offset):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + offset


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def replica(model, image, temperature):
    """Logits and attention of one image, patch by patch and head by head."""
    from math import erf

    arrays = {variable.path: ops.convert_to_numpy(variable) for variable in model.weights}
    size = arrays["patch_embed/kernel"].shape[0]
    height, width = image.shape[:2]
    kernel = arrays["patch_embed/kernel"]
    tokens = [
        np.tensordot(image[row : row + size, column : column + size], kernel, 3) + arrays["patch_embed/bias"]
        for row in range(0, height, size)
        for column in range(0, width, size)
    ]
    prefix = [arrays[f"patch_embed/{name}"][0] for name in ("class_token", "distillation_token")]
    x = np.concatenate([*prefix, tokens]) + arrays["patch_embed/positions"]
    attention = []
    for index, block in enumerate(model.blocks):
        own = {name.split("/", 1)[1]: each for name, each in arrays.items() if name.startswith(f"blocks_{index}/")}
        qkv = norm(x, own["norm1/gamma"], own["norm1/beta"]) @ own["attn/qkv/kernel"] + own["attn/qkv/bias"]
        heads = np.split(qkv, 3 * block.num_heads, axis=-1)
        query, key, value = (heads[n * block.num_heads : (n + 1) * block.num_heads] for n in range(3))
        scores = [softmax(q @ k.T / np.sqrt(q.shape[-1]) / temperature) for q, k in zip(query, key, strict=True)]
        mixed = np.concatenate([s @ v for s, v in zip(scores, value, strict=True)], axis=-1)
        x = x + mixed @ own["attn/proj/kernel"] + own["attn/proj/bias"]
        hidden = norm(x, own["norm2/gamma"], own["norm2/beta"]) @ own["mlp/fc1/kernel"] + own["mlp/fc1/bias"]
        hidden = hidden * 0.5 * (1 + np.vectorize(erf)(hidden / np.sqrt(2)))
        x = x + hidden @ own["mlp/fc2/kernel"] + own["mlp/fc2/bias"]
        attention.append(scores)
    x = norm(x, arrays["norm/gamma"], arrays["norm/beta"])
    heads = [x[n] @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"] for n, name in enumerate(("head", "head_dist"))]
    return sum(heads) / 2, np.array(attention)


@pytest.mark.slow
def test_published_sizes():
    for model, count in [
        (DeiT("Ti/16"), 5_717_416),
        (DeiT("Ti/16", distilled=True), 5_910_800),
        (DeiT("S/16"), 22_050_664),
        (DeiT("S/16", distilled=True), 22_436_432),
        (MLPMixer("S/16"), 18_528_264),
    ]:
        assert model.count_params() == count


def test_without_dropout_training_changes_nothing():
    layer, x = MLP(4), np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    np.testing.assert_array_equal(layer(x, training=True), layer(x))


def test_computes_what_loops_compute(x):
    model = shaken(vit(distilled=True, temperature=1.7))
    logits, *attention, features = taps.tap(model, ["logits", "attention_0", "attention_1", "features"])(x)
    for index, image in enumerate(x):
        expected, scores = replica(model, image, 1.7)
        np.testing.assert_allclose(logits[index], expected, atol=2e-5)
        for result, each in zip(attention, scores, strict=True):
            np.testing.assert_allclose(result[index], each, atol=1e-5)
    assert attention[0].shape == (3, 4, 14, 14)
    assert features.shape == (3, 4, 3, 32)
    np.testing.assert_allclose(model(x), logits, atol=1e-5)


@pytest.mark.samples(2)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_attention_is_a_distribution_and_the_views_are_one_model(x, prefix):
    model = shaken(vit(pool="token" if prefix else "avg", distilled=prefix == 2))
    names = taps.names(model)
    assert names == ["attention_0", "attention_1", "features", "logits"]
    tapped = taps.tap(model, names)
    *attention, _, logits = tapped(x)
    for each in attention:
        assert each.shape == (3, 4, 12 + prefix, 12 + prefix)
        np.testing.assert_allclose(ops.sum(each, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(model(x), logits, atol=1e-5)
    gradients = [
        autodiff.value_and_gradient(lambda x, of=of: ops.sum(ops.square(of(x)), axis=-1), model.variables)(x)[1]
        for of in (model, lambda x: tapped(x)[-1])
    ]
    assert np.abs(gradients[0]).max() > 1e-3
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-5 * np.abs(gradients[0]).max())


def test_temperature_reaches_compiled_functions_and_the_file(x, tmp_path):
    model = shaken(vit())
    gradient = autodiff.value_and_gradient(lambda x: ops.sum(model(x), axis=-1), model.variables)
    before, slope = model.predict(x, verbose=0), gradient(x)[1]
    count, weights = model.count_params(), len(model.weights)
    model.temperature = 3.0
    after = model.predict(x, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    assert np.abs(ops.subtract(gradient(x)[1], slope)).max() > 1e-4
    np.testing.assert_allclose(after, model(x), atol=1e-5)
    assert (model.count_params(), len(model.weights)) == (count, weights)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.temperature == 3.0
    np.testing.assert_allclose(loaded.predict(x, verbose=0), after, atol=1e-6)
    loaded.temperature = 1.0
    np.testing.assert_allclose(loaded.predict(x, verbose=0), before, atol=1e-5)
    loaded.blocks[1].temperature = 2.0
    assert loaded.temperature == (1.0, 2.0)
    assert VisionTransformer.from_config(loaded.get_config()).temperature == (1.0, 2.0)


def test_high_temperature_is_uniform_attention(x):
    model = shaken(vit(temperature=1e6))
    np.testing.assert_allclose(taps.tap(model, "attention_1")(x), 1 / 13, atol=1e-5)


@pytest.mark.samples(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: vit(distilled=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), dropout=0.1, drop_path=0.2),
        lambda: vit(pool="avg", epsilon=1e-12, mlp_units=7),
        lambda: DeiT("S/8", input_shape=(32, 24, 3), num_classes=5, distilled=True, **SMALL),
        lambda: mixer(channel_units=9, dropout=0.1, drop_path=0.3),
    ],
)
def test_trained_and_reloaded(x, make, tmp_path):
    model = make()
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    start = model.get_weights()
    model.fit(x, np.array([0, 1, 2]), epochs=1, verbose=0)
    assert all(np.abs(new - old).max() > 0 for new, old in zip(model.get_weights(), start, strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    for layer in model.layers:
        twin = type(layer).from_config(layer.get_config())
        assert twin.get_config() == layer.get_config(), layer
        assert layer.compute_output_shape(layer.input.shape) == layer.output.shape if hasattr(layer, "grid") else True


def test_normalization_is_inside(x):
    mean, std = np.array((0.5, 0.4, 0.3)), np.array((0.2, 0.3, 0.4))
    plain = vit()
    model = vit(mean=mean, std=std)
    model.set_weights(plain.get_weights())
    np.testing.assert_allclose(model(x), plain((x - mean) / std), atol=1e-4)


def test_mixed_precision(x):
    exact = shaken(vit())
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = vit()
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(exact.get_weights())
    logits, attention = taps.tap(model, ["logits", "attention_0"])(x)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert keras.backend.standardize_dtype(attention.dtype) == "bfloat16"
    difference = np.abs(ops.convert_to_numpy(logits) - ops.convert_to_numpy(exact(x))).max()
    assert difference < 0.1 * np.abs(ops.convert_to_numpy(exact(x))).max()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(model.fit(x, np.array([0, 1, 2]), verbose=0).history["loss"]).all()


def test_stochastic_depth_leaves_out_whole_branches():
    block = TransformerBlock(2, 8, drop_path=0.5)
    x = np.random.default_rng(0).normal(size=(64, 5, 4)).astype("float32")
    whole = ops.convert_to_numpy(block(x))
    assert np.abs(whole - x).max() > 0.1
    outputs = ops.convert_to_numpy(block(x, training=True))
    untouched = np.all(outputs == x, axis=(1, 2))
    assert 4 <= untouched.sum() <= 32  # both branches are left out for a quarter of the images
    assert not np.any(outputs[~untouched] == x[~untouched])


def test_embedding_on_another_size(x):
    layer = PatchEmbedding(8, 16)
    same = ops.convert_to_numpy(layer(x))
    assert same.shape == (3, 13, 16)
    layer.positions.assign(np.ones((13, 16)))
    layer.kernel.assign(np.zeros(layer.kernel.shape))
    larger = layer(np.zeros((1, 40, 48, 3), "float32"))
    assert larger.shape == layer.compute_output_shape((1, 40, 48, 3)) == (1, 31, 16)
    np.testing.assert_allclose(larger[:, 1:], 1, atol=1e-5)
    assert VisionTransformer.from_config(vit().get_config()).input_shape == (None, 32, 24, 3)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 101).astype("float32")
    np.testing.assert_allclose(gelu(x), ops.gelu(x, approximate=False), atol=1e-6)


def test_says_what_is_wrong():
    for arguments, message in [
        ({"input_shape": (30, 24, 3)}, "8x8 do not tile images of 30x24; the next larger legal size is 32x24"),
        ({"variant": "XS/8"}, r"size of \('Ti', 'S', 'B', 'L', 'H'\), '/' and a patch size; received 'XS/8'"),
        ({"variant": "Ti"}, "received 'Ti'"),
        ({"pool": "max"}, r"pool must be one of \('token', 'avg'\).*received 'max'"),
        ({"pool": "avg", "distilled": True}, "'token' if distilled"),
        ({"temperature": 0}, r"temperature must be a number in \(0, inf\); received 0"),
        ({"temperature": (1.0, 2.0, 3.0)}, "a float or 2 of them, one per block"),
        ({"num_heads": 5}, "num_heads must divide the dimension of the tokens, 32; received 5"),
        ({"width": 0}, "width must be an integer from 1 to 16777216; received 0"),
        ({"mean": (0.5,) * 3}, "together or not at all"),
        ({"mean": (0.5,) * 3, "std": "mean"}, "Expected std as an array of numbers; received strings"),
    ]:
        with pytest.raises(ValueError, match=message):
            vit(**arguments)
    model = vit()
    with pytest.raises(ValueError, match=r"temperature must be a number in \(0, inf\); received nan"):
        model.temperature = float("nan")
    with pytest.raises(ValueError, match="multiples of the patch size 8"):
        PatchEmbedding(8, 16)(np.zeros((1, 12, 16, 3)))
    with pytest.raises(ValueError, match="interpolation must be one of"):
        PatchEmbedding(8, 16, interpolation="nearest")
    assert MultiHeadSelfAttention(2, temperature=2).get_config()["temperature"] == 2.0


def naive_rollout(attention, fuse, discard, prefix):
    """One image, block by block with whole matrices (Abnar & Zuidema 2020)."""
    tokens = attention[0].shape[-1]
    result = np.eye(tokens)
    for scores in attention:
        fused = fuse(scores.astype("float64"), axis=0)
        dropped = np.argsort(fused, axis=None)[: int(discard * fused.size)]
        fused.flat[dropped] = 0
        mixed = fused + np.eye(tokens)
        mixed /= mixed.sum(-1, keepdims=True)
        result = mixed @ result
    np.testing.assert_allclose(result.sum(-1), 1)
    return result[: prefix or tokens].mean(0)[prefix:]


@pytest.mark.samples(2)
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("fusion", "discard"), [("mean", 0.0), ("max", 0.3), ("min", 0.0), ("mean", 0.9)])
def test_rollout_is_the_product_of_matrices(x, prefix, fusion, discard):
    model = shaken(vit("Ti/1", input_shape=(4, 3, 3), pool="token" if prefix else "avg", distilled=prefix == 2))
    small = x[:, :4, :3]
    explainer = explain.AttentionRollout(model, head_fusion=fusion, discard_ratio=discard, batch_size=2)
    maps = explainer(small)
    attention = [np.asarray(image) for image in taps.tap(model, ["attention_0", "attention_1"])(small)]
    fuse = {"mean": np.mean, "max": np.max, "min": np.min}[fusion]
    for index, result in enumerate(maps):
        expected = naive_rollout([image[index] for image in attention], fuse, discard, prefix).reshape(4, 3)
        np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([explainer(image[None]) for image in small]), maps, atol=1e-6)


def test_rollout_follows_the_temperature_and_enlarges(x):
    model = shaken(vit())
    explainer = explain.AttentionRollout(model)
    before = explainer(x, target=1)
    assert before.shape == (3, 32, 24)
    model.temperature = 1e6
    after = explainer(x)
    assert np.abs(before - after).max() > 1e-3
    assert after.std() < 1e-4  # uniform attention explains nothing
    assert explainer(x[:0]).shape == (0, 32, 24)


def test_rollout_says_what_is_wrong(x):
    model = vit()
    for arguments, message in [
        ({"head_fusion": "median"}, r"one of \('mean', 'max', 'min'\); received 'median'"),
        ({"discard_ratio": 1.0}, r"discard_ratio must be a number in \[0, 1\); received 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            explain.AttentionRollout(model, **arguments)
    with pytest.raises(ValueError, match="a model with self-attention; mixer has none that could be seen"):
        explain.AttentionRollout(mixer())
    with pytest.raises(ValueError, match=r"channels\); received \(32, 24, 3\)"):
        explain.AttentionRollout(model)(x[0])
