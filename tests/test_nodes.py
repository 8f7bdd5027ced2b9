"""Built-in explanations of capsule networks: contributions and attention of nodes, and where nodes lie."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_capsvit import AffCapsNet, CapsNet, GraCapsNet, explain, taps
from keras_capsvit.ops import contributions

SMALL = {"num_types": 3, "filters": 6, "kernel_size": 3}
MODELS = {
    "gracapsnet": lambda: GraCapsNet((12, 12, 1), 4, num_heads=3, filters=6),
    "neighbours": lambda: GraCapsNet((12, 12, 1), 4, num_heads=3, filters=6, sigma=1.5, self_loops=True),
    "top_k": lambda: GraCapsNet((12, 12, 1), 4, num_heads=3, filters=6, pooling="top_k"),
    **{
        routing: lambda routing=routing: CapsNet((12, 12, 1), 4, routing=routing, **SMALL)
        for routing in ("dynamic", "rolled", "trainable", "uniform", "em", "self")
    },
    "affine": lambda: AffCapsNet((12, 12, 1), 4, **SMALL),
}


def model_of(name):
    keras.utils.set_random_seed(1)
    return MODELS[name]()


def images(count=3):
    return np.random.default_rng(2).uniform(size=(count, 12, 12, 1)).astype("float32")


def arrays(tensors):
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


def before_the_squash(name, lengths):
    """The length ``n`` of which ``lengths`` are ``n^2 / (1 + n^2)``; of EM and self routing the length itself."""
    return lengths if name in ("em", "self") else np.sqrt(lengths / (1 - lengths))


@pytest.mark.parametrize("several", [True, False])
def test_contributions_are_those_of_a_naive_loop(several):
    random = np.random.default_rng(3)
    weights = random.uniform(size=(2, 5, 3)).astype("float32")
    votes = random.normal(size=(2, 5, 3 if several else 1, 4)).astype("float32")
    weights[0, :, 1] = 0  # a sum that is the zero vector
    lengths = random.uniform(size=(2, 3)).astype("float32")
    expected, scaled = np.zeros((2, 5, 3)), np.zeros((2, 5, 3))
    for b in range(2):
        for j in range(3):
            each = [weights[b, i, j] * votes[b, i, j if several else 0] for i in range(5)]
            total = np.sum(each, axis=0)
            norm = np.linalg.norm(total)
            for i in range(5):
                expected[b, i, j] = each[i] @ total / norm if norm else 0
                scaled[b, i, j] = expected[b, i, j] * lengths[b, j] / norm if norm else 0
    np.testing.assert_allclose(contributions(weights, votes), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(contributions(weights, votes, lengths), scaled, rtol=1e-5, atol=1e-6)


def test_contributions_of_nan_are_nan():
    weights, votes = np.ones((1, 2, 2), "float32"), np.ones((1, 2, 2, 3), "float32")
    votes[0, 0, 1, 0] = np.nan
    of_first, of_second = np.moveaxis(ops.convert_to_numpy(contributions(weights, votes)), -1, 0)
    assert np.isfinite(of_first).all()
    assert np.isnan(of_second).all()


def test_of_a_graph_they_are_attention_times_features_along_the_class_capsule():
    model, x = model_of("gracapsnet"), images()
    primary, attention, outputs = arrays(taps.tap(model, ["primary_capsules", "attention", "contributions"])(x))
    nodes = ops.convert_to_numpy(model.get_layer("projection")(primary))
    expected = np.zeros_like(outputs)
    for b in range(len(x)):
        for j in range(4):
            capsule = (attention[b, ..., j, None] * nodes[b]).sum(axis=(0, 1, 2)) / 3
            along = nodes[b] @ capsule / np.linalg.norm(capsule)
            expected[b, ..., j] = (attention[b, ..., j] * along).sum(axis=-1) / 3
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-6)


QUICK = ("gracapsnet", "dynamic", "em", "self")


@pytest.mark.samples(2)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def test_maps_of_every_capsule_network_add_up_to_the_length_before_the_squash(name):
    model, x = model_of(name), images()
    lengths = ops.convert_to_numpy(model(x)).astype("float64")
    explainer = explain.GraphContribution(model, batch_size=2)
    for target in (None, 1, [3, 0, 2]):
        classes = lengths.argmax(-1) if target is None else np.broadcast_to(target, 3)
        expected = before_the_squash(name, lengths[np.arange(3), classes])
        np.testing.assert_allclose(explainer(x, target).sum(axis=(1, 2)), expected, rtol=1e-5, atol=1e-6)
    on_grid = ops.convert_to_numpy(taps.tap(model, "contributions")(x))
    np.testing.assert_allclose(on_grid.sum(axis=(1, 2)), before_the_squash(name, lengths), rtol=1e-5, atol=1e-6)


def test_attention_is_the_mean_over_heads_and_adds_up_to_1():
    model, x = model_of("gracapsnet"), images()
    maps = explain.GraphAttention(model, batch_size=2)(x)
    lengths, attention = arrays(taps.tap(model, ["lengths", "attention"])(x))
    predicted = lengths.argmax(-1)
    np.testing.assert_allclose(maps, explain.GraphAttention(model)(x, predicted), atol=1e-7)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, atol=1e-5)
    maps = explain.GraphAttention(model)(x, 3)
    # Nodes of two convolutions 3x3, the second of stride 2, look at 2, 4, ...: pixels between two nodes are means.
    expected = attention.mean(axis=3)[..., 3] / 4
    np.testing.assert_allclose(maps[:, 2:9:2, 2:9:2], expected, atol=1e-6)
    between = (expected[:, 1:] + expected[:, :-1]) / 2
    np.testing.assert_allclose(maps[:, 3:8:2, 2:9:2], between, atol=1e-6)


def test_a_grid_as_large_as_the_image_is_the_map():
    keras.utils.set_random_seed(4)
    model, x = GraCapsNet((6, 6, 1), 3, kernel_size=1, strides=(1, 1), num_heads=2, filters=4), images()[:, :6, :6]
    attention = ops.convert_to_numpy(taps.tap(model, "attention")(x))
    np.testing.assert_allclose(explain.GraphAttention(model)(x, 2), attention.mean(axis=3)[..., 2], atol=1e-6)


@pytest.mark.parametrize("kind", [explain.GraphAttention, explain.GraphContribution])
def test_says_what_is_wrong(kind):
    explainer, x = kind(model_of("gracapsnet")), images()
    with pytest.raises(ValueError, match="class ids between 0 and 3; received values between 4 and 4"):
        explainer(x, target=4)
    with pytest.raises(ValueError, match=r"ids of shape \(3,\); received shape \(2,\)"):
        explainer(x, target=[1, 2])
    with pytest.raises(ValueError, match=r"channels\); received \(12, 12, 1\)"):
        explainer(x[0])
    with pytest.raises(ValueError, match=rf"capsule network, with the taps 'lengths' and '{kind.tap}'; .* \[\]"):
        kind(lambda x: x)
    assert explainer(x[:0]).shape == (0, 12, 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [explain.GraphAttention, explain.GraphContribution])
def test_of_a_network_inside_another(kind):
    inner, x = model_of("gracapsnet"), images()
    expected = kind(inner)(x)
    for last in ([], [layers.Softmax()]):
        outer = keras.Sequential([keras.Input((12, 12, 1)), layers.Rescaling(1 / 255), inner, *last])
        np.testing.assert_allclose(kind(outer)(255 * x), expected, atol=1e-6)
        np.testing.assert_allclose(kind(outer)(255 * x, 3), kind(inner)(x, 3), atol=1e-6)
    with pytest.raises(ValueError, match=r"class scores are the lengths .* has other layers behind these"):
        kind(keras.Sequential([keras.Input((12, 12, 1)), inner, layers.Dense(4)]))


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["gracapsnet", "dynamic"])
def test_of_a_served_network(name, tmp_path):
    from keras_capsvit import serving

    model, x = model_of(name), images()
    kinds = [explain.GraphContribution] + ([explain.GraphAttention] if name == "gracapsnet" else [])
    endpoints = {kind.__name__: kind(model) for kind in kinds}
    serving.export(model, tmp_path, explainers=endpoints, input_range=(0, 1))
    served = serving.load(tmp_path)
    for kind, target in [(kind, target) for kind in kinds for target in (None, 3)]:
        expected = kind(model)(x, target)
        np.testing.assert_allclose(kind(served)(x, target), expected, atol=1e-6)
        np.testing.assert_allclose(served.explain(x, target, endpoint=kind.__name__)["maps"], expected, atol=1e-6)
    on_grid = taps.tap(model, "contributions")(x)
    np.testing.assert_allclose(served.explain(x)["maps"], on_grid, atol=1e-6)


@pytest.mark.tensorflow
def test_a_served_network_that_does_not_tell_where_its_nodes_look_is_drawn_with_a_warning(tmp_path):
    from keras_capsvit import serving

    serving.export(model_of("gracapsnet"), tmp_path, input_range=(0, 1))
    served = serving.load(tmp_path)
    served.centres = {}  # as an earlier version wrote it
    with pytest.warns(UserWarning, match="does not tell where its nodes look.*Export the model again"):
        maps = explain.GraphAttention(served)(images())
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, atol=1e-5)


def convolution(size, strides=1, padding="valid", **settings):
    return layers.Conv2D(1, size, strides, padding, kernel_initializer="ones", **settings)


WINDOWS = {
    "one": [convolution(5, 2)],
    "same": [convolution(3, padding="same"), convolution(4, 2, "same"), layers.MaxPooling2D(2)],
    "dilated": [convolution(3, dilation_rate=2), layers.AveragePooling2D(3, 2, "same")],
    "padded": [
        layers.ZeroPadding2D(((2, 0), (1, 3))),
        convolution((3, 5), (2, 1)),
        layers.Cropping2D(((1, 0), (0, 2))),
    ],
    "depthwise": [layers.DepthwiseConv2D(3, 2, "same", depthwise_initializer="ones"), convolution(2, 2)],
    "separable": [layers.SeparableConv2D(1, 3, 2, depthwise_initializer="ones", pointwise_initializer="ones")],
    "nested": [keras.Sequential([convolution(3, 2, "same"), layers.ReLU()]), convolution(3)],
}


@pytest.mark.parametrize("name", list(WINDOWS))
@pytest.mark.parametrize("shape", [(20, 23, 1), (17, 16, 1)])
def test_nodes_lie_in_the_middle_of_the_pixels_that_change_them(name, shape):
    inputs = keras.Input(shape)
    outputs = inputs
    for layer in WINDOWS[name]:
        outputs = layer.from_config(layer.get_config())(outputs)
    model = keras.Model(inputs, outputs)
    model.taps = {"nodes": outputs}
    places = taps.centres(model, "nodes", np.zeros((1, *shape), "float32"))
    for axis, centres in enumerate(places):
        lines = np.zeros((shape[axis], *shape), "float32")  # an image for each row, or column, of pixels
        for line, image in enumerate(lines):
            image[(slice(None),) * axis + (line,)] = 1 + line / 100
        changed = ops.convert_to_numpy(model(lines)).any(axis=(2 - axis, 3)) > 0
        assert changed.shape[1] == len(centres)
        inside = 0
        for node, centre in enumerate(centres):
            looked_at = np.flatnonzero(changed[:, node])
            if looked_at.size and looked_at[0] > 0 and looked_at[-1] < shape[axis] - 1:  # not cut by the edge
                assert centre == pytest.approx((looked_at[0] + looked_at[-1]) / 2)
                inside += 1
        assert inside > 1


def test_nodes_of_a_residual_network_lie_where_its_widest_way_looks():
    inputs = keras.Input((16, 16, 1))
    wide = convolution(3, 2)(layers.ZeroPadding2D(1)(inputs))
    outputs = layers.Add()([convolution(1, 2)(inputs), convolution(3, padding="same")(wide)])
    model = keras.Model(inputs, outputs)
    model.taps = {"nodes": outputs}
    rows, columns = taps.centres(model, "nodes", np.zeros((1, 16, 16, 1), "float32"))
    np.testing.assert_allclose(rows, np.arange(8) * 2)
    np.testing.assert_allclose(columns, np.arange(8) * 2)


def test_nodes_behind_what_has_no_windows_lie_in_equal_tiles():
    inputs = keras.Input((12, 12, 1))
    outputs = layers.Resizing(3, 4)(inputs)
    model = keras.Model(inputs, outputs)
    model.taps = {"nodes": outputs}
    rows, columns = taps.centres(model, "nodes", np.zeros((1, 12, 12, 1), "float32"))
    np.testing.assert_allclose(rows, [1.5, 5.5, 9.5])
    np.testing.assert_allclose(columns, [1, 4, 7, 10])
