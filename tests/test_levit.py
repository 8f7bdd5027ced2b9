"""LeViT, against loops in NumPy and published counts; Hugging Face's outputs are in ``test_weights_from``."""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import LeViT, autodiff, explain, taps
from keras_capsvit.layers import LeViTBlock, OffsetAttention
from keras_capsvit.models import flops
from keras_capsvit.models.published import FORMATS, published_names, sources

SMALL = {"widths": (8, 10, 12), "depths": (1, 2, 1), "num_heads": (2, 3, 2), "key_dim": 4}
TAPS = ["attention_0_0", "subsampling_1", "attention_1_0", "attention_1_1", "subsampling_2", "attention_2_0"]


def levit(**kwargs):
    return LeViT("128S", **{"input_shape": (72, 56, 3), "num_classes": 5, **SMALL, **kwargs})


@pytest.fixture
def x():
    return np.random.default_rng(0).uniform(size=(2, 72, 56, 3)).astype("float32")


def shaken(model):
    """Values at which nothing is at its start: no branch is 0, no bias of the attention is 0."""
    random = np.random.default_rng(1)
    for variable in model.weights:
        values = ops.convert_to_numpy(variable) + random.normal(scale=0.3, size=variable.shape)
        variable.assign(np.abs(values) if variable.path.endswith("moving_variance") else values)
    return model


class Replica:
    """LeViT of one image in plain NumPy, from arrays by timm's names."""

    def __init__(self, model, temperatures):
        names = published_names(model).items()
        rules = FORMATS["timm (LeViT)"]
        self.arrays = {sources(name, rules)[0]: ops.convert_to_numpy(variable) for name, variable in names}
        self.temperatures, self.attention = iter(temperatures), []

    def norm(self, x, name):
        mean, variance, scale, offset = (
            self.arrays[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + offset

    def dense(self, x, name):
        return self.norm(x @ self.arrays[f"{name}.linear.weight"], f"{name}.bn")

    def conv(self, x, name):
        kernel, x = self.arrays[f"{name}.linear.weight"], np.pad(x, ((1, 1), (1, 1), (0, 0)))
        rows, columns = (range(0, size - 2, 2) for size in x.shape[:2])
        x = np.array([[np.tensordot(x[r : r + 3, c : c + 3], kernel, 3) for c in columns] for r in rows])
        return self.norm(x, f"{name}.bn")

    def attend(self, asking, inputs, query, key, value, biases, width):
        """Attention of places ``asking`` on places ``inputs``, head by head; ``width`` of the grid."""
        temperature, heads, results = next(self.temperatures), [], []
        for q, k, v, bias in zip(query, key, value, biases, strict=True):
            scores = np.array(
                [
                    [
                        q[n] @ k[m] / np.sqrt(q.shape[-1]) + bias[abs(a[0] - g[0]) * width + abs(a[1] - g[1])]
                        for m, g in enumerate(inputs)
                    ]
                    for n, a in enumerate(asking)
                ]
            )
            heads.append(softmax(scores / temperature))
            results.append(heads[-1] @ v)
        self.attention.append(np.array(heads))
        return np.concatenate(results, axis=-1)

    def block(self, x, grid, name, strides=1):
        key_dim = SMALL["key_dim"]
        attn = f"{name}.attn_downsample" if strides > 1 else f"{name}.attn"
        biases = self.arrays[f"{attn}.attention_biases"]
        inputs = list(itertools.product(*map(range, grid)))
        if strides > 1:
            asking = [place for place in inputs if not any(axis % strides for axis in place)]
            query = split(self.dense(x[[inputs.index(place) for place in asking]], f"{attn}.q.ln"), len(biases))
            rest = split(self.dense(x, f"{attn}.kv"), len(biases))
            key, value = rest[..., :key_dim], rest[..., key_dim:]
        else:
            asking, together = inputs, split(self.dense(x, f"{attn}.qkv"), len(biases))
            query, key, value = np.split(together, [key_dim, 2 * key_dim], axis=-1)
        mixed = self.attend(asking, inputs, query, key, value, biases, grid[1])
        mixed = self.dense(hard_swish(mixed), f"{attn}.proj.ln")
        x = mixed if strides > 1 else x + mixed
        hidden = hard_swish(self.dense(x, f"{name}.mlp.ln1"))
        return x + self.dense(hidden, f"{name}.mlp.ln2")

    def __call__(self, image):
        x = image
        for index in range(1, 5):
            x = self.conv(x, f"stem.conv{index}")
            x = hard_swish(x) if index < 4 else x
        grid, x = x.shape[:2], x.reshape(-1, x.shape[-1])
        for stage, depth in enumerate(SMALL["depths"]):
            if stage:
                x = self.block(x, grid, f"stages.{stage}.downsample", strides=2)
                grid = tuple(math.ceil(size / 2) for size in grid)
            for index in range(depth):
                x = self.block(x, grid, f"stages.{stage}.blocks.{index}")
        logits = [
            self.norm(x.mean(0), f"{head}.bn") @ self.arrays[f"{head}.linear.weight"]
            + self.arrays[f"{head}.linear.bias"]
            for head in ("head", "head_dist")
        ]
        return x.reshape(*grid, -1), sum(logits) / 2


def split(x, heads):
    """``(t, heads d)`` as ``(heads, t, d)``."""
    return np.array(np.split(x, heads, axis=-1))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def hard_swish(x):
    return x * np.clip(x + 3, 0, 6) / 6


@pytest.mark.slow
def test_computes_what_loops_compute(x):
    temperatures = (1.0, 0.7, 1.5, 2.0, 1.3, 0.9)
    mean, std = (0.2, 0.5, 0.6), (0.3, 0.2, 0.4)
    model = shaken(levit(temperature=temperatures, mean=mean, std=std))
    assert set(taps.names(model)) == {*TAPS, "features", "logits"}
    *attention, features, logits = taps.tap(model, [*TAPS, "features", "logits"])(x)
    for index, image in enumerate(x):
        replica = Replica(model, temperatures)
        expected_features, expected = replica((image - mean) / std)
        scale = np.abs(expected_features).max()
        np.testing.assert_allclose(features[index], expected_features, atol=1e-4 * scale, rtol=1e-4)
        np.testing.assert_allclose(logits[index], expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-4)
        for name, tensor, scores in zip(TAPS, attention, replica.attention, strict=True):
            np.testing.assert_allclose(tensor[index], scores, atol=1e-4, err_msg=name)
            assert np.ptp(scores) > 0.01, name  # far from uniform
    assert [each.shape[1:] for each in attention[:3]] == [(2, 20, 20), (2, 6, 20), (3, 6, 6)]
    np.testing.assert_allclose(model(x), logits, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_published_sizes():
    # Millions of parameters, of FLOPs (Graham et al. 2021, Table 3), in timm with both heads.
    for variant, parameters, operations in [("128S", 7.78, 305), ("256", 18.89, 1120)]:
        model = LeViT(variant)
        trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
        assert round(trained / 1e6, 2) == parameters
        assert abs(flops(model) / 1e6 / operations - 1) < 0.01
        assert model.taps["features"].shape[1:3] == (4, 4)


@pytest.mark.long
def test_temperature_reaches_compiled_functions_and_the_file(x, tmp_path):
    model = shaken(levit())
    before, weights = model.predict(x, verbose=0), len(model.weights)
    model.temperature = 3.0
    after = model.predict(x, verbose=0)
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()
    assert len(model.weights) == weights
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.temperature == 3.0
    np.testing.assert_allclose(loaded.predict(x, verbose=0), after, rtol=1e-5, atol=1e-5 * np.abs(after).max())
    loaded.blocks[1].temperature = 2.0
    assert loaded.temperature == (3.0, 2.0, 3.0, 3.0, 3.0, 3.0)
    assert LeViT.from_config(loaded.get_config()).temperature == loaded.temperature


def test_high_temperature_is_uniform_attention(x):
    model = shaken(levit(temperature=1e6))
    np.testing.assert_allclose(taps.tap(model, "subsampling_1")(x), 1 / 20, atol=1e-4)


def test_gradients_of_both_views_agree(x):
    model = shaken(levit(widths=(8, 10), depths=(1, 1), num_heads=(2, 2)))
    tapped = taps.tap(model, ["attention_0_0", "logits"])
    gradients = [
        autodiff.value_and_gradient(lambda x, of=of: ops.sum(ops.square(of(x)), axis=-1), model.variables)(x)[1]
        for of in (model, lambda x: tapped(x)[-1])
    ]
    assert np.abs(gradients[0]).max() > 0
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-4 * np.abs(gradients[0]).max())


def test_a_new_model_starts_without_its_residual_branches(x):
    model = levit(depths=(2,), widths=(8,), num_heads=(2,), distilled=False)
    tokens = keras.Model(model.input, model.get_layer("tokens").output)(x)
    np.testing.assert_allclose(taps.tap(model, "features")(x), ops.reshape(tokens, (2, 5, 4, 8)), atol=1e-6)
    assert not any("dist" in layer.name for layer in model.layers)


@pytest.mark.long
def test_trained_and_reloaded(x, tmp_path):
    small = {"widths": (8, 10), "depths": (1, 1), "num_heads": (2, 2)}
    model = shaken(levit(**small, drop_path=0.2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)))
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    start = model.get_weights()
    model.fit(x, np.array([0, 1]), epochs=3, verbose=0)
    changed = [np.abs(new - old).max() > 0 for new, old in zip(model.get_weights(), start, strict=True)]
    assert all(changed)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        OffsetAttention(3, 4, (3, 2), value_ratio=3, temperature=2.0, starts_at_zero=True),
        OffsetAttention(3, 4, (5, 2), strides=2, dim=7),
        LeViTBlock(3, 4, (3, 2), drop_path=0.1),
        LeViTBlock(3, 4, (5, 3), strides=2, dim=7),
    ],
)
def test_layers(layer):
    grid = layer.get_config()["grid"]
    tokens = np.random.default_rng(0).normal(size=(2, math.prod(grid), 6)).astype("float32")
    result, attention = layer(tokens, return_attention_scores=True)
    symbolic = layer(keras.Input(tokens.shape[1:]), return_attention_scores=True)
    assert [each.shape[1:] for each in symbolic] == [result.shape[1:], attention.shape[1:]]
    np.testing.assert_allclose(ops.sum(attention, axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(layer(tokens), result)
    twin = type(layer).from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()


@pytest.mark.long
def test_attention_over_stages_is_refused_by_rollout(x):
    model = shaken(levit())
    with pytest.raises(ValueError, match="stages of different sizes"):
        explain.AttentionRollout(model)(x)
    assert explain.GradCAM(model)(x).shape == (2, 72, 56)


def test_says_what_is_wrong():
    block = LeViTBlock(2, 4, (3, 2))
    for make, message in [
        (lambda: LeViT("64"), r"variant must be one of \('128S', '128', '192', '256', '384'\); received '64'"),
        (lambda: levit(widths=(8, 10)), r"one entry per stage; received \(8, 10\), \(1, 2, 1\) and \(2, 3, 2\)"),
        (lambda: levit(widths=(9, 10, 12)), r"first of widths must be a multiple of 8.*received \(9, 10, 12\)"),
        (lambda: levit(key_dim=9), r"key_dim must not be above any of widths but the last.*received 9"),
        (lambda: levit(depths=(1, 0, 1)), r"depths must be positive ints.*received \(1, 0, 1\)"),
        (lambda: levit(temperature=(1.0, 2.0)), r"temperature must be a float or 6 of them, one per block"),
        (lambda: levit(temperature=0), r"temperature must be .*; received 0"),
        (lambda: levit(depth=3), r"received the unknown 'depth'\. Did you mean 'depths'"),
        (lambda: block(np.zeros((1, 5, 4), "float32")), r"Expected the tokens \(b, 6, d\) of a grid of \(3, 2\)"),
        (lambda: LeViTBlock(2, 4, (3, 2), dim=5), r"dim must be None without strides.*received 5"),
        (lambda: OffsetAttention(2, 4, (3, 0)), r"grid must be .*; received \(3, 0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
