"""What a model is: class scores before any end, whatever it is; intermediates of foreign models; range of pixels."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from networks import vit

from keras_capsvit import CapsNet, GraCapsNet, ResNet20, VisionTransformer, autodiff, taps

TENSORFLOW = pytest.mark.tensorflow


def images(size=8, count=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, size, size, 3)).astype("float32")


def network(units=4, activation=None, size=8):
    """The same weights every time."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((size, size, 3))
    for name in ("conv1", "conv2"):
        x = layers.Conv2D(4, 3, activation="relu", name=name)(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    head = layers.Dense(
        units, activation=activation, kernel_initializer=keras.initializers.RandomNormal(stddev=1.0, seed=1)
    )
    return keras.Model(inputs, head(x))


@keras.saving.register_keras_serializable(package="test_taps")
class WithEnd(keras.Model):
    """A subclass that ends in an op."""

    def __init__(self, inner, end):
        super().__init__()
        self.inner, self.end = inner, end

    def call(self, x):
        return self.end(self.inner(x))


def exported(model, path):
    import tensorflow as tf

    model.export(path, verbose=False)
    return tf.saved_model.load(path)


ENDS = {
    "dense softmax": lambda: network(activation="softmax"),
    "dense log-softmax": lambda: network(activation="log_softmax"),
    "dense sigmoid": lambda: network(activation="sigmoid"),
    "softmax layer": lambda: keras.Sequential([network(), layers.Softmax()]),
    "activation layer": lambda: keras.Sequential([network(), layers.Activation("softmax")]),
    "op in a functional model": lambda: keras.Model((x := keras.Input((8, 8, 3))), ops.softmax(network()(x))),
    "nested": lambda: keras.Sequential([keras.Input((8, 8, 3)), network(activation="softmax")]),
    "nested twice": lambda: keras.Sequential([keras.Sequential([network(activation="softmax")])]),
    "subclass": lambda: WithEnd(network(), ops.softmax),
    "subclass, activation": lambda: WithEnd(network(), keras.activations.sigmoid),
    "callable": lambda: (lambda model: lambda x: ops.softmax(model(x)))(network()),
    "logits": network,
}


@pytest.mark.parametrize("end", ENDS)
def test_scores_are_those_before_the_end(end):
    x, plain, model = images(), network(), ENDS[end]()
    scores = taps.scores(model)
    expected = ops.convert_to_numpy(plain(x))
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(ops.convert_to_numpy(scores(x)), expected, atol=1e-6)
    compiled = autodiff.compiled(scores, scores.variables)
    np.testing.assert_allclose(ops.convert_to_numpy(compiled(x)), expected, atol=1e-6)
    gradient = autodiff.value_and_gradient(lambda x: scores(x)[:, 1], scores.variables)(x)[1]
    twin = autodiff.value_and_gradient(lambda x: plain(x)[:, 1], plain.variables)(x)[1]
    np.testing.assert_allclose(ops.convert_to_numpy(gradient), ops.convert_to_numpy(twin), atol=1e-6)
    np.testing.assert_array_equal(taps.predictions(model, x), expected.argmax(-1))


@TENSORFLOW
@pytest.mark.parametrize("end", ["dense softmax", "nested", "logits", "subclass"])
def test_scores_of_a_saved_model(end, tmp_path):
    x, model = images(), ENDS[end]()
    model(x)
    served = taps.scores(exported(model, tmp_path / "model"))
    np.testing.assert_allclose(served(x), network()(x), atol=1e-6)
    gradient = autodiff.value_and_gradient(lambda x: served(x)[:, 1])(x)[1]
    plain = network()
    twin = autodiff.value_and_gradient(lambda x: plain(x)[:, 1])(x)[1]
    np.testing.assert_allclose(gradient, twin, atol=1e-6)


@TENSORFLOW
def test_scores_before_raw_tensorflow_ops_and_traced_functions():
    import tensorflow as tf

    x, plain = images(), network()
    for model in (
        lambda x: tf.nn.softmax(plain(x)),
        tf.function(lambda x: tf.nn.softmax(plain(x))),
        tf.function(lambda x: tf.reshape(tf.nn.sigmoid(plain(x)), (-1, 4))),
    ):
        np.testing.assert_allclose(taps.scores(model)(x), plain(x), atol=1e-6)


@pytest.mark.slow
def test_one_sigmoid_is_two_classes():
    x, plain = images(), network(1)
    z = ops.convert_to_numpy(plain(x))
    twin = np.concatenate([-z, z], axis=1)
    for model in (network(1, "sigmoid"), network(1), keras.Sequential([network(1, "sigmoid")])):
        np.testing.assert_allclose(ops.convert_to_numpy(taps.scores(model)(x)), twin, atol=1e-6)
        np.testing.assert_array_equal(taps.predictions(model, x), (z[:, 0] > 0).astype(int))
    with pytest.raises(ValueError, match="softmax of one unit, which is 1 for every image"):
        taps.scores(network(1, "softmax"))(x)


def test_probabilities_that_cannot_be_undone_become_logarithms_with_one_warning():
    x, member, single = images(), network(activation="softmax"), network(5, activation="softmax")
    members = [member, keras.Sequential([network(), layers.Rescaling(3.0), layers.Softmax()])]
    inputs = keras.Input((8, 8, 3))
    ensemble = keras.Model(inputs, layers.Average()([model(inputs) for model in members]))
    scores = taps.scores(ensemble)
    with pytest.warns(UserWarning, match="returns probabilities by a computation that cannot be undone") as caught:
        values = ops.convert_to_numpy(scores(x))
    assert len(caught) == 1
    np.testing.assert_allclose(values, np.log(ops.convert_to_numpy(ensemble(x))), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores(x)
        taps.scores(single)(x)  # can be undone


def test_several_outputs_are_named():
    inputs = keras.Input((8, 8, 3))
    flat = layers.Flatten()(inputs)
    kinds = {"digit": layers.Dense(3, name="digit")(flat), "colour": layers.Dense(2, name="colour")(flat)}
    x = images()
    for outputs in (kinds, list(kinds.values())):
        model = keras.Model(inputs, outputs)
        with pytest.raises(ValueError, match=r"one of the outputs of .*\['(digit|colour)', '(digit|colour)'\]"):
            taps.scores(model)(x)
        expected = ops.convert_to_numpy(keras.Model(inputs, kinds["colour"])(x))
        for which in ("colour", model.output_names.index("colour")):
            np.testing.assert_allclose(ops.convert_to_numpy(taps.scores(model, which)(x)), expected, atol=1e-6)
        with pytest.raises(ValueError, match="received 'shape'"):
            taps.scores(model, "shape")(x)
    both = keras.Model([inputs, keras.Input((2,), name="meta")], flat)
    with pytest.raises(ValueError, match=r"one input, the images; .* has \[.*'meta'\]"):
        taps.scores(both)


def test_declared_taps_of_an_output_that_is_not_there_are_refused():
    model = GraCapsNet((12, 12, 3), 4, **SMALL)
    headed = keras.Sequential([model, layers.Dense(2)])
    for output in ("nothing", 7):
        with pytest.raises(ValueError, match=f"has one output, its lengths; received output={output!r}"):
            taps.tap(model, "attention", output=output)
        with pytest.raises(ValueError, match=f"has one output; received output={output!r}"):
            taps.tap(headed, "attention", output=output)


def test_a_single_input_may_have_a_name():
    inputs = {"pixel_values": keras.Input((8, 8, 3), name="pixel_values")}
    model, x = keras.Model(inputs, network(activation="softmax")(inputs["pixel_values"])), images()
    np.testing.assert_allclose(
        ops.convert_to_numpy(taps.scores(model)(x)), ops.convert_to_numpy(network()(x)), atol=1e-6
    )


def test_integers_continue_on_floats_or_are_refused():
    x = np.round(images() * 255)
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    plain = network()
    for model in (
        keras.Model(inputs, plain(layers.Rescaling(1 / 255)(inputs))),
        keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), layers.Rescaling(1 / 255), plain]),
    ):
        scores = taps.scores(model)
        np.testing.assert_allclose(ops.convert_to_numpy(scores(x)), ops.convert_to_numpy(plain(x / 255)), atol=1e-5)
        gradient = autodiff.value_and_gradient(lambda x, scores=scores: scores(x)[:, 0], scores.variables)(x)[1]
        twin = autodiff.value_and_gradient(lambda x: plain(x / 255)[:, 0], plain.variables)(x)[1]
        np.testing.assert_allclose(ops.convert_to_numpy(gradient), ops.convert_to_numpy(twin), atol=1e-7)
    flat = layers.Flatten()(layers.Embedding(256, 2)(inputs))
    with pytest.raises(ValueError, match="takes uint8 images and does not compute the same from floats"):
        taps.scores(keras.Model(inputs, layers.Dense(3)(flat)))(x)


def test_channels_in_front_are_refused_and_behind_a_permutation_right():
    inputs = keras.Input((3, 8, 10))
    flat = layers.Flatten(data_format="channels_last")(layers.ZeroPadding2D(1, data_format="channels_first")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(flat))
    with pytest.raises(ValueError, match=r"with channels in front .*keras.layers.Permute\(\(3, 1, 2\)\)"):
        taps.scores(model)
    x = np.random.default_rng(0).uniform(size=(2, 8, 10, 3)).astype("float32")
    behind = keras.Sequential([keras.Input((8, 10, 3)), layers.Permute((3, 1, 2)), model])
    expected = ops.convert_to_numpy(model(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(ops.convert_to_numpy(taps.scores(behind)(x)), expected, atol=1e-6)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ValueError, match=r"class scores of shape \(batch, classes\); .* returns"):
        taps.scores(keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3)]))(images())
    with pytest.raises(ValueError, match=r"a model, live or served, or a callable .*; received int"):
        taps.scores(3)


def test_a_callable_that_leaves_the_graph_can_be_asked():
    plain = network(activation="softmax")
    x = images()
    scores = taps.scores(lambda x: plain.predict(ops.convert_to_numpy(x), verbose=0))
    with pytest.warns(UserWarning, match="logarithm"):
        values = ops.convert_to_numpy(scores(x))
    np.testing.assert_allclose(values, np.log(plain.predict(x, verbose=0)), atol=1e-5)


SMALL = {"num_heads": 2, "primary_dim": 4, "capsule_dim": 4, "filters": 8}


def test_taps_of_a_model_inside_another():
    inner = GraCapsNet((12, 12, 3), 4, **SMALL)
    outer = keras.Sequential([keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), inner])
    x = images(12)
    assert taps.scores(outer).kind == taps.scores(inner).kind == "lengths"
    np.testing.assert_allclose(
        ops.convert_to_numpy(taps.scores(outer)(255 * x)), ops.convert_to_numpy(inner(x)), atol=1e-6
    )
    assert taps.names(outer) == taps.names(inner)
    attention = taps.tap(outer, "attention")(255 * x)
    expected = ops.convert_to_numpy(taps.tap(inner, "attention")(x))
    np.testing.assert_allclose(ops.convert_to_numpy(attention), expected, atol=1e-6)
    lengths, capsules = taps.tap(outer, ["lengths", "capsules"])(255 * x)
    norms = np.linalg.norm(ops.convert_to_numpy(capsules), axis=-1)
    np.testing.assert_allclose(norms, ops.convert_to_numpy(lengths), atol=1e-5)


def test_a_head_on_top_of_a_model_of_ours_has_its_own_scores():
    inner = ResNet20((8, 8, 3), 4, filters=4)
    outer = keras.Sequential([inner, layers.Dense(3, activation="softmax")])
    x = images()
    expected = ops.convert_to_numpy(inner(x)) @ ops.convert_to_numpy(outer.layers[-1].kernel)
    np.testing.assert_allclose(ops.convert_to_numpy(taps.scores(outer)(x)), expected, atol=1e-5)
    assert taps.scores(outer).kind == "logits"


def test_layers_of_nested_and_subclassed_models_are_seen_by_name():
    backbone = network()
    model = WithEnd(keras.Sequential([layers.Rescaling(2.0, name="scale"), backbone], name="both"), ops.softmax)
    x = images()
    model(x)
    names = taps.layers(model, x)
    path = f"both/{backbone.name}/conv1"
    assert names[path] == (6, 6, 4) and names["both/scale"] == (8, 8, 3)
    nested = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(2.0, name="scale"), backbone], name="both")
    conv1 = keras.Model(backbone.inputs, backbone.get_layer("conv1").output)
    expected = ops.convert_to_numpy(conv1(2 * x))
    for name in ("conv1", f"{backbone.name}/conv1"):
        np.testing.assert_allclose(ops.convert_to_numpy(taps.tap(nested, name)(x)), expected, atol=1e-6)
    scaled, again = taps.tap(nested, ["scale", "conv1"])(x)
    np.testing.assert_allclose(ops.convert_to_numpy(scaled), 2 * x, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(again), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"both has no tap 'conv9'; it has \[\], and the layers .*conv1"):
        taps.tap(nested, "conv9")
    assert "call" not in vars(backbone.get_layer("conv1"))


def test_names_of_two_layers_are_refused():
    twice = keras.Sequential(
        [keras.Input((8, 8, 3)), *(keras.Sequential([layers.Conv2D(3, 3, name="conv")], name=n) for n in "ab")]
    )
    twice.add(layers.GlobalAveragePooling2D())
    with pytest.raises(ValueError, match=r"'conv' is that of \['a/conv', 'b/conv'\]"):
        taps.tap(twice, "conv")
    assert taps.tap(twice, "b/conv")(images()).shape == (3, 4, 4, 3)


def test_nothing_is_left_on_a_model_also_after_an_error():
    before = keras.Layer.__call__, keras.Operation.__call__, keras.ops.softmax

    class Failing(keras.Layer):
        def call(self, x):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        taps.scores(lambda x: Failing()(x)).recorded(ops.convert_to_tensor(images()), ["conv"])
    model = network()
    attributes = set(vars(model.get_layer("conv1")))
    taps.layers(model)
    taps.tap(model, "conv1")(images())
    assert set(vars(model.get_layer("conv1"))) == attributes
    assert before == (keras.Layer.__call__, keras.Operation.__call__, keras.ops.softmax)


def test_the_gradient_at_an_intermediate_is_that_at_zeros_added_to_it():
    model, x = network(activation="softmax"), images()
    scores = taps.scores(model)
    conv2 = keras.Model(model.inputs, model.get_layer("conv2").output)(x)

    def at_offset(offset, x):
        return scores.recorded(x, ["conv2"], offsets={"conv2": offset})[0][:, 2]

    zeros = np.zeros(conv2.shape, "float32")
    gradient = autodiff.value_and_gradient(at_offset, scores.variables)(zeros, x)[1]
    kernel = ops.convert_to_numpy(model.layers[-1].kernel)
    expected = np.broadcast_to(kernel[:, 2] / 16, conv2.shape)  # behind global average pooling over 4x4
    np.testing.assert_allclose(ops.convert_to_numpy(gradient), expected, atol=1e-7)


def replica_attention(layer, x):
    """Attention of a keras.layers.MultiHeadAttention, in NumPy."""
    query, key = (
        np.einsum("btd,dhe->bhte", x, ops.convert_to_numpy(dense.kernel)) + ops.convert_to_numpy(dense.bias)[:, None]
        for dense in (layer.query_dense, layer.key_dense)
    )
    scores = np.einsum("bhte,bhse->bhts", query, key) / np.sqrt(query.shape[-1])
    exponents = np.exp(scores - scores.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def test_attention_of_foreign_layers():
    model, x = vit(), images(12)
    attention0, attention1 = taps.tap(model, ["attention_0", "attention_1"])(x)
    normal = ops.convert_to_numpy(taps.tap(model, "norm0a")(x))
    expected = replica_attention(model.get_layer("attention0"), normal)
    np.testing.assert_allclose(ops.convert_to_numpy(attention0), expected, atol=1e-6)
    assert attention1.shape == (3, 2, 10, 10)
    scores = taps.scores(model)
    assert taps.tokens(scores) == (1, (3, 3))
    np.testing.assert_allclose(
        ops.convert_to_numpy(scores.recorded(x, attention=True)[0]), ops.convert_to_numpy(model(x)), atol=1e-5
    )
    with pytest.raises(ValueError, match="has no tap 'attention_2', but 2 self-attentions"):
        taps.tap(model, "attention_2")


def test_attention_of_our_own_layers_is_what_they_declare():
    model = VisionTransformer("S/4", input_shape=(12, 8, 3), num_classes=3, width=8, depth=2, num_heads=2)
    x = np.random.default_rng(0).uniform(size=(2, 12, 8, 3)).astype("float32")
    seen = taps.scores(model).recorded(ops.convert_to_tensor(x), attention=True)[2]
    for index, attention in enumerate(seen):
        declared = taps.tap(model, f"attention_{index}")(x)
        np.testing.assert_allclose(ops.convert_to_numpy(attention), ops.convert_to_numpy(declared), atol=1e-6)
    assert taps.tokens(taps.scores(model)) == (1, (3, 2))
    assert taps.feature_map(taps.scores(model), before_attention=True).layer.endswith("norm1")


def test_fused_attention_is_seen():
    class Fused(keras.Layer):
        def call(self, x):
            heads = ops.reshape(x, (-1, 4, 2, 3))
            return ops.reshape(ops.nn.dot_product_attention(heads, heads, heads), (-1, 4, 6))

    inputs = keras.Input((8, 8, 3))
    tokens = layers.Reshape((4, 6))(layers.Conv2D(6, 4, strides=4)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(Fused(name="fused")(tokens))))
    x = images()
    scores, (fused,), (attention,) = taps.scores(model).recorded(ops.convert_to_tensor(x), ["fused"], attention=True)
    np.testing.assert_allclose(ops.convert_to_numpy(scores), ops.convert_to_numpy(model(x)), atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(ops.sum(attention, -1)), 1, atol=1e-5)
    heads = ops.convert_to_numpy(keras.Model(inputs, tokens)(x)).reshape(3, 4, 2, 3)
    mixed = np.einsum("bhts,bshd->bthd", ops.convert_to_numpy(attention), heads).reshape(3, 4, 6)
    np.testing.assert_allclose(ops.convert_to_numpy(fused), mixed, atol=1e-5)


def test_the_last_feature_map_is_larger_than_one_pixel():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="last")(inputs)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    model = keras.Model(inputs, layers.Flatten()(layers.Conv2D(5, 1, name="classifier")(x)))
    assert taps.feature_map(taps.scores(model)).layer == "last"
    assert taps.feature_map(taps.scores(keras.Sequential([model, layers.Softmax()]))).layer.endswith("/last")
    with pytest.raises(ValueError, match=r"feature map \(b, h, w, c\) larger than 1x1"):
        taps.feature_map(taps.scores(keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])))


@TENSORFLOW
def test_intermediates_of_a_saved_model(tmp_path):
    model, x = network(activation="softmax"), images()
    served = taps.scores(exported(model, tmp_path / "model"))
    place = taps.feature_map(served)
    assert place.grid == (4, 4)
    expected = keras.Model(model.inputs, model.get_layer("conv2").output)(x)
    scores, (values,), _ = served.recorded(ops.convert_to_tensor(x), [place.layer])
    np.testing.assert_allclose(values, expected, atol=1e-6)
    np.testing.assert_allclose(scores, network()(x), atol=1e-6)

    def at_offset(offset, x):
        return served.recorded(x, [place.layer], offsets={place.layer: offset})[0][:, 2]

    gradient = autodiff.value_and_gradient(at_offset)(np.zeros(expected.shape, "float32"), x)[1]
    np.testing.assert_allclose(gradient, np.broadcast_to(model.layers[-1].kernel[:, 2] / 16, gradient.shape), atol=1e-7)


@pytest.mark.slow
@TENSORFLOW
def test_attention_of_a_saved_model(tmp_path):
    model, x = vit(), images(12)
    served = taps.scores(exported(model, tmp_path / "model"))
    assert taps.tokens(served) == (1, (3, 3))
    live = taps.scores(model).recorded(ops.convert_to_tensor(x), attention=True)[2]
    for each, twin in zip(served.recorded(ops.convert_to_tensor(x), attention=True)[2], live, strict=True):
        np.testing.assert_allclose(each, twin, atol=1e-5)


def test_range_of_pixels():
    def behind(*front):
        return keras.Sequential([keras.Input((8, 8, 3)), *front, network()])

    mean, variance = [0.485, 0.456, 0.406], [0.229**2, 0.224**2, 0.225**2]
    expected = {
        (0.0, 255.0): [
            [layers.Rescaling(1 / 255)],
            [layers.Rescaling(1 / 127.5, offset=-1)],
            [layers.Rescaling(1 / 255), layers.Normalization(mean=mean, variance=variance)],
            [layers.Normalization(mean=[120.0] * 3, variance=[58.0**2] * 3)],
        ],
        (0.0, 1.0): [
            [layers.Rescaling(2.0, offset=-1)],
            [layers.Normalization(mean=mean, variance=variance)],
        ],
        None: [[], [layers.Rescaling(1 / 20)]],
    }
    for pixels, fronts in expected.items():
        for front in fronts:
            assert taps.input_range(behind(*front)) == pixels
    nested = keras.Sequential([keras.Input((8, 8, 3)), behind(layers.Rescaling(1 / 255))])
    assert taps.input_range(nested) == (0.0, 255.0)
    assert taps.input_range(CapsNet((16, 16, 3), 3, filters=8, num_types=2, kernel_size=5)) == (0.0, 1.0)
    assert taps.input_range(ResNet20((8, 8, 3), 3, mean=mean, std=[0.2] * 3)) == (0.0, 1.0)


def test_the_grid_of_tokens_is_that_of_the_declared_features():
    """Ten tokens could be 3x3 patches and a class token, or 2x2 patches and six others."""
    model = VisionTransformer("Ti/4", input_shape=(12, 12, 3), num_classes=4, width=8, depth=1, num_heads=2)
    for outer in (model, keras.Sequential([keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), model])):
        assert taps.tokens(taps.scores(outer)) == (1, (3, 3))


@TENSORFLOW
def test_the_grid_of_a_served_transformer_is_no_matrix_of_its_attention(tmp_path):
    """Keys (b, 2 heads, 4 dimensions, 17 tokens) have the shape of a map of 2x4 patches."""
    model = VisionTransformer("Ti/4", input_shape=(16, 16, 3), num_classes=4, width=8, depth=1, num_heads=2)
    served = taps.scores(exported(model, tmp_path / "model"))
    assert (2, 4, 17) in taps.layers(served).values()
    assert taps.tokens(served) == (1, (4, 4))
