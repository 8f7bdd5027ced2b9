"""Attention of transformers as maps: rollout and class-specific attribution, on our models and on foreign ones."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import vit

from keras_capsvit import DeiT, VisionTransformer, autodiff, explain, taps

layers, ops = keras.layers, keras.ops
EXPLAINERS = (explain.AttentionRollout, explain.TransformerAttribution)


def named(kind):
    return kind.__name__


def images(count=2, size=12, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, size, size, 3)).astype("float32")


def logits_with(model, x, offsets):
    """Logits and attentions of ``networks.vit``, step by step, with something added to its attentions."""
    tokens, attentions = keras.Model(model.inputs, model.get_layer("tokens").output)(x), []
    for i, offset in enumerate(offsets):
        layer, normal = model.get_layer(f"attention{i}"), model.get_layer(f"norm{i}a")(tokens)
        query, key, value = (
            ops.einsum("btd,dhe->bhte", normal, dense.kernel) + ops.expand_dims(dense.bias, 1)
            for dense in (layer.query_dense, layer.key_dense, layer.value_dense)
        )
        scores = ops.exp(ops.einsum("bhte,bhse->bhts", query, key) / query.shape[-1] ** 0.5)
        attentions.append(scores / ops.sum(scores, axis=-1, keepdims=True) + offset)
        mixed = ops.einsum("bhts,bhse->bthe", attentions[-1], value)
        tokens = tokens + ops.einsum("bthe,hed->btd", mixed, layer.output_dense.kernel) + layer.output_dense.bias
        hidden = model.get_layer(f"mlp{i}a")(model.get_layer(f"norm{i}b")(tokens))
        tokens = tokens + model.get_layer(f"mlp{i}b")(hidden)
    return model.get_layer("head")(model.get_layer("norm")(tokens)[:, 0]), attentions


def attention_and_gradients(model, x, ids):
    """Lists of the attentions of ``networks.vit`` and of the gradients of class scores there."""
    zeros = [np.zeros((len(x), 2, 10, 10), "float32")] * 2
    logits, attentions = logits_with(model, x, zeros)
    np.testing.assert_allclose(ops.convert_to_numpy(logits), ops.convert_to_numpy(model(x)), atol=1e-5)
    of_class = np.eye(5, dtype="float32")[ids]
    gradients = []
    for i in range(2):

        def score(offset, i=i):
            return ops.sum(logits_with(model, x, [offset if k == i else zeros[k] for k in range(2)])[0] * of_class, -1)

        gradients.append(autodiff.value_and_gradient(score, model.variables)(zeros[i])[1])
    return [[ops.convert_to_numpy(each) for each in part] for part in (attentions, gradients)]


def naive_attribution(attentions, gradients, read, prefix):
    """One image: lists of ``(heads, t, t)``, block by block with whole matrices."""
    relevance = np.eye(attentions[0].shape[-1])
    for attention, gradient in zip(attentions, gradients, strict=True):
        mean = np.zeros_like(relevance)
        for head in range(len(attention)):
            mean += np.maximum(gradient[head] * attention[head], 0) / len(attention)
        relevance = relevance + mean @ relevance
    return np.mean([relevance[token] for token in read], axis=0)[prefix:]


def naive_rollout(attentions, read, prefix):
    """One image: a list of ``(heads, t, t)``, block by block with whole matrices."""
    result = np.eye(attentions[0].shape[-1])
    for attention in attentions:
        mixed = attention.mean(0) + np.eye(len(result))
        result = mixed / mixed.sum(-1, keepdims=True) @ result
    return np.mean([result[token] for token in read], axis=0)[prefix:]


def enlarged(maps, size):
    return ops.convert_to_numpy(ops.image.resize(maps[..., None], size, data_format="channels_last"))[..., 0]


def per_image(lists):
    return zip(*[[list(each) for each in zip(*part, strict=True)] for part in lists], strict=True)


@pytest.mark.slow
def test_maps_of_a_foreign_transformer_are_those_of_loops():
    model, x, ids = vit(), images(3), [4, 0, 2]
    attentions, gradients = attention_and_gradients(model, x, ids)
    expected = [naive_attribution(*both, [0], 1).reshape(3, 3) for both in per_image([attentions, gradients])]
    maps = explain.TransformerAttribution(model, batch_size=2)(x, ids)
    np.testing.assert_allclose(maps, enlarged(np.stack(expected), (12, 12)), rtol=1e-4, atol=1e-6)
    assert maps.std(axis=(1, 2)).min() > 1e-4
    assert np.abs(maps - explain.TransformerAttribution(model)(x, 1)).max() > 1e-3
    expected = [naive_rollout(each, [0], 1).reshape(3, 3) for (each,) in per_image([attentions])]
    rollout = explain.AttentionRollout(model, batch_size=2)(x)
    np.testing.assert_allclose(rollout, enlarged(np.stack(expected), (12, 12)), atol=1e-6)


@pytest.mark.samples(1)
@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["token", "distilled", "pooled"])
def test_maps_of_our_transformers_are_those_of_loops(kind):
    import tensorflow as tf

    settings = {"input_shape": (12, 8, 3), "num_classes": 4, "width": 8, "depth": 3, "num_heads": 2}
    if kind == "pooled":
        model, read, prefix = VisionTransformer("S/4", pool="avg", **settings), range(6), 0
    else:
        model, prefix = DeiT("S/4", distilled=kind == "distilled", **settings), 1 + (kind == "distilled")
        read = range(prefix)
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign_add(rng.normal(scale=0.2, size=variable.shape))
    x, ids = rng.uniform(size=(2, 12, 8, 3)).astype("float32"), [3, 1]
    tapped = taps.tap(model, ["logits", "attention_0", "attention_1", "attention_2"])
    with tf.GradientTape() as tape:
        logits, *attentions = tapped(x)
        score = tf.gather(logits, ids, axis=1, batch_dims=1)
    gradients = [gradient.numpy() for gradient in tape.gradient(score, attentions)]
    both = per_image([[each.numpy() for each in attentions], gradients])
    expected = [naive_attribution(*each, read, prefix).reshape(3, 2) for each in both]
    maps = explain.TransformerAttribution(model)(x, ids)
    np.testing.assert_allclose(maps, enlarged(np.stack(expected), (12, 8)), rtol=1e-4, atol=1e-5)


@keras.saving.register_keras_serializable(package="test_transformer_attribution")
class Ending(keras.Model):
    """A subclass that ends in a softmax."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return ops.softmax(self.inner(x))


TWINS = {
    "nested in 0..255": lambda model: keras.Sequential(
        [keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), model, layers.Softmax()]
    ),
    "integers": lambda model: keras.Sequential(
        [keras.Input((12, 12, 3), dtype="uint8"), layers.Rescaling(1 / 255), model, layers.Softmax()]
    ),
    "subclass": lambda model: Ending(keras.Sequential([keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), model])),
}


@pytest.mark.samples(1)
@pytest.mark.parametrize("kind", EXPLAINERS, ids=named)
@pytest.mark.parametrize("twin", TWINS)
def test_twins_have_the_same_maps(kind, twin):
    model, x = vit(), np.round(255 * images()) / 255
    np.testing.assert_allclose(kind(TWINS[twin](model))(255 * x, 1), kind(model)(x, 1), atol=1e-5)


@pytest.mark.samples(slow=1)
@pytest.mark.long
@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", EXPLAINERS, ids=named)
def test_served_models_have_the_maps_of_live_ones(kind, tmp_path):
    import tensorflow as tf

    from keras_capsvit import serving

    model, x, ids = vit(), images(), np.array([3, 1])
    expected = kind(model)(x, ids)
    serving.export(model, tmp_path / "ours", input_range=None, explainers={"map": kind(model)})
    served = serving.load(tmp_path / "ours")
    np.testing.assert_allclose(served.explain(x, ids, endpoint="map")["maps"], expected, atol=1e-5)
    np.testing.assert_allclose(kind(served)(x, ids), expected, atol=1e-5)
    model.export(tmp_path / "foreign", verbose=False)
    np.testing.assert_allclose(kind(tf.saved_model.load(tmp_path / "foreign"))(x, ids), expected, atol=1e-5)


def tokens_of(make_head, registers=2):
    """One block over a class token, registers and nine patches, and a head."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((12, 12, 3))
    patches = layers.Reshape((9, 8))(layers.Conv2D(8, 4, strides=4)(inputs))
    front = layers.Reshape((1 + registers, 8))(
        layers.Dense(8 * (1 + registers))(layers.GlobalAveragePooling2D()(inputs))
    )
    x = layers.Concatenate(axis=1)([front, patches])
    normal = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(normal, normal)])
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(make_head(layers.LayerNormalization()(x))))


@pytest.mark.parametrize(
    ("head", "read"),
    [
        (lambda tokens: tokens[:, 0], [0]),
        (lambda tokens: layers.GlobalAveragePooling1D()(tokens), range(12)),
        (lambda tokens: layers.GlobalAveragePooling1D()(tokens[:, 3:]), range(3, 12)),
        (lambda tokens: layers.Concatenate()([tokens[:, 0], layers.GlobalMaxPooling1D()(tokens[:, 3:])]), None),
    ],
    ids=["class token", "all", "patches", "class token and maximum"],
)
def test_rows_are_those_that_the_scores_depend_on(head, read):
    model, x = tokens_of(head), images()
    scores = taps.scores(model)
    result = taps.tokens_read(scores)
    if read is None:
        assert 0 in result
        assert not {1, 2} & set(result)
        return
    np.testing.assert_array_equal(result, read)
    assert taps.tokens(scores) == (3, (3, 3))
    attention = ops.convert_to_numpy(taps.tap(model, "attention_0")(x))
    expected = np.stack([naive_rollout([each], read, 3).reshape(3, 3) for each in attention])
    np.testing.assert_allclose(explain.AttentionRollout(model)(x), enlarged(expected, (12, 12)), atol=1e-6)


def test_what_is_no_chain_over_all_tokens_is_refused():
    inputs = keras.Input((12, 12, 3))
    both = keras.Model(inputs, layers.Average()([vit()(inputs), vit()(inputs)]))
    windows = layers.Reshape((9, 16, 8))(layers.Conv2D(8, 1)(inputs))
    mixed = layers.MultiHeadAttention(2, 4, attention_axes=2)(windows, windows)
    pooled = layers.GlobalAveragePooling2D()(mixed)
    convolutional = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(2)])
    for kind in EXPLAINERS:
        with pytest.raises(ValueError, match="2 do not depend on the first"):
            kind(both)
        with pytest.raises(ValueError, match="self-attention"):
            kind(keras.Model(inputs, layers.Dense(3)(pooled)))
        with pytest.raises(ValueError, match=r"Expected a model with self-attention; .* has none"):
            kind(convolutional)
    with pytest.raises(ValueError, match=r"images of shape \(None, 12, 12, 3\)"):
        explain.TransformerAttribution(vit())(images(size=16))


def hub(family, **settings):
    models = pytest.importorskip("keras_hub").models
    sizes = {"image_shape": (16, 16, 3), "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8}
    return getattr(models, f"{family}Backbone")(**sizes, **settings)


@pytest.mark.samples(slow=1)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize(
    ("family", "settings", "prefix"),
    [
        ("ViT", {"mlp_dim": 16}, 1),
        ("DeiT", {"intermediate_dim": 16}, 2),
        ("DINOV2", {"intermediate_dim": 16, "num_register_tokens": 3}, 4),
    ],
)
def test_keras_hub_backbones_inside_a_model(family, settings, prefix):
    keras.utils.set_random_seed(1)
    backbone = hub(family, **settings)
    inputs = keras.Input((16, 16, 3))
    tokens = backbone(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(tokens[:, 0]))
    x, scores = 255 * images(size=16), taps.scores(model)
    assert taps.tokens(scores) == (prefix, (4, 4))
    np.testing.assert_array_equal(taps.tokens_read(scores), [0])
    attentions = [ops.convert_to_numpy(each) for each in taps.tap(model, ["attention_0", "attention_1"])(x)]
    expected = np.stack([naive_rollout(each, [0], prefix).reshape(4, 4) for (each,) in per_image([attentions])])
    np.testing.assert_allclose(explain.AttentionRollout(model)(x), enlarged(expected, (16, 16)), atol=1e-6)
    maps = explain.TransformerAttribution(model)(x, 1)
    assert maps.min() >= 0
    assert maps.std(axis=(1, 2)).min() > 1e-5


@pytest.mark.peers
def test_attention_of_keras_hub_is_that_of_hugging_face(tmp_path):
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        pytest.skip("needs torch and transformers")
    script = pathlib.Path(__file__).with_name("attention_of_peers.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = dict(np.load(tmp_path / "peer.npz"))
    backbone = hub("ViT", mlp_dim=16, layer_norm_epsilon=1e-6)
    for variable in backbone.weights:
        variable.assign(from_hugging_face(variable, theirs))
    tokens = ops.convert_to_numpy(backbone(theirs["images"]))
    np.testing.assert_allclose(tokens, theirs["tokens"], atol=1e-4)
    model = keras.Sequential([backbone, layers.Flatten(), layers.Dense(3)])
    outputs = taps.tap(model, ["attention_0", "attention_1"])(theirs["images"])
    for k, attention in enumerate(outputs):
        np.testing.assert_allclose(ops.convert_to_numpy(attention), theirs[f"attention_{k}"], atol=1e-5)
        assert theirs[f"attention_{k}"].std() > 0.01


def from_hugging_face(variable, theirs):
    """The value of a variable of keras-hub's ViT, out of the arrays of the same ViT of Hugging Face."""
    *_, module, name = parts = variable.path.split("/")
    if name == "class_token":
        return theirs["embeddings.cls_token"]
    if "position_embedding" in variable.path:
        return theirs["embeddings.position_embeddings"].reshape(variable.shape)
    if "patch_embedding" in parts:
        array = theirs[f"embeddings.patch_embeddings.projection.{'weight' if name == 'kernel' else 'bias'}"]
        return array.transpose(2, 3, 1, 0) if name == "kernel" else array
    suffix = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}[name]
    block = re.search(r"transformer_block_(\d+)", variable.path)
    inside = {
        "ln_1": "layernorm_before",
        "ln_2": "layernorm_after",
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
        "attention_output": "attention.output.dense",
        "dense_1": "intermediate.dense",
        "dense_2": "output.dense",
    }
    prefix = f"encoder.layer.{int(block[1]) - 1}.{inside[module]}" if block else "layernorm"
    array = theirs[f"{prefix}.{suffix}"]
    return (array.T if name == "kernel" else array).reshape(variable.shape)
