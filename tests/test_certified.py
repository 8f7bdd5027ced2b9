"""Certified patch robustness: against loops, against every patch that there is, and with tokens left out."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import DeiT, VisionTransformer, evaluate, layers
from keras_capsvit.patches import apply_patch

SHAPE = (5, 7, 2)
KERNEL = np.random.default_rng(1).normal(size=(np.prod(SHAPE), 3)).astype("float32")


def images(count, shape=SHAPE):
    return np.random.default_rng(0).uniform(size=(count, *shape)).astype("float32")


def linear(x):
    return ops.matmul(ops.reshape(x, (-1, KERNEL.shape[0])), KERNEL)


CALLS = []


def counted(x):
    CALLS.append(len(x))
    return linear(x)


def ablated(image, size, kind, stride, fill):
    """Every ablation of an image, pixel by pixel."""
    height, width = image.shape[:2]
    for top in range(0, height if kind == "block" else 1, stride):
        for left in range(0, width, stride):
            result = np.broadcast_to(np.asarray(fill, "float32"), image.shape).copy()
            for row in range(height):
                for column in range(width):
                    tall = size if kind == "block" else height
                    if (row - top) % height < tall and (column - left) % width < size:
                        result[row, column] = image[row, column]
            yield result


@pytest.mark.parametrize("kind", ["column", "block"])
@pytest.mark.parametrize(("size", "stride", "fill"), [(2, 1, 0.0), (3, 2, 0.4), (1, 3, [0.2, -1.0])])
def test_votes_are_those_of_a_loop(kind, size, stride, fill):
    x = images(4)
    options = {"size": size, "ablation": kind, "stride": stride, "fill": fill}
    result = evaluate.certified_patch_accuracy(linear, (x, [0, 1, 2, 0]), 1, batch_size=5, **options)
    for image, counts in zip(x, result.counts, strict=True):
        every = np.array(list(ablated(image, size, kind, stride, fill)))
        votes = (every.reshape(len(every), -1) @ KERNEL).argmax(axis=1)
        np.testing.assert_array_equal(counts, np.bincount(votes, minlength=3))
        assert result.ablations == len(every)
    together = evaluate.certified_patch_accuracy(linear, [(x, np.array([0, 1, 2, 0]))], 1, batch_size=1000, **options)
    np.testing.assert_array_equal(together.counts, result.counts)
    np.testing.assert_array_equal(result.predictions, result.counts.argmax(axis=1))
    assert result.accuracy == np.mean(result.predictions == [0, 1, 2, 0])


@settings(max_examples=12)
@given(st.sampled_from(["column", "block"]), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
def test_affected_are_the_most_that_a_patch_is_seen_in(kind, size, stride, height, width):
    x, position = images(1), np.argwhere(np.ones((6 - height, 8 - width)))
    options = {"size": size, "ablation": kind, "stride": stride}
    result = evaluate.certified_patch_accuracy(linear, (x, [0]), (height, width), **options)
    seen = [
        sum(bool(part.any()) for part in ablated(apply_patch(0 * x, np.ones((height, width, 2)), at)[0], *rest))
        for at in position
        for rest in [(size, kind, stride, 0.0)]
    ]
    assert result.affected == max(seen)
    if stride == 1:
        columns, rows = min(7, width + size - 1), min(5, height + size - 1) if kind == "block" else 1
        assert result.affected == columns * rows


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from([None, 0.3]), st.sampled_from(["column", "block"]))
def test_certified_is_whom_no_change_of_the_affected_votes_changes(seed, threshold, kind):
    """The most that a patch can do is to take votes from the first class and give as many to another one."""
    x = np.random.default_rng(seed).uniform(size=(6, *SHAPE)).astype("float32")
    options = {"size": 1, "ablation": kind, "threshold": threshold}
    result = evaluate.certified_patch_accuracy(lambda x: 3 * linear(x), (x, np.zeros(6, int)), 1, **options)
    for counts, predicted, certified in zip(result.counts, result.predictions, result.certified, strict=True):
        changed = []
        for rival in set(range(3)) - {predicted}:
            after = counts.copy()
            after[predicted] -= result.affected
            after[rival] += result.affected
            changed.append(after.argmax() == predicted)
        assert certified == all(changed)


def brightest(x):
    """A robust vote: which third of the channels' means leads, on average over what is visible."""
    return ops.mean(x, axis=(1, 2)) * np.float32(50)


@pytest.mark.parametrize("kind", ["column", "block"])
def test_no_patch_changes_what_is_certified(kind):
    """Every position, with contents of all bright or dark channels and with noise."""
    random = np.random.default_rng(3)
    x = random.uniform(0.2, 0.6, size=(12, 6, 6, 3)).astype("float32")
    x[np.arange(12), :, :, np.arange(12) % 3] += np.repeat([0.0, 0.1, 0.4, 0.4], 3)[:, None, None].astype("float32")
    options = {"size": 1, "ablation": kind}
    result = evaluate.certified_patch_accuracy(brightest, (x, np.arange(12) % 3), 2, **options)
    assert 3 <= result.certified.sum() < 12
    assert result.certified_accuracy <= result.accuracy
    corners = np.array(list(np.ndindex(2, 2, 2)), "float32")
    contents = [np.full((2, 2, 3), corner) for corner in corners] + list(random.uniform(size=(3, 2, 2, 3)))
    patched = [apply_patch(x, patch, at) for at in np.argwhere(np.ones((5, 5))) for patch in contents]
    moved = evaluate.certified_patch_accuracy(
        brightest, (np.concatenate(patched), np.zeros(12 * len(patched), int)), 2, batch_size=20_000, **options
    )
    broken = np.any(moved.predictions.reshape(-1, 12) != result.predictions, axis=0)
    assert not np.any(broken & result.certified)
    assert broken.any()


def vit(kind=VisionTransformer, **options):
    size = {"input_shape": (12, 8, 2), "num_classes": 3, "width": 8, "depth": 2, "num_heads": 2, "mlp_units": 8}
    keras.utils.set_random_seed(1)
    model = kind("Ti/4", **size, **options)
    random = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign_add(random.normal(scale=0.3, size=variable.shape))
    return model


def masked(model, images, visible):
    """Logits ``(b, M)`` where no token attends to, or is read from, those that are not ``visible (b, t)``."""
    prefix = len(model.get_layer("patch_embed").tokens)
    keep = np.concatenate([np.ones((len(images), prefix), bool), visible], axis=1)
    x = keras.Model(model.inputs[0], model.get_layer("patch_embed").output)(images)
    for block in model.blocks:
        split = ops.reshape(block.attn.qkv(block.norm1(x)), (*x.shape[:2], 3, 2, 4))
        query, key, value = (ops.convert_to_numpy(split)[:, :, n].transpose(0, 2, 1, 3) for n in range(3))
        scores = query @ key.transpose(0, 1, 3, 2) / 2 / model.temperature
        scores = np.exp(np.where(keep[:, None, None], scores, -np.inf))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
        x = x + block.attn.proj(mixed.transpose(0, 2, 1, 3).reshape(x.shape))
        x = x + block.mlp(block.norm2(x))
    x = ops.convert_to_numpy(model.get_layer("norm")(x))
    if not prefix:
        means = (x * keep[..., None]).sum(axis=1) / keep.sum(axis=1, keepdims=True)
        return ops.convert_to_numpy(model.get_layer("head")(means))
    heads = [name for name in ("head", "head_dist") if name in [layer.name for layer in model.layers]]
    return np.mean([ops.convert_to_numpy(model.get_layer(n)(x[:, k])) for k, n in enumerate(heads)], axis=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(VisionTransformer, {"temperature": 1.5}), (VisionTransformer, {"pool": "avg"}), (DeiT, {"distilled": True})],
    ids=["class token", "pooled", "distilled"],
)
def test_tokens_that_are_left_out_are_tokens_that_nobody_looks_at(kind, options):
    model, x = vit(kind, **options), images(3, (12, 8, 2))
    tokens = np.array([[0, 3], [5, 4], [2, 1]])
    visible = np.zeros((3, 6), bool)
    np.put_along_axis(visible, tokens, True, axis=1)
    expected = masked(model, x, visible)
    np.testing.assert_allclose(model.logits_of_tokens(x, tokens), expected, atol=1e-5)
    with pytest.raises(ValueError, match="tokens must be integers from 0 to 5; received 6"):
        model.logits_of_tokens(x, tokens + 1)
    everything = np.tile(np.arange(6), (3, 1))
    np.testing.assert_allclose(model.logits_of_tokens(x, everything), model(x), atol=1e-5)
    assert np.abs(expected - ops.convert_to_numpy(model(x))).max() > 1e-3


@pytest.mark.parametrize(("ablation", "threshold"), [("column", None), ("block", 0.3)])
def test_dropped_tokens_vote_as_masked_ones(ablation, threshold):
    model, x = vit(), images(4, (12, 8, 2))
    options = {"size": 3, "ablation": ablation, "threshold": threshold, "stride": 2, "fill": 0.5, "batch_size": 7}
    result = evaluate.certified_patch_accuracy(model, (x, [0, 1, 2, 0]), 2, drop_tokens=True, **options)
    for image, counts in zip(x, result.counts, strict=True):
        # Which pixels are visible shows in the ablations of an image of ones.
        parts = [
            np.array(list(ablated(each, 3, ablation, 2, fill))) for each, fill in ((image, 0.5), (0 * image + 1, 0))
        ]
        visible = parts[1].reshape(-1, 3, 4, 2, 4, 2).any(axis=(2, 4, 5)).reshape(-1, 6)
        logits = masked(model, parts[0], visible)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        votes = probabilities >= threshold if threshold else logits.argmax(axis=1)[:, None] == np.arange(3)
        np.testing.assert_array_equal(counts, votes.sum(axis=0))


def test_votes_are_kept_and_serve_every_patch_size(tmp_path):
    data = images(6), np.zeros(6, int)
    of_small_patch = evaluate.certified_patch_accuracy(counted, data, 1, size=2, batch_size=14, work=tmp_path)
    before = sum(CALLS)
    of_large_patch = evaluate.certified_patch_accuracy(counted, data, 3, size=2, batch_size=14, work=tmp_path)
    assert sum(CALLS) - before <= 12  # what tells callables apart; all votes are 42
    np.testing.assert_array_equal(of_small_patch.counts, of_large_patch.counts)
    assert of_large_patch.certified_accuracy <= of_small_patch.certified_accuracy
    assert of_large_patch.affected == 4
    with pytest.raises(ValueError, match="holds results of another evaluation: size"):
        evaluate.certified_patch_accuracy(counted, data, 1, size=3, batch_size=14, work=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be an integer from 1 to 7"),
        ({"size": 8}, "size must be an integer from 1 to 7"),
        ({"size": 6, "ablation": "block"}, "size must be an integer from 1 to 5"),
        ({"size": 2, "ablation": "row"}, r"ablation must be one of \('column', 'block'\)"),
        ({"size": 2, "stride": 8}, "stride must be an integer from 1 to 7"),
        ({"size": 2, "threshold": 0}, "threshold must be a number in"),
        ({"size": 2, "fill": "mean"}, "the same for all images; received 'mean'"),
        ({"size": 2, "fill": np.zeros((1, *SHAPE))}, "received shape"),
        ({"size": 2, "fill": float("nan")}, "fill"),
        ({"size": 2, "patch_size": (6, 1)}, "A patch must fit into the image"),
        ({"size": 2, "drop_tokens": True}, "live VisionTransformer or DeiT of this package"),
        ({"size": 2, "batch_size": 0}, "batch_size must be"),
        ({"size": 2, "dataset": []}, "the data set is empty"),
        ({"size": 2, "dataset": [(images(1), [0]), (images(1, (5, 6, 2)), [0])]}, "the first batch takes them"),
        ({"size": 2, "dataset": (images(1), [3])}, "Expected class ids between 0 and 2"),
    ],
)
def test_what_cannot_be_certified_is_refused(options, message):
    arguments = {"dataset": (images(1), [0]), "patch_size": 1, **options}
    with pytest.raises(ValueError, match=message):
        evaluate.certified_patch_accuracy(linear, **arguments)


@pytest.mark.parametrize("kind", ["column", "block"])
def test_ablations_of_training_are_those_of_the_measurement(kind):
    layer, x = layers.Ablation(2, kind=kind, fill=-1.0, seed=3), images(400)
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(layer(x, training=False), x)
    visible = ops.convert_to_numpy(layer(x, training=True)) != -1
    possible = {(part != 0).tobytes() for part in ablated(np.ones(SHAPE, "float32"), 2, kind, 1, 0)}
    assert {each.tobytes() for each in visible} == possible
    twin = layers.Ablation.from_config(layer.get_config())
    np.testing.assert_array_equal(ops.convert_to_numpy(twin(x, training=True)) != -1, visible)


def test_ablations_of_training_refuse_small_images():
    with pytest.raises(ValueError, match="of at least size=6 pixels"):
        layers.Ablation(6, kind="block")(images(1))
    with pytest.raises(ValueError, match="kind must be one of"):
        layers.Ablation(2, kind="row")


@pytest.mark.long
def test_a_transformer_trained_on_ablations_has_certified_accuracy(digits):
    x, y = digits
    keras.utils.set_random_seed(0)
    inside = VisionTransformer(
        "Ti/2", input_shape=(8, 8, 1), num_classes=10, width=32, depth=2, num_heads=4, mlp_units=64, pool="avg"
    )
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Ablation(2, seed=0), inside])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(4e-3), loss)
    model.fit(x[:1400], y[:1400], epochs=30, batch_size=140, verbose=0)
    test = x[1400:], y[1400:]
    result = evaluate.certified_patch_accuracy(model, test, 1, size=2)
    dropped = evaluate.certified_patch_accuracy(inside, test, 1, size=2, drop_tokens=True)
    print([each.accuracy for each in (result, dropped)], [each.certified_accuracy for each in (result, dropped)])
    assert result.accuracy > 0.6
    assert result.certified_accuracy > 0.1
